"""The command line: `knnlm COMMAND`, one file per command, loaded when it is called."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any, cast

import click

from knnlm.cli import streams

_COMMANDS = {
    "demo": "train, adapt and report on text that every CPython carries",
    "train": "train a language model on text",
    "dump": "write the keys of a text to a store, unindexed",
    "build": "index a store, or make one from text",
    "add": "add what is new or changed in a text, delete what is gone",
    "delete": "take documents out of a store",
    "replace": "another text for a document",
    "compact": "remove deleted bytes, join what came in parts",
    "tune": "choose λ, T and k on validation text and save them",
    "eval": "perplexity of a text with and without the store",
    "generate": "continue a prompt with the help of the store",
    "translate": "lines into another language, with a store of parallel text",
    "inspect": "show each token's neighbors in context",
    "info": "what a store holds, and its bytes",
    "verify": "check every byte of a store",
    "import": "a store from FAISS or raw key files",
    "lm-eval": "tasks of lm-evaluation-harness, with the store",
    "export": "neighbors and p_kNN of a text, or a store, for others",
}


class _Commands(click.Group):
    """Imports a command's module only when it is asked for, so that `--help` does not wait for torch."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module = {"import": "import_store", "export": "export_store", "lm-eval": "lm_eval"}.get(cmd_name, cmd_name)
        return cast(click.Command, importlib.import_module(f"knnlm.cli.commands.{module}").command)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Suggests a command for a mistyped one."""
        if args[0] not in _COMMANDS and not args[0].startswith("-") and not ctx.resilient_parsing:
            near = get_close_matches(args[0], _COMMANDS, 3)
            hint = f"did you mean {' or '.join(near)}?" if near else "knnlm --help lists them"
            ctx.fail(f"no such command {args[0]!r}: {hint}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(_COMMANDS.items()))

    def main(  # type: ignore[override]
        self, args: Sequence[str] | None = None, standalone_mode: bool = True, **extra: Any
    ) -> Any:
        """Runs a command; with `--json` a wrong usage is JSON on standard output as well."""
        given = list(sys.argv[1:] if args is None else args)
        if os.environ.get("NO_COLOR"):  # https://no-color.org; rich asks it itself
            extra["color"] = False
        if not standalone_mode:
            return super().main(args=given, standalone_mode=False, **extra)
        # Threads of torch that spin while they wait make a step twice as long on a busy machine (docs/experiments.md).
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")
        streams.prepare()
        try:
            with streams.plain_warnings():
                code = super().main(args=given, standalone_mode=False, **extra)
        except click.ClickException as error:
            streams.show_usage(error, "--json" in given or _json_by_variable(given))
            sys.exit(error.exit_code)
        except click.Abort:
            sys.exit(130)
        except OSError as error:  # of printing a help text
            streams.give_up_on(error)
            sys.exit(1)
        sys.exit(code if isinstance(code, int) else 0)


def _json_by_variable(given: Sequence[str]) -> bool:
    """Whether a variable, such as KNNLM_EVAL_JSON, asks for JSON of the command that was called."""
    command = next((word for word in given if word in _COMMANDS), None)
    value = os.environ.get(f"KNNLM_{command.upper().replace('-', '_')}_JSON", "") if command is not None else ""
    return value.strip().lower() in ("1", "true", "t", "yes", "y", "on")


@click.group(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"], "auto_envvar_prefix": "KNNLM", "max_content_width": 100},
)
@click.version_option(package_name="knnlm", message="%(prog)s %(version)s", allow_from_autoenv=False)
def main() -> None:
    """Nearest-neighbor language models: text in, better perplexity out, every prediction traceable.

    \b
    The usual way:
      knnlm train books/ --out model
      knnlm build books/ --model model --out store
      knnlm tune store more-books/
      knnlm eval store held-out.txt

    Options can be set by environment variables, such as KNNLM_EVAL_DEVICE=cpu for knnlm eval --device cpu; the command
    line stands above them. NO_COLOR=1 leaves out colors.

    Exit codes: 0 success, 1 failure (for verify: problems found), 2 wrong usage, 130 interrupted. With --json standard
    output is one JSON object in every case; after a failure it is {"error": …}.
    """
