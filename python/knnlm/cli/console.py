"""What all commands share in talking to people and machines: results, notes, errors, exit codes."""

from __future__ import annotations

import errno
import json
import logging
import os
import platform
import sys
import traceback
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, NoReturn

import click
import numpy as np
from click.core import ParameterSource
from rich.console import Console, RenderableType
from rich.table import Table

from knnlm.cli.sections import format_options
from knnlm.cli.wording import in_commands, in_options
from knnlm.system.extras import explained
from knnlm.system.log import LOG
from knnlm.system.terminal import give_up, is_quiet, printable, printable_json, quietly
from knnlm.system.usage import UsageError

INTERRUPTED = 130


class Command(click.Command):
    """A command that ends every failure in one clear line; with `--debug`, in its traceback.

    With `--json`, standard output gets `{"error": …}` as well, so that it is JSON whatever happens. `--quiet` leaves
    out notes and progress, `--verbose` shows what the package logs. `--help` has the options in sections.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params += [
            click.Option(
                ["-q", "--quiet"], is_flag=True, help="No notes and no progress; results, warnings and errors stay."
            ),
            click.Option(["-v", "--verbose"], is_flag=True, help="Say on standard error what is being done."),
            click.Option(["--debug"], is_flag=True, help="Show the traceback of an error."),
        ]
        for param in self.params:
            if isinstance(param, click.Option) and param.name in SAID_EACH_TIME:
                param.allow_from_autoenv = False

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Reads the arguments; a variable is named as its option (KNNLM_EVAL_LAMBDA), not as the parameter."""
        for param in self.params:
            if isinstance(param, click.Option) and param.allow_from_autoenv and ctx.auto_envvar_prefix:
                flag = max((opt for opt in param.opts if opt.startswith("--")), key=len)
                param.envvar = f"{ctx.auto_envvar_prefix}_{flag[2:].replace('-', '_').upper()}"
                param.allow_from_autoenv = False  # no second name
        try:
            return super().parse_args(ctx, args)
        except click.BadParameter as error:
            _name_variable(error)
            raise

    def get_help_option(self, ctx: click.Context) -> click.Option | None:
        """`--help`, which no environment variable asks for."""
        option = super().get_help_option(ctx)
        if option is not None:
            option.allow_from_autoenv = False
        return option

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The options, in sections."""
        format_options(self.get_params(ctx), ctx, formatter)

    def invoke(self, ctx: click.Context) -> Any:
        """Runs the command and turns exceptions into messages and exit codes."""
        debug, quiet, verbose = (ctx.params.pop(name, False) for name in ("debug", "quiet", "verbose"))
        if quiet and verbose:
            raise click.UsageError("--quiet and --verbose exclude each other", ctx)
        try:
            with quietly() if quiet else nullcontext(), shown_log(verbose):
                LOG.debug("Python %s, NumPy %s, %s", platform.python_version(), np.__version__, sys.platform)
                return super().invoke(ctx)
        except (click.exceptions.Exit, click.UsageError):
            raise
        except (KeyboardInterrupt, click.Abort) as stop:
            _end(
                ctx,
                str(stop) or "interrupted: what was there is as it was",
                INTERRUPTED,
            )
        except BrokenPipeError:
            raise
        except UsageError as error:
            raise click.UsageError(in_options(str(error), self.params), ctx) from error
        except Exception as error:
            if debug:
                _show_traceback(error)
            _end(ctx, in_options(_one_line(error), self.params), 1)


SAID_EACH_TIME = ("overwrite", "trust_remote_code")
"""Options that no environment variable sets: they replace what is there, or run the code of others."""


def _name_variable(error: click.BadParameter) -> None:
    """Say of a wrong value that it is that of an environment variable, if it is."""
    param, ctx = error.param, error.ctx
    if param is None or ctx is None or param.envvar is None or param.name is None or error.param_hint is not None:
        return
    if ctx.get_parameter_source(param.name) == ParameterSource.ENVIRONMENT:
        error.param_hint = f"{param.get_error_hint(ctx)} (environment variable {param.envvar})"


def _show_traceback(error: Exception) -> None:
    for part in traceback.format_exception(error):  # code of ours, or a message in however many lines
        for line in part.splitlines() if part.startswith(("  File ", "Traceback", "\n")) else (part.rstrip("\n"),):
            _to_stderr("", line)


class ProblemsError(Exception):
    """The command worked but its answer is bad, such as problems found by `verify`."""


def _one_line(error: Exception) -> str:
    if isinstance(error, ImportError):
        error = explained(error, "this command")
    if isinstance(error, click.ClickException):
        return error.format_message()
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return refused(error)
    why = getattr(error, "why", None)  # of an error of the core, which tells Python's users in their words
    said = f"{getattr(error, 'message', error)}{ADVICE[why]}" if why in ADVICE else str(error)
    text = " ".join(said.split()) or type(error).__name__
    if isinstance(error, OSError | ValueError | ProblemsError | MemoryError) or type(error).__module__.startswith(
        "knnlm"
    ):
        return text
    return f"{type(error).__name__}: {text} (--debug shows where)"


ADVICE = {
    "damaged": ": knnlm compact STORE --drop-damaged names and drops these, and keeps the rest",
    "exists": " (--overwrite)",
    "failed": "",
    "keys_not_kept": "; knnlm build with --keep-keys keeps them",
    "no_second_level": " (knnlm build STORE --retrain)",
    "not_calibrated": " (knnlm build STORE --retrain)",
    "outgrown": " (knnlm build STORE --retrain)",
}
"""What to do about an error of the core, by its kind, in words of the command line."""

TO_DO = {
    errno.ENOENT: "expected it there: check the path",
    errno.EEXIST: "expected a folder or nothing, found a file: choose another path",
    errno.ENOTDIR: "expected a folder, found a file: choose another path",
    errno.EISDIR: "expected a file, found a folder: choose another path",
    errno.EACCES: "expected permission: change the rights, or choose another path",
    errno.EROFS: "expected a disk that can be written: mount it for writing, or choose a path on another one",
    errno.ENOSPC: "free space and do it again",
    errno.EDQUOT: "free space that your quota counts, and do it again",
    errno.EFBIG: "expected that files may be as large: choose another disk, or raise the limit (ulimit -f)",
    errno.EBADF: "expected it open",
}


def refused(error: OSError) -> str:
    """What the operating system refused, where, and what to do; without Python's number and quotes."""
    where, says = os.fsdecode(error.filename), " ".join(str(error.strerror).split())
    advice = "" if ";" in says else TO_DO.get(error.errno or 0, "")
    return f"{where}: {says}" + (f"; {advice}" if advice else "")


