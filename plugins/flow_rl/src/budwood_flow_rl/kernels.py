"""The distribution of one step of a chain: the only place that knows it, for sampling and for recomputing alike.

Grid: s_k = k/K for k = 0..K-1. B rows, H horizon, D action dimension, K steps, d = 1/K.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from budwood.api import ConfigError
from budwood_flow_rl.fields import FlowField, precise
from budwood_flow_rl.noise import NoiseNet


class Kernel(nn.Module):
    """Steps x_k -> x_{k+1}. The first ``noisy_steps`` of the K are stochastic; a ``hybrid`` kernel draws one of them a row.

    ``noisy_dims`` keeps noise to the first dimensions of an action, the others being padding: they follow the ODE.
    ``truncate`` holds noise within so many standard deviations. ``clip_mean`` clips the mean of every step, in evaluation
    too; ``clamp_last`` clamps x_K before it is stored and scored. The last two copy the reference and bias the gradient.
    """

    hybrid = False

    def __init__(
        self,
        steps: int,
        noisy_steps: int,
        *,
        noisy_dims: int | None = None,
        truncate: float | None = None,
        clip_mean: float | None = None,
        clamp_last: float | None = None,
    ) -> None:
        super().__init__()
        if steps < 1 or noisy_steps < 1:
            raise ConfigError(
                f"{type(self).__name__} with {steps} integration steps leaves no step to be stochastic",
                do="Give more steps",
            )
        self.steps, self.noisy_steps, self.noisy_dims = steps, noisy_steps, noisy_dims
        self.truncate, self.clip_mean, self.clamp_last = truncate, clip_mean, clamp_last

    def step_dist(
        self, field: FlowField, x: Tensor, k: Tensor, o: Any, noisy: Tensor | bool = True
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """-> mean (B, H, D), std (B, H, D) or None of a deterministic step, and the field's ``feat``.

        ``x`` (B, H, D) at steps ``k`` (B,) long, which may differ between rows. Rows where ``noisy`` (B,) is False take the
        Euler step of the ODE, with std 0; ``noisy=False`` does so for all and evaluates no noise.
        """
        x = precise(x)
        s = k.to(x.dtype) / self.steps
        v, feat = field.velocity(x, s, o, torch.full_like(s, 1 / self.steps))
        v = precise(v)
        euler = x + (1 / self.steps) * v
        if self.clip_mean is not None:
            euler = euler.clamp(-self.clip_mean, self.clip_mean)
        if noisy is False:
            return euler, None, feat
        mean, std = self.noisy_step(x, v, euler, k, feat)
        if self.noisy_dims is not None:
            columns = torch.arange(x.shape[-1], device=x.device) < self.noisy_dims
            noisy = columns.expand_as(x) & (noisy if noisy is True else noisy[:, None, None])
        elif noisy is not True:
            noisy = noisy[:, None, None].expand_as(x)
        if noisy is True:
            return mean, std, feat
        return torch.where(noisy, mean, euler), torch.where(noisy, std, 0.0), feat

    def noisy_step(self, x: Tensor, v: Tensor, euler: Tensor, k: Tensor, feat: Tensor) -> tuple[Tensor, Tensor]:
        """-> mean and std (B, H, D) of rows that are all stochastic."""
        raise NotImplementedError


class NoisyEuler(Kernel):
    """ReinFlow and Flow-Noise: the ODE's own step plus learned noise, x + d v + sigma z (sigma has no sqrt(d))."""

    def __init__(
        self,
        steps: int,
        noise: NoiseNet,
        clip_mean: float | None = None,
        truncate: float | None = None,
        *,
        clamp_last: float | None = None,
        noisy_dims: int | None = None,
    ) -> None:
        super().__init__(
            steps, steps, noisy_dims=noisy_dims, truncate=truncate, clip_mean=clip_mean, clamp_last=clamp_last
        )
        self.noise = noise

    def noisy_step(self, x: Tensor, v: Tensor, euler: Tensor, k: Tensor, feat: Tensor) -> tuple[Tensor, Tensor]:
        return euler, self.noise(feat)


class FlowSDE(Kernel):
    """The SDE that has the marginals of the ODE, sigma_t = a sqrt(t/(1-t)): Flow-GRPO (arXiv 2505.05470), piRL (2510.25889).

    With ``hybrid`` one step a row is stochastic, drawn uniformly, and the others follow the ODE. ``ignore_last`` keeps the
    last step deterministic. What deterministic steps add to the gradient is left out: it is not that of the expected reward,
    though it points uphill. One step alone is degenerate and refused.
    """

    def __init__(
        self,
        steps: int,
        level: float,
        hybrid: bool = False,
        ignore_last: bool = False,
        *,
        noisy_dims: int | None = None,
    ) -> None:
        if steps < 2:
            raise ConfigError(
                "an SDE of one step is degenerate: its mean subtracts a share of the noise it began with",
                do="Use 2 steps or more, or the kernel with learned noise, which one step suits",
            )
        super().__init__(steps, steps - 1 if ignore_last else steps, noisy_dims=noisy_dims)
        self.level, self.hybrid = level, hybrid

    def coefficients(self, k: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """-> the weight of the drift towards the data, and the std of the step, (B,) each.

        sigma_t^2 d/(2t) = a^2 d/(2(1-t)), and sqrt(d) sigma_t, at t = 1 - k/K; t = 1 - 1/K stands for t = 1 in 1 - t. As
        d/(1-t) = 1/k this divides by no t, and is finite at every step.
        """
        divisor = k.clamp(min=1).to(dtype)
        weight = self.level**2 / (2 * divisor)
        std = self.level * torch.sqrt((self.steps - k) / (self.steps * divisor))
        return weight, std

    def noisy_step(self, x: Tensor, v: Tensor, euler: Tensor, k: Tensor, feat: Tensor) -> tuple[Tensor, Tensor]:
        weight, std = (each[:, None, None] for each in self.coefficients(k, x.dtype))
        s = (k.to(x.dtype) / self.steps)[:, None, None]
        noise = x - s * v  # the noise that x is predicted to have come from, E[e | x]
        return euler - weight * noise, std.expand_as(x)


class FlowCPS(Kernel):
    """Coefficient-preserving sampling (arXiv 2509.05952): noise of the step is taken out of what is left of the first noise.

    The last step has no noise left, so K - 1 steps are stochastic.
    """

    def __init__(self, steps: int, level: float, *, noisy_dims: int | None = None) -> None:
        super().__init__(steps, steps - 1, noisy_dims=noisy_dims)
        self.level = level

    def noisy_step(self, x: Tensor, v: Tensor, euler: Tensor, k: Tensor, feat: Tensor) -> tuple[Tensor, Tensor]:
        s = (k.to(x.dtype) / self.steps)[:, None, None]
        left = ((self.steps - 1 - k).to(x.dtype) / self.steps)[:, None, None]  # t - d
        data, noise = x + (1 - s) * v, x - s * v
        angle = math.pi * self.level / 2
        return (1 - left) * data + left * math.cos(angle) * noise, (left * math.sin(angle)).expand_as(x)
