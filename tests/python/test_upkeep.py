"""KNNLM over time: settings follow the store, threads hold for the model, and each method does its command's work."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cli_corpus import run, run_json, sentence

from knnlm import KNNLM, Datastore, Reading, UsageError
from knnlm.model.load import load_model
from knnlm.probability.blend import Blend
from knnlm.probability.fixed import Fixed
from knnlm.text.texts import Texts, texts_of


@pytest.fixture
def lm(store: Path, model: Path) -> KNNLM:
    return KNNLM(load_model(model), Datastore.open(store), threads=1)


def test_a_replacement_that_is_the_path_of_a_file_is_taken_as_text_with_a_warning(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("new.txt").write_text(sentence(1))
    with KNNLM.open(store) as lm:
        name = lm.datastore.documents()[0].name  # type: ignore[union-attr]
        with pytest.warns(UserWarning, match="the new text: expected a text, found the path of a file, 'new.txt'"):
            lm.replace(name, "new.txt")


def test_threads_are_those_of_the_model_too(store: Path, model: Path, texts: Path, tmp_path: Path) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        loaded, seen = load_model(model), list[int]()
        loaded.model.blocks[0].register_forward_pre_hook(lambda *_: seen.append(torch.get_num_threads()))
        made = KNNLM.build(loaded, texts / "books", tmp_path / "made", keep_keys=True, threads=1)
        uses: list[Any] = [
            lambda: made.perplexity("the store"),
            lambda: made.explain("the store"),
            lambda: made.evaluate([sentence(8, 40)]),
            lambda: made.tune([sentence(7, 40)], k=4),
            lambda: made.add([("new", sentence(50, 40))]),
            lambda: made.replace("new", sentence(51, 40)),
            lambda: [torch.get_num_threads() for _ in made.stream("the", max_new_tokens=3)],
        ]
        assert set(seen) == {1}
        for use in uses:
            seen.clear()
            found = use()
            assert set(seen) == {1}
            assert torch.get_num_threads() == 2
        assert set(found) == {2}  # while the caller has a piece
        seen.clear()
        KNNLM(loaded, made.datastore).perplexity("the store")
        assert set(seen) == {2}
    finally:
        torch.set_num_threads(before)


def test_settings_follow_what_is_added(model: Path, tmp_path: Path) -> None:
    lm = KNNLM.build(model, [sentence(1, 20)], tmp_path / "store")
    n = len(lm.datastore)
    assert lm.settings.k == lm.retriever.k == lm.combiner.k == n
    lm.add([sentence(2, 30)])
    assert lm.settings.k == lm.retriever.k == lm.combiner.k == len(lm.datastore) > n
    lm.datastore.delete("document 2")
    lm.settle()
    assert lm.settings.k == n
    given = KNNLM.open(tmp_path / "store", k=3)
    given.add([sentence(3, 30)])
    assert given.settings.k == given.retriever.k == 3


def test_tuning_keeps_how_this_object_searches_and_mixes(model: Path, texts: Path, tmp_path: Path) -> None:
    path = tmp_path / "store"
    KNNLM.build(model, texts / "books", path, keep_keys=True)
    exact = KNNLM.open(path, exact=True, lambda_=0.9)
    tuned = exact.tune([sentence(7)], k=16)
    assert exact.settings.exact
    assert exact.settings.lambda_ == tuned.lambda_
    assert KNNLM.open(path).settings.exact
    exact.tune([sentence(7)], k=16, exact=False, nprobe=2)
    assert (exact.settings.exact, exact.settings.nprobe) == (False, 2)
    assert isinstance(exact.combiner, Fixed)
    exact.tune([sentence(7)], k=16, cache=True)  # for others: this one was made without
    assert isinstance(exact.combiner, Fixed)
    blended = KNNLM.open(path, cache=True)
    before = blended.combiner
    assert isinstance(before, Blend)
    blended.tune([sentence(7)], k=16)
    assert blended.combiner.weights == pytest.approx(before.weights)
    assert KNNLM.open(path, cache=True).combiner == blended.combiner
    blended.tune([sentence(7)], k=16, cache=False)
    assert isinstance(blended.combiner, Fixed)


def test_an_index_is_made_anew(model: Path, texts: Path, tmp_path: Path) -> None:
    lm = KNNLM.build(model, texts / "books", tmp_path / "store", keep_keys=True)
    with pytest.raises(UsageError, match="has an index of all its entries"):
        lm.index()
    before = lm.datastore.generation
    lm.index(retrain=True, preset="small", nlist=3)
    assert lm.datastore.generation > before
    info = lm.datastore.info()
    assert info["nlist"] == 3
    assert "rerank" not in (lm.datastore.attributes.get("tuned") or {})
    lm.index(retrain=True, preset="paper", nlist=4, code=(8, 8))
    assert lm.settings.nprobe == 32
    assert lm.settings.temperature == 1
    assert lm.perplexity(sentence(8, 30)) == KNNLM.open(tmp_path / "store").perplexity(sentence(8, 30))
    with pytest.raises(ValueError, match="preset: expected one of paper, small, found 'big'"):
        lm.index(retrain=True, preset="big")  # type: ignore[arg-type]


def test_a_document_is_replaced_as_by_the_command(store: Path, model: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(store, other)
    (tmp_path / "new.txt").write_text(sentence(60, 50))
    lm = KNNLM.from_pretrained(model, store)
    old, new = lm.replace("0.txt", sentence(60, 50))
    told = run_json("replace", other, "0.txt", tmp_path / "new.txt", "--model", model)
    assert (told["old"], told["new"]) == (old, new)
    assert (
        lm.evaluate([sentence(8)]).perplexity == KNNLM.from_pretrained(model, other).evaluate([sentence(8)]).perplexity
    )
    with pytest.raises(ValueError, match="found none named 'none'"):
        lm.replace("none", "text")


def test_a_store_that_was_opened_here_is_closed(store: Path, model: Path) -> None:
    with KNNLM.from_pretrained(model, store) as lm:
        lm.perplexity("the store")
    with pytest.raises(Exception, match="closed"):
        lm.datastore.search(np.zeros((1, lm.datastore.dim), np.float32), 1)
    opened = Datastore.open(store)
    with KNNLM.from_pretrained(model, opened) as lm:
        pass
    assert len(opened.search(np.zeros((1, opened.dim), np.float32), 1).ids) == 1


def test_options_of_keys_and_search_are_not_the_models(store: Path, model: Path) -> None:
    with pytest.warns(UserWarning, match="window 16 where the store has 32"):
        assert KNNLM.from_pretrained(model, store, window=16, context=4).keys.window == 16
    assert KNNLM.from_pretrained(model, window=16, threads=1).keys.window == 16
    assert KNNLM.from_pretrained(model, autocast="bfloat16").keys.autocast == "bfloat16"
    with pytest.raises(ValueError, match="autocast"):
        KNNLM.open(store, model, autocast="bfloat16")
    for name, value in {"k": 8, "nprobe": 1, "exact": True, "lambda_": 0.5, "temperature": 1.0}.items():
        with pytest.raises(ValueError, match=f"{name}: expected it with a datastore, found none"):
            KNNLM.from_pretrained(model, **{name: value})
    with pytest.raises(ValueError, match="expected weights of ngram"):
        KNNLM.from_pretrained(model, ngram=True)


def test_texts_and_how_they_are_read() -> None:
    for given in (["a text"], [("name", "a text")]):
        with pytest.raises(TypeError, match="reading: expected it with paths, found texts that are at hand"):
            texts_of(given, Reading())
    with pytest.raises(TypeError, match="reading: expected it with paths, found Texts"):
        texts_of(Texts(["a.txt"]), Reading())


def test_ready_texts_are_stamped_when_they_are_stored(model: Path, texts: Path, tmp_path: Path) -> None:
    lm = KNNLM.build(model, Texts([texts / "books"]), tmp_path / "store")
    assert lm.add(texts / "books", dry_run=True).unchanged == 2


def test_token_ids_have_no_reading(lm: KNNLM) -> None:
    with pytest.raises(TypeError, match="reading: expected it with paths, found token ids"):
        lm.evaluate([np.array([1, 2, 3])], reading=Reading())


def test_generate_and_inspect_mix_in_what_eval_does(texts: Path, store: Path, model: Path) -> None:
    run("tune", store, texts / "valid.txt", "--k", 16, "--cache", "--ngram", "--no-plots")
    lm = KNNLM.open(store, cache=True, ngram=True)
    told = run_json("generate", store, "--prompt", "the store keeps", "--max-new-tokens", 12, "--cache", "--ngram")
    assert told["text"] == lm.generate("the store keeps", max_new_tokens=12)
    assert told["blend"]["weights"] == dict(lm.combiner.weights)
    shown = run_json("inspect", store, "--string", sentence(8, 30), "--cache", "--ngram")
    assert [row["p"] for row in shown["tokens"]] == pytest.approx(lm.explain(sentence(8, 30)).p[:20].tolist())
    assert shown["blend"] == told["blend"]
    said = run("generate", store, "--prompt", "the", "--max-new-tokens", 1, "--cache", "--lambda", 0.3).stderr
    assert "--lambda does not change" in said
    alone = run_json("generate", store, "--prompt", "the", "--max-new-tokens", 6, "--without-store", "--cache")
    assert alone["text"] == KNNLM.from_pretrained(model, cache=True).generate("the", max_new_tokens=6)
    for option in (("--k", 4), ("--lambda", 0.2), ("--ngram",)):
        told = run("generate", store, "--prompt", "the", "--without-store", *option, code=2).stderr
        assert f"{option[0]} is of the store" in told
