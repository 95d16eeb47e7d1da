"""The model of a store: as remembered or as given, loaded as the store wants it, and never code that a store names."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hf_folders import save_folder, tokenizer
from tiny_lm import Doc, tiny

from knnlm.build.dump import dump
from knnlm.model.given import given_model
from knnlm.model.identity import describe
from knnlm.model.key_spec import IdentityError, KeySpec
from knnlm.model.load import load_model
from knnlm.model.of_store import load_for
from knnlm.store.datastore import Datastore
from knnlm.system.usage import UsageError


class Loads:
    """Stands for `load_model`: remembers what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[tuple[Any, dict[str, Any]]] = []

    def __call__(self, name: Any, **options: Any) -> Any:
        self.asked.append((name, options))
        return tiny()


@pytest.fixture
def store(tmp_path: Path) -> Datastore:
    loaded = SimpleNamespace(**vars(tiny()), source="someone/model", revision="v2")
    made = Datastore.create(tmp_path / "store", dim=16)
    dump(loaded, [Doc("a", "abcd abcd")], made)  # type: ignore[arg-type]
    return made


def test_the_remembered_model_is_loaded_as_it_was(store: Datastore) -> None:
    load = Loads()
    load_for(store, load=load, device="cpu")
    options = {"device": "cpu", "dtype": "float32", "revision": "v2", "trust_remote_code": False}
    assert load.asked == [("someone/model", options)]


def test_what_is_given_stands_above_what_is_remembered(store: Datastore) -> None:
    load = Loads()
    load_for(store, load=load, dtype="bfloat16", revision="main", attn_implementation="eager")
    load_for(store, "other/model", load=load, trust_remote_code=True)
    first, second = (options for _, options in load.asked)
    assert (first["dtype"], first["revision"], first["attn_implementation"]) == ("bfloat16", "main", "eager")
    assert load.asked[1][0] == "other/model"
    assert (second["dtype"], second["revision"], second["trust_remote_code"]) == ("float32", None, True)


def test_a_store_is_not_trusted_to_name_code(store: Datastore) -> None:
    load = Loads()
    with pytest.raises(UsageError, match="found no model: a store is not trusted to name one"):
        load_for(store, load=load, trust_remote_code=True)
    assert load.asked == []


@pytest.mark.parametrize(
    ("model", "error", "says"),
    [
        ({"source": None}, UsageError, "remembers no model that could be loaded: give the model"),
        (
            {"source": "../gone"},
            UsageError,
            r"written by the model tiny \(fingerprint tiny\), expected at .*gone",
        ),
        ({"source": "/gone/model"}, UsageError, "expected at /gone/model, found nothing there"),
        ({"source": 7}, ValueError, "attributes.model.source: expected text, found an integer"),
        ({"revision": []}, ValueError, "attributes.model.revision: expected text, found a list"),
        ({"fingerprint": "another"}, IdentityError, "model weights"),
    ],
)
def test_a_model_that_cannot_be_had_is_said(store: Datastore, model: Any, error: type, says: str) -> None:
    attributes = store.attributes
    store.set_attributes({**attributes, "model": {**attributes["model"], **model}})
    with pytest.raises(error, match=says):
        load_for(store, load=Loads())


def test_a_store_made_by_hand_remembers_none(tmp_path: Path) -> None:
    with (
        Datastore.create(tmp_path / "store", dim=16) as store,
        pytest.raises(UsageError, match=r"store remembers no model .*\(in commands --model NAME\)"),
    ):
        load_for(store)


def test_a_given_model_is_a_name_an_object_or_that_of_the_store(tmp_path: Path) -> None:
    folder = save_folder(tmp_path / "model", tokenizer("bytes"))
    loaded = load_model(folder, device="cpu")
    with Datastore.create(tmp_path / "store", dim=16, attributes=describe(loaded, KeySpec())) as store:
        assert given_model(None, None, store, device="cpu").fingerprint == loaded.fingerprint
        assert given_model(folder, None, store, device="cpu").fingerprint == loaded.fingerprint
    assert given_model(str(folder), device="cpu").fingerprint == loaded.fingerprint
    assert given_model(loaded, device=None, trust_remote_code=False) is loaded
    own = given_model(loaded.model, loaded.tokenizer)
    assert own.fingerprint == loaded.fingerprint
    for given, says in (
        ((loaded, None), "dtype: expected it with the name of a model, found a LoadedModel that is loaded already"),
        ((folder, loaded.tokenizer), "tokenizer: expected none, as a model that is loaded by name comes with its own"),
    ):
        with pytest.raises(TypeError, match=says):
            given_model(*given, dtype="float32")


def test_arguments_of_from_pretrained_go_where_they_belong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import transformers

    folder = save_folder(tmp_path / "model", tokenizer("bytes"))
    asked: dict[str, dict[str, Any]] = {}
    for auto in ("AutoConfig", "AutoTokenizer", "AutoModelForCausalLM"):
        kind = getattr(transformers, auto)

        def recorded(name: str, *, auto: str = auto, original: Any = kind.from_pretrained, **options: Any) -> Any:
            asked.setdefault(auto, options)  # of a model, the configuration is asked for again
            return original(name, **options)

        monkeypatch.setattr(kind, "from_pretrained", recorded)
    eager = load_model(
        folder, "cpu", revision="v2", attn_implementation="eager", local_files_only=True, low_cpu_mem_usage=True
    )
    assert eager.model.config._attn_implementation == "eager"
    assert eager.revision is None  # of a folder
    for auto, options in asked.items():
        assert (options["revision"], options["local_files_only"], options["trust_remote_code"]) == ("v2", True, False)
        assert ("attn_implementation" in options) == (auto == "AutoModelForCausalLM")
    asked.clear()
    load_model(folder, "cpu")
    assert len(asked) == 3
    assert all("revision" not in options and "token" not in options for options in asked.values())


def test_wrong_arguments_of_a_model_are_refused(model: Path) -> None:
    with pytest.raises(UsageError, match="expected no revision of a model that knnlm train wrote, found 'v2'"):
        load_model(model, "cpu", revision="v2")
    with pytest.raises(TypeError, match=r"expected device and dtype alone .* found attn_implementation: no option"):
        load_model(model, "cpu", attn_implementation="eager")
    with pytest.raises(TypeError, match="expected the folder or name of a model, found a Linear"):
        load_model(torch.nn.Linear(1, 1))  # type: ignore[arg-type]
    with pytest.raises(FileNotFoundError, match=r"expected a model folder, found nothing at \./nowhere"):
        load_model("./nowhere")
    with pytest.raises(ValueError, match="device: expected it or device_map, found both"):
        load_model("name", "cpu", device_map="auto")
    assert np.isfinite(load_model(model, "cpu", torch.float64).context)
