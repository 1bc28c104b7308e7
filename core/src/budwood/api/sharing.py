"""What an update that several processes share needs of each: its rows, random numbers of its own, and gradients of all.

Of B rows of a minibatch a process has b. A mean over the b, times its share b / B and summed over all processes, is the mean
over the B; so are gradients of it. Imports torch, so it is asked for by name.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from budwood.api.errors import ConfigError, ContributionError
from budwood.api.processes import Processes


def check_divided(environments: int, processes: Processes) -> None:
    """:raises ConfigError: they cannot be divided."""
    if environments % processes.count:
        raise ConfigError(
            f"{environments} environments cannot be divided among {processes.count} processes",
            where="env.n_envs",
            do=f"Use a multiple of {processes.count}",
        )


def own_rows[Rows: (np.ndarray[Any, Any], Tensor)](chosen: Rows, rows: slice) -> tuple[Rows, float]:
    """Of row numbers (B,) those in ``rows``, counted from its start, and their share. A process without any is given one
    that counts for nothing, so that its graph has all the parameters."""
    mine = chosen[(chosen >= rows.start) & (chosen < rows.stop)] - rows.start  # (b,)
    return mine if len(mine) else chosen[:1] * 0, len(mine) / len(chosen)


@contextmanager
def own_numbers(device: torch.device | str, *words: int) -> Iterator[None]:
    """A process draws numbers of its own here, told by ``words``; afterwards all of them go on from where they were."""
    device = torch.device(device)
    seed = int(np.random.SeedSequence(words).generate_state(1)[0])
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        # torch.manual_seed would seed all GPUs; where there are none it keeps the stack for later, which takes 1 ms
        torch.default_generator.manual_seed(seed)
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield


def sum_gradients(parameters: Sequence[Tensor], processes: Processes) -> None:
    """One exchange: all gradients in a row, in float32 or wider, and a 1 for every parameter that has one."""
    flat = [torch.zeros_like(p).ravel() if p.grad is None else p.grad.ravel() for p in parameters]
    present = torch.tensor([p.grad is not None for p in parameters], dtype=torch.float32, device=flat[0].device)
    summed = processes.sum(torch.cat([*flat, present]))  # of the widest dtype among them
    *gradients, counted = summed.split([*(p.numel() for p in parameters), len(parameters)])
    for parameter, gradient, count in zip(parameters, gradients, counted.tolist(), strict=True):
        parameter.grad = gradient.view_as(parameter).to(parameter.dtype) if count else None


def alike(policy: torch.nn.Module, device: torch.device | str) -> dict[str, Any]:
    """What has to be the same in every process before an update, in a few bytes, for :func:`check_alike`."""
    device = torch.device(device)
    generator = torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()
    with torch.no_grad():
        parameters = sum(float(parameter.double().sum()) for parameter in policy.parameters())
    return {
        "torch's global generator": zlib.crc32(generator.numpy().tobytes()),
        "the policy's parameters": struct.pack("<d", parameters),  # a NaN that all have is the same
    }


def check_alike(every: Sequence[Mapping[str, Any]]) -> None:
    """``every``: what each process said, by rank.

    :raises ContributionError: the processes are not the same any more.
    """
    for rank, other in enumerate(every):
        for name, value in every[0].items():
            if other[name] != value:
                raise ContributionError(
                    f"the processes have drifted apart: {name} in process {rank} is not that of process 0",
                    where="processes",
                    do="A plugin or an environment draws from it, or changes it, in one process and not in another: let it "
                    "use a generator of its own, such as run.rng(...)",
                )
