"""Cross-entropy over a large vocabulary: in chunks, and over a sample of the vocabulary while training.

The full loss needs a (B·T, v) matrix twice, for logits and for their gradient. `ChunkedCrossEntropy` computes loss and
gradients chunk by chunk in the forward pass, so that only one chunk of logits is ever alive.

With tens of thousands of word types most of the time goes into the softmax. `sampled_cross_entropy` estimates

    Z = Σ_head e^z + Σ_{targets of the batch} e^z + (rest / sample) · Σ_{sampled rest} e^z

exactly for the frequent types (the head) and for the batch's own targets, by a uniform sample for the rest:
importance sampling as in Bengio and Senécal (2003) and Jean et al. (2015, arXiv 1412.2007), with the proposal
stratified so that the variance comes from rare types only. Ids are taken to be in order of frequency, as
`Tokenizer.train_words` makes them; for merges of BPE the order is close enough.
"""

from __future__ import annotations

from typing import Any

import torch

IGNORE = -100  # target of a padded position


class ChunkedCrossEntropy(torch.autograd.Function):
    """Mean negative log-likelihood of ``targets`` under softmax(hidden·weightᵀ + bias), chunk by chunk."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        targets: torch.Tensor,
        chunk: int,
    ) -> torch.Tensor:
        """``hidden`` (n, d), ``weight`` (v, d), ``bias`` (v,) or None, ``targets`` (n,) int64, `IGNORE` is skipped."""
        compute = hidden.dtype
        weight_c = weight.to(compute)
        count = (targets != IGNORE).sum().clamp(min=1)
        loss = torch.zeros((), device=hidden.device)
        wanted = any(ctx.needs_input_grad)
        grad_hidden = torch.empty_like(hidden) if wanted else None
        grad_weight = torch.zeros_like(weight) if wanted else None
        for start in range(0, hidden.shape[0], chunk):
            h, y = hidden[start : start + chunk], targets[start : start + chunk]
            keep = y != IGNORE
            safe = y.clamp(min=0)[:, None]
            logits = (h @ weight_c.T).float()  # (chunk, v)
            if bias is not None:
                logits += bias
            top = logits.amax(1, keepdim=True)
            target_logit = logits.gather(1, safe) - top  # (chunk, 1)
            p = logits.sub_(top).exp_()  # (chunk, v)
            z = p.sum(1, keepdim=True)
            loss += ((z.log() - target_logit)[:, 0] * keep).sum()
            if grad_hidden is None or grad_weight is None:
                continue
            scale = keep[:, None] / count
            p.mul_(scale / z)
            p.scatter_add_(1, safe, -scale)
            g = p.to(compute)
            grad_hidden[start : start + chunk] = g @ weight_c
            grad_weight += g.T @ h
        if wanted:
            ctx.save_for_backward(grad_hidden, grad_weight)
        return loss / count

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Scale the gradients that the forward pass made."""
        grad_hidden, grad_weight = ctx.saved_tensors
        return grad_hidden * grads[0], grad_weight * grads[0], None, None, None


def cross_entropy(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, chunk: int = 1024) -> torch.Tensor:
    """Mean loss over the whole vocabulary; ``hidden`` (n, d), ``weight`` (v, d), ``targets`` (n,)."""
    return ChunkedCrossEntropy.apply(hidden, weight, None, targets, chunk)  # type: ignore[no-any-return,no-untyped-call]


def sampled_cross_entropy(
    hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, head: int, sample: int, chunk: int = 4096
) -> torch.Tensor:
    """Estimate of `cross_entropy` from the ``head`` first ids, the batch's targets and ``sample`` others."""
    v = weight.shape[0]
    if head + sample >= v:
        return cross_entropy(hidden, weight, targets, chunk)
    mine = targets[targets >= head].unique()  # type: ignore[no-untyped-call]
    free = torch.ones(v, dtype=torch.bool, device=weight.device)
    free[:head] = False
    free[mine] = False
    rest = free.nonzero()[:, 0]
    drawn = rest[torch.randperm(len(rest), device=weight.device)[:sample]]
    rows = torch.cat([torch.arange(head, device=weight.device), mine, drawn])  # (s,)
    bias = torch.zeros(len(rows), device=weight.device)
    bias[head + len(mine) :] = torch.log(torch.tensor(max(len(rest), 1) / max(len(drawn), 1)))
    place = torch.full((v,), -1, dtype=torch.int64, device=weight.device)
    place[rows] = torch.arange(len(rows), device=weight.device)
    inside = torch.where(targets == IGNORE, targets, place[targets.clamp(min=0)])
    return ChunkedCrossEntropy.apply(hidden, weight[rows], bias, inside, chunk)  # type: ignore[no-any-return,no-untyped-call]
