"""`knnlm inspect`: only what it shows is explained, and documents that it does not show are said."""

from pathlib import Path
from typing import Any

import pytest
from cli_corpus import run, run_json

from knnlm.store.datastore import Datastore


def test_only_the_tokens_shown_are_searched(texts: Path, built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original, asked = Datastore.search, []

    def search(self: Datastore, queries: Any, *arguments: Any, **options: Any) -> Any:
        asked.append(len(queries))
        return original(self, queries, *arguments, **options)

    monkeypatch.setattr(Datastore, "search", search)
    given = ("--temperature", 5, "--k", 4)
    later = run_json("inspect", built, texts / "test.txt", "--first", 40, "--tokens", 6, *given)
    assert sum(asked) == 6
    assert [token["position"] for token in later["tokens"]] == list(range(40, 46))
    whole = run_json("inspect", built, texts / "test.txt", "--tokens", 60, *given)["tokens"][40:46]
    assert [token["token"] for token in later["tokens"]] == [token["token"] for token in whole]
    assert [token["before"] for token in later["tokens"]] == [token["before"] for token in whole]
    assert [token["p"] for token in later["tokens"]] == pytest.approx([token["p"] for token in whole], rel=1e-3)


def test_the_table_shows_ids_that_why_takes(texts: Path, built: Path) -> None:
    given = ("inspect", built, texts / "test.txt", "--first", 5, "--tokens", 1, "--neighbors", 2)
    table = run(*given).stdout.splitlines()
    near = run_json(*given)["tokens"][0]["neighbors"]
    at = table[0].index("entry") + len("entry")
    shown = [line[:at].split()[-1] for line in table if line.strip().endswith("%")]
    assert shown == [str(one["id"]) for one in near]
    assert f"entry {shown[0]}: " in run(*given, "--why", shown[0]).stdout


def test_documents_that_are_not_shown_are_said(texts: Path, built: Path) -> None:
    both = (texts / "test.txt", texts / "valid.txt", "--tokens", 1)
    result = run("inspect", built, *both)
    assert "only test.txt, the first document" in result.stderr
    assert "--max-documents" in result.stderr
    found = run_json("inspect", built, *both)
    assert (found["documents"], found["more"]) == (["test.txt"], True)
    found = run_json("inspect", built, *both, "--max-documents", 5)
    assert (found["documents"], found["more"]) == (["test.txt", "valid.txt"], False)
    assert "only" not in run("inspect", built, texts / "test.txt", "--tokens", 1).stderr
    assert "[default: 1]" in " ".join(run("inspect", "--help").stdout.split())
    assert "[default: all]" in " ".join(run("eval", "--help").stdout.split())
