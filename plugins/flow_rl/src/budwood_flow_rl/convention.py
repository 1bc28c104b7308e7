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

TRAINED, CLEARLY, WIDER = 0.5, 0.5, 1.15


@dataclass(frozen=True)
class Evidence:
    """How far the field is, on noise x at either end of time, from pointing at one place: the std of x + v and of x - v.

    A trained field is ``E[a | o] - x`` where the noise is, whatever the data are: there x + v has std 0. ``spread`` is the
    std of x_K over that of x_0. All for one observation, averaged.
    """

    start: float
    start_reversed: float
    end: float
    end_reversed: float
    spread: float


def check_convention(
    field: FlowField,
    o: Any,
    draws: int = 32,
    steps: int = 8,
    generator: torch.Generator | None = None,
    where: str = "flow policy",
) -> Convention:
    """Refuses a trained field whose velocities cannot be those of data time (s = 0 noise, s = 1 data, x + d v).

    Velocities point at one place at s = 0 if all is right, away from one if their sign is the other convention's, and at one
    at s = 1 if their time is. With both, integration runs from data to noise: it spreads noise out instead of drawing it
    together, which is seen where actions of one observation are narrower than the noise.

    It cannot tell, and answers "undetermined" or believes the field: an untrained field; one that hardly heeds its time; and
    both mistakes at once where actions of one observation are as wide as the noise, as two modes at -1 and 1 are. There the
    word of whoever wraps the network stands alone. Costs draws x (2 + steps) evaluations a row of ``o``.
    """
    found = measure(field, o, draws, steps, generator)
    right, wrong = min(found.start, found.end_reversed), min(found.start_reversed, found.end)
    if min(right, wrong) > TRAINED:
        return "undetermined"
    if found.spread > WIDER:
        raise _wrong(
            f"integration spreads noise {found.spread:.2f} times as wide instead of drawing it together", where
        )
    if wrong < CLEARLY * right:
        raise _wrong(
            f"velocities point {'at' if found.end == wrong else 'away from'} one place where they should not", where
        )
    return "data time" if right < CLEARLY * wrong else "undetermined"


@torch.no_grad()
def measure(field: FlowField, o: Any, draws: int, steps: int, generator: torch.Generator | None = None) -> Evidence:
    rows, device = rows_of(o)
    shape = (rows * draws, field.horizon, field.action_dim)
    x0 = torch.randn(shape, generator=generator, device=device)
    many = repeated(o, draws)
    h = torch.full((len(x0),), 1 / steps, device=device)

    def std(x: Tensor) -> float:
        grouped = precise(x).reshape(rows, draws, -1)
        return (grouped.var(1).mean().sqrt() / x0.reshape(rows, draws, -1).var(1).mean().sqrt()).item()

    start, _ = field.velocity(x0, torch.zeros_like(h), many, h)
    end, _ = field.velocity(x0, torch.ones_like(h), many, h)
    return Evidence(std(x0 + start), std(x0 - start), std(x0 + end), std(x0 - end), std(sample(field, many, steps, x0)))


def _wrong(finding: str, where: str) -> BindingError:
    return BindingError(
        f"the velocity field runs in the wrong direction of time: {finding}",
        where=where,
        do="Where the network counts noise time t (1 is noise), give it t = 1 - s and return minus its velocity",
    )
