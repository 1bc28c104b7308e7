"""A run that is resumed looks up no class that a pickle names, and reads only JSON, YAML and safetensors of its folder."""

from __future__ import annotations

import base64
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import budwood as library
from budwood.api import BudwoodError, ConfigError
from budwood.runs import export

READABLE = {"config.yaml", "versions.json", "status.json", "events.jsonl", "tracking.json", "lock", "tracking.lock"}
"""Beside the three files of a checkpoint; locks are opened and hold nothing."""
CHECKPOINT = {"manifest.json", "state.json", "tensors.safetensors"}

GAUSSIAN = """
from points import Gaussian
from budwood.api import hookimpl


class Plugin:
    @hookimpl
    def build_policy(self, run):
        return Gaussian
"""


@pytest.fixture
def config(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[str], tuple[dict[str, Any], str]]:
    """A small run of an adapter that is saved half-way, and what makes it longer."""

    def sb3(algo: str, **args: Any) -> tuple[dict[str, Any], str]:
        trainer = {"kind": "sb3", "algo": algo, "total_timesteps": 64, "args": args}
        shaping = {"terms": ["forward", "effort", "upright"], "weights": {"scale": None}, "outer": None}
        return {
            "trainer": trainer,
            "env": {"id": "HalfCheetah-v5", "n_envs": 2, "normalize": {"obs": True, "reward": False}},
            "plugins": {"reward_shaping": shaping} if algo == "ppo" else {},
        }, "trainer.total_timesteps=128"

    def trl(algo: str) -> tuple[dict[str, Any], str]:
        from tiny import ARGS

        rows = str(request.getfixturevalue("rows_file")(algo))
        model = str(request.getfixturevalue("model_folder"))
        trainer = {"kind": "trl", "algo": algo, "model": model, "total_steps": 2, "args": dict(ARGS[algo])}
        return {"trainer": trainer, "dataset": {"train": rows}}, "trainer.total_steps=4"

    def offline() -> tuple[dict[str, Any], str]:
        root = str(request.getfixturevalue("dataset"))
        trainer = {"kind": "lerobot", "algo": "offline", "policy": {"type": "nod", "discover_packages_path": "nodding"}}
        args = {"batch_size": 5, "num_workers": 0}
        return {
            "trainer": {**trainer, "total_steps": 2, "args": args},
            "dataset": {"repo_id": "local/middle", "root": root},
        }, "trainer.total_steps=4"

    def online() -> tuple[dict[str, Any], str]:
        request.getfixturevalue("offer")("gaussian", GAUSSIAN)
        trainer = {"kind": "lerobot", "algo": "online", "total_steps": 16, "rollout": 8}
        return {
            "trainer": trainer,
            "env": {"type": "pusht", "obs_type": "environment_state_agent_pos", "n_envs": 2},
            "plugins": {"gaussian": {}},
        }, "trainer.total_steps=32"

    makers = {
        "sb3 on-policy": lambda: sb3("ppo", n_steps=16, batch_size=32, policy_kwargs={"net_arch": [8]}),
        "sb3 off-policy": lambda: sb3("sac", learning_starts=16, batch_size=16, policy_kwargs={"net_arch": [8]}),
        "trl preferences": lambda: trl("dpo"),
        "lerobot offline": offline,
        "lerobot online": online,
    }

    def make(name: str) -> tuple[dict[str, Any], str]:
        made, longer = makers[name]()
        return {
            **made,
            "name": "small",
            "device": "cpu",
            "evaluation": {"every": None, "episodes": 0},
            "tracking": {"enabled": False},
            "output": str(tmp_path / "runs"),
        }, longer

    return make


@pytest.mark.parametrize(
    "adapter", ["sb3 on-policy", "sb3 off-policy", "trl preferences", "lerobot offline", "lerobot online"]
)
def test_resume_unpickles_nothing(adapter: str, config: Any, listening: Any) -> None:
    made, longer = config(adapter)
    first = library.run(made)
    folder = Path(first.paths["folder"])
    with listening() as heard:
        again = library.resume(str(folder), [longer])
    assert again.status == "finished"
    assert "continuing from" in " ".join(again.notes)
    assert heard.classes == []

    with listening() as used, library.restored(str(folder)):
        pass
    assert used.classes == []
    for one in (heard, used):
        read = {path.relative_to(folder) for path in one.files if path.is_relative_to(folder)}
        saved = {path for path in read if path.parts[0] == "checkpoints" and path.is_relative_to("checkpoints")}
        assert {path.name for path in saved if path.suffix} <= CHECKPOINT
        made_here = {path.relative_to(folder) for path in one.writes if path.is_relative_to(folder)}
        assert {path.name for path in read - saved - made_here} <= READABLE


