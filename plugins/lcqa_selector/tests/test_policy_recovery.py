"""A softmax policy over all subsets of a small pool, trained on the reward itself: what the reward asks for, without a model.

k = 6 passages, 64 subsets, two of the passages are the evidence.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from budwood_lcqa_selector.parsing import Selection
from budwood_lcqa_selector.reward import MODES, Mode, score

K, GOLD = 6, ("1", "4")
SUBSETS = [tuple(str(i) for i in range(K) if bits[i]) for bits in itertools.product((0, 1), repeat=K)]
SIZES = np.array([len(subset) for subset in SUBSETS])
COVERAGE = np.array([len({*subset} & {*GOLD}) / 2 for subset in SUBSETS])


def rewards(red: int, mode: Mode = "within") -> np.ndarray:
    """(64,) rewards of the subsets."""
    return np.array([score(Selection(subset), [GOLD], red=red, mode=mode).value for subset in SUBSETS])


MEASURES = {"coverage": COVERAGE, "size": SIZES, "reward": rewards(1)}


def softmax(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits - logits.max())
    return weights / weights.sum()


def exact(logits: np.ndarray, reward: np.ndarray, steps: int, rate: float = 1.0) -> np.ndarray:
    """GRPO with a group of infinite size: A = (R - E R) / (sd R + 1e-4), gradient of the logits p A."""
    for _ in range(steps):
        p = softmax(logits)
        mean = p @ reward
        advantage = (reward - mean) / (np.sqrt(p @ (reward - mean) ** 2) + 1e-4)
        logits = logits + rate * p * advantage
    return logits


def sampled(logits: np.ndarray, reward: np.ndarray, steps: int, rng: np.random.Generator) -> np.ndarray:
    """GRPO with groups of eight."""
    for _ in range(steps):
        p = softmax(logits)
        group = rng.choice(len(p), size=8, p=p)
        found = reward[group]
        advantage = (found - found.mean()) / (found.std(ddof=1) + 1e-4)
        np.add.at(logits := logits.copy(), group, 0.5 * advantage / 8)
        logits -= 0.5 * advantage.sum() / 8 * p
    return logits


def over_picking(rng: np.random.Generator) -> np.ndarray:
    """A start that takes most of the pool, as untrained pickers do: few samples of a tight stage earn anything."""
    return 0.5 * rng.standard_normal(len(SUBSETS)) + 1.5 * SIZES


@pytest.mark.parametrize("red", [4, 1])
@pytest.mark.parametrize("mode", [mode for mode in MODES if mode != "none"])
def test_exact_training_covers_within_the_limit(mode, red):
    p = softmax(exact(np.zeros(64), rewards(red, mode), 2_000))
    allowed = {"within": 2, "paper": 2 + red, "beyond": 2 + red}[mode]
    assert p[(COVERAGE == 1) & (allowed >= SIZES)].sum() > 0.95


def test_without_the_limit_nothing_is_left_out():
    """The paper's ablation: coverage alone holds the size to nothing."""
    p = softmax(exact(over_picking(np.random.default_rng(0)), rewards(1, "none"), 2_000))
    assert p @ COVERAGE > 0.95
    assert p @ SIZES > 4


def test_a_first_stage_keeps_coverage_of_a_start_that_picks_too_much():
    """The shape of the paper's ablation on 20 starts with the same number of steps; the page of the method tells the rest:
    the policy that leaves the first stage has made up its mind, and where that is above the tight limit nothing moves it."""
    half, found = 150, {"two stages": [], "second only": []}
    for seed in range(20):
        start = over_picking(np.random.default_rng(seed))
        rng = np.random.default_rng([seed, 1])
        found["two stages"].append(sampled(sampled(start, rewards(4), half, rng), rewards(1), half, rng))
        found["second only"].append(sampled(start, rewards(1), 2 * half, np.random.default_rng([seed, 1])))
    mean = {
        name: {what: np.mean([softmax(row) @ of for row in rows]) for what, of in MEASURES.items()}
        for name, rows in found.items()
    }
    print(mean)
    assert mean["two stages"]["coverage"] > mean["second only"]["coverage"] + 0.1
    assert mean["two stages"]["size"] > mean["second only"]["size"] + 1
