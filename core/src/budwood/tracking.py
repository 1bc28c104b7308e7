"""Tracking as the training process sees it: say once what the run is, start a sink beside it, ask how far that is.

The sink (:mod:`budwood.sink`) is a process of its own that reads the journal and talks to MLflow; nothing here imports
mlflow, and no failure of the tracker reaches the trainer. What could not be sent stays in the journal: see :func:`replay`.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit, urlunsplit

from budwood import journal as journal_file
from budwood.api.errors import BudwoodError
from budwood.folder import STUDY
from budwood.journal import Journal

STATE = "tracking.json"
LOG = "tracking.log"
LOCK = "tracking.lock"
TELL_SECONDS = 3.0
"""How long somebody waits before being told what for, and between two such lines."""
PATIENCE_SECONDS = 10.0
"""How long :func:`finish` waits for a store that does not answer, unless told otherwise; a sink that is already at work
may sleep that long between two attempts."""

_URI_VARIABLE = "BUDWOOD_TRACKING_URI"
"""Hands the sink an address with its password, which is written to no file."""

_sinks: dict[Path, subprocess.Popen[bytes]] = {}


@dataclass(frozen=True)
class State:
    """What the sink wrote to ``tracking.json``: how far it is. ``position`` is a byte offset in the journal."""

    uri: str | None = None
    experiment_id: str | None = None
    mlflow_run_id: str | None = None
    position: int = 0
    sent: int = 0
    phase: Literal["starting", "sending", "unreachable", "failed", "done"] = "starting"
    error: str = ""

    @classmethod
    def load(cls, folder: Path) -> State:
        """Damaged, it counts as not there: what is said to MLflow twice is there once."""
        try:
            state = cls(**json.loads((folder / STATE).read_text()))
        except (FileNotFoundError, ValueError, TypeError, RecursionError):
            return cls()
        return (
            state if isinstance(state.position, int) and state.position >= 0 and isinstance(state.sent, int) else cls()
        )

    def save(self, folder: Path) -> None:
        beside = folder / f".{STATE}"
        with beside.open("w") as file:
            json.dump(asdict(self), file, indent=2)
            file.flush()
            os.fsync(file)
        beside.replace(folder / STATE)


@dataclass(frozen=True)
class Status:
    """``pending`` journal lines are not in MLflow yet. ``uri`` None: the run is not tracked. ``asked`` False: the run has
    ended, and MLflow was not asked yet whether it has kept every number."""

    uri: str | None
    mlflow_run_id: str | None
    sent: int
    pending: int
    phase: str
    error: str
    asked: bool = True

    @property
    def complete(self) -> bool:
        return self.uri is None or (self.pending == 0 and self.asked)

    def __str__(self) -> str:
        if self.uri is None:
            return "not tracked"
        if self.complete:
            return f"{self.sent} events in MLflow at {self.uri}"
        reason = f" ({self.error})" if self.error else ""
        if self.pending == 0:
            return f"{self.sent} events were sent to MLflow at {self.uri}; whether it kept all is not known yet{reason}"
        return f"{self.pending} of {self.sent + self.pending} events wait for MLflow at {self.uri}{reason}"


def start(
    journal: Journal,
    *,
    config: Mapping[str, Any],
    experiment: str,
    uri: str | None,
    tags: Mapping[str, str],
    output: Path,
    enabled: bool = True,
    within: Path | None = None,
) -> None:
    """Write what the run is and start its sink; returns at once. Called again, it continues the same MLflow run.

    ``config`` is the resolved configuration with secrets already redacted, ``uri`` its ``tracking.uri``. ``within`` is
    the folder of a study: the run nests in the study's own, as soon as that one is in the store.
    """
    address, parent = target(uri, output) if enabled else (None, None)
    nests = within is not None and address is not None and _journaled_uri(within) == without_password(address)
    journal.run(
        {
            "name": journal.folder.name,
            "experiment": experiment,
            "uri": address and without_password(address),
            "parent": parent,
            "within": os.path.relpath(within, journal.folder) if within and nests else None,
            "params": flatten(config),
            "tags": dict(tags),
        }
    )
    journal.status("running")
    if address:
        _launch(journal.folder, address)


def finish(
    folder: Path, timeout: float = 60.0, progress: Callable[[str], None] | None = None, *, patience: float | None = None
) -> Status:
    """Wait until everything is sent, the store does not answer for ``patience``, or ``timeout`` seconds have passed.

    A sink that died is started once more. ``progress`` is told how far it is now and then, and when all is sent.
    """
    began = heard = time.monotonic()
    uri, told, restarted = _journaled_uri(folder), "", False
    while True:
        now = _status(folder, uri)
        limit = min(timeout, patience or PATIENCE_SECONDS) if now.phase == "unreachable" else timeout
        sink = _sinks.get(folder)
        if now.complete or time.monotonic() - began > limit:
            if sink is not None and now.complete:
                _reap(sink)
            if progress and now.complete and now.uri is not None:
                progress(f"all sent: {now}")
            return now
        if sink is not None and sink.poll() is not None:
            if restarted:
                return now
            restarted = True
            _relaunch(folder)
        if progress and str(now) != told and time.monotonic() - heard > TELL_SECONDS:
            told, heard = str(now), time.monotonic()
            progress(told)
        time.sleep(0.1)


def _reap(sink: subprocess.Popen[bytes]) -> None:
    """A sink that has sent everything is about to end: without this it stays a zombie of a long-lived caller."""
    with suppress(subprocess.TimeoutExpired):
        sink.wait(2.0)


def status(folder: Path) -> Status:
    return _status(folder, _journaled_uri(folder))


@dataclass(frozen=True)
class Pending:
    """``folders`` of runs that have something MLflow has not got yet; ``damaged`` says which journals cannot be read."""

    folders: list[Path]
    damaged: list[BudwoodError]


def pending(output: Path) -> Pending:
    folders, damaged = [], []
    below = (study.parent.glob(f"*/{journal_file.FILE}") for study in output.glob(f"*/{STUDY}"))
    for file in sorted(chain(output.glob(f"*/{journal_file.FILE}"), *below)):
        try:
            complete = status(file.parent).complete
        except BudwoodError as error:
            damaged.append(error)
        else:
            if not complete:
                folders.append(file.parent)
    return Pending(folders, damaged)


def replay(output: Path) -> list[Path]:
    """Start a sink for every run under ``output`` that has something pending and no sink; the folders of those runs."""
    return [folder for folder in pending(output).folders if _relaunch(folder)]


def target(configured: str | None, output: Path) -> tuple[str, str | None]:
    """(address of the store, run to nest in): ``tracking.uri``, the caller's active MLflow run, ``MLFLOW_TRACKING_URI``,
    and otherwise a SQLite file in the output folder."""
    parent = active_parent()
    address = configured or (parent and parent[0]) or os.environ.get("MLFLOW_TRACKING_URI") or ""
    address = absolute(address) if address else f"sqlite:///{output.resolve() / 'mlflow.db'}"
    return address, parent[1] if parent and absolute(parent[0]) == address else None


def active_parent() -> tuple[str, str] | None:
    """(tracking URI, run id) of the MLflow run that is active in this thread, if the caller uses MLflow at all."""
    mlflow = sys.modules.get("mlflow")
    run = mlflow.active_run() if mlflow is not None else None
    return (mlflow.get_tracking_uri(), run.info.run_id) if mlflow is not None and run is not None else None


@dataclass(frozen=True)
class Page:
    """``command`` serves MLflow's page at ``url`` with these ``variables`` set; empty where a server already does."""

    url: str
    command: tuple[str, ...] = ()
    variables: Mapping[str, str] = field(default_factory=dict)


