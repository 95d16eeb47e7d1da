"""Generation: samplers, seeds, windows and KV caches, with and without a store."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from method import generate, interpolate_vocabulary
from tiny_lm import Doc, TinyLM, TinyLoaded, texts, tiny
from torch import nn
from wrapped import Peft

from knnlm.build.dump import dump
from knnlm.lm.reader import Reader
from knnlm.lm.sampler import GREEDY, Sampling, draw, kept
from knnlm.lm.settings import Settings
from knnlm.model.forward import NotFiniteError
from knnlm.model.identity import describe
from knnlm.model.key_spec import IdentityError, KeySpec
from knnlm.model.keys import iterate
from knnlm.model.transformer import TransformerConfig, TransformerLM
from knnlm.model.windows import plan
from knnlm.probability.blend import Blend
from knnlm.probability.continuous_cache import ContinuousCache
from knnlm.reference import BruteForceStore
from knnlm.text.inputs import TokenDocument


def stored(loaded, documents, dim=16):
    store = BruteForceStore(dim)
    dump(loaded, documents, store, keys=KeySpec(key_dtype="float32"))
    store.set_attributes(describe(loaded, KeySpec()))
    return store


def test_kept_tokens():
    log_p = np.log([0.1, 0.4, 0.2, 0.2, 0.1])
    assert kept(log_p, GREEDY)[0].tolist() == [1]
    assert kept(log_p, Sampling(do_sample=True, top_k=3))[0].tolist() == [1, 2, 3]
    assert kept(log_p, Sampling(do_sample=True, top_p=0.6))[0].tolist() == [1, 2]
    assert kept(log_p, Sampling(do_sample=True, top_p=0.61))[0].tolist() == [1, 2, 3]
    assert kept(log_p, Sampling(do_sample=True, top_p=1e-9))[0].tolist() == [1]
    tokens, p = kept(log_p, Sampling(do_sample=True, temperature=0.5))
    assert tokens.tolist() == [1, 2, 3, 0, 4]
    np.testing.assert_allclose(p, np.array([16, 4, 4, 1, 1]) / 26)
    tokens, p = kept([-np.inf, 0.0, -np.inf], Sampling(do_sample=True, temperature=3))
    assert (tokens.tolist(), p.tolist()) == ([1], [1.0])
    with pytest.raises(ValueError, match="positive probability"):
        kept([-np.inf, -np.inf], GREEDY)


def test_draws_follow_the_distribution():
    p = np.array([0.5, 0.3, 0.15, 0.05])
    rng = np.random.default_rng(0)
    counts = np.bincount([draw(np.log(p), Sampling(do_sample=True), rng) for _ in range(4000)], minlength=4) / 4000
    np.testing.assert_allclose(counts, p, atol=0.03)


@pytest.mark.parametrize("wrong", [{"temperature": -1}, {"top_k": 0}, {"top_p": 0}, {"top_p": 1.5}])
def test_impossible_samplers(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Sampling(**wrong)


def test_greedy_follows_the_mixture_over_many_windows():
    loaded = tiny()
    store = stored(loaded, texts())
    settings = Settings(0.5, 2.0, 6)
    prompt = loaded.tokenizer.encode("abc")
    out = list(generate(loaded, prompt, store=store, settings=settings, max_new_tokens=60))
    assert len(out) == 60
    # Scoring the generated text as a document must give each token the same probability, and name it the best.
    tokens = np.concatenate([prompt, [t.id for t in out]]).astype(np.uint32)
    chunks = list(iterate(loaded, [TokenDocument("out", tokens)], key_dtype="float32"))
    log_p_lm = np.concatenate([c.log_p for c in chunks])[3:]
    keys = np.concatenate([c.key for c in chunks])[3:]
    np.testing.assert_allclose([t.log_p_lm for t in out], log_p_lm, atol=1e-4)
    near = store.search(keys, 6)
    for t, step in enumerate(out):
        row = np.full((1, 30), -np.inf)
        row[0, step.id] = log_p_lm[t]
        mixed = interpolate_vocabulary(row, near[t : t + 1], 2.0, 0.5)[0, step.id]
        assert step.log_p == pytest.approx(mixed, abs=1e-3)


def test_seeds():
    loaded = tiny()
    prompt = loaded.tokenizer.encode("ab")

    def run(seed):
        return [t.id for t in generate(loaded, prompt, max_new_tokens=20, sampling=Sampling(do_sample=True, seed=seed))]

    assert run(1) == run(1)
    assert run(1) != run(2)


def test_stop_and_bad_prompts():
    loaded = tiny()
    greedy = [t.id for t in generate(loaded, [1, 2], max_new_tokens=9)]
    stopped = [t.id for t in generate(loaded, [1, 2], max_new_tokens=9, stop={greedy[4]})]
    assert stopped == greedy[: greedy.index(greedy[4])]
    assert list(generate(loaded, [], max_new_tokens=2))
    with pytest.raises(ValueError, match="0 to 29"):
        next(generate(loaded, [30]))


def test_lambda_ends():
    loaded = tiny()
    store = stored(loaded, [Doc("a", "abcdefgh" * 3)])
    alone = [t.id for t in generate(loaded, [2, 3], max_new_tokens=12)]
    assert [
        t.id for t in generate(loaded, [2, 3], store=store, settings=Settings(0.0, 1.0, 4), max_new_tokens=12)
    ] == alone
    retrieved = set(store.values(0, len(store)).tolist())
    ones = list(generate(loaded, [2, 3], store=store, settings=Settings(1.0, 1.0, 4), max_new_tokens=12))
    assert {t.id for t in ones} <= retrieved
    copied = generate(loaded, [], store=store, settings=Settings(1.0, 1.0, 1), max_new_tokens=24)
    assert loaded.tokenizer.decode([t.id for t in copied]) == "abcdefgh" * 3


def test_hooks_are_removed_even_when_abandoned():
    loaded = tiny()
    stream = generate(loaded, [1], store=stored(loaded, texts()))
    next(stream)
    stream.close()
    assert not any(m._forward_pre_hooks for m in loaded.model.modules())


def with_cache(kind):
    """A model with a KV cache of its own: ours, or one of Hugging Face."""
    torch.manual_seed(0)
    if kind == "TransformerLM":
        model = TransformerLM(TransformerConfig(vocab_size=30, d_model=16, n_layers=2, n_heads=2, context=24))
    else:
        transformers = pytest.importorskip("transformers")
        sizes = {"vocab_size": 30, "bos_token_id": 0, "eos_token_id": 0}
        if kind == "GPT2":
            config = transformers.GPT2Config(**sizes, n_embd=16, n_layer=2, n_head=2, n_positions=24)
        else:
            extra = {"head_dim": 8, "final_logit_softcapping": 0.5} if kind == "Gemma2" else {}
            config = getattr(transformers, f"{kind}Config")(
                **sizes,
                **extra,
                hidden_size=16,
                intermediate_size=32,
                num_hidden_layers=2,
                num_attention_heads=2,
                num_key_value_heads=2,
                max_position_embeddings=24,
            )
        model = transformers.AutoModelForCausalLM.from_config(config)
    return TinyLoaded(model.eval(), tiny().tokenizer)


@pytest.mark.parametrize("kind", ["TransformerLM", "GPT2", "Llama", "Gemma2"])
def test_kv_cache_changes_nothing(kind, monkeypatch):
    loaded = with_cache(kind)
    lengths = []
    forward = loaded.model.forward
    reader = Reader(loaded, KeySpec(window=20, context=6))
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 30, 50).tolist()
    with torch.inference_mode():
        logits, keys = [], []
        for token in tokens:
            a, key = reader.read()
            logits.append(a.log_softmax(-1).numpy())
            keys.append(key[0])
            lengths.append(reader._fed - reader._start)
            reader.extend([token])
    reader.close()
    assert loaded.model.forward == forward
    chunks = list(
        iterate(loaded, [TokenDocument("x", np.array(tokens, np.uint32))], window=20, context=6, key_dtype="float32")
    )
    np.testing.assert_allclose(
        np.array(logits)[np.arange(50), tokens], np.concatenate([c.log_p for c in chunks]), atol=1e-4
    )
    np.testing.assert_allclose(np.array(keys), np.concatenate([c.key for c in chunks]), atol=1e-4)
    assert max(lengths) == 20


def test_the_mixture_of_capped_logits_sums_to_one():
    # Gemma 2 caps its logits after the output embedding: a mixture made before that would not be a distribution.
    loaded = with_cache("Gemma2")
    store = stored(loaded, texts())
    reader = Reader(loaded, KeySpec())
    reader.extend([3, 4, 5])
    logits, key = reader.read()
    reader.close()
    assert logits.abs().max() <= 0.5
    mixed = interpolate_vocabulary(logits.log_softmax(-1).numpy()[None], store.search(key, 8), 2.0, 0.4)
    assert np.exp(mixed).sum() == pytest.approx(1, abs=1e-6)


def test_cached_steps_feed_one_token():
    loaded = with_cache("TransformerLM")
    fed = []
    loaded.model.register_forward_pre_hook(lambda _, args: fed.append(args[0].shape[1]))
    list(generate(loaded, [1, 2, 3], max_new_tokens=5))
    assert fed == [4, 1, 1, 1, 1]


def test_an_odd_model_is_left_in_the_mode_that_it_was_in():
    loaded = tiny()
    loaded.model.train()
    list(generate(loaded, [1, 2], max_new_tokens=2))
    assert loaded.model.training
    stream = generate(loaded, [1, 2])
    next(stream)
    assert not loaded.model.training
    stream.close()
    assert loaded.model.training
    loaded.model.eval()
    list(generate(loaded, [1, 2], max_new_tokens=2))
    assert not loaded.model.training


@pytest.mark.parametrize("given", ["store", "keys"])
def test_generation_runs_the_model_as_scoring_does(given):
    loaded = tiny(seed=2)
    spec = KeySpec(key_dtype="float32", autocast="bfloat16")
    store = None
    if given == "store":
        store = BruteForceStore(16)
        dump(loaded, texts(), store, keys=spec)
    out = list(generate(loaded, [1, 2], store=store, settings=Settings(0.5, 2.0, 4), keys=spec, max_new_tokens=12))
    tokens = np.array([1, 2, *(t.id for t in out)], np.uint32)

    def scored(autocast):
        (chunk,) = iterate(loaded, [TokenDocument("", tokens)], autocast=autocast)
        return chunk.log_p[2:]

    half, plain = scored("bfloat16"), scored(None)
    np.testing.assert_allclose([t.log_p_lm for t in out], half, atol=2e-2)
    assert np.abs(half - plain).max() > 1e-3
    assert np.abs([t.log_p_lm for t in out] - half).sum() < 0.5 * np.abs([t.log_p_lm for t in out] - plain).sum()
    if store is not None:
        with pytest.raises(IdentityError, match="arithmetic"):
            next(generate(loaded, [1], store=store, keys=KeySpec(autocast="float16")))


def test_a_reader_has_the_arithmetic_of_its_keys():
    keys = []
    for spec in (KeySpec(autocast="bfloat16"), KeySpec()):
        reader = Reader(tiny(), spec)
        reader.extend([1, 2, 3])
        keys.append(reader.read()[1])
        reader.close()
    (chunk,) = iterate(
        tiny(), [TokenDocument("", np.array([1, 2, 3, 1], np.uint32))], key_dtype="float32", autocast="bfloat16"
    )
    np.testing.assert_allclose(keys[0], chunk.keys["ffn-input", -1][3:], atol=1e-5)
    assert np.abs(keys[0] - keys[1]).max() > 1e-4


def test_a_prompt_that_begins_with_the_document_start_gets_no_second_one():
    loaded = tiny()
    fed = []
    loaded.model.register_forward_pre_hook(lambda _, args: fed.append(args[0].tolist()))
    one = [t.id for t in generate(loaded, [0, 2, 3], max_new_tokens=3)]
    assert fed[0] == [[0, 2, 3]]
    assert [t.id for t in generate(loaded, [2, 3], max_new_tokens=3)] == one
    fed.clear()
    next(generate(loaded, [0], max_new_tokens=1))
    next(generate(loaded, [], max_new_tokens=1))
    next(generate(loaded, [0, 0, 2], max_new_tokens=1))  # the second one is of the text
    assert fed == [[[0]], [[0]], [[0, 0, 2]]]


@pytest.mark.parametrize("length", [0, 5, 23, 24, 50])
def test_the_prompt_is_read_once_for_its_cache_too(length):
    loaded = tiny()
    loaded.model.eval()
    blend = Blend({"lm": 0.5, "knn": 0.0, "cache": 0.5}, "auto", size=100, metric="l2")
    prompt = np.random.default_rng(0).integers(1, 30, length).tolist()
    rows = []
    handle = loaded.model.register_forward_pre_hook(lambda _, args: rows.append(args[0].shape))
    list(generate(loaded, prompt, blend=blend, max_new_tokens=1))
    handle.remove()
    assert sum(batch * width for batch, width in rows) == sum(w.stop - w.start for w in plan(length + 1, 24, 12))
    # And its keys are those that scoring has.
    added = []
    cached = Blend({"lm": 0.5, "knn": 0.0, "cache": 0.5}, "auto", size=100, metric="l2")
    original = ContinuousCache.add

    def noted(self, keys, values):
        added.append((np.array(keys), np.array(values)))
        original(self, keys, values)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(ContinuousCache, "add", noted)
        list(generate(loaded, prompt, blend=cached, max_new_tokens=1))
    keys = np.concatenate([k for k, _ in added])[:length]
    assert np.concatenate([v for _, v in added])[:length].tolist() == prompt
    if length:
        document = TokenDocument("", np.array(prompt, np.uint32))
        expected = np.concatenate([c.key for c in iterate(loaded, [document], key_dtype="float32")])
        np.testing.assert_allclose(keys, expected, atol=1e-5)


def test_nan_is_told_with_its_place():
    loaded = tiny()
    with torch.no_grad():
        loaded.model.positions.weight[5] = torch.nan
    stream = generate(loaded, [1, 2], max_new_tokens=9)
    for _ in range(3):
        next(stream)
    with pytest.raises(NotFiniteError, match=r"the model gave NaN after 5 tokens.*--dtype float32"):
        next(stream)


class Fussy(TinyLM):
    """Takes a cache and gives one, and cannot read on with it."""

    def forward(self, ids, past_key_values=None, use_cache=False):
        if past_key_values is not None:
            raise ValueError("wants more than its cache")
        out = super().forward(ids)
        out.past_key_values = object() if use_cache else None
        return out


class Silent(TinyLM):
    """Takes a cache and gives none."""

    def forward(self, ids, past_key_values=None, use_cache=False):
        return super().forward(ids)


@pytest.mark.parametrize("kind", [Fussy, Silent])
def test_a_cache_that_does_not_work_is_not_used(kind):
    torch.manual_seed(0)
    plain = tiny()
    model = kind()
    model.load_state_dict(plain.model.state_dict())
    odd = TinyLoaded(model, plain.tokenizer)
    expected = [(t.id, t.log_p) for t in generate(plain, [1, 2], max_new_tokens=30)]
    assert [(t.id, t.log_p) for t in generate(odd, [1, 2], max_new_tokens=30)] == expected


@pytest.mark.parametrize("wrap", [lambda model: torch.compile(model, backend="eager"), nn.DataParallel, Peft])
def test_a_wrapped_model_uses_its_cache(wrap):
    loaded = with_cache("GPT2")
    plain = [t.id for t in generate(loaded, [1, 2, 3], max_new_tokens=5)]
    fed = []
    loaded.model.register_forward_pre_hook(lambda _, args: fed.append(args[0].shape[1]))
    loaded.model = wrap(loaded.model)
    assert [t.id for t in generate(loaded, [1, 2, 3], max_new_tokens=5)] == plain
    assert fed == [4, 1, 1, 1, 1]
