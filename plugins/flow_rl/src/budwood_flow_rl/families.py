"""Flow policy families: how a velocity field is trained on demonstrations, and the sampler that none of them changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from budwood_flow_rl.diffusion import Diffusion
from budwood_flow_rl.fields import Activation, FlowField, MLPField
from budwood_flow_rl.gaussian import Gaussian
from budwood_flow_rl.shortcut import Shortcut

TimeSampling = Literal["uniform", "logit_normal", "beta"]


def sample_times(rows: int, sampling: TimeSampling, generator: torch.Generator | None, device: torch.device) -> Tensor:
    """Training times (rows,) in [0, 1): U(0, 1); sigmoid of N(0, 1); or 0.999 (1 - Beta(1.5, 1)), dense near the noise."""
    if sampling == "logit_normal":
        return torch.randn(rows, generator=generator, device=device).sigmoid()
    uniform = torch.rand(rows, generator=generator, device=device)
    if sampling == "uniform":
        return uniform
    return 0.999 * (1 - uniform ** (1 / 1.5))  # the distribution function of Beta(1.5, 1) is u^1.5


class RectifiedFlow(MLPField):
    """1-rectified flow (arXiv 2209.03003): a straight path from noise to data, and its mean velocity."""

    name: ClassVar[str] = "rectified"

    def __init__(
        self,
        obs_dim: int,
        horizon: int,
        action_dim: int,
        hidden: Sequence[int] = (256, 256, 256),
        activation: Activation = "relu",
        time_dim: int = 16,
        time_sampling: TimeSampling = "uniform",
    ) -> None:
        super().__init__(obs_dim, horizon, action_dim, hidden, activation, time_dim, times=1)
        self.time_sampling = time_sampling

    def times(self, s: Tensor, h: Tensor | None) -> Tensor:
        return s.unsqueeze(-1)

    def pretrain_loss(self, actions: Tensor, o: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Mean squared error of the velocity a - e at x_s = s a + (1 - s) e; ``actions`` (B, H, D) scaled to [-1, 1]."""
        e = torch.randn(actions.shape, generator=generator, device=actions.device, dtype=actions.dtype)
        s = sample_times(len(actions), self.time_sampling, generator, actions.device).to(actions.dtype)
        at = s[:, None, None]
        v, _ = self.velocity(at * actions + (1 - at) * e, s, o)
        return functional.mse_loss(v, actions - e)

    def arguments(self) -> dict[str, Any]:
        return {**super().arguments(), "time_sampling": self.time_sampling}


FAMILIES: Mapping[str, type[nn.Module]] = {"rectified": RectifiedFlow, "shortcut": Shortcut}
"""The flows."""
POLICIES: Mapping[str, type[nn.Module]] = {**FAMILIES, "diffusion": Diffusion, "gaussian": Gaussian}
"""What can be pre-trained and saved: the flows, and their peers."""


def sample(field: FlowField, o: Any, K: int, x0: Tensor) -> Tensor:
    """Euler's method from noise ``x0`` (B, H, D) to an action chunk, on s = k/K for k = 0..K-1: never at s = 1."""
    x = x0
    d = torch.full((len(x0),), 1 / K, dtype=x0.dtype, device=x0.device)
    for k in range(K):
        v, _ = field.velocity(x, torch.full_like(d, k / K), o, d)
        x = x + (1 / K) * v.to(x.dtype)
    return x
