"""Several processes as one run: they are as many as were asked for, end together, say why, and leave nobody behind.

The trainer here is a third party's that counts, so that a process costs the import of torch and nothing more.
Accelerate's launcher, by hand:  pytest tests/test_processes.py -m slow
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from budwood import across, config
from budwood.api import BindingError, ContributionError, Processes
from budwood.folder import RunFolder, list_runs
from budwood.planning import plan

ADAPTER = """
import os, signal, time
from pathlib import Path
from budwood.api import Capabilities, Config, ContributionError, Evaluation, Seam, hookimpl

class TrainerConfig(Config):
    kind: str
    total_steps: int
    fault: str = ""
    fault_rank: int = 1
    pause: float = 0.01

class Sections(Config):
    trainer: TrainerConfig

class Counting:
    n_envs, native = 1, None

    def __init__(self, run):
        import torch
        self.run, self.total_steps = run, run.trainer.total_steps
        self.sum, self.done = torch.zeros(1), 0
        Path(f"pid-{run.processes.rank}").write_text(str(os.getpid()))

    def fit(self, events):
        import torch
        goes_on = events.start()
        while goes_on and self.done < self.total_steps:
            if self.done == 5 and self.run.processes.rank == self.run.trainer.fault_rank:
                self.fail()
            time.sleep(self.run.trainer.pause)
            self.sum += self.run.processes.sum(torch.ones(1))
            self.done += 1
            events.log({"train/loss": float(self.sum)}, self.done)
            goes_on = events.boundary(self.done)

    def fail(self):
        match self.run.trainer.fault:
            case "raise": raise ContributionError("the pendulum fell off", where="plugins.pendulum")
            case "kill": os.kill(os.getpid(), signal.SIGKILL)
            case "hang":
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
                lost_in_thought()

    def state_dict(self): return {"sum": self.sum, "done": self.done}
    def load_state_dict(self, state):
        self.sum, self.done = state["sum"], state["done"]
        return []
    def export(self, folder):
        folder.mkdir(exist_ok=True)
        (folder / "sum").write_text(str(float(self.sum)))
        return folder / "sum"
    def close(self): pass

def lost_in_thought():
    time.sleep(600)

class Plugin:
    @hookimpl
    def config_model(self): return Sections
    @hookimpl
    def capabilities(self, run, target):
        seams = {"callbacks": Seam("fit"), "evaluators": Seam("fit")}
        return Capabilities("Counting", seams, one_process="" if run.trainer.fault != "alone" else "it counts alone")
    @hookimpl
    def build_trainer(self, run, contributions): return Counting(run)
"""

WATCHER = """
from budwood.api import RunCallback, hookimpl

class Watch(RunCallback):
    ACROSS
    def __init__(self, run): self.seen = 0
    def on_update_end(self, control): self.seen += 1
    def state_dict(self): return {"seen": self.seen}
    def load_state_dict(self, state): self.seen = state["seen"]

class Plugin:
    @hookimpl
    def callbacks(self, run): return [Watch(run)]
"""


HASTY = """
from budwood.api import RunCallback, hookimpl

class Stop(RunCallback):
    def __init__(self, run): self.run = run
    def on_update_end(self, control):
        if control.steps == 5 and self.run.processes.rank == 1:
            control.stop("enough")

class Plugin:
    @hookimpl
    def callbacks(self, run): return [Stop(run)]
