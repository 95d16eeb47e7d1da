"""KNNLM with its store: opened by either side, whoever made it, with equal answers, and refused where it is not its."""

from __future__ import annotations

import inspect
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
from cli_corpus import run, run_json, sentence
from hf_folders import save_folder, tokenizer
from tiny_lm import tiny

import knnlm
from knnlm import KNNLM, Datastore, IdentityError, Reading, UsageError
from knnlm.model.load import load_model


def test_a_store_of_the_command_is_opened_with_its_model(store: Path, model: Path, texts: Path) -> None:
    lm = KNNLM.open(store)
    assert lm.loaded.fingerprint == load_model(model).fingerprint
    assert repr(lm).startswith(f"KNNLM('{model.name}'")
    told = run_json("generate", store, "--prompt", "the store", "--max-new-tokens", 8)["text"]
    assert lm.generate("the store", max_new_tokens=8) == told
    for other in (
        KNNLM.open(str(store)),
        KNNLM.open(Datastore.open(store)),
        KNNLM.open(store, model, device="cpu", dtype="float32"),
        KNNLM.open(store, lm.loaded),
        KNNLM.from_pretrained(model, store),
        KNNLM.from_pretrained(str(model), str(store), device="cpu"),
        KNNLM.from_pretrained(lm.loaded.model, store, tokenizer=lm.loaded.tokenizer),
    ):
        assert other.perplexity(sentence(8)) == lm.perplexity(sentence(8))


def test_a_store_of_the_library_is_used_by_every_command(texts: Path, model: Path, tmp_path: Path) -> None:
    path = tmp_path / "made"
    lm = KNNLM.build(model, texts / "books", path, keep_keys=True, threads=1)
    lm.tune(texts / "valid.txt", k=64)
    scored = lm.evaluate(texts / "test.txt")
    told = run_json("eval", path, texts / "test.txt", "--threads", 1)
    assert told["perplexity"] == scored.perplexity
    assert told["settings"]["lambda_"] == lm.settings.lambda_
    continued = run_json("generate", path, "--prompt", "the", "--max-new-tokens", 5)["text"]
    assert lm.generate("the", max_new_tokens=5) == continued
    assert run_json("add", path, texts / "books")["unchanged"] == 2
    assert run_json("inspect", path, "--string", "the store keeps")["tokens"]
    assert run_json("build", path, "--retrain")["entries"] == told["settings"]["store_size"]
    assert run_json("verify", path)["sound"]
    (tmp_path / "deeper").mkdir()
    shutil.move(path, tmp_path / "deeper" / "made")  # the model is not where it was from there
    told = run("eval", tmp_path / "deeper" / "made", texts / "test.txt", code=2).stderr
    assert "to be moved together" in told.replace("\n", " ")
    with pytest.raises(UsageError, match="store and model are to be moved together, or give the model"):
        KNNLM.open(tmp_path / "deeper" / "made")


def test_settings_that_are_given_stand_above_the_stores(store: Path, model: Path) -> None:
    KNNLM.open(store).tune([sentence(7)], k=32)
    lm = KNNLM.open(store, lambda_=0.5, temperature=2.0, k=8, nprobe=2, rerank="none", exact=False, threads=1)
    used = {"lambda_": 0.5, "temperature": 2.0, "k": 8, "nprobe": 2, "rerank": "none", "exact": False, "threads": 1}
    assert lm.settings.to_dict() == used
    assert KNNLM.from_pretrained(model, store, lambda_=0.5).settings.lambda_ == 0.5


def test_a_model_can_be_alone(model: Path) -> None:
    lm = KNNLM.from_pretrained(model)
    assert lm.datastore is None
    assert lm.perplexity(sentence(8)) == pytest.approx(KNNLM(load_model(model), None).perplexity(sentence(8)))
    cached = KNNLM.from_pretrained(model, cache=True, lambda_=0.4, temperature=2.0)
    assert cached.combiner.features
    assert cached.perplexity(sentence(8)) == pytest.approx(
        KNNLM(load_model(model), None, cache=True, lambda_=0.4, temperature=2.0).perplexity(sentence(8))
    )


def test_a_hugging_face_model_by_its_name(tmp_path: Path) -> None:
    folder = save_folder(tmp_path / "model", tokenizer("bytes"))
    text = [f"the cat sat on the {word}" for word in ("mat", "dog", "cat")] * 8
    lm = KNNLM.build(folder, text, tmp_path / "store", dtype="bfloat16", attn_implementation="eager", batch_size=2)
    assert lm.loaded.model.config._attn_implementation == "eager"
    again = KNNLM.open(tmp_path / "store", attn_implementation="eager", device="cpu")
    assert str(again.loaded.model.dtype) == "torch.bfloat16"  # as the store has it
    assert again.perplexity(text[0]) == lm.perplexity(text[0])
    with pytest.raises(IdentityError, match=r"loaded as float32, the store is of bfloat16: load them with dtype="):
        KNNLM.open(tmp_path / "store", dtype="float32")
    assert "bfloat16" in run("info", tmp_path / "store").stdout