def _end(ctx: click.Context, message: str, code: int) -> NoReturn:
    if ctx.params.get("as_json"):
        with suppress(OSError):  # standard output is what failed: it is said on standard error
            write_out(printable_json(json.dumps({"error": message}, ensure_ascii=False)) + "\n")
    _to_stderr("", f"knnlm {ctx.info_name}: {message}")
    ctx.exit(code)


def write_out(text: str) -> None:
    """Text on standard output, as it is.

    Raises:
        OSError: it is closed or full; the command has failed then, whatever else it did.
    """
    if sys.stdout is None:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF), "standard output")
    try:
        click.echo(text, nl=False, color=True)  # nothing is taken out for a file
    except BrokenPipeError:
        raise
    except OSError as error:
        give_up(sys.stdout)
        raise OSError(error.errno, error.strerror, "standard output") from error


class _Shown(logging.Handler):
    """Shows what the package says as notes and warnings of the command; what is for debugging once, with its time."""

    def __init__(self) -> None:
        super().__init__()
        self._told: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno < logging.INFO:
            line = f"{record.name}: {record.getMessage()}"
            if line not in self._told:
                self._told.add(line)
                note(f"{record.relativeCreated / 1000:.1f} s {line}")
        else:
            (warn if record.levelno >= logging.WARNING else note)(in_commands(record.getMessage()))


@contextmanager
def shown_log(verbose: bool) -> Iterator[None]:
    """While a command runs, the package's logger speaks as the command does, and to nobody else."""
    handler, before = _Shown(), (LOG.level, LOG.propagate)
    LOG.addHandler(handler)
    LOG.setLevel(logging.DEBUG if verbose else logging.INFO)
    LOG.propagate = False
    try:
        yield
    finally:
        LOG.removeHandler(handler)
        LOG.setLevel(before[0])
        LOG.propagate = before[1]


def result(line: str) -> None:
    """One line of what a command found out, on standard output, with `--quiet` too.

    That a command did what it was told is a `note`.
    """
    write_out(printable(line) + "\n")


def note(message: str) -> None:
    """One line for the person, on standard error; nothing with `--quiet`."""
    if not is_quiet():
        _to_stderr("", message)


def warn(message: str) -> None:
    """One line that should not be missed, on standard error."""
    _to_stderr(click.style("warning: ", fg="yellow", bold=True), message)


def _to_stderr(mark: str, message: str) -> None:
    try:
        click.echo(mark + printable(message), err=True)
    except OSError:  # full: nobody can be told
        give_up(sys.stderr)


def print_json(result: Mapping[str, Any]) -> None:
    """The result for machines: one JSON object on standard output; not-finite numbers as strings."""
    write_out(printable_json(json.dumps(plain(result), indent=2, ensure_ascii=False, allow_nan=False)) + "\n")


def plain(value: Any) -> Any:
    """`value` in JSON's own types."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float) and not np.isfinite(value):
        return str(value)
    return str(value) if isinstance(value, Path) else value


def table(title: str | None, columns: Iterable[str], rows: Iterable[Iterable[str]]) -> None:
    """A table on standard output; columns after the first are aligned to the right."""
    drawn = Table(
        title=None if title is None else printable(title),
        title_justify="left",
        box=None,
        pad_edge=False,
        header_style="bold",
        padding=(0, 2, 0, 0),
    )
    for index, column in enumerate(columns):
        drawn.add_column(printable(column), justify="left" if index == 0 else "right", no_wrap=index > 0)
    for row in rows:
        drawn.add_row(*map(printable, row))
    show(drawn)


def facts(pairs: Mapping[str, str]) -> None:
    """Names and values in two columns on standard output."""
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column()
    for name, value in pairs.items():
        grid.add_row(printable(name), printable(value))
    show(grid)


def show(drawn: RenderableType) -> None:
    """A table or the like on standard output; as wide as the terminal, 120 columns where there is none.

    Its texts are to be `printable`.
    """
    styled = sys.stdout is not None and sys.stdout.isatty()
    console = Console(width=None if styled else 120, highlight=False, markup=False, emoji=False, soft_wrap=False)
    with console.capture() as drawing:
        console.print(drawn)
    write_out(drawing.get())


def size(count: float) -> str:
    """Bytes to read: 512 B, 1.5 MB."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def duration(seconds: float) -> str:
    """Seconds to read: 0.4 s, 12 s, 3 min 5 s, 2 h 10 min."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 60:
        return f"{seconds:.0f} s"
    if seconds < 3600:
        return f"{seconds // 60:.0f} min {seconds % 60:.0f} s"
    return f"{seconds // 3600:.0f} h {seconds % 3600 // 60:.0f} min"
