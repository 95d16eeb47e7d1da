"""Commands that change a store: only what is new or changed is worked on, and what is deleted is gone."""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from cli_corpus import run, run_json, sentence

from knnlm.build import add as adding
from knnlm.store.datastore import Datastore
from knnlm.text.stamp import content_hash


def test_add_does_only_what_changed(texts: Path, model: Path, tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    shutil.copytree(texts / "books", notes)
    store = tmp_path / "store"
    run_json("build", notes, "--model", model, "--out", store, "--nlist", 4, "--threads", 1)

    def add() -> dict[str, int]:
        found = run_json("add", store, notes, "--threads", 1)
        return {name: found[name] for name in ("added", "changed", "removed", "unchanged")}

    assert add() == {"added": 0, "changed": 0, "removed": 0, "unchanged": 2}
    (notes / "0.txt").write_text(sentence(20))
    (notes / "new.txt").write_text(sentence(21))
    (notes / "1.txt").unlink()
    planned = run_json("add", store, notes, "--dry-run")
    assert (planned["added"], planned["changed"], planned["removed"]) == (1, 1, 1)
    assert planned["documents"] == {"added": ["new.txt"], "changed": ["0.txt"], "removed": ["1.txt"]}
    told = run("add", store, notes, "--dry-run", "-v")
    assert "1 document would be added, 1 changed, 1 removed, 0 unchanged" in told.stdout
    for line in ("would be added: new.txt", "would be changed: 0.txt", "would be removed: 1.txt"):
        assert f"knnlm: {line}\n" in told.stderr
    assert run("add", store, notes, "--dry-run", "-q").stdout.startswith(f"{store}: 1 document would be added")
    assert "new.txt" not in run("add", store, notes, "--dry-run").output
    assert add() == {"added": 1, "changed": 1, "removed": 1, "unchanged": 0}
    assert add() == {"added": 0, "changed": 0, "removed": 0, "unchanged": 2}
    with Datastore.open(store) as opened:
        assert sorted(str(d.name) for d in opened.documents()) == ["0.txt", "new.txt"]
        assert opened.info()["indexed"] == len(opened)
    fresh = run_json("build", notes, "--model", model, "--out", tmp_path / "fresh", "--threads", 1)
    assert fresh["tokens"] == len(Datastore.open(store))
    assert run_json("verify", store)["sound"]


def test_add_says_what_stays_and_what_gets_another_name(texts: Path, model: Path, tmp_path: Path) -> None:
    notes, other, store = tmp_path / "notes", tmp_path / "other", tmp_path / "store"
    shutil.copytree(texts / "books", notes)
    run_json("build", notes, "--model", model, "--out", store, "--nlist", 4, "--threads", 1)
    (notes / "1.txt").unlink()
    limited = run("add", store, notes, "--max-documents", 1)
    assert "0 removed, 1 unchanged" in limited.stdout
    assert "kept as before" in limited.stderr
    assert "1 document, such as" in limited.stderr
    assert "--max-documents" in limited.stderr
    (notes / "1.txt").symlink_to("1.txt")
    found = run_json("add", store, notes)
    assert (found["removed"], found["unread"], found["renamed"]) == (0, 1, [])
    other.mkdir()
    (other / "0.txt").write_text(sentence(50, 40))
    assert run_json("add", store, other, "--dry-run")["renamed"] == [["0.txt", "0.txt (2)"]]
    assert "'0.txt (2)' for '0.txt'" in run("add", store, other, "--threads", 1).stderr
    assert [name for name, _ in snapshot(store)] == ["0.txt", "1.txt", "0.txt (2)"]
    for place in (notes, other):
        again = run_json("add", store, place, "--threads", 1)
        assert (again["added"], again["changed"], again["removed"], again["unchanged"]) == (0, 0, 0, 1)


def test_add_knows_documents_without_a_hash_by_their_tokens(texts: Path, model: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    run_json("build", texts / "books", "--model", model, "--out", store, "--keep-keys", "--threads", 1)
    with Datastore.open(store) as opened:
        keys, values = opened.keys(0, 50), opened.values(0, 50)
        opened.add(keys, values, document="by hand")
    found = run_json("add", store, texts / "books", "--threads", 1)
    assert (found["unchanged"], found["added"], found["changed"], found["removed"]) == (2, 0, 0, 0)


def test_delete_replace_compact(texts: Path, model: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    run_json("build", texts / "books", "--model", model, "--out", store, "--threads", 1)
    before = run_json("info", store)["n"]
    assert "on disk until" not in run("info", store).stdout
    listed = run("info", store, "--documents").stdout.splitlines()
    assert listed[0].split("\t")[0] == "0.txt"
    told = run_json("info", store, "--documents")["documents"]
    assert [line.split("\t")[0] for line in listed] == [document["name"] for document in told]
    assert sum(document["stop"] - document["start"] for document in told) == before
    assert sum(int(line.split("\t")[1].replace(",", "")) for line in listed) == before
    gone = run_json("delete", store, "0.txt")
    assert f"{gone['entries']:,} entries of 1 document, on disk until knnlm compact" in run("info", store).stdout
    assert gone["left"] == before - gone["entries"]
    assert "nowhere" in run("delete", store, "nowhere", code=1).stderr
    (tmp_path / "other.txt").write_text(sentence(30, 50))
    replaced = run_json("replace", store, "1.txt", tmp_path / "other.txt", "--threads", 1)
    assert replaced["entries"] == replaced["new"]
    assert any(b"0.txt" in path.read_bytes() for path in store.glob("*.seg"))
    compacted = run_json("compact", store)
    assert compacted["removed"]["entries"] == before
    assert not any(b"0.txt" in path.read_bytes() for path in store.iterdir())
    assert "on disk until" not in run("info", store).stdout
    assert run_json("verify", store)["sound"]
    assert "no file was read or written (knnlm verify reads all)" in run("compact", store).stderr
    assert "expected a folder, found a file: check the path" in run("info", tmp_path / "other.txt", code=1).stderr


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("latin.txt", "caf\xe9 the store keeps a key\n".encode("latin-1"), "1 invalid UTF-8 sequence replaced"),
        ("wide.txt", "caf\ufffd the store keeps a key\n".encode("utf-16"), "UTF-16 with a byte-order mark"),
        ("lines.txt", "caf\ufffd the store keeps a key\r\n".encode(), "1 CRLF line end turned"),
        (
            "packed.txt.gz",
            gzip.compress("caf\ufffd the store keeps a key\n".encode(), mtime=0) + b"junk",
            "4 bytes after the end",
        ),
        ("row.jsonl", b'{"text": "caf\\ud83d the store keeps a key\\n", "n": NaN}\n', "1 lone surrogate in"),
    ],
)
def test_replace_reads_a_file_as_build_does_and_says_what_it_changed(
    store: Path, tmp_path: Path, name: str, content: bytes, said: str
) -> None:
    (tmp_path / name).write_bytes(content)
    (tmp_path / "plain.txt").write_text("caf\ufffd the store keeps a key\n")
    run("replace", store, "0.txt", tmp_path / "plain.txt", "--threads", 1)
    expected = dict(snapshot(store))["0.txt"]
    result = run("replace", store, "0.txt", tmp_path / name, "--threads", 1)
    assert said in result.stderr
    assert dict(snapshot(store))["0.txt"] == expected
    with Datastore.open(store) as opened:
        facts = opened.documents()[opened.find_document("0.txt") or 0].metadata or {}
    assert facts["sha256"] == content_hash("caf\ufffd the store keeps a key\n")
    assert facts["origin"].endswith("books")
    found = run_json("replace", store, "0.txt", tmp_path / name, "--threads", 1)
    assert any(said in note for _, note in found["read"]["notes"])


def test_replace_takes_the_row_that_the_document_is(texts: Path, model: Path, tmp_path: Path) -> None:
    rows, store = tmp_path / "rows.jsonl", tmp_path / "store"
    rows.write_text("".join(json.dumps({"body": sentence(i, 40), "n": i, "sha256": "own"}) + "\n" for i in range(3)))
    run("build", rows, "--model", model, "--out", store, "--text-field", "body", "--threads", 1)
    rows.write_text("".join(json.dumps({"body": sentence(9 + i, 50), "n": 10 + i}) + "\n" for i in range(3)))
    replace = ("replace", store, "rows.jsonl#2", rows, "--threads", 1)
    assert "expected text in the field 'text'" in run(*replace, code=1).stderr
    run(*replace, "--text-field", "body")
    with Datastore.open(store) as opened:
        facts = [d.metadata or {} for d in opened.documents()]
    assert [(f["n"], f["sha256_"]) for f in facts] == [(0, "own"), (2, "own"), (11, "own")]
    assert facts[2]["sha256"] == content_hash(sentence(10, 50))
    (tmp_path / "two.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n')
    refused = run("replace", store, "rows.jsonl#3", tmp_path / "two.jsonl", code=1).stderr
    assert "expected one text for 'rows.jsonl#3'" in refused
    (tmp_path / "bad.bin").write_bytes(b"\0\1")
    assert "binary" in run("replace", store, "rows.jsonl#3", tmp_path / "bad.bin", code=1).stderr


def test_a_row_to_replace_with_is_named_by_its_field(texts: Path, model: Path, tmp_path: Path) -> None:
    rows, store = tmp_path / "rows.jsonl", tmp_path / "store"
    rows.write_text("".join(json.dumps({"text": sentence(n, 40), "code": f"§ {n}"}) + "\n" for n in range(3)))
    run("build", rows, "--model", model, "--out", store, "--name-field", "code")
    rows.write_text("".join(json.dumps({"text": sentence(9 + n, 50), "code": f"§ {n}"}) + "\n" for n in range(3)))
    refused = run("replace", store, "§ 1", rows, code=1).stderr
    assert "expected one text for '§ 1'" in refused
    assert run_json("replace", store, "§ 1", rows, "--name-field", "code")["document"] == "§ 1"


def test_add_reads_again_what_it_adds_and_holds_no_text(
    texts: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes, store = built_from_a_copy(texts, model, tmp_path)
    run_json("add", store, notes, "--threads", 1)
    (notes / "new.txt").write_text(sentence(50, 60))
    (notes / "0.txt").write_text(sentence(51, 60))
    before = snapshot(store)
    original = adding.plan
    held: list[str] = []

    def planned(*given: Any, **options: Any) -> Any:
        work = original(*given, **options)
        held.extend(document.text for document in work.to_add)
        if change:
            (notes / "new.txt").write_text(sentence(52, 60))
        return work

    monkeypatch.setattr(adding, "plan", planned)
    change = True
    said = run_json("add", store, notes, "--threads", 1, code=1)["error"]
    assert "found 1 document changed or gone meanwhile, such as 'new.txt'" in said
    assert snapshot(store) == before
    change = False
    assert run_json("add", store, notes, "--threads", 1)["added"] == 1
    assert held == [""] * 4
    fresh = run_json("build", notes, "--model", model, "--out", tmp_path / "fresh", "--threads", 1)
    assert dict(snapshot(store)) == dict(snapshot(tmp_path / "fresh"))
    assert fresh["entries"] == run_json("info", store)["n"]


def built_from_a_copy(texts: Path, model: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A folder of text that a test may change, and a store of it."""
    notes, store = tmp_path / "notes", tmp_path / "store"
    shutil.copytree(texts / "books", notes)
    run_json("build", notes, "--model", model, "--out", store, "--nlist", 4, "--threads", 1)
    return notes, store


@pytest.mark.parametrize("command", ["replace", "add"])
def test_an_interrupted_change_leaves_the_old_documents(
    command: str, texts: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes, store = built_from_a_copy(texts, model, tmp_path)
    run_json("add", store, notes, "--threads", 1)
    before = snapshot(store)
    (notes / "0.txt").write_text(sentence(40))
    (notes / "1.txt").unlink()
    what = ("replace", store, "0.txt", notes / "0.txt") if command == "replace" else ("add", store, notes)

    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Datastore, "add", interrupted)  # the model has run, nothing is published
        run(*what, "--threads", 1, code=130)
    assert snapshot(store) == before
    generation = run_json("info", store)["generation"]
    run(*what, "--threads", 1)
    names = {"replace": ["0.txt", "1.txt"], "add": ["0.txt"]}[command]
    assert sorted(name for name, _ in snapshot(store)) == names
    assert dict(snapshot(store))["0.txt"] != dict(before)["0.txt"]
    assert run_json("info", store)["generation"] <= generation + 2  # the change, and its codes
    assert run_json("verify", store)["sound"]


@pytest.mark.parametrize("change", ["added", "removed"])
def test_an_add_that_another_overtakes_says_so_and_commits_nothing(
    change: str, texts: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes, store = built_from_a_copy(texts, model, tmp_path)
    (notes / "0.txt").write_text(sentence(41, 60))
    if change == "added":
        (notes / "new.txt").write_text(sentence(40, 60))
    else:
        (notes / "1.txt").unlink()
        (notes / "0.txt").write_text(sentence(0))
    original = adding.plan
    after: list[Any] = []

    def overtaken(*given: Any, **options: Any) -> Any:
        planned = original(*given, **options)
        with monkeypatch.context() as patched:
            patched.setattr(adding, "plan", original)
            run("add", store, notes, "--threads", 1)
        after.append((snapshot(store), run_json("info", store)["generation"]))
        return planned

    with monkeypatch.context() as patched:
        patched.setattr(adding, "plan", overtaken)
        said = run_json("add", store, notes, "--threads", 1, code=1)["error"]
    assert "another command changed it meanwhile" in said
    assert said.endswith("nothing of this one was committed: call add again (knnlm add)")
    assert after == [(snapshot(store), run_json("info", store)["generation"])]
    again = run_json("add", store, notes, "--threads", 1)
    assert (again["added"], again["changed"], again["removed"]) == (0, 0, 0)
    assert run_json("verify", store)["sound"]


def snapshot(store: Path) -> list[tuple[str, list[int]]]:
    with Datastore.open(store) as opened:
        return [(str(d.name), opened.values(d.start, d.stop).tolist()) for d in opened.documents()]


def test_build_is_one_pass_without_raw_keys(texts: Path, model: Path, tmp_path: Path) -> None:
    build = ("build", texts / "books", "--model", model, "--threads", 1)
    found = run_json(*build, "--out", tmp_path / "store")
    assert found["entries"] == found["tokens"]
    info = run_json("info", tmp_path / "store")
    assert "Keys" not in info["sections"]
    assert info["attributes"]["model"]
    assert not list(tmp_path.glob(".*building"))
    assert "exclude each other" in run(*build, "--out", tmp_path / "no", "--keep-keys", "--keys", "none", code=2).stderr
    for options, kept in (
        (("--keep-keys",), "float16"),
        (("--keys", "float32"), "float32"),
        (("--keys", "none"), None),
    ):
        run_json(*build, "--out", tmp_path / f"{kept}", *options)
        assert run_json("info", tmp_path / f"{kept}")["keep_keys"] == kept
