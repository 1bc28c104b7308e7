"""The distribution of one step of a chain: the only place that knows it, for sampling and for recomputing alike.

Grid: s_k = k/K for k = 0..K-1. B rows, H horizon, D action dimension, K steps, d = 1/K.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn

from budwood.api import ConfigError
from budwood_flow_rl.fields import FlowField, precise
from budwood_flow_rl.noise import NoiseNet

Grid = tuple[Tensor, Tensor]


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

    def grid(self, k: Tensor, dtype: torch.dtype) -> Grid:
        """-> s = k/K and the step's size d, each shaped as ``k``."""
        s = k.to(dtype) / self.steps
        return s, torch.full_like(s, 1 / self.steps)

    def step_dist(
        self, field: FlowField, x: Tensor, k: Tensor, o: Any, noisy: Tensor | bool = True, at: Grid | None = None
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """-> mean (B, H, D), std (B, H, D) or None of a deterministic step, and the field's ``feat``.

        ``x`` (B, H, D) at steps ``k`` (B,) long, which may differ between rows. Rows where ``noisy`` (B,) is False take the
        Euler step of the ODE, with std 0; ``noisy=False`` does so for all and evaluates no noise. ``at`` is :meth:`grid` of
        ``k``, for who has it.
        """
        x = precise(x)
        s, d = at or self.grid(k, x.dtype)
        v, feat = field.velocity(x, s, o, d)
        v = precise(v)
        if noisy is False:
            return self.euler(x, v), None, feat
        mean, std = self.noisy_step(x, v, k, feat, noisy)
        return mean, std, feat

    def euler(self, x: Tensor, v: Tensor) -> Tensor:
        """The ODE's own step."""
        mean = x + (1 / self.steps) * v
        return mean if self.clip_mean is None else mean.clamp(-self.clip_mean, self.clip_mean)

    def noisy_step(
        self, x: Tensor, v: Tensor, k: Tensor, feat: Tensor, noisy: Tensor | Literal[True]
    ) -> tuple[Tensor, Tensor]:
        """-> mean and std (B, H, D); what is not ``noisy``, a row or a dimension, has the ODE's step and std 0."""
        raise NotImplementedError

    def noisy_columns(self, x: Tensor) -> Tensor:
        """(D,) or (1,): the dimensions that noise is kept to."""
        if self.noisy_dims is None:
            return torch.ones(1, dtype=torch.bool, device=x.device)
        return torch.arange(x.shape[-1], device=x.device) < self.noisy_dims


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

    def noisy_step(
        self, x: Tensor, v: Tensor, k: Tensor, feat: Tensor, noisy: Tensor | Literal[True]
    ) -> tuple[Tensor, Tensor]:
        mean, std = self.euler(x, v), self.noise(feat)
        if noisy is not True:
            std = torch.where(noisy[:, None, None], std, 0.0)
        if self.noisy_dims is not None:
            std = torch.where(self.noisy_columns(x), std, 0.0)
        return mean, std


class LinearKernel(Kernel):
    """Steps whose mean is linear in x and v, by coefficients that the step alone decides."""

    def __init__(self, steps: int, noisy_steps: int, *, noisy_dims: int | None = None) -> None:
        super().__init__(steps, noisy_steps, noisy_dims=noisy_dims)
        self._tables: dict[tuple[int, torch.dtype, torch.device], Tensor] = {}

    def coefficients(self) -> Tensor:
        """(K, 3) float64: what multiplies x, v and a standard normal number in step k."""
        raise NotImplementedError

    def table(self, x: Tensor) -> Tensor:
        """(2 K, 3, 1, D or 1) as ``x`` is: rows k are stochastic steps, in noisy dimensions, and rows K + k the ODE's."""
        key = (x.shape[-1], x.dtype, x.device)
        if key not in self._tables:
            with torch.inference_mode(False):  # it outlives the sampling that asks for it, and gradients pass by it
                ode = torch.tensor([1.0, 1 / self.steps, 0.0], dtype=torch.float64)[:, None, None]
                noisy = torch.where(self.noisy_columns(x).cpu(), self.coefficients()[..., None, None], ode)
                self._tables[key] = torch.cat([noisy, ode.expand_as(noisy)]).to(x.device, x.dtype)
        return self._tables[key]

    def noisy_step(
        self, x: Tensor, v: Tensor, k: Tensor, feat: Tensor, noisy: Tensor | Literal[True]
    ) -> tuple[Tensor, Tensor]:
        row = k if noisy is True else torch.where(noisy, k, k + self.steps)
        of_x, of_v, std = self.table(x).index_select(0, row).unbind(1)
        return of_x * x + of_v * v, std.expand_as(x)


class FlowSDE(LinearKernel):
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

    def coefficients(self) -> Tensor:
        """x + d v - w (x - s v), where x - s v is the noise that x is predicted to have come from, E[e | x].

        w = sigma_t^2 d/(2t) = a^2 d/(2(1-t)), and the std is sqrt(d) sigma_t, at t = 1 - k/K; t = 1 - 1/K stands for t = 1
        in 1 - t. As d/(1-t) = 1/k this divides by no t, and is finite at every step.
        """
        k = torch.arange(self.steps, dtype=torch.float64)
        divisor = k.clamp(min=1)
        weight = self.level**2 / (2 * divisor)
        std = self.level * torch.sqrt((self.steps - k) / (self.steps * divisor))
        return torch.stack([1 - weight, 1 / self.steps + weight * k / self.steps, std], dim=1)


class FlowCPS(LinearKernel):
    """Coefficient-preserving sampling (arXiv 2509.05952): noise of the step is taken out of what is left of the first noise.

    The last step has no noise left, so K - 1 steps are stochastic.
    """

    def __init__(self, steps: int, level: float, *, noisy_dims: int | None = None) -> None:
        super().__init__(steps, steps - 1, noisy_dims=noisy_dims)
        self.level = level

    def coefficients(self) -> Tensor:
        """(1 - t + d) (x + (1 - s) v) + (t - d) (cos(pi a / 2) (x - s v) + sin(pi a / 2) z)."""
        s = torch.arange(self.steps, dtype=torch.float64) / self.steps
        left, angle = (1 - 1 / self.steps) - s, math.pi * self.level / 2
        kept = left * math.cos(angle)
        return torch.stack([1 - left + kept, (1 - left) * (1 - s) - kept * s, left * math.sin(angle)], dim=1)
