"""What a flow policy is: a velocity field over action chunks, conditioned on an observation.

Time is data time everywhere: s = 0 is noise, s = 1 is data, and a step is ``x + d v``. A network in noise time t is converted
where it is wrapped, by ``t = 1 - s`` and ``v_s = -v_t``. B rows, H horizon, D action dimension.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional

from budwood.api import BindingError, ConfigError

Activation = Literal["relu", "mish", "tanh"]
ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "mish": functional.mish,
    "tanh": torch.tanh,
}


PRECISE = (torch.float32, torch.float64)


class FlowField(Protocol):
    """A ``torch.nn.Module`` that gives velocities of (B, H, D) chunks."""

    horizon: int
    action_dim: int

    def velocity(self, x: Tensor, s: Tensor, o: Any, h: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """-> v (B, H, D) and ``feat``, what a noise head may read: (B, F), or (B, H, W) of a model with action tokens.

        ``x`` (B, H, D), ``s`` (B,) data time, ``h`` (B,) the step that is going to be taken, which only some families read.
        """


@runtime_checkable
class Batched(Protocol):
    """An observation that is neither one tensor nor a mapping of tensors, such as the cached prefix of a large model."""

    rows: int
    device: torch.device

    def repeated(self, times: int) -> Any:
        """Every row ``times`` times, copies of a row next to each other."""


def rows_of(o: Any) -> tuple[int, torch.device]:
    """How many rows an observation has, and where it lies."""
    if isinstance(o, Mapping):
        o = next(value for value in o.values() if isinstance(value, Tensor))
    if isinstance(o, Tensor):
        return o.shape[0], o.device
    if isinstance(o, Batched):
        return o.rows, o.device
    raise BindingError(
        f"an observation of type {type(o).__name__} says neither how many rows it has nor how to repeat them",
        do="Give a tensor, a mapping of tensors, or an object with rows, device and repeated(times)",
    )


def repeated(o: Any, times: int) -> Any:
    """Every row ``times`` times, copies of a row next to each other; what is no tensor in a mapping stays as it is."""
    if isinstance(o, Tensor):
        return o.repeat_interleave(times, dim=0)
    if isinstance(o, Mapping):
        return {key: repeated(value, times) if isinstance(value, Tensor) else value for key, value in o.items()}
    return o.repeated(times)


def precise(x: Tensor) -> Tensor:
    """float32 at least: z-scores grow as 1/sigma, and half precision would move a chain's log-probability by order 1."""
    return x if x.dtype in PRECISE else x.float()


def as_weights(x: Tensor, weight: Tensor) -> Tensor:
    """``x`` in the precision of ``weight``; a cast with nothing to do still costs a call, many times a chain."""
    return x if x.dtype == weight.dtype else x.to(weight.dtype)


class Projection(nn.Linear):
    """A linear layer computed in float32 at least, under autocast and with half-precision weights too."""

    def forward(self, x: Tensor) -> Tensor:
        if not torch.is_autocast_enabled(x.device.type):
            return functional.linear(precise(x), precise(self.weight), precise(self.bias))
        with torch.autocast(x.device.type, enabled=False):
            return functional.linear(precise(x), precise(self.weight), precise(self.bias))


class ResidualBlock(nn.Module):
    """x + Linear(act(Linear(act(x)))), pre-activation."""

    def __init__(self, width: int, activation: Activation) -> None:
        super().__init__()
        self.act = ACTIVATIONS[activation]
        self.first, self.second = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.second(self.act(self.first(self.act(x))))
        return out


class ResidualMLP(nn.Module):
    """Linear, then residual blocks of two layers each, then a projection: ``hidden`` (512, 512, 512) has one block."""

    def __init__(self, inputs: int, hidden: Sequence[int], outputs: int, activation: Activation = "relu") -> None:
        super().__init__()
        if len(hidden) % 2 == 0 or len(set(hidden)) != 1:
            raise ConfigError(
                f"a residual network has an odd number of layers of one width, not {list(hidden)}",
                do="Give hidden as [256, 256, 256] or [512, 512, 512], for instance",
            )
        width = hidden[0]
        self.first = nn.Linear(inputs, width)
        self.blocks = nn.ModuleList(ResidualBlock(width, activation) for _ in hidden[1::2])
        self.last = Projection(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        first = self.first
        x = first(as_weights(x, first.weight))
        for block in self.blocks:
            x = block(x)
        out: Tensor = self.last(x)
        return out


class TimeEmbedding(nn.Module):
    """Sines and cosines of each of ``times`` numbers in [0, 1], then Linear, Mish, Linear: (B, times) -> (B, width)."""

    frequencies: Tensor

    def __init__(self, times: int, width: int) -> None:
        super().__init__()
        half = width // 2
        frequencies = torch.exp(-math.log(10_000) * torch.arange(half) / (half - 1))
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.first, self.second = nn.Linear(2 * half * times, 2 * width), nn.Linear(2 * width, width)

    def forward(self, times: Tensor) -> Tensor:
        first = self.first
        angles = (times.unsqueeze(-1) * self.frequencies).flatten(1)  # (B, times half)
        waves = torch.cat([angles.sin(), angles.cos()], dim=-1)
        embedded: Tensor = self.second(functional.mish(first(as_weights(waves, first.weight))))
        return embedded


class MLPField(nn.Module):
    """A residual network on [chunk, time embedding, observation]; the families say what its times are.

    ``feat`` is [time embedding without gradient (``time_dim``), observation]: ``feat_dim`` numbers a row. ``stateless`` says
    that ``velocity`` keeps no tensor between calls.
    """

    stateless: ClassVar[bool] = True

    def __init__(
        self,
        obs_dim: int,
        horizon: int,
        action_dim: int,
        hidden: Sequence[int],
        activation: Activation,
        time_dim: int,
        times: int,
    ) -> None:
        super().__init__()
        self.obs_dim, self.horizon, self.action_dim, self.time_dim = obs_dim, horizon, action_dim, time_dim
        self.hidden, self.activation = tuple(hidden), activation
        self.feat_dim = time_dim + obs_dim
        self.time = TimeEmbedding(times, time_dim)
        self.net = ResidualMLP(horizon * action_dim + self.feat_dim, hidden, horizon * action_dim, activation)

    def times(self, s: Tensor, h: Tensor | None) -> Tensor:
        """(B, times): what the time embedding reads."""
        raise NotImplementedError

    def velocity(self, x: Tensor, s: Tensor, o: Tensor, h: Tensor | None = None) -> tuple[Tensor, Tensor]:
        condition = o.flatten(1)
        if condition.shape[1] != self.obs_dim:
            raise BindingError(
                f"the flow policy was made for observations of {self.obs_dim} numbers and was given {condition.shape[1]}",
                do="Use the environment, and the frame stacking, that its demonstrations came from",
            )
        embedded = self.time(self.times(s, h))  # (B, E)
        v = self.net(torch.cat([x.flatten(1), embedded, condition], dim=-1))
        return v.reshape(-1, self.horizon, self.action_dim), torch.cat([embedded.detach(), condition], dim=-1)

    def arguments(self) -> dict[str, Any]:
        """What rebuilds this field, as JSON."""
        return {
            "obs_dim": self.obs_dim,
            "horizon": self.horizon,
            "action_dim": self.action_dim,
            "hidden": list(self.hidden),
            "activation": self.activation,
            "time_dim": self.time_dim,
        }
