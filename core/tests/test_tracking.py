"""Tracking against the real MLflow: everything arrives exactly once, whatever dies, and the trainer never waits for it."""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from budwood import journal, tracking
from budwood import sink as sink_module
from budwood.api import BudwoodError
from budwood.folder import STUDY
from budwood.journal import FILE, Journal
from budwood.sink import Sink
from budwood.tracking import State, Status
from budwood.training import offer_artifacts

LARGEST = sys.float_info.max


@pytest.fixture(scope="session", autouse=True)
def _environment() -> Iterator[None]:
    """As the tracking process has it; and no proxy stands before the loopback."""
    with pytest.MonkeyPatch.context() as patch:
        for variable in ("NO_PROXY", "no_proxy"):
            patch.setenv(variable, "127.0.0.1")
        for variable in ("MLFLOW_DISABLE_TELEMETRY", "DO_NOT_TRACK"):
            patch.setenv(variable, "true")
        patch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        yield


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(sink_module, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(sink_module, "RETRY_SECONDS", (0.05, 0.2))


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made once: MLflow's migrations of a new file take seconds."""
    from budwood.mlflow_store import Store

    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    Store(f"sqlite:///{path}")
    return path


@pytest.fixture
def output(tmp_path: Path, empty_database: Path) -> Path:
    folder = tmp_path / "my runs"
    folder.mkdir()
    shutil.copy(empty_database, folder / "mlflow.db")
    return folder


@pytest.fixture
def nothing_started(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Path, str]]:
    """Record the sinks that would be started instead of starting them; the test runs one itself."""
    started: list[tuple[Path, str]] = []
    monkeypatch.setattr(tracking, "_launch", lambda folder, address: started.append((folder, address)))
    return started


def begin(output: Path, name: str = "run-s0", resume_at: int | None = None, **changes: Any) -> Journal:
    folder = output / name
    folder.mkdir(exist_ok=True)
    events = Journal(folder, resume_at)
    facts = {"config": {"seed": 0}, "experiment": "tests", "uri": None, "tags": {"plugin.x": "x 1.0"}, "output": output}
    tracking.start(events, **{**facts, **changes})
    return events


def log(events: Journal, steps: range, keys: int = 3) -> None:
    for step in steps:
        events.metrics({f"m/{key}": step + key / 7 for key in range(keys)}, step)


def client(folder: Path) -> Any:
    from mlflow.tracking import MlflowClient

    return MlflowClient(tracking.full_address(State.load(folder).uri or ""))


def tracked(folder: Path) -> Any:
    return client(folder).get_run(State.load(folder).mlflow_run_id)


def sent(folder: Path, key: str) -> list[tuple[int, float]]:
    found = client(folder).get_metric_history(State.load(folder).mlflow_run_id, key)
    return sorted((metric.step, metric.value) for metric in found)


def assert_exactly_once(folder: Path, steps: int, keys: int = 3) -> None:
    for key in range(keys):
        assert sent(folder, f"m/{key}") == [(step, step + key / 7) for step in range(steps)]


