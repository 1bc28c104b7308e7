"""What a launcher says of how its processes ended, and what one of several processes survives."""

from __future__ import annotations

import faulthandler
import io
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from budwood.api import ConfigError
from budwood.folder import going_on
from budwood.launching import _verdict
from budwood.processes import Joined, PeerError, joined


def verdict(first: int | None, *ended: tuple[int, str]) -> tuple[str, int]:
    return _verdict(first, [code for code, _ in ended], [io.BytesIO(said.encode()) for _, said in ended])


def test_processes_that_lost_each_other_without_a_word_are_told_with_their_codes() -> None:
    said, code = verdict(None, (7, ""), (7, ""))
    assert said == (
        "process 0 ended with exit code 7, process 1 ended with exit code 7. Continue with: budwood launch -n 2 resume RUN"
    )
    assert code == 7
    assert verdict(None, (7, ""), (7, "error: process 1 of 2 waited"))[0] == "error: process 1 of 2 waited"


def test_a_process_that_had_to_be_ended_is_told_as_shells_do() -> None:
    said, code = verdict(None, (0, ""), (0, ""), (-9, ""))
    assert "process 1 ended with exit code 0, process 2 was killed by SIGKILL" in said
    assert code == 128 + 9
    assert verdict(1, (7, ""), (-11, "")) == (
        "process 1 of 2 was killed by SIGSEGV first. Continue with: budwood launch -n 2 resume RUN",
        128 + 11,
    )
    assert "process 0 was killed by signal 40, process 1" in verdict(None, (-40, ""), (7, ""))[0], "it has no name"


def test_who_failed_first_is_heard_and_process_0_only_if_it_had_not_spoken() -> None:
    assert verdict(1, (7, ""), (4, "error: x")) == ("process 1 of 2 failed first, with exit code 4:\nerror: x", 4)
    assert verdict(0, (4, ""), (7, "")) == ("", 4)
    assert verdict(1, (4, ""), (4, "error: what process 0 has said")) == ("", 4)
    said, code = verdict(0, (99, ""), (7, ""))
    assert said == "process 0 of 2 failed first; process 0 ended with exit code 99, process 1 ended with exit code 7"
    assert code == 99
    assert "process 1 ended with exit code 3" in verdict(1, (7, ""), (3, ""))[0]


def test_who_stopped_as_asked_is_not_spoken_of() -> None:
    assert verdict(None, (130, ""), (130, "stopping")) == ("", 130)
    assert verdict(None, (0, ""), (0, "")) == ("", 0)


@pytest.mark.parametrize(
    ("world", "here", "said"),
    [
        (None, None, "budwood resume x steps=2"),
        ("1", None, "budwood resume x steps=2"),
        ("4", None, "budwood launch -n 4 resume x steps=2"),
        ("4", "4", "budwood launch -n 4 resume x steps=2"),
        ("4", "2", "accelerate launch ... -m budwood resume x steps=2, on every machine as before"),
    ],
)
def test_a_run_is_continued_as_it_was_started(
    world: str | None, here: str | None, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("WORLD_SIZE", world), ("LOCAL_WORLD_SIZE", here)):
        monkeypatch.delenv(name, raising=False) if value is None else monkeypatch.setenv(name, value)
    assert going_on("x", "steps=2") == said


@pytest.mark.parametrize(("command", "said"), [("run FILE", "run FILE"), ("resume last", "resume last")])
def test_who_forgot_the_launcher_is_told_the_command_they_meant(command: str, said: str) -> None:
    with pytest.raises(ConfigError, match=f"budwood launch -n 2 {said}, or say processes=1"), joined(2, command):
        pass


ASKED = """
import os, signal, sys
from pathlib import Path
from budwood.processes import Joined
os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=sys.argv[1])
one = Joined(0, 1, 0, 20.0)
folder = Path(sys.argv[2])
os.kill(os.getpid(), signal.SIGUSR1)
with one.watched(folder):
    os.kill(os.getpid(), signal.SIGUSR1)
os.kill(os.getpid(), signal.SIGUSR1)
print((folder / "stacks-0.txt").read_text().count("Current thread"))
one.leave(None)
"""


def test_asking_a_process_for_its_stacks_before_and_after_training_does_not_kill_it(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    done = subprocess.run(
        [sys.executable, "-c", ASKED, port, str(tmp_path)], capture_output=True, text=True, timeout=300, check=False
    )
    assert (done.returncode, done.stdout) == (0, "1\n"), done.stderr
    assert "Current thread" not in done.stderr


def watched(error: RuntimeError, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """What ``error`` becomes in a training of one of two processes."""
    one: Any = object.__new__(Joined)
    one.rank, one.count, one.deadline, one._dist = 1, 2, 5.0, torch.distributed
    one._nowhere, one._peers = (folder / "nowhere").open("w"), []
    monkeypatch.setattr(one, "_last_words", lambda: None, raising=False)
    try:
        with pytest.raises(RuntimeError) as raised, one.watched(folder):
            raise error
    except PeerError as lost:
        return lost
    finally:
        faulthandler.unregister(signal.SIGUSR1)
        one._nowhere.close()
    return raised.value


@pytest.mark.parametrize(
    "said", ["the simulator timed out", "connection closed by peer: the robot", "CUDA error: an illegal memory access"]
)
def test_an_error_of_a_plugin_is_not_told_as_another_process(
    said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = RuntimeError(said)
    assert watched(error, tmp_path, monkeypatch) is error


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("[x/third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:26804"),
        torch.distributed.DistNetworkError("Failed to recv, got 0 bytes."),
        torch.distributed.DistBackendError("collective operation failed"),
    ],
)
def test_errors_of_an_exchange_are(error: RuntimeError, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As gloo and torch's store said them when a process was killed."""
    lost = watched(error, tmp_path, monkeypatch)
    assert isinstance(lost, PeerError)
    assert "another of the 2 processes ended without a word" in str(lost)
