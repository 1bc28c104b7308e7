"""What a machine does to a run: a full disk, damaged files, Ctrl-C, a second process, a tracker that is away.

However a run ends, its last checkpoint loads, and ``budwood resume`` comes to the numbers of the run that nothing happened
to. ``small`` checkpoints every 128 of its 512 steps.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from budwood import journal, tracking
from budwood.checkpoint import Checkpoints
from budwood.cli import main
from budwood.folder import RunFolder, list_runs

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")

DISK_FULL, INTERRUPTED = 6, 130
Budwood = Callable[..., Any]


def train(config: Path, output: Path, *settings: str) -> RunFolder:
    import budwood

    budwood.run(config, [f"output={output}", *settings])
    return list_runs(output)[-1]


@pytest.fixture(scope="module")
def trained() -> dict[str, RunFolder]:
    return {}


@pytest.fixture
def untouched(
    trained: dict[str, RunFolder], small: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], RunFolder]:
    """The run that nothing happened to, by its settings; trained once."""

    def find(settings: str) -> RunFolder:
        if settings not in trained:
            trained[settings] = train(small, tmp_path_factory.mktemp("untouched"), *settings.split())
        return trained[settings]

    return find


@pytest.fixture
def assert_as_if_nothing_had_happened(untouched: Callable[[str], RunFolder]) -> Callable[..., None]:
    def check(run: RunFolder, settings: str = "") -> None:
        one = untouched(settings)
        assert arrays(one) == arrays(run)
        assert repr(metrics(one)) == repr(metrics(run))
        assert one.status["status"] == run.status["status"] == "finished"

    return check


def newest(run: RunFolder) -> Path:
    found = Checkpoints(run.checkpoints, 3).latest()
    assert found is not None
    return found[0]


def arrays(run: RunFolder) -> dict[str, tuple[Any, ...]]:
    """Parameters, optimiser, generators, environments: every array of the newest checkpoint, but wall-clock times."""
    with safe_open(newest(run) / "tensors.safetensors", "np") as file:
        found = {name: file.get_tensor(name) for name in file.keys() if not name.endswith(".episode_times")}  # noqa: SIM118
    return {name: (array.dtype, array.shape, array.tobytes()) for name, array in found.items()}


def metrics(run: RunFolder) -> list[tuple[int, dict[str, float]]]:
    return [
        (event.step, {key: value for key, value in event.data.items() if not key.startswith("time/")})
        for event in journal.read(run.folder)
        if event.kind == "metrics"
    ]


# ---- a full disk -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("place", "message"),
    [
        (
            "checkpoints/.tmp-step_000000000384/tensors.safetensors",
            r"{folder}/checkpoints: no space left for the checkpoint of step 384 \([\d.]+ MB\). "
            "Free some space, then resume the run: step_000000000256 is complete.",
        ),
        ("events.jsonl", r"{folder}/events.jsonl: no space left for the journal. Free some space and resume the run."),
    ],
)
def test_a_full_disk_as_the_system_would_tell_it(
    place: str,
    message: str,
    budwood: Budwood,
    small: Path,
    output: Path,
    monkeypatch: pytest.MonkeyPatch,
    assert_as_if_nothing_had_happened: Callable[..., None],
) -> None:
    real = os.write

    def write(descriptor: int, data: Any) -> int:
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        if path.endswith(place) and list(output.glob("*/checkpoints/step_000000000256")):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(descriptor, data)

    monkeypatch.setattr(os, "write", write)
    said = budwood("run", small)
    monkeypatch.undo()
    (run,) = list_runs(output)
    assert re.fullmatch(message.replace("{folder}", re.escape(str(run.folder))), said.error)
    assert said.code == DISK_FULL
    assert newest(run).name == "step_000000000256"
    assert not list(run.checkpoints.glob(".tmp*"))
    assert budwood("resume", run.folder).code == 0
    assert_as_if_nothing_had_happened(run)


@pytest.fixture
def two_megabytes(tmp_path: Path) -> Iterator[Path]:
    """A disk of its own."""
    disk = tmp_path / "disk"
    disk.mkdir()
    options = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)]
    if subprocess.run(options, capture_output=True, check=False).returncode:
        pytest.skip("a file system cannot be mounted here; the portable test makes the error up")
    yield disk
    subprocess.run(["umount", "--lazy", disk], check=True)


def fill(disk: Path) -> Path:
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file, suppress(OSError):
        for size in (4096, 1):
            with suppress(OSError):
                while True:
                    file.write(b"\0" * size)
    return filler


def test_a_disk_that_is_really_full(
    budwood: Budwood,
    small: Path,
    two_megabytes: Path,
    monkeypatch: pytest.MonkeyPatch,
    assert_as_if_nothing_had_happened: Callable[..., None],
) -> None:
    output, save = two_megabytes / "runs", Checkpoints.save

    def save_then_fill(self: Checkpoints, steps: int, *arguments: Any) -> Path:
        path = save(self, steps, *arguments)
        if steps == 256:
            fill(two_megabytes)
        return path

    monkeypatch.setattr(Checkpoints, "save", save_then_fill)
    said = budwood("run", small, f"output={output}")
    monkeypatch.setattr(Checkpoints, "save", save)
    (run,) = list_runs(output)
    assert said.code == DISK_FULL
    assert re.match(rf"{run.folder}\S*: no space left ", said.error)
    assert "Free some space" in said.error
    assert newest(run).name == "step_000000000256"

    said = budwood("resume", run.folder)
    assert said.code == DISK_FULL
    assert said.error == (
        f"{run.config_file}: no space left on the disk. "
        "Free some space, then continue with: budwood resume RUN. The last checkpoint is intact."
    )
    assert newest(run).name == "step_000000000256"

    (two_megabytes / "filler").unlink()
    assert budwood("resume", run.folder).code == 0
    assert_as_if_nothing_had_happened(run)


# ---- damaged checkpoints ---------------------------------------------------------------------------------------------


def truncate(path: Path) -> str:
    size = path.stat().st_size
    os.truncate(path, size - 100)
    return f"{path.name} has {size - 100} bytes instead of {size}"


def alter(path: Path) -> str:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    return f"{path.name} was altered"


def remove(path: Path) -> str:
    path.unlink()
    return f"{path.name} is missing"


@pytest.mark.parametrize(
    ("damage", "file"),
    [
        (truncate, "tensors.safetensors"),
        (alter, "tensors.safetensors"),
        (alter, "state.json"),
        (remove, "manifest.json"),
    ],
)
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(
    damage: Callable[[Path], str],
    file: str,
    budwood: Budwood,
    output: Path,
    untouched: Callable[[str], RunFolder],
    assert_as_if_nothing_had_happened: Callable[..., None],
) -> None:
    run = RunFolder(Path(shutil.copytree(untouched("").folder, output / "copy")))
    path = newest(run)
    left_out = f"damaged checkpoint left out: {path.name}: {damage(path / file)}"
    said = budwood("eval", run.folder, "--episodes", "1", "--json")
    assert left_out in said.err.splitlines()
    assert said.json["checkpoint"] == str(run.checkpoints / "step_000000000384")
    said = budwood("resume", run.folder, "--json")
    assert said.code == 0
    assert said.json["notes"][:2] == [left_out, "continuing from step_000000000384"]
    assert left_out in said.err.splitlines()
    assert_as_if_nothing_had_happened(run)
    assert not path.exists() or path == newest(run), "the damaged one is gone or replaced"


# ---- signals and other processes -----------------------------------------------------------------------------------------


def in_child(work: Callable[[], int]) -> int:
    """Start ``work`` in a fork of this process; its process id. Output goes where this process's does."""
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        code = 99
        try:
            code = work()
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(code)
    return child


