"""Table: explained tokens in the terminal."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from knnlm.report.rows import NeighborRow, TokenRow
from knnlm.system.terminal import printable

if TYPE_CHECKING:
    from rich.table import Table


def to_table(
    shown: Iterable[TokenRow], width: int | None = None, neighbors: int | None = None, plain: bool = False
) -> Table:
    """A rich table: one line a token, and under it one line a neighbor, with the id of its entry.

    width: characters of context before a token; None = what the terminal has room for. neighbors: shown of each token;
    None = all that the rows have. plain: marks the tokens with ‹ › instead of a style, which a pipe does not keep.
    """
    from rich.table import Table

    shown = list(shown)
    if width is None:  # so that the token itself is never cut off
        ids = max((len(str(near.id)) for row in shown for near in row.neighbors), default=0)
        width = min(40, max(12, (shutil.get_terminal_size((120, 24)).columns - 56 - max(5, ids)) * 3 // 5))
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    # Cells do not wrap, but these columns give way where the terminal is narrow.
    table.add_column("text, next token marked")
    table.add_column("document", max_width=28)
    table.add_column("entry", justify="right", no_wrap=True, min_width=5)  # whole: `inspect --why` takes it
    table.add_column("distance", justify="right", no_wrap=True, min_width=8)
    table.add_column("share", justify="right", no_wrap=True, min_width=7)
    for number, row in enumerate(shown):
        if number:
            table.add_row()
        table.add_row(_marked(row, width, "bold reverse", plain), _cell(row.document, "dim"))
        table.add_row(_cell(f"p_LM {row.p_lm:.3f}, p_kNN {row.p_knn:.3f}, p {row.p:.3f}", "dim"))
        for near in row.neighbors[:neighbors]:
            table.add_row(
                _cell("  ")
                + _marked(near, width - 2, "bold green underline" if near.right else "bold underline", plain),
                _cell(near.document),
                str(near.id) if near.id >= 0 else "",
                f"{near.distance:.4g}",
                f"{100 * near.share:.1f} %",
            )
    return table


def _cell(text: str, style: str = "") -> Any:
    from rich.text import Text

    return Text(printable(text), style, no_wrap=True, overflow="ellipsis")


def _marked(row: TokenRow | NeighborRow, width: int, style: str, plain: bool) -> Any:
    from rich.text import Text

    token = _one_line(row.token if row.token.strip() else row.token.replace(" ", "␣"))
    token = f"‹{token}›" if plain else token
    before, after = _one_line(row.before), _one_line(row.after)
    before = "…" + before[1 - width :] if len(before) > width else before
    after = after[: width // 3 - 1] + "…" if len(after) > width // 3 else after
    return Text.assemble((before, "dim"), (token, style), (after, "dim"), no_wrap=True, overflow="ellipsis")


def _one_line(text: str) -> str:
    return printable(text.replace("\n", "⏎").replace("\t", " ").replace("\r", " "))
