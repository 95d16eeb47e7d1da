"""A store made of texts: whole or not at all, as the command makes it, and an interrupted build goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from cli_corpus import run, run_json, sentence

from knnlm import KNNLM, Datastore, UsageError
from knnlm.build import one_pass


def contents(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.iterdir() if file.name != "lock"}


@pytest.mark.parametrize(
    ("options", "arguments"),
    [
        ({}, []),
        ({"keep_keys": True, "metric": "ip", "seed": 3}, ["--keep-keys", "--metric", "ip", "--seed", 3]),
        (
            {"keep_keys": "float32", "code": "flat", "window": 16, "context": 4, "batch_size": 3},
            ["--keys", "float32", "--code", "flat", "--window", 16, "--context", 4, "--batch-tokens", 48],
        ),
        (
            {"representation": "block-output", "layer": 0, "nlist": 4},
            ["--key", "block-output", "--layer", 0, "--nlist", 4],
        ),
    ],
)
def test_a_store_has_the_bytes_that_the_command_gives_it(
    texts: Path, model: Path, tmp_path: Path, options: dict[str, Any], arguments: list[Any]
) -> None:
    run("build", texts / "books", "--model", model, "--out", tmp_path / "by-command", "--threads", 1, *arguments)
    lm = KNNLM.build(str(model), texts / "books", tmp_path / "by-python", threads=1, **options)
    assert isinstance(lm, KNNLM)
    lm.datastore.close()
    assert contents(tmp_path / "by-python") == contents(tmp_path / "by-command")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["by-command", "by-python"]


def test_texts_at_hand_are_documents_with_names(model: Path, tmp_path: Path) -> None:
    lm = KNNLM.build(model, [sentence(0), ("b", sentence(1)), sentence(2)], tmp_path / "store")
    assert [info.name for info in lm.datastore.documents()] == ["document 1", "b", "document 3"]
    assert lm.datastore.is_built
    source = lm.datastore.attributes["model"]["source"]
    assert (tmp_path / "store" / source).resolve() == model.resolve()


def test_what_is_there_is_replaced_only_if_that_is_asked_for(texts: Path, model: Path, tmp_path: Path) -> None:
    path = tmp_path / "store"
    KNNLM.build(model, [sentence(0)], path).datastore.close()
    before = contents(path)
    with pytest.raises(UsageError, match=r"store exists already: .*overwrite=True \(in commands --overwrite\)"):
        KNNLM.build("no-model-is-loaded-for-this", [sentence(1)], path)
    assert contents(path) == before
    (path / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"holds notes\.txt, which is not of a store or model"):
        KNNLM.build(model, [sentence(1)], path, overwrite=True)
    (path / "notes.txt").unlink()
    with pytest.raises(UsageError, match="would remove the input"):
        KNNLM.build(model, texts / "books", model, overwrite=True)
    with pytest.raises(ValueError, match=r"texts: number 2, 'c': .* the lone surrogate"):
        KNNLM.build(model, [sentence(1), ("c", "\ud800")], path, overwrite=True)
    assert contents(path) == before
    lm = KNNLM.build(model, [("new", sentence(1))], path, overwrite=True)
    assert [info.name for info in lm.datastore.documents()] == ["new"]
    assert [file.name for file in tmp_path.iterdir()] == ["store"]


def test_an_interrupted_build_goes_on_where_it_was(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    given = [(f"{number}", sentence(number, 200)) for number in range(4)]
    original, parts = one_pass._commit, list[int]()
    cut = one_pass.parts_of
    monkeypatch.setattr(one_pass, "parts_of", lambda text, size: cut(text, 100))

    def commit(store: Any, folder: Path, part: Any, codes: Any) -> None:
        if interrupted and part.number == 2:
            raise KeyboardInterrupt
        parts.append(part.number)
        original(store, folder, part, codes)

    monkeypatch.setattr(one_pass, "_commit", commit)
    interrupted = True
    with pytest.raises(KeyboardInterrupt):
        KNNLM.build(model, given, tmp_path / "store")
    assert [file.name for file in tmp_path.iterdir()] == [".store.building"]
    interrupted = False
    caplog.set_level("INFO", "knnlm")
    KNNLM.build(model, given, tmp_path / "store").datastore.close()
    assert parts[:3] == [0, 1, 2]
    assert len(parts) == len(set(parts)) > 3
    assert "going on with an interrupted build" in caplog.text
    KNNLM.build(model, given, tmp_path / "whole").datastore.close()
    assert contents(tmp_path / "store") == contents(tmp_path / "whole")


def test_an_object_is_built_with_and_its_store_remembers_where_it_is_from(
    texts: Path, model: Path, tmp_path: Path
) -> None:
    from knnlm.model.load import load_model

    loaded = load_model(model)
    lm = KNNLM.build(loaded, [sentence(0)], tmp_path / "store")
    assert lm.loaded is loaded
    alone = KNNLM.build(loaded.model, [sentence(0)], tmp_path / "alone", tokenizer=loaded.tokenizer)
    assert alone.loaded.fingerprint == loaded.fingerprint
    found = run_json("eval", tmp_path / "store", texts / "test.txt")
    assert found["perplexity"] == pytest.approx(lm.evaluate(texts / "test.txt").perplexity)
    told = run("eval", tmp_path / "alone", texts / "test.txt", code=2).stderr
    assert "remembers no model that could be loaded: give the model (--model NAME)" in told
    with pytest.raises(UsageError, match="remembers no model"):
        KNNLM.open(tmp_path / "alone")
    assert KNNLM.open(tmp_path / "alone", model).settings == alone.settings


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({"texts": "no such text at all"}, FileNotFoundError, "a string alone is a path"),
        ({"texts": "no-such-folder/"}, FileNotFoundError, "found nothing at 'no-such-folder/'"),
        ({"texts": [""]}, ValueError, "found no document to read"),
        ({"store": ""}, TypeError, "store: expected the path of its folder, found an empty path"),
        ({"store": 7}, TypeError, "store: expected the path of its folder, found a int"),
        ({"model": "./nowhere"}, FileNotFoundError, "found nothing at ./nowhere"),
        ({"batch_size": 0}, ValueError, "batch_size: expected at least one window, found 0"),
        ({"nlist": 10_000}, UsageError, "fewer than the 10,000 lists asked for"),
        (
            {"keep_keys": "float64"},
            ValueError,
            "keep_keys: expected True, False, 'float16' or 'float32'",
        ),
        ({"window": 10**6}, ValueError, "window"),
        ({"torch_dtype": "float32"}, TypeError, "found torch_dtype"),
    ],
)
def test_wrong_arguments_are_errors_that_help(
    model: Path, tmp_path: Path, arguments: dict[str, Any], error: type, says: str
) -> None:
    given: dict[str, Any] = {"model": model, "texts": [sentence(0)], "store": tmp_path / "store", **arguments}
    with pytest.raises(error, match=says):
        KNNLM.build(**given)
    assert not (tmp_path / "store").exists()


def test_a_store_can_be_made_with_processes(model: Path, tmp_path: Path) -> None:
    given = [(f"{number}", sentence(number, 200)) for number in range(4)]
    for workers in (0, 1):
        KNNLM.build(str(model), given, tmp_path / str(workers), workers=workers, threads=1, device="cpu")
    assert contents(tmp_path / "0") == contents(tmp_path / "1")
    with pytest.raises(ValueError, match="workers need"):
        KNNLM.build(KNNLM.from_pretrained(model).loaded, [sentence(0)], tmp_path / "store", workers=1)
    with Datastore.create(tmp_path / "other", dim=4) as other, pytest.raises(TypeError, match="found a Datastore"):
        KNNLM.build(model, [sentence(0)], other)  # type: ignore[arg-type]
