"""Pages: what all HTML pages of ours are made with; they need no network."""

from __future__ import annotations

import re

from knnlm.report.numbers import change, number, percent, share
from knnlm.report.plots import Plot, as_svg
from knnlm.system.extras import explained
from knnlm.system.terminal import printable

try:
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup
except ImportError as error:
    raise explained(error, "the HTML report") from error


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


def visible(text: str) -> str:
    """A token as a reader can see it: line ends and tabs drawn, a lone space shown."""
    drawn = text.replace("\n", "⏎").replace("\t", "⇥")
    return drawn if drawn.strip() else drawn.replace(" ", "␣")


def opening(text: str) -> str:
    """Context as it is shown: without blank lines or half a character at its start, runs of blank lines as one."""
    return re.sub(r"\n[ \t]*(\n[ \t]*)+\n", "\n\n", text).lstrip("\n\ufffd")


def _svg(plot: Plot) -> Markup:
    return Markup(as_svg(plot))  # our own drawing; its labels were escaped by matplotlib
