"""Links of the documents lead somewhere, and every experiment answers a question."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md")] + sorted((ROOT / "docs").glob("*.md"))
LINK = re.compile(r"\]\((?!https?://)([^)\s#]*)(?:#([^)\s]*))?\)")


def anchors(page: Path) -> set[str]:
    """Of the headings, as GitHub makes them."""
    heads = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_links_lead_somewhere(page: Path) -> None:
    for file, anchor in LINK.findall(page.read_text(encoding="utf-8")):
        target = page.parent / file if file else page
        assert target.exists(), f"{page.name} links to {file}"
        assert not anchor or anchor in anchors(target), f"{page.name} links to {file}#{anchor}"


def test_every_experiment_answers_a_question() -> None:
    page = ROOT / "docs" / "experiments.md"
    text = page.read_text(encoding="utf-8")
    contents = text[text.index("## Questions") : text.index("\n## 20")]
    asked = dict(re.findall(r"^- \[(.+)\]\(#(.+)\)", contents, re.MULTILINE))
    assert all(question.endswith("?") for question in asked)
    linked = set(re.findall(r"\(#(.+?)\)", contents))
    dated = {anchor for anchor in anchors(page) if re.match(r"20\d\d-", anchor)}
    assert linked == dated
