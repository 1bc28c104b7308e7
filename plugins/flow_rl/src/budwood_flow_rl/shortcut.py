"""Shortcut models (arXiv 2410.12557): a velocity that knows the size of the step it will be used for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from budwood.api import ConfigError
from budwood_flow_rl.fields import Activation, FlowField, MLPField

DELTA = 1e-5
"""What is left of the noise at s = 1: x_s = (1 - (1 - DELTA) s) e + s a."""


class Shortcut(MLPField):
    """``v(x, s, h, o)``: one step of size h lands where two of h/2 do; h = 0 is the flow's own velocity.

    A share of every batch, ``consistent``, learns that; the rest learns the flow. Step sizes are 2^-j with j uniform on
    0..log2(max_steps)-1, so the smaller of the two steps is at least 1/max_steps. ``reference_exponents`` draws j from
    0..max_steps-2, as released code does with max_steps = 20: most draws are then far below any step that is sampled with.
    """

    name: ClassVar[str] = "shortcut"

    def __init__(
        self,
        obs_dim: int,
        horizon: int,
        action_dim: int,
        hidden: Sequence[int] = (256, 256, 256),
        activation: Activation = "relu",
        time_dim: int = 16,
        max_steps: int = 8,
        consistent: float = 0.25,
        reference_exponents: bool = False,
    ) -> None:
        super().__init__(obs_dim, horizon, action_dim, hidden, activation, time_dim, times=2)
        if not reference_exponents and (max_steps < 2 or max_steps & (max_steps - 1)):
            raise ConfigError(
                f"max_steps of a shortcut model halves down to 1 and {max_steps} does not", do="Give 2, 4, 8, 16, ..."
            )
        self.max_steps, self.consistent, self.reference_exponents = max_steps, consistent, reference_exponents

    def times(self, s: Tensor, h: Tensor | None) -> Tensor:
        return torch.stack([s, torch.zeros_like(s) if h is None else h], dim=-1)

    def step_sizes(self, rows: int, generator: torch.Generator | None, device: torch.device) -> tuple[Tensor, Tensor]:
        """-> h (rows,) and s (rows,), a multiple of h below 1."""
        exponents = self.max_steps - 1 if self.reference_exponents else self.max_steps.bit_length() - 1
        j = torch.randint(exponents, (rows,), generator=generator, device=device)
        h = torch.exp2(-j.float())
        s = h * (torch.rand(rows, generator=generator, device=device) / h).floor()
        return h, s

    def pretrain_loss(self, actions: Tensor, o: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Mean squared error over the batch, its first rows against two half steps, the others against a - (1 - DELTA) e."""
        rows, dtype = len(actions), actions.dtype
        split = int(self.consistent * rows)
        e = torch.randn(actions.shape, generator=generator, device=actions.device, dtype=dtype)
        h, grid = self.step_sizes(split, generator, actions.device)
        uniform = torch.rand(rows - split, generator=generator, device=actions.device)
        s = torch.cat([grid, uniform]).to(dtype)
        h = torch.cat([h, torch.zeros_like(uniform)]).to(dtype)
        at = s[:, None, None]
        x = (1 - (1 - DELTA) * at) * e + at * actions
        target = actions - (1 - DELTA) * e
        if split:
            target[:split] = two_half_steps(self, x[:split], s[:split], h[:split], o[:split])
        v, _ = self.velocity(x, s, o, h)
        return functional.mse_loss(v, target.to(v.dtype))

    def arguments(self) -> dict[str, Any]:
        return {
            **super().arguments(),
            "max_steps": self.max_steps,
            "consistent": self.consistent,
            "reference_exponents": self.reference_exponents,
        }


@torch.no_grad()
def two_half_steps(field: FlowField, x: Tensor, s: Tensor, h: Tensor, o: Any) -> Tensor:
    """(v1 + v2)/2 of two steps of h/2: what ``v(x, s, h)`` should be; (B, H, D) without gradient."""
    half = h / 2
    v1, _ = field.velocity(x, s, o, half)
    v2, _ = field.velocity(x + half[:, None, None] * v1, s + half, o, half)
    return (v1 + v2) / 2
