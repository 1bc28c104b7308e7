"""Minibatches of an on-policy update: whole, or this process's rows of those that one process would have drawn.

The loss of a piece times its share, summed over all processes, is the loss of the minibatch: see ``budwood.api.sharing``.
Gradients are summed so before they are clipped.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from budwood.api import Array, Processes
from budwood.api.sharing import alike, check_alike, own_numbers, own_rows, sum_gradients


@dataclass(frozen=True)
class Piece:
    """``batch`` as the buffer gives it; ``advantages`` (b,) as they enter the loss; ``share`` is b / B."""

    batch: Any
    advantages: Tensor
    share: float = 1.0


def standardised(advantages: Tensor) -> Tensor:
    return (advantages - advantages.mean()) / (advantages.std() + 1e-8)


class Whole:
    """One process: every piece is a minibatch, and there is nobody to agree with."""

    def begin(self, model: Any) -> None: ...

    def of(self, model: Any, batch_size: int | None, normalise: bool) -> Iterator[Piece]:
        for batch in model.rollout_buffer.get(batch_size):
            advantages = batch.advantages
            yield Piece(batch, standardised(advantages) if normalise and len(advantages) > 1 else advantages)

    def drawing(self, model: Any) -> AbstractContextManager[None]:
        """Around what plugins compute, which may draw random numbers."""
        return nullcontext()

    def mean(self, value: Any, piece: Piece) -> Any:
        """Of a mean over each piece, the mean over the minibatch."""
        return value

    def means(self, seen: Mapping[str, list[float]]) -> Mapping[str, list[float]]:
        """Likewise, of everything that was seen, a value a minibatch."""
        return seen

    def reduce(self, parameters: Iterator[Tensor]) -> None:
        """Gradients of the piece become those of the minibatch."""

    def fit(self, buffer: Any) -> tuple[Array, Array]:
        """Values and returns of the rollout, flat."""
        return buffer.values.flatten(), buffer.returns.flatten()


class Divided(Whole):
    """This process's environments among all: T steps of n here, of N in all; transition (env, step) is row env T + step."""

    def __init__(self, processes: Processes) -> None:
        self.processes = processes
        self._shares: list[float] = []

    def begin(self, model: Any) -> None:
        """Once an update: flatten the rollout, and exchange the few numbers of it that every process needs."""
        buffer = model.rollout_buffer
        with _numpy_kept():
            next(
                iter(buffer.get(1))
            )  # the buffer's own way: rewards under other weights, then (T, n, ...) -> (n T, ...)
        generator: Any = np.random.get_state(legacy=True)
        drawn = {"numpy's global generator": (zlib.crc32(generator[1].tobytes()), generator[2])}
        state = {**drawn, **alike(model.policy, model.device)}
        mine = (buffer.advantages.ravel(), buffer.values.ravel(), buffer.returns.ravel(), state)
        advantages, values, returns, states = zip(*self.processes.gather(mine), strict=True)
        check_alike(states)
        self._advantages = torch.as_tensor(np.concatenate(advantages), device=model.device)  # (N T,)
        self._fit = np.concatenate(values), np.concatenate(returns)
        self._rows = self.processes.part(len(self._advantages))
        self._shares = []
        self._drawn = 0

    def of(self, model: Any, batch_size: int | None, normalise: bool) -> Iterator[Piece]:
        """Every process draws the same permutation of all rows and keeps its own of each minibatch, in that order."""
        total = len(self._advantages)
        order = np.random.permutation(total)
        size = total if batch_size is None else batch_size
        for start in range(0, total, size):
            chosen = order[start : start + size]  # (B,)
            mine, share = own_rows(chosen, self._rows)
            advantages = self._advantages[torch.as_tensor(chosen)]
            centre, spread = torch.zeros(()), torch.ones(())
            if normalise and len(chosen) > 1:
                centre, spread = advantages.mean(), advantages.std() + 1e-8
            own = (self._advantages[self._rows][torch.as_tensor(mine)] - centre) / spread
            self._shares.append(share)
            yield Piece(model.rollout_buffer._get_samples(mine), own, share)

    def drawing(self, model: Any) -> AbstractContextManager[None]:
        """Each process draws numbers of its own here, and afterwards all of them go on from where they were."""
        self._drawn += 1
        return own_numbers(model.device, model.seed or 0, model._n_updates, self._drawn - 1, self.processes.rank)

    def mean(self, value: Any, piece: Piece) -> Any:
        return self.processes.sum(torch.tensor([float(value) * piece.share], dtype=torch.float64)).item()

    def means(self, seen: Mapping[str, list[float]]) -> Mapping[str, list[float]]:
        flat = [
            float(value) * share
            for values in seen.values()
            for value, share in zip(values, self._shares[-len(values) :], strict=True)
        ]
        summed = iter(self.processes.sum(torch.tensor(flat, dtype=torch.float64)).tolist())
        return {name: [next(summed) for _ in values] for name, values in seen.items()}

    def reduce(self, parameters: Iterator[Tensor]) -> None:
        sum_gradients([parameter for parameter in parameters if parameter.requires_grad], self.processes)

    def fit(self, buffer: Any) -> tuple[Array, Array]:
        return self._fit


@contextmanager
def _numpy_kept() -> Iterator[None]:
    state = np.random.get_state()
    try:
        yield
    finally:
        np.random.set_state(state)
