"""A minibatch whose rows are divided among processes: each takes those of its own environments."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from budwood.api import Array, Processes, StateTree
from budwood.api.sharing import own_rows
from budwood_lerobot.online.samples import Collected, Samples, minibatches

EPSILON = 1e-8
WORST = "_worst"
"""Ends the name of a number that is the largest over rows, and not their mean."""


@dataclass(frozen=True)
class Among:
    """Where samples stand among those of all processes: at the slice ``rows`` of M, of which this is known: (M,) each.

    Samples of a process that has none to learn from are one that counts for nothing.
    """

    rows: slice
    old_values: Tensor
    advantages: Tensor
    returns: Tensor

    @staticmethod
    def alone(samples: Samples) -> Among:
        return Among(slice(0, len(samples)), samples.old_values, samples.advantages, samples.returns)

    @staticmethod
    def of(collected: Collected, advantages: Array, keep: Array, rows: slice) -> Among:
        """``collected``, ``advantages`` and ``keep`` (T, N) with the environments of all, ``rows`` those of this process."""
        first, count = (int(keep[:, part].sum()) for part in (slice(rows.start), rows))
        values = torch.from_numpy(np.stack(collected.values).astype(np.float32).T[keep.T])
        given = torch.from_numpy(advantages.T[keep.T])
        return Among(slice(first, first + count), values, given, given + values)


@dataclass(frozen=True)
class Piece:
    """This process's b rows of a minibatch of B, with advantages as they enter the loss; ``share`` is b / B: see
    ``budwood.api.sharing``."""

    samples: Samples
    share: float = 1.0


def pieces(
    samples: Samples, among: Among, size: int, normalise: bool, generator: np.random.Generator, device: str
) -> Iterator[Piece]:
    """One epoch. Every process draws the same order of all rows and keeps its own of each minibatch."""
    for chosen in minibatches(len(among.advantages), size, generator):  # (B,)
        mine, share = own_rows(chosen, among.rows)
        batch = samples.at(mine, device)
        if normalise and len(chosen) > 1:
            batch = replace(batch, advantages=normalised(batch.advantages, among.advantages[chosen]))
        yield Piece(batch, share)


def normalised(advantages: Tensor, every: Tensor) -> Tensor:
    """Of ``every``, zero mean and unit spread; ``advantages`` are some of them."""
    return (advantages - every.mean()) / (every.std() + EPSILON)


def metrics_of(seen: Mapping[str, list[float]], shares: list[float], processes: Processes) -> dict[str, float]:
    """Means over minibatches of what the pieces of all processes saw of each: ``seen`` name -> a number a minibatch."""
    parts = processes.gather((dict(seen), shares))
    found = {}
    for name in seen:
        minibatches = zip(*(zip(values[name], weights, strict=True) for values, weights in parts), strict=True)
        found[name] = float(np.mean([_of_minibatch(name, pieces) for pieces in minibatches]))
    return found


def _of_minibatch(name: str, pieces: Sequence[tuple[float, float]]) -> float:
    """``pieces``: (value, share) of each process."""
    counting = [(value, share) for value, share in pieces if share]
    if name.endswith(WORST):
        return max(value for value, _ in counting)
    return sum(value * share for value, share in counting)


def own_generators(state: StateTree, processes: Processes) -> StateTree:
    """Generators as process 0 saved them: on each machine it computes on its first GPU, and others on theirs."""
    if not processes.several or not state["cuda"]:
        return state
    return {**state, "cuda": [state["cuda"][0]] * torch.cuda.device_count()}
