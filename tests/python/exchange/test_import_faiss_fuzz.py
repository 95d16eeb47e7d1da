"""Damaged FAISS indexes of every type: the process that imports them lives, and no answer is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
from faiss_files import KINDS, Forks, forks  # noqa: F401
from fuzz_faiss import Campaign, indexes

from knnlm.exchange import faiss_index

pytest.importorskip("faiss")


def test_damaged_indexes_are_refused_or_give_what_faiss_gives(
    forks: Forks,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Full form: fuzz_faiss.py. With `-s` it says what became of the files."""
    monkeypatch.setattr(faiss_index, "start", forks.start)
    campaign = Campaign(tmp_path, forks, seed=0)
    for number, ids in enumerate((False, True)):
        for kind, whole in indexes(tmp_path, [kind for kind in KINDS if kind != "binary"], ids).items():
            for round_ in range(3):
                campaign.attack(kind, whole, 2 * round_ + number)
    print(campaign.histogram())
    became = {outcome for _, outcome in campaign.outcomes}
    assert {"imported", "refused"} <= became
    assert sum(n for (_, outcome), n in campaign.outcomes.items() if outcome == "imported") > 30
