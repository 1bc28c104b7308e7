"""CPU time of training through budwood against a bare Stable-Baselines3 script, in interleaved pairs.

    OMP_NUM_THREADS=1 python tests/benchmarks/overhead.py                 # all three comparisons, about 9 minutes
    OMP_NUM_THREADS=1 python tests/benchmarks/overhead.py none --pairs 5

PPO on 8 x HalfCheetah-v5, n_steps 256, batch 512, 4 epochs, one torch thread; tracking, evaluation and checkpoints off.
The order within a pair alternates. Printed: medians in microseconds of CPU per environment step, the median ratio with a
bootstrap 95 % interval, and the bound it is held against.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env

from budwood import config
from budwood.planning import plan
from budwood.progress import silent
from budwood.rhythm import Rhythm
from budwood.session import Session

TASK, ENVS = "HalfCheetah-v5", 8
ARGS: dict[str, Any] = {"n_steps": 256, "batch_size": 512, "n_epochs": 4}
SHAPING = {"terms": ["forward", "effort", "upright"], "outer": None, "weights": {"scale": None}}
CRITERIA = ["advances", "stays_upright"]
SEARCH = {**SHAPING, "criteria": CRITERIA, "outer": {}}
"""The whole plugin between two outer steps: terms, the task's reward, relabelling; no hypergradient in so few rollouts."""
COMPARISONS: dict[str, tuple[dict[str, Any], float]] = {
    "none": ({}, 1.01),
    "shaping": ({"reward_shaping": SHAPING}, 1.02),
    "search": ({"reward_shaping": SEARCH}, 1.02),
}


class Nowhere:
    """A recorder that keeps nothing."""

    def metrics(self, data: Mapping[str, float], step: int) -> None: ...

    def flush(self) -> None: ...


def bare(steps: int) -> float:
    env = make_vec_env(TASK, n_envs=ENVS, seed=0)
    model = PPO("MlpPolicy", env, seed=0, device="cpu", **ARGS)
    started = time.process_time()
    model.learn(steps)
    spent = time.process_time() - started
    env.close()
    return spent


def grafted(steps: int, plugins: Mapping[str, Any]) -> float:
    run = {
        "device": "cpu",
        "trainer": {"kind": "sb3", "algo": "ppo", "total_timesteps": steps, "args": ARGS},
        "env": {"id": TASK, "n_envs": ENVS},
        "plugins": plugins,
    }
    planned = plan(config.load(run), None)
    trainer = planned.build_trainer()
    session = Session(trainer, planned.contributions, Nowhere(), silent(), Rhythm())
    started = time.process_time()
    trainer.fit(session)
    spent = time.process_time() - started
    trainer.close()
    return spent


def compare(ours: Callable[[int], float], steps: int, pairs: int) -> tuple[np.ndarray, np.ndarray]:
    """Seconds of CPU (pairs,) of ours and of the bare script, after one uncounted round of each."""
    ours(steps), bare(steps)
    rows = []
    for pair in range(pairs):
        if pair % 2:
            rows.append((ours(steps), bare(steps)))
        else:
            theirs = bare(steps)
            rows.append((ours(steps), theirs))
    return tuple(np.array(rows).T)  # type: ignore[return-value]


def interval(ratios: np.ndarray, draws: int = 10_000) -> tuple[float, float]:
    """Bootstrap 95 % interval of the median."""
    picks = np.random.default_rng(0).choice(ratios, (draws, len(ratios)))
    low, high = np.quantile(np.median(picks, axis=1), [0.025, 0.975])
    return float(low), float(high)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("which", nargs="*", choices=COMPARISONS, help="default: all")
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--steps", type=int, default=16_384)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in options.which or COMPARISONS:
        plugins, bound = COMPARISONS[name]
        ours, theirs = compare(lambda steps, plugins=plugins: grafted(steps, plugins), options.steps, options.pairs)
        ratios = ours / theirs
        low, high = interval(ratios)
        print(
            f"{name:8s} bare {1e6 * np.median(theirs) / options.steps:6.1f} us/step, "
            f"budwood {1e6 * np.median(ours) / options.steps:6.1f} us/step, "
            f"ratio {np.median(ratios):.4f} [{low:.4f}, {high:.4f}] over {options.pairs} pairs, "
            f"bound {bound}: {'holds' if high <= bound else 'DOES NOT HOLD'}"
        )


if __name__ == "__main__":
    main()
