"""The demo's report: one HTML file with its tables, plots and neighbors in context; it needs no network."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from knnlm.lm.explain import NeighborRow, TokenRow
from knnlm.report.plots import Plot, as_svg
from knnlm.system.own_files import write_text
from knnlm.system.terminal import printable

__all__ = ["Case", "Check", "NeighborRow", "Report", "Row", "TokenRow", "render", "token_page", "write"]


@dataclass(frozen=True)
class Row:
    """One line of a result table.

    Attributes:
        name: what was measured.
        perplexity: token-level perplexity on the test tokens.
        change: relative to the language model alone; -0.3 is 30 % lower; None for that model itself.
        tokens_per_second: None where it was not measured.
        emphasis: the line that the reader came for.
    """

    name: str
    perplexity: float
    change: float | None = None
    tokens_per_second: float | None = None
    emphasis: bool = False


@dataclass(frozen=True)
class Case:
    """One experiment: what was scored with which store, what came out, and how it was tuned."""

    name: str
    text: str
    rows: Sequence[Row]
    facts: Mapping[str, str]
    plots: Sequence[Plot] = ()
    tokens: Sequence[TokenRow] = ()


@dataclass(frozen=True)
class Check:
    """One claim of the demo, what was measured, and whether it holds."""

    claim: str
    measured: str
    holds: bool


@dataclass(frozen=True)
class Report:
    """Everything on the page; `made` tells how: versions, seeds, settings, seconds."""

    title: str
    summary: str
    cases: Sequence[Case]
    checks: Sequence[Check]
    made: Mapping[str, Mapping[str, str]]
    day: date = field(default_factory=date.today)


def render(report: Report) -> str:
    """The report as one self-contained HTML page."""
    return environment().get_template("report.html").render(report=report)


def write(report: Report, path: Path) -> Path:
    """Renders the report to `path` and returns it."""
    write_text(path, render(report))
    return path


def token_page(title: str, facts: Mapping[str, str], rows: Sequence[TokenRow]) -> str:
    """Tokens with their neighbors in context, as one self-contained HTML page."""
    return environment().get_template("inspect.html").render(title=title, facts=facts, rows=rows)


def environment() -> Environment:
    """The templates of this package, with the filters that they use; text is escaped."""
    made = Environment(
        loader=PackageLoader("knnlm.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_shown,
    )
    made.filters.update(
        number=number, percent=percent, change=change, share=share, visible=visible, opening=opening, svg=_svg
    )
    return made


def _shown(value: object) -> object:
    """Text of others without what a page, or a terminal that it is copied to, would obey: ESC, U+202E and the like."""
    if isinstance(value, Markup) or not isinstance(value, str):
        return value
    return printable(value, keep="\n\t\r")


def number(value: float | None) -> str:
    """A number to read: 12,345, 123, 17.3, 0.042; a dash where there is none."""
    if value is None:
        return "–"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.0f}" if abs(value) >= 200 else f"{value:.4g}" if abs(value) < 1 else f"{value:.1f}"


def percent(value: float | None, digits: int = 1) -> str:
    """A share from 0 to 1 as a percentage."""
    if value is None:
        return "–"
    rounded = round(100 * value, digits) + 0.0  # + 0.0: no negative zero
    return f"{'−' if rounded < 0 else ''}{abs(rounded):.{digits}f} %"


def change(value: float | None) -> str:
    """A relative change with its sign: −31.4 %."""
    if value is None:
        return "–"
    return f"{'−' if value < 0 else '+'}{abs(100 * value):.1f} %"


def share(value: float) -> str:
    """A probability as a percentage that keeps small ones apart."""
    return "< 0.01 %" if 0 < value < 1e-4 else f"{100 * value:.{2 if value < 0.1 else 1}f} %"


def visible(text: str) -> str:
    """A token as a reader can see it: line ends and tabs drawn, a lone space shown."""
    drawn = text.replace("\n", "⏎").replace("\t", "⇥")
    return drawn if drawn.strip() else drawn.replace(" ", "␣")


def opening(text: str) -> str:
    """Context as it is shown: without blank lines or half a character at its start, runs of blank lines as one."""
    return re.sub(r"\n[ \t]*(\n[ \t]*)+\n", "\n\n", text).lstrip("\n\ufffd")


def _svg(plot: Plot) -> Markup:
    return Markup(as_svg(plot))  # our own drawing; its labels were escaped by matplotlib
