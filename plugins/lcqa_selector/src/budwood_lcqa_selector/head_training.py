"""GRPO on the selector head: groups of picks, group-relative advantages, both stages, the reward of :mod:`.reward`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from budwood.api import Array
from budwood_lcqa_selector.dataset import present
from budwood_lcqa_selector.head import SelectorHead, answer
from budwood_lcqa_selector.head_features import pools
from budwood_lcqa_selector.parsing import parse
from budwood_lcqa_selector.prompts import labels
from budwood_lcqa_selector.records import PoolRow
from budwood_lcqa_selector.reward import Mode, score
from budwood_lcqa_selector.stages import Stage, StageController, Switch


@dataclass(frozen=True)
class Training:
    """``steps`` of ``questions`` x ``group`` picks, Adam with ``rate``; an evaluation every ``every`` steps."""

    stages: Sequence[Stage]
    mode: Mode = "within"
    gamma: float = 0.5
    steps: int = 300
    questions: int = 32
    group: int = 8
    rate: float = 0.05
    every: int = 25


class Step(NamedTuple):
    """Means over the picks of a step; ``stage``: its index; ``flat``: part of the groups without spread."""

    step: int
    stage: int
    reward: float
    coverage: float
    size: float
    flat: float


@dataclass
class Course:
    """What training went through."""

    steps: list[Step] = field(default_factory=list)
    switches: list[Switch] = field(default_factory=list)


class Data:
    """Rows with their features, and the evidence as labels."""

    def __init__(self, rows: Sequence[PoolRow]) -> None:
        self.rows, self.pools = list(rows), pools(rows)
        self.labels = [labels(len(row.passages)) for row in rows]
        self.gold = [_relabelled(row) for row in rows]

    def rewards(
        self, index: Array, order: Sequence[Sequence[int]], training: Training, stage: Stage
    ) -> tuple[Array, Array]:
        """(n,) rewards and (n,) coverages of picks for the questions ``index`` (n,), by way of the written answer."""
        found = [
            score(
                parse(answer(places, self.rows[i]), self.labels[i]),
                self.gold[i],
                red=stage.red,
                gamma=training.gamma,
                mode=training.mode,
            )
            for i, places in zip(index, order, strict=True)
        ]
        values = [(0.0, 0.0) if item is None else (item.value, item.coverage) for item in found]
        rewards, coverages = np.array(values).T
        return rewards, coverages


def _relabelled(row: PoolRow) -> list[tuple[str, ...]]:
    shown = present(row.passages)
    return [tuple(shown.relabelled(gold)) for gold in row.gold_sets]


def train(
    head: SelectorHead,
    data: Data,
    held_out: Data,
    training: Training,
    seed: int,
    after: Callable[[Step], None] | None = None,
) -> Course:
    """Train ``head`` in place; ``after`` is told of every step. ``held_out`` decides when a stage is on a plateau."""
    rng, course = np.random.default_rng(seed), Course()
    controller = StageController(training.stages)
    first, second = np.zeros_like(head.weights), np.zeros_like(head.weights)
    for step in range(1, training.steps + 1):
        index = np.repeat(rng.integers(len(data.rows), size=training.questions), training.group)
        picks = head.pick(data.pools[index], rng)
        rewards, coverages = data.rewards(index, picks.order, training, controller.stage)
        advantages, flat = group_advantages(rewards, training.group)
        gradient = (advantages[:, None] * picks.score).mean(axis=0)  # the ratio is 1: one update a batch
        first = 0.9 * first + 0.1 * gradient
        second = 0.99 * second + 0.01 * gradient**2
        head.weights += training.rate * (first / (1 - 0.9**step)) / (np.sqrt(second / (1 - 0.99**step)) + 1e-8)
        size = float(np.mean([len(places) for places in picks.order]))
        course.steps.append(Step(step, controller.index, float(rewards.mean()), float(coverages.mean()), size, flat))
        if after is not None:
            after(course.steps[-1])
        controller.stepped(step)
        if step % training.every == 0 and not controller.last:
            controller.evaluated(step, greedy_reward(head, held_out, training, controller.stage))
    course.switches = controller.switches
    return course


def greedy_reward(head: SelectorHead, data: Data, training: Training, stage: Stage) -> float:
    """Mean reward in ``stage`` of the most likely picks."""
    everything = np.arange(len(data.rows))
    return float(data.rewards(everything, head.pick(data.pools).order, training, stage)[0].mean())


def group_advantages(rewards: Array, group: int) -> tuple[Array, float]:
    """(n,) rewards in groups side by side -> (n,) advantages (R - mean) / (sd + 1e-4), and the part of groups with sd 0."""
    grouped = rewards.reshape(-1, group)
    spread = grouped.std(axis=1, ddof=1, keepdims=True)
    advantages = (grouped - grouped.mean(axis=1, keepdims=True)) / (spread + 1e-4)
    return advantages.ravel(), float((spread == 0).mean())
