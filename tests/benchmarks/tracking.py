"""What tracking costs: the training process's own part, and the tracking process beside it.

    python tests/benchmarks/tracking.py

The training process's part is measured in CPU time of that process, over every call that a run makes: start, metrics and a
flush at each boundary, a sync at each checkpoint, and the end. Waiting for the disk is given apart, as wall time.
"""

from __future__ import annotations

import os
import resource
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from budwood import tracking
from budwood.journal import Journal

KEYS = 20
"""Metrics at a boundary: what SB3's PPO logs, an evaluation, and the terms of a shaped reward."""
REPEATS = 15
RUN_SECONDS = 60.0
BOUNDARIES = 120
"""Of a 60 s run of PPO with 8 x 256 steps a rollout, at about 4,000 steps a second."""
CHECKPOINTS = 6
POINTS = 10_000


def spent(work: Callable[[], object]) -> tuple[float, float]:
    """(CPU seconds of this process, wall seconds)"""
    cpu, wall = time.process_time(), time.perf_counter()
    work()
    return time.process_time() - cpu, time.perf_counter() - wall


def begin(folder: Path) -> Journal:
    folder.mkdir()
    events = Journal(folder)
    config = {f"section{i}": {f"key{j}": j for j in range(10)} for i in range(10)}
    tracking.start(events, config=config, experiment="benchmark", uri=None, tags={}, output=folder.parent)
    return events


def boundary(events: Journal, step: int) -> None:
    events.metrics({f"rollout/metric_{key}": step / (key + 3) for key in range(KEYS)}, step)
    events.flush()


def thousand_points(root: Path) -> tuple[float, float]:
    """Medians (CPU, wall) of 1,000 points, 20 a boundary, each flushed."""
    events = Journal(root)

    def work() -> None:
        for step in range(1000 // KEYS):
            boundary(events, step)

    samples = [spent(work) for _ in range(REPEATS)]
    events.close()
    return statistics.median(cpu for cpu, _ in samples), statistics.median(wall for _, wall in samples)


def whole_run(folder: Path) -> tuple[float, float]:
    """(CPU, wall) of all that a 60 s run asks of tracking, without the training in between."""

    def work() -> None:
        events = begin(folder)
        for step in range(BOUNDARIES):
            boundary(events, step)
            if step % (BOUNDARIES // CHECKPOINTS) == 0:
                events.sync()
        events.status("finished")
        events.close()

    return spent(work)


def sink(folder: Path) -> tuple[float, float]:
    """(CPU seconds of the tracking process, wall seconds until everything is in MLflow) for 10,000 points."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.perf_counter()
    events = begin(folder)
    for step in range(POINTS // KEYS):
        boundary(events, step)
    events.status("finished")
    events.close()
    done = tracking.finish(folder, timeout=300)
    wall = time.perf_counter() - began
    tracking._sinks[folder].wait()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if not done.complete:
        raise SystemExit(str(done))
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime, wall


def main() -> None:
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    root = Path(tempfile.mkdtemp(prefix="budwood-tracking-"))
    try:
        (root / "journal").mkdir()
        cpu, wall = thousand_points(root / "journal")
        print(f"training process, 1,000 points flushed every {KEYS}: {1e3 * cpu:.2f} ms CPU, {1e3 * wall:.2f} ms wall")
        for fresh in (True, False):
            cpu, wall = sink(root / f"sink-{fresh}")
            made = "a database made first" if fresh else "a database that is there"
            print(f"tracking process, {POINTS:,} points, {made}: {cpu:.1f} s CPU, {wall:.1f} s wall (nice 19)")
        cpu, wall = whole_run(root / "run")
        print(
            f"training process, a {RUN_SECONDS:.0f} s run ({BOUNDARIES} boundaries, {CHECKPOINTS} checkpoints): "
            f"{1e3 * cpu:.1f} ms CPU = {cpu / RUN_SECONDS:.4%}, {1e3 * wall:.1f} ms wall = {wall / RUN_SECONDS:.4%}"
        )
        tracking._sinks[root / "run"].kill()
        tracking._sinks[root / "run"].wait()
    finally:
        shutil.rmtree(root)


if __name__ == "__main__":
    main()
