"""The records are pages that a person reads, and are what their data says; so are the README's tables."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
RECORD = ROOT / "benches" / "record"
sys.path.insert(0, str(ROOT / "benches"))

import records  # noqa: E402
import tables  # noqa: E402
from render import readme  # noqa: E402

PAGES = sorted(RECORD.glob("*.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_a_person_reads_it(page: Path) -> None:
    text = page.read_text()
    assert tables.faults(text) == []
    title, question, *rest = text.split("\n\n")
    assert title.startswith("# ")
    assert "?" in question, "the first sentence asks what the page answers"
    assert any(part.startswith("| ") for part in rest[:2]), "the first table answers it, before anything else"
    assert rest[-1].startswith("20"), "date, commit and machine stand at the end"


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_it_says_what_its_data_says(page: Path) -> None:
    assert records.page(page.with_suffix(".json")) == page.read_text(), "run `python benches/records.py`"


def test_every_record_has_its_page_and_every_picture_is_there() -> None:
    assert {path.stem for path in PAGES} == {path.stem for path in RECORD.glob("*.json")}
    for page in PAGES:
        for link in page.read_text().split("](")[1:]:
            assert (RECORD / link.partition(")")[0]).is_file(), link


def test_the_first_table_of_the_readme_is_narrow() -> None:
    first = next(line for line in (ROOT / "README.md").read_text().splitlines() if line.startswith("|"))
    assert len(first.strip("|").split("|")) <= 4
    assert first == "| " + " | ".join(readme.HELPS) + " |"


def test_the_readme_has_the_figures_of_the_records() -> None:
    text = (ROOT / "README.md").read_text()
    assert readme.with_tables(text, RECORD) == text, "run `python benches/records.py`"
    changed = text.replace("| PEPs LM → Gutenberg", "| PEPs LM → Guttenberg")
    assert readme.with_tables(changed, RECORD) == text
    with pytest.raises(ValueError, match="expected <!-- table: beside -->"):
        readme.with_tables(text.replace("table: beside", "beside"), RECORD)


@pytest.mark.parametrize(
    ("cell", "mark", "good"),
    [
        ("1,234.5", "---:", True),
        ("−6.4 %", "---:", True),
        ("5.0 ×", "---:", True),
        ("ours only", "---:", True),
        ("", "---:", True),
        ("2.3e-07", "---:", True),
        ("−6.4 % [−8.0, −5.1]", "---:", True),
        ("−6.4 % [−8.0, −5.1, 3]", "---:", False),
        ("[−8.0, −5.1]", "---:", False),
        ("12 3", "---:", False),
        ("0.90 / 0.95", "---:", False),
        ("−8.0 to −5.1", "---:", False),
        ("lambda 0.47, T 9.1", "---:", False),
        ("FAISS IVF4096,SQ8: nprobe 16, k_factor 1.5", "---", True),
        ("keys, re-ranked with 128 lists (default)", "---", True),
        ("996 / 1,501", "---", False),
        ("23 to 29", "---", False),
        ("2.2× (21,332)", "---", False),
        ("15 (57, 127 µs)", "---", False),
    ],
)
def test_one_number_a_cell(cell: str, mark: str, good: bool) -> None:
    page = f"| name | cell |\n|---|{mark}|\n| a | {cell} |\n"
    assert (tables.faults(page) == []) is good


def test_too_many_columns_and_cells_are_found() -> None:
    assert tables.faults(tables.markdown(["a"] * 7, [range(7)])) == []
    with pytest.raises(ValueError, match="8 columns, expected 7 at most"):
        tables.markdown(["a"] * 8, [range(8)])
    with pytest.raises(ValueError, match="3 cells under 2 heads"):
        tables.markdown(["a", "b"], [range(3)])


def test_a_record_of_no_benchmark_is_refused(tmp_path: Path) -> None:
    (tmp_path / "speed.json").write_text(json.dumps({}))
    with pytest.raises(ValueError, match=r"found speed\.json"):
        records.page(tmp_path / "speed.json")
