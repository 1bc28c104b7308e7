"""What the hypergradient of reward shaping, and rewards under other weights, cost beside PPO's own work.

    OMP_NUM_THREADS=1 python tests/benchmarks/hypergradient.py                # all four, about 2 minutes
    OMP_NUM_THREADS=1 python tests/benchmarks/hypergradient.py update memory

A real run of PPO on an environment that only makes numbers: 17 observations, 6 actions, 64 x 64 networks, episodes of 100
steps. CPU time; where two things are compared, in interleaved pairs whose order alternates, with a bootstrap 95 % interval
of the median ratio. Printed: the load of the machine, the numbers, and the bound they are held against.

``update``: the hypergradient of a rollout of 2,048 samples against one PPO update (4 epochs, batch 512), bound 0.5.
``samples``: its time over 2,048 to 65,536 samples; the exponent fitted to it, bound 1.1.
``relabel``: rewards and advantages under other weights against one pass of Stable-Baselines3's GAE. Relabelling contains
one such pass; what it adds is held against the bound 0.1, a tenth of a pass.
``memory``: bytes of the stored terms, computed from shapes and counted in the buffer.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from overhead import Nowhere, interval
from stable_baselines3.common.buffers import RolloutBuffer

from budwood import config
from budwood.api import Rollout
from budwood.planning import plan
from budwood.progress import silent
from budwood.session import Rhythm, Session

TERMS, ALWAYS = 3, 10**9
SAMPLES = (2_048, 8_192, 32_768, 65_536)


class Numbers(gym.Env[Any, Any]):
    """Gaussian observations and terms; an episode succeeds by luck, so that the task's reward varies."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (17,), np.float32)
    action_space = gym.spaces.Box(-1.0, 1.0, (6,), np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.t = 0
        return self._obs(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.t += 1
        terms = self.np_random.normal(size=TERMS + 1).tolist()
        info = {"luck": terms[-1], **{f"t{k}": terms[k] for k in range(TERMS)}}
        return self._obs(), 0.0, self.t == 100, False, info

    def _obs(self) -> Any:
        return self.np_random.normal(size=17).astype(np.float32)


@dataclass
class Trained:
    """A PPO model after one rollout of ``steps`` by ``envs``, that rollout, and the search that follows it."""

    trainer: Any
    search: Any
    rollout: Rollout

    def hypergradient(self) -> None:
        before = len(self.search.gradients)
        self.search.on_rollout_end(None, self.rollout)
        assert len(self.search.gradients) == before + 1, "a rollout without a gradient costs nothing and says nothing"

    def update(self) -> None:
        self.trainer.native.train()

    def collect(self) -> Any:
        """The buffer with a new rollout that no update has seen."""
        model = self.trainer.native
        model.collect_rollouts(model.env, model._init_callback(None), model.rollout_buffer, model.n_steps)
        return model.rollout_buffer


def trained(steps: int, envs: int) -> Trained:
    run = {
        "device": "cpu",
        "trainer": {
            "kind": "sb3",
            "algo": "ppo",
            "total_timesteps": steps * envs,
            "args": {"n_steps": steps, "batch_size": 512, "n_epochs": 4},
        },
        "env": {"id": f"{__name__}:Numbers", "n_envs": envs},
        "plugins": {
            "reward_shaping": {
                "terms": [{"name": f"t{k}", "info": f"t{k}"} for k in range(TERMS)],
                "criteria": [{"name": "luck", "source": "luck", "stat": "final", "op": ">=", "threshold": 0.0}],
                "weights": {"scale": None},
                "outer": {"inner_iterations": ALWAYS, "rollouts": ALWAYS},
            }
        },
    }
    planned = plan(config.load(run), None)
    trainer = planned.build_trainer()
    (search,) = (item.value for item in planned.contributions.callbacks)
    seen: list[Rollout] = []
    follow = search.on_rollout_end

    def remember(control: Any, rollout: Rollout) -> None:
        seen.append(rollout)
        follow(control, rollout)

    search.on_rollout_end = remember
    trainer.fit(Session(trainer, planned.contributions, Nowhere(), silent(), Rhythm()))
    search.on_rollout_end = follow
    return Trained(trainer, search, seen[0])


def spent(work: Callable[[], object], times: int = 1) -> float:
    """Seconds of CPU, a time."""
    started = time.process_time()
    for _ in range(times):
        work()
    return (time.process_time() - started) / times


def pairs(ours: Callable[[], object], theirs: Callable[[], object], count: int, times: int = 1) -> Any:
    """(count, 2) seconds of ours and theirs, after one uncounted round of each."""
    ours(), theirs()
    rows = []
    for pair in range(count):
        if pair % 2:
            rows.append((spent(ours, times), spent(theirs, times)))
        else:
            second = spent(theirs, times)
            rows.append((spent(ours, times), second))
    return np.array(rows)


def said(bound: float, worst: float) -> str:
    return f"bound {bound:g}: {'holds' if worst <= bound else 'DOES NOT HOLD'}"


def milliseconds(seconds: Any) -> str:
    return f"{1e3 * float(np.median(seconds)):7.2f} ms"


def update(count: int) -> None:
    run = trained(256, 8)
    rows = pairs(run.hypergradient, run.update, count)
    ratios = rows[:, 0] / rows[:, 1]
    low, high = interval(ratios)
    print(
        f"update    hypergradient {milliseconds(rows[:, 0])}, PPO update {milliseconds(rows[:, 1])}, ratio "
        f"{np.median(ratios):.3f} [{low:.3f}, {high:.3f}] over {count} pairs, {said(0.5, high)}"
    )


def samples(count: int) -> None:
    medians = []
    for size in SAMPLES:
        run = trained(size // 8, 8)
        run.hypergradient()
        medians.append(float(np.median([spent(run.hypergradient) for _ in range(count)])))
        run.trainer.close()
    for size, seconds in zip(SAMPLES, medians, strict=True):
        share = seconds / medians[0] / (size / SAMPLES[0])
        print(f"samples   {size:7,d}: {milliseconds(seconds)}, {1e6 * seconds / size:6.2f} us a sample, x{share:.2f}")
    exponent = float(np.polyfit(np.log(SAMPLES), np.log(medians), 1)[0])
    print(f"samples   time grows with N to the power {exponent:.3f}, {said(1.1, exponent)}")


def relabel(count: int) -> None:
    for steps, envs in ((256, 8), (2_048, 1)):
        buffer = trained(steps, envs).collect()
        last = buffer._last

        def gae(buffer: Any = buffer, last: Any = last) -> None:
            RolloutBuffer.compute_returns_and_advantage(buffer, *last)

        rows = pairs(buffer.relabel, gae, count, times=10)
        added = rows[:, 0] / rows[:, 1] - 1.0
        low, high = interval(added)
        print(
            f"relabel   {steps:5,d} x {envs}: {milliseconds(rows[:, 0])}, of which GAE {milliseconds(rows[:, 1])}, adds "
            f"{np.median(added):.3f} [{low:.3f}, {high:.3f}] of a pass over {count} pairs, {said(0.1, high)}"
        )


def memory(count: int) -> None:
    buffer = trained(256, 8).collect()
    steps, envs, columns = buffer.terms.shape
    computed = steps * envs * (8 * columns + 4)
    counted = buffer.terms.nbytes + buffer.shaped.nbytes
    observations = buffer.observations.nbytes
    print(
        f"memory    T n (8 K + 4) = {steps} x {envs} x (8 x {columns} + 4) = {computed:,} bytes, counted {counted:,}, "
        f"{counted / observations:.2f} of the observations' {observations:,}: "
        f"{'holds' if counted == computed else 'DOES NOT HOLD'}"
    )


MEASUREMENTS = {"update": update, "samples": samples, "relabel": relabel, "memory": memory}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("which", nargs="*", choices=[*MEASUREMENTS, []], default=[])
    parser.add_argument("--pairs", type=int, default=15)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in options.which or MEASUREMENTS:
        print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
        MEASUREMENTS[name](options.pairs)


if __name__ == "__main__":
    main()