def test_the_package_is_quiet_but_for_its_logger(
    texts: Path, model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    KNNLM.build(model, texts / "books", tmp_path / "store")
    assert [(record.name, record.levelname) for record in caplog.records] == [("knnlm", "WARNING")]
    assert "empty.txt" in caplog.text
    caplog.clear()
    KNNLM.open(tmp_path / "store").evaluate(texts / "books")
    assert "empty.txt" in caplog.text
    assert capfd.readouterr() == ("", "")
    caplog.clear()
    told = run("build", texts / "books", "--model", model, "--out", tmp_path / "store", "--overwrite").stderr
    assert "empty.txt" in told
    assert caplog.records == []  # a command says it itself
    assert logging.getLogger("knnlm").handlers == []
    assert logging.getLogger("knnlm").propagate


def test_progress_is_told_in_stages(texts: Path, model: Path, tmp_path: Path) -> None:
    seen: dict[str, list[tuple[int, int]]] = {}

    def progress(stage: str, done: int, total: int) -> None:
        seen.setdefault(stage, []).append((done, total))

    lm = KNNLM.build(model, texts / "books", tmp_path / "store", progress=progress)
    n = len(lm.datastore)
    assert seen["encode"][-1] == (n, n)
    lm.tune(texts / "valid.txt", k=8, progress=progress)
    tokens = lm.evaluate(texts / "test.txt", progress=progress).tokens
    assert seen["tune"][-1] == (1, 1)
    assert seen["score"][-1] == (tokens, tokens)
    lm.add([("new", sentence(50, 40))], progress=progress)
    assert seen["add"]


def test_how_paths_are_read_can_be_said(model: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(f'{{"content": "the store keeps a key for {n}"}}\n' for n in range(4)))
    lm = KNNLM.build(model, rows, tmp_path / "store", reading=Reading(text_field="content", max_documents=3))
    assert [info.name for info in lm.datastore.documents()] == [f"rows.jsonl#{n}" for n in (1, 2, 3)]
    assert lm.add(rows, reading=Reading(text_field="content")).added == 1


@pytest.mark.parametrize(
    ("use", "error", "says"),
    [
        (lambda store: KNNLM.open("nowhere"), FileNotFoundError, "expected a store at nowhere, found nothing there"),
        (lambda store: KNNLM.open(None), TypeError, "store: expected the path of its folder, found a NoneType"),
        (lambda store: KNNLM.open(tiny()), TypeError, "store: expected the path of its folder, found a TinyLoaded"),
        (lambda store: KNNLM.open(store, trust_remote_code=True), UsageError, "a store is not trusted to name one"),
        (lambda store: KNNLM.open(store, 7), TypeError, "model: expected what load_model returns or a torch module"),
        (lambda store: KNNLM.open(store, lambda_=2), ValueError, "lambda_: expected a weight between 0 and 1, found 2"),
        (lambda store: KNNLM.open(store, revision="x"), UsageError, "expected no revision of a model that"),
        (lambda store: KNNLM.open(store, device="nonsense"), ValueError, "device: "),
        (lambda store: KNNLM.from_pretrained(None, store), TypeError, r"found None; KNNLM\.open\(store\)"),
        (lambda store: KNNLM.from_pretrained("./nowhere", store), FileNotFoundError, "nothing at ./nowhere"),
        (lambda store: KNNLM("model", store), TypeError, "datastore: expected a datastore, found a path: KNNLM.open"),
    ],
)
def test_wrong_arguments_are_errors_that_help(store: Path, use: Any, error: type, says: str) -> None:
    with pytest.raises(error, match=says):
        use(store)


def test_what_the_commands_do_has_a_typed_and_documented_method() -> None:
    for name in ("open", "from_pretrained", "build", "tune", "add", "evaluate"):
        method = getattr(KNNLM, name)
        assert len(inspect.getdoc(method) or "") > 100
        signature = inspect.signature(method)
        assert all(p.annotation is not p.empty for n, p in signature.parameters.items() if n != "self")
        assert signature.return_annotation is not signature.empty
    assert {"Reading", "UsageError", "IdentityError"} <= set(knnlm.__all__)
