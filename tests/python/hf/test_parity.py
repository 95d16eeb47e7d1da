"""A store beside models of every architecture: the mixture is that computed by hand, `generate` a loop over it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from architectures import ARCHITECTURES, tiny_model
from hf_folders import TEXT

from knnlm.build.dump import dump
from knnlm.hf.attach import attach
from knnlm.model.capture import Capture
from knnlm.model.given import as_loaded
from knnlm.model.key_choice import resolve
from knnlm.model.key_spec import KeySpec
from knnlm.probability.knn import sparse_p_knn
from knnlm.reference import BruteForceStore
from knnlm.text.inputs import TokenDocument

transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")

VOCABULARY = 330
"""More than the tokenizer has."""

CONTEXT = 32
K, T, LAMBDA = 6, 3.0, 0.4
STATEFUL = {"Mamba", "Mamba2", "Rwkv", "RecurrentGemma", "Jamba", "Qwen3Next", "Lfm2"}
"""They read padding in front, or re-read what beams exchange in ways of their own."""
WITHOUT_CACHE = {"OpenAIGPT", "RecurrentGemma", "Rwkv"}


@pytest.fixture(params=ARCHITECTURES, scope="module")
def case(request, words):
    """A model, its tokenizer, a text in two documents, and a store of it."""
    name = request.param
    if not hasattr(transformers, f"{name}Config"):
        pytest.skip(f"could not import {name}Config from 'transformers' {transformers.__version__}")
    transformers.logging.set_verbosity_error()
    assert words.bos_token_id not in (0, None)
    more = {"pad_token_id": 0} if "pad_token_id" in ARCHITECTURES[name] else {}
    model = tiny_model(
        name, vocab_size=VOCABULARY, bos_token_id=words.bos_token_id, eos_token_id=words.eos_token_id, **more
    )
    model.generation_config.eos_token_id = None  # a text ends where it is told to
    loaded = as_loaded(model, words)
    ids = np.array(words(TEXT)["input_ids"], np.uint32)
    documents = [TokenDocument("a", ids[:24]), TokenDocument("b", ids[24:70])]
    store = BruteForceStore(_width(model, loaded))
    spec = resolve(loaded, KeySpec(window=CONTEXT, context=0, key_dtype="float32"))
    dump(loaded, documents, store, keys=spec)
    return name, model, store, documents, loaded


def _width(model, loaded):
    spec = resolve(loaded, KeySpec())
    with torch.no_grad(), Capture(model, spec.representation, spec.layer) as capture:
        model(torch.tensor([[1, 2]]))
        return capture.keys.shape[-1]


def by_hand(model, store, spec, ids, mask=None, lambda_=LAMBDA, temperature=T, k=K):
    """log p of all words (B, T, v) of the mixture: equations 2 and 3 in plain words."""
    with torch.no_grad(), Capture(model, spec.representation, spec.layer) as capture:
        logits = model(ids, **({} if mask is None else {"attention_mask": mask})).logits
        keys = capture.keys.numpy()
    p = torch.softmax(logits.double(), -1).numpy()
    found = store.search(keys.reshape(-1, keys.shape[-1]), k)
    sparse = sparse_p_knn(found, temperature)
    knn = np.zeros((len(found.ids), p.shape[-1]))
    rows = np.repeat(np.arange(len(knn)), np.diff(sparse.offsets))
    knn[rows, sparse.tokens] = sparse.probabilities
    mixed = lambda_ * knn.reshape(p.shape) + (1 - lambda_) * p
    read = np.ones(p.shape[:2], bool) if mask is None else mask.numpy().astype(bool)
    with np.errstate(divide="ignore"):
        return np.log(np.where(read[..., None], mixed, p))


def attached(case, **settings):
    _, model, store, _, _ = case
    return attach(model, store, **{"lambda_": LAMBDA, "temperature": T, "k": K} | settings)


def some_ids(rows, columns, seed=0):
    return torch.tensor(np.random.default_rng(seed).integers(3, 300, (rows, columns)))


def test_logits_are_the_mixture_and_the_model_is_as_before(case):
    model = case[1]
    ids = some_ids(2, 9)
    with torch.no_grad():
        plain = model(ids).logits.clone()
        with attached(case, lambda_=0.0) as memory:
            assert torch.equal(model(ids).logits, plain)
            memory.set(lambda_=LAMBDA)
            mixed = model(ids).logits
            np.testing.assert_allclose(mixed.numpy(), by_hand_of(memory, ids), atol=2e-5)
            assert np.abs(mixed.double().exp().sum(-1).numpy() - 1).max() < 1e-6
            memory.set(lambda_=1.0)
            only = model(ids).logits.double().exp().numpy()
            with np.errstate(divide="ignore"):
                np.testing.assert_allclose(only, np.exp(by_hand_of(memory, ids, lambda_=1.0)), atol=1e-5)
        assert torch.equal(model(ids).logits, plain)
    for module in model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks


def by_hand_of(memory, ids, mask=None, **settings):
    """The mixture by hand, while the store is detached in all but name."""
    with memory.alone():
        return by_hand(memory.module, memory.datastore, memory.keys, ids, mask, **settings)


def test_a_store_of_the_very_text_knows_it(case):
    _, model, _, documents, loaded = case
    with attached(case, lambda_=1.0, temperature=1e-6, k=1), torch.no_grad():
        for first, document in enumerate(documents):  # both begin with the same key
            ids = document.tokens.astype(np.int64)[:CONTEXT]
            fed = torch.tensor([[loaded.tokenizer.bos_id, *ids[:-1]]])
            log_p = model(fed).logits[0].double().numpy()
            assert np.exp(-log_p[np.arange(len(ids)), ids][first:].mean()) == pytest.approx(1)


def test_padding_is_not_looked_for(case):
    name, model, _, _, _ = case
    ids, mask = some_ids(2, 9), torch.ones(2, 9, dtype=torch.int64)
    if name in STATEFUL or name in ("CTRL", "OpenAIGPT"):
        mask[1, 6:] = 0
    else:
        mask[1, :4] = 0
    with attached(case) as memory, torch.no_grad():
        mixed = model(ids, attention_mask=mask).logits.numpy()
        expected = by_hand_of(memory, ids, mask)
    np.testing.assert_allclose(mixed, expected, atol=2e-5)


def test_greedy_and_sampled_text_is_that_of_a_loop(case):
    name, model, _, _, _ = case
    ids = some_ids(2, 5)
    options = {"max_new_tokens": 6, "pad_token_id": 0, "use_cache": name not in WITHOUT_CACHE}
    with attached(case) as memory, torch.no_grad():
        greedy = model.generate(ids, do_sample=False, **options)
        torch.manual_seed(3)
        sampled = model.generate(ids, do_sample=True, top_k=0, temperature=0.7, **options)
        looped, drawn = ids, ids
        for _ in range(6):
            log_p = torch.tensor(by_hand_of(memory, looped)[:, -1])
            looped = torch.cat([looped, log_p.argmax(-1, keepdim=True)], 1)
        torch.manual_seed(3)
        for _ in range(6):
            log_p = torch.tensor(by_hand_of(memory, drawn)[:, -1]).float()
            drawn = torch.cat([drawn, torch.multinomial(torch.softmax(log_p / 0.7, -1), 1)], 1)
    assert greedy.tolist() == looped.tolist()
    assert sampled.tolist() == drawn.tolist()


def test_beams_are_those_of_a_loop(case):
    name, model, _, _, _ = case
    ids, width, steps = some_ids(1, 5, 1), 3, 4
    with attached(case) as memory, torch.no_grad():
        found = model.generate(
            ids, num_beams=width, max_new_tokens=steps, do_sample=False, pad_token_id=0,
            use_cache=name not in WITHOUT_CACHE,
        )  # fmt: skip
        beams = [(0.0, ids[0].tolist())]
        for _ in range(steps):
            log_p = by_hand_of(memory, torch.tensor([beam for _, beam in beams]))[:, -1]
            scored = [
                (score + log_p[i, word], [*beam, int(word)])
                for i, (score, beam) in enumerate(beams)
                for word in np.argsort(-log_p[i])[: 2 * width]
            ]
            beams = sorted(scored, key=lambda one: -one[0])[:width]
    assert found[0].tolist() == beams[0][1]
