"""``budwood flow-rl`` end to end: record, pretrain, stop, resume, evaluate, and what it says when it cannot."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stable_baselines3 import PPO

from budwood.cli import main
from budwood_flow_rl import commands, point, recording
from budwood_flow_rl.demonstrations import concatenated, load, save
from budwood_flow_rl.saved import load_flow

SMALL = ["--hidden", "16", "--horizon", "2", "--batch", "32", "--every", "20"]
Cli = Callable[..., tuple[int, dict[str, Any], str]]


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    """-> exit code, the line of --json, everything else that was said."""

    def call(*words: object) -> tuple[int, dict[str, Any], str]:
        code = main(["flow-rl", *map(str, words), "--json"])
        out, err = capsys.readouterr()
        return code, json.loads(out.splitlines()[-1]), err

    return call


@pytest.fixture
def demos(tmp_path: Path) -> Path:
    """Pendulum's shapes, with actions that say nothing."""
    rng = np.random.default_rng(0)
    parts = [(rng.normal(size=(30, 3)), rng.uniform(-2, 2, (30, 1)), rng.normal(size=30)) for _ in range(10)]
    path = tmp_path / "demos.safetensors"
    save(path, concatenated(parts, [False] * 10, [True] * 10, env_id="Pendulum-v1", about={"source": "a test"}))
    return path


def test_record_pretrain_evaluate(tmp_path: Path, cli: Cli) -> None:
    zipped = tmp_path / "model.zip"
    PPO("MlpPolicy", "Pendulum-v1", n_steps=8, batch_size=8, seed=0, device="cpu").save(zipped)
    out, flow = tmp_path / "demos.safetensors", tmp_path / "flow"
    code, told, said = cli(
        "record", zipped, "--trust", "--algo", "ppo", "--env", "Pendulum-v1", "--transitions", "1_600", "--out", out
    )
    assert code == 0, said
    assert (told["transitions"], told["episodes"], told["finished"]) == (1600, 8, 8)
    assert "1,600 transitions, 8 episodes (8 finished)" in said
    assert load(out).mean_return == told["mean_return"]

    code, told, said = cli("pretrain", out, "--out", flow, "--steps", 60, *SMALL, "--chunk", 1)
    assert code == 0, said
    assert (told["step"], told["finished"]) == (60, True)
    saved = load_flow(flow)
    assert (saved.field.horizon, saved.meta.chunk, saved.meta.env_id) == (2, 1, "Pendulum-v1")

    code, told, said = cli("evaluate", flow, "--episodes", 3, "--steps", 2)
    assert code == 0, said
    assert len(told["returns"]) == 3
    assert told["lengths"] == [200, 200, 200]
    assert told["mean"] == pytest.approx(np.mean(told["returns"]))
    assert told["demonstrations"] == load(out).mean_return
    assert "over 3 episodes without noise, K = 2" in said
    again = cli("evaluate", flow, "--episodes", 3, "--steps", 2)[1]
    assert again["returns"] == told["returns"]


def test_pretrain_never_overwrites_and_resumes_only_what_is_there(tmp_path: Path, cli: Cli, demos: Path) -> None:
    words = ["pretrain", demos, "--out", tmp_path / "flow", "--steps", 40, *SMALL]
    code, told, _ = cli(*words, "--resume")
    assert code == 5
    assert "there is no such file" in told["error"]["what"]
    assert cli(*words)[0] == 0
    code, told, said = cli(*words)
    assert code == 2
    assert "a pre-training is there already" in said
    code, told, said = cli(*words, "--resume")
    assert (code, told["step"]) == (0, 40)
    code, _, said = cli(*words, "--resume", "--lr", 1e-2)
    assert code == 5
    assert "lr changed" in said


