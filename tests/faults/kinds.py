"""What happens to a run, drawn from a seed: a :class:`Fault` is armed in the process that trains, before it starts."""

from __future__ import annotations

import errno
import gc
import io
import os
import random
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from budwood import journal
from budwood.checkpoint import Checkpoints
from budwood.folder import RunFolder

Counts = Mapping[str, int]
"""Place -> how often the untouched run passes it."""
ENDED = r"(?s).*error: \S.*"


def places() -> dict[str, tuple[Any, str]]:
    """Where a run can be struck: (owner, name) of what is called there."""
    import torch

    return {
        "update": (torch.optim.Adam, "step"),
        "checkpoint": (Checkpoints, "save"),
        "fsync": (os, "fsync"),
        "journal": (journal.Journal, "flush"),
        "write": (os, "write"),
    }


@dataclass(frozen=True)
class Strike:
    """The moment of a fault, for the one who watches: monotonic seconds, in the file that ``place`` names."""

    place: Path

    def now(self) -> None:
        if not self.place.exists():
            self.place.write_text(repr(time.monotonic()))


@dataclass(frozen=True)
class Fault:
    """``arm`` prepares it in the training process. ``damage`` is done to the folder after the run has ended. ``goes_on``: the
    run must come to its end all the same; otherwise its error must match ``says``, or a signal has killed it."""

    kind: str
    about: str
    arm: Callable[[Strike, Path], None]
    damage: Callable[[RunFolder], None] | None = None
    goes_on: bool = False
    says: str = ENDED


def at_call(owner: Any, name: str, call: int, act: Callable[[], None], *, after: bool = False) -> None:
    """``act`` at the ``call``-th call of ``owner.name`` from now on, before it or after it."""
    original, count = getattr(owner, name), [0]

    def counting(*args: Any, **kwargs: Any) -> Any:
        count[0] += 1
        now = count[0] == call
        if now and not after:
            act()
        answer = original(*args, **kwargs)
        if now and after:
            act()
        return answer

    setattr(owner, name, counting)


def kill(draw: random.Random, counts: Counts) -> Fault:
    """SIGKILL before or after any call of any place."""
    place = draw.choice([name for name in places() if counts[name]])
    call, after = draw.randint(1, counts[place]), draw.random() < 0.5

    def arm(strike: Strike, _output: Path) -> None:
        def die() -> None:
            strike.now()
            os.kill(os.getpid(), signal.SIGKILL)

        at_call(*places()[place], call, die, after=after)

    return Fault("killed", f"{'after' if after else 'before'} call {call} at {place}", arm)


def terminate(draw: random.Random, counts: Counts) -> Fault:
    """SIGTERM or SIGINT between two updates, as a scheduler or a person sends it."""
    number, call = draw.choice([signal.SIGTERM, signal.SIGINT]), draw.randint(1, counts["update"])

    def arm(strike: Strike, _output: Path) -> None:
        def ask() -> None:
            strike.now()
            os.kill(os.getpid(), number)

        at_call(*places()["update"], call, ask)

    return Fault(
        "asked to stop",
        f"{signal.Signals(number).name} at update {call}",
        arm,
        says=r"(?s).*stopping after this update.*",
    )


def full_disk(draw: random.Random, counts: Counts) -> Fault:
    """No space for anything from one write on."""
    call = draw.randint(2, counts["write"])

    def arm(strike: Strike, output: Path) -> None:
        original, count = os.write, [0]

        def write(descriptor: int, data: Any) -> int:
            if os.readlink(f"/proc/self/fd/{descriptor}").startswith(str(output)):
                count[0] += 1
                if count[0] >= call:
                    strike.now()
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return original(descriptor, data)

        os.write = write

    return Fault("full disk", f"from write {call}", arm, says=r"(?s).*error: \S+ no space left.*")


