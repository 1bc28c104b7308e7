"""Run folders: names, status, locks, and finding a run again by whatever a person remembers of it."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import secrets
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, TextIO

from budwood.api.errors import BudwoodError, ConfigError, DiskFullError
from budwood.redact import scrubbed

STATUS = "status.json"
STUDY = "study.json"
"""Tells the folder of a study, whose runs lie below it, from the folder of a run."""
ENTRIES: Mapping[str, Any] = {
    **dict.fromkeys(("status", "name", "run_id"), str),
    **dict.fromkeys(("steps", "env_steps", "total", "begun_with"), int),
    **dict.fromkeys(("started", "ended", "cpu_seconds"), (int, float)),
    "latest": dict,
    "notes": list,
    "error": (str, type(None)),
}
"""What the entries of a run's status are."""
DONE = ("finished", "stopped")
"""What a run says of itself once it is not to be trained on."""
LOCK = "lock"
LOCK_SECONDS = 1.0
"""Who asks whether a run is being trained holds the lock for microseconds; a second trainer holds it for longer."""


@dataclass(frozen=True)
class RunFolder:
    """One run on disk: ``config.yaml, versions.json, status.json, events.jsonl, checkpoints/, report.html``."""

    folder: Path

    @property
    def run_id(self) -> str:
        return self.folder.name

    @property
    def study(self) -> Path | None:
        """The folder of the study that this run is a cell of."""
        return self.folder.parent if (self.folder.parent / STUDY).is_file() else None

    @property
    def output(self) -> Path:
        """The folder of all runs, which is where the tracker's file is."""
        return self.study.parent if self.study else self.folder.parent

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    @property
    def config_file(self) -> Path:
        return self.folder / "config.yaml"

    @property
    def status(self) -> dict[str, Any]:
        """What the run last said of itself; ``killed`` if it says running and no process trains here."""
        status = {"status": "unknown", **self._written()}
        if status["status"] == "running" and not self._is_locked():
            status["status"] = "killed"
        return status

    def write_status(self, **changes: Any) -> None:
        write_atomically(self.folder / STATUS, json.dumps(scrubbed({**self._written(), **changes}), indent=1))

    def _written(self) -> dict[str, Any]:
        """Empty for a file that is not there, or that a power cut or a person damaged: the run itself does not need it.
        An entry of another kind than :data:`ENTRIES` says is left out."""
        try:
            status = json.loads((self.folder / STATUS).read_text())
        except (FileNotFoundError, ValueError, RecursionError):
            return {}
        if not isinstance(status, dict):
            return {}
        return {key: value for key, value in status.items() if isinstance(value, ENTRIES.get(key, object))}

    def create(self, again: bool = False) -> None:
        """``again``: it may be there already."""
        try:
            self.folder.mkdir(exist_ok=again)
        except OSError as error:
            raise disk_error(error, self.folder) from error

    @contextmanager
    def locked(self) -> Iterator[None]:
        """One process at a time may train in this folder."""
        try:
            handle = (self.folder / LOCK).open("a+")
        except OSError as error:
            raise disk_error(error, self.folder) from error
        with handle:
            give_up = time.monotonic() + LOCK_SECONDS
            while not _take(handle, fcntl.LOCK_EX):
                if time.monotonic() > give_up:
                    raise _taken(handle, self.folder)
                time.sleep(0.05)
            handle.truncate(0)
            handle.write(str(os.getpid()))
            handle.flush()
            yield

    def _is_locked(self) -> bool:
        """Whether a living process trains here. Unlike a process number, a lock is never somebody else's."""
        try:
            with (self.folder / LOCK).open() as handle:
                return not _take(handle, fcntl.LOCK_SH)
        except FileNotFoundError:
            return False


def _taken(handle: TextIO, folder: Path) -> BudwoodError:
    handle.seek(0)
    pid = handle.read().strip()
    return BudwoodError(
        f"another process{f' (pid {pid})' if pid else ''} is training this run",
        where=str(folder),
        do="Wait for it, or stop it first",
    )


