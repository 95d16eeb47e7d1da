"""The corpora of the experiments: exactly which documents are train, valid and test.

    python benches/corpora.py --data FOLDER      prints and checks the sizes

FOLDER holds wikitext-2/, python-peps/, gutenberg/ and rust-docs/ as text or .gz files. WikiText-2 is word level, one
document per article; its splits must have exactly 2,088,628 / 217,646 / 245,569 tokens over 33,278 types. PEPs: one
document per PEP. Gutenberg: one document per chapter; the test is The Adventures of Sherlock Holmes, valid is A Tale of
Two Cities. rust-docs (only a domain to adapt to): one document per top heading of the Markdown.
"""

from __future__ import annotations

import argparse
import gzip
from dataclasses import dataclass
from pathlib import Path

from knnlm.text.documents import SPLIT_PATTERNS, Document, split_text
from knnlm.text.tokenizer import Tokenizer, count_words


@dataclass(frozen=True)
class Corpus:
    name: str
    train: list[Document]
    valid: list[Document]
    test: list[Document]
    word_level: bool
    vocab_size: int

    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the corpus, made from its train split only."""
        texts = (document.text for document in self.train)
        if self.word_level:
            return Tokenizer.train_words(texts)
        return Tokenizer.train_bpe(texts, self.vocab_size)


GUTENBERG_VALID = "a-tale-of-two-cities"
GUTENBERG_TEST = "the-adventures-of-sherlock-holmes"
WIKITEXT_TOKENS = {"train": 2_088_628, "valid": 217_646, "test": 245_569}
SHORTEST = 400  # characters; a shorter piece is a table of contents or a half-title and joins the document after it


def read(path: Path) -> str:
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return data.decode("utf-8")


def documents(path: Path, pattern: str, shortest: int = 0) -> list[Document]:
    stem = path.name.removesuffix(".gz").removesuffix(".txt")
    parts: list[str] = []
    held = ""
    for part in split_text(read(path), SPLIT_PATTERNS[pattern]):
        held += part
        if len(held) >= shortest:
            parts.append(held)
            held = ""
    if held:
        parts[-1:] = [parts[-1] + held] if parts else [held]
    return [Document(f"{stem}#{i + 1}", part) for i, part in enumerate(parts)]


def wikitext2(data: Path) -> Corpus:
    folder = data / "wikitext-2"
    train, valid, test = (
        documents(next(p for p in (folder / f"{s}.txt", folder / f"{s}.txt.gz") if p.is_file()), "wikitext")
        for s in ("train", "valid", "test")
    )
    return Corpus("wikitext2", train, valid, test, True, 33_278)


def peps(data: Path) -> Corpus:
    train, valid, test = (documents(data / "python-peps" / f"{s}.txt.gz", "pep") for s in ("train", "valid", "test"))
    return Corpus("peps", train, valid, test, False, 10_000)


def gutenberg(data: Path) -> Corpus:
    books = {
        p.name.removesuffix(".txt.gz"): documents(p, "chapter", SHORTEST)
        for p in sorted((data / "gutenberg").glob("*.txt.gz"))
    }
    valid, test = books.pop(GUTENBERG_VALID), books.pop(GUTENBERG_TEST)
    return Corpus("gutenberg", [d for book in books.values() for d in book], valid, test, False, 10_000)


def chapters(path: Path) -> list[Document]:
    """Markdown cut at its top headings; a "# " inside a code fence is a hidden line of Rust, not a heading."""
    parts: list[list[str]] = [[]]
    fenced = False
    for line in read(path).splitlines(keepends=True):
        fenced ^= line.lstrip().startswith("```")
        if line.startswith("# ") and not fenced:
            parts.append([])
        parts[-1].append(line)
    stem = path.name.removesuffix(".txt.gz")
    texts = [text for part in parts if (text := "".join(part)).strip()]
    return [Document(f"{stem}#{i + 1}", text) for i, text in enumerate(texts)]


def rust_docs(data: Path) -> Corpus:
    train, valid, test = (chapters(data / "rust-docs" / f"{s}.txt.gz") for s in ("train", "valid", "test"))
    return Corpus("rust-docs", train, valid, test, False, 10_000)


CORPORA = {"wikitext2": wikitext2, "peps": peps, "gutenberg": gutenberg, "rust-docs": rust_docs}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--corpus", choices=CORPORA, nargs="*", default=list(CORPORA))
    arguments = parser.parse_args()
    for name in arguments.corpus:
        corpus = CORPORA[name](arguments.data)
        tokenizer = corpus.tokenizer()
        print(f"{name}: {tokenizer.vocab_size} types")
        for split in ("train", "valid", "test"):
            docs: list[Document] = getattr(corpus, split)
            tokens = sum(len(tokenizer.encode(d.text)) for d in docs)
            words = sum(count_words(d.text) for d in docs)
            print(f"  {split}: {len(docs)} documents, {tokens} tokens, {words} words")
            if name == "wikitext2" and (tokens != WIKITEXT_TOKENS[split] or tokenizer.vocab_size != 33_278):
                raise SystemExit(f"expected {WIKITEXT_TOKENS[split]} tokens, found {tokens}")


if __name__ == "__main__":
    main()
