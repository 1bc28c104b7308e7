"""What p processes that train one run take: work that is divided, work that every process repeats, exchanges, and waiting.

Pure functions, in seconds and bytes. An all-reduce of S bytes over p processes, each link with latency a and bandwidth w:

* ring, which is what gloo does (``gloo/allreduce.cc``: ``UNSPECIFIED`` is ``RING``, a reduce-scatter and an all-gather of p - 1
  steps each) and NCCL for large tensors: 2 (p - 1) a + 2 (p - 1) / p S / w;
* double binary tree, which NCCL takes where latency counts (``src/graph/tuning.cc``: 2 log2 of the nodes times the latency of
  a step, half of the bandwidth): 2 log2(p) a + 2 S / w.

An all-gather of s bytes from each is p - 1 steps of a ring: (p - 1) (a + s / w). Patarasuk and Yuan (2009), Bandwidth optimal
all-reduce algorithms for clusters of workstations, has the first and the third.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np


@dataclass(frozen=True)
class Link:
    """``latency`` seconds a step, ``bandwidth`` bytes a second."""

    name: str
    latency: float
    bandwidth: float
    algorithm: Literal["ring", "ring or tree"] = "ring"


def all_reduce(size: float, p: int, link: Link) -> float:
    if p == 1:
        return 0.0
    ring = 2 * (p - 1) * link.latency + 2 * (p - 1) / p * size / link.bandwidth
    if link.algorithm == "ring":
        return ring
    tree = 2 * math.log2(p) * link.latency + 2 * size / link.bandwidth
    return min(ring, tree)


def all_gather(size: float, p: int, link: Link) -> float:
    """``size`` bytes from every process."""
    return 0.0 if p == 1 else (p - 1) * (link.latency + size / link.bandwidth)


def gather_objects(size: float, p: int, link: Link) -> float:
    """``torch.distributed.all_gather_object``: the sizes, 8 bytes each, and then the pickles."""
    return all_gather(8, p, link) + all_gather(size, p, link)


def most_rows(batch: int, p: int, total: int) -> float:
    """Expected rows of the process that has most of a minibatch, which is drawn without replacement from ``total`` rows.

    Each has a hypergeometric number, taken as normal here, and together they have them all: the differences from batch / p are
    those of p independent normals from their own mean, whose largest is on average that of the normals themselves.
    """
    if p == 1:
        return float(batch)
    left = (total - batch) / max(1, total - 1)
    spread = math.sqrt(batch / p * left)
    return min(float(batch), batch / p + spread * largest_of_normals(p))


@cache
def largest_of_normals(p: int) -> float:
    """E max of p standard normals: the integral of x d Phi(x)^p, by the trapezoid rule."""
    x = np.linspace(-10, 10, 20_001)
    phi = np.array([0.5 * math.erfc(-value / math.sqrt(2)) for value in x])
    power = phi**p
    middle = (x[1:] + x[:-1]) / 2
    return float((middle * np.diff(power)).sum())


@dataclass(frozen=True)
class Line:
    """``fixed`` + ``each`` x n seconds."""

    fixed: float
    each: float = 0.0

    def at(self, n: float) -> float:
        return self.fixed + self.each * n


def line(sizes: Sequence[float] | np.ndarray, spent: Sequence[float] | np.ndarray) -> Line:
    """Least squares of relative errors; neither part below zero."""
    n, t = np.asarray(sizes, dtype=float), np.asarray(spent, dtype=float)
    each, fixed = np.polyfit(n, t, 1, w=1 / t)
    if fixed < 0:
        return Line(0.0, float((n / t).sum() / ((n / t) ** 2).sum()))
    if each < 0:
        return Line(float((1 / t).sum() / (1 / t**2).sum()))
    return Line(float(fixed), float(each))


@dataclass(frozen=True)
class Iteration:
    """A rollout and an update of a PPO whose N environments are divided, and whose policy acts for all N in every process.

    ``steps`` of each environment, ``batch`` rows of a minibatch, of all processes; ``gradient`` bytes.
    """

    envs: int
    steps: int
    batch: int
    epochs: int
    gradient: float
    simulate: Line  # of environments that this process steps
    act: Line  # of environments of all processes
    draw: Line  # of rows of a minibatch, of all processes: which of them are this process's
    learn: Line  # of this process's rows of a minibatch
    rest: float = 0.0

    @property
    def transitions(self) -> int:
        return self.envs * self.steps

    @property
    def minibatches(self) -> int:
        return self.epochs * -(-self.transitions // self.batch)


@dataclass(frozen=True)
class Seconds:
    """Of one iteration: ``repeated`` by every process, ``divided``, exchanged, and waited for the one with most rows."""

    divided: float
    repeated: float
    waiting: float
    gradients: float
    gathers: float
    serial: float

    @property
    def total(self) -> float:
        return self.divided + self.repeated + self.waiting + self.gradients + self.gathers + self.serial


EPISODES, AGREEMENT, METRICS = 200, 5, 400
"""Bytes a process tells of: episodes that ended, whether it was asked to stop, and what is logged of an update."""


def seconds(work: Iteration, p: int, link: Link, serial: float = 0.0) -> Seconds:
    """Of one iteration of ``work`` on ``p`` processes. ``serial``: evaluation and checkpoints, which process 0 does alone."""
    m = work.minibatches
    share = work.batch / p
    most = most_rows(work.batch, p, work.transitions)
    per_row = m * work.learn.each
    divided = work.steps * work.simulate.each * work.envs / p + per_row * share
    repeated = work.steps * (work.simulate.fixed + work.act.at(work.envs)) + m * (
        work.learn.fixed + work.draw.at(work.batch)
    )
    gathers = sum(
        gather_objects(size, p, link) for size in (12 * work.transitions / p, EPISODES, AGREEMENT, AGREEMENT)
    ) + sum(all_reduce(size, p, link) for size in (METRICS, 8))
    return Seconds(
        divided=divided,
        repeated=repeated + work.rest,
        waiting=per_row * (most - share),
        gradients=m * all_reduce(work.gradient, p, link),
        gathers=gathers,
        serial=serial,
    )
