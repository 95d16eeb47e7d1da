"""The report is one HTML file that needs no network, escapes what it shows and draws every plot."""

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from knnlm.demo.report import Case, Check, Report, Row, render, write
from knnlm.report.numbers import change, number, share
from knnlm.report.page import opening, visible
from knnlm.report.plots import Line, Plot, as_svg, save, tuning_plot
from knnlm.report.rows import NeighborRow, TokenRow

VOID = {"col", "meta", "br", "img", "link", "hr", "input"}


class Balanced(HTMLParser):
    """Fails on a tag that is closed out of order, collects what a browser would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.fetched: list[str] = []
        self.count: dict[str, int] = {}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.count[tag] = self.count.get(tag, 0) + 1
        if tag not in VOID:
            self.open.append(tag)
        if tag in {"link", "script", "img"}:
            self.fetched.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def plot() -> Plot:
    return Plot(
        "Perplexity against <λ>",
        "λ",
        [Line("quantised", [0, 0.5, 1], [20.0, 15.0, float("inf")]), Line("exact", [0, 0.5], [20.0, 14.5])],
        level=("LM alone", 20.0),
        chosen=0.5,
    )


def report() -> Report:
    near = NeighborRow("stored <b>before", " tok", " after", "docs/a & b", 12.5, 0.75, True)
    token = TokenRow("def f(", "\n", "return", "docs/test", 0.01, 0.75, 0.4, [near, near])
    rows = [Row("language model", 200.0), Row("kNN-LM", 120.0, -0.4, 1234.5, emphasis=True)]
    case = Case("Adapted", "What was done.", rows, {"λ": "0.40"}, [plot(), plot()], [token])
    return Report("a title", "a <summary>", [case], [Check("30 % lower", "−40 %", True)], {"Versions": {"Python": "3"}})


def test_the_page_is_whole_and_fetches_nothing() -> None:
    page = render(report())
    parser = Balanced()
    parser.feed(page)
    assert parser.open == []
    assert parser.fetched == []
    assert parser.count["svg"] == 2
    assert not re.search(r"""(?:src|href)=["'](?!#)""", re.sub(r"xmlns\S+", "", page))
    assert "url(http" not in page


def test_text_is_escaped_and_figures_are_shown() -> None:
    page = render(report())
    assert "stored &lt;b&gt;before" in page
    assert "docs/a &amp; b" in page
    assert "a &lt;summary&gt;" in page
    assert "−40.0 %" in page
    assert "1,234" in page
    assert "75.0 %" in page
    assert "⏎" in page


def test_drawings_follow_the_page_and_are_the_same_each_time(tmp_path: Path) -> None:
    svg = as_svg(plot())
    assert svg == as_svg(plot())
    assert "var(--line-1)" in svg
    assert "var(--ink)" in svg
    assert "#0a0b" not in svg
    assert "&lt;λ&gt;" in svg
    assert svg.startswith("<svg")
    for name, magic in (("p.png", b"\x89PNG"), ("p.svg", b"<?xml")):
        save(plot(), tmp_path / name)
        assert (tmp_path / name).read_bytes().startswith(magic)


def test_a_point_that_is_not_finite_is_left_out() -> None:
    with_infinity = as_svg(Plot("t", "x", [Line("a", [0, 1, 2], [1.0, 2.0, float("inf")])]))
    without = as_svg(Plot("t", "x", [Line("a", [0, 1], [1.0, 2.0])]))
    assert with_infinity == without


def test_ticks_keep_the_decimals_that_tell_them_apart() -> None:
    drawn = as_svg(tuning_plot("size", [100, 200], [42.2, 44.1], 44.9, None, 2000))
    for tick in ("42.5", "43.0", "44.5"):
        assert f">{tick}<" in drawn
    assert ">42<" not in drawn
    whole = as_svg(tuning_plot("k", [1, 2], [1000, 6000], 6100, None, 1))
    assert ">2,000<" in whole


def test_a_title_says_on_how_many_tokens() -> None:
    assert tuning_plot("size", [1], [2], 3, None, 2000).title == "Size of the store (2,000 validation tokens)"
    assert tuning_plot("k", [1], [2], 3, None, 1).title == "Number of neighbors (1 validation token)"


def test_write(tmp_path: Path) -> None:
    path = write(report(), tmp_path / "report.html")
    assert path.read_text(encoding="utf-8") == render(report())


@pytest.mark.parametrize(
    ("value", "shown"),
    [(None, "–"), (12345.6, "12,346"), (250.4, "250"), (17.26, "17.3"), (0.04216, "0.04216"), (0, "0")],
)
def test_numbers(value: float | None, shown: str) -> None:
    assert number(value) == shown


def test_changes_and_shares() -> None:
    assert change(-0.314) == "−31.4 %"
    assert change(0.02) == "+2.0 %"
    assert change(None) == "–"
    assert share(0.00005) == "< 0.01 %"
    assert share(0.0) == "0.00 %"
    assert share(0.5) == "50.0 %"
    assert visible(" ") == "␣"
    assert visible("a\n") == "a⏎"
    assert opening("\n\n  a\n\n \n\nb ") == "  a\n\nb "


def test_no_negative_zero():
    from knnlm.report.numbers import percent

    assert percent(-0.0001) == "0.0 %"
    assert percent(-0.123) == "−12.3 %"
