"""Attaching: half types, tuples, losses, wrappers, adapters and caches; what is wrong is said, and undone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hf_attach import SETTINGS, model_of, untouched
from hf_folders import TEXT, fast, tokenizer
from torch.utils._python_dispatch import TorchDispatchMode
from wrapped import Peft

import knnlm
from knnlm import KNNLM, Datastore, IdentityError
from knnlm.probability.fixed import Fixed

pytest.importorskip("transformers")


def test_the_mixture_is_that_of_knnlm(model, store, words):
    lm = KNNLM.from_pretrained(model, store, tokenizer=words, **SETTINGS)
    text = "the dog sat on the mat"
    tokens = lm.loaded.tokenizer.encode(text).astype(np.int64)
    fed = torch.tensor([[lm.loaded.tokenizer.bos_id, *tokens]])
    with knnlm.attach(model, store, tokenizer=words, **SETTINGS), torch.no_grad():
        log_p = torch.log_softmax(model(fed).logits[0, :-1], -1).numpy()
    expected = lm.log_probs(text, exclude="none")
    np.testing.assert_allclose(log_p[np.arange(len(tokens)), tokens], expected, atol=1e-5)
    plain = lm.generate(text, max_new_tokens=6)
    with knnlm.attach(model, store, tokenizer=words, **SETTINGS):
        found = model.generate(fed, max_new_tokens=6, do_sample=False)[0, fed.shape[1] :]
    assert words.decode(found, skip_special_tokens=True) == plain


@torch.no_grad()
def test_the_loss_is_of_the_mixture(model, store, ids):
    labels = ids.clone()
    labels[0, :3] = -100
    with knnlm.attach(model, store, **SETTINGS):
        found = model(ids, labels=labels)
        loss, logits = model(ids, labels=labels, return_dict=False)[:2]
    log_p = torch.log_softmax(found.logits, -1)[:, :-1]
    wanted = labels[:, 1:]
    kept = wanted != -100
    expected = -log_p.gather(-1, wanted.clamp(min=0)[..., None])[..., 0][kept].mean()
    assert float(found.loss) == pytest.approx(float(expected), abs=1e-6)
    assert float(loss) == pytest.approx(float(found.loss))
    assert torch.equal(logits, found.logits)
    assert float(model(ids, labels=labels).loss) != pytest.approx(float(expected), abs=1e-3)


@pytest.mark.parametrize("keep", [0, 1, 3, torch.tensor([0, 4, 2])])
def test_only_logits_that_are_kept_are_mixed(model, store, ids, keep):
    with knnlm.attach(model, store, **SETTINGS) as memory, torch.no_grad():
        whole = model(ids).logits
        asked = []
        find = memory.retriever.find
        memory.retriever.find = lambda keys, **options: asked.append(len(keys)) or find(keys, **options)
        some = model(ids, logits_to_keep=keep).logits
    expected = whole[:, keep] if isinstance(keep, torch.Tensor) else whole[:, -keep:]
    torch.testing.assert_close(some, expected, atol=1e-5, rtol=0)
    assert asked == [some.shape[0] * some.shape[1]]


def test_a_padded_batch_gives_what_its_texts_give_alone(model, store, words):
    texts = ["the cat", "and the dog sat on the mat"]
    batch = _padded(words, texts)
    with knnlm.attach(model, store, tokenizer=words, **SETTINGS) as memory:
        together = model.generate(**batch, max_new_tokens=5, do_sample=False, pad_token_id=0)
        alone = [memory.generate(text, max_new_tokens=5, do_sample=False).new_tokens[0] for text in texts]
        batched = memory.generate(texts, max_new_tokens=5, do_sample=False)
    assert [row[-5:] for row in together.tolist()] == alone
    assert batched.new_tokens == alone


def _padded(words, texts):
    rows = [words(text)["input_ids"] for text in texts]
    longest = max(map(len, rows))
    return {
        "input_ids": torch.tensor([[0] * (longest - len(row)) + row for row in rows]),
        "attention_mask": torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows]),
    }


def test_positions_that_nobody_wants_are_not_looked_for(model, store, ids):
    with knnlm.attach(model, store, **SETTINGS) as memory, torch.no_grad():
        mixed = model(ids).logits
        memory.wanted = np.zeros(tuple(ids.shape), bool)
        memory.wanted[0, 2] = True
        some = model(ids).logits
        memory.wanted = np.zeros((1, 1), bool)
        with pytest.raises(ValueError, match=r"wanted: expected the shape of the input, \(2, "):
            model(ids)
    plain = torch.log_softmax(model(ids).logits.float(), -1)
    torch.testing.assert_close(some[0, 2], mixed[0, 2])
    torch.testing.assert_close(some[1], plain[1])
    assert (some[0, 2] != plain[0, 2]).any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_give_whole_probabilities(words, tmp_path, ids, dtype):
    half = model_of(words).to(dtype)
    KNNLM.build(half, [("a", TEXT)], tmp_path / "store", tokenizer=words)
    with knnlm.attach(half, tmp_path / "store", lambda_=0.5), torch.no_grad():
        logits = half(ids).logits
        assert logits.dtype == torch.float32
        assert (logits.double().exp().sum(-1) - 1).abs().max() < 1e-6
        assert half.generate(ids, max_new_tokens=3).shape[1] == ids.shape[1] + 3
    assert half(ids).logits.dtype == dtype


def test_queries_have_the_arithmetic_of_the_store(model, words, tmp_path, ids):
    KNNLM.build(model, [("a", TEXT)], tmp_path / "store", tokenizer=words, autocast="bfloat16")
    seen = []
    with knnlm.attach(model, tmp_path / "store"), torch.no_grad():
        layer = model.model.layers[0]
        handle = layer.register_forward_pre_hook(lambda *_: seen.append(torch.is_autocast_enabled("cpu")))
        model(ids)
        assert not torch.is_autocast_enabled("cpu")
        with pytest.raises(IndexError):
            model(torch.tensor([[100_000]]))
        assert not torch.is_autocast_enabled("cpu")
    handle.remove()
    assert seen == [True]
    assert untouched(model)


def test_weights_are_cast_once_a_text(model, words, tmp_path):
    KNNLM.build(model, [("a", TEXT)], tmp_path / "store", tokenizer=words, autocast="bfloat16")
    plain = KNNLM.open(tmp_path / "store", model, tokenizer=words)
    shapes = {tuple(weight.shape) for weight in model.parameters() if weight.dim() == 2}

    class Casts(TorchDispatchMode):
        def __init__(self):
            super().__init__()
            self.casts = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if function is torch.ops.aten._to_copy.default and (kwargs or {}).get("dtype") == torch.bfloat16:
                self.casts += tuple(args[0].shape) in shapes
            return function(*args, **(kwargs or {}))

    def casts(generate):
        with Casts() as counted:
            generate()
        return counted.casts

    with knnlm.attach(model, tmp_path / "store", tokenizer=words) as memory:
        once, more = (casts(lambda n=n: memory.generate("a b", max_new_tokens=n)) for n in (1, 6))
        assert once == more > 0
    once, more = (casts(lambda n=n: plain.generate("a b", max_new_tokens=n)) for n in (1, 6))
    assert once == more > 0
    weight, fed = model.model.layers[0].mlp.up_proj.weight, torch.tensor([[5, 6]])
    kept = weight.detach().clone()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        before = model(fed).logits
    weight.data.mul_(3.0)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):  # what was cast is forgotten
        assert not torch.equal(model(fed).logits, before)
    weight.data.copy_(kept)


def test_a_compiled_model_and_one_with_an_adapter(words, model, store, ids):
    with knnlm.attach(model, store, **SETTINGS), torch.no_grad():
        expected = model(ids).logits
    compiled = torch.compile(model, backend="eager")
    compiled(ids)
    with knnlm.attach(compiled, store, **SETTINGS), torch.no_grad():
        torch.testing.assert_close(compiled(ids).logits, expected)
    assert untouched(model)
    adapted = Peft(model)
    with knnlm.attach(adapted, store, **SETTINGS), torch.no_grad():
        torch.testing.assert_close(adapted(ids).logits, expected)
    parallel = torch.nn.DataParallel(model)
    with knnlm.attach(parallel, store, **SETTINGS), torch.no_grad():
        torch.testing.assert_close(parallel(ids).logits, expected)
    assert untouched(model)


def test_static_caches_are_as_good(model, store, ids):
    with knnlm.attach(model, store, **SETTINGS):
        plain = model.generate(ids, max_new_tokens=5, do_sample=False)
        static = model.generate(ids, max_new_tokens=5, do_sample=False, cache_implementation="static")
    assert plain.tolist() == static.tolist()


def test_settings_and_combiner_can_be_changed(model, store, ids):
    with knnlm.attach(model, store, **SETTINGS) as memory, torch.no_grad():
        first = model(ids).logits
        memory.set(lambda_=0.9, temperature=1.0)
        assert (memory.settings.lambda_, memory.settings.k) == (0.9, 8)
        assert (model(ids).logits != first).any()
        memory.combiner = Fixed(0.4, 3.0, 8)
        torch.testing.assert_close(model(ids).logits, first)
        with pytest.raises(ValueError, match="between 0 and 1, found 7"):
            memory.set(lambda_=7)
        with pytest.raises(TypeError):
            memory.set(lambda_of=0.1)
        torch.testing.assert_close(model(ids).logits, first)


def test_a_store_is_closed_by_who_opened_it(model, store):
    memory = knnlm.attach(model, store)
    assert memory.attached
    memory.detach()
    memory.detach()
    assert not memory.attached
    with pytest.raises(Exception, match="closed"):
        memory.datastore.search(np.zeros((1, 16), np.float32), 1)
    with Datastore.open(store) as opened:
        with knnlm.attach(model, opened):
            pass
        assert len(opened.search(np.zeros((1, 16), np.float32), 1).ids) == 1


def narrow(tmp_path):
    with Datastore.create(tmp_path / "narrow", dim=8) as made:
        made.add(np.ones((4, 8), np.float32), np.arange(4, dtype=np.uint32))
    return tmp_path / "narrow"


@pytest.mark.parametrize(
    ("given", "error", "says"),
    [
        (lambda m, w, s, t: (m, "nowhere"), FileNotFoundError, "expected a store at nowhere"),
        (lambda m, w, s, t: ("gpt2", s), TypeError, "model: expected a model of transformers, found a str"),
        (lambda m, w, s, t: (model_of(w, "GPT2"), s), IdentityError, "model weights"),
        (lambda m, w, s, t: (model_of(w, num_hidden_layers=3), s), IdentityError, "model weights"),
        (lambda m, w, s, t: (model_of(w).to("meta"), s), ValueError, "on the meta device"),
        (lambda m, w, s, t: (m, narrow(t)), ValueError, "expected keys of 8 numbers, as the store has them, found 16"),
    ],
)
def test_what_does_not_belong_together_is_refused(model, words, store, tmp_path, given, error, says):
    with pytest.raises(error, match=says):
        knnlm.attach(*given(model, words, store, tmp_path))
    assert untouched(model)


def test_another_tokenizer_is_refused(model, store):
    with pytest.raises(IdentityError, match="tokenizer"):
        knnlm.attach(model, store, tokenizer=fast(tokenizer("bytes", size=310)))
    with knnlm.attach(model, store), pytest.raises(ValueError, match="attached already"):
        knnlm.attach(model, store)
    assert untouched(model)
