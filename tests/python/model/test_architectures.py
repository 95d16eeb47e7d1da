"""Models of many architectures: keys, scores, the head in chunks, and generation with the model's own cache."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from architectures import ARCHITECTURES, CONTEXT, VOCABULARY, tiny_model
from tiny_lm import TinyLoaded, tiny

from knnlm.lm.reader import Reader
from knnlm.model import forward
from knnlm.model.head import chunked_head
from knnlm.model.key_choice import resolve
from knnlm.model.key_spec import KeySpec
from knnlm.model.keys import iterate_as
from knnlm.model.suitable import check_causal
from knnlm.text.inputs import TokenDocument

transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

RE_READ = {"OpenAIGPT", "RecurrentGemma"}
"""Architectures without a cache in arguments and output: the window is read again for every token."""


@pytest.fixture(params=ARCHITECTURES, scope="module")
def loaded(request):
    name = request.param
    if not hasattr(transformers, f"{name}Config"):
        pytest.skip(f"could not import {name}Config from 'transformers' {transformers.__version__}")
    transformers.logging.set_verbosity_error()
    return TinyLoaded(tiny_model(name), tiny().tokenizer, context=CONTEXT, name=name)


def some_tokens(count, seed=0):
    return np.random.default_rng(seed).integers(3, VOCABULARY, count).astype(np.uint32)


def spec_of(loaded):
    return resolve(loaded, KeySpec(window=24, context=8, key_dtype="float32"))


def test_a_model_is_causal_and_has_keys_of_its_width(loaded):
    check_causal(loaded.model, loaded.name)
    spec = spec_of(loaded)
    assert spec.representation == ("module:lm_head" if loaded.name.startswith("Mamba") else "ffn-input")
    (chunk,) = iterate_as(loaded, [TokenDocument("a", some_tokens(5))], spec)
    assert chunk.key.shape[0] == 5
    assert np.isfinite(chunk.log_p).all()


def test_scores_do_not_depend_on_the_batch_or_on_how_logits_are_made(loaded, monkeypatch):
    spec = spec_of(loaded)
    documents = [TokenDocument(str(i), some_tokens(n, i)) for i, n in enumerate((50, 3, 24, 31))]

    def scored(documents, **options):
        chunks = list(iterate_as(loaded, documents, spec, **options))
        return np.concatenate([c.log_p for c in chunks]), np.concatenate([c.key for c in chunks])

    together = scored(documents)
    alone = [scored([document]) for document in documents]
    np.testing.assert_allclose(together[0], np.concatenate([a for a, _ in alone]), atol=1e-4)
    np.testing.assert_allclose(together[1], np.concatenate([b for _, b in alone]), atol=1e-4)
    monkeypatch.setattr(forward, "LOGITS", 10 * VOCABULARY)
    in_chunks = scored(documents)
    np.testing.assert_allclose(in_chunks[0], together[0], atol=1e-6)
    np.testing.assert_array_equal(in_chunks[1], together[1])
    keys = np.concatenate([c.key for c in iterate_as(loaded, documents, spec, scores=False)])
    np.testing.assert_array_equal(keys, together[1])


def test_logits_in_chunks_are_the_models_own(loaded):
    ids = torch.tensor(some_tokens(24).reshape(2, 12).astype(np.int64))
    with torch.inference_mode():
        head = chunked_head(loaded.model)
        assert head is not None
        whole = loaded.model(ids).logits.reshape(24, -1)
        order = torch.arange(24).flip(0)
        parts = torch.cat(list(head.logits(head.read(ids), order, 5))).flip(0)
    torch.testing.assert_close(parts, whole, rtol=0, atol=1e-6)


def test_generation_reads_what_scoring_reads(loaded):
    spec, tokens = spec_of(loaded), some_tokens(50)
    fed = []
    handle = loaded.model.register_forward_pre_hook(lambda _, args: fed.append(args[0].shape[1]))
    reader = Reader(loaded, spec)
    log_p, keys = [], []
    try:
        for token in tokens.tolist():
            logits, key = reader.read()
            log_p.append(float(logits.log_softmax(-1)[token]))
            keys.append(key[0])
            reader.extend([token])
    finally:
        reader.close()
        handle.remove()
    (chunk,) = iterate_as(loaded, [TokenDocument("a", tokens)], spec)
    np.testing.assert_allclose(log_p, chunk.log_p, atol=2e-4)
    np.testing.assert_allclose(np.array(keys), chunk.key, atol=2e-4)
    if loaded.name not in RE_READ:  # one token at a time, but where a window begins: at 24, then every 16
        assert [count for count in fed if count > 1] == [9, 9]
