"""The demo's text, carried by every CPython: docstrings of the standard library, and the language reference.

Nothing is downloaded and no module is imported for its docstrings: sources are parsed with `ast`. Text that occurs
twice is kept once, so that no paragraph of a test document is found word for word in a training document.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import re
import sysconfig
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from knnlm.text.documents import Document

# Tests, vendored wheels, machine-written tables, and the reference itself are not docstrings of the library.
_SKIPPED_FOLDERS = frozenset(
    {"__pycache__", "site-packages", "dist-packages", "test", "tests", "idle_test", "_bundled", "pydoc_data"}
)
_SKIPPED_MODULES = re.compile(r"^(_sysconfigdata|lib2to3\.|turtledemo\.|encodings\.(cp|mac_|iso|koi))")
_MIN_MODULE_CHARACTERS = 200  # a shorter document gives the model no context to speak of
_MIN_TOPIC_CHARACTERS = 300
_HELD_OUT_SHARE = 0.1


@dataclass(frozen=True)
class Corpus:
    """Three disjoint lists of documents."""

    train: list[Document]
    valid: list[Document]
    test: list[Document]

    def characters(self) -> dict[str, int]:
        """Characters of each split."""
        splits = {"train": self.train, "valid": self.valid, "test": self.test}
        return {name: sum(len(document.text) for document in documents) for name, documents in splits.items()}


def docstrings(root: Path | None = None) -> Corpus:
    """One document per module of the standard library: its module, class and function docstrings.

    Args:
        root: folder of the library's sources; the running interpreter's if None.

    Raises:
        FileNotFoundError: the interpreter carries no sources (a stripped or zipped installation).
    """
    folder = Path(sysconfig.get_path("stdlib")) if root is None else root
    seen: set[str] = set()
    documents = []
    for name, path in _modules(folder):
        text = _module_text(name, path, seen)
        if len(text) >= _MIN_MODULE_CHARACTERS:
            documents.append(Document(name=f"docstrings/{name}", text=text, metadata={"module": name}))
    if not documents:
        raise FileNotFoundError(
            f"expected the sources of the standard library in {folder}, found none: "
            "this Python is installed without them, use one that has its .py files"
        )
    return _split(documents)


def language_reference() -> Corpus:
    """One document per topic of the language reference, as `pydoc_data.topics` carries it.

    Topics contain each other ("compound" holds all of "if", "for", "with", …). Going from the shortest topic to the
    longest, a paragraph that an earlier topic has is left out, so that topics share no paragraph.

    Raises:
        FileNotFoundError: this Python comes without `pydoc_data`.
    """
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise FileNotFoundError(
            "expected the language reference in pydoc_data.topics, found no such module: "
            "this Python is installed without its documentation data, use one that has it"
        ) from error
    seen: set[str] = set()
    documents = []
    for topic in sorted(topics, key=lambda name: (len(topics[name]), name)):
        text = _without_seen_paragraphs(topics[topic], seen)
        if len(text) >= _MIN_TOPIC_CHARACTERS:
            documents.append(Document(name=f"reference/{topic}", text=text, metadata={"topic": topic}))
    return _split(documents)


def _split(documents: Iterable[Document]) -> Corpus:
    """Test and valid take a share of the characters each, train the rest; who goes where is a hash of the name.

    Each split is in the order of the hash too, so that its first few documents are a fair sample.
    """
    ordered = sorted(documents, key=lambda document: hashlib.sha256(document.name.encode()).digest())
    quota = _HELD_OUT_SHARE * sum(len(document.text) for document in ordered)
    corpus = Corpus([], [], [])
    room = {"test": quota, "valid": quota}
    for document in ordered:
        split = next((name for name in ("test", "valid") if len(document.text) <= room[name]), "train")
        if split != "train":
            room[split] -= len(document.text)
        getattr(corpus, split).append(document)
    return corpus


def _modules(root: Path) -> Iterator[tuple[str, Path]]:
    """Dotted name and path of every module below `root`, by name."""
    found = {}
    for path in root.rglob("*.py"):
        parts = path.relative_to(root).with_suffix("").parts
        if _SKIPPED_FOLDERS.intersection(parts):
            continue
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        if name and not _SKIPPED_MODULES.match(name):
            found[name] = path
    yield from sorted(found.items())


def _module_text(name: str, path: Path, seen: set[str]) -> str:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # old escapes in library sources are not the user's business
            tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError, OSError):
        return ""
    blocks = []
    for qualified, node in _documented(tree, name):
        docstring = ast.get_docstring(node, clean=False)
        text = _clean(docstring) if docstring else ""
        if not text or text in seen:
            continue
        seen.add(text)
        blocks.append(f"{qualified}\n{text}")
    return "\n\n".join(blocks) + "\n" if blocks else ""


_Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def _documented(node: _Documented, name: str) -> Iterator[tuple[str, _Documented]]:
    """The module, its classes and functions in source order, each with its qualified name; bodies of functions not."""
    yield name, node
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return
    for child in node.body:
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _documented(child, f"{name}.{child.name}")


def _clean(text: str) -> str:
    lines = (line.rstrip() for line in inspect.cleandoc(text).splitlines())
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()


def _without_seen_paragraphs(text: str, seen: set[str]) -> str:
    """`text` less the paragraphs in `seen` (compared without white space), which gains those that were kept."""
    kept = []
    for paragraph in re.split(r"\n\s*\n", text.expandtabs()):
        lines = [line.rstrip() for line in paragraph.splitlines()]
        words = "".join(paragraph.split())
        if not words or words in seen:
            continue
        if len(words) > 40:  # short ones ("Note:", a heading, "Example:") are language, not a copy
            seen.add(words)
        kept.append("\n".join(lines).strip("\n"))
    return "\n\n".join(kept) + "\n" if kept else ""
