"""A real MLflow server behind a front of ours that is slow, fails, or lies; and whether every number is there in the end."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from kinds import kill
from strikes import Counts, Draw, Fault, Strike
from worlds import is_clock

from budwood import journal, tracking
from budwood.folder import RunFolder

ALWAYS = 10**9
METRICS = "/api/2.0/mlflow/runs/log-batch"


@dataclass(frozen=True)
class Behaviour:
    """From request ``first`` on, ``count`` of them, the front is ``how``: "slow" by ``seconds``; "failing", an error 500;
    "silent", which closes the connection; "deaf", which passes on and loses the answer; "lying", which answers that it took
    a batch of numbers that it throws away, and counts those alone."""

    how: str
    first: int = 1
    count: int = 0
    seconds: float = 0.0


class Front(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, behind: int, behaviour: Behaviour, strike: Strike) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.behind, self.behaviour, self.strike = behind, behaviour, strike
        self.numbers, self.honest = count(1), False

    def strikes(self, path: str, body: bytes) -> bool:
        """Whether this request meets the fault."""
        if self.behaviour.how == "lying" and not (path == METRICS and json.loads(body).get("metrics")):
            return False
        ill = self.behaviour.first <= next(self.numbers) < self.behaviour.first + self.behaviour.count
        if ill and not self.honest:
            self.strike.now()
        return ill and not self.honest

    def handle_error(self, _request: Any, _address: Any) -> None:
        """A client that went away, having been killed or having waited long enough, is no news."""


class Handler(BaseHTTPRequestHandler):
    server: Front
    protocol_version = "HTTP/1.1"

    def pass_on(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        how = self.server.behaviour.how if self.server.strikes(self.path, body) else ""
        match how:
            case "slow":
                time.sleep(self.server.behaviour.seconds)
            case "failing":
                return self.answer(500, b"the database is away")
            case "lying":
                return self.answer(200, b"{}")
            case "silent":
                self.close_connection = True
                return None
        connection = HTTPConnection("127.0.0.1", self.server.behind, timeout=120)
        connection.request(self.command, self.path, body, dict(self.headers.items()))
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        if how == "deaf":
            self.close_connection = True
            return None
        return self.answer(answer.status, content, answer.getheader("Content-Type", "application/json"))

    def answer(self, status: int, content: bytes, kind: str = "application/json") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = pass_on  # noqa: N815

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def front(behind: int, behaviour: Behaviour, strike: Strike) -> Iterator[tuple[int, int]]:
    """(pid, port) of a front in a process of its own; SIGUSR1 makes it honest."""
    server = Front(behind, behaviour, strike)
    pid = os.fork()
    if pid == 0:

        def repent(_number: int, _frame: Any) -> None:
            server.honest = True

        signal.signal(signal.SIGUSR1, repent)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        server.serve_forever()
    server.server_close()
    try:
        yield pid, server.server_address[1]
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


@contextmanager
def mlflow_server(folder: Path) -> Iterator[int]:
    """The port of a real one, with its database in ``folder``."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    store = ["--backend-store-uri", f"sqlite:///{folder}/server.db", "--artifacts-destination", str(folder / "files")]
    log, environment = folder / "server.log", {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with log.open("wb") as file:
        server = subprocess.Popen([*command, *store], env=environment, stdout=file, stderr=file, process_group=0)
    try:
        give_up = time.monotonic() + 1800
        while True:
            with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2):
                break
            if server.poll() is not None or time.monotonic() > give_up:
                raise RuntimeError(f"MLflow did not start:\n{log.read_text()}")
            time.sleep(0.2)
        yield port
    finally:
        with suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
        server.wait(10)


def absent(run: RunFolder, port: int) -> str:
    """What the server lacks of the journal's numbers, or has twice; '' if it has each once. Numbers that measure time differ
    between a run and its resume: they must be there, and may be there twice."""
    run_id = tracking.State.load(run.folder).mlflow_run_id
    if run_id is None:
        return "MLflow has no such run"
    logged: dict[str, Counter[tuple[int, str]]] = {}
    for event in journal.read(run.folder):
        if event.kind == "metrics":
            for key, value in event.data.items():
                logged.setdefault(key, Counter())[event.step, repr(float(value))] += 1
    for key, wanted in logged.items():
        asked = urlencode({"run_id": run_id, "metric_key": key, "max_results": 25_000})
        address = f"http://127.0.0.1:{port}/api/2.0/mlflow/metrics/get-history?{asked}"
        with urllib.request.urlopen(address, timeout=60) as answer:
            points = json.load(answer).get("metrics", [])
        there = Counter((int(point.get("step", 0)), repr(float(point["value"]))) for point in points)
        if lost := wanted - there:
            return f"{lost.total()} numbers of {key} are not in MLflow"
        if not is_clock(key) and (more := there - wanted):
            return f"{more.total()} numbers of {key} are twice in MLflow"
    return ""


def _front(kind: str, behaviour: Behaviour, about: str, says: str = Fault.says) -> Fault:
    return Fault(kind, about, lambda *_: None, goes_on=True, says=says, tracker=behaviour)


def slow(draw: random.Random, _counts: Counts) -> Fault:
    """Every answer takes up to two seconds."""
    seconds = draw.uniform(0.2, 2.0)
    return _front("MLflow slow", Behaviour("slow", 1, ALWAYS, seconds), f"{seconds:.1f} s an answer")


def failing(draw: random.Random, _counts: Counts) -> Fault:
    """Errors, closed connections or lost answers, some of them or all to the end of the run and beyond."""
    how = draw.choice(["failing", "silent", "deaf"])
    first, number = draw.randint(1, 8), draw.choice([1, 2, 3, ALWAYS])
    says = r"(?s).*events wait for MLflow at.*" if number == ALWAYS else Fault.says
    times = "all" if number == ALWAYS else f"{number} requests"
    return _front("MLflow failing", Behaviour(how, first, number), f"{how}, {times} from request {first}", says)


def lying(draw: random.Random, _counts: Counts) -> Fault:
    """Numbers are taken and thrown away, once, a few times, or to the end of the run."""
    number = draw.choice([1, 2, 3, ALWAYS])
    says = r"(?s).*numbers that MLflow had taken were not there.*" if number == ALWAYS else Fault.says
    about = "every batch of numbers" if number == ALWAYS else f"{number} batches of numbers"
    return _front("MLflow lying", Behaviour("lying", 1, number), about, says)


TRACKER: tuple[Draw, ...] = (slow, failing, lying, failing, lying, kill)