def ui_command(output: Path, configured: str | None = None) -> Page:
    address, _ = target(configured, output)
    if address.startswith(("http://", "https://")):
        return Page(without_password(address))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    database = sqlite_path(address)
    artifacts = (database.parent if database else output.resolve()) / "artifacts"
    command = (sys.executable, "-m", "mlflow", "ui", "--host", "127.0.0.1", "--port", str(port), "--workers", "1")
    store = {"MLFLOW_BACKEND_STORE_URI": address}  # with its password, which a command line would show to everybody
    lighter = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    kept = ("--artifacts-destination", artifacts.as_uri())
    return Page(f"http://127.0.0.1:{port}", (*command, *kept), {**store, **lighter})


def sqlite_path(uri: str) -> Path | None:
    return Path(uri.removeprefix("sqlite:///")) if uri.startswith("sqlite:///") else None


def absolute(uri: str) -> str:
    """``sqlite:///runs.db`` means a file of the working directory; another process has another one."""
    path = sqlite_path(uri)
    return uri if path is None else f"sqlite:///{path.absolute()}"


def without_password(uri: str) -> str:
    """``user:***@host``, or ``***@host`` where a token stands alone."""
    parts = urlsplit(uri)
    user, _, host = parts.netloc.rpartition("@")
    if not user:
        return uri
    return urlunsplit(parts._replace(netloc=f"{user.partition(':')[0]}:***@{host}" if ":" in user else f"***@{host}"))


