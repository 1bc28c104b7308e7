"""A plugin that lets scaling.py train a run in turns, and tells what each turn's seconds went to.

It contributes a callback that waits at boundaries for an order, and puts stopwatches around what trainer and processes do
anyway. With ``shared: true`` a run of one process goes the way of several: it numbers environments through, draws the pieces of
minibatches and calls every exchange, which then has nobody to wait for.
"""

from __future__ import annotations

import pickle
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import Client, Connection
from typing import Any

from budwood.api import Config, Processes, Run, RunCallback, RunControl, hookimpl

PAUSE_SECONDS = 0.002
"""From one call of the micro-benchmark to the next, at least: about what an update computes between two exchanges."""


class ProbeConfig(Config):
    address: str
    shared: bool = False


class Watch:
    """Since :meth:`restart`: (wall, CPU of this thread) seconds by activity, and (kind, bytes, began, ended) of exchanges."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        self.seconds: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
        self.exchanges: list[tuple[str, int, float, float]] = []
        self.began, self.cpu = time.perf_counter(), time.thread_time()

    def around(self, owner: type, name: str, activity: str) -> None:
        inner = getattr(owner, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            began, cpu = time.perf_counter(), time.thread_time()
            try:
                return inner(*args, **kwargs)
            finally:
                self._add(activity, began, cpu)

        setattr(owner, name, timed)

    def around_each(self, owner: type, name: str, activity: str) -> None:
        """Likewise of a generator: what it does between its items."""
        inner = getattr(owner, name)

        def timed(*args: Any, **kwargs: Any) -> Iterator[Any]:
            items = inner(*args, **kwargs)
            while True:
                began, cpu = time.perf_counter(), time.thread_time()
                item = next(items, None)
                self._add(activity, began, cpu)
                if item is None:
                    return
                yield item

        setattr(owner, name, timed)

    def around_exchange(self, owner: type, kind: str, size: Callable[[Any], int]) -> None:
        inner = getattr(owner, kind)

        def timed(processes: Any, value: Any) -> Any:
            volume = size(value)
            began = time.perf_counter()
            result = inner(processes, value)
            self.exchanges.append((kind, volume, began, time.perf_counter()))
            return result

        setattr(owner, kind, timed)

    def _add(self, activity: str, began: float, cpu: float) -> None:
        """An activity that contains the order to go on, as a rollout of Stable-Baselines3 does, counts from there."""
        spent = self.seconds[activity]
        spent[0] += time.perf_counter() - max(began, self.began)
        spent[1] += time.thread_time() - max(cpu, self.cpu)


def watch_exchanges(watch: Watch) -> None:
    from budwood.processes import Joined

    for owner in (Processes, Joined):
        watch.around_exchange(owner, "sum", lambda tensor: tensor.numel() * tensor.element_size())
        watch.around_exchange(owner, "gather", lambda value: len(pickle.dumps(value)))


def watch_sb3(watch: Watch) -> None:
    from stable_baselines3 import PPO
    from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
    from stable_baselines3.common.vec_env import DummyVecEnv

    from budwood_sb3.pieces import Divided
    from budwood_sb3.updates import PPOUpdate

    watch.around(DummyVecEnv, "step_wait", "simulation")
    watch.around(OnPolicyAlgorithm, "collect_rollouts", "rollout")
    watch.around_each(Divided, "of", "draw")
    watch.around(PPO, "train", "update")
    watch.around(PPOUpdate, "train", "update")


class Turns(RunCallback):
    """Does what it is told at a boundary: some more training, an exchange, an evaluation, a checkpoint, or the end."""

    def __init__(self, run: Run, watch: Watch) -> None:
        self.run, self.watch = run, watch
        self.driver: Connection | None = None
        self.left = 1

    def on_update_end(self, control: RunControl) -> None:
        self.left -= 1
        if self.left:
            return
        if self.driver is None:
            self.driver = Client(self.run.section.address)
            self.driver.send(self.run.processes.rank)
        else:
            self.driver.send(self._told(control))
        while self._obey(control, *self.driver.recv()):
            pass

    def _told(self, control: RunControl) -> dict[str, Any]:
        return {
            "seconds": {name: tuple(spent) for name, spent in self.watch.seconds.items()},
            "exchanges": self.watch.exchanges,
            "began": self.watch.began,
            "ended": time.perf_counter(),
            "cpu": time.process_time() - self.cpu,
            "checkpoint": control.seconds["checkpoint"],
        }

    def _obey(self, control: RunControl, order: str, *how: Any) -> bool:
        """Whether to wait for another order before training goes on."""
        assert self.driver is not None
        if order == "exchange":
            self.driver.send(exchanged(self.run.processes, *how))
            return True
        if order == "evaluate":
            began = time.perf_counter()
            steps = control.evaluate(*how).env_steps
            self.driver.send((time.perf_counter() - began, steps))
            return True
        if order == "stop":
            control.stop("measured")
        if order == "checkpoint":
            control.checkpoint()
        self.left = how[0] if order == "train" else 1
        self.cpu = time.process_time()
        self.watch.restart()
        return False


def exchanged(processes: Processes, kind: str, numbers: int, calls: int) -> list[float]:
    """Seconds of each call. Between calls every process computes, and all of them begin the next at the same instant of the
    clock that processes of a machine share: nobody waits for a slower one, and nothing is warm from the call before."""
    import numpy as np
    import torch

    work, tensor = torch.randn(64, 64), torch.zeros(numbers)
    value = np.zeros(numbers, dtype=np.float32)

    def call() -> float:
        began = time.perf_counter()
        processes.sum(tensor) if kind == "sum" else processes.gather(value)
        return time.perf_counter() - began

    call()
    spacing = processes.from_first(max(PAUSE_SECONDS, 3 * call()))
    first = processes.from_first(time.monotonic()) + 5 * spacing
    spent = []
    for i in range(calls):
        while time.monotonic() < first + i * spacing:
            work = torch.tanh(work @ work)
        spent.append(call())
    return spent


class Probe:
    @hookimpl
    def config_model(self) -> type[Config]:
        return ProbeConfig

    @hookimpl
    def callbacks(self, run: Run) -> Iterable[RunCallback]:
        if run.section.shared:
            Processes.several = property(lambda self: True)  # type: ignore[assignment, method-assign]
        watch = Watch()
        watch_exchanges(watch)
        if run.config["trainer"]["kind"] == "sb3":
            watch_sb3(watch)
        return [Turns(run, watch)]
