"""KNNLM: one object for perplexity, log-probabilities, explanations and text, over models of any make."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from method import combiner, generate
from tiny_lm import Doc, texts, tiny

import knnlm
from knnlm.build.dump import dump
from knnlm.knn_lm import KNNLM
from knnlm.lm.settings import Settings
from knnlm.model.given import as_loaded
from knnlm.model.identity import describe
from knnlm.model.key_spec import IdentityError, KeySpec
from knnlm.model.keys import iterate
from knnlm.model.transformer import TransformerConfig, TransformerLM
from knnlm.probability.blend import Blend
from knnlm.reference import BruteForceStore
from knnlm.store.temperature import default_temperature
from knnlm.store.union import StoreUnion
from knnlm.text.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def loaded():
    return tiny()


@pytest.fixture
def store(loaded):
    store = BruteForceStore(16)
    spec = KeySpec(window=16, context=4)
    dump(loaded, texts(), store, keys=spec)
    store.set_attributes(describe(loaded, spec))
    return store


TEXT = "abcd abcd. face a cab, a bad cab."


def test_public_name():
    assert knnlm.KNNLM is KNNLM


def test_every_view_of_a_text_agrees(loaded, store):
    lm = KNNLM(loaded, store, temperature=3.0)
    log_p = lm.log_probs(TEXT)
    assert log_p.shape == (len(TEXT),)
    assert lm.perplexity(TEXT) == pytest.approx(np.exp(-log_p.mean()))
    assert lm.perplexity(TEXT, words=True) == pytest.approx(np.exp(-log_p.sum() / 8))
    explained = lm.explain(TEXT)
    np.testing.assert_allclose(explained.log_p, log_p, atol=1e-6)
    result = lm.evaluate([Doc("text", TEXT)])
    assert result.perplexity == pytest.approx(lm.perplexity(TEXT), rel=1e-6)
    alone = KNNLM(loaded, None, window=16, context=4)
    assert result.lm_perplexity == pytest.approx(alone.perplexity(TEXT), rel=1e-6)
    np.testing.assert_array_equal(lm.log_probs(loaded.tokenizer.encode(TEXT)), log_p)


def test_settings_come_from_the_store_unless_given(loaded, store):
    assert KNNLM(loaded, store).settings == Settings(0.25, default_temperature(store), min(1024, len(store)))
    store.set_attributes({**store.attributes, "tuned": {"lambda_": 0.5, "temperature": 4.0, "k": 8, "nprobe": 3}})
    lm = KNNLM(loaded, store)
    assert lm.settings == Settings(0.5, 4.0, 8, nprobe=3)
    assert (lm.keys.window, lm.keys.context) == (16, 4)
    assert KNNLM(loaded, store, lambda_=0.0, k=2).settings == Settings(0.0, 4.0, 2, nprobe=3)
    assert "0.5" in repr(lm)


def test_lambda_zero_is_the_lm_bit_for_bit(loaded, store):
    plain = np.concatenate([c.log_p for c in iterate(loaded, [Doc("", TEXT)], window=16, context=4)])
    assert KNNLM(loaded, store, lambda_=0.0).log_probs(TEXT).tobytes() == plain.tobytes()


def test_stored_text_leaves_itself_out_unless_told(loaded, store):
    text = "abcdefgh ijklmnopqrst"  # shorter than a window, and no beginning of it comes twice
    store = BruteForceStore(16)
    dump(loaded, [Doc("a", text), Doc("b", "abd ")], store)
    one = KNNLM(loaded, store, lambda_=1.0, temperature=1e-3, k=1)
    assert one.perplexity(text, exclude="none") == pytest.approx(1.0)
    assert one.perplexity(text) == np.inf
    assert one.perplexity(text, exclude="entry") == np.inf


def test_generation(loaded, store):
    lm = KNNLM(loaded, store)
    text = lm.generate("abc", max_new_tokens=30)
    assert len(text) == 30
    assert "".join(lm.stream("abc", max_new_tokens=30)) == text
    assert lm.generate("abc", max_new_tokens=30, do_sample=True, seed=5) == lm.generate(
        "abc", max_new_tokens=30, do_sample=True, seed=5
    )
    assert lm.generate([2, 3, 4], max_new_tokens=30) == text
    assert KNNLM(loaded, None).generate("abc", max_new_tokens=4) == KNNLM(loaded, store, lambda_=0.0).generate(
        "abc", max_new_tokens=4
    )
    cut = lm.generate("abc", max_new_tokens=30, stop=[loaded.tokenizer.encode(text[6])[0]])
    assert cut == text[: text.index(text[6])]


def test_without_a_store(loaded):
    lm = KNNLM(loaded, None)
    assert np.isfinite(lm.perplexity(TEXT))
    assert np.isnan(lm.perplexity(""))
    with pytest.raises(ValueError, match="datastore"):
        lm.explain(TEXT)
    with pytest.raises(ValueError, match="datastore"):
        lm.evaluate([])


def test_several_stores_are_one(loaded, store):
    halves = StoreUnion([store, store])
    a = KNNLM(loaded, halves, temperature=2.0, k=8, window=16, context=4).log_probs(TEXT)
    b = KNNLM(loaded, store, temperature=2.0, k=4).log_probs(TEXT)
    np.testing.assert_allclose(a, b, atol=1e-5)


def test_every_store_of_a_union_is_checked(loaded, store):
    plain = BruteForceStore(16)
    assert KNNLM(loaded, StoreUnion([plain, store])).keys.window == 16  # as the store says, not the model's context
    foreign = BruteForceStore(16)
    foreign.set_attributes({**store.attributes, "model": {"name": "other", "fingerprint": "another"}})
    with pytest.raises(IdentityError, match=r"model weights.*written by other"):
        KNNLM(loaded, StoreUnion([store, foreign]))
    for name, value in (("window", 8), ("layer", -2), ("autocast", "bfloat16")):
        foreign.set_attributes({**store.attributes, name: value})
        with pytest.raises(ValueError, match=rf"made alike, found {name}"):
            StoreUnion([store, foreign])


def test_cache_without_a_store(loaded):
    lm = KNNLM(loaded, None, cache=True, lambda_=0.4, temperature=5.0, window=16, context=4)
    [chunk] = iterate(loaded, [Doc("", TEXT)], captures=[("ffn-input", -1)], key_dtype="float32", window=16, context=4)
    p_lm, expected = np.exp(chunk.log_p.astype(float)), []
    for t in range(len(TEXT)):  # one token at a time, against what came before it
        weights = np.exp(-((chunk.key[:t].astype(float) - chunk.key[t]) ** 2).sum(1) / 5.0)
        said = chunk.tokens[:t] == chunk.tokens[t]
        expected.append(0.6 * p_lm[t] + 0.4 * weights[said].sum() / weights.sum() if t else p_lm[t])
    np.testing.assert_allclose(np.exp(lm.log_probs(TEXT)), expected, rtol=1e-4)
    untuned = KNNLM(loaded, None, cache=True)
    assert untuned.perplexity(TEXT * 4) < KNNLM(loaded, None).perplexity(TEXT * 4)  # what comes again is found
    assert np.isnan(untuned.perplexity(""))
    with pytest.raises(ValueError, match="knnlm tune"):
        KNNLM(loaded, None, cache=True, ngram=True)


@pytest.mark.parametrize("with_store", [False, True])
def test_generation_and_scoring_agree_with_a_cache(loaded, store, with_store):
    weights = {"lm": 0.2, "knn": 0.3, "cache": 0.5} if with_store else {"lm": 0.5, "knn": 0.0, "cache": 0.5}
    blend = Blend(weights, "auto", size=12, metric="l2")
    spec, settings = KeySpec(window=16, context=4), Settings(0.25, 3.0, 8)
    prompt = loaded.tokenizer.encode("abcd abcd ab")
    pieces = list(
        generate(
            loaded,
            prompt,
            store=store if with_store else None,
            settings=settings,
            keys=spec,
            blend=blend,
            max_new_tokens=9,
        )
    )
    search = {"temperature": 3.0, "k": 8} if with_store else {}
    lm = KNNLM(loaded, store if with_store else None, **search, window=16, context=4)
    lm.combiner = combiner(settings, blend)
    text = np.concatenate([prompt, [piece.id for piece in pieces]])
    scored = lm.log_probs(text, exclude="none")[len(prompt) :]
    np.testing.assert_allclose([piece.log_p for piece in pieces], scored, atol=1e-3)


@pytest.mark.parametrize("autocast", [None, "bfloat16"])
def test_the_arithmetic_holds_for_every_use(loaded, autocast):
    seen = []
    handle = loaded.model.blocks[0].register_forward_pre_hook(lambda *_: seen.append(torch.is_autocast_enabled("cpu")))
    lm = KNNLM(loaded, None, autocast=autocast)
    lm.perplexity("abcd")
    lm.generate("abcd", max_new_tokens=2)
    KNNLM(loaded, None, cache=True, autocast=autocast).generate("abcd", max_new_tokens=2)
    handle.remove()
    assert set(seen) == {autocast is not None}


def test_another_model_is_refused(store):
    other = tiny(seed=1)
    other.fingerprint = "other"
    with pytest.raises(IdentityError, match="model weights"):
        KNNLM(other, store)
    with pytest.raises(IdentityError, match="layer"):
        KNNLM(tiny(), store, layer=-2)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"window": 20}, "window 20 where the store has 16"),
        ({"context": 2}, "context 2 where the store has 4"),
        ({"window": 8, "context": 1}, "window 8 .* and context 1 where"),
    ],
)
def test_queries_of_another_window_than_the_stores_keys_are_warned_of(loaded, store, given, says):
    with pytest.warns(UserWarning, match=says):
        lm = KNNLM(loaded, store, **given)
    with pytest.warns(UserWarning, match=says):
        assert np.isfinite(lm.perplexity(TEXT))
    # The suite makes warnings errors: none of these warns.
    KNNLM(loaded, store, window=16, context=4).perplexity(TEXT)
    store.set_attributes({})
    KNNLM(loaded, store, **given).perplexity(TEXT)


def test_a_module_with_its_tokenizer():
    torch.manual_seed(0)
    tokenizer = Tokenizer.train_words(["a b c d a b"])
    config = TransformerConfig(tokenizer.vocab_size, d_model=16, n_layers=2, n_heads=2, context=12)
    model = TransformerLM(config)
    with pytest.raises(TypeError, match="tokenizer"):
        KNNLM(model, None)
    lm = KNNLM(model, None, tokenizer=tokenizer)
    assert lm.loaded.context == 12
    store = BruteForceStore(16)
    dump(lm.loaded, [Doc("a", "a b c d\n" * 9)], store)
    store.set_attributes(describe(lm.loaded, KeySpec()))
    lm = KNNLM(model, store, tokenizer=tokenizer)
    assert np.isfinite(lm.perplexity("a b a b"))
    assert isinstance(lm.generate("a b", max_new_tokens=3), str)
    with torch.no_grad():
        model.final_norm.bias.add_(1.0)
    with pytest.raises(IdentityError, match="model weights"):
        KNNLM(model, store, tokenizer=tokenizer)


def test_a_hugging_face_model_and_tokenizer():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    own = Tokenizer.train_bpe(["some text to learn from"], 300)
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=own._backend, bos_token="<|endoftext|>")
    config = transformers.GPT2Config(
        vocab_size=own.vocab_size, n_embd=16, n_layer=2, n_head=2, n_positions=16, bos_token_id=0, eos_token_id=0
    )
    model = transformers.AutoModelForCausalLM.from_config(config)
    lm = KNNLM(model, None, tokenizer=fast)
    assert lm.loaded.context == 16
    assert lm.log_probs("some text").shape == own.encode("some text").shape
    assert lm._stop() == (0,)
    assert as_loaded(lm.loaded) is lm.loaded
    with pytest.raises(TypeError, match="fast Hugging Face"):
        KNNLM(model, None, tokenizer=object())
