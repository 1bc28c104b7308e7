"""Several processes as one run: how they find each other, how they end together, and who says why.

A launcher has set ``RANK``, ``WORLD_SIZE``, ``MASTER_ADDR`` and ``MASTER_PORT``: ``budwood launch``, torchrun, or Accelerate's.
torch is imported only where there are several. What waits for the others does so for ``BUDWOOD_DEADLINE`` seconds at most.
"""

from __future__ import annotations

import ctypes
import faulthandler
import json
import os
import signal
import socket
import sys
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, TextIO

from budwood.api import ALONE, BudwoodError, ConfigError, Processes
from budwood.folder import going_on

ASKED, LAUNCHER, DEADLINE = "BUDWOOD_WORLD_SIZE", "BUDWOOD_LAUNCHER", "BUDWOOD_DEADLINE"
DEADLINE_SECONDS = 1800.0
"""Longer than any evaluation or checkpoint of one process that the others wait for; torch's own value too."""
JOIN_SECONDS = 600.0
"""What the others may take to start, whatever the deadline."""
TELL_SECONDS = 2.0
"""How long a process that lost another waits for that one's last words."""
LOST = 7
_FAILURE = "budwood/failure"
_BACKENDS = ("gloo", "nccl")
"""Named in the messages of torch.distributed's that have no class of their own."""


class PeerError(BudwoodError):
    """Another process of the run failed, died or hangs. ``told``: a person learns the reason elsewhere."""

    exit_code = LOST
    told = False


class Joined(Processes):
    """Two or more processes over torch.distributed: gloo, and NCCL for tensors on GPUs of their own."""

    def __init__(self, rank: int, count: int, local_rank: int, deadline: float) -> None:
        import torch
        import torch.distributed as dist

        self.rank, self.count, self.local_rank, self.deadline = rank, count, local_rank, deadline
        self._nowhere = open(os.devnull, "w")  # noqa: SIM115 - for as long as this process may be asked
        self._be_asked(self._nowhere)
        gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
        own_gpu = gpus >= int(os.environ.get("LOCAL_WORLD_SIZE", count))
        if own_gpu:
            torch.cuda.set_device(local_rank)
        self._nccl = own_gpu
        self._dist = dist
        self._stacks: TextIO | None = None
        limit, begin = timedelta(seconds=deadline), timedelta(seconds=max(deadline, JOIN_SECONDS))
        with self._waiting():
            self._store, _, _ = next(dist.rendezvous("env://", rank, count, timeout=begin))  # type: ignore[attr-defined]
            backend = "cpu:gloo,cuda:nccl" if own_gpu else "gloo"
            dist.init_process_group(backend, store=self._store, rank=rank, world_size=count, timeout=limit)
        self._peers = self.gather((socket.gethostname(), os.getpid()))

    def gather(self, value: Any) -> list[Any]:
        values: list[Any] = [None] * self.count
        with self._waiting():
            self._dist.all_gather_object(values, value)
        return values

    def to_first(self, value: Any) -> list[Any]:
        values: list[Any] | None = [None] * self.count if self.first else None
        with self._waiting():
            self._dist.gather_object(value, values)
        return values or []

    def from_first(self, value: Any) -> Any:
        box = [value if self.first else None]
        with self._waiting():
            self._dist.broadcast_object_list(box, src=0)
        return box[0]

    def sum(self, tensor: Any) -> Any:
        with self._waiting():
            if tensor.is_cuda and not self._nccl:
                here = tensor.cpu()
                self._dist.all_reduce(here)
                tensor.copy_(here)
            else:
                self._dist.all_reduce(tensor)
        return tensor

    @contextmanager
    def watched(self, folder: Path) -> Iterator[None]:
        """Trainers exchange gradients by means of their own, whose errors speak of sockets: they are told as ours."""
        path = folder / f"stacks-{self.rank}.txt"
        self._stacks = path.open("w")
        self._be_asked(self._stacks)
        try:
            yield
        except RuntimeError as error:
            if not self._is_of_an_exchange(error):
                raise
            raise self._lost(error) from error
        finally:
            self._be_asked(self._nowhere)
            self._stacks.close()
            self._stacks = None
            if path.stat().st_size == 0:
                path.unlink()

    def _be_asked(self, file: TextIO) -> None:
        """Another process may ask for the stacks of this one at any time: without an answer it would be killed by that."""
        faulthandler.register(signal.SIGUSR1, file, all_threads=True)

    def _is_of_an_exchange(self, error: RuntimeError) -> bool:
        return isinstance(error, self._dist.DistError) or any(name in str(error).lower() for name in _BACKENDS)

    def leave(self, error: BaseException | None) -> None:
        """``error``: what ended this process, for the others to tell."""
        if error is not None and not isinstance(error, PeerError):
            with suppress(RuntimeError):
                self._store.set(_FAILURE, json.dumps([self.rank, str(error) or type(error).__name__]))
        if error is None or not self._nccl:  # NCCL may wait for who is gone; gloo left alone may abort at exit
            with suppress(RuntimeError) if error is not None else nullcontext():
                self._dist.destroy_process_group()
        if error is None:
            faulthandler.unregister(signal.SIGUSR1)
            self._nowhere.close()

    @contextmanager
    def _waiting(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:  # what torch.distributed raises is one, whatever the backend
            raise self._lost(error) from error

    def _lost(self, error: RuntimeError) -> PeerError:
        """Why an exchange with the others failed, as far as this process can find out."""
        onwards = f"The run goes on from its newest checkpoint with: {going_on()}"
        silent = not self.first or LAUNCHER in os.environ
        if failure := self._last_words():
            rank, said = failure
            lost = PeerError(f"process {rank} of {self.count} failed: {said}")
            lost.told = silent
            return lost
        if not any(word in str(error).lower() for word in ("timed out", "timeout")):
            what = f"another of the {self.count} processes ended without a word: it was killed, or ran out of memory"
            lost = PeerError(what, do=onwards)
            lost.told = silent
            return lost
        self._dump_stacks()
        return PeerError(
            f"process {self.rank} of {self.count} waited {self.deadline:g} s for another one, which hangs or is slower "
            "than that",
            where=self._stacks.name if self._stacks else "",
            do=("What that one was doing stands in its own file beside this one. " if self._stacks else "")
            + f"A longer deadline is {DEADLINE}=SECONDS. "
            f"{onwards}",
        )

    def _last_words(self) -> tuple[int, str] | None:
        give_up = time.monotonic() + TELL_SECONDS
        with suppress(RuntimeError):  # the store lives in process 0, which may be gone
            while time.monotonic() < give_up:
                if self._store.check([_FAILURE]):
                    rank, said = json.loads(self._store.get(_FAILURE))
                    return rank, said
                time.sleep(0.05)
        return None

    def _dump_stacks(self) -> None:
        if self._stacks is None:
            return
        faulthandler.dump_traceback(self._stacks, all_threads=True)
        for rank, (host, pid) in enumerate(self._peers):
            if rank != self.rank and host == socket.gethostname():
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGUSR1)
        time.sleep(0.5)  # they write, and only then does anybody end


