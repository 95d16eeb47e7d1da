"""Line plots of perplexity against λ, T, k and store size: inline SVG that follows the page's colours, or a file."""

from __future__ import annotations

import io
import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from knnlm.system.counted import counted
from knnlm.system.extras import explained
from knnlm.system.own_files import replacing, write_text

try:
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import Formatter, FuncFormatter, LogLocator, MaxNLocator, NullFormatter
except ImportError as error:
    raise explained(error, "a plot") from error


@dataclass(frozen=True)
class _Palette:
    ink: str
    rule: str
    lines: tuple[str, str, str, str]


_PAPER = _Palette("#333333", "#dddddd", ("#1f6feb", "#b35900", "#2f7d4f", "#8250a8"))
# Stand-ins that `as_svg` turns into the page's own colours, so that one drawing suits light and dark.
_PAGE = _Palette("#0a0b0c", "#0a0b0d", ("#0a0b11", "#0a0b12", "#0a0b13", "#0a0b14"))
_PAGE_VARIABLES = {_PAGE.ink: "var(--ink)", _PAGE.rule: "var(--rule)"} | {
    stand_in: f"var(--line-{number})" for number, stand_in in enumerate(_PAGE.lines, start=1)
}


@dataclass(frozen=True)
class Line:
    """One curve: a label for the legend and its points, x ascending."""

    label: str
    x: Sequence[float]
    y: Sequence[float]


@dataclass(frozen=True)
class Plot:
    """What to draw.

    Attributes:
        lines: the curves; not-finite points are left out.
        level: a named horizontal line, such as the language model alone.
        chosen: the x that tuning chose, marked on the first curve.
    """

    title: str
    x_label: str
    lines: Sequence[Line]
    y_label: str = "perplexity"
    log_x: bool = False
    level: tuple[str, float] | None = None
    chosen: float | None = None


CURVES = {
    "lambda_": ("Weight of the neighbors", "λ", False),
    "k": ("Number of neighbors", "k", True),
    "temperature": ("Temperature", "T", True),
    "size": ("Size of the store", "entries", True),
}
"""Settings that perplexity is plotted against: title, label, whether on a logarithmic axis."""


def tuning_plot(
    name: str, x: Sequence[float], y: Sequence[float], alone: float, chosen: float | None, tokens: int
) -> Plot:
    """Perplexity against one setting of `CURVES`, beside that of the model alone, on so many tokens."""
    title, label, log_x = CURVES[name]
    return Plot(
        f"{title} ({counted(tokens, 'validation token')})",
        label,
        [Line("kNN-LM", x, y)],
        log_x=log_x,
        level=("language model alone", alone),
        chosen=chosen,
    )


def _draw(plot: Plot, palette: _Palette) -> Figure:
    with matplotlib.rc_context({"font.size": 10, "font.family": "sans-serif", "axes.linewidth": 0.8}):
        figure = Figure(figsize=(4.6, 3.0), layout="constrained")
        axes = figure.add_subplot()
        for line, colour in zip(plot.lines, itertools.cycle(palette.lines), strict=False):
            points = [(x, y) for x, y in zip(line.x, line.y, strict=True) if math.isfinite(y)]
            if points:
                axes.plot(
                    *zip(*points, strict=True), color=colour, linewidth=1.6, marker="o", markersize=3, label=line.label
                )
        if plot.level is not None:
            axes.axhline(plot.level[1], color=palette.ink, linewidth=1.0, linestyle=(0, (4, 3)), label=plot.level[0])
        if plot.chosen is not None and plot.lines:
            chosen, first = plot.chosen, plot.lines[0]
            near = min(zip(first.x, first.y, strict=True), key=lambda point: abs(point[0] - chosen))
            axes.plot(*near, "o", markersize=8, fillstyle="none", color=palette.lines[0])
        if plot.log_x:
            axes.set_xscale("log", base=2)
            axes.xaxis.set_major_locator(LogLocator(base=2, numticks=6))
            axes.xaxis.set_minor_formatter(NullFormatter())
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _short(value)))
        else:
            axes.xaxis.set_major_locator(MaxNLocator(6))
        axes.yaxis.set_major_locator(MaxNLocator(6))
        axes.yaxis.set_major_formatter(_Even())
        axes.set_title(plot.title, loc="left", fontsize=10.5, color=palette.ink)
        axes.set_xlabel(plot.x_label, color=palette.ink)
        axes.set_ylabel(plot.y_label, color=palette.ink)
        axes.tick_params(colors=palette.ink, which="both", length=3)
        axes.grid(visible=True, color=palette.rule, linewidth=0.7)
        axes.set_axisbelow(True)
        for name, spine in axes.spines.items():
            spine.set_color(palette.ink)
            spine.set_visible(name in ("left", "bottom"))
        if len(plot.lines) + (plot.level is not None) > 1:
            axes.legend(frameon=False, fontsize=9, labelcolor=palette.ink)
    return figure


class _Even(Formatter):  # type: ignore[misc,unused-ignore]
    """Ticks with the decimals that tell them apart, as many for all: 42.0, 42.5, 43.0."""

    def format_ticks(self, values: Sequence[float]) -> list[str]:
        """All ticks of the axis."""
        near = 1e-6 * max((abs(b - a) for a, b in itertools.pairwise(values)), default=1.0)
        decimals = next((d for d in range(8) if all(abs(round(float(v), d) - v) <= near for v in values)), 8)
        return [f"{value + 0.0:,.{decimals}f}" for value in values]

    def __call__(self, value: float, pos: int | None = None) -> str:
        """One of them."""
        return self.format_ticks([value])[0]


def as_svg(plot: Plot) -> str:
    """The plot as an `<svg>` element for a page that defines --ink, --rule and --line-1 … --line-4."""
    svg = _svg(_draw(plot, _PAGE))
    svg = svg[svg.index("<svg") :]
    for stand_in, colour in _PAGE_VARIABLES.items():
        svg = svg.replace(stand_in, colour)
    # A fixed size would overflow a narrow page; the viewBox keeps the shape.
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    return re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)


def save(plot: Plot, path: Path) -> None:
    """Writes the plot to `path`: SVG or PNG (150 dpi, white ground) by the name's ending."""
    figure = _draw(plot, _PAPER)
    if path.suffix == ".svg":
        write_text(path, _svg(figure))
    else:
        with replacing(path) as file:
            figure.savefig(file, format=path.suffix[1:] or "png", dpi=150, facecolor="white")


def _svg(figure: Figure) -> str:
    # Text stays text, in the page's font; a fixed salt keeps the file the same from run to run.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "knnlm"}):
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
        return buffer.getvalue()


def _short(value: float) -> str:
    """A number as an axis shows it: 1,024, 2.5 or 0.25, never 1.0e+03."""
    if value < 1:
        return f"{value:.2g}"
    return f"{value:,.0f}" if value >= 1000 or abs(value - round(value)) < 1e-6 else f"{value:.4g}"
