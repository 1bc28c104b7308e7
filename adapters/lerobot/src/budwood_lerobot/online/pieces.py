"""A minibatch whose rows are divided among processes: each takes those of its own environments.

What the processes must agree on is exchanged here: gradients, the numbers of an update, and whether all are still the same.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from budwood.api import Array, ConfigError, ContributionError, Processes, StateTree
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
    """This process's b rows of a minibatch of B, with advantages as they enter the loss; ``share`` is b / B.

    A mean over b rows, times the share and summed over all processes, is the mean over all B, and so are gradients of it.
    """

    samples: Samples
    share: float = 1.0


def pieces(
    samples: Samples, among: Among, size: int, normalise: bool, generator: np.random.Generator, device: str
) -> Iterator[Piece]:
    """One epoch. Every process draws the same order of all rows and keeps its own of each minibatch."""
    for chosen in minibatches(len(among.advantages), size, generator):  # (B,)
        mine = chosen[(chosen >= among.rows.start) & (chosen < among.rows.stop)] - among.rows.start  # (b,)
        share = len(mine) / len(chosen)
        read = mine if len(mine) else torch.zeros(1, dtype=torch.long)  # so that its graph has all the parameters
        batch = samples.at(read, device)
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


def sum_gradients(parameters: Sequence[Tensor], processes: Processes) -> None:
    """One exchange: all gradients in a row, and a 1 for every parameter that has one."""
    flat = [torch.zeros_like(p).ravel() if p.grad is None else p.grad.ravel() for p in parameters]
    wide = torch.promote_types(flat[0].dtype, torch.float32)
    present = torch.tensor([p.grad is not None for p in parameters], dtype=wide, device=flat[0].device)
    summed = processes.sum(torch.cat([*(part.to(wide) for part in flat), present]))
    *gradients, counted = summed.split([*(p.numel() for p in parameters), len(parameters)])
    for parameter, gradient, count in zip(parameters, gradients, counted.tolist(), strict=True):
        parameter.grad = gradient.view_as(parameter).to(parameter.dtype) if count else None


@contextmanager
def own_numbers(device: str, *words: int) -> Iterator[None]:
    """Each process draws numbers of its own here, told by ``words``; afterwards all go on from where they were."""
    devices = [torch.cuda.current_device()] if device.startswith("cuda") else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(int(np.random.SeedSequence(words).generate_state(1)[0]))
        yield


def own_generators(state: StateTree, processes: Processes) -> StateTree:
    """Generators as process 0 saved them: on each machine it computes on its first GPU, and others on theirs."""
    if not processes.several or not state["cuda"]:
        return state
    return {**state, "cuda": [state["cuda"][0]] * torch.cuda.device_count()}


def check(environments: int, processes: Processes) -> None:
    """:raises ConfigError: they cannot be divided."""
    if environments % processes.count:
        raise ConfigError(
            f"{environments} environments cannot be divided among {processes.count} processes",
            where="env.n_envs",
            do=f"Use a multiple of {processes.count}",
        )


def check_together(policy: torch.nn.Module, device: str, processes: Processes) -> None:
    """:raises ContributionError: before an update the processes are not the same any more."""
    if not processes.several:
        return
    generator = torch.cuda.get_rng_state() if device.startswith("cuda") else torch.get_rng_state()
    with torch.no_grad():
        parameters = sum(float(parameter.double().sum()) for parameter in policy.parameters())
    mine = {
        "torch's global generator": zlib.crc32(generator.numpy().tobytes()),
        "the policy's parameters": struct.pack("<d", parameters),
    }
    for rank, other in enumerate(every := processes.gather(mine)):
        for name, value in every[0].items():
            if other[name] != value:
                raise ContributionError(
                    f"the processes have drifted apart: {name} in process {rank} is not that of process 0",
                    where="processes",
                    do="A plugin or an environment draws from it, or changes it, in one process and not in another: let it "
                    "use a generator of its own, such as run.rng(...)",
                )
