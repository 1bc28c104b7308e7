"""Minibatches of an on-policy update: whole, or this process's rows of those that one process would have drawn.

The loss of a piece is a mean over its b rows; times b / B, and summed over all processes, it is the mean over the B rows of the
minibatch, which is the loss of one process. Gradients are summed so before they are clipped.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from budwood.api import Array, ContributionError, Processes


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
        mine = (buffer.advantages.ravel(), buffer.values.ravel(), buffer.returns.ravel(), _drift(model))
        advantages, values, returns, drift = zip(*self.processes.gather(mine), strict=True)
        _check_together(drift)
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
            mine = chosen[(chosen >= self._rows.start) & (chosen < self._rows.stop)]  # (b,)
            advantages = self._advantages[torch.as_tensor(chosen)]
            centre, spread = torch.zeros(()), torch.ones(())
            if normalise and len(chosen) > 1:
                centre, spread = advantages.mean(), advantages.std() + 1e-8
            # A piece without rows is given one that counts for nothing, so that its graph has all the parameters.
            read = mine if len(mine) else np.array([self._rows.start])
            share = len(mine) / len(chosen)
            self._shares.append(share)
            own = (self._advantages[torch.as_tensor(read)] - centre) / spread
            yield Piece(model.rollout_buffer._get_samples(read - self._rows.start), own, share)

    @contextmanager
    def drawing(self, model: Any) -> Iterator[None]:
        """Each process draws numbers of its own here, and afterwards all of them go on from where they were."""
        devices = [model.device] if model.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            words = (model.seed or 0, model._n_updates, self._drawn, self.processes.rank)
            torch.manual_seed(int(np.random.SeedSequence(words).generate_state(1)[0]))
            self._drawn += 1
            yield

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
        """One exchange: all gradients in a row, and a 1 for every parameter that has one."""
        every = [parameter for parameter in parameters if parameter.requires_grad]
        present = torch.tensor([parameter.grad is not None for parameter in every], device=every[0].device)
        flat = [torch.zeros_like(p).ravel() if p.grad is None else p.grad.ravel() for p in every]
        summed = self.processes.sum(torch.cat([*flat, present.to(flat[0].dtype)]))
        *gradients, counted = summed.split([*(p.numel() for p in every), len(every)])
        for parameter, gradient, count in zip(every, gradients, counted.tolist(), strict=True):
            parameter.grad = gradient.view_as(parameter) if count else None

    def fit(self, buffer: Any) -> tuple[Array, Array]:
        return self._fit


@contextmanager
def _numpy_kept() -> Iterator[None]:
    state = np.random.get_state()
    try:
        yield
    finally:
        np.random.set_state(state)


def _drift(model: Any) -> dict[str, Any]:
    """What has to be the same in every process before an update, in a few bytes."""
    generator: Any = np.random.get_state(legacy=True)
    with torch.no_grad():
        parameters = sum(float(parameter.double().sum()) for parameter in model.policy.parameters())
    on_device = torch.cuda.get_rng_state(model.device) if model.device.type == "cuda" else torch.get_rng_state()
    return {
        "numpy's global generator": (zlib.crc32(generator[1].tobytes()), generator[2]),
        "torch's global generator": zlib.crc32(on_device.numpy().tobytes()),
        "the policy's parameters": struct.pack("<d", parameters),  # a NaN that all have is the same
    }


def _check_together(drift: tuple[Mapping[str, Any], ...]) -> None:
    for name, value in drift[0].items():
        rank = next((rank for rank, other in enumerate(drift) if other[name] != value), None)
        if rank is not None:
            raise ContributionError(
                f"the processes have drifted apart: {name} in process {rank} is not that of process 0",
                where="processes",
                do="A plugin or an environment draws from it, or changes it, in one process and not in another: let it use "
                "a generator of its own, such as run.rng(...)",
            )
