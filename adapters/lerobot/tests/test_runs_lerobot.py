"""Whole runs through budwood: from a configuration to a folder, resumed, evaluated, exported, and the start of another."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from robots import NOD
from safetensors.torch import load_file

from budwood import runs, tracking
from budwood.api import ConfigError

NODDING = {"type": "nodding", "discover_packages_path": "nodding"}


@pytest.fixture
def config(dataset: Path, tmp_path: Path) -> dict[str, Any]:
    return {
        "name": "nod",
        "trainer": {
            "kind": "lerobot", "algo": "offline", "policy": NOD, "total_steps": 4,
            "args": {"batch_size": 5, "num_workers": 0, "log_freq": 1},
        },
        "dataset": {"repo_id": "local/middle", "root": str(dataset)},
        "env": NODDING,
        "evaluation": {"every": 2, "episodes": 2, "seed": 40},
        "tracking": {"enabled": False},
        "device": "cpu",
        "output": str(tmp_path / "runs"),
    }  # fmt: skip


def test_a_run_is_resumed_evaluated_exported_and_built_upon(config: dict[str, Any], tmp_path: Path) -> None:
    done = runs.run(config)
    assert done.status == "finished"
    assert {"train/loss", "eval/return_mean", "eval/success_rate"} <= done.metrics.keys()
    first = load_file(Path(done.paths["native"]) / "model.safetensors")

    longer = runs.resume(done.paths["folder"], ["trainer.total_steps=6"])
    whole = runs.run({**config, "name": "whole", "trainer": {**config["trainer"], "total_steps": 6}})
    ends = [load_file(Path(result.paths["native"]) / "model.safetensors") for result in (longer, whole)]
    assert all(ends[0][name].equal(ends[1][name]) for name in ends[1])
    assert not ends[0]["matrix.weight"].equal(first["matrix.weight"])

    evaluation, _ = runs.evaluate(whole.paths["folder"], 3, 40)
    assert evaluation.returns.tolist() == [3.0, 3.0, 3.0]
    path = runs.export(whole.paths["folder"], tmp_path / "model")
    assert load_file(path / "model.safetensors")["matrix.weight"].equal(ends[1]["matrix.weight"])

    warm = runs.run({**config, "name": "warm", "init_from": whole.paths["folder"]})
    assert any(note.startswith("policy taken from ") for note in warm.notes)
    again = runs.run({**config, "trainer": {**config["trainer"], "policy": {**NOD, "type": None, "path": str(path)}}})
    assert again.status == "finished"


def test_what_a_run_logs_is_in_mlflow(config: dict[str, Any], tmp_path: Path) -> None:
    from mlflow.tracking import MlflowClient

    uri = f"sqlite:///{tmp_path}/mlflow.db"
    done = runs.run({**config, "evaluation": {"every": None, "episodes": 0}, "tracking": {"uri": uri}})
    assert tracking.finish(Path(done.paths["folder"]), timeout=600).complete
    client = MlflowClient(uri)
    (experiment,) = client.search_experiments(filter_string="name = 'budwood'")
    (kept,) = client.search_runs([experiment.experiment_id])
    assert (kept.info.run_name, kept.info.status) == (Path(done.paths["folder"]).name, "FINISHED")
    assert kept.data.params["trainer.policy.type"] == "nod"
    sent = {point.step: point.value for point in client.get_metric_history(kept.info.run_id, "train/loss")}
    assert list(sent) == [1, 2, 3, 4]
    assert sent[4] == done.metrics["train/loss"]


def test_every_wrong_key_is_named_with_who_owns_it(config: dict[str, Any]) -> None:
    wrong = {**config, "env": {**NODDING, "step": 3}, "trainer": {**config["trainer"], "policy": {**NOD, "gian": 2.0}}}
    with pytest.raises(ConfigError) as caught:
        runs.run(wrong)
    text = str(caught.value)
    assert "trainer.policy.gian: NodConfig has no field 'gian' (did you mean 'gain'?) [budwood-lerobot" in text
    assert "env.step: NodEnv has no field 'step' (did you mean 'steps'?) [budwood-lerobot" in text
    given = ["trainer.policy.gian=2.0", "trainer.args.batch=5", "dataset.rot=x"]
    with pytest.raises(ConfigError) as caught:
        runs.run(config, given)
    text = str(caught.value)
    for key in ("trainer.policy.gian", "trainer.args.batch", "dataset.rot"):
        assert f"{key} (override): " in text
    with pytest.raises(
        ConfigError, match=r"trainer\.policy\.path \(override\): there is no folder policies/nothere; as an id"
    ):
        runs.run(config, ["trainer.policy={path: policies/nothere}", "trainer.policy.path=policies/nothere"])


def test_a_misspelt_key_is_told_before_lerobot_is_imported(tmp_path: Path) -> None:
    bad = {
        "trainer": {"kind": "lerobot", "algo": "offline", "policy": {"type": "act"}, "total_steps": 1, "args": {}},
        "dataset": {"repo_id": "a/b"},
        "env": {"type": "pusht"},
        "evalution": {"every": 2},
    }
    (tmp_path / "bad.json").write_text(json.dumps(bad))
    code = (
        "import json, sys, budwood\nfrom budwood.planning import explain\n"
        "try:\n    explain(json.load(open(sys.argv[1])))\nexcept budwood.api.ConfigError as error:\n    print(error)\n"
        "print({'lerobot', 'torch', 'draccus', 'accelerate'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "bad.json")], capture_output=True, text=True, check=True
    )
    assert "evalution: unknown key (did you mean 'evaluation'?)" in done.stdout
    assert done.stdout.splitlines()[-1] == "set()"