def test_ctrl_c_keeps_the_average_and_resume_ends_where_an_undisturbed_run_does(
    tmp_path: Path, cli: Cli, demos: Path
) -> None:
    words = ["pretrain", str(demos), "--steps", "20000", *SMALL[:-1], "100", "--out"]
    command = [sys.executable, "-m", "budwood", "flow-rl", *words, str(tmp_path / "cut")]
    child = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    training = tmp_path / "cut" / "training.safetensors"
    while not training.exists() and child.poll() is None:
        time.sleep(0.05)
    child.send_signal(signal.SIGINT)
    said = child.communicate(timeout=60)[0]
    assert child.returncode == 0
    assert "the moving average is in" in said
    assert "stopped early; the same command with --resume goes on" in said
    assert load_flow(tmp_path / "cut").field.horizon == 2

    from budwood_flow_rl.pretraining import Pretraining, Settings

    settings = Settings(hidden=(16,), horizon=2, batch=32, every=100, steps=20000)
    resumed = Pretraining(tmp_path / "cut", load(demos), settings)
    resumed.resume()
    assert 100 <= resumed.step < 20000
    whole = Pretraining(tmp_path / "whole", load(demos), settings)
    target = resumed.step + 50
    resumed.run(stop=lambda: resumed.step >= target)
    whole.run(stop=lambda: whole.step >= target)
    for name in ("flow.safetensors", "training.safetensors"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["record", "--out", "x"], "Name either a policy"),
        (["record", "a", "--from", "minari:b", "--out", "x"], "Name either a policy"),
        (["record", "--from", "hdf5:b", "--out", "x"], "write minari:ID or lerobot:REPO"),
        (["record", "nothing.zip", "--trust", "--out", "x"], "there is no file nothing.zip"),
        (["record", "nothing-s0", "--out", "x"], "no run 'nothing-s0'"),
        (["record", "a", "--transitions", "many", "--out", "x"], "'many' is no integer"),
        (["record", "a", "--env-args", "[1]", "--out", "x"], "a JSON object is needed"),
        (["record", "a", "--trust", "--out", "x"], "The source is a run: --trust is for a model.zip"),
        (["record", "a", "--env", "Pendulum-v1", "--out", "x"], "--env is for a model.zip or minari or lerobot"),
        (["record", "a.zip", "--at", "3", "--root", "r", "--out", "x"], "--at is for a run; --root is for lerobot"),
        (["record", "--from", "minari:b", "--seed", "0", "--out", "x"], "--seed is for a run or a model.zip"),
        (["record", "--from", "minari:b", "--root", "r", "--out", "x"], "The source is minari: --root is for lerobot"),
        (["record", "--from", "lerobot:b", "--algo", "ppo", "--out", "x"], "--algo is for a model.zip"),
        (["record", "--from", "lerobot:", "--out", "x"], "write minari:ID or lerobot:REPO"),
        (["pretrain", "nothing", "--out", "x"], "there is no such file"),
        (["pretrain", "nothing", "--out", "x", "--hidden", "a"], "write widths as 256,256,256"),
        (["evaluate", "nothing"], "no run 'nothing' under"),
    ],
)
def test_what_cannot_be_is_said_in_one_paragraph(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Cli, words: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    code, told, heard = cli(*words)
    assert code != 0
    assert said in heard
    assert set(told) == {"error"}
    assert not (tmp_path / "x").exists()


def test_a_family_that_is_misspelt(tmp_path: Path, cli: Cli, demos: Path) -> None:
    code, _, said = cli("pretrain", demos, "--out", tmp_path / "flow", "--family", "rectifed")
    assert code == 2
    assert "pretrain --family: there is no family 'rectifed'; did you mean 'rectified'?" in said
    assert "chunk" not in said
    said = cli("pretrain", demos, "--out", tmp_path / "flow", "--family", "xyz")[2]
    assert "there is no family 'xyz'. Families are rectified, shortcut, diffusion, gaussian." in said


def test_a_flow_is_refused_in_an_environment_of_other_shapes(tmp_path: Path, cli: Cli, demos: Path) -> None:
    flow = tmp_path / "flow"
    assert cli("pretrain", demos, "--out", flow, "--steps", 2, *SMALL)[0] == 0
    code, _, said = cli("evaluate", flow, "--env", "MountainCarContinuous-v0")
    assert code == 5
    assert f"{flow} was made for 3 observations, and not for 2 observations" in said


def test_a_zip_without_trust_names_the_reason(tmp_path: Path, cli: Cli) -> None:
    (tmp_path / "model.zip").write_bytes(b"")
    words = ["record", tmp_path / "model.zip", "--algo", "ppo", "--env", "Pendulum-v1", "--out", tmp_path / "x"]
    code, _, said = cli(*words)
    assert code == 2
    assert "loading a pickle runs whatever code its author put there" in said
    typed = f"Type budwood flow-rl record {words[1]} --out {tmp_path / 'x'} --trust --algo ppo --env Pendulum-v1 ("
    assert typed in said


def test_a_zip_alone_is_told_all_that_it_lacks_with_the_command_to_type(tmp_path: Path, cli: Cli) -> None:
    zipped, out = tmp_path / "model.zip", tmp_path / "d e.safetensors"
    PPO("MlpPolicy", "Pendulum-v1", n_steps=8, batch_size=8, seed=0, device="cpu").save(zipped)
    code, _, said = cli(
        "record", zipped, "--out", out, "--transitions", 16, "--env-args", '{"g": 9.0}', "--deterministic"
    )
    assert code == 2
    for reason in (
        "contains pickles",
        "does not tell its algorithm",
        "does not tell its environment",
        "ALGO is one of",
    ):
        assert reason in said
    typed = re.search(r"Type budwood flow-rl (.*?) \(if you made it", said)
    assert typed is not None
    words = typed[1].replace("ALGO", "ppo").replace("ENV", "Pendulum-v1")
    code, _, said = cli(*shlex.split(words))
    assert code == 0, said
    recorded = load(out)
    assert (len(recorded), recorded.env_args, recorded.about["deterministic"]) == (16, {"g": 9.0}, True)
    said = cli("record", zipped, "--out", out, "--trust", "--algo", "pppo", "--env", "Pendulum-v1")[2]
    assert "there is no algorithm 'pppo'. Type" in said
    assert "pickle" not in said


def test_the_help_shows_every_summary_whole(cli: Cli, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    main(["flow-rl", "--help"])
    listed = capsys.readouterr().out.partition("Commands:\n")[2].splitlines()
    assert len(listed) == len(list(Path(commands.__path__[0]).glob("[a-z]*.py")))
    assert all(line.endswith(".") and not line.endswith("...") for line in listed), listed


def test_help_imports_neither_torch_nor_a_trainer() -> None:
    code = (
        "import sys; from budwood.cli import main\n"
        "for words in (['--help'], ['record', '--help'], ['pretrain', '--help'], ['evaluate', '--help']):\n"
        "    main(['flow-rl', *words])\n"
        "print(sorted({'torch', 'stable_baselines3', 'gymnasium', 'minari', 'lerobot'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert "POLICY is a run of budwood" in done.stdout


def test_point_tells_what_its_clone_earns_and_what_comes_next(tmp_path: Path, cli: Cli, monkeypatch) -> None:
    monkeypatch.setattr(point, "pretrain", partial(point.pretrain, steps=20))
    code, told, said = cli("point", "--out", tmp_path / "flow")
    assert code == 0
    assert 0 < told["clone"] < told["mean_return"] < 0.6
    assert f"their clone, in {tmp_path / 'flow'}, earns {told['clone']:.2f}" in said
    assert f"next: budwood run configs/flow_rl/point.yaml plugins.flow_rl.init={tmp_path / 'flow'}" in said


def test_a_recording_that_is_interrupted_says_that_it_starts_anew(tmp_path: Path, cli: Cli, monkeypatch) -> None:
    zipped, out = tmp_path / "model.zip", tmp_path / "demos.safetensors"
    PPO("MlpPolicy", "Pendulum-v1", n_steps=8, batch_size=8, seed=0, device="cpu").save(zipped)

    def interrupted(*_: Any, progress: Callable[[int], None], **__: Any) -> None:
        progress(8)
        raise KeyboardInterrupt

    monkeypatch.setattr(recording, "record", interrupted)
    code, _, said = cli("record", zipped, "--trust", "--algo", "ppo", "--env", "Pendulum-v1", "--out", out)
    assert code == 130
    assert f"nothing was written to {out}: the same command starts anew" in said
    assert not out.exists()
