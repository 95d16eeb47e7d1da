"""The head in chunks: the model's own logits, caps, scales and biases included, a bounded number of them at a time."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from architectures import tiny_model
from tiny_lm import Doc, TinyLM, TinyLoaded, texts, tiny
from torch import nn

from knnlm.model import forward, keys
from knnlm.model.head import LOGIT_ROWS, chunked_head, target_log_p
from knnlm.model.key_spec import DEFAULT_WINDOW, KeySpec
from knnlm.model.keys import iterate
from knnlm.model.transformer import TransformerConfig, TransformerLM
from knnlm.text.inputs import TokenDocument


def test_features_and_large_vocabularies():
    torch.manual_seed(0)
    logits = 5 * torch.randn(2 * LOGIT_ROWS + 3, 11)
    targets = torch.randint(0, 11, (len(logits),))
    log_p, extra = target_log_p(logits, targets, ("entropy", "max"))
    full = logits.double().log_softmax(-1)
    np.testing.assert_allclose(log_p, full.gather(1, targets[:, None])[:, 0], atol=1e-5)
    np.testing.assert_allclose(extra["max"], full.amax(-1), atol=1e-5)
    np.testing.assert_allclose(extra["entropy"], -(full.exp() * full).sum(-1), atol=1e-5)


def test_nothing_follows_the_output_embedding_or_the_body_is_replayed():
    assert chunked_head(tiny_model("Llama")).body is None
    for name in ("Gemma2", "Cohere", "Granite"):
        model = tiny_model(name)
        assert chunked_head(model).body is model.model
        assert "forward" not in model.model.__dict__
        assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())


class Odd(nn.Module):
    """What follows its output embedding depends on all positions: no chunk can know it."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.lm_head = nn.Embedding(30, 8), nn.Linear(8, 30)

    def get_output_embeddings(self):
        return self.lm_head

    def forward(self, ids):
        logits = self.lm_head(self.embedding(ids))
        return type("Output", (), {"logits": logits - logits.cumsum(1)})


@pytest.mark.parametrize("make", [Odd, TinyLM])
def test_a_model_whose_head_is_not_understood_gives_its_logits_row_by_row(make, monkeypatch):
    torch.manual_seed(0)
    model = make()
    assert chunked_head(model) is None
    loaded = TinyLoaded(model, tiny().tokenizer)
    plain = np.concatenate([c.log_p for c in iterate(loaded, texts(), captures=())])
    fed = []
    model.register_forward_pre_hook(lambda _, args: fed.append(tuple(args[0].shape)))
    monkeypatch.setattr(forward, "LOGITS", 30 * 30)
    bounded = np.concatenate([c.log_p for c in iterate(loaded, texts(), captures=())])
    np.testing.assert_allclose(bounded, plain, atol=1e-6)
    assert max(rows * length for rows, length in fed) <= 30


def test_no_more_logits_than_are_bounded_and_none_of_context_or_padding(monkeypatch):
    loaded = TinyLoaded(tiny_model("Gemma2"), tiny().tokenizer)
    chunks = chunked_head(loaded.model)
    monkeypatch.setattr(forward, "LOGITS", 10 * 40)
    monkeypatch.setattr(forward, "chunked_head", lambda model: chunks)
    rows = []
    loaded.model.lm_head.register_forward_hook(lambda _, __, out: rows.append(out.shape[0] * out.shape[1]))
    documents = [Doc("long", "abcdefgh" * 12), Doc("short", "abc")]
    list(iterate(loaded, documents, window=24, context=12))
    assert max(rows) == 10
    assert sum(rows) == 8 * 12 + 3


CHILD = """
import resource, sys
import numpy as np, torch, transformers
from knnlm.model import forward
from knnlm.model.keys import iterate
from knnlm.text.inputs import TokenDocument
from tiny_lm import TinyLoaded, tiny
torch.manual_seed(0)
forward.LOGITS = 1 << 24  # 64 MB
v = 64_000
config = transformers.LlamaConfig(vocab_size=v, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
    num_attention_heads=1, max_position_embeddings=131_072, tie_word_embeddings=True, bos_token_id=0, eos_token_id=0)
loaded = TinyLoaded(transformers.AutoModelForCausalLM.from_config(config).eval(), tiny().tokenizer, context=131_072)
tokens = np.random.default_rng(0).integers(0, v, 3000).astype(np.uint32)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
chunks = list(iterate(loaded, [TokenDocument("long", tokens)]))
assert sum(len(chunk.tokens) for chunk in chunks) == 3000
assert all(np.isfinite(chunk.log_p).all() for chunk in chunks)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no maxrss there")
def test_memory_of_a_model_with_a_long_context_and_a_large_vocabulary():
    # All logits of these 3,000 tokens at once are 768 MB in float32.
    pytest.importorskip("transformers")
    code = f"import sys; sys.path[:] = {sys.path!r}\n" + CHILD
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    unit = 1 if sys.platform == "darwin" else 1024
    assert int(done.stdout) * unit < 3e8


def test_the_default_window_is_bounded():
    assert KeySpec().resolved(131_072) == KeySpec(window=DEFAULT_WINDOW, context=DEFAULT_WINDOW // 2)
    assert KeySpec().resolved(512).window == 512
    assert KeySpec(window=8000).resolved(131_072).window == 8000


def test_keys_that_wait_are_bounded_in_bytes(monkeypatch):
    torch.manual_seed(0)
    config = TransformerConfig(vocab_size=30, d_model=64, n_layers=1, n_heads=2, context=24)
    loaded = TinyLoaded(TransformerLM(config).eval(), tiny().tokenizer)
    monkeypatch.setattr(keys, "POOL_BYTES", 100 * (64 * 4 + 4))
    documents = [TokenDocument(f"{i}", np.ones(20, np.uint32)) for i in range(60)]
    read = 0

    def counted():
        nonlocal read
        for document in documents:
            read += 1
            yield document

    waiting = []
    done = 0
    for chunk in iterate(loaded, counted(), key_dtype="float32", batch_tokens=24):
        done += 1
        waiting.append(20 * (read - done + 1))
        assert chunk.key.shape == (20, 64)
    assert max(waiting) <= 120
    assert done == 60
