"""kill -9 at any moment, resume, and the run is the one that was never killed: bit for bit.

A few kills run by default. The long form, 24 kills over two tasks:  pytest tests/test_crash.py -m slow
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import budwood
from budwood import journal
from budwood.checkpoint import Checkpoints
from budwood.folder import RunFolder, list_runs

pytest.importorskip("budwood_sb3")
pytest.importorskip("budwood_reward_shaping")

TASKS: dict[str, dict[str, Any]] = {
    "halfcheetah": {
        "name": "crash",
        "seed": 3,
        "device": "cpu",
        "trainer": {
            "kind": "sb3",
            "algo": "ppo",
            "total_timesteps": 1536,
            "args": {"n_steps": 64, "batch_size": 64, "n_epochs": 3, "policy_kwargs": {"net_arch": [16]}},
        },
        "env": {"id": "HalfCheetah-v5", "n_envs": 4, "normalize": {"obs": True, "reward": False}},
        "plugins": {
            "reward_shaping": {"terms": ["forward", "effort", "upright"], "weights": {"scale": None}, "outer": None}
        },
        "evaluation": {"every": 512, "episodes": 1},
        "checkpoint": {"every": 256, "keep": 2},
        "tracking": {"enabled": False},
    },
    "reach_budget": {
        "name": "crash",
        "seed": 1,
        "device": "cpu",
        "trainer": {
            "kind": "sb3",
            "algo": "ppo",
            "total_timesteps": 8192,
            "args": {"n_steps": 64, "batch_size": 128, "n_epochs": 2, "policy_kwargs": {"net_arch": [16]}},
        },
        "env": {"id": "budwood_reward_shaping.reach_budget:ReachBudget-v0", "n_envs": 8},
        "plugins": {
            "reward_shaping": {
                "terms": ["speed", "effort"],
                "criteria": [
                    {"name": "distance", "source": "x", "stat": "final", "op": ">=", "threshold": 4.0},
                    {"name": "budget", "source": "effort", "stat": "sum", "op": ">=", "threshold": -1.0},
                ],
                "outer": {"steps": 8, "inner_iterations": 2},
            }
        },
        "evaluation": {"every": None, "episodes": 2},
        "checkpoint": {"every": 1024, "keep": 2},
        "tracking": {"enabled": False},
    },
}


def in_child(work: Callable[[], None]) -> int:
    """Run ``work`` in a fork, so that heavy imports are paid once; the wait status."""
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        except BaseException as error:  # noqa: BLE001  the parent only sees the exit code
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        finally:
            os._exit(code)
    return os.waitpid(pid, 0)[1]


def die(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def kill_at_call(owner: Any, name: str, call: int, after: bool) -> None:
    """In this process: SIGKILL at the ``call``-th call of ``owner.name``, before it or after it."""
    original, count = getattr(owner, name), [0]

    def counting(*args: Any, **kwargs: Any) -> Any:
        count[0] += 1
        if count[0] == call and not after:
            die()
        answer = original(*args, **kwargs)
        if count[0] == call and after:
            die()
        return answer

    setattr(owner, name, counting)


def kill_at_time(seconds: float) -> None:
    signal.signal(signal.SIGALRM, die)
    signal.setitimer(signal.ITIMER_REAL, seconds)


def moments(generator: random.Random, seconds: float) -> Iterator[tuple[str, Callable[[], None]]]:
    """Endlessly: somewhere in a rollout, an update, a checkpoint, an outer step, or at a random instant."""
    from stable_baselines3 import PPO
    from stable_baselines3.common.vec_env import DummyVecEnv

    import budwood_reward_shaping.callback as outer

    places = {
        "rollout": lambda: (DummyVecEnv, "step_wait", generator.randint(2, 200)),
        "update": lambda: (PPO, "train", generator.randint(1, 5)),
        "fsync of a checkpoint": lambda: (os, "fsync", generator.randint(5, 40)),
        "checkpoint": lambda: (Checkpoints, "save", generator.randint(1, 4)),
        "outer step": lambda: (outer.Search, "on_update_end", generator.randint(1, 6)),
    }
    while True:
        for place, draw in places.items():
            owner, name, call = draw()
            after = generator.random() < 0.5
            yield (
                f"{'after' if after else 'before'} call {call} of {name} ({place})",
                lambda owner=owner, name=name, call=call, after=after: kill_at_call(owner, name, call, after),
            )
        instant = generator.uniform(0.05, seconds)
        yield f"after {instant:.2f} s", lambda instant=instant: kill_at_time(instant)


def train(config: Mapping[str, Any], output: Path) -> None:
    budwood.run({**config, "output": str(output)})


def train_with_kills(config: Mapping[str, Any], output: Path, plan: list[tuple[str, Callable[[], None]]]) -> int:
    """Kill the run at every moment of ``plan``, resuming in between; how many kills struck."""
    struck = 0
    for arm in [*(moment for _, moment in plan), lambda: None]:
        started = bool(list_runs(output))

        def work(arm: Callable[[], None] = arm, started: bool = started) -> None:
            arm()
            if started:
                budwood.resume(str(list_runs(output)[-1].folder))
            else:
                train(config, output)

        status = in_child(work)
        if os.WIFSIGNALED(status):
            assert os.WTERMSIG(status) == signal.SIGKILL
            struck += 1
            continue
        assert status == 0
        break
    return struck


def differences(left: Any, right: Any, path: str = "") -> Iterator[str]:
    """Where two state trees are not the same to the last bit; wall-clock times do not count."""
    if path.rsplit(".", 1)[-1] in ("t", "t_start", "episode_times", "start_time") or "time/" in path:
        return
    if isinstance(left, Mapping) and isinstance(right, Mapping):
        for key in left.keys() | right.keys():
            yield from differences(left.get(key, "absent"), right.get(key, "absent"), f"{path}.{key}")
    elif isinstance(left, (list, tuple)) and isinstance(right, (list, tuple)) and len(left) == len(right):
        for index, (a, b) in enumerate(zip(left, right, strict=True)):
            yield from differences(a, b, f"{path}.{index}")
    elif hasattr(left, "numpy") or isinstance(left, np.ndarray):
        a, b = np.asarray(left), np.asarray(right)
        if a.dtype != b.dtype or a.shape != b.shape or a.tobytes() != b.tobytes():
            yield path
    elif left != right and not (left != left and right != right):
        yield f"{path}: {left!r} and {right!r}"


def metrics(run: RunFolder) -> list[tuple[int, dict[str, float]]]:
    return [
        (event.step, {key: value for key, value in event.data.items() if not key.startswith("time/")})
        for event in journal.read(run.folder)
        if event.kind == "metrics"
    ]


def assert_same_run(one: RunFolder, other: RunFolder) -> None:
    stores = [Checkpoints(run.checkpoints, 2) for run in (one, other)]
    newest = [store.latest() for store in stores]
    assert newest[0] is not None
    assert newest[1] is not None
    states = [store.load(found[0])[0] for store, found in zip(stores, newest, strict=True)]  # type: ignore[index]
    assert list(differences(*states)) == []
    assert repr(metrics(one)) == repr(metrics(other))
    assert one.status["status"] == other.status["status"] == "finished"


@pytest.fixture(scope="module")
def references(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[RunFolder, float]]:
    """Each task trained without interruption, and how long that took."""
    found = {}
    for name, config in TASKS.items():
        output = tmp_path_factory.mktemp(name)
        began = time.monotonic()
        assert in_child(lambda config=config, output=output: train(config, output)) == 0
        found[name] = (list_runs(output)[-1], time.monotonic() - began)
    return found


@pytest.mark.parametrize("task", TASKS)
def test_a_run_is_the_same_every_time(
    task: str, references: dict[str, tuple[RunFolder, float]], tmp_path: Path
) -> None:
    assert in_child(lambda: train(TASKS[task], tmp_path)) == 0
    assert_same_run(references[task][0], list_runs(tmp_path)[-1])


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("kills", [3, pytest.param(12, marks=pytest.mark.slow)])
def test_killed_and_resumed_is_bit_identical(
    task: str, kills: int, references: dict[str, tuple[RunFolder, float]], tmp_path: Path
) -> None:
    reference, seconds = references[task]
    drawn = moments(random.Random(f"{task} {kills}"), seconds)
    struck = trial = 0
    while struck < kills:
        plan = [next(drawn), next(drawn)]
        output = tmp_path / str(trial)
        trial += 1
        struck += train_with_kills(TASKS[task], output, plan)
        print(f"{task}: {[what for what, _ in plan]}, {struck} kills so far")
        assert_same_run(reference, list_runs(output)[-1])
