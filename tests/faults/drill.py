"""Injures runs of every adapter, resumes them, and counts what was lost.

  python tests/faults/drill.py                             200 faults, about an hour on two cores; table at the end
  python tests/faults/drill.py --faults 20 --worlds sb3    a few minutes
  python tests/faults/drill.py --table faults.csv          the table of a drill that was run, again

A world is a small run: of Stable-Baselines3 alone, with environments in processes, as two processes, and tracked by a real
MLflow server; of TRL and of LeRobot, alone and as two processes. Every fault is drawn from --seed, strikes in a process of its
own (forked, so that imports are paid once), and the run is then resumed. It survives if it said in one paragraph what
happened, where it could, and if the resumed run is the untouched one: parameters, optimisers, generators and every number
that was logged, bit for bit; in MLflow too, where there is one.

The rows go to --out as they come. Interrupt the drill and give the same command again: it goes on with what is missing.
What was mended is tried again with --again.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from functools import partial
from importlib import import_module
from itertools import cycle, islice
from pathlib import Path
from signal import SIGUSR1
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from kinds import GENERAL, dead_worker
from ranks import RANKS, ForkedSink, fork_instead, launch, rank
from rows import Outcome, read, table, write
from strikes import Counts, Draw, Fault, Strike, places
from tracker import TRACKER, Behaviour, absent, front, mlflow_server
from worlds import PROCESSES, WORLDS, apart

from budwood import journal, tracking
from budwood.charts import Charts
from budwood.checkpoint import Checkpoints
from budwood.cli import main as command
from budwood.folder import RunFolder, list_runs
from budwood.planning import explain
from budwood.yaml_io import dump

KINDS: Mapping[str, Sequence[Draw]] = {
    "sb3": GENERAL,
    "sb3-processes": (dead_worker,),
    "sb3-two": RANKS,
    "sb3-mlflow": TRACKER,
    "trl": GENERAL,
    "trl-two": RANKS,
    "lerobot": GENERAL,
    "lerobot-two": RANKS,
}
"""World -> what is drawn for it, in turn."""
TURNS = (
    *("sb3", "sb3-two", "sb3", "trl", "sb3", "sb3-mlflow", "sb3", "lerobot", "sb3", "sb3-two", "sb3", "sb3-processes"),
    *(
        "sb3",
        "trl-two",
        "sb3",
        "trl",
        "sb3",
        "sb3-mlflow",
        "sb3",
        "sb3-two",
        "sb3",
        "lerobot-two",
        "sb3",
        "lerobot",
        "sb3",
    ),
)
"""Worlds in the order in which they are struck, the cheap one most often."""
DEADLINE = 900.0
"""Seconds after which a run that was struck counts as hung."""


class World:
    """One adapter's run: its configuration in a file, the untouched run, and how often each process of it passes each place."""

    def __init__(self, name: str, scratch: Path, stack: ExitStack) -> None:
        self.name, self.scratch, self.processes = name, scratch / name, PROCESSES.get(name, 1)
        self.scratch.mkdir(parents=True)
        self.file = self.scratch / "run.yaml"
        config = WORLDS[name](self.scratch)
        self.file.write_text(dump(config))
        self.every = config["checkpoint"]["every"]
        self.server: int | None = None
        if config["tracking"]["enabled"]:
            import_module("budwood.mlflow_store")
            self.server = stack.enter_context(mlflow_server(self.scratch))
        explain(self.file)  # imports nearly everything, which the forks below then have
        untouched, strike = self.scratch / "untouched", Strike(self.scratch / "none")
        with self.tracked(Behaviour("honest"), strike) as (_, settings):
            words = ["run", str(self.file), f"output={untouched}", *settings]
            code, said, _ = in_child(lambda: self.go(words, self.counting), self.scratch / "untouched.txt")
        if code:
            raise RuntimeError(f"the untouched run of {name} failed:\n{said}")
        self.counts: Sequence[Counts] = [
            json.loads((self.scratch / f"counts-{number}").read_text()) for number in range(self.processes)
        ]
        for module in (self.scratch / "imported").read_text().split():
            with suppress(Exception):  # one that only another makes
                import_module(module)
        (self.untouched,) = list_runs(untouched)

    def go(self, words: Sequence[str], around: Callable[[], Any] = nullcontext, fault: Fault | None = None) -> int:
        """``budwood WORDS``, in this process or launched in several, with ``around`` in those that train."""
        for figure in ("learning_curve", "figure"):  # half of what a run as small as these costs
            setattr(Charts, figure, lambda *_: "")
        if fault is None or fault.tracker:  # otherwise something is armed that a fork would inherit
            fork_instead(tracking, ForkedSink)
        if self.processes > 1:
            limit = ["--deadline", str(fault.deadline)] if fault and fault.deadline else []
            return launch(["launch", "-n", str(self.processes), *limit, *words], around)
        with around():
            return command(list(words))

    @contextmanager
    def counting(self) -> Iterator[None]:
        seen: dict[str, int] = dict.fromkeys(places(), 0)
        for place, (owner, attribute) in places().items():
            _count(owner, attribute, seen, place)
        yield
        (self.scratch / f"counts-{rank()}").write_text(json.dumps(seen))
        if rank() == 0:
            (self.scratch / "imported").write_text("\n".join(name for name in sys.modules if name != "__main__"))

    @contextmanager
    def tracked(self, behaviour: Behaviour, strike: Strike) -> Iterator[tuple[int, Sequence[str]]]:
        """(process to tell when it is enough, settings) of a run whose MLflow behaves so."""
        if self.server is None:
            yield 0, ()
            return
        with front(self.server, behaviour, strike) as (pid, port):
            yield pid, (f"tracking.uri=http://127.0.0.1:{port}",)

    def suffer(self, fault: Fault, seed: int, number: int) -> Outcome:
        name = f"{seed}-{number}"
        output, strike = self.scratch / name, Strike(self.scratch / f"struck-{name}")
        strike.place.unlink(missing_ok=True)

        def armed() -> Any:
            fault.arm(strike, output)
            return nullcontext()

        with self.tracked(fault.tracker or Behaviour("honest"), strike) as (pid, settings):
            words = ["run", str(self.file), f"output={output}", *settings]
            injured = partial(self.go, words, armed, fault)
            code, said, ended = in_child(injured, self.scratch / f"said-{name}.txt")
            struck = float(strike.place.read_text()) if strike.place.exists() else None
            problem = _unsaid(fault, code, said, struck)
            found = list_runs(output)
            lost = _lost(found[0]) / self.every if found else 0.0
            if found and fault.left and not problem:
                problem = fault.left(found[0])
            if found and fault.damage:
                fault.damage(found[0])
            problem = problem or self.resumed(fault, found, words, name)
            if self.server is not None and not problem:
                os.kill(pid, SIGUSR1)
                in_child(
                    lambda: command(["runs", "--sync", "--output", str(output)]), self.scratch / f"sync-{name}.txt"
                )
                problem = absent(list_runs(output)[0], self.server)
        shutil.rmtree(output, ignore_errors=True)
        detected = round(ended - struck, 2) if struck is not None and not fault.goes_on else None
        return Outcome(
            seed, number, self.name, fault.kind, fault.about, _how(fault, code), detected, round(lost, 2), problem
        )

    def resumed(self, fault: Fault, found: Sequence[RunFolder], words: Sequence[str], name: str) -> str:
        """What is wrong with the run that the struck one becomes."""
        if found and found[0].status["status"] != "finished":
            words = ["resume", str(found[0].folder)]
        if not found or words[0] == "resume":  # struck before there was a run: it is started again
            outputs = [self.scratch / f"resumed-{name}-{one}.txt" for one in range(1 + fault.twice)]
            ends = [wait() for wait in [begin(partial(self.go, words), file) for file in outputs]]
            ends.sort(key=lambda end: end[0])
            code, said, _ = ends[0]
            if code:
                return f"could not be resumed: {_last(said) or code}"
            second, told, _ = ends[-1]  # 0: it began when the first had ended
            if fault.twice and second and not re.search(r"another process \(pid \d+\) is training", told):
                return f"the second of two resumes was not refused: {_last(told)}"
        (run,) = list_runs(found[0].output if found else self.scratch / name)
        different = apart(self.untouched, run)
        return f"not the same run: {', '.join(different[:3])}" if different else ""


