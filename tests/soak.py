"""python tests/soak.py CONFIG --hours 2 --out soak.csv [NAME=VALUE]...: a long run, watched for what grows.

`budwood run` with a budget it never reaches; every ten seconds the memory, open files and threads of the trainer and of
the processes it started are written to a CSV, and at the end the run is stopped as by Ctrl-C. Printed, and the exit code: the
growth of each from the end of the warm-up (the first quarter) to the end, by a straight line through the samples, in percent of
where it began; 1 % or more is a failure. An SVG of it is drawn beside the CSV.
"""

from __future__ import annotations

import argparse
import csv
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from budwood.charts import INK, SERIES, document, standalone

COLUMNS = ("seconds", "trainer_mib", "children_mib", "files", "threads", "processes")
WARM_UP = 0.25
BOUND = 0.01
EVERY = 10.0


def sample(root: psutil.Process) -> dict[str, float]:
    """Memory that is no file's (MiB), open files and threads of a process and everything it started."""
    tree = [root, *root.children(recursive=True)]
    own = [anonymous(process) for process in tree]
    return {
        "trainer_mib": round(own[0], 2),
        "children_mib": round(sum(own[1:]), 2),
        "files": sum(process.num_fds() for process in tree),
        "threads": sum(process.num_threads() for process in tree),
        "processes": len(tree),
    }


def anonymous(process: psutil.Process) -> float:
    """MiB. What is mapped from files is left out: how much of it is a process's own changes when others end."""
    status = Path(f"/proc/{process.pid}/status")
    if not status.exists():
        return float(process.memory_info().rss / 2**20)
    (line,) = [line for line in status.read_text().splitlines() if line.startswith("RssAnon")]
    return int(line.split()[1]) / 2**10


def growth(rows: Sequence[Mapping[str, float]], column: str) -> float:
    """Rise of a straight line through the samples after the warm-up, relative to its beginning."""
    seconds = np.array([row["seconds"] for row in rows])
    values = np.array([row[column] for row in rows], dtype=float)
    late = seconds >= WARM_UP * seconds[-1]
    slope, start = np.polyfit(seconds[late] - seconds[late][0], values[late], 1)
    return float(slope * (seconds[late][-1] - seconds[late][0]) / max(start, 1e-9))


def watch(command: Sequence[str], hours: float, out: Path) -> list[dict[str, float]]:
    rows: list[dict[str, float]] = []
    with out.with_suffix(".log").open("w") as log, out.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        run = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
        root, began = psutil.Process(run.pid), time.monotonic()
        try:
            while (passed := time.monotonic() - began) < hours * 3600 and run.poll() is None:
                time.sleep(EVERY)
                try:
                    rows.append({"seconds": round(passed, 1), **sample(root)})
                except psutil.NoSuchProcess:
                    continue  # one of them ended while it was looked at
                writer.writerow(rows[-1])
                file.flush()
        finally:
            if run.poll() is None:
                os.kill(run.pid, signal.SIGINT)
                run.wait(timeout=300)
    return rows


def drawing(rows: Sequence[Mapping[str, float]]) -> str:
    """Every column relative to its value at the end of the warm-up, as an SVG document."""
    hours = np.array([row["seconds"] for row in rows]) / 3600
    begun = int(np.searchsorted(hours, WARM_UP * hours[-1]))

    def draw(axes: Any) -> None:
        for colour, column in zip(SERIES, COLUMNS[1:], strict=False):
            values = np.array([row[column] for row in rows], dtype=float)
            axes.plot(hours, 100 * (values / values[begun] - 1), color=colour, label=column.replace("_", " "))
        axes.axvline(hours[begun], color=INK, linestyle=":", linewidth=1.0)
        axes.set(xlabel="hours", ylabel="% above the end of the warm-up", ylim=(-3, 3))

    return standalone(document(draw, (7.5, 3.4)))


def asked_for(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Settings may stand before and behind the options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config")
    parser.add_argument("overrides", nargs="*", metavar="NAME=VALUE")
    parser.add_argument("--hours", type=float, default=2.0)
    parser.add_argument("--out", type=Path, default=Path("soak.csv"))
    return parser.parse_intermixed_args(words)


def main() -> int:
    asked = asked_for()
    command = [sys.executable, "-m", "budwood", "run", asked.config, *asked.overrides]
    rows = watch(command, asked.hours, asked.out)
    if len(rows) < 20:
        print(f"the run ended after {len(rows)} samples: {asked.out.with_suffix('.log')}", file=sys.stderr)
        return 1
    asked.out.with_suffix(".svg").write_text(drawing(rows))
    risen = {column: growth(rows, column) for column in COLUMNS[1:]}
    for column, rise in risen.items():
        print(f"{column:13} {rows[0][column]:10.1f} {rows[-1][column]:10.1f}   {rise:+.2%}")
    return int(any(rise >= BOUND for rise in risen.values()))


if __name__ == "__main__":
    sys.exit(main())
