"""Why an entry is a neighbor, and why not: what is said agrees with what a search finds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_corpus import run, run_json

from knnlm import Datastore
from knnlm.store.why import _BEGINNINGS, _ordinal


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Any:
    keys = np.random.default_rng(0).standard_normal((6000, 32), np.float32)
    made = Datastore.create(tmp_path_factory.mktemp("why") / "store", dim=32, keep_keys="float32")
    for number in range(6):
        made.add(keys[number * 1000 : (number + 1) * 1000], np.arange(1000), document=f"doc {number}")
    made.build(seed=0, nlist=64)
    made.delete("doc 5")
    return made


@pytest.mark.parametrize("options", [{}, {"nprobe": 3}, {"nprobe": 3, "rerank": "keys"}, {"exact": True}])
def test_it_says_of_every_entry_what_a_search_did(store: Datastore, options: dict[str, Any]) -> None:
    query = store.keys(17, 18) + np.float32(0.3)
    found = store.search(query, 20, exclude=[[0, 40]], deny=["doc 4"], **options)
    near = dict(zip(found.ids[0].tolist(), found.distances[0].tolist(), strict=True))
    reasons = {}
    for id_ in range(0, 6000, 7):
        why = store.why(query[0], id_, 20, exclude=[[0, 40]], deny=["doc 4"], **options)
        reasons[id_] = why.reason
        assert (why.reason == "returned") == (id_ in near)
        if id_ < 40:
            assert why.reason == "excluded"
        elif id_ >= 5000:
            assert why.reason == "deleted"
        elif id_ >= 4000:
            assert why.reason == "denied"
        assert str(why).startswith(_BEGINNINGS[why.reason].split("{")[0])
    for id_, distance in near.items():
        why = store.why(query, id_, 20, exclude=[[0, 40]], deny=["doc 4"], **options)
        assert (why.rank, why.distance) == (found.ids[0].tolist().index(id_), distance)
        assert f"neighbor {why.rank + 1} of 20, at {distance:.4g}" in str(why)
    if "nprobe" in options:
        assert {"list_not_probed", "list_out_of_reach"} & set(reasons.values())
        far = next(id_ for id_, reason in reasons.items() if reason == "list_not_probed")
        why = store.why(query[0], far, 20, exclude=[[0, 40]], deny=["doc 4"], **options)
        assert why.lists is not None
        assert why.lists.list_rank >= 3
        assert "its list was not scanned" in str(why)
        assert f"the {_ordinal(why.lists.list_rank + 1)} nearest of 64" in str(why)
    assert store.why(query[0], 999_999).reason == "unknown_id"


def test_a_list_that_its_estimate_left_out_is_told_from_those_that_are_too_far(tmp_path: Path) -> None:
    n, nlist, nprobe = 6000, 750, 300
    keys = np.random.default_rng(1).random((n, 100), np.float32)
    made = Datastore.create(tmp_path / "store", dim=100)
    made.add(keys, np.zeros(n, np.int64))
    made.build(seed=0, nlist=nlist, code=(10, 4))  # ten dimensions a code: poor estimates
    options: dict[str, Any] = {"nprobe": nprobe, "rerank": "none"}
    found = set(made.search(keys[:1], n, **options).ids[0].tolist())  # all that is in the lists that are scanned
    left_out = []
    for id_ in range(0, n, 3):
        why = made.why(keys[0], id_, n, **options)
        assert why.lists is not None
        assert (why.reason == "returned") == why.lists.probed == (id_ in found)
        if why.reason == "list_left_out_by_estimate":
            left_out.append(id_)
            assert why.lists.list_rank < nprobe
            assert "its list is near enough" in str(why)
        elif why.reason != "returned":
            assert (why.reason, why.lists.list_rank >= nprobe) == ("list_not_probed", True)
    assert left_out
    assert set(left_out) <= set(made.search(keys[:1], n, nprobe=nlist, rerank="none").ids[0].tolist())


def test_it_is_the_same_on_any_number_of_threads(store: Datastore) -> None:
    query = store.keys(17, 18)
    for id_ in (17, 2500):
        told = [
            store.why(query, id_, 20, exact=exact, threads=threads) for exact in (False, True) for threads in (1, 2)
        ]
        assert (told[0], told[2]) == (told[1], told[3])


def test_wrong_questions_are_refused(store: Datastore) -> None:
    with pytest.raises(ValueError, match="one key"):
        store.why(np.zeros((2, 32)), 1)
    with pytest.raises(ValueError, match="id"):
        store.why(np.zeros(32), -1)
    with pytest.raises(ValueError, match="32"):
        store.why(np.zeros(31), 1)


def test_ordinals() -> None:
    assert [_ordinal(n) for n in (1, 2, 3, 4, 11, 12, 13, 21, 102, 111, 1001)] == [
        "1st", "2nd", "3rd", "4th", "11th", "12th", "13th", "21st", "102nd", "111th", "1,001st",
    ]  # fmt: skip


def test_inspect_says_it(built: Any, texts: Any) -> None:
    shown = run_json("inspect", built, texts / "test.txt", "--first", 3, "--tokens", 2, "--k", 5)
    near = shown["tokens"][0]["neighbors"][0]["id"]
    asked = ("--why", near, "--why", 10**9)
    arguments = ("inspect", built, texts / "test.txt", "--first", 3, "--tokens", 2, "--k", 5, *asked)
    told = run_json(*arguments)["why"]
    assert [(one["position"], one["id"]) for one in told] == [(3, near), (3, 10**9), (4, near), (4, 10**9)]
    assert (told[0]["reason"], told[0]["rank"]) == ("returned", 0)
    assert told[1]["reason"] == told[3]["reason"] == "unknown_id"
    printed = run(*arguments).stdout
    assert f"entry {near}: neighbor 1 of 5, at " in printed
    assert f"entry {10**9}: no entry has this id" in printed
