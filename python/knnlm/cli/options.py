"""Options that several commands share: input text, model, device, key capture, windows, output."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import wraps
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.shell_completion import CompletionItem

from knnlm.cli.console import note
from knnlm.cli.out_folder import OutFolder
from knnlm.cli.streams import standard_input
from knnlm.model.key_spec import AUTOCAST, REPRESENTATIONS
from knnlm.system.counted import counted
from knnlm.text import texts
from knnlm.text.documents import MAX_DOCUMENT_BYTES, SPLIT_PATTERNS
from knnlm.text.rows import NAME_FIELDS
from knnlm.text.texts import Reading

if TYPE_CHECKING:
    from knnlm.report.progress import Progress
    from knnlm.store.datastore import Datastore
    from knnlm.text.documents import Document

F = TypeVar("F", bound=Callable[..., Any])


class KeyName(click.ParamType):  # type: ignore[type-arg,unused-ignore]  # generic in some versions of click only
    """One of the paper's representations, or module:NAME."""

    name = "key"

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str:
        """What `--help` shows."""
        return "NAME"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Refuse what no model has; whether a model has the module is known once it is loaded."""
        if value in REPRESENTATIONS or (str(value).startswith("module:") and str(value) != "module:"):
            return str(value)
        self.fail(f"expected one of {', '.join(REPRESENTATIONS)} or module:NAME, found {value!r}", param, ctx)


class Words(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """Text for a model or a name of a document; in an ASCII locale its bytes come as lone surrogates."""

    name = "text"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Refuse bytes that are no UTF-8."""
        try:
            return os.fsencode(str(value)).decode("utf-8")
        except UnicodeError:
            self.fail(f"expected text in UTF-8, found {str(value)!r}", param, ctx)