"""


class Launched:
    """``budwood WORDS`` in a process of its own, with standard error in a file."""

    def __init__(self, folder: Path, words: tuple[str, ...], env: dict[str, str]) -> None:
        self.folder = folder
        self.errors = folder / "stderr"
        for old in folder.glob("pid-*"):
            old.unlink()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "budwood", *words],
            cwd=folder,
            env={**os.environ, **env},
            stdout=(folder / "stdout").open("w"),
            stderr=self.errors.open("w"),
        )

    def pids(self, count: int = 2, timeout: float = 600.0) -> list[int]:
        """Of the processes that train, once all of them do."""
        give_up = time.monotonic() + timeout
        while time.monotonic() < give_up:
            files = [self.folder / f"pid-{rank}" for rank in range(count)]
            if all(file.exists() and file.read_text() for file in files):
                return [int(file.read_text()) for file in files]
            assert self.process.poll() is None, self.said
            time.sleep(0.05)
        raise AssertionError("they did not begin")

    def wait(self, timeout: float = 600.0) -> int:
        return self.process.wait(timeout)

    @property
    def said(self) -> str:
        return self.errors.read_text()

    @property
    def run(self) -> RunFolder:
        return list_runs(self.folder / "runs")[-1]


@pytest.fixture
def launched(offer: Any, output: Path) -> Iterator[Callable[..., Launched]]:
    offer("counting", ADAPTER)
    (output.parent / "count.yaml").write_text(
        "name: count\ntrainer: {kind: counting, total_steps: 40}\nevaluation: {episodes: 0}\n"
        "checkpoint: {every: 10}\ntracking: {enabled: false}\n"
    )
    started: list[Launched] = []

    def start(*words: str, **env: str) -> Launched:
        env = {"PYTHONPATH": str(output.parent / "site"), **env}
        started.append(Launched(output.parent, words, env))
        return started[-1]

    yield start
    for one in started:
        if one.process.poll() is None:
            one.process.kill()
            one.process.wait()


def gone(pids: list[int], within: float) -> bool:
    give_up = time.monotonic() + within
    while time.monotonic() < give_up:
        if not any(alive(pid) for pid in pids):
            return True
        time.sleep(0.05)
    return False


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def exported(run: RunFolder) -> float:
    return float((run.folder / "export" / "sum").read_text())


def test_an_error_in_one_process_ends_all_and_is_what_is_shown(launched: Callable[..., Launched]) -> None:
    one = launched("launch", "-n", "2", "run", "count.yaml", "trainer.fault=raise")
    pids = one.pids()
    began = time.monotonic()
    assert one.wait() == 4  # a contribution's
    assert gone(pids, 1.0)
    assert time.monotonic() - began < 30
    errors = one.said[one.said.index("error") :]
    assert errors.startswith("error: process 1 of 2 failed first, with exit code 4:")
    assert errors.count("the pendulum fell off") == 1
    status = one.run.status
    assert status["status"] == "failed"
    assert "process 1 of 2 failed: plugins.pendulum: the pendulum fell off" in status["error"]


def test_what_a_callback_asks_for_in_one_process_alone_ends_all_and_is_told(
    launched: Callable[..., Launched], offer: Any
) -> None:
    """Else process 1 would stop while process 0 waits for it until the deadline."""
    offer("hasty", HASTY)
    one = launched("launch", "-n", "2", "run", "count.yaml", "plugins.hasty={}")
    assert one.wait() == 4
    said = "callback asked for different things in the processes of this run (process 0: nothing; process 1: to stop (enough))"
    assert one.said.count(said) == 1
    assert "Asked for by budwood-hasty" in one.said


def test_a_killed_process_takes_the_others_along_and_the_run_goes_on_from_its_checkpoint(
    launched: Callable[..., Launched],
) -> None:
    one = launched("launch", "-n", "2", "run", "count.yaml", "trainer.pause=0.05")
    pids = one.pids()
    while not list((one.folder / "runs").glob("*/checkpoints/step_*")):
        time.sleep(0.02)
    os.kill(pids[1], signal.SIGKILL)
    assert one.wait() == 128 + signal.SIGKILL
    assert gone(pids, 1.0)
    assert "process 1 of 2 was killed by SIGKILL first. Continue with: budwood launch -n 2 resume RUN" in one.said
    run = one.run
    assert run.status["status"] == "failed"

    two = launched("launch", "-n", "2", "resume", "last")
    assert two.wait() == 0, two.said
    assert exported(run) == 2 * 40  # every step was counted by two, and none twice
    assert run.status["status"] == "finished"


def test_a_process_that_hangs_is_found_out_with_its_stack(launched: Callable[..., Launched]) -> None:
    one = launched("launch", "-n", "2", "--deadline", "8", "run", "count.yaml", "trainer.fault=hang")
    pids = one.pids()
    assert one.wait() == 7
    assert gone(pids, 1.0)
    assert "process 0 of 2 waited 8 s for another one" in one.said
    assert "lost_in_thought" in (one.run.folder / "stacks-1.txt").read_text()
    assert "lost_in_thought" not in (one.run.folder / "stacks-0.txt").read_text()


def test_nobody_outlives_a_killed_launcher(launched: Callable[..., Launched]) -> None:
    one = launched("launch", "-n", "2", "run", "count.yaml", "trainer.total_steps=100000")
    pids = one.pids()
    one.process.kill()
    assert gone(pids, 5.0)


def test_an_interrupt_is_heard_by_all_and_leaves_one_checkpoint(launched: Callable[..., Launched]) -> None:
    one = launched("launch", "-n", "2", "run", "count.yaml", "trainer.total_steps=100000", "checkpoint.every=null")
    one.pids()
    while not list((one.folder / "runs").glob("*/events.jsonl")):
        time.sleep(0.02)
    time.sleep(0.5)
    one.process.send_signal(signal.SIGINT)
    assert one.wait() == 130
    assert one.run.status["status"] == "interrupted"
    assert len(list(one.run.checkpoints.glob("step_*"))) == 1
    assert "error" not in one.said
    assert "Continue with: budwood launch -n 2 resume " in (one.folder / "stdout").read_text()


@pytest.mark.slow
def test_two_processes_of_accelerates_launcher_train_one_run(launched: Callable[..., Launched], output: Path) -> None:
    """``--multi_gpu`` is what makes it start two on a machine without GPUs."""
    words = ("--multi_gpu", "--num_processes", "2", "-m", "budwood", "run", "count.yaml", "processes=2")
    done = subprocess.run(
        [sys.executable, "-m", "accelerate.commands.launch", *words],
        cwd=output.parent,
        env={**os.environ, "PYTHONPATH": str(output.parent / "site")},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (run,) = list_runs(output)
    assert exported(run) == 2 * 40
    assert done.stdout.count("finished") == 1


def test_another_number_of_processes_than_was_asked_for_is_refused(
    launched: Callable[..., Launched], budwood: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    said = budwood("run", "count.yaml", "processes=2")
    assert said.code == 2
    assert said.error.startswith("processes: 2 processes were asked for, and this run has 1, since no launcher")
    assert "\n" not in said.error
    monkeypatch.setenv("BUDWOOD_WORLD_SIZE", "3")
    assert "3 processes were asked for" in budwood("run", "count.yaml").error


class Two(Processes):
    """The first of two processes; the other one's answer comes from ``other``."""

    count = 2

    def __init__(self, other: Callable[[Any], Any] = lambda value: value) -> None:
        self.other = other

    def to_first(self, value: Any) -> list[Any]:
        return [value, self.other(value)]


