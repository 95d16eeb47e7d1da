"""The same weights under another configuration are another model, and the message says which setting it is."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from architectures import tiny_model
from cli_corpus import run, run_json
from hf_folders import TEXT, save_folder, tokenizer
from tiny_lm import LetterTokenizer, TinyLM, TinyLoaded, texts, tiny

from knnlm import KNNLM, Datastore, load_model
from knnlm.build.dump import dump
from knnlm.build.one_pass import build_in_one_pass
from knnlm.model.identity import check, describe
from knnlm.model.key_spec import IdentityError, KeySpec
from knnlm.model.load import LoadedModel
from knnlm.model.probe import LENGTH, distance, probe_of, settings_of_model, tolerance
from knnlm.reference import BruteForceStore
from knnlm.store.union import StoreUnion
from knnlm.text.inputs import TokenDocument

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model whose attention matters, as in a trained one."""
    where = save_folder(tmp_path_factory.mktemp("probe") / "model", tokenizer("bytes"))
    model = load_model(where, device="cpu").model
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2:
                parameter *= 20 if "proj" in name and "mlp" not in name else 5
    model.save_pretrained(where)
    return where


def configured(folder, tmp_path, **settings):
    """A copy of a model's folder under another configuration."""
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    config = json.loads((copy / "config.json").read_text())
    for name, value in settings.items():
        holder = config["rope_parameters"] if name == "rope_theta" and "rope_parameters" in config else config
        holder[name] = value
    (copy / "config.json").write_text(json.dumps(config))
    return copy


