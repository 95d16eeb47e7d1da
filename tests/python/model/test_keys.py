"""Keys and log-probabilities of documents: equal to one token at a time, in corpus order, within bounded batches."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from one_pass_corpus import DIM, build, load_tiny
from tiny_lm import Doc, texts, tiny

from knnlm.build.dump import dump
from knnlm.lm.distill import targets
from knnlm.lm.retriever import Retriever
from knnlm.lm.settings import Settings
from knnlm.model.capture import REPRESENTATIONS, Capture
from knnlm.model.identity import describe
from knnlm.model.key_spec import IdentityError, KeySpec
from knnlm.model.keys import iterate
from knnlm.model.transformer import TransformerConfig, TransformerLM
from knnlm.model.windows import plan
from knnlm.reference import BruteForceStore
from knnlm.store.datastore import Datastore
from knnlm.text.inputs import TokenDocument


def one_token_at_a_time(loaded, tokens, window, context):
    """log p and key of each token, from a forward pass of its own over what its window lets it see."""
    log_p, keys = [], []
    inputs = [loaded.tokenizer.bos_id, *tokens.tolist()]
    with torch.inference_mode(), Capture(loaded.model) as capture:
        for w in plan(len(tokens), window, context):
            for t in range(w.score_from, w.stop):
                logits = loaded.model(torch.tensor([inputs[w.start : t + 1]])).logits[0, -1].double()
                log_p.append(float(logits.log_softmax(-1)[inputs[t + 1]]))
                keys.append(capture.keys[0, -1].numpy())
    return np.array(log_p), np.array(keys)


@pytest.mark.parametrize(("window", "context"), [(24, 12), (24, 0), (7, 3), (5, 4)])
@pytest.mark.parametrize("batch_tokens", [None, 8, 100])
def test_equals_one_token_at_a_time(window, context, batch_tokens):
    loaded = tiny()
    loaded.model.eval()
    documents = texts()
    chunks = list(
        iterate(loaded, documents, window=window, context=context, key_dtype="float32", batch_tokens=batch_tokens)
    )
    assert [c.index for c in chunks] == sorted(c.index for c in chunks)
    for index, document in enumerate(documents):
        mine = [c for c in chunks if c.index == index]
        tokens = loaded.tokenizer.encode(document.text)
        assert [c.start for c in mine] == np.cumsum([0, *(len(c.tokens) for c in mine)])[: len(mine)].tolist()
        assert [c.last for c in mine] == [False] * (len(mine) - 1) + [True] * bool(mine)
        if not mine:
            assert not len(tokens)
            continue
        np.testing.assert_array_equal(np.concatenate([c.tokens for c in mine]), tokens)
        log_p, keys = one_token_at_a_time(loaded, tokens, window, context)
        np.testing.assert_allclose(np.concatenate([c.log_p for c in mine]), log_p, atol=2e-5)
        np.testing.assert_allclose(np.concatenate([c.key for c in mine]), keys, atol=2e-5)


def test_every_representation_from_one_pass():
    loaded = tiny()
    names = [(r, layer) for r in REPRESENTATIONS for layer in (-1, -2)]
    together = list(iterate(loaded, texts(), captures=names, batch_tokens=64))
    for name in names:
        alone = list(iterate(loaded, texts(), captures=[name], batch_tokens=64))
        for a, b in zip(together, alone, strict=True):
            np.testing.assert_array_equal(a.keys[name], b.key)
            assert b.key.dtype == np.float16


def test_logits_of_context_are_not_computed():
    torch.manual_seed(0)
    loaded = tiny()
    loaded.model = TransformerLM(TransformerConfig(vocab_size=30, d_model=16, n_layers=2, n_heads=2, context=24))
    loaded.model.eval()
    rows = []
    loaded.model.lm_head.register_forward_hook(lambda _, __, out: rows.append(out.shape[0] * out.shape[1]))
    text = "abcdefgh" * 12
    (chunk,) = iterate(loaded, [Doc("a", text)], window=24, context=12, key_dtype="float32")
    assert sum(rows) == len(text)
    log_p, keys = one_token_at_a_time(loaded, loaded.tokenizer.encode(text), 24, 12)
    np.testing.assert_allclose(chunk.log_p, log_p, atol=2e-5)
    np.testing.assert_allclose(chunk.key, keys, atol=2e-5)


def test_bfloat16_is_close():
    loaded = tiny()
    plain = np.concatenate([c.log_p for c in iterate(loaded, texts())])
    fast = np.concatenate([c.log_p for c in iterate(loaded, texts(), autocast="bfloat16")])
    assert plain.dtype == fast.dtype == np.float32
    np.testing.assert_allclose(fast, plain, atol=0.1)
    assert np.abs(fast - plain).max() > 0


def test_memory_does_not_grow_with_the_corpus():
    loaded = tiny()
    read = 0

    def endless():
        nonlocal read
        for i in range(10**9):
            read += 1
            yield Doc(f"doc {i}", "abc " * 10)

    chunks = iterate(loaded, endless(), batch_tokens=80)
    for _ in range(5):
        next(chunks)
    assert read < 100


def test_the_model_is_left_as_it_was():
    loaded = tiny()
    loaded.model.train()
    chunks = iterate(loaded, texts())
    next(chunks)
    chunks.close()
    assert loaded.model.training
    assert not any(m._forward_pre_hooks for m in loaded.model.modules())


class Writes:
    """A store that notes its calls."""

    def __init__(self) -> None:
        self.calls: list[tuple] = []
        self.commits = 0

    def add(self, keys, values, document=None, metadata=None):
        self.calls.append((np.array(keys), np.array(values), document, metadata))

    def commit(self):
        self.commits += 1

    def discard(self):
        self.calls.clear()


def test_dump_writes_whole_documents_in_order():
    loaded = tiny()
    documents = [*texts(), Doc("same", "ab"), Doc("same", "cd", {"n": 2}), Doc("long", "abc " * 60, {"n": 3})]
    store = BruteForceStore(16)
    seen = []
    result = dump(loaded, documents, store, batch_tokens=24, progress=lambda *a: seen.append(a), total=1000)
    lengths = [len(d.text) for d in documents]
    assert (result.tokens, result.documents, result.empty_documents) == (sum(lengths), 8, 1)
    assert [d.stop - d.start for d in store.documents()] == [n for n in lengths if n]
    assert [d.name for d in store.documents()][-3:] == ["same", "same (2)", "long"]
    assert store.documents()[-1].metadata == {"n": 3}
    text = "".join(d.text for d in documents)
    assert loaded.tokenizer.decode(store.values(0, len(store))) == text
    assert seen[-1] == ("dump", len(text), 1000)


def test_progress_is_told_after_each_forward_pass():
    loaded = tiny()
    seen = []
    options = {"batch_tokens": 24, "progress": lambda *call: seen.append(call), "total": 240}
    chunks = list(iterate(loaded, [Doc("long", "abc " * 60)], **options))
    assert len(chunks) < len(seen)
    assert [done for _, done, _ in seen] == sorted({done for _, done, _ in seen})
    assert seen[-1] == ("model", 240, 240)
    assert len(list(iterate(loaded, [Doc("long", "abc " * 60)], batch_tokens=24, pool_batches=1))) > len(chunks)


def test_every_document_gets_a_name_of_its_own(tmp_path):
    loaded = tiny()
    names = ["a", "b", "a", "", "a (2)", "a", ""]
    with Datastore.create(tmp_path / "store", dim=16) as store:
        for _ in range(2):
            dump(loaded, [Doc(name, "abc"[: 1 + i % 3]) for i, name in enumerate(names)], store)
        found = [d.name for d in store.documents()]
        assert found[:7] == ["a", "b", "a (2)", "document 4", "a (2) (2)", "a (3)", "document 7"]
        assert len(set(found)) == 14
        assert all(store.find_document(name) == i for i, name in enumerate(found))


def test_the_first_dump_says_whose_store_it_is(tmp_path):
    loaded, spec = tiny(), KeySpec(representation="ffn-input", layer=0, window=16, context=4, key_dtype="float32")
    with Datastore.create(tmp_path / "store", dim=16, keep_keys="float32", attributes={"mine": 1}) as store:
        dump(loaded, [Doc("empty", "")], store, keys=spec)
        assert store.attributes == {"mine": 1}
        dump(loaded, [Doc("a", "abc " * 9)], store, keys=spec)
        assert store.attributes == {**describe(loaded, spec), "mine": 1}
        dump(loaded, [Doc("b", "abc " * 9)], store)  # as the store says
        half = len(store) // 2
        np.testing.assert_array_equal(store.keys(0, half), store.keys(half, 2 * half))
    with Datastore.create(tmp_path / "vectors", dim=16, keep_keys="float32") as store:
        store.add(np.zeros((2, 16)), [1, 2], document="from elsewhere")
        dump(loaded, [Doc("a", "abc")], store)
        assert store.attributes == {}  # nobody knows how the keys that were there are made


def test_a_dump_to_a_store_of_another_model_is_refused(tmp_path):
    loaded = tiny()
    with Datastore.create(tmp_path / "store", dim=16, keep_keys="float32") as store:
        dump(loaded, [Doc("a", "abc")], store)
        generation = store.generation
        other = tiny(seed=1)
        other.fingerprint = "another"
        with pytest.raises(IdentityError, match="model weights"):
            dump(other, [Doc("b", "abc")], store)
        with pytest.raises(IdentityError, match="layer"):
            dump(loaded, [Doc("b", "abc")], store, keys=KeySpec(layer=0))
        assert (len(store), store.generation) == (3, generation)


def test_an_interrupted_dump_publishes_nothing():
    store = Writes()

    def interrupted():
        yield Doc("a", "abc " * 50)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        dump(tiny(), interrupted(), store, batch_tokens=24)
    assert not store.calls
    assert store.commits == 1
    dump(tiny(), [Doc("a", "abc")], store, keys=KeySpec(key_dtype="float32"))
    assert store.commits == 3
    assert store.calls[-1][0].dtype == np.float32


def test_tokens_may_be_given():
    loaded = tiny()
    text = "abc abd."
    a = next(iterate(loaded, [Doc("a", text)]))
    b = next(iterate(loaded, [TokenDocument("a", loaded.tokenizer.encode(text))]))
    np.testing.assert_array_equal(a.key, b.key)


def test_what_cannot_be_done_is_said():
    loaded = tiny()
    with pytest.raises(ValueError, match="at most 24"):
        next(iterate(loaded, texts(), window=25))
    with pytest.raises(ValueError, match="context < window"):
        next(iterate(loaded, texts(), window=8, context=8))
    with pytest.raises(ValueError, match="float16 or float32"):
        next(iterate(loaded, texts(), key_dtype="int8"))
    with pytest.raises(ValueError, match="document 'a': token 99 is outside the model's vocabulary of 30: use the"):
        next(iterate(loaded, [TokenDocument("a", np.array([1, 99], np.uint32))]))
    with torch.no_grad():
        loaded.model.blocks[-1].ffn_norm.bias.fill_(1e5)
    with pytest.raises(ValueError, match=r"65504.*--keys float32"):
        next(iterate(loaded, [Doc("a", "abc")]))
    assert np.isfinite(next(iterate(loaded, [Doc("a", "abc")], key_dtype="float32")).key).all()


@pytest.mark.parametrize("name", [(r, layer) for r in REPRESENTATIONS for layer in (-1, -2)])
def test_keys_without_scores_are_the_same_keys(name):
    loaded = tiny()
    full = list(iterate(loaded, texts(), captures=[name]))
    keys_only = list(iterate(loaded, texts(), captures=[name], scores=False))
    assert full
    for with_scores, without in zip(full, keys_only, strict=True):
        np.testing.assert_array_equal(with_scores.key, without.key)
        np.testing.assert_array_equal(with_scores.tokens, without.tokens)
        assert np.isnan(without.log_p).all()
        assert np.isfinite(with_scores.log_p).all()


@pytest.mark.parametrize("use", ["dump", "build", "targets"])
def test_what_wants_keys_alone_does_not_run_the_head(use, tmp_path):
    loaded = load_tiny()
    path = tmp_path / "store"
    if use != "build":
        build(path, loaded)
    loaded.model.head.register_forward_hook(lambda *_: pytest.fail("logits that nobody wants"))
    if use == "dump":
        dump(loaded, texts(), BruteForceStore(DIM), keys=KeySpec(key_dtype="float32"))
    elif use == "build":
        build(path, loaded)
    else:
        with Datastore.open(path) as store:
            assert list(targets(loaded, texts(), Retriever(store, Settings(k=2)), 1.0))


def test_a_dump_is_one_generation_of_a_store_on_disk_or_none(tmp_path):
    loaded = tiny()

    def interrupted():
        yield from (Doc(f"later {i}", "abc " * 20) for i in range(20))
        raise KeyboardInterrupt

    with Datastore.create(tmp_path / "store", dim=16, attributes=describe(loaded, KeySpec())) as store:
        generation = store.generation
        dump(loaded, [Doc(f"d {i}", "abc " * 20) for i in range(20)], store)
        assert store.generation == generation + 1
        with pytest.raises(KeyboardInterrupt):
            dump(loaded, interrupted(), store, batch_tokens=24)
        assert (store.generation, len(store.documents())) == (generation + 1, 20)


def test_documents_are_replaced_by_the_commit_of_a_dump(tmp_path):
    loaded = tiny()

    def interrupted():
        yield Doc("d 1", "abd " * 20)
        raise KeyboardInterrupt

    def contents(store):
        return [(d.name, d.stop - d.start) for d in store.documents()]

    with Datastore.create(tmp_path / "store", dim=16) as store:
        dump(loaded, [Doc(f"d {i}", "abc " * 20) for i in range(3)], store)
        before, generation = contents(store), store.generation
        with pytest.raises(KeyboardInterrupt):
            dump(loaded, interrupted(), store, batch_tokens=24, replace=["d 1", "d 2"])
        assert (contents(store), store.generation) == (before, generation)
        dump(loaded, [Doc("d 2", "abd " * 10), Doc("d 0", "abd ")], store, replace=["d 1", "d 2"])
        assert contents(store) == [("d 0", 80), ("d 2", 40), ("d 0 (2)", 4)]
        assert store.generation == generation + 1