def _take(handle: TextIO, kind: int) -> bool:
    try:
        fcntl.flock(handle, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def write_atomically(path: Path, text: str) -> None:
    """All of ``text`` under ``path``, or what was there before, also after a power cut."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with beside.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise disk_error(error, path) from error


def inside(folder: Path, path: Path) -> Path:
    """``path``, absolute or relative to ``folder``, with links followed. It, and all that it leads to, lies in ``folder``.

    :raises BudwoodError: it does not; sending it somewhere would give away a file that is no part of the run.
    """
    base = folder.resolve()
    found = (base / path).resolve()
    for one in (found, *(found.rglob("*") if found.is_dir() else ())):
        if not one.resolve().is_relative_to(base):
            raise BudwoodError(
                f"{path} leads out of this folder, to {one.resolve()}",
                where=str(folder),
                do="Remove it, or copy what it leads to into the folder",
            )
    return found


def going_on(run: str = "RUN", settings: str = "", count: int | None = None) -> str:
    """The command by which a run goes on in as many processes: ``count``, or those that this one was started with."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    count = world if count is None else count
    words = " ".join(["resume", run, *([settings] if settings else [])])
    if count == 1:
        return f"budwood {words}"
    if int(os.environ.get("LOCAL_WORLD_SIZE", count)) < count:
        return f"accelerate launch ... -m budwood {words}, on every machine as before"
    return f"budwood launch -n {count} {words}"


def disk_error(error: OSError, path: Path) -> BudwoodError:
    """An operating-system error while writing ``path``, as one clear paragraph."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFullError(
            "no space left on the disk",
            where=str(path),
            do=f"Free some space, then continue with: {going_on()}. The last checkpoint is intact",
        )
    if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
        return ConfigError(
            "this folder cannot be written to", where=str(path), do="Choose another one with output=FOLDER"
        )
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return BudwoodError(
            "too many open files",
            where=str(path),
            do="Raise the limit (ulimit -n), or look for a plugin or an environment that does not close what it opens",
        )
    return BudwoodError(f"writing failed: {error.strerror}", where=str(path), do="Check the disk")


def prepare_output(output: Path) -> Path:
    """Make the output folder and prove that it can be written to, before anything slow begins."""
    probe = output / f".probe-{os.getpid()}"
    try:
        output.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        if error.errno == errno.ENOTDIR or isinstance(error, FileExistsError):
            raise ConfigError(f"{output} is not a folder", where="output", do="Choose another one") from error
        raise disk_error(error, output) from error
    return output.resolve()


def marked(study: Path) -> dict[str, Any]:
    """What the mark of a study's folder says; empty for one that is not there or that is damaged."""
    try:
        said = json.loads((study / STUDY).read_text())
    except (FileNotFoundError, ValueError, RecursionError):
        return {}
    return said if isinstance(said, dict) else {}


def new_folder(output: Path, name: str, seed: object) -> RunFolder:
    """``<name>-s<seed>-<utc time>-<4 hex>`` under ``output``; not made yet."""
    stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
    slug = re.sub(r"[^A-Za-z0-9._]+", "-", name).strip("-.") or "run"
    return RunFolder(output / f"{slug}-s{seed}-{stamp}-{secrets.token_hex(2)}")


def list_runs(output: Path) -> list[RunFolder]:
    """Every run under ``output``, those of studies included, oldest first."""
    cells = (path.parent.glob(f"*/{STATUS}") for path in output.glob(f"*/{STUDY}"))
    runs = [RunFolder(path.parent) for path in chain(output.glob(f"*/{STATUS}"), *cells)]
    return sorted(runs, key=lambda run: (run.status.get("started", 0), run.run_id))


def find_run(reference: str, output: Path | None = None) -> RunFolder:
    """A folder, a run id or its unique prefix, an MLflow run id, or ``last``."""
    path = Path(reference)
    if (path / STATUS).is_file():
        return RunFolder(path.resolve())
    if path.is_file():
        raise ConfigError(
            f"{path} is a file, and a run is a folder",
            do="Files of trainers (model.zip, .pt, .pkl) hold pickles, which run code when they are read: budwood reads none. "
            "Load one that you trust in a script of your own, and graft plugins onto it with budwood.graft",
        )
    output = output or default_output()
    runs = list_runs(output.resolve())
    if reference == "last" and runs:
        return runs[-1]
    matches = [run for run in runs if run.run_id.startswith(reference)] if reference else []
    exact = [run for run in matches if run.run_id == reference]
    matches = exact or matches or [run for run in runs if _mlflow_id(run) == reference]
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise ConfigError(
            f"{reference!r} fits {len(matches)} runs",
            problems=tuple(run.run_id for run in matches),
            do="Give more of the name:",
        )
    if reference == "last" and not runs:
        raise ConfigError(
            f"there are no runs under {output}",
            do="Train one with: budwood run FILE; a run elsewhere is named by its folder, or set BUDWOOD_OUTPUT",
        )
    raise ConfigError(
        f"no run {reference!r} under {output}",
        do="budwood runs lists them; a run elsewhere is named by its folder, or set BUDWOOD_OUTPUT",
    )


def default_output(data: Mapping[str, Any] | None = None) -> Path:
    """The configured output folder, else ``BUDWOOD_OUTPUT``, else ``runs``."""
    return Path((data or {}).get("output") or os.environ.get("BUDWOOD_OUTPUT") or "runs")


def _mlflow_id(run: RunFolder) -> str | None:
    try:
        said = json.loads((run.folder / "tracking.json").read_text())
    except (FileNotFoundError, ValueError, RecursionError):
        return None
    return said.get("mlflow_run_id") if isinstance(said, dict) else None
