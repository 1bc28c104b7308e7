"""The learned noise of a chain's steps, and how its range moves over training (ReinFlow, arXiv 2505.22094)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from budwood.api import ConfigError
from budwood_flow_rl.fields import Projection, precise

RANGE = ("middle", "reach")


class NoiseNet(nn.Module):
    """``feat`` -> standard deviations sigma (B, H, D) strictly between smin and smax, per element, step and state.

    ``feat`` (B, F) gives H D outputs; with ``per_token`` it is (B, H, W) and every token gives its own D. The first ``skip``
    entries of ``feat`` are not read: with a field's ``time_dim``, noise is the same at every step. The range belongs to the
    schedule of a run: it is no parameter, is not saved, and is changed between iterations only, since a change in between
    would change old log-probabilities. Keep smin at 0.02 or more.
    """

    middle: Tensor
    reach: Tensor

    def __init__(
        self,
        feat_dim: int,
        horizon: int,
        action_dim: int,
        hidden: Sequence[int],
        smin: float,
        smax: float,
        per_token: bool = False,
        skip: int = 0,
    ) -> None:
        super().__init__()
        self.horizon, self.action_dim, self.per_token, self.skip = horizon, action_dim, per_token, skip
        for name in RANGE:
            self.register_buffer(name, torch.zeros(()), persistent=False)
        self.register_load_state_dict_pre_hook(_without_range)  # type: ignore[no-untyped-call]
        self.set_range(smin, smax)
        widths = [feat_dim - skip, *hidden]
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(widths):
            layers += [nn.Linear(inputs, outputs), nn.Tanh()]
        self.layers = nn.Sequential(*layers, Projection(widths[-1], action_dim if per_token else horizon * action_dim))

    def set_range(self, smin: float, smax: float) -> None:
        if not (0 < smin <= smax < math.inf):
            raise ConfigError(
                f"noise between {smin} and {smax} is no range", do="Give 0 < smin <= smax, such as 0.10 and 0.24"
            )
        with torch.no_grad():
            self.middle.fill_(math.log(smin * smax) / 2)
            self.reach.fill_(math.log(smax / smin) / 2)

    def forward(self, feat: Tensor) -> Tensor:
        feat = precise(feat)
        u = self.layers(feat[..., self.skip :] if self.skip else feat)
        # log sigma^2 = lmin + (lmax - lmin)(tanh u + 1)/2 with lmin = 2 log smin and lmax = 2 log smax
        sigma = torch.exp(torch.addcmul(precise(self.middle), precise(self.reach), torch.tanh(u)))
        return sigma if self.per_token else sigma.reshape(-1, self.horizon, self.action_dim)


def _without_range(_module: nn.Module, state: dict[str, Tensor], prefix: str, *_: object) -> None:
    """Checkpoints of earlier versions hold a range."""
    for name in RANGE:
        state.pop(prefix + name, None)


def learn(_progress: float, smin: float, smax: float) -> tuple[float, float]:
    """One range for the whole run."""
    return smin, smax


def learn_decay(progress: float, smin: float, smax: float) -> tuple[float, float]:
    """smax is held for 35 % of the run, then falls along a cosine to 0.3 smin + 0.7 smax."""
    after = max(0.0, (progress - 0.35) / 0.65)
    end = 0.3 * smin + 0.7 * smax
    return smin, end + (smax - end) * (1 + math.cos(math.pi * after)) / 2


def const(_progress: float, smin: float, _smax: float) -> tuple[float, float]:
    """smin everywhere: nothing of the noise is learned."""
    return smin, smin


def const_schedule_itr(progress: float, smin: float, smax: float) -> tuple[float, float]:
    """One number an iteration: smin to smax (0.016 to 0.08) in the first 1 % of the run, held for 29 %, and back by its end.

    Both ways along a cosine; released code has the lengths, and of the way up no more than that it is a warm-up.
    """
    rising, falling = min(1.0, progress / 0.01), max(0.0, (progress - 0.30) / 0.70)
    sigma = smin + (smax - smin) * (math.cos(math.pi * falling) - math.cos(math.pi * rising)) / 2
    return sigma, sigma


NoiseSchedule = Callable[[float, float, float], tuple[float, float]]
"""(progress in [0, 1], smin, smax) -> (smin, smax) of this iteration."""
SCHEDULES: Mapping[str, NoiseSchedule] = {
    schedule.__name__: schedule for schedule in (learn, learn_decay, const, const_schedule_itr)
}