@pytest.mark.parametrize(
    "settings",
    [
        {"num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 4},
        {"rope_theta": 1_000_000.0},
        {"rms_norm_eps": 0.1},
        {"hidden_act": "relu"},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_another_configuration_is_refused_by_name(folder, settings, tmp_path):
    store = BruteForceStore(16)
    loaded = load_model(folder, device="cpu")
    dump(loaded, texts(), store, keys=KeySpec(window=32))
    check(store, load_model(folder, device="cpu"))
    other = load_model(configured(folder, tmp_path, **settings), device="cpu")
    assert other.fingerprint == loaded.fingerprint
    for use in (lambda: check(store, other), lambda: KNNLM(other, store), lambda: dump(other, texts(), store)):
        with pytest.raises(IdentityError, match="what the model computes: its weights are the store's") as error:
            use()
        assert f"{next(iter(settings))} " in str(error.value)
        assert f"(now {next(iter(settings.values()))!r})" in str(error.value)
        assert "Load it with the configuration and the code that it had" in str(error.value)


def test_the_command_refuses_it_too(folder, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text(TEXT)
    run_json("build", text, "--model", folder, "--out", tmp_path / "store", "--threads", 1)
    assert len(run_json("info", tmp_path / "store")["attributes"]["model"]["probe"]) == 2 * LENGTH
    other = configured(folder, tmp_path, rope_theta=1_000_000.0)
    told = run("eval", tmp_path / "store", text, "--model", other, code=1).stderr
    assert "rope_theta 10000.0 (now 1000000.0)" in told
    assert "Traceback" not in told
    run_json("eval", tmp_path / "store", text)


def test_attention_kernels_and_settings_that_change_nothing_are_the_same_model(folder, tmp_path):
    loaded = load_model(folder, device="cpu")
    store = BruteForceStore(16)
    store.set_attributes(describe(loaded, KeySpec(window=32)))
    check(store, load_model(configured(folder, tmp_path, use_cache=False, attention_dropout=0.5), device="cpu"))
    loaded.model.set_attn_implementation("eager")
    check(store, LoadedModel(loaded.model, loaded.tokenizer, loaded.context, "eager"))


def test_settings_that_matter_further_on_are_told(recwarn):
    torch.manual_seed(0)
    model = tiny_model("Mistral", sliding_window=None, max_position_embeddings=512)
    loaded = LoadedModel(model, LetterTokenizer(), 512, "mistral")
    store = BruteForceStore(16)
    store.set_attributes(describe(loaded, KeySpec()))
    check(store, LoadedModel(model, LetterTokenizer(), 512, "mistral"))
    assert not [w for w in recwarn if "was written with" in str(w.message)]
    other = tiny_model("Mistral", sliding_window=300, max_position_embeddings=512)
    other.load_state_dict(model.state_dict())
    with pytest.warns(UserWarning, match=r"written with sliding_window None \(now 300\): on a short text"):
        check(store, LoadedModel(other, LetterTokenizer(), 512, "mistral"))


def test_one_model_with_less_context_is_the_same_model():
    torch.manual_seed(0)
    model = tiny_model("Llama", max_position_embeddings=512)
    store = BruteForceStore(16)
    store.set_attributes(describe(LoadedModel(model, LetterTokenizer(), 512, "llama"), KeySpec(window=32)))
    check(store, LoadedModel(model, LetterTokenizer(), 40, "llama"))
    check(store, LoadedModel(model, LetterTokenizer(), 300, "llama"))


def test_an_interrupted_build_goes_on_where_the_probe_differs_a_little(tmp_path):
    def loaded(shift):
        made = LoadedModel(model, LetterTokenizer(), 24, "tiny")
        made.__dict__["probe"] = [x + shift * sign for x, sign in zip(probe, [1, -1] * LENGTH, strict=True)]
        return made

    def build(loaded, progress=None):
        keys = KeySpec(window=24, context=12)
        documents = [TokenDocument(d.name, LetterTokenizer().encode(d.text)) for d in texts(8)]
        attributes = describe(loaded, keys)
        return build_in_one_pass(
            tmp_path / "store", loaded, lambda: documents, keys=keys, dim=16, attributes=attributes, part_tokens=50,
            threads=1, progress=progress,
        )  # fmt: skip

    def kill(stage, done, total):
        if stage == "encode":
            raise KeyboardInterrupt

    torch.manual_seed(0)
    model = TinyLM()
    probe = probe_of(LoadedModel(model, LetterTokenizer(), 24, "tiny"))
    with pytest.raises(KeyboardInterrupt):
        build(loaded(0.0), kill)
    with pytest.raises(IdentityError, match="what the model computes"):
        build(loaded(1.0))
    assert build(loaded(1e-4)).resumed_parts >= 1
    joined = StoreUnion([Datastore.open(tmp_path / "store"), Datastore.open(tmp_path / "store")])
    assert joined.attributes["model"]["probe"]


def test_stores_of_one_model_join_whatever_the_last_digits_of_their_probes():
    torch.manual_seed(0)
    attributes = describe(LoadedModel(TinyLM(), LetterTokenizer(), 24, "tiny"), KeySpec())
    other = {**attributes, "model": {**attributes["model"], "probe": [-1.0] * 2 * LENGTH}}
    stores = [BruteForceStore(16), BruteForceStore(16)]
    for store, told in zip(stores, (attributes, other), strict=True):
        store.set_attributes(told)
    assert StoreUnion(stores).attributes["model"]["fingerprint"] == attributes["model"]["fingerprint"]


class Scaled(TinyLM):
    """A model with a buffer that no file of weights holds."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.tensor(1.0), persistent=False)

    def forward(self, ids):
        return SimpleNamespace(logits=self.scale * super().forward(ids).logits)


def test_another_buffer_is_another_model():
    torch.manual_seed(0)
    model = Scaled()
    store = BruteForceStore(16)
    store.set_attributes(describe(LoadedModel(model, LetterTokenizer(), 24, "scaled"), KeySpec()))
    check(store, LoadedModel(model, LetterTokenizer(), 24, "scaled"))
    model.scale.fill_(1.5)
    with pytest.raises(IdentityError, match=r"its code or its buffers are others\. Load it with the configuration"):
        check(store, LoadedModel(model, LetterTokenizer(), 24, "scaled"))


def test_models_that_cannot_be_asked_are_not_compared():
    torch.manual_seed(0)
    loaded = LoadedModel(TinyLM(), LetterTokenizer(), 24, "tiny")
    store = BruteForceStore(16)
    store.set_attributes(describe(loaded, KeySpec()))
    with torch.no_grad():
        loaded.model.final_norm.bias.fill_(float("nan"))
    assert probe_of(loaded) is None
    attributes = describe(LoadedModel(loaded.model, loaded.tokenizer, 24, "nan"), KeySpec())
    assert "probe" not in attributes["model"]
    assert loaded.fingerprint == store.attributes["model"]["fingerprint"]
    check(store, TinyLoaded(loaded.model, loaded.tokenizer, loaded.fingerprint))  # somebody's own class


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_distance_has_no_unit(dtype):
    rng = np.random.default_rng(0)
    stored = rng.normal(-10, 5, 128)
    for scale in (0.01, 1.0):
        noise = rng.normal(0, 1, 128) * 5 * tolerance(dtype)
        assert distance(stored * scale, (stored + 0.9 * noise) * scale) < tolerance(dtype)
        assert distance(stored * scale, (stored + 2 * noise) * scale) > tolerance(dtype)
    assert distance(stored, stored[:-1]) == distance([], []) == np.inf


def test_a_damaged_probe_is_refused(tmp_path):
    loaded = LoadedModel(tiny().model, LetterTokenizer(), 24, "tiny")
    with Datastore.create(tmp_path / "store", dim=16, attributes=describe(loaded, KeySpec())) as store:
        for probe, found in (("text", "text"), ([1, "x"], r"\[1, 'x'\]"), ({}, "an object")):
            attributes = {**store.attributes, "model": {**store.attributes["model"], "probe": probe}}
            store.set_attributes(attributes)
            with pytest.raises(ValueError, match=f"attributes.model.probe: expected .*found {found}"):
                check(store, loaded)


def test_settings_are_single_values_by_name():
    settings = settings_of_model(tiny_model("Llama"))
    assert settings["num_attention_heads"] == 2
    assert any(name.endswith("rope_theta") for name in settings)
    assert not any(isinstance(value, (dict, list)) for value in settings.values())
    assert not {"transformers_version", "dtype", "torch_dtype", "architectures"} & set(settings)
    assert settings_of_model(TinyLM()) == {}
