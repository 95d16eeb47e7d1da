"""The demo's report: one HTML file with its tables, plots and neighbors in context; it needs no network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

from knnlm.report.page import environment
from knnlm.report.plots import Plot
from knnlm.report.rows import TokenRow
from knnlm.system.own_files import write_text


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
    """One claim of the demo, what was measured, and whether it holds.

    cut: whether it is of a run whose training was cut short, which shows less.
    """

    claim: str
    measured: str
    holds: bool
    cut: bool = False

    @property
    def verdict(self) -> str:
        """Yes or no, and what is to be known of it."""
        return ("yes" if self.holds else "no") + (", of a cut training" if self.cut else "")


@dataclass(frozen=True)
class Report:
    """Everything on the page; `made` tells how: versions, seeds, settings, seconds. caution: what to know first."""

    title: str
    summary: str
    cases: Sequence[Case]
    checks: Sequence[Check]
    made: Mapping[str, Mapping[str, str]]
    day: date = field(default_factory=date.today)
    caution: str = ""


def render(report: Report) -> str:
    """The report as one self-contained HTML page."""
    return environment().get_template("report.html").render(report=report)


def write(report: Report, path: Path) -> Path:
    """Renders the report to `path` and returns it."""
    write_text(path, render(report))
    return path
