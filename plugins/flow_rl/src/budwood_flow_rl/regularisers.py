"""What keeps a policy near the one it began as, both off by default: ReinFlow's authors report that it can trap the policy."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from budwood_flow_rl.chains import log_prob, rollout
from budwood_flow_rl.fields import FlowField
from budwood_flow_rl.kernels import Kernel


def frozen[Module: nn.Module](module: Module) -> Module:
    """A copy that nothing trains."""
    return copy.deepcopy(module).requires_grad_(False).eval()


def w2(field: FlowField, frozen: FlowField, o: Any, x0: Tensor, kernel: Kernel) -> Tensor:
    """Mean of ||f(o, x0) - f_frozen(o, x0)||^2 over rows, f being the kernel's K steps without noise, from the same
    x0 (B, H, D) ~ N(0, I). That coupling bounds the squared 2-Wasserstein distance of the two policies from above.
    """
    with torch.no_grad():
        target = _without_noise(frozen, kernel, o, x0)
    return (_without_noise(field, kernel, o, x0) - target).square().flatten(1).sum(1).mean()


def _without_noise(field: FlowField, kernel: Kernel, o: Any, x0: Tensor) -> Tensor:
    """x_K (B, H, D) with gradient, unlike a rollout's."""
    x = x0
    for step in range(kernel.steps):
        x, _, _ = kernel.step_dist(field, x, torch.full((len(x0),), step, device=x0.device), o, noisy=False)
    return x


def bc(field: FlowField, frozen: FlowField, kernel: Kernel, o: Any, generator: torch.Generator | None = None) -> Tensor:
    """Minus the mean log-probability, per element of a chain, of chains that the frozen field samples under this kernel."""
    elements = log_prob(field, kernel, rollout(frozen, kernel, o, generator=generator), o).elements
    terms = 1 if kernel.hybrid else kernel.noisy_steps + 1
    return -elements.mean() / terms
