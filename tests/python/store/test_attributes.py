"""attributes.py: a store whose attributes somebody else wrote ends commands with a line that says what is odd."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_corpus import run, run_json
from method import evaluate, generate, retrieve
from tiny_lm import tiny

from knnlm import KNNLM
from knnlm.build.dump import dump
from knnlm.lm.distill import targets
from knnlm.lm.retriever import Retriever
from knnlm.lm.settings import Settings, settings_of
from knnlm.model.identity import check
from knnlm.model.key_spec import key_spec
from knnlm.reference import BruteForceStore
from knnlm.store.attributes import attribute_problems, check_attributes
from knnlm.store.datastore import Datastore
from knnlm.store.union import StoreUnion

ODD = {
    "list": ("[1, 2]", "attributes: expected an object, found list"),
    "text": ('"x"', "attributes: expected an object, found str"),
    "deep": ('{"a": ' + "[" * 5000 + "]" * 5000 + "}", "expected JSON of at most 100 levels"),
    "digits": ('{"a": ' + "9" * 100_000 + "}", "digits"),
    "model": ('{"model": [1]}', "attributes.model: expected an object, found a list"),
    "name": ('{"model": {"name": [1], "fingerprint": 7}}', "attributes.model.name: expected text, found a list"),
    "tokenizer": ('{"tokenizer": "x"}', "attributes.tokenizer: expected an object, found text"),
    "tuned": ('{"tuned": 5}', "attributes.tuned: expected an object, found an integer"),
    "lambda": ('{"tuned": {"lambda_": "x"}}', "attributes.tuned.lambda_: expected a number, found text"),
    "k": ('{"tuned": {"k": true}}', "attributes.tuned.k: expected an integer, found true or false"),
    "exact": ('{"tuned": {"exact": 1}}', "attributes.tuned.exact: expected true or false, found an integer"),
    "layer": ('{"representation": "ffn-input", "layer": {}}', "attributes.layer: expected an integer, found an object"),
    "weight": ('{"tuned": {"lambda_": 7}}', "attributes.tuned.lambda_: expected a weight between 0 and 1, found 7"),
    "far k": (f'{{"tuned": {{"k": {10**30}}}}}', f"attributes.tuned.k: expected at least 1, found {10**30}"),
    "autocast": ('{"autocast": "int3"}', "attributes.autocast: expected bfloat16 or float16, found 'int3'"),
    "blend": (
        '{"tuned": {"blends": {"cache": {"weights": {"moon": 1}}}}}',
        "attributes.tuned.blends.cache.weights: expected weights between 0 and 1 of cache, knn, lm, ngram, found",
    ),
}


@pytest.mark.parametrize("name", ODD)
def test_odd_attributes_are_said_by_info_and_by_what_uses_them(name: str, model: Path, tmp_path: Path) -> None:
    text, message = ODD[name]
    path = tmp_path / "store"
    with Datastore.create(path, dim=16, keep_keys="float16") as store:
        store.add(np.ones((3, 16)), [1, 2, 3], "d")
        store.commit()
        store._core.set_attributes(text)
    unreadable = name in ("list", "text", "deep", "digits")
    shown = run("info", path, code=int(unreadable))
    assert message in " ".join(shown.output.split())
    for command in ("inspect", "generate", "eval"):
        arguments = {"inspect": ["--string", "x"], "generate": ["--prompt", "x"], "eval": [path, "--cache"]}[command]
        result = run(command, path, *arguments, "--model", model, code=1)
        assert message in result.stderr
        assert "Traceback" not in result.stderr
        assert "--debug" not in result.stderr
    assert run_json("verify", path)["sound"]
    if unreadable:
        assert message in run_json("delete", path, "d", code=1)["error"]
    else:
        assert run_json("info", path)["n"] == 3
        assert run_json("delete", path, "d")["entries"] == 3
    with Datastore.open(path) as store:
        assert len(store) == (3 if unreadable else 0)


def test_attributes_of_ones_own_are_left_alone(tmp_path: Path) -> None:
    own = {"experiment": [1, {"a": None}], "window": None, "tuned": {"lambda_": 1, "k": None}}
    assert attribute_problems(own) == []
    with Datastore.create(tmp_path / "store", dim=2, attributes=own):
        pass
    assert run_json("info", tmp_path / "store")["attributes"] == own
    run("info", tmp_path / "store")


def test_those_of_a_tuned_store_are_sound(texts: Path, store: Path) -> None:
    run("tune", store, texts / "valid.txt", "--k", 8, "--cache", "--no-plots", "--threads", 1)
    attributes = run_json("info", store)["attributes"]
    assert attribute_problems(attributes) == []
    assert attributes["tuned"]["blends"]
    run("build", store, "--retrain", "--preset", "paper", "--code", "16,8", "--nlist", 4, "--threads", 1)
    assert attribute_problems(run_json("info", store)["attributes"]) == []


def test_metadata_of_others_is_an_error_that_names_the_document(texts: Path, store: Path, tmp_path: Path) -> None:
    for text in ("[1]", '{"a": ' + "9" * 10_000 + "}"):
        path = Path(shutil.copytree(store, tmp_path / str(len(text))))
        with Datastore.open(path) as opened:
            opened._core.add(np.ones((1, opened.dim), np.float32), np.ones(1, np.uint32), "odd", text)
            opened._core.commit()
        for command in (("add", path, texts / "books"),):
            result = run(*command, code=1)
            assert "metadata of the document 'odd'" in result.stderr


LIBRARY = {
    "KNNLM": lambda loaded, store: KNNLM(loaded, store),
    "KNNLM with a cache": lambda loaded, store: KNNLM(loaded, store, cache=True),
    "KNNLM with several stores": lambda loaded, store: KNNLM(loaded, StoreUnion([store, store])),
    "check": lambda loaded, store: check(store, loaded),
    "key_spec": lambda loaded, store: key_spec(store),
    "settings_of": lambda loaded, store: settings_of(store),
    "evaluate": lambda loaded, store: evaluate(loaded, [], store),
    "retrieve": lambda loaded, store: retrieve(loaded, [], store, k=1),
    "generate": lambda loaded, store: next(generate(loaded, [1], store=store)),
    "dump": lambda loaded, store: dump(loaded, [], store),
    "targets": lambda loaded, store: next(targets(loaded, [], Retriever(store, Settings(k=1)), 1.0)),
}


@pytest.mark.parametrize("use", LIBRARY)
@pytest.mark.parametrize(
    ("attributes", "match"),
    [
        ([1], "attributes: expected an object, found a list"),
        ({"model": "gpt2"}, "attributes.model: expected an object, found text"),
        ({"tokenizer": 7}, "attributes.tokenizer: expected an object, found an integer"),
        ({"tuned": [0.3]}, "attributes.tuned: expected an object, found a list"),
        ({"tuned": {"temperature": "hot"}}, "attributes.tuned.temperature: expected a number, found text"),
        ({"tuned": {"temperature": 0}}, "attributes.tuned.temperature: expected a positive finite number, found 0"),
        ({"representation": "ffn-input", "window": 0}, "attributes.window: expected at least 1, found 0"),
        ({"representation": "ffn-input", "key_dtype": "int3"}, "expected float16 or float32, found 'int3'"),
        ({"model": {"dtype": 16}}, "attributes.model.dtype: expected text, found an integer"),
        ({"document_start": "<s>"}, "attributes.document_start: expected an integer, found text"),
    ],
)
def test_the_library_says_it_too(use: str, attributes: Any, match: str) -> None:
    loaded = tiny()
    store = BruteForceStore(16)
    store.add(np.ones((3, 16)), [1, 2, 3], "d")
    store.attributes = attributes
    with pytest.raises(ValueError, match=f"{match}.*not written by knnlm.*set_attributes"):
        LIBRARY[use](loaded, store)


@pytest.mark.parametrize(
    ("blend", "match"),
    [
        (5, "blends.cache: expected an object, found an integer"),
        ({}, r"blends.cache.weights: expected an object, found nothing"),
        ({"weights": {"lm": 2}}, "expected weights between 0 and 1"),
        ({"weights": {"lm": 1.0}, "theta": "best"}, 'theta: expected "auto" or a number'),
        ({"weights": {"lm": 1.0}, "size": 0}, "size: expected an integer of at least 1, found 0"),
        ({"weights": {"lm": 1.0}, "order": 2.5}, "order: expected an integer of at least 1, found 2.5"),
        ({"weights": {"lm": 1.0}, "metric": "cosine"}, "metric: expected l2 or ip, found 'cosine'"),
    ],
)
def test_blends_of_others(blend: Any, match: str) -> None:
    store = BruteForceStore(16)
    store.attributes = {"tuned": {"blends": {"cache": blend}}}
    with pytest.raises(ValueError, match=match):
        check_attributes(store)
