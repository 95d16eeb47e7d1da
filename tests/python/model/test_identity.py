"""What a store remembers: which tokenizer, which document start, where its model is; and what is not the same."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from architectures import tiny_model
from cli_corpus import run, run_json
from hf_folders import KINDS, TEXT, fast, save_folder, tokenizer
from tiny_lm import Doc, TinyLoaded, texts, tiny
from tokenizers import normalizers, processors

from knnlm import KNNLM, Datastore, load_model
from knnlm.build.dump import dump
from knnlm.lm.settings import Settings
from knnlm.model.given import as_tokenizer
from knnlm.model.identity import check, describe
from knnlm.model.key_choice import resolve
from knnlm.model.key_spec import IdentityError, KeySpec, key_spec
from knnlm.model.keys import iterate
from knnlm.reference import BruteForceStore
from knnlm.text.tokenizer import BackendTokenizer, Tokenizer
from knnlm.text.tokenizer_probe import PROBE

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.mark.parametrize("kind", KINDS)
def test_one_tokenizer_loaded_in_several_ways_is_one(kind, tmp_path):
    import transformers

    folder = save_folder(tmp_path / "model", tokenizer(kind))
    ways = [
        Tokenizer.load(folder),
        load_model(folder, device="cpu").tokenizer,
        as_tokenizer(transformers.AutoTokenizer.from_pretrained(folder)),
        as_tokenizer(folder),
    ]
    text = TEXT + "Ünknown wörds: ćžš 🦜 \u200b\tx"
    for way in ways[1:]:
        np.testing.assert_array_equal(way.encode(text), ways[0].encode(text))
        assert way.fingerprint == ways[0].fingerprint
        assert way.decode(way.encode(text)) == ways[0].decode(ways[0].encode(text))


def test_the_rules_of_a_file_that_give_no_other_ids_do_not_count():
    made = tokenizer("bytes")
    first = BackendTokenizer(made).fingerprint
    dressed = tokenizer("bytes")
    dressed.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    dressed.normalizer = normalizers.Sequence([])
    assert dressed.to_str() != made.to_str()
    assert BackendTokenizer(dressed).fingerprint == first


def test_another_vocabulary_and_other_rules_are_another_tokenizer():
    found = {
        BackendTokenizer(tokenizer("bytes")).fingerprint,
        BackendTokenizer(tokenizer("bytes", size=300)).fingerprint,
    }
    other = tokenizer("bytes")
    other.add_tokens(["zebra"])
    found.add(BackendTokenizer(other).fingerprint)
    other = tokenizer("bytes")
    other.normalizer = normalizers.Lowercase()
    found.add(BackendTokenizer(other).fingerprint)
    data = json.loads(tokenizer("bytes").to_str())
    data["model"]["merges"] = data["model"]["merges"][::-1]  # the same vocabulary, other ids
    found.add(BackendTokenizer(type(other).from_str(json.dumps(data))).fingerprint)
    words = [Tokenizer.train_words(["a b c"]), Tokenizer.train_words(["a b d"])]
    assert len(found | {word.fingerprint for word in words}) == 7


def test_the_probe_stays_as_it_is():
    # Every store remembers ids of this text: another one would make each of them foreign.
    import hashlib

    assert hashlib.sha256(PROBE.encode()).hexdigest().startswith("ca378a799a1babc0")


@pytest.mark.parametrize(
    ("specials", "names", "stated", "expected"),
    [
        (("<unk>", "<s>", "</s>"), {"bos_token": "<s>", "eos_token": "</s>"}, 2, "<s>"),
        (("<|endoftext|>", "<|im_start|>", "<|im_end|>"), {"eos_token": "<|im_end|>"}, None, "<|endoftext|>"),
        (("a b", "<|start|>", "<|im_end|>"), {"eos_token": "<|im_end|>"}, 1, "<|start|>"),
        (("<unk>", "<x>", "<|im_end|>"), {"eos_token": "<|im_end|>"}, 77, "<|im_end|>"),  # 77 is a word
        (("<unk>", "<x>", "</s>"), {"unk_token": "<unk>"}, None, "</s>"),
    ],
)
def test_what_goes_in_front_of_a_document(specials, names, stated, expected):
    made = tokenizer("bytes", specials)
    config = type("Config", (), {"bos_token_id": stated})
    found = as_tokenizer(fast(made, **names), config)
    assert found.bos_id == made.token_to_id(expected)
    store = BruteForceStore(16)
    loaded = TinyLoaded(tiny_model("Llama", vocab_size=400), found)
    dump(loaded, [Doc("a", TEXT)], store, keys=KeySpec(window=20, context=10))
    assert store.attributes["document_start"] == found.bos_id
    with pytest.raises(IdentityError, match=r"token in front of a document: the store has \d+, found 99"):
        check(store, TinyLoaded(loaded.model, as_tokenizer(BackendTokenizer(made, 99))))


@pytest.mark.parametrize("kind", KINDS)
def test_documents_begin_with_the_models_own_bos(kind, tmp_path):
    loaded = load_model(save_folder(tmp_path / "model", tokenizer(kind)), device="cpu")
    fed = []
    loaded.model.register_forward_pre_hook(lambda _, args: fed.append(args[0]))
    list(iterate(loaded, [Doc("a", "the cat")], scores=False))
    assert loaded.tokenizer.bos_id == 1
    assert fed[0][0].tolist() == [1, *loaded.tokenizer.encode("the cat")[:-1].tolist()]


def test_a_vocabulary_of_another_size_is_another_one():
    loaded = tiny()
    store = BruteForceStore(16)
    store.set_attributes({**describe(loaded, KeySpec()), "vocabulary_size": 31})
    with pytest.raises(IdentityError, match="vocabulary size: the store has 31, found 30"):
        check(store, loaded)


def test_a_store_remembers_where_its_model_is(tmp_path):
    folder = save_folder(tmp_path / "models" / "tiny", tokenizer("bytes"))
    loaded = load_model(folder, device="cpu")
    (tmp_path / "stores").mkdir()
    with Datastore.create(tmp_path / "stores" / "made", dim=16) as store:
        dump(loaded, [Doc("a", TEXT)], store)
        assert store.attributes["model"]["source"] == "../../models/tiny"
        assert store.attributes["model"]["context"] == 32
    (tmp_path / "moved").mkdir()
    for name in ("models", "stores"):
        shutil.move(tmp_path / name, tmp_path / "moved" / name)
    found = run_json("generate", tmp_path / "moved" / "stores" / "made", "--prompt", "the", "--max-new-tokens", 2)
    assert isinstance(found["text"], str)
    assert describe(loaded, KeySpec())["model"]["source"] == folder.as_posix()
    assert describe(loaded, KeySpec(), source="some/hub-name", store=tmp_path)["model"]["source"] == "some/hub-name"


def test_a_model_inside_of_its_store_is_a_folder(tmp_path):
    folder = save_folder(tmp_path / "store" / "model", tokenizer("bytes"))
    source = describe(load_model(folder, device="cpu"), KeySpec(), store=tmp_path / "store")["model"]["source"]
    assert source == "./model"


def test_the_type_of_weights_follows_the_store(tmp_path):
    folder = save_folder(tmp_path / "model", tokenizer("bytes"))
    text = tmp_path / "text.txt"
    text.write_text(TEXT)
    store = tmp_path / "store"
    run("build", text, "--model", folder, "--out", store, "--dtype", "bfloat16", "--threads", 1)
    with Datastore.open(store) as opened:
        assert opened.attributes["model"]["dtype"] == "bfloat16"
    scored = run_json("eval", store, text)
    assert np.isfinite(scored["perplexity"])
    assert run_json("eval", store, text, "--dtype", "bfloat16")["perplexity"] == scored["perplexity"]
    told = run("eval", store, text, "--dtype", "float32", code=1).stderr
    assert "loaded as float32, the store is of bfloat16" in told
    assert run_json("eval", store, text, "--device-map", "cpu")["perplexity"] == scored["perplexity"]
    assert "found 'gpu'" in run("eval", store, text, "--device", "gpu", code=1).stderr
    info = run("info", store).stdout
    assert "bfloat16" in info
    assert "window 32 of the model's 32" in info


@pytest.mark.parametrize(
    "command", ["dump", "build", "add", "replace", "tune", "eval", "generate", "inspect", "export"]
)
def test_every_command_that_loads_a_model_takes_its_type(command):
    told = run(command, "--help").stdout
    assert "--dtype" in told
    assert "--trust-remote-code" in told
    assert "--revision" in told
    assert "--device-map" in told


def test_a_revision_is_asked_of_the_model_and_remembered(texts, store):
    told = run("eval", store, "text", "--revision", "v2", code=2).stderr
    assert "expected no revision of a model that knnlm train wrote" in told.replace("\n", " ")
    loaded = tiny()
    loaded.revision = "v2"
    assert describe(loaded, KeySpec())["model"]["revision"] == "v2"
    assert "revision" not in describe(tiny(), KeySpec())["model"]


def test_models_without_a_known_feed_forward_module_use_the_input_of_their_output_embedding(tmp_path):
    loaded = TinyLoaded(tiny_model("Mamba"), tiny().tokenizer)
    assert resolve(loaded) == KeySpec("module:lm_head", -1, 24, 12)
    assert resolve(loaded, KeySpec("module:backbone.norm_f")).representation == "module:backbone.norm_f"
    assert resolve(TinyLoaded(tiny_model("Llama"), tiny().tokenizer)).representation == "ffn-input"
    store = BruteForceStore(16)
    dump(loaded, texts(), store, keys=KeySpec(key_dtype="float32"))
    assert key_spec(store).representation == store.attributes["representation"] == "module:lm_head"
    read = []
    loaded.model.lm_head.register_forward_pre_hook(lambda _, args: read.append(args[0]))
    tokens = loaded.tokenizer.encode(texts()[4].text)[:20]
    with torch.inference_mode():
        loaded.model(torch.tensor([[0, *tokens[:-1].tolist()]]))
    chunk = next(
        iterate(loaded, [Doc("", texts()[4].text[:20])], captures=[("module:lm_head", -1)], key_dtype="float32")
    )
    np.testing.assert_allclose(chunk.key, read[0][0], atol=1e-6)
    lm = KNNLM(loaded, store, temperature=2.0)
    assert np.isfinite(lm.perplexity("abcd abcd"))
    assert len(lm.generate("abcd", max_new_tokens=3)) == 3


def test_the_command_says_that_another_key_was_taken(tmp_path):
    made = tokenizer("bytes")
    folder = save_folder(tmp_path / "model", made, "Mamba")
    text = tmp_path / "text.txt"
    text.write_text(TEXT)
    for command in ("build", "dump"):
        store = tmp_path / command
        told = run(command, text, "--model", folder, "--out", store, "--threads", 1).stderr
        assert "the input of its output embedding (module:lm_head) is the key" in told
        assert run_json("info", store)["attributes"]["representation"] == "module:lm_head"
        run_json("eval", store, text)


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"lambda_": float("nan")}, "lambda_: expected a weight between 0 and 1"),
        ({"lambda_": 1.5}, "lambda_"),
        ({"temperature": 0.0}, "temperature: expected a positive finite number"),
        ({"temperature": float("inf")}, "temperature"),
        ({"k": 0}, "k: expected at least 1"),
    ],
)
def test_impossible_settings_are_refused_before_the_work(given, match):
    with pytest.raises(ValueError, match=match):
        Settings(**given)