def _how(fault: Fault, code: int) -> str:
    if code == 0 and fault.goes_on:
        return "finished"
    if code in (0, 130):
        return "stopped"
    return f"signal {-code}" if code < 0 else f"error, code {code}"


def _last(said: str) -> str:
    return said.strip().splitlines()[-1][:300] if said.strip() else ""


End = tuple[int, str, float]
"""Exit code or minus the signal, what was printed, monotonic seconds of the end."""


def in_child(work: Callable[[], int], output: Path) -> End:
    """``work`` in a fork, what it prints in ``output``."""
    return begin(work, output)()


def begin(work: Callable[[], int], output: Path) -> Callable[[], End]:
    """The same, begun; the answer waits for its end."""
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

    def wait() -> End:
        while (done := os.waitpid(pid, os.WNOHANG))[0] == 0:
            if time.monotonic() > give_up:
                os.kill(pid, 9)
                os.waitpid(pid, 0)
                return 98, f"{output.read_text()}\nhung for {DEADLINE:.0f} s", time.monotonic()
            time.sleep(0.01)
        return os.waitstatus_to_exitcode(done[1]), output.read_text(errors="replace"), time.monotonic()

    return wait


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
        return f"ended without an answer: {_last(said) or code}"
    if "Traceback (most recent call last)" in said:
        return f"a traceback: {_last(said)}"
    if fault.goes_on and code:
        return f"did not go on: {_last(said)}"
    if code >= 0 and (not fault.goes_on or fault.says != Fault.says) and not re.match(fault.says, said):
        return f"did not say so: {_last(said) or 'nothing'}"
    return ""


