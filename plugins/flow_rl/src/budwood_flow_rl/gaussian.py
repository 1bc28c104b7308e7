"""A Gaussian policy over chunks in a flow's clothes: the peer that plain PPO and plain behaviour cloning stand for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from budwood_flow_rl.fields import Activation, MLPField


class Gaussian(MLPField):
    """``v(x, o) = f(o) - x``: one step lands on f(o) from any x_0, and the kernel's noise makes it N(f(o), sigma^2).

    Cloned by regression on the mean. Of the inputs of other families, x_0 and the time are zero here.
    """

    name: ClassVar[str] = "gaussian"
    steps: ClassVar[int] = 1

    def __init__(
        self,
        obs_dim: int,
        horizon: int,
        action_dim: int,
        hidden: Sequence[int] = (256, 256, 256),
        activation: Activation = "relu",
        time_dim: int = 16,
    ) -> None:
        super().__init__(obs_dim, horizon, action_dim, hidden, activation, time_dim, times=1)

    def times(self, s: Tensor, h: Tensor | None) -> Tensor:
        return torch.zeros_like(s).unsqueeze(-1)

    def velocity(self, x: Tensor, s: Tensor, o: Tensor, h: Tensor | None = None) -> tuple[Tensor, Tensor]:
        mean, feat = super().velocity(torch.zeros_like(x), s, o, h)
        return mean - x, feat

    def pretrain_loss(self, actions: Tensor, o: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Mean squared error of f(o); ``actions`` (B, H, D) scaled to [-1, 1]."""
        nowhere = torch.zeros_like(actions)
        v, _ = self.velocity(nowhere, actions.new_zeros(len(actions)), o)
        return functional.mse_loss(v, actions)
