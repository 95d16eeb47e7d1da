"""Muon: orthogonalised momentum for hidden matrices, AdamW for the rest; three times fewer steps on a short budget.

    M <- μ M + G                      momentum of the gradient of one matrix
    O <- polar(G + μ M)               the nearest matrix with equal singular values, by Newton-Schulz
    W <- W (1 − ηw) − η √max(1, rows/columns) O

Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks"; quintic coefficients from there.
Next: `train.py` uses it where `TrainConfig.optimizer` says so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch

_A, _B, _C = 3.4445, -4.7750, 2.0315  # fastest growth of small singular values; the large ones end in 0.7 … 1.2


def orthogonalise(matrix: torch.Tensor, steps: int = 5, bf16: bool = False) -> torch.Tensor:
    """About U Vᵀ of ``matrix`` = U S Vᵀ, ``(m, n)``; singular values end between 0.7 and 1.2.

    ``bf16``: multiply in bfloat16, for which the iteration was made; pays where the machine does it in hardware.
    """
    x: torch.Tensor = matrix / (matrix.norm() + 1e-7)
    if bf16:
        x = x.bfloat16()
    tall = x.shape[0] > x.shape[1]
    if tall:  # the Gram matrix of the shorter side is the smaller one
        x = x.T
    for _ in range(steps):
        gram = x @ x.T  # (s, s), s = min(m, n)
        x = _A * x + (_B * gram + _C * gram @ gram) @ x
    return (x.T if tall else x).to(matrix.dtype)


class Muon(torch.optim.Optimizer):
    """Muon for ``hidden`` matrices, AdamW for ``others``; one learning rate for both, of which Muon takes ``ratio``.

    Every parameter group has ``lr``; a schedule sets it as for any optimiser. State: ``momentum`` of hidden matrices;
    ``step``, ``exp_avg`` and ``exp_avg_sq`` of the others.

    Args:
        hidden: two-dimensional weights inside the blocks, not the embedding nor the head.
        others: everything else.
        lr: learning rate of AdamW.
        ratio: Muon's learning rate divided by ``lr``.
        momentum: μ.
        betas: of AdamW.
        weight_decay: of the hidden matrices, multiplied by their learning rate.
        bf16: see `orthogonalise`.
    """

    def __init__(
        self,
        hidden: Iterable[torch.nn.Parameter],
        others: Iterable[torch.nn.Parameter],
        lr: float = 3e-3,
        ratio: float = 7.0,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.95),
        weight_decay: float = 0.05,
        bf16: bool = False,
    ) -> None:
        groups = [{"params": list(hidden), "hidden": True}, {"params": list(others), "hidden": False}]
        super().__init__(groups, {"lr": lr})
        self.ratio, self.momentum, self.betas, self.weight_decay = ratio, momentum, betas, weight_decay
        self.bf16 = bf16

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    update = self._hidden if group["hidden"] else self._other
                    update(parameter, parameter.grad, group["lr"])
        return loss

    def _hidden(self, weight: torch.Tensor, gradient: torch.Tensor, lr: float) -> None:
        state = self.state[weight]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(weight)
        momentum = state["momentum"].mul_(self.momentum).add_(gradient)
        direction = orthogonalise(gradient.add(momentum, alpha=self.momentum), bf16=self.bf16)  # Nesterov
        rate = lr * self.ratio
        weight.mul_(1 - rate * self.weight_decay)
        weight.add_(direction, alpha=-rate * max(1.0, weight.shape[0] / weight.shape[1]) ** 0.5)

    def _other(self, weight: torch.Tensor, gradient: torch.Tensor, lr: float) -> None:
        state = self.state[weight]
        if "step" not in state:
            state["step"] = torch.zeros((), dtype=torch.float32)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(weight), torch.zeros_like(weight)
        state["step"] += 1
        count, (beta1, beta2) = float(state["step"]), self.betas
        mean = state["exp_avg"].lerp_(gradient, 1 - beta1)
        square = state["exp_avg_sq"].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        scale = (square / (1 - beta2**count)).sqrt_().add_(1e-8)
        weight.addcdiv_(mean, scale, value=-lr / (1 - beta1**count))