def _lost(run: RunFolder) -> int:
    """Steps between the newest intact checkpoint and the last one that the journal knows of."""
    events = journal.read(run.folder) if (run.folder / journal.FILE).exists() else []
    reached = max((event.step for event in events if event.kind == "metrics"), default=0)
    found = Checkpoints(run.checkpoints, 2).latest() if run.checkpoints.exists() else None
    return max(0, reached - int(found[0].name.split("_")[1].split(".")[0]) if found else reached)


def drawn(seed: int, count: int, worlds: Sequence[str]) -> Iterator[tuple[str, Draw, random.Random]]:
    """``count`` of them: (world, kind, the generator that it is drawn with)."""
    of_world = {name: cycle(KINDS[name]) for name in worlds}
    turns = [name for name in TURNS if name in worlds]
    for number, name in enumerate(islice(cycle(turns), count)):
        yield name, next(of_world[name]), random.Random(f"{seed} {name} {number}")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=200, metavar="N", help="how many; default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="what they are drawn from; default: %(default)s")
    parser.add_argument(
        "--worlds", default=",".join(WORLDS), help="which runs are struck, a comma between; default: all, %(default)s"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("faults.csv"), metavar="FILE", help="rows; default: %(default)s"
    )
    parser.add_argument("--again", action="store_true", help="strike those of --out again that were not survived")
    parser.add_argument("--table", type=Path, metavar="FILE", help="only print the table of these rows")
    asked = parser.parse_args()
    asked.worlds = asked.worlds.split(",")
    if unknown := [name for name in asked.worlds if name not in WORLDS]:
        parser.error(f"no world {', '.join(unknown)}; there are {', '.join(WORLDS)}")
    return asked


def main() -> int:
    asked = arguments()
    if asked.table:
        print(table(read(asked.table)))
        return 0
    before = read(asked.out) if asked.out.exists() else []
    done = {one.number: one for one in before if one.seed == asked.seed and not (asked.again and one.problem)}
    waiting = [
        (number, *what)
        for number, what in enumerate(drawn(asked.seed, asked.faults, asked.worlds))
        if number not in done or done[number].world != what[0]
    ]
    worlds: dict[str, World | None] = {}
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        for past, (number, name, draw, generator) in enumerate(waiting, 1):
            if name not in worlds:
                print(f"the untouched run of {name} ...", file=sys.stderr, flush=True)
                try:
                    worlds[name] = World(name, Path(scratch), stack)
                except RuntimeError as error:
                    print(error, file=sys.stderr, flush=True)
                    worlds[name] = None
            if (world := worlds[name]) is None:
                continue
            outcome = world.suffer(draw(generator, *world.counts), asked.seed, number)
            done[number] = outcome
            write(asked.out, list(done.values()))
            left = (time.monotonic() - began) / past * (len(waiting) - past)
            how = outcome.problem or "survived"
            line = (
                f"{past}/{len(waiting)}  {name}: {outcome.kind}, {outcome.about}: {how}; about {left / 60:.0f} min left"
            )
            print(line, file=sys.stderr, flush=True)
    print(table(list(done.values())))
    return int(len(done) < asked.faults or any(outcome.problem for outcome in done.values()))


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