def full_address(uri: str) -> str:
    """``uri`` as journaled, with the password that only the environment knows."""
    for variable in (_URI_VARIABLE, "MLFLOW_TRACKING_URI"):
        candidate = os.environ.get(variable, "")
        if candidate and without_password(candidate) == uri:
            return candidate
    return uri


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """``{"a": {"b": [1, 2]}}`` -> ``{"a.b": "[1, 2]"}``: mappings become dotted names, everything else is text."""
    flat: dict[str, str] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value if isinstance(value, str) else json.dumps(value)
    return flat


@contextmanager
def exclusive(path: Path, *, wait: bool) -> Iterator[bool]:
    """Hold the lock file ``path``; gives False, at once, if somebody else does and ``wait`` is false."""
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
        else:
            yield True


def _relaunch(folder: Path) -> bool:
    uri = _journaled_uri(folder)
    with exclusive(folder / LOCK, wait=False) as free:
        if not free or uri is None:
            return False
    _launch(folder, full_address(uri))
    return True


def _launch(folder: Path, address: str) -> None:
    """A session of its own, so that Ctrl-C and a closed terminal stop the run and not its tracking; the lowest priority."""
    environment = {
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
        **os.environ,
        _URI_VARIABLE: address,
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
        "OMP_NUM_THREADS": "1",
    }
    with (folder / LOG).open("ab") as log:
        try:
            sink = subprocess.Popen(
                [sys.executable, "-P", "-m", "budwood.sink", str(folder.absolute())],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                start_new_session=True,
            )
        except OSError as error:
            log.write(f"the tracking process could not be started: {error}\n".encode())
        else:
            os.setpriority(os.PRIO_PROCESS, sink.pid, 19)
            _sinks[folder] = sink


def _status(folder: Path, uri: str | None) -> Status:
    state = State.load(folder)
    if uri != state.uri:
        state = State(uri=uri)
    with (folder / journal_file.FILE).open("rb") as file:
        file.seek(state.position)
        pending = sum(line.endswith(b"\n") for line in file)
    asked = uri is None or state.phase == "done" or journal_file.is_written(folder)
    return Status(uri, state.mlflow_run_id, state.sent, pending, state.phase, state.error, asked)


def _journaled_uri(folder: Path) -> str | None:
    events = (event for _, event in journal_file.scan(folder / journal_file.FILE) if event.kind == "run")
    last = deque(events, maxlen=1)
    return last[0].data.get("uri") if last else None
