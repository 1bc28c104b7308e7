"""Environment steps per second of the vectorisations, bare and under PPO, on this machine.

    OMP_NUM_THREADS=1 python tests/benchmarks/environments.py [HalfCheetah-v5] [--envs 8] [--repeats 5]

Wall-clock medians over interleaved repeats. The default of ``env.vec`` was chosen from these figures.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch
from overhead import ARGS, Nowhere

from budwood import config
from budwood.planning import plan
from budwood.progress import silent
from budwood.rhythm import Rhythm
from budwood.session import Session


def trainer_for(task: str, envs: int, options: dict[str, object], steps: int):  # type: ignore[no-untyped-def]
    run = {
        "device": "cpu",
        "trainer": {"kind": "sb3", "algo": "ppo", "total_timesteps": steps, "args": ARGS},
        "env": {"id": task, "n_envs": envs, **options},
    }
    planned = plan(config.load(run), None)
    return planned, planned.build_trainer()


def stepping(task: str, envs: int, options: dict[str, object], steps: int) -> float:
    _, trainer = trainer_for(task, envs, options, steps)
    env = trainer.native.get_env()
    env.reset()
    generator = np.random.default_rng(0)
    low, high = env.action_space.low, env.action_space.high
    actions = generator.uniform(low, high, (64, envs, *low.shape)).astype(np.float32)
    started = time.perf_counter()
    for step in range(steps // envs):
        env.step(actions[step % 64])
    rate = steps / (time.perf_counter() - started)
    trainer.close()
    return rate


def training(task: str, envs: int, options: dict[str, object], steps: int) -> float:
    planned, trainer = trainer_for(task, envs, options, steps)
    session = Session(trainer, planned.contributions, Nowhere(), silent(), Rhythm())
    started = time.perf_counter()
    trainer.fit(session)
    rate = steps / (time.perf_counter() - started)
    trainer.close()
    return rate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", nargs="?", default="HalfCheetah-v5")
    parser.add_argument("--envs", type=int, default=8)
    parser.add_argument("--steps", type=int, default=16_384)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    kinds: dict[str, dict[str, object]] = {vec: {"vec": vec} for vec in ("dummy", "subproc", "envpool")}
    for what in (stepping, training):
        rates: dict[str, list[float]] = {name: [] for name in kinds}
        for _ in range(options.repeats):
            for name, extra in kinds.items():
                rates[name].append(what(options.task, options.envs, extra, options.steps))
        for name, values in rates.items():
            print(
                f"{what.__name__:9s} {name:8s} {np.median(values):8.0f} steps/s  ({min(values):.0f} to {max(values):.0f})"
            )


if __name__ == "__main__":
    main()
