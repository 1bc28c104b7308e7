"""Throughput of one training in one process and in two, what a model predicts of two from one, and of 8, 64 and 1,024.

    OMP_NUM_THREADS=1 python tests/benchmarks/scaling.py                       # minutes, on two free cores
    OMP_NUM_THREADS=1 python tests/benchmarks/scaling.py cartpole --rounds 5
    OMP_NUM_THREADS=1 python tests/benchmarks/scaling.py --more --write docs/scaling/idle   # also four and eight, on as many

Every training is started by ``budwood launch -n N run``, with a plugin (scaling_probe.py) that has it train an iteration
whenever it is told to. All of them live at once and take turns, whose order changes from round to round; those that wait sleep.
Measured on the wall clock, so the machine should be free:

* ``one``, ``two``, and with ``--more`` ``four`` and ``eight``: the training in so many processes, with all environments and
  the whole minibatch between them;
* ``full``, ``half``, ``quarter`` and ``wide``: one process that goes the way of several, with all environments and rows, half,
  a quarter, or four times as many: what sharing costs besides the exchanges, what is divided, and what every process repeats;
* ``twins``: two of ``half`` at the same time, which exchange nothing: what two cores do to each other, and how long the faster
  would wait for the other;
* the network: all-reduce and gather over the processes of ``two``, begun by both at the same instant.

The predictions take everything but the turns of several.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from itertools import product
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from scaling_tables import SETTINGS, SEVERAL, SHARES, Table, show, write

HERE = Path(__file__).parent
TASKS = {"cartpole": "CartPole-v1", "hopper": "Hopper-v5", "humanoid": "Humanoid-v5"}
JOBS: dict[str, tuple[int, float, bool]] = {
    "one": (1, 1.0, False),
    "two": (2, 1.0, False),
    **{name: (1, share, True) for name, share in SHARES.items()},
    "other half": (1, 0.5, True),
}
"""Training -> its processes, its share of environments and rows, and whether it goes the way of several."""
MORE: dict[str, tuple[int, float, bool]] = {name: (count, 1.0, False) for name, count in SEVERAL.items() if count > 2}
WIDE_EVERY = 6
"""Rounds: it shows whether what grows with the environments goes on growing, and takes four times as long."""
NUMBERS = (1, 64, 1_024, 8_192, 65_536, 1_048_576)
"""float32 of an exchange."""
CALLS = 7


def configuration(task: str, share: float, shared: bool, address: str, output: Path, seed: int) -> dict[str, Any]:
    args = {
        "n_steps": SETTINGS["steps"],
        "batch_size": int(SETTINGS["batch"] * share),
        "n_epochs": SETTINGS["epochs"],
    }
    return {
        "seed": seed,
        "device": "cpu",
        "trainer": {"kind": "sb3", "algo": "ppo", "total_timesteps": 10**8, "args": args},
        "env": {"id": task, "n_envs": int(SETTINGS["envs"] * share)},
        "evaluation": {"every": None, "episodes": 0},
        "checkpoint": {"every": None},
        "tracking": {"enabled": False},
        "output": str(output),
        "plugins": {"scaling_probe": {"address": address, "shared": shared}},
    }


@dataclass
class Job:
    """A training that waits for orders: one connection a process, by rank."""

    ranks: list[Connection]

    def begin(self, *order: Any) -> None:
        for rank in self.ranks:
            rank.send(order)

    def end(self) -> list[Any]:
        return [rank.recv() for rank in self.ranks]

    def ask(self, *order: Any) -> list[Any]:
        self.begin(*order)
        return self.end()


@contextmanager
def started(folder: Path, task: str, of: dict[str, tuple[int, float, bool]]) -> Iterator[dict[str, Job]]:
    """The trainings ``of`` a ``task``, each after its first iteration."""
    site = folder / "site"
    info = site / "scaling_probe-1.0.dist-info"
    info.mkdir(parents=True, exist_ok=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: scaling-probe\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[budwood.plugins]\nscaling_probe = scaling_probe:Probe\n")
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(site), str(HERE), os.environ.get("PYTHONPATH", "")])}
    with ExitStack() as stack:
        waiting = {}
        for number, (name, (count, share, shared)) in enumerate(of.items()):
            address = str(folder / f"{number}.socket")
            listener = stack.enter_context(Listener(address, backlog=count))
            file = folder / f"{number}.yaml"
            seed = 100 * number  # the twins are two trainings, not one twice
            file.write_text(yaml.safe_dump(configuration(task, share, shared, address, folder / str(number), seed)))
            words = [sys.executable, "-m", "budwood", "launch", "-n", str(count), "run", str(file)]
            log = stack.enter_context(open(folder / f"{number}.log", "w+b"))
            process = subprocess.Popen(words, env=env, stdout=log, stderr=log)
            stack.callback(_finished, process)
            threading.Thread(target=_tell_of_end, args=(process, address), daemon=True).start()
            waiting[name] = listener
        try:
            jobs = {name: Job(_by_rank(listener, of[name][0])) for name, listener in waiting.items()}
        except ChildProcessError:
            sys.exit("\n".join(file.read_text() for file in sorted(folder.glob("*.log"))))
        yield jobs
        for job in jobs.values():
            job.begin("stop")


ENDED = -1


def _tell_of_end(process: subprocess.Popen[bytes], address: str) -> None:
    """A training that ends before it has joined would be waited for in vain: its own place is taken with that news."""
    process.wait()
    with suppress(OSError), Client(address) as link:
        link.send(ENDED)


def _by_rank(listener: Listener, count: int) -> list[Connection]:
    found = {}
    while len(found) < count:
        link = listener.accept()
        rank = link.recv()
        if rank == ENDED:
            raise ChildProcessError
        found[rank] = link
    return [link for _, link in sorted(found.items())]


def _finished(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(timeout=60)
    except subprocess.TimeoutExpired:
        process.terminate()  # the launcher ends its processes
        process.wait()


def turn(*jobs: Job) -> list[list[Any]]:
    """One iteration of all ``jobs`` at the same time; what each of their processes tells."""
    for job in jobs:
        job.begin("train", 1)
    return [job.end() for job in jobs]


def wall(told: Sequence[Sequence[Any]]) -> float:
    """From the first process that began to the last that ended; they share a clock."""
    every = [one for job in told for one in job]
    return max(one["ended"] for one in every) - min(one["began"] for one in every)


def between(told: Any) -> np.ndarray:
    """Seconds of a process before, between and after its exchanges."""
    began = [told["began"], *(ended for *_, ended in told["exchanges"])]
    ended = [*(begun for _, _, begun, _ in told["exchanges"]), told["ended"]]
    return np.array(ended) - np.array(began)


def measure(folder: Path, task: str, rounds: int, more: bool) -> Iterator[tuple[str, dict[str, Any]]]:
    """(table, row) of everything that is measured of a task."""
    with started(folder, task, {**JOBS, **MORE} if more else JOBS) as jobs:
        print(f"{task}: measuring", flush=True)
        turns = ["one", "two", "full", "half", "twins", "quarter", *(MORE if more else ())]
        for number in range(rounds):
            row: dict[str, Any] = {"round": number}
            order = np.roll(turns, number)[:: 1 if number % 2 else -1]
            for name in [*order, *(["wide"] if number % WIDE_EVERY == 0 else [])]:
                told = turn(jobs["half"], jobs["other half"]) if name == "twins" else turn(jobs[name])
                row[str(name)] = wall(told)
                if name == "twins":
                    row["slower twin"] = np.maximum(between(told[0][0]), between(told[1][0])).sum()
                else:
                    yield from _split(str(name), number, told[0][0])
            row.setdefault("wide", "")
            yield "rounds", row
            for kind, numbers in product(("sum", "gather"), NUMBERS):
                calls = np.max(jobs["two"].ask("exchange", kind, numbers, CALLS), axis=0)
                row = {"round": number, "kind": kind, "bytes": 4 * numbers, "seconds": np.median(calls)}
                yield "network", row
        for name in ("one", "two"):
            evaluation, steps = jobs[name].ask("evaluate", 10, 1)[0]
            checkpoints = [jobs[name].ask("checkpoint")[0]["checkpoint"] for _ in range(CALLS)]  # all so far, each time
            checkpoint = float(np.median(np.diff(checkpoints)))
            yield "serial", {"job": name, "evaluation": evaluation, "steps": steps, "checkpoint": checkpoint}


def _split(job: str, number: int, told: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    seconds = told["seconds"]
    simulation, draw = seconds["simulation"][0], seconds.get("draw", (0.0, 0.0))[0]
    sums = [(size, ended - began) for kind, size, began, ended in told["exchanges"] if kind == "sum"]
    gathers = [(size, ended - began) for kind, size, began, ended in told["exchanges"] if kind == "gather"]
    episodes, rollout = ([spent for _, spent in gathers] or [0.0, 0.0])[:2]  # then: whether anybody was asked to stop
    summed = sum(spent for _, spent in sums)
    yield (
        "split",
        {
            "job": job,
            "round": number,
            "whole": told["ended"] - told["began"],
            "simulate": simulation,
            "act": seconds["rollout"][0] - simulation - episodes,
            "draw": draw,
            "learn": seconds["update"][0] - draw - rollout - summed,
            "sums": summed,
            "gathers": sum(spent for _, spent in gathers),
            "cpu": told["cpu"],
            "cpu rollout": seconds["rollout"][1],
            "cpu update": seconds["update"][1],
            "sum calls": len(sums),
            "sum bytes": max((size for size, _ in sums), default=0),
            "gather calls": len(gathers),
            "gather bytes": sum(size for size, _ in gathers),
        },
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("which", nargs="*", choices=TASKS, help="default: all")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument(
        "--more", action="store_true", help="four and eight processes too, which want as many free cores"
    )
    parser.add_argument("--write", type=Path, default=Path("scaling"), help="folder for tables and figure")
    options = parser.parse_args()
    tables: dict[str, Table] = {}
    for name in options.which or TASKS:
        with tempfile.TemporaryDirectory(prefix="scaling-") as folder:
            for table, row in measure(Path(folder), TASKS[name], options.rounds, options.more):
                tables.setdefault(table, []).append({"task": name, **row})
        print(f"{name}: measured", flush=True)
    write(tables, options.write)
    show(options.write)


if __name__ == "__main__":
    main()
