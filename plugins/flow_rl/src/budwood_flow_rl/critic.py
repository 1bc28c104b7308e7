"""The critic of policies on states. It reads the observation and no chain, so its value is the same at rollout and update."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from budwood_flow_rl.fields import ResidualMLP


class Critic(nn.Module):
    """V(o): (B, O) -> (B,), a residual network. Begins near ``bias`` everywhere: an initial critic far from the returns of a
    working policy pushes that policy away in the first iterations."""

    def __init__(self, obs_dim: int, hidden: Sequence[int] = (256, 256, 256), bias: float = 0.0) -> None:
        super().__init__()
        self.net = ResidualMLP(obs_dim, hidden, 1, "mish")
        with torch.no_grad():
            self.net.last.weight.mul_(0.01)
            self.net.last.bias.fill_(bias)

    def forward(self, o: Tensor) -> Tensor:
        value: Tensor = self.net(o.flatten(1))
        return value[:, 0]