class Payload:
    """Runs code when it is unpickled."""

    def __reduce__(self) -> Any:
        return Path.touch, (Path("escaped"),)


def test_what_listens_hears_every_way_to_unpickle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, listening: Any
) -> None:
    import torch

    monkeypatch.chdir(tmp_path)
    torch.save({"x": Payload()}, "x.pt")
    np.save("x.npy", np.array([Payload()], dtype=object), allow_pickle=True)
    plain = pickle.dumps(Payload())
    for way in (
        lambda: pickle.loads(plain),
        lambda: pickle._loads(plain),  # type: ignore[attr-defined]
        lambda: torch.load("x.pt", weights_only=False),
        lambda: np.load("x.npy", allow_pickle=True),
    ):
        with listening() as heard:
            way()
        assert heard.classes, way
        assert Path("escaped").exists()
        Path("escaped").unlink()


@pytest.mark.parametrize(
    "name", ["export/model.zip", "export/vecnormalize.pkl", "checkpoints/step_000000000064/state.pkl"]
)
def test_a_pickle_that_lies_in_a_runs_folder_is_never_opened(name: str, config: Any, listening: Any) -> None:
    """Neither by a resume, nor by an export, which overwrites the two that it writes."""
    made, longer = config("sb3 on-policy")
    folder = Path(library.run(made).paths["folder"])
    poisoned = folder / name
    poisoned.write_bytes(pickle.dumps(Payload()))
    with listening() as heard:
        library.resume(str(folder), [longer])
        export(str(folder))
    assert poisoned not in heard.files
    assert heard.classes == []


@pytest.mark.parametrize("kind", ["zip", "pickle"])
def test_a_foreign_file_is_not_a_run(kind: str, config: Any, tmp_path: Path) -> None:
    """What Stable-Baselines3 or torch saved elsewhere holds pickles; nothing takes it for a run, and the message says why."""
    made, _ = config("sb3 on-policy")
    foreign = tmp_path / f"model.{kind}"
    foreign.write_bytes(b"PK\x03\x04" if kind == "zip" else pickle.dumps(Payload()))
    with pytest.raises(ConfigError) as refused:
        library.run({**made, "init_from": str(foreign)})
    assert "pickle" in str(refused.value)
    assert not Path("escaped").exists()


@pytest.mark.parametrize("trusted", [False, True])
def test_a_model_of_elsewhere_is_read_only_by_who_says_trust(
    trusted: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, budwood: Callable[..., Any], listening: Any
) -> None:
    """The one way in: demonstrations of a ``model.zip``. Without the flag no byte is read, and the message says why."""
    from stable_baselines3 import PPO

    monkeypatch.chdir(tmp_path)
    PPO("MlpPolicy", "Pendulum-v1", n_steps=32, batch_size=32, device="cpu").save("model.zip")
    with zipfile.ZipFile("model.zip") as held:
        parts = {name: held.read(name) for name in held.namelist()}
    data = json.loads(parts["data"])
    data["lr_schedule"][":serialized:"] = base64.b64encode(pickle.dumps(Payload())).decode()
    with zipfile.ZipFile("model.zip", "w") as held:
        for name, content in {**parts, "data": json.dumps(data)}.items():
            held.writestr(name, content)
    words = (
        "flow-rl",
        "record",
        "model.zip",
        "--algo",
        "ppo",
        "--env",
        "Pendulum-v1",
        "--transitions",
        "8",
        "--out",
        "x",
    )
    with listening() as heard:
        said = budwood(*words, *(["--trust"] if trusted else []))
    assert Path("escaped").exists() == trusted, "the payload is real"
    if not trusted:
        assert said.code == 2
        assert "it contains pickles, and loading a pickle runs whatever code its author put there" in said.error
        assert heard.classes == []
        assert not [path for path in heard.files if path.name == "model.zip"]


def test_pickled_weights_of_a_model_run_nothing(config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of transformers with ``pytorch_model.bin`` instead of safetensors is read without unpickling objects."""
    import shutil

    import torch

    made, _ = config("trl preferences")
    folder = tmp_path / "model"
    shutil.copytree(made["trainer"]["model"], folder)
    (folder / "model.safetensors").unlink()
    torch.save({"model.embed_tokens.weight": Payload()}, folder / "pytorch_model.bin")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BudwoodError) as refused:
        library.run({**made, "trainer": {**made["trainer"], "model": str(folder)}})
    assert "Traceback" not in str(refused.value)
    assert not Path("escaped").exists()