def planned(*overrides: str) -> Any:
    return plan(config.load("count.yaml", overrides), None, processes=Two())


def test_what_cannot_be_shared_is_refused_before_anything_starts(launched: Callable[..., Launched], offer: Any) -> None:
    offer("silent", WATCHER.replace("ACROSS", ""))
    offer("saying", WATCHER.replace("ACROSS", 'across_processes = "same"'))
    offer("babbling", WATCHER.replace("ACROSS", 'across_processes = "often"'))
    assert planned("plugins.saying={}").contributions.callbacks
    with pytest.raises(BindingError, match=r"callback Watch of silent .* has to say how that stands"):
        planned("plugins.silent={}")
    with pytest.raises(BindingError, match="says 'often'"):
        planned("plugins.babbling={}")
    with pytest.raises(BindingError, match="Counting trains in one process only: it counts alone"):
        planned("trainer.fault=alone")


def test_explain_says_of_two_processes_what_a_run_in_them_would(
    launched: Callable[..., Launched], offer: Any, budwood: Callable[..., Any]
) -> None:
    """It is one process itself, and needs no launcher."""
    offer("silent", WATCHER.replace("ACROSS", ""))
    offer("saying", WATCHER.replace("ACROSS", 'across_processes = "same"'))
    said = budwood("explain", "count.yaml", "processes=2", "plugins.saying={}")
    assert (said.code, "Watch" in said.out) == (0, True), said.err
    assert "has to say how that stands" in budwood("explain", "count.yaml", "processes=2", "plugins.silent={}").error
    alone = budwood("explain", "count.yaml", "processes=2", "trainer.fault=alone")
    assert (alone.code, "Counting trains in one process only: it counts alone" in alone.error) == (3, True)
    assert budwood("explain", "count.yaml", "plugins.silent={}").code == 0


def test_what_is_said_to_be_the_same_is_compared_and_rows_of_environments_are_joined(
    launched: Callable[..., Launched], offer: Any
) -> None:
    for name in ("same", "environments", "first"):
        offer(name, WATCHER.replace("ACROSS", f'across_processes = "{name}"'))
    made = {name: planned(f"plugins.{name}={{}}").contributions for name in ("same", "environments", "first")}
    holders = {name: item.callbacks[0].value for name, item in made.items()}
    for holder in holders.values():
        holder.seen = np.arange(2)
    other = {"seen": np.arange(2, 4)}

    def saved(name: str, processes: Processes) -> list[int]:
        tree = across.Memories(made[name], processes).state_dict("now")
        return tree["callbacks"][0]["state"]["seen"].tolist()

    assert saved("same", Two()) == [0, 1]
    with pytest.raises(ContributionError, match="not the same in process 0 and in process 1"):
        saved("same", Two(lambda prints: {"seen": prints["seen"][::-1]}))
    assert saved("first", Two(lambda _: other)) == [0, 1]
    assert saved("environments", Two(lambda _: other)) == [0, 1, 2, 3]

    tree = across.Memories(made["environments"], Two(lambda _: other)).state_dict("now")
    second = Two()
    second.rank = 1
    across.Memories(made["environments"], second).load_state_dict(tree, "now")
    assert holders["environments"].seen.tolist() == [2, 3]
    assert [len(across.Memories(made["first"], one).callbacks) for one in (Two(), second)] == [1, 0]