def exit_code(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def signalled(words: list[str], at: dict[int, int]) -> int:
    """The command line ``words`` in a child that sends itself a signal at some environment steps; its exit code."""

    def work() -> int:
        from stable_baselines3.common.vec_env import DummyVecEnv

        real, calls = DummyVecEnv.step_wait, [0]

        def step_wait(self: Any) -> Any:
            calls[0] += 1
            if calls[0] in at:
                os.kill(os.getpid(), at[calls[0]])
            return real(self)

        DummyVecEnv.step_wait = step_wait  # type: ignore[method-assign]
        return main(words)

    return exit_code(in_child(work))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_checkpoints_and_says_how_to_go_on(
    number: int,
    budwood: Budwood,
    small: Path,
    output: Path,
    capfd: pytest.CaptureFixture[str],
    assert_as_if_nothing_had_happened: Callable[..., None],
) -> None:
    assert signalled(["run", str(small), "evaluation.every=512"], {70: number}) == INTERRUPTED
    said = capfd.readouterr()
    (run,) = list_runs(output)
    assert "stopping after this update with a checkpoint; once more to stop at once" in said.err.splitlines()
    assert f"interrupted by {signal.Signals(number).name}" in said.err.splitlines()
    assert f"Continue with: budwood resume {run.folder}" in said.out.splitlines()
    assert run.status["status"] == "interrupted"
    assert newest(run).name == "step_000000000192", "the end of the update in which the signal came"
    assert budwood("resume", run.folder).code == 0
    assert_as_if_nothing_had_happened(run, "evaluation.every=512")


def test_a_second_ctrl_c_stops_at_once(
    budwood: Budwood,
    small: Path,
    output: Path,
    capfd: pytest.CaptureFixture[str],
    assert_as_if_nothing_had_happened: Callable[..., None],
) -> None:
    assert signalled(["run", str(small)], {70: signal.SIGINT, 72: signal.SIGINT}) == INTERRUPTED
    said = capfd.readouterr()
    (run,) = list_runs(output)
    assert f"stopped at once; continue with: budwood resume {run.folder}" in said.err.splitlines()
    assert "Traceback" not in said.err
    assert run.status["status"] == "interrupted"
    assert newest(run).name == "step_000000000128"
    assert budwood("resume", run.folder).code == 0
    assert_as_if_nothing_had_happened(run)


def wait_for(condition: Callable[[], Any], seconds: float = 30.0) -> Any:
    give_up = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < give_up, "it did not happen"
        time.sleep(0.05)
    return found


def test_a_second_process_is_refused(budwood: Budwood, small: Path, output: Path) -> None:
    words = ["run", str(small), "trainer.total_timesteps=100_000_000", "evaluation.episodes=0"]
    child = in_child(lambda: main(words))
    try:
        (folder,) = wait_for(lambda: [path.parents[1] for path in output.glob("*/checkpoints/step_*")][:1])
        config = (folder / "config.yaml").read_bytes()
        said = budwood("resume", folder, "trainer.total_timesteps=200_000_000")
        assert (
            said.error
            == f"{folder}: another process (pid {child}) is training this run. Wait for it, or stop it first."
        )
        assert said.code == 1
        assert (folder / "config.yaml").read_bytes() == config
        assert budwood("runs", "--json").json[0]["status"] == "running"
    finally:
        os.kill(child, signal.SIGKILL)
        exit_code(child)
    assert budwood("runs", "--json").json[0]["status"] == "killed"


# ---- going on --------------------------------------------------------------------------------------------------------


def test_a_finished_run_goes_on_with_more_steps(
    budwood: Budwood, small: Path, output: Path, assert_as_if_nothing_had_happened: Callable[..., None]
) -> None:
    assert budwood("run", small).code == 0
    (run,) = list_runs(output)
    said = budwood("resume", "last")
    assert said.error == (
        f"{run.run_id}: this run is finished, at 512 steps. "
        f"To train on: budwood resume {run.run_id} trainer.total_timesteps=1024."
    )
    assert said.code == 2
    said = budwood("resume", "last", "trainer.total_timesteps=768", "--json")
    assert said.code == 0
    assert said.json["status"] == "finished"
    assert run.status["steps"] == 768
    assert_as_if_nothing_had_happened(run, "trainer.total_timesteps=768")


def test_a_run_starts_from_the_policy_of_another(budwood: Budwood, small: Path, output: Path) -> None:
    from stable_baselines3 import PPO

    assert budwood("run", small, "trainer.total_timesteps=256").code == 0
    (source,) = list_runs(output)
    still = ("seed=7", "trainer.args.learning_rate=0.0", "trainer.total_timesteps=64")
    said = budwood("run", small, "init_from=last", *still, "--json")
    assert said.json["notes"] == [f"policy taken from {source.run_id}, {newest(source).name}"]
    started, other = (
        PPO.load(run.folder / "export" / "model.zip", device="cpu").policy.state_dict() for run in list_runs(output)
    )
    assert started.keys() == other.keys()
    assert all((started[name] == other[name]).all() for name in started)
    assert f"init_from: {source.folder}" in (Path(said.json["paths"]["config"])).read_text(), (
        "`last` is another run now"
    )


UNSAVABLE = """
import gymnasium as gym
import numpy as np

class Drift(gym.Env):
    observation_space = gym.spaces.Box(-np.inf, np.inf, (1,), np.float32)
    action_space = gym.spaces.Box(-1.0, 1.0, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place = self.np_random.normal(size=1).astype(np.float32)
        self.steps = 0
        return self.place, {}

    def step(self, action):
        self.place = self.place + action.astype(np.float32)
        self.steps += 1
        return self.place, -abs(float(self.place[0])), False, self.steps == 30, {}
"""


def test_an_environment_that_cannot_be_saved_is_named(
    budwood: Budwood, small: Path, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (output.parent / "drift_env.py").write_text(UNSAVABLE)
    monkeypatch.syspath_prepend(str(output.parent))
    assert budwood("run", small, "env.id=drift_env:Drift", "trainer.total_timesteps=128").code == 0
    said = budwood("resume", "last", "trainer.total_timesteps=256", "--json")
    assert said.code == 0
    assert said.json["notes"] == [
        "continuing from step_000000000128.1",
        "The environments cannot save their state (drift_env.Drift gives no state_dict): their episodes restart.",
    ]
    assert all(note in said.err.splitlines() for note in said.json["notes"])
    assert list_runs(output)[0].status["steps"] == 256


# ---- a tracker that is away --------------------------------------------------------------------------------------------


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def sinks() -> Iterator[dict[Path, subprocess.Popen[bytes]]]:
    """The tracking processes of this test by run folder; none outlives it."""
    yield tracking._sinks
    for sink in tracking._sinks.values():
        sink.kill()
        sink.wait()
    tracking._sinks.clear()


@pytest.fixture
def nowhere(monkeypatch: pytest.MonkeyPatch) -> str:
    """A port at which nobody listens, as ``MLFLOW_TRACKING_URI``."""
    uri = f"http://127.0.0.1:{free_port()}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    for variable in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(variable, "127.0.0.1")
    return uri


@pytest.mark.usefixtures("sinks")
def test_a_tracker_that_is_away_delays_no_run(
    budwood: Budwood, small: Path, output: Path, nowhere: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert tracking.PATIENCE_SECONDS <= 10, "how long a command waits at its end for a tracker that refuses"
    monkeypatch.setattr(tracking, "PATIENCE_SECONDS", 0.5)
    said = budwood("run", small, "tracking.enabled=true", "trainer.total_timesteps=128", "--json")
    ended = time.time()
    (run,) = list_runs(output)
    assert said.code == 0
    assert said.json["status"] == "finished"
    assert re.fullmatch(
        rf"(\d+) of \1 events wait for MLflow at {nowhere}( \(.+\))?; "
        "sending goes on in the background, and budwood runs --sync takes it up again",
        said.json["notes"][-1],
    )
    assert ended - run.status["ended"] < 70, "bounded, however slow the machine"
    assert tracking.pending(output).folders == [run.folder]
    said = budwood("runs", "--sync")
    assert said.code == 0
    assert re.search(rf"^{run.run_id}: (\d+) of \1 events wait for MLflow at {nowhere}", said.out, re.MULTILINE)


def test_what_was_not_sent_is_sent_later(
    budwood: Budwood,
    small: Path,
    output: Path,
    sinks: dict[Path, subprocess.Popen[bytes]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Every tracking process of the run dies at its start; a later command sends all of it."""
    from mlflow.tracking import MlflowClient

    with monkeypatch.context() as deadly:
        deadly.setattr(tracking.sys, "executable", "/bin/false")
        said = budwood("run", small, "tracking.enabled=true", "trainer.total_timesteps=128", "--json")
    assert said.code == 0
    uri = f"sqlite:///{output}/mlflow.db"
    assert f"events wait for MLflow at {uri}; " in said.json["notes"][-1]
    assert said.json["mlflow_run_id"] is None
    (run,) = list_runs(output)
    sinks.clear()

    for _ in range(3):  # a busy machine may need longer than one command waits
        said = budwood("runs", "--sync")
        assert said.code == 0
        if not tracking.pending(output).folders:
            break
    assert re.search(rf"^{run.run_id}: \d+ events in MLflow at {uri}$", said.out, re.MULTILINE)
    found = MlflowClient(uri).get_run(tracking.State.load(run.folder).mlflow_run_id)
    assert found.info.status == "FINISHED"
    assert found.data.params["trainer.total_timesteps"] == "128"
    assert found.data.metrics["eval/return_mean"] == run.status["latest"]["eval/return_mean"]
    assert found.data.tags["plugin.sb3"] == "budwood-sb3 0.1.0"
    assert tracking.pending(output).folders == []
