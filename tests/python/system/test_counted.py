"""Numbers with their nouns."""

import re
from pathlib import Path

import pytest

import knnlm
from knnlm.system.counted import counted


@pytest.mark.parametrize(
    ("count", "noun", "shown"),
    [
        (1, "document", "1 document"),
        (0, "document", "0 documents"),
        (2000, "deleted entry", "2,000 deleted entries"),
        (1, "entry", "1 entry"),
        (2, "day", "2 days"),
        (2, "match", "2 matches"),
    ],
)
def test_one_is_singular(count: int, noun: str, shown: str) -> None:
    assert counted(count, noun) == shown


def test_commands_count_with_it() -> None:
    plural = re.compile(r":,\} (?:documents|entries|tokens|steps|rows|lists)\b")
    for file in (Path(knnlm.__file__).parent / "cli").rglob("*.py"):
        for line in file.read_text(encoding="utf-8").splitlines():
            assert not plural.search(line), f"{file.name}: {line.strip()}"
