"""Loss terms beside a policy's own loss: ``forward`` of one policy object, wrapped."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

import torch

from budwood.api import Contributed, LossInputs, LossTerm, blamed, misfit

Forward = Callable[..., tuple[torch.Tensor, dict[str, Any] | None]]


def bind_losses(policy: Any, terms: Sequence[Contributed[LossTerm]]) -> None:
    """From now on ``policy.forward(batch)`` in training mode gives LeRobot's loss plus every term's weight times its value,
    and the values among what LeRobot logs, as ``losses/plugin.term``. Held-out rows are judged by LeRobot's loss alone."""
    if terms:
        policy.forward = with_terms(policy, policy.forward, terms)


def with_terms(policy: Any, forward: Forward, terms: Sequence[Contributed[LossTerm]]) -> Forward:
    @wraps(forward)
    def extended(batch: Any, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, dict[str, Any] | None]:
        loss, output = forward(batch, *args, **kwargs)
        if not policy.training:
            return loss, output
        told = dict(output or {})
        seen = LossInputs(policy=policy, batch=batch)
        for item in terms:
            value = _value(item, seen)
            told[f"losses/{item.plugin}.{item.value.name}"] = value.item()
            loss = loss + item.value.weight * value
        return loss, told

    return extended


def _value(item: Contributed[LossTerm], seen: LossInputs) -> torch.Tensor:
    term = item.value
    with blamed(item, f"loss term {term.name}"):
        value = term.fn(seen)
    if not isinstance(value, torch.Tensor) or value.numel() != 1:
        shape = tuple(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__
        raise misfit(item, f"loss term {term.name} gave {shape}, expected a scalar tensor")
    if not torch.isfinite(value).all():
        raise misfit(item, f"loss term {term.name} is {value.item()}")
    return value.reshape(()).to(torch.float32)
