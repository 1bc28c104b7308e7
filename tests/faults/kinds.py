"""What happens to a run, drawn from a seed: each kind makes a :class:`strikes.Fault` of what the untouched run passes."""

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
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from strikes import Counts, Draw, Fault, Strike, at_call, every_call, places

from budwood.folder import RunFolder


def kill(draw: random.Random, counts: Counts, after_call: int = 0) -> Fault:
    """SIGKILL before or after any call of any place, or of those after one."""
    place = draw.choice([name for name in places() if counts.get(name)])
    call, after = after_call + draw.randint(1, counts[place]), draw.random() < 0.5

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
    """The newest of two checkpoints loses bytes, changes a bit, or misses a file, after the run was killed."""
    killed = kill(draw, {"checkpoint": counts["checkpoint"] - 2}, after_call=2)
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
    """SIGKILL between the files of a checkpoint: its folder is there under its unfinished name."""
    call, after = draw.randint(1, counts["file of a checkpoint"]), draw.random() < 0.8

    def arm(strike: Strike, _output: Path) -> None:
        def die() -> None:
            strike.now()
            os.kill(os.getpid(), signal.SIGKILL)

        at_call(*places()["file of a checkpoint"], call, die, after=after)

    def left(run: RunFolder) -> str:
        return "" if list(run.checkpoints.glob(".tmp-*")) else "no checkpoint was half-written"

    return Fault("half-written checkpoint", f"{'after' if after else 'before'} file {call}", arm, left=left)


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


def both_resume(draw: random.Random, counts: Counts) -> Fault:
    """The run is killed, and two processes resume it at the same moment: one trains, and the other one names it."""
    killed = kill(draw, {**counts, "fsync": 0, "write": 0, "journal": 0})
    return replace(killed, kind="two resumes at once", twice=True)


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
    files = max(8, 2 * limit // counts["update"])

    def arm(strike: Strike, _output: Path) -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
        kept: list[Any] = []

        def take() -> None:
            strike.now()
            with suppress(OSError):
                kept.extend(Path(os.devnull).open() for _ in range(files))  # noqa: SIM115

        every_call(*places()["update"], take)

    return Fault("no more files", f"limit {limit}", arm, says=r"(?s).*error: .*[Tt]oo many open files.*")


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


GENERAL: tuple[Draw, ...] = (
    kill, full_disk, terminate, read_only, half_written, out_of_memory, damaged, second_run, leak, kill, clock_back,
    both_resume, no_more_files,
)  # fmt: skip
