"""python tests/faults/drill.py --faults 200: injures runs of every adapter, resumes them, and counts what was lost.

Every fault is drawn from the seed, strikes in a process of its own (forked, so that imports are paid once), and the run is then
resumed. It survives if the resumed run is the untouched one: parameters, optimisers, generators and every number that was
logged, bit for bit. The rows go to --out as they come; the table of docs/reliability.md is printed at the end.
"""

from __future__ import annotations

import argparse
import csv
import os
import random
import re
import shutil
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from kinds import KINDS, Fault, Strike, places
from worlds import WORLDS, apart

from budwood.checkpoint import Checkpoints
from budwood.cli import main as command
from budwood.folder import RunFolder, list_runs
from budwood.yaml_io import dump

DEADLINE = 300.0
"""Seconds after which a run that was struck counts as hung."""


@dataclass(frozen=True)
class Outcome:
    """``ended``: how, in a word. ``detected``: seconds from the strike to the end of the process, where it ended. ``lost``:
    training steps that had to be done again. ``problem``: what was lost for good or not said; empty is survived."""

    world: str
    kind: str
    about: str
    ended: str
    detected: float | None
    lost: int
    problem: str


class World:
    """One adapter's run: its configuration in a file, the untouched run, and how often that passes each place."""

    def __init__(self, name: str, scratch: Path) -> None:
        self.name, self.scratch = name, scratch / name
        self.scratch.mkdir(parents=True)
        self.file = self.scratch / "run.yaml"
        self.file.write_text(dump(WORLDS[name](self.scratch)))
        counts = self.scratch / "counts"

        def counted() -> int:
            seen: dict[str, int] = dict.fromkeys(places(), 0)
            for place, (owner, attribute) in places().items():
                _count(owner, attribute, seen, place)
            code = self.run(self.scratch / "untouched")
            counts.write_text(repr(seen))
            return code

        code, said, _ = in_child(counted, self.scratch / "untouched.txt")
        if code:
            raise RuntimeError(f"the untouched run of {name} failed:\n{said}")
        self.counts: Mapping[str, int] = eval(counts.read_text(), {}, {})
        (self.untouched,) = list_runs(self.scratch / "untouched")

    def run(self, output: Path) -> int:
        return command(["run", str(self.file), f"output={output}"])

    def suffer(self, fault: Fault, number: int | str) -> Outcome:
        output, strike = self.scratch / str(number), Strike(self.scratch / f"struck-{number}")

        def injured() -> int:
            fault.arm(strike, output)
            return self.run(output)

        code, said, ended = in_child(injured, self.scratch / f"said-{number}.txt")
        struck = float(strike.place.read_text()) if strike.place.exists() else None
        problem = _unsaid(fault, code, said, struck)
        found = list_runs(output)
        reached, kept = _progress(found[0]) if found else (0, 0)
        if found and fault.damage:
            fault.damage(found[0])
        if not problem:
            problem = self._resumed(found, output, number)
        shutil.rmtree(output, ignore_errors=True)
        how = (
            "finished"
            if code == 0 and fault.goes_on
            else "stopped"
            if code in (0, 130)
            else f"signal {-code}"
            if code < 0
            else f"error, code {code}"
        )
        detected = round(ended - struck, 2) if struck is not None and not fault.goes_on else None
        return Outcome(self.name, fault.kind, fault.about, how, detected, max(0, reached - kept), problem)

    def _resumed(self, found: Sequence[RunFolder], output: Path, number: int | str) -> str:
        if found:
            words = ["resume", str(found[0].folder)]
            done = found[0].status["status"] == "finished"
        else:  # struck before there was a run: it is started again
            words, done = ["run", str(self.file), f"output={output}"], False
        if not done:
            code, said, _ = in_child(lambda: command(words), self.scratch / f"resumed-{number}.txt")
            if code:
                return f"could not be resumed: {said.strip().splitlines()[-1][:300] if said.strip() else code}"
        (run,) = list_runs(output)
        different = apart(self.untouched, run)
        return f"not the same run: {', '.join(different[:3])}" if different else ""