class TextSource(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """A file, folder, glob, hf:NAME, or - for standard input; the shell completes files."""

    name = "text"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Files and folders, unless it is the name of a data set."""
        return [] if incomplete.startswith("hf:") else [CompletionItem(incomplete, type="file")]


def text_argument(required: bool = True) -> Callable[[F], F]:
    """The argument TEXT, any number of sources."""
    return click.argument("text", nargs=-1, required=required, type=TextSource())


as_json = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON, and nothing else.")
overwrite = click.option("--overwrite", is_flag=True, help="Replace the output if it exists.")
seed = click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of all randomness.")
device = click.option("--device", help="Where the model runs: cpu, cuda, …  [default: a GPU if there is one]")
dtype = click.option(
    "--dtype",
    type=click.Choice(("float32", "bfloat16", "float16")),
    help="Type of the model's weights.  [default: that of the store, or of the file]",
)
device_map = click.option(
    "--device-map",
    metavar="MAP",
    help="Spread a Hugging Face model over devices: auto, balanced, …; needs accelerate.  [default: one device]",
)
revision = click.option(
    "--revision", help="Branch, tag or commit of a model on the hub.  [default: main, or the store's]"
)
trust_remote_code = click.option(
    "--trust-remote-code",
    is_flag=True,
    help="Run the Python code that comes with the model that --model names, with your rights.",
)
threads = click.option(
    "--threads", type=click.IntRange(min=1), help="Threads of the model and of the search.  [default: all cores]"
)
model = click.option("--model", help="Model folder or Hugging Face name.  [default: the one that the store remembers]")
exact_option = click.option(
    "--exact/--no-exact",
    "exact",
    default=None,
    help="Scan all raw keys instead of the index, or do not although the store was tuned so.  [default: as tuned]",
)
tuned_exact_option = click.option("--exact", is_flag=True, help="Scan all raw keys instead of the index.")
cache_option = click.option("--cache", is_flag=True, help="Mix in a continuous cache of the text (Grave et al. 2017).")
ngram_option = click.option("--ngram", is_flag=True, help="Mix in a 5-gram model of the store's text.")
metric = click.option(
    "--metric",
    type=click.Choice(("l2", "ip")),
    help="What is near: the least squared distance, or the largest inner product.  [default: l2]",
)
out = click.option("--out", type=OutFolder(), required=True, help="Output folder.")


def gathered(command: F, name: str, group: type, options: Sequence[Callable[[F], F]]) -> F:
    """Adds options whose values the command gets as one `group`, a dataclass with a field for each, named `name`."""
    names = [field.name for field in fields(group)]

    @wraps(command)
    def with_group(*args: Any, **values: Any) -> Any:
        return command(*args, **{name: group(**{field: values.pop(field) for field in names})}, **values)

    for option in reversed(options):
        with_group = option(with_group)
    return with_group  # type: ignore[return-value]


@dataclass(frozen=True)
class Loading:
    """How a model is loaded; None where nothing was said."""

    device: str | None = None
    dtype: str | None = None
    device_map: str | None = None
    revision: str | None = None
    trust_remote_code: bool = False

    def given(self) -> dict[str, Any]:
        """Arguments of `load_model`; what only a Hugging Face model takes is there if it was given."""
        found = asdict(self)
        if self.device_map is None:
            del found["device_map"]
        return found


@dataclass(frozen=True)
class Mixing:
    """How neighbors are searched and mixed in; None where nothing was said."""

    lambda_: float | None
    temperature: float | None
    k: int | None
    nprobe: int | None
    rerank: str | None
    exact: bool | None

    def given(self) -> dict[str, Any]:
        """Every field, by name."""
        return asdict(self)

    def within(self, store: Datastore) -> Mixing:
        """With no more neighbors than the store has entries, which is said: more of them change no answer."""
        most = max(1, len(store))
        if self.k is None or self.k <= most:
            return self
        note(f"--k {self.k:,}: {store.path} has {counted(most, 'entry')}, all of which are taken")
        return replace(self, k=most)


def loading_options(command: F) -> F:
    """Options that say how the model is loaded, as one `Loading`."""
    return gathered(command, "loading", Loading, (device, dtype, device_map, revision, trust_remote_code))


def text_options(command: F) -> F:
    """Options that say how input text is read, as one `Reading`."""
    return _text_options(command, "all")


def one_text_options(command: F) -> F:
    """The same for a command that reads the first document only, unless it is told to read more."""
    return _text_options(command, "1")


def _text_options(command: F, documents: str) -> F:
    return gathered(
        command,
        "reading",
        Reading,
        (
            click.option(
                "--text-field", default="text", show_default=True, help="Field of JSONL input that holds text."
            ),
            click.option(
                "--name-field",
                help=f"Field of JSONL input that names a document.  [default: the first of {', '.join(NAME_FIELDS)}]",
            ),
            click.option(
                "--split-documents",
                metavar="PATTERN",
                help="A line that matches starts a new document: a regular expression, or "
                f"{', '.join(SPLIT_PATTERNS)}.",
            ),
            click.option("--split", default="train", show_default=True, help="Split of a hf: data set."),
            click.option(
                "--max-documents",
                type=click.IntRange(min=1),
                help=f"Read at most this many documents.  [default: {documents}]",
            ),
            click.option(
                "--max-document-bytes",
                type=click.IntRange(min=1),
                default=MAX_DOCUMENT_BYTES,
                help="Skip a file, line or row of more bytes, unpacked; each is held in memory.  [default: 1 GiB]",
            ),
            click.option(
                "--follow-links", is_flag=True, help="Read what links in a folder or glob lead to outside of it, too."
            ),
        ),
    )


def window_options(command: F) -> F:
    """Options of running the model over text: window, context, batch."""
    for option in reversed(
        (
            click.option(
                "--window",
                type=click.IntRange(min=1),
                help="Tokens fed at once.  [default: what the model reads, up to 2048]",
            ),
            click.option(
                "--context",
                type=click.IntRange(min=0),
                help="Earlier tokens that each scored token sees at least.  [default: half the window]",
            ),
            click.option(
                "--batch-tokens",
                type=click.IntRange(min=1),
                help="Tokens fed at a time.  [default: 4096, or a window if that is longer]",
            ),
        )
    ):
        command = option(command)
    return command


def key_options(command: F) -> F:
    """Options of what is stored: representation, layer, raw keys."""
    kept = click.option(
        "--keys",
        type=click.Choice(("float16", "float32", "none")),
        default="float16",
        show_default=True,
        help="Raw keys kept in the store; without them there is no exact search.",
    )
    return _key_options(command, kept)


def code_options(command: F) -> F:
    """The same for a store of codes, which keeps raw keys only if asked."""
    kept = click.option(
        "--keys",
        type=click.Choice(("float16", "float32", "none")),
        help="Raw keys kept in the store, for exact search and for another index later.  [default: none, codes only]",
    )
    keep = click.option("--keep-keys", is_flag=True, help="The same as --keys float16.")
    return _key_options(keep(command), kept)


def kept_keys(keys: str | None, keep: bool) -> str:
    """What `code_options` chose: the type of raw keys, or none."""
    if keep and keys == "none":
        raise click.UsageError("--keep-keys and --keys none exclude each other")
    return keys or ("float16" if keep else "none")


def _key_options(command: F, kept: Callable[[F], F]) -> F:
    for option in reversed(
        (
            click.option(
                "--key",
                type=KeyName(),
                default="ffn-input",
                show_default=True,
                help=f"Which hidden state is the key: {', '.join(REPRESENTATIONS)}, or module:NAME, the input of any "
                "module of the model.",
            ),
            click.option("--layer", type=int, default=-1, show_default=True, help="Layer of the key; -1 is the last."),
            kept,
            click.option(
                "--autocast",
                type=click.Choice([name for name in AUTOCAST if name]),
                help="Arithmetic of the model while it makes keys; the store remembers it.  [default: the model's own]",
            ),
        )
    ):
        command = option(command)
    return command


def mixing_options(command: F) -> F:
    """Options of searching and mixing that stand above what the store remembers, as one `Mixing`."""
    return gathered(
        command,
        "mixing",
        Mixing,
        (
            click.option("--lambda", "lambda_", type=click.FloatRange(0, 1), help="Weight of the neighbors."),
            click.option("--temperature", type=click.FloatRange(0, min_open=True), help="T of p_kNN."),
            click.option("--k", type=click.IntRange(min=1), help="Neighbors.  [default of all three: as tuned]"),
            click.option(
                "--nprobe", type=click.IntRange(min=1), help="Lists scanned per query.  [default: the store's]"
            ),
            click.option(
                "--rerank",
                type=click.Choice(("none", "code", "keys")),
                help="Score candidates again.  [default: the store's]",
            ),
            exact_option,
        ),
    )


class Texts(texts.Texts):
    """Input text of a command, which shows how far its reading is and what was skipped; - is standard input."""

    def __init__(
        self,
        sources: Sequence[str | os.PathLike[str]],
        reading: Reading,
        *,
        stamped: bool = False,
        nothing: str = "",
    ) -> None:
        if "-" in sources:
            spooled = standard_input(reading.text_field)
            sources = [spooled if source == "-" else source for source in sources]
        super().__init__(sources, reading, stamped=stamped, nothing=nothing)

    def read(self, progress: Progress | None = None) -> list[Document]:
        """All documents at once; raises ValueError if there are none."""
        return list(self if progress is None else self.shown(progress))

    def shown(self, progress: Progress) -> Iterator[Document]:
        """The documents, while a bar shows how much is read."""
        task = progress.track("read", unit="bytes")
        for document in self:
            yield document
            task.update(int(self.report.position), self.report.size)
        task.finish()

    def finish(self) -> None:
        """Says what was read, if anything of it was skipped or repaired, and what that was."""
        if self.report.skipped or self.report.notes:
            note(self.report.lines()[0])
        self.log()
