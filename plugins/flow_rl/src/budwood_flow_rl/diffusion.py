"""A diffusion policy and its kernel: the peer that flow policies are compared with (DDPM, arXiv 2006.11239; DPPO, 2409.00588).

Step k of a chain goes from noise level t = K - 1 - k to the one below it. B rows, H horizon, D action dimension, K steps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from budwood.api import ConfigError
from budwood_flow_rl.chains import rollout
from budwood_flow_rl.fields import Activation, FlowField, MLPField, precise
from budwood_flow_rl.kernels import Grid, Kernel

OFFSET, LARGEST = 0.008, 0.999


def cosine_signal(steps: int) -> Tensor:
    """alpha-bar (K,) float64, the share of the data's variance left at levels 0..K-1 (arXiv 2102.09672, eq. 17)."""
    at = (torch.arange(steps + 1, dtype=torch.float64) / steps + OFFSET) / (1 + OFFSET)
    f = torch.cos(at * math.pi / 2) ** 2
    beta = (1 - f[1:] / f[:-1]).clamp(max=LARGEST)
    return torch.cumprod(1 - beta, dim=0)


class Diffusion(MLPField):
    """Predicts the noise e in x_t = sqrt(alpha-bar_t) a + sqrt(1 - alpha-bar_t) e. Made for one number of steps, ``steps``.

    ``velocity`` gives that noise, so only :class:`DDPM` can step with it.
    """

    name: ClassVar[str] = "diffusion"

    def __init__(
        self,
        obs_dim: int,
        horizon: int,
        action_dim: int,
        hidden: Sequence[int] = (256, 256, 256),
        activation: Activation = "relu",
        time_dim: int = 16,
        steps: int = 10,
    ) -> None:
        super().__init__(obs_dim, horizon, action_dim, hidden, activation, time_dim, times=1)
        self.steps = steps
        self.register_buffer("signal", cosine_signal(steps), persistent=False)

    signal: Tensor

    def times(self, s: Tensor, h: Tensor | None) -> Tensor:
        return s.unsqueeze(-1)

    def pretrain_loss(self, actions: Tensor, o: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Mean squared error of the noise, levels drawn uniformly; ``actions`` (B, H, D) scaled to [-1, 1]."""
        e = torch.randn(actions.shape, generator=generator, device=actions.device, dtype=actions.dtype)
        k = torch.randint(self.steps, (len(actions),), generator=generator, device=actions.device)
        left = self.signal[self.steps - 1 - k][:, None, None].to(actions.dtype)
        predicted, _ = self.velocity(left.sqrt() * actions + (1 - left).sqrt() * e, k.to(actions.dtype) / self.steps, o)
        return functional.mse_loss(predicted, e)

    def arguments(self) -> dict[str, Any]:
        return {**super().arguments(), "steps": self.steps}


class DDPM(Kernel):
    """Ancestral sampling with the posterior's own standard deviation, at least ``smallest`` so that every step explores.

    The predicted action is clipped to [-1, 1]. Without noise a chain follows DDIM (arXiv 2010.02502), given by its x_0.
    """

    signal: Tensor

    def __init__(self, steps: int, smallest: float = 0.1) -> None:
        super().__init__(steps, steps)
        self.smallest = smallest
        self.register_buffer("signal", cosine_signal(steps), persistent=False)

    def step_dist(
        self, field: FlowField, x: Tensor, k: Tensor, o: Any, noisy: Tensor | bool = True, at: Grid | None = None
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        if getattr(field, "steps", None) != self.steps:
            raise ConfigError(
                f"a chain of {self.steps} denoising steps needs a diffusion policy that was trained with as many, and "
                f"this {type(field).__name__} was trained with {getattr(field, 'steps', 'none')}",
                do="Use the kernel of flows for a flow, and give steps as the policy has them",
            )
        x = precise(x)
        e, feat = field.velocity(x, (at or self.grid(k, x.dtype))[0], o)
        now, below = self.levels(self.steps - 1 - k, x.dtype)
        action = ((x - (1 - now).sqrt() * precise(e)) / now.sqrt()).clamp(-1, 1)
        if noisy is False:
            kept = (x - now.sqrt() * action) / (1 - now).sqrt()  # the noise that goes with the clipped action
            return below.sqrt() * action + (1 - below).sqrt() * kept, None, feat
        mean, std = posterior(x, action, now, below)
        return mean, std.clamp(min=self.smallest).expand_as(x), feat

    def levels(self, t: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """-> alpha-bar of level t and of the one below it, (B, 1, 1) each; nothing is lost at the data."""
        below = torch.where(t > 0, self.signal[(t - 1).clamp(min=0)], 1.0)
        return self.signal[t][:, None, None].to(dtype), below[:, None, None].to(dtype)


def posterior(x: Tensor, action: Tensor, now: Tensor, below: Tensor) -> tuple[Tensor, Tensor]:
    """-> mean (B, H, D) and std (B, 1, 1) of x_{t-1} given x_t = ``x`` and the ``action`` that it leads to (DDPM, eq. 7)."""
    kept = now / below
    mean = (below.sqrt() * (1 - kept) * action + kept.sqrt() * (1 - below) * x) / (1 - now)
    return mean, ((1 - kept) * (1 - below) / (1 - now)).sqrt()


def denoised(field: Any, o: Any, K: int, x0: Tensor) -> Tensor:
    """From noise ``x0`` (B, H, D) to an action chunk in K steps, without further noise."""
    return rollout(field, DDPM(K), o, x0, noise_free=True).actions