def read_only(draw: random.Random, counts: Counts) -> Fault:
    """The file system of the run turns read-only, as it does after an error of the disk."""
    call = draw.randint(1, counts["update"])

    def arm(strike: Strike, output: Path) -> None:
        def below(path: Any) -> bool:
            return isinstance(path, (str, os.PathLike)) and os.fspath(path).startswith(str(output))

        def refused(*_args: Any) -> Any:
            strike.now()
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))

        def turn() -> None:
            opened, write, opener = io.open, os.write, os.open

            def open_(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
                return refused() if below(file) and set(mode) & set("wax+") else opened(file, mode, *args, **kwargs)

            def write_(descriptor: int, data: Any) -> int:
                return refused() if below(os.readlink(f"/proc/self/fd/{descriptor}")) else write(descriptor, data)

            def os_open(path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
                return (
                    refused()
                    if below(path) and flags & (os.O_WRONLY | os.O_RDWR)
                    else opener(path, flags, *args, **kwargs)
                )

            io.open, os.write, os.open = open_, write_, os_open  # type: ignore[assignment]
            for name in ("mkdir", "replace", "rename", "unlink"):
                original = getattr(os, name)
                setattr(os, name, lambda path, *a, _o=original, **k: refused() if below(path) else _o(path, *a, **k))

        at_call(*places()["update"], call, turn)

    return Fault("read-only disk", f"from update {call}", arm)


def out_of_memory(draw: random.Random, counts: Counts) -> Fault:
    """The update asks for more memory than there is."""
    call = draw.randint(1, counts["update"])

    def arm(strike: Strike, _output: Path) -> None:
        def allocate() -> None:
            import torch

            strike.now()
            torch.empty(1 << 50)

        at_call(*places()["update"], call, allocate)

    return Fault("out of memory", f"in update {call}", arm, says=r"(?s).*error: .*(out of memory|allocate memory).*")


def clock_back(draw: random.Random, counts: Counts) -> Fault:
    """The wall clock jumps back by up to a month."""
    call, seconds = draw.randint(1, counts["update"]), draw.randint(60, 30 * 86_400)

    def arm(strike: Strike, _output: Path) -> None:
        def turn_back() -> None:
            strike.now()
            clock, nanoseconds = time.time, time.time_ns
            time.time = lambda: clock() - seconds
            time.time_ns = lambda: nanoseconds() - seconds * 10**9

        at_call(*places()["update"], call, turn_back)

    return Fault("clock jumps back", f"by {seconds:,} s at update {call}", arm, goes_on=True)


def damaged(draw: random.Random, counts: Counts) -> Fault:
    """The newest checkpoint loses bytes, changes a bit, or misses a file, after the run was killed."""
    killed = kill(draw, {**counts, "fsync": 0, "write": 0, "journal": 0, "checkpoint": 0})
    file = draw.choice(["tensors.safetensors", "state.json", "manifest.json"])
    how, where = draw.choice(["cut", "altered", "missing"]), draw.random()

    def damage(run: RunFolder) -> None:
        found = sorted(run.checkpoints.glob("step_*"))
        if not found:
            return
        path = found[-1] / file
        data = bytearray(path.read_bytes())
        index = int(where * len(data))
        if how == "missing":
            path.unlink()
        elif how == "cut":
            path.write_bytes(data[:index])
        else:
            data[index] ^= 1 << int(where * 8)
            path.write_bytes(data)

    return Fault("damaged checkpoint", f"{file} {how}; {killed.about}", killed.arm, damage)


def half_written(draw: random.Random, counts: Counts) -> Fault:
    """A checkpoint that was being written when the machine stopped: its folder is there under its unfinished name."""
    killed = kill(draw, {**counts, "fsync": 0, "write": 0, "journal": 0, "update": 0})

    def damage(run: RunFolder) -> None:
        left = run.checkpoints / ".tmp-step_000000009999"
        left.mkdir(parents=True, exist_ok=True)
        (left / "tensors.safetensors").write_bytes(draw.randbytes(draw.randint(0, 4096)))

    return Fault("half-written checkpoint", killed.about, killed.arm, damage)


def second_run(draw: random.Random, counts: Counts) -> Fault:
    """Somebody resumes the run while it is being trained: refused with the number of the first process, which goes on."""
    call = draw.randint(2, counts["update"])

    def arm(strike: Strike, output: Path) -> None:
        def intrude() -> None:
            from budwood.cli import main

            strike.now()
            (folder,) = (path.parent for path in output.glob("*/events.jsonl"))
            first, said = os.getpid(), output / "intruder.txt"
            pid = os.fork()
            if pid == 0:
                sys.stdout = sys.stderr = said.open("w", buffering=1)
                os._exit(main(["resume", str(folder)]))
            code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            told = said.read_text()
            assert code == 1, told
            assert f"another process (pid {first}) is training this run" in told, told

        at_call(*places()["update"], call, intrude)

    return Fault("two runs in one folder", f"at update {call}", arm, goes_on=True)


def leak(draw: random.Random, counts: Counts) -> Fault:
    """Something opens files and starts threads at every update and never lets go; the run is told of it and ends well."""
    files = draw.randint(8, 16)

    def arm(strike: Strike, _output: Path) -> None:
        kept: list[Any] = []

        def take() -> None:
            strike.now()
            kept.extend(Path(os.devnull).open() for _ in range(files))  # noqa: SIM115
            sleeper = threading.Thread(target=threading.Event().wait, daemon=True)
            sleeper.start()
            kept.append(sleeper)

        every_call(*places()["update"], take)

    return Fault(
        "leak of files and threads",
        f"{files} files an update",
        arm,
        goes_on=True,
        says=r"(?s).*open files.*threads.*more than.*",
    )


def no_more_files(draw: random.Random, counts: Counts) -> Fault:
    """The same until the system gives no more."""
    limit = draw.randint(120, 200)

    def arm(strike: Strike, _output: Path) -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
        kept: list[Any] = []

        def take() -> None:
            strike.now()
            with suppress(OSError):
                kept.extend(Path(os.devnull).open() for _ in range(8))  # noqa: SIM115

        every_call(*places()["update"], take)

    return Fault("no more files", f"limit {limit}", arm, says=r"(?s).*error: .*[Tt]oo many open files.*")


def every_call(owner: Any, name: str, act: Callable[[], None]) -> None:
    original = getattr(owner, name)

    def acting(*args: Any, **kwargs: Any) -> Any:
        act()
        return original(*args, **kwargs)

    setattr(owner, name, acting)


def dead_worker(draw: random.Random, counts: Counts) -> Fault:
    """The process of one environment is killed."""
    call = draw.randint(1, counts["update"])

    def arm(strike: Strike, _output: Path) -> None:
        def shoot() -> None:
            from stable_baselines3.common.vec_env import SubprocVecEnv

            strike.now()
            (env,) = [found for found in gc.get_objects() if isinstance(found, SubprocVecEnv) and not found.closed][:1]
            os.kill(draw.choice(env.processes).pid, signal.SIGKILL)

        at_call(*places()["update"], call, shoot)

    return Fault(
        "dead environment process",
        f"at update {call}",
        arm,
        says=r"(?s).*error: env.vec: a process of an environment ended: environment \d with exit code -9.*",
    )


Draw = Callable[[random.Random, Counts], Fault]
GENERAL: tuple[Draw, ...] = (
    kill, kill, terminate, full_disk, read_only, out_of_memory, clock_back, damaged, half_written, second_run, leak,
    no_more_files,
)  # fmt: skip
KINDS: Mapping[str, tuple[Draw, ...]] = {
    "sb3": GENERAL,
    "sb3-processes": (dead_worker,),
    "trl": GENERAL,
    "lerobot": GENERAL,
}
"""World -> what is drawn for it, in turn."""