def in_child(work: Callable[[], int], output: Path) -> tuple[int, str, float]:
    """``work`` in a fork, what it prints in ``output`` -> (exit code or minus the signal, output, monotonic end)."""
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        code = 99
        try:
            file = output.open("w", buffering=1)
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
            sys.stdout = sys.stderr = file
            code = work()
            sys.stdout.flush()
            sys.stderr.flush()
        except BaseException as error:  # noqa: BLE001  the parent only sees what is printed
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        finally:
            os._exit(code)
    give_up = time.monotonic() + DEADLINE
    while (done := os.waitpid(pid, os.WNOHANG))[0] == 0:
        if time.monotonic() > give_up:
            os.kill(pid, 9)
            os.waitpid(pid, 0)
            return 98, f"hung for {DEADLINE:.0f} s\n{output.read_text()}", time.monotonic()
        time.sleep(0.01)
    return os.waitstatus_to_exitcode(done[1]), output.read_text(errors="replace"), time.monotonic()


def _count(owner: Any, attribute: str, seen: dict[str, int], place: str) -> None:
    original = getattr(owner, attribute)

    def counting(*args: Any, **kwargs: Any) -> Any:
        seen[place] += 1
        return original(*args, **kwargs)

    setattr(owner, attribute, counting)


def _unsaid(fault: Fault, code: int, said: str, struck: float | None) -> str:
    """What is wrong with how the struck run ended, before it is resumed."""
    if struck is None:
        return "the fault did not strike"
    if code in (98, 99):
        return f"ended without an answer: {said.strip().splitlines()[-1][:300] if said.strip() else code}"
    if "Traceback (most recent call last)" in said:
        return f"a traceback: {said.strip().splitlines()[-1][:300]}"
    if fault.goes_on and code:
        return f"did not go on: {said.strip().splitlines()[-1][:300]}"
    if code >= 0 and (not fault.goes_on or fault.says != Fault.says) and not re.match(fault.says, said):
        return f"did not say so: {said.strip().splitlines()[-1][:300] if said.strip() else 'nothing'}"
    return ""


def _progress(run: RunFolder) -> tuple[int, int]:
    """(the last step that the journal knows of, the step of the newest intact checkpoint)."""
    from budwood import journal

    events = journal.read(run.folder) if (run.folder / journal.FILE).exists() else []
    reached = max((event.step for event in events if event.kind == "metrics"), default=0)
    found = Checkpoints(run.checkpoints, 2).latest() if run.checkpoints.exists() else None
    return reached, int(found[0].name.split("_")[1].split(".")[0]) if found else 0


def faults(seed: int, count: int, worlds: Sequence[World]) -> Iterator[tuple[World, Fault]]:
    """``count`` of them, the worlds and in each the kinds in turn."""
    drawn = dict.fromkeys((world.name for world in worlds), 0)
    for number in range(count):
        world = worlds[number % len(worlds)]
        draws = KINDS[world.name]
        draw = draws[drawn[world.name] % len(draws)]
        drawn[world.name] += 1
        yield world, draw(random.Random(f"{seed} {world.name} {number}"), world.counts)


def table(outcomes: Sequence[Outcome]) -> str:
    """One row a kind: how many, how many survived, steps lost, seconds until the process had ended."""
    by_kind: dict[str, list[Outcome]] = defaultdict(list)
    for outcome in outcomes:
        by_kind[outcome.kind].append(outcome)
    lines = [
        "| fault | runs | survived | steps to do again, median and most | seconds to its end, median and most |",
        "|---|---|---|---|---|",
    ]
    for kind, found in sorted(by_kind.items()):
        well = [o for o in found if not o.problem]
        lost, seconds = [o.lost for o in found], [o.detected for o in found if o.detected is not None]
        until = f"{median(seconds):.1f}, {max(seconds):.1f}" if seconds else "goes on"
        lines.append(f"| {kind} | {len(found)} | {len(well)} | {median(lost):.0f}, {max(lost)} | {until} |")
    well = [o for o in outcomes if not o.problem]
    return "\n".join([*lines, f"| all | {len(outcomes)} | {len(well)} | | |"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--worlds", default=",".join(WORLDS), help="default: %(default)s")
    parser.add_argument("--out", type=Path, default=Path("faults.csv"))
    asked = parser.parse_args()
    outcomes = []
    with tempfile.TemporaryDirectory() as scratch, asked.out.open("w", newline="") as file:
        writer = csv.DictWriter(file, Outcome.__dataclass_fields__)
        writer.writeheader()
        worlds = [World(name, Path(scratch)) for name in asked.worlds.split(",")]
        for number, (world, fault) in enumerate(faults(asked.seed, asked.faults, worlds)):
            outcomes.append(world.suffer(fault, number))
            writer.writerow(asdict(outcomes[-1]))
            file.flush()
            print(f"{number + 1}/{asked.faults} {outcomes[-1]}", file=sys.stderr, flush=True)
    print(table(outcomes))
    return int(any(outcome.problem for outcome in outcomes))


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
