"""transformer.py and cross_entropy.py: causality, cache, positions, and the losses against PyTorch's."""

import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from knnlm.model.transformer import KVCache, TransformerConfig, TransformerLM, rotary_table, rotate
from knnlm.train.cross_entropy import IGNORE, cross_entropy, sampled_cross_entropy


@pytest.fixture
def model():
    torch.manual_seed(0)
    return TransformerLM(TransformerConfig(50, d_model=24, n_layers=3, n_heads=2, context=16, dropout=0.2)).eval()


@pytest.fixture
def ids():
    return torch.randint(0, 50, (3, 16), generator=torch.Generator().manual_seed(1))


def test_shapes(model, ids):
    output = model(ids)
    assert output.logits.shape == (3, 16, 50)
    assert output.cache is None
    assert model.hidden(ids).shape == (3, 16, 24)


def test_a_later_token_changes_nothing_before_it(model, ids):
    changed = ids.clone()
    changed[:, 9] = (changed[:, 9] + 1) % 50
    before, after = model(ids).logits, model(changed).logits
    assert torch.equal(before[:, :9], after[:, :9])
    assert (before[:, 9:] != after[:, 9:]).any(-1).all()


@pytest.mark.parametrize("cuts", [[1] * 16, [16], [5, 1, 7, 3], [1, 15]])
def test_cache_gives_the_logits_of_one_pass(model, ids, cuts):
    cache, parts = KVCache(), []
    for part in ids.split(cuts, dim=1):
        output = model(part, cache)
        assert output.cache is cache
        parts.append(output.logits)
    assert len(cache) == 16
    torch.testing.assert_close(torch.cat(parts, 1), model(ids).logits, rtol=1e-4, atol=1e-5)


def test_cache_rows_can_be_reordered(model, ids):
    cache = KVCache()
    model(ids[:, :10], cache)
    rows = torch.tensor([2, 2, 0])
    cache.reorder(rows)
    after = model(ids[rows, 10:], cache).logits
    torch.testing.assert_close(after, model(ids[rows]).logits[:, 10:], rtol=1e-4, atol=1e-5)


def test_rotary_attention_depends_on_relative_positions_only():
    q, k = torch.randn(1, 1, 1, 8), torch.randn(1, 1, 1, 8)

    def product(i, j):
        a = rotate(q, *rotary_table(torch.tensor([i]), 8, 1e4))
        b = rotate(k, *rotary_table(torch.tensor([j]), 8, 1e4))
        return float((a * b).sum())

    assert product(3, 1) == pytest.approx(product(103, 101), rel=1e-3, abs=1e-4)
    assert product(3, 1) != pytest.approx(product(3, 2), rel=1e-2)
    assert float(rotate(q, *rotary_table(torch.tensor([7]), 8, 1e4)).norm()) == pytest.approx(float(q.norm()), rel=1e-5)


def test_tied_weights_are_one_parameter():
    tied = TransformerLM(TransformerConfig(50, 24, 1, 2))
    untied = TransformerLM(TransformerConfig(50, 24, 1, 2, tie_weights=False))
    assert tied.lm_head.weight is tied.embedding.weight
    assert sum(p.numel() for p in untied.parameters()) - sum(p.numel() for p in tied.parameters()) == 50 * 24


def test_the_parts_that_captures_hook_have_their_names(model):
    block = model.blocks[-1]
    for part in (block.attention_norm, block.attention, block.ffn_norm, block.ffn, model.final_norm, model.lm_head):
        assert isinstance(part, torch.nn.Module)
    seen = []
    block.ffn.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    block.ffn_norm.register_forward_hook(lambda module, inputs, output: seen.append(output))
    model(torch.zeros(1, 4, dtype=torch.int64))
    assert torch.equal(seen[0], seen[1])  # the key of the kNN-LM: input of the feed-forward block, after its norm


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vocab_size": 0}, "at least 1"),
        ({"vocab_size": 9, "d_ff": 0}, "at least 1"),
        ({"vocab_size": 9, "d_model": 30, "n_heads": 4}, "multiple of 2·n_heads"),
        ({"vocab_size": 9, "dropout": 1.0}, "dropout must be"),
    ],
)
def test_impossible_sizes_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        TransformerConfig(**options)


@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_chunked_loss_and_gradients_are_those_of_pytorch(chunk):
    torch.manual_seed(0)
    hidden = torch.randn(20, 8, requires_grad=True)
    weight = torch.randn(30, 8, requires_grad=True)
    targets = torch.randint(0, 30, (20,))
    targets[[3, 19]] = IGNORE
    expected = F.cross_entropy(hidden @ weight.T, targets, ignore_index=IGNORE)
    expected_grads = torch.autograd.grad(expected * 3, (hidden, weight))
    loss = cross_entropy(hidden, weight, targets, chunk)
    torch.testing.assert_close(loss, expected)
    for grad, wanted in zip(torch.autograd.grad(loss * 3, (hidden, weight)), expected_grads, strict=True):
        torch.testing.assert_close(grad, wanted, rtol=1e-5, atol=1e-6)


def test_loss_without_gradient_keeps_nothing():
    with torch.no_grad():
        loss = cross_entropy(torch.randn(4, 8), torch.randn(30, 8), torch.tensor([0, 1, 2, 3]))
    assert loss.grad_fn is None


def test_loss_of_a_uniform_model_is_log_v():
    loss = cross_entropy(torch.zeros(5, 8), torch.randn(50, 8), torch.arange(5))
    assert float(loss.exp()) == pytest.approx(50, rel=1e-5)


def test_sampled_loss_over_all_types_is_the_full_loss():
    torch.manual_seed(0)
    hidden, weight, targets = torch.randn(40, 8), torch.randn(60, 8), torch.randint(0, 60, (40,))
    assert sampled_cross_entropy(hidden, weight, targets, 30, 30) == cross_entropy(hidden, weight, targets)


def test_sampled_normaliser_is_unbiased():
    """Mean over many samples of Z (not of log Z) is the true one, where the estimate of the module says so."""
    torch.manual_seed(0)
    hidden, weight = torch.randn(1, 8), torch.randn(60, 8)
    targets = torch.tensor([41])
    z = (hidden @ weight.T).double()
    true = float(z.exp().sum())
    draws = [sampled_cross_entropy(hidden, weight, targets, 10, 15) for _ in range(4000)]
    estimates = torch.stack(draws).double().add(z[0, 41]).exp()  # Z = exp(loss + logit of the target)
    assert float(estimates.std()) > 0
    assert float(estimates.mean()) == pytest.approx(true, abs=4 * float(estimates.std()) / 4000**0.5)


def test_sampled_gradient_reaches_only_the_sampled_rows():
    torch.manual_seed(0)
    hidden, weight = torch.randn(6, 8), torch.randn(1000, 8, requires_grad=True)
    targets = torch.tensor([0, 5, 700, 700, 999, IGNORE])
    loss = sampled_cross_entropy(hidden, weight, targets, 10, 20)
    (grad,) = torch.autograd.grad(loss, weight)
    touched = grad.abs().sum(1).nonzero()[:, 0]
    assert len(touched) == 10 + 2 + 20
    assert {0, 9, 700, 999} <= set(touched.tolist())
