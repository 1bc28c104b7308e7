"""Which way time runs in a velocity field, found out from the field alone where that is possible."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from budwood.api import BindingError
from budwood_flow_rl.families import sample
from budwood_flow_rl.fields import FlowField, precise, repeated, rows_of

Convention = Literal["data time", "undetermined"]


@dataclass(frozen=True)
class Evidence:
    """``slope`` of the velocity in x at s = 0, and ``spread``: the std of x_K over that of x_0 for one observation."""

    slope: float
    spread: float


def check_convention(
    field: FlowField, o: Any, draws: int = 32, steps: int = 8, generator: torch.Generator | None = None
) -> Convention:
    """Refuses a field whose velocities cannot be those of data time (s = 0 noise, s = 1 data, x + d v).

    At s = 0 a trained field is ``E[a | o] - x`` whatever the data are, slope -1 in x. A field with the sign or the time of
    the other convention has slope +1 there: refused. One with both has slope -1 too, and runs from data to noise: it spreads
    noise out by as much as the right one draws it together, so with a spread above 1.25 it is refused. What this cannot tell:
    an untrained field, or one trained for other targets ("undetermined"); and both at once where actions of one observation
    are about as wide as the noise, as for two modes at -1 and 1. There the declaration of whoever wraps the field stands
    alone. Costs draws x (1 + steps) evaluations a row of ``o``.
    """
    evidence = measure(field, o, draws, steps, generator)
    if evidence.slope > 0.5:
        raise _wrong(f"velocities at s = 0 grow with x (slope {evidence.slope:.2f}, and -1 is right)")
    if evidence.slope > -0.5:
        return "undetermined"
    if evidence.spread > 1.25:
        raise _wrong(
            f"integration spreads the noise {evidence.spread:.2f} times as wide instead of drawing it together"
        )
    return "data time"


@torch.no_grad()
def measure(field: FlowField, o: Any, draws: int, steps: int, generator: torch.Generator | None = None) -> Evidence:
    rows, device = rows_of(o)
    shape = (rows * draws, field.horizon, field.action_dim)
    x0 = torch.randn(shape, generator=generator, device=device)
    many = repeated(o, draws)
    start = torch.zeros(len(x0), device=device)
    v, _ = field.velocity(x0, start, many, torch.full_like(start, 1 / steps))

    def within(x: Tensor) -> Tensor:
        grouped = precise(x).reshape(rows, draws, -1)
        return grouped - grouped.mean(1, keepdim=True)

    noise, velocity = within(x0), within(v)
    slope = (noise * velocity).sum() / noise.square().sum()
    spread = (within(sample(field, many, steps, x0)).square().mean() / noise.square().mean()).sqrt()
    return Evidence(slope.item(), spread.item())


def _wrong(finding: str) -> BindingError:
    return BindingError(
        f"the velocity field runs in the wrong direction of time: {finding}",
        where="flow policy",
        do="Where the network counts noise time t (1 is noise), give it t = 1 - s and return minus its velocity",
    )
