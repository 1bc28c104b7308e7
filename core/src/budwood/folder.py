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
from pathlib import Path
from typing import Any

from budwood.api.errors import BudwoodError, ConfigError, DiskFullError

STATUS = "status.json"


@dataclass(frozen=True)
class RunFolder:
    """One run on disk: ``config.yaml, versions.json, status.json, events.jsonl, checkpoints/, report.html``."""

    folder: Path

    @property
    def run_id(self) -> str:
        return self.folder.name

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    @property
    def config_file(self) -> Path:
        return self.folder / "config.yaml"

    @property
    def status(self) -> dict[str, Any]:
        """What the run last said of itself; ``killed`` if it says running and its process is gone."""
        try:
            status: dict[str, Any] = json.loads((self.folder / STATUS).read_text())
        except FileNotFoundError:
            return {"status": "unknown"}
        if status.get("status") == "running" and not _alive(status.get("pid")):
            status["status"] = "killed"
        return status

    def write_status(self, **changes: Any) -> None:
        path = self.folder / STATUS
        current = json.loads(path.read_text()) if path.exists() else {}
        write_atomically(path, json.dumps({**current, **changes}, indent=1))

    def create(self) -> None:
        try:
            self.folder.mkdir()
        except OSError as error:
            raise disk_error(error, self.folder) from error

    @contextmanager
    def locked(self) -> Iterator[None]:
        """One process at a time may train in this folder."""
        with (self.folder / "lock").open("w") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise BudwoodError(
                    "another process is training this run", where=str(self.folder), do="Wait for it, or stop it first"
                ) from None
            yield


def _alive(pid: Any) -> bool:
    if not isinstance(pid, int):
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def write_atomically(path: Path, text: str) -> None:
    """All of ``text`` under ``path``, or what was there before."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.write_text(text)
        beside.replace(path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise disk_error(error, path) from error


def disk_error(error: OSError, path: Path) -> BudwoodError:
    """An operating-system error while writing ``path``, as one clear paragraph."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFullError(
            "no space left on the disk",
            where=str(path),
            do="Free some space, then continue with: budwood resume RUN. The last checkpoint is intact",
        )
    if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
        return ConfigError(
            "this folder cannot be written to", where=str(path), do="Choose another one with output=FOLDER"
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


def new_folder(output: Path, name: str, seed: object) -> RunFolder:
    """``<name>-s<seed>-<utc time>-<4 hex>`` under ``output``; not made yet."""
    stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
    slug = re.sub(r"[^A-Za-z0-9._]+", "-", name).strip("-.") or "run"
    return RunFolder(output / f"{slug}-s{seed}-{stamp}-{secrets.token_hex(2)}")


def list_runs(output: Path) -> list[RunFolder]:
    """Every run under ``output``, oldest first."""
    runs = [RunFolder(path.parent) for path in output.glob(f"*/{STATUS}")] if output.is_dir() else []
    return sorted(runs, key=lambda run: (run.status.get("started", 0), run.run_id))


def find_run(reference: str, output: Path | None = None) -> RunFolder:
    """A folder, a run id or its unique prefix, an MLflow run id, or ``last``."""
    path = Path(reference)
    if (path / STATUS).is_file():
        return RunFolder(path.resolve())
    output = output or default_output()
    runs = list_runs(output)
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
    raise ConfigError(
        f"no run {reference!r} under {output}",
        do="budwood runs lists them; a run elsewhere is named by its folder, or set BUDWOOD_OUTPUT",
    )


def default_output(data: Mapping[str, Any] | None = None) -> Path:
    """The configured output folder, else ``BUDWOOD_OUTPUT``, else ``runs``."""
    return Path((data or {}).get("output") or os.environ.get("BUDWOOD_OUTPUT") or "runs")


def _mlflow_id(run: RunFolder) -> str | None:
    try:
        value: str | None = json.loads((run.folder / "tracking.json").read_text()).get("mlflow_run_id")
    except FileNotFoundError:
        return None
    return value