@contextmanager
def joined(asked: int | None = None, command: str = "run FILE") -> Iterator[Processes]:
    """The processes of this run, all together, until they have trained. ``asked``: how many the configuration says;
    ``command``: what a launcher would be given.

    :raises ConfigError: as many as were asked for are not there.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    _check_count(world, asked, command)
    _end_with_launcher()
    if world == 1:
        yield ALONE
        return
    rank, local_rank = int(os.environ["RANK"]), int(os.environ.get("LOCAL_RANK", "0"))
    if rank:
        warnings.simplefilter("ignore")  # process 0 gives the same ones
    together = Joined(rank, world, local_rank, float(os.environ.get(DEADLINE, DEADLINE_SECONDS)))
    try:
        yield together
    except BaseException as error:
        together.leave(error)
        raise
    together.leave(None)


def _check_count(world: int, asked: int | None, command: str) -> None:
    exported = os.environ.get(ASKED)
    for where, wanted in (("processes", asked), (ASKED, int(exported) if exported else None)):
        if wanted is not None and wanted != world:
            start = f"launch -n {wanted} {command}" if wanted > 1 else command
            raise ConfigError(
                f"{wanted} processes were asked for, and this run has {world}"
                + (", since no launcher says otherwise" if "WORLD_SIZE" not in os.environ else ""),
                where=where,
                do=f"Start it with: budwood {start}, or say processes={world}. On a machine without GPUs "
                "accelerate launch starts one process, whatever --num_processes says, unless --multi_gpu is given too",
            )


def _end_with_launcher() -> None:
    """Linux kills this process when its launcher dies, however that happens; elsewhere the launcher's own end must do."""
    launcher = os.environ.get(LAUNCHER)
    if launcher is None or not sys.platform.startswith("linux"):
        return
    parent_death_signal = 1  # PR_SET_PDEATHSIG of <linux/prctl.h>
    ctypes.CDLL(None).prctl(parent_death_signal, signal.SIGKILL)
    if os.getppid() != int(launcher):
        os._exit(LOST)


def environment(rank: int, count: int, port: int, deadline: float | None) -> Mapping[str, str]:
    """What process ``rank`` of ``count`` on this machine is told by ``budwood launch``, in torchrun's words and ours."""
    said = {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "WORLD_SIZE": count,
        "LOCAL_WORLD_SIZE": count,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        ASKED: count,
        LAUNCHER: os.getpid(),
        **({} if deadline is None else {DEADLINE: deadline}),
    }
    return {name: str(value) for name, value in said.items()}