# ---- what arrives -----------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("nothing_started")
def test_everything_arrives(output: Path) -> None:
    many = {f"p{index}": index for index in range(230)}
    config = {"seed": 3, "env": {"id": "Hopper-v5", "args": {}}, "device": None, "long": "x" * 7000, "many": many}
    events = begin(output, config=config, tags={"git.commit": "c0ffee", "odd tag!": "t" * 9000})
    folder = events.folder
    (folder / "config.yaml").write_text("seed: 3")
    (folder / "checkpoint").mkdir()
    (folder / "checkpoint" / "tensors").write_bytes(b"\0\1")
    events.artifact(folder / "config.yaml")
    events.artifact(folder / "checkpoint", "checkpoints")
    events.artifact(folder / "pruned")
    events.metrics({f"wide/{index}": float(index) for index in range(2300)}, 1)
    events.metrics({"nan": math.nan, "up": math.inf, "down": -math.inf, "what?": 1.0, "what*": 2.0, "a//b": 3.0}, 2)
    log(events, range(5))
    events.tags({"later": "yes"})
    events.status("finished")
    events.close()
    Sink(folder).run(deadline=0)

    run = tracked(folder)
    assert run.info.run_name == folder.name
    assert run.info.status == "FINISHED"
    params = run.data.params
    assert {key: params[key] for key in ("seed", "env.id", "env.args", "device", "many.p229")} == {
        "seed": "3",
        "env.id": "Hopper-v5",
        "env.args": "{}",
        "device": "null",
        "many.p229": "229",
    }
    assert params["long"] == "x" * 5999 + "…"
    assert run.data.tags["git.commit"] == run.data.tags["mlflow.source.git.commit"] == "c0ffee"
    assert run.data.tags["later"] == "yes"
    assert run.data.tags["budwood.run"] == folder.name
    assert_exactly_once(folder, 5)
    assert sent(folder, "wide/2299") == [(1, 2299.0)]
    assert math.isnan(sent(folder, "nan")[0][1])
    assert sent(folder, "up") == [(2, LARGEST)]
    assert sent(folder, "down") == [(2, -LARGEST)]
    odd = {key: value for key, value in run.data.metrics.items() if key.startswith(("what", "a/b"))}
    assert sorted(odd.values()) == [1.0, 2.0, 3.0]
    kept = client(folder).list_artifacts(run.info.run_id)
    assert [item.path for item in kept] == ["checkpoints", "config.yaml"]
    inside = client(folder).list_artifacts(run.info.run_id, "checkpoints/checkpoint")
    assert [item.path for item in inside] == ["checkpoints/checkpoint/tensors"]
    assert list((output / "artifacts").rglob("config.yaml"))
    status = tracking.status(folder)
    assert (status.pending, status.phase, status.complete) == (0, "done", True)


@pytest.mark.usefixtures("nothing_started")
def test_sink_follows_a_run_that_goes_on(output: Path) -> None:
    events = begin(output)
    thread = threading.Thread(target=Sink(events.folder).run, args=(0,))
    thread.start()
    for block in range(4):
        log(events, range(10 * block, 10 * block + 10))
        events.flush()
        time.sleep(0.1)
    assert thread.is_alive()
    events.close()
    thread.join(20)
    assert not thread.is_alive()
    assert_exactly_once(events.folder, 40)
    assert tracked(events.folder).info.status == "RUNNING", "a journal that just ends was killed: nothing is final"


# ---- resume -----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("nothing_started")
def test_resume_continues_the_same_mlflow_run_and_sends_nothing_twice(output: Path) -> None:
    events = begin(output, config={"seed": 0, "total": 100, "same": "x"})
    log(events, range(10))
    checkpoint = events.count
    log(events, range(10, 20))
    events.metrics({"fps": 100.0, "nan": math.nan}, 15)
    events.status("interrupted")
    events.close()
    folder = events.folder
    Sink(folder).run(deadline=0)
    before = State.load(folder).mlflow_run_id
    assert tracked(folder).info.status == "KILLED"

    events = begin(output, resume_at=checkpoint, config={"seed": 0, "total": 200, "same": "x", "new": 1})
    log(events, range(10, 30))
    events.metrics({"fps": 90.0, "nan": math.nan}, 15)
    events.close()
    Sink(folder).run(deadline=0)
    run = tracked(folder)
    assert run.info.run_id == before
    assert run.info.status == "RUNNING"
    assert run.data.params == {"seed": "0", "total": "100", "same": "x", "new": "1"}
    assert {key: run.data.tags[key] for key in run.data.tags if key.startswith("resumed")} == {"resumed.total": "200"}
    assert_exactly_once(folder, 30)
    assert sent(folder, "fps") == [(15, 90.0), (15, 100.0)]
    assert len(sent(folder, "nan")) == 1


@pytest.mark.usefixtures("nothing_started")
def test_resume_with_another_store_sends_everything_there(output: Path, empty_database: Path) -> None:
    events = begin(output)
    log(events, range(10))
    events.close()
    folder = events.folder
    Sink(folder).run(deadline=0)
    shutil.copy(empty_database, output / "other.db")
    events = begin(output, resume_at=events.count, uri=f"sqlite:///{output}/other.db")
    log(events, range(10, 20))
    events.close()
    assert tracking.status(folder).pending == 24
    Sink(folder).run(deadline=0)
    assert State.load(folder).uri == f"sqlite:///{output}/other.db"
    assert_exactly_once(folder, 20)


@pytest.mark.usefixtures("nothing_started")
def test_a_sink_hands_over_when_the_run_moves_to_another_store(output: Path) -> None:
    events = begin(output)
    old = Sink(events.folder)
    assert old.send()
    count = events.count
    events.close()
    events = begin(output, resume_at=count, uri=f"sqlite:///{output}/other.db")
    assert not old.send()
    events.close()


# ---- what may die -----------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("nothing_started")
def test_dying_between_sending_and_noting_it_sends_nothing_twice(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sink dies when it would note its progress for the n-th time, for every n, and is started again."""
    monkeypatch.setattr(sink_module, "POINTS_PER_GROUP", 20)
    events = begin(output)
    log(events, range(20))
    events.tags({"a": "b"})
    log(events, range(20, 30))
    events.status("finished")
    events.close()
    real, moments, died = State.save, 0, True

    class Died(BaseException):
        pass

    while died:
        moments, left, died = moments + 1, moments, False

        def save(state: State, folder: Path) -> None:
            nonlocal left, died
            if left == 0 and not died:
                died = True
                raise Died
            left -= 1
            real(state, folder)

        monkeypatch.setattr(State, "save", save)
        (events.folder / tracking.STATE).unlink(missing_ok=True)
        with suppress(Died):
            Sink(events.folder).run(deadline=0)
        if died:
            Sink(events.folder).run(deadline=0)
        assert_exactly_once(events.folder, 30)
    assert moments > 8
    runs = client(events.folder).search_runs([State.load(events.folder).experiment_id])
    assert len(runs) == 1, "made anew although it was there"


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.usefixtures("nothing_started")
def test_kill_9_of_sink_and_trainer_at_random_moments(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Real kills of forked sinks while a run is written, killed, and resumed from checkpoints of all ages."""
    monkeypatch.setattr(sink_module, "POINTS_PER_GROUP", 30)
    rng = random.Random(7)
    checkpoints: dict[int, int] = {}
    step = kills = 0
    events = begin(output)
    folder = events.folder
    for _ in range(10):
        child = os.fork()
        if child == 0:
            Sink(folder).run(deadline=0)
            os._exit(0)
        for _ in range(rng.randrange(20, 60)):
            if step % 7 == 0:
                checkpoints[step] = events.count
            log(events, range(step, step + 1))
            step += 1
        events.close()
        time.sleep(rng.uniform(0, 0.8))
        os.kill(child, signal.SIGKILL)
        kills += os.waitpid(child, 0)[1] == signal.SIGKILL
        step = rng.choice([known for known in checkpoints if known > step - 80])
        events = begin(output, resume_at=checkpoints[step])
        checkpoints = {known: count for known, count in checkpoints.items() if known <= step}
    events.status("finished")
    events.close()
    assert kills >= 3, "the sinks were done before they could be killed"
    Sink(folder).run(deadline=0)
    assert tracking.status(folder).complete
    furthest = max(step for step, _ in sent(folder, "m/0")) + 1
    assert furthest >= step
    assert_exactly_once(folder, furthest)


@pytest.mark.usefixtures("nothing_started")
def test_a_damaged_journal_is_said_and_not_retried(output: Path) -> None:
    events = begin(output)
    events.close()
    with (events.folder / FILE).open("ab") as file:
        file.write(b"{]\n")
    with pytest.raises(SystemExit, match="is damaged"):
        sink_module.main([str(events.folder)])
    assert State.load(events.folder).phase == "failed"
    assert "is damaged" in State.load(events.folder).error


@pytest.mark.usefixtures("nothing_started")
def test_a_damaged_journal_keeps_no_other_from_being_sent(output: Path) -> None:
    whole, damaged = begin(output, "whole"), begin(output, "damaged")
    for events in (whole, damaged):
        events.close()
    with (damaged.folder / FILE).open("ab") as file:
        file.write(b"{]\n")
    found = tracking.pending(output)
    assert found.folders == [whole.folder]
    assert [str(damaged.folder / FILE) in str(error) for error in found.damaged] == [True]


def test_a_sink_that_cannot_be_started_stops_nothing(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_process(*_: Any, **__: Any) -> None:
        raise OSError("Resource temporarily unavailable")

    monkeypatch.setattr(subprocess, "Popen", no_process)
    events = begin(output)
    log(events, range(3))
    events.close()
    assert tracking.finish(events.folder, timeout=0.2).pending == 5
    assert "Resource temporarily unavailable" in (events.folder / tracking.LOG).read_text()


# ---- the process itself -----------------------------------------------------------------------------------------


def test_two_runs_at_once_on_a_fresh_database_and_a_killed_sink(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real processes. Both make the database at the same moment; one is killed and started again by finish."""
    runs = [begin(tmp_path, name) for name in ("first-s0", "second-s0")]
    sinks = [tracking._sinks[events.folder] for events in runs]
    time.sleep(0.5)
    for sink in sinks:
        assert os.getsid(sink.pid) == sink.pid != os.getsid(0), "Ctrl-C would reach it"
        assert os.getpriority(os.PRIO_PROCESS, sink.pid) == 19
    sinks[0].kill()
    for events in runs:
        log(events, range(50))
        events.status("finished")
        events.close()
    told: list[str] = []
    monkeypatch.setattr(tracking, "TELL_SECONDS", 0.0)
    for events in runs:
        assert tracking.finish(events.folder, timeout=120, progress=told.append).complete
        assert_exactly_once(events.folder, 50)
        assert tracked(events.folder).info.status == "FINISHED"
    assert told
    assert "events wait for MLflow at sqlite:///" in told[0]
    assert told[-1].startswith("all sent: ")
    assert tracking.replay(tmp_path) == []
    for events in runs:
        assert tracking._sinks[events.folder].wait(20) == 0


def test_starting_costs_the_trainer_no_import_and_no_wait(tmp_path: Path) -> None:
    script = """
import sys, time
from pathlib import Path
from budwood import tracking
from budwood.journal import Journal
events = Journal(Path(sys.argv[1]))
began = time.perf_counter()
tracking.start(events, config={}, experiment="x", uri="http://127.0.0.1:9", tags={}, output=Path(sys.argv[1]))
print(time.perf_counter() - began, "mlflow" in sys.modules)
tracking._sinks[events.folder].kill()
"""
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True)
    seconds, imported = done.stdout.split()
    assert float(seconds) < 0.3
    assert imported == "False"


# ---- where to ---------------------------------------------------------------------------------------------------


def test_address_precedence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert tracking.target(None, Path("runs")) == (f"sqlite:///{tmp_path}/runs/mlflow.db", None)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://server:5000")
    assert tracking.target(None, Path("runs")) == ("http://server:5000", None)
    assert tracking.target("sqlite:///mine.db", Path("runs")) == (f"sqlite:///{tmp_path}/mine.db", None)


@pytest.mark.usefixtures("nothing_started")
def test_nests_in_the_callers_active_mlflow_run(output: Path) -> None:
    import mlflow

    mlflow.set_tracking_uri(f"sqlite:///{output}/mlflow.db")
    mlflow.set_experiment("theirs")
    with mlflow.start_run() as parent:
        events = begin(output)
        assert tracking.target("http://elsewhere", output) == ("http://elsewhere", None)
    assert tracking.active_parent() is None
    events.close()
    Sink(events.folder).run(deadline=0)
    run = tracked(events.folder)
    assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert run.info.experiment_id == parent.info.experiment_id


@pytest.mark.usefixtures("nothing_started")
def test_a_cell_nests_in_its_study_once_that_is_in_the_store(output: Path) -> None:
    study = begin(output, "grid")
    (study.folder / STUDY).write_text("{}")
    cell = begin(study.folder, "grid-a-s0", uri=f"sqlite:///{output}/mlflow.db", within=study.folder)
    log(cell, range(3))
    for events in (cell, study):
        events.close()
    Sink(cell.folder).run(deadline=0)
    assert State.load(cell.folder).phase == "unreachable"
    assert "not in the store yet" in State.load(cell.folder).error
    assert tracking.pending(output).folders == [study.folder, cell.folder], "studies come before their cells"
    for folder in tracking.pending(output).folders:
        Sink(folder).run(deadline=0)
    assert tracked(cell.folder).data.tags["mlflow.parentRunId"] == State.load(study.folder).mlflow_run_id
    assert_exactly_once(cell.folder, 3)


@pytest.mark.usefixtures("nothing_started")
def test_a_cell_of_an_untracked_study_or_in_another_store_nests_nowhere(output: Path) -> None:
    untracked = begin(output, "grid", enabled=False)
    tracked_here = begin(output, "other")
    for within, uri in ((untracked, "http://here"), (tracked_here, "http://elsewhere")):
        cell = begin(within.folder, "cell", within=within.folder, uri=uri)
        (run, *_) = (event for event in journal.read(cell.folder) if event.kind == "run")
        assert run.data["within"] is None


def test_untracked_run_has_a_journal_and_nothing_else(
    output: Path, nothing_started: list[tuple[Path, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    events = begin(output, enabled=False)
    log(events, range(3))
    events.close()
    assert nothing_started == []
    assert tracking.finish(events.folder) == Status(None, None, 0, 5, "starting", "")
    assert tracking.finish(events.folder).complete
    assert tracking.replay(output) == []
    with pytest.raises(BudwoodError, match="not tracked"):
        Sink(events.folder)


def test_a_password_is_in_no_file(
    output: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    secret = "http://me:hunter2@127.0.0.1:9/path"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", secret)
    started: list[dict[str, str]] = []

    def record(*_: Any, env: dict[str, str], **__: Any) -> SimpleNamespace:
        started.append(env)
        return SimpleNamespace(pid=0)

    monkeypatch.setattr(subprocess, "Popen", record)
    monkeypatch.setattr(os, "setpriority", lambda *_: None)
    monkeypatch.setattr(tracking, "_sinks", {})
    events = begin(output)
    events.close()
    assert started[0]["BUDWOOD_TRACKING_URI"] == secret
    assert tracking.replay(output) == [events.folder]
    assert started[1]["BUDWOOD_TRACKING_URI"] == secret
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "")
    Sink(events.folder).run(deadline=0)
    assert State.load(events.folder).phase == "unreachable"
    assert os.environ["MLFLOW_TRACKING_PASSWORD"] == "hunter2"
    assert "hunter2" not in capfd.readouterr().err
    for file in events.folder.iterdir():
        assert "hunter2" not in file.read_text(), file.name
    assert tracking.ui_command(output).url == "http://me:***@127.0.0.1:9/path"


def test_page_for_the_local_store(output: Path) -> None:
    page = tracking.ui_command(output)
    assert page.command[:4] == (sys.executable, "-m", "mlflow", "ui")
    assert page.url.endswith(page.command[page.command.index("--port") + 1])
    assert page.variables["MLFLOW_BACKEND_STORE_URI"] == f"sqlite:///{output}/mlflow.db"
    assert (output / "artifacts").as_uri() in page.command


def test_flatten() -> None:
    nested = {"a": {"b": {"c": 1.5}, "d": [1, {"e": None}]}, "f": "text", "g": True, "h": {}}
    assert tracking.flatten(nested) == {"a.b.c": "1.5", "a.d": '[1, {"e": null}]', "f": "text", "g": "true", "h": "{}"}


@given(st.text(max_size=300), st.text(max_size=300))
def test_names_become_ones_that_mlflow_takes_and_stay_different(one: str, other: str) -> None:
    from mlflow.utils import validation

    from budwood.mlflow_store import safe_name

    accept: Any = validation._validate_metric_name
    accept(safe_name(one))
    assert len(safe_name(one)) <= 250
    assert (safe_name(one) == safe_name(other)) == (one == other)


# ---- a server ---------------------------------------------------------------------------------------------------


@dataclass
class Gate:
    """A port in front of the server, to lose it and get it back: closed, open, or losing every answer on its way."""

    port: int
    behind: int
    answers: bool = True

    def __post_init__(self) -> None:
        self._listener: socket.socket | None = None
        self._connections: list[socket.socket] = []

    def open(self, *, answers: bool = True) -> None:
        self.close()
        self.answers = answers
        self._listener = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def close(self) -> None:
        for end in (self._listener, *self._connections):
            if end is not None:
                with suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
                end.close()
        self._listener, self._connections = None, []

    def _accept(self, listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                near, _ = listener.accept()
                far = socket.create_connection(("127.0.0.1", self.behind))
                self._connections += [near, far]
                threading.Thread(target=self._pass, args=(near, far, True), daemon=True).start()
                threading.Thread(target=self._pass, args=(far, near, self.answers), daemon=True).start()

    def _pass(self, source: socket.socket, sink: socket.socket, deliver: bool) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                if not deliver:
                    break
                sink.sendall(data)
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def start_server(folder: Path, port: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    store = ["--backend-store-uri", f"sqlite:///{folder}/server.db", "--artifacts-destination", str(folder / "files")]
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (folder / "server.log").open("ab") as log_file:
        server = subprocess.Popen(
            [*command, *store], env=environment, stdout=log_file, stderr=log_file, start_new_session=True
        )
    give_up = time.monotonic() + 180
    while time.monotonic() < give_up and server.poll() is None:
        with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2):
            return server
        time.sleep(0.2)
    stop_server(server)
    raise AssertionError((folder / "server.log").read_text())


def stop_server(server: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGKILL)
    server.wait(10)


@pytest.fixture(scope="module")
def server_port(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Iterator[int]:
    folder = tmp_path_factory.mktemp("server")
    shutil.copy(empty_database, folder / "server.db")
    port = free_port()
    server = start_server(folder, port)
    yield port
    stop_server(server)


@pytest.fixture
def gate(server_port: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    gate = Gate(free_port(), server_port)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{gate.port}")
    yield gate
    gate.close()


@pytest.mark.usefixtures("nothing_started")
def test_server_in_use(gate: Gate, tmp_path: Path) -> None:
    gate.open()
    events = begin(tmp_path, config={"empty": "", "seed": 1})
    log(events, range(20))
    events.metrics({"nan": math.nan, "up": math.inf, "down": -math.inf}, 1)
    (events.folder / "report.html").write_text("<p>")
    events.artifact(events.folder / "report.html")
    events.status("finished")
    events.close()
    Sink(events.folder).run(deadline=0)
    assert_exactly_once(events.folder, 20)
    assert math.isnan(sent(events.folder, "nan")[0][1])
    assert (sent(events.folder, "up"), sent(events.folder, "down")) == ([(1, LARGEST)], [(1, -LARGEST)])
    run = tracked(events.folder)
    assert run.info.artifact_uri.startswith("mlflow-artifacts:/")
    assert [item.path for item in client(events.folder).list_artifacts(run.info.run_id)] == ["report.html"]
    assert not list(tmp_path.glob("*.db"))


def test_server_unreachable_from_the_start_then_replayed(
    gate: Gate, tmp_path: Path, nothing_started: list[tuple[Path, str]]
) -> None:
    events = begin(tmp_path, name="early-s0")
    log(events, range(20))
    events.status("finished")
    events.close()
    folder = events.folder
    Sink(folder).run(deadline=0.3)
    status = tracking.finish(folder, timeout=0.1)
    assert (status.sent, status.pending, status.phase) == (0, 23, "unreachable")
    assert "Connection refused" in status.error
    assert str(status).startswith(f"23 of 23 events wait for MLflow at http://127.0.0.1:{gate.port} (")
    gate.open()
    del nothing_started[:]
    assert tracking.replay(tmp_path) == [folder]
    assert nothing_started == [(folder, f"http://127.0.0.1:{gate.port}")]
    Sink(folder).run(deadline=0)
    assert_exactly_once(folder, 20)
    assert tracked(folder).info.status == "FINISHED"
    assert tracking.replay(tmp_path) == []


@pytest.mark.usefixtures("nothing_started")
def test_server_lost_midway_and_answers_lost_on_their_way(gate: Gate, tmp_path: Path) -> None:
    gate.open()
    events = begin(tmp_path)
    thread = threading.Thread(target=Sink(events.folder).run, args=(30,))
    thread.start()
    rng = random.Random(3)
    for block in range(12):
        log(events, range(20 * block, 20 * block + 20))
        events.flush()
        time.sleep(rng.uniform(0, 0.3))
        match rng.choice(["lost", "deaf", "back"]):
            case "lost":
                gate.close()
            case "deaf":
                gate.open(answers=False)
            case "back":
                gate.open()
    gate.close()
    events.status("finished")
    events.close()
    time.sleep(0.5)
    assert tracking.status(events.folder).pending > 0
    gate.open()
    thread.join(60)
    assert_exactly_once(events.folder, 240)
    assert tracked(events.folder).info.status == "FINISHED"


@pytest.mark.usefixtures("nothing_started")
@pytest.mark.parametrize("lies", [3, 10_000])
def test_a_store_that_takes_numbers_and_does_not_keep_them(
    lies: int, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It answers every third time without storing anything, ``lies`` times: all arrives, or the run says what did not."""
    from mlflow.tracking import MlflowClient

    honest, calls, told = MlflowClient.log_batch, [0], [0]

    def log_batch(self: Any, run_id: str, metrics: Any = (), **rest: Any) -> None:
        calls[0] += bool(metrics)
        if metrics and (calls[0] % 3 == 1 or lies > 3) and told[0] < lies:
            told[0] += 1
            return
        honest(self, run_id, metrics=metrics, **rest)

    monkeypatch.setattr(MlflowClient, "log_batch", log_batch)
    events = begin(output)
    log(events, range(20))
    events.metrics({"nan": math.nan, "up": math.inf}, 1)
    events.status("finished")
    events.close()
    Sink(events.folder).run(deadline=3)
    assert told[0] > 0
    if lies == 3:
        assert_exactly_once(events.folder, 20)
        assert tracking.status(events.folder).complete
    else:
        said = tracking.status(events.folder)
        assert said.phase == "unreachable"
        assert said.error == "62 numbers that MLflow had taken were not there after they were sent again"
        assert told[0] == 2, "sent, and sent again once"
        assert not said.complete, "a store that lies would be left alone with what it lost"
        assert str(said).startswith("24 events were sent to MLflow")
        assert said.error in str(said)
        assert tracking.pending(output).folders == [events.folder]
        monkeypatch.setattr(MlflowClient, "log_batch", honest)
        Sink(events.folder).run(deadline=3)
        assert_exactly_once(events.folder, 20)
        assert tracking.status(events.folder).complete


@pytest.mark.usefixtures("nothing_started")
def test_a_sink_that_finds_nothing_left_to_send_asks_all_the_same(
    output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One before it was killed between sending the last number and asking for all of them."""
    from mlflow.tracking import MlflowClient

    events = begin(output)
    log(events, range(20))
    events.status("finished")
    events.close()
    with monkeypatch.context() as lying:
        lying.setattr(MlflowClient, "log_batch", lambda *args, **rest: None)
        Sink(events.folder).send()
    Sink(events.folder).run(deadline=3)
    assert_exactly_once(events.folder, 20)
    assert tracking.status(events.folder).complete


@pytest.mark.slow
def test_server_killed_midway_and_started_again(tmp_path: Path, empty_database: Path) -> None:
    shutil.copy(empty_database, tmp_path / "server.db")
    port = free_port()
    server = start_server(tmp_path, port)
    try:
        events = begin(tmp_path, uri=f"http://127.0.0.1:{port}")
        log(events, range(500))
        events.flush()
        while tracking.status(events.folder).sent < 100:
            time.sleep(0.1)
        log(events, range(500, 1000))
        events.flush()
        stop_server(server)
        log(events, range(1000, 1500))
        events.status("finished")
        events.close()
        assert not tracking.finish(events.folder, timeout=5).complete
        server = start_server(tmp_path, port)
        assert tracking.finish(events.folder, timeout=120).complete
        assert_exactly_once(events.folder, 1500)
        assert json.loads((events.folder / tracking.STATE).read_text())["error"] == ""
    finally:
        stop_server(server)


@pytest.mark.parametrize(("limit", "left"), [(100, []), (0, ["checkpoint", "report.html"]), (None, [])])
def test_what_is_large_stays_in_the_runs_folder(output: Path, limit: int | None, left: list[str]) -> None:
    events = begin(output, enabled=False)
    report, checkpoint = events.folder / "report.html", events.folder / "checkpoint"
    (checkpoint / "deep").mkdir(parents=True)
    report.write_text("x" * 1000)
    (checkpoint / "deep" / "tensors").write_bytes(b"x" * 2_000_000)
    said = offer_artifacts(events, [checkpoint, report], {"artifact_megabytes": limit, "enabled": True})
    assert offer_artifacts(events, [], {"artifact_megabytes": limit, "enabled": True}) == []
    events.close()
    kept = [event.data["path"] for event in journal.read(events.folder) if event.kind == "artifact"]
    assert sorted(set(kept) | set(left)) == ["checkpoint", "report.html"]
    assert not set(kept) & set(left)
    assert said == (
        [
            "not sent to the tracker, being larger than tracking.artifact_megabytes (0): checkpoint (2 MB), report.html (0 MB)"
        ]
        if left
        else []
    )
