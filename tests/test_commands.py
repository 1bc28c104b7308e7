"""Every command once, for real, on a run of half a second: what it does, and what ``--json`` promises to scripts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from budwood.cli import main
from budwood.folder import RunFolder, list_runs

Budwood = Callable[..., Any]

RESULT = {"run_id", "status", "metrics", "paths", "mlflow_run_id", "notes"}
PATHS = {"folder", "report", "native", "checkpoint", "config", "events"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run of the small configuration with reward terms, trained once; tests that change it train their own."""
    pytest.importorskip("budwood_sb3")
    pytest.importorskip("budwood_reward_shaping")
    folder = tmp_path_factory.mktemp("commands")
    (folder / "shaped.yaml").write_text(
        """\
trainer: {kind: sb3, algo: ppo, total_timesteps: 256, args: {n_steps: 64, batch_size: 64, n_epochs: 1}}
env: {id: Pendulum-v1, n_envs: 2}
device: cpu
plugins:
  reward_shaping:
    terms: [native]
    outer: null
evaluation: {episodes: 2}
tracking: {enabled: false}
"""
    )
    assert main(["run", str(folder / "shaped.yaml"), f"output={folder / 'runs'}"]) == 0
    return list_runs(folder / "runs")[-1]


def config_of(run: RunFolder) -> Path:
    return run.folder.parents[1] / "shaped.yaml"


# ---- run and what follows it -----------------------------------------------------------------------------------------


def test_run_and_resume(budwood: Budwood, small: Path, output: Path) -> None:
    said = budwood("run", small, "trainer.total_timesteps=128", "seed=3", "--json")
    assert said.code == 0
    result = said.json
    assert result.keys() == RESULT
    assert result["status"] == "finished"
    assert result["paths"].keys() == PATHS
    assert all(Path(path).exists() for path in result["paths"].values())
    assert result["run_id"].startswith("small-s3-")
    assert {"eval/return_mean", "eval/length_mean", "rollout/ep_rew_mean"} <= result["metrics"].keys()
    assert result["metrics"]["eval/length_mean"] == 50.0
    assert "<html" in Path(result["paths"]["report"]).read_text()[:200]

    said = budwood("resume", result["run_id"], "trainer.total_timesteps=256", "--json")
    assert said.code == 0
    assert said.json.keys() == RESULT
    assert said.json["run_id"] == result["run_id"]
    assert said.json["notes"] == ["continuing from step_000000000128.1"]
    (row,) = budwood("runs", "--json").json
    assert row == {
        "name": "small",
        "status": "finished",
        "steps": 256,
        "return": said.json["metrics"]["eval/return_mean"],
        "headline": ["return", said.json["metrics"]["eval/return_mean"]],
        "started": row["started"],
        "id": result["run_id"],
    }


def test_run_says_where_everything_is(budwood: Budwood, small: Path, output: Path) -> None:
    said = budwood("run", small, "trainer.total_timesteps=64")
    (run,) = list_runs(output)
    lines = said.out.splitlines()
    assert lines[0] == f"finished  {run.run_id}"
    assert {line.split()[0] for line in lines[1:]} == {"return", *PATHS}
    assert f"report      {run.folder / 'report.html'}" in lines


def test_run_from_python(output: Path, small: Path) -> None:
    import budwood as package
    from budwood.yaml_io import read

    config = read(small.read_text(), "small")[0]
    result = package.run(config, seed=5, trainer__total_timesteps=64)
    assert (result.status, result.notes) == ("finished", [])
    assert result.run_id.startswith("small-s5-")
    assert set(result.paths) == PATHS
    assert result.metrics["eval/length_mean"] == 50.0
    more = package.resume(result.run_id, ["trainer.total_timesteps=128"])
    assert (more.run_id, more.status) == (result.run_id, "finished")


def test_eval(budwood: Budwood, finished: RunFolder) -> None:
    said = budwood("eval", finished.folder, "--episodes", "3", "--seed", "7", "--json")
    assert said.code == 0
    answer = said.json
    assert answer.keys() == {"mean", "std", "returns", "lengths", "metrics", "seed", "checkpoint"}
    assert answer["lengths"] == [200, 200, 200]
    assert answer["mean"] == pytest.approx(np.mean(answer["returns"]))
    assert answer["std"] == pytest.approx(np.std(answer["returns"], ddof=1))
    assert (answer["seed"], Path(answer["checkpoint"]).parent) == (7, finished.checkpoints)
    again = budwood("eval", finished.folder, "--episodes", "3", "--seed", "7", "--json").json
    assert again == answer
    assert "mean and standard deviation of 2 episodes" in budwood("eval", finished.folder, "--episodes", "2").out


def test_export_is_a_model_that_needs_no_budwood(budwood: Budwood, finished: RunFolder, tmp_path: Path) -> None:
    """Loaded by the bare library, it earns in the bare environment what ``eval`` measured, to the last bit."""
    import gymnasium as gym
    from stable_baselines3 import PPO

    path = Path(budwood("export", finished.folder, "--to", tmp_path / "model", "--json").json["path"])
    assert path == tmp_path / "model" / "model.zip"
    assert budwood("export", finished.folder).out.strip() == str(finished.folder / "export" / "model.zip")
    measured = budwood("eval", finished.folder, "--episodes", "1", "--seed", "11", "--json").json

    model, env = PPO.load(path, device="cpu"), gym.make("Pendulum-v1")
    (observation, _), total, ended = env.reset(seed=11), 0.0, False
    while not ended:
        action, _ = model.predict(observation, deterministic=True)
        observation, reward, _, ended, _ = env.step(action)
        total += float(np.float32(reward))
    assert total == pytest.approx(measured["mean"], rel=1e-6)


# ---- what would happen, and what is installed -------------------------------------------------------------------------


def test_explain_trains_nothing(budwood: Budwood, finished: RunFolder, output: Path) -> None:
    said = budwood("explain", config_of(finished), "seed=4", "--json")
    assert said.code == 0
    answer = said.json
    assert answer.keys() == {"config", "trainer", "bindings"}
    assert (answer["trainer"], answer["config"]["seed"]) == ("PPO", 4)
    assert answer["config"]["evaluation"] == {"every": 20_000, "episodes": 2, "seed": 10_000}
    assert [binding["order"] for binding in answer["bindings"]] == list(range(1, len(answer["bindings"]) + 1))
    keys = {"order", "plugin", "who", "kind", "contribution", "seam", "grade"}
    assert all(binding.keys() == keys for binding in answer["bindings"])
    kinds = [binding["kind"] for binding in answer["bindings"]]
    assert "reward_combination" in kinds
    assert {binding["who"] for binding in answer["bindings"]} == {"budwood-reward-shaping 0.1.0"}
    assert not output.exists()
    assert "TermVecEnv" in budwood("explain", config_of(finished)).out


def test_explain_of_the_bare_trainer(budwood: Budwood, small: Path) -> None:
    assert budwood("explain", small).out.endswith("bindings to PPO\nnone: this is the bare trainer\n")


def test_plugins(budwood: Budwood) -> None:
    listed = {row["name"]: row for row in budwood("plugins", "--json").json}
    assert {"sb3", "reward_shaping"} <= listed.keys()
    assert listed["sb3"].keys() == {"name", "version", "distribution", "requires", "summary"}
    assert listed["sb3"]["distribution"] == "budwood-sb3"
    hooks = {row["name"]: row["hooks"] for row in budwood("plugins", "--hooks", "--json").json}
    assert hooks["sb3"] == ["build_graft", "build_trainer", "capabilities", "config_model"]
    assert {"reward_terms", "reward_combination", "callbacks", "config_model"} <= set(hooks["reward_shaping"])
    assert "budwood-reward-shaping" in budwood("plugins").out


def test_doctor(budwood: Budwood, output: Path) -> None:
    said = budwood("doctor", "--json")
    assert all(row["level"] in ("ok", "warn", "error") for row in said.json)
    assert all(row.keys() == {"level", "topic", "what", "do"} for row in said.json)
    assert said.code == (1 if any(row["level"] == "error" for row in said.json) else 0)
    text = " ".join(row["what"] for row in said.json)
    assert "sb3" in text
    assert "reward_shaping" in text or "reward-shaping" in text


# ---- the schema ------------------------------------------------------------------------------------------------------


def allows(schema: dict[str, Any], value: Any, root: dict[str, Any]) -> bool:
    """The part of JSON Schema that the schema of a run uses."""
    known = {
        "$ref",
        "anyOf",
        "allOf",
        "const",
        "enum",
        "type",
        "properties",
        "required",
        "additionalProperties",
        "items",
    }
    known |= {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "minLength", "minItems", "maxItems"}
    known |= {"$schema", "$defs", "title", "description", "default", "discriminator"}
    assert schema.keys() <= known, schema.keys() - known
    if "$ref" in schema:
        return allows(root["$defs"][schema["$ref"].rpartition("/")[2]], value, root)
    kinds: dict[str, Any] = {"object": dict, "array": list, "string": str, "boolean": bool, "null": type(None)}
    kinds |= {"integer": int, "number": (int, float)}
    kind = schema.get("type")
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return all(
        (
            kind is None or (isinstance(value, kinds[kind]) and (kind == "boolean") == isinstance(value, bool)),
            "anyOf" not in schema or any(allows(part, value, root) for part in schema["anyOf"]),
            all(allows(part, value, root) for part in schema.get("allOf", ())),
            "const" not in schema or value == schema["const"],
            "enum" not in schema or value in schema["enum"],
            not number or schema.get("minimum", value) <= value <= schema.get("maximum", value),
            not number or "exclusiveMinimum" not in schema or value > schema["exclusiveMinimum"],
            not number or "exclusiveMaximum" not in schema or value < schema["exclusiveMaximum"],
            not isinstance(value, str) or len(value) >= schema.get("minLength", 0),
            not isinstance(value, list)
            or (
                schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value))
                and all(allows(schema.get("items", {}), item, root) for item in value)
            ),
            not isinstance(value, dict) or allows_keys(schema, value, root),
        )
    )


def allows_keys(schema: dict[str, Any], value: dict[str, Any], root: dict[str, Any]) -> bool:
    named, others = schema.get("properties", {}), schema.get("additionalProperties", True)
    return all(key in value for key in schema.get("required", ())) and all(
        allows(named[key], item, root) if key in named else others is True or (others and allows(others, item, root))
        for key, item in value.items()
    )


def test_schema_knows_what_a_run_accepts(budwood: Budwood, finished: RunFolder) -> None:
    said = budwood("schema", config_of(finished), "--json")
    schema = said.json
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert json.loads(budwood("schema", config_of(finished)).out) == schema
    assert budwood("schema", "--trainer", "sb3", "reward-shaping", "--json").json == schema
    complete = budwood("explain", config_of(finished), "--json").json["config"]
    assert allows(schema, complete, schema)
    for changes in (
        {"sead": 3},
        {"seed": -1},
        {"seed": "3"},
        {"trainer": {**complete["trainer"], "algo": "ppoo"}},
        {"trainer": {key: value for key, value in complete["trainer"].items() if key != "total_timesteps"}},
        {"env": {**complete["env"], "n_envs": 0}},
        {"plugins": {"reward_shaping": {"terms": []}}},
        {"plugins": {"curl": {}}},
        {"precision": "fp8"},
    ):
        assert not allows(schema, {**complete, **changes}, schema), changes


# ---- a plugin of one's own ---------------------------------------------------------------------------------------------


def test_plugin_new_writes_what_plugin_check_accepts(
    budwood: Budwood, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from budwood import plugins

    folder = Path(budwood("plugin", "new", "curl", "--path", tmp_path / "curl", "--json").json["folder"])
    assert (folder / "pyproject.toml").exists()
    assert budwood("plugin", "new", "curl", "--path", folder).code != 0, "nothing is overwritten"
    info = folder / "src" / "budwood_curl-0.1.0.dist-info"
    info.mkdir()
    requires = "Requires-Dist: budwood<0.2,>=0.1\n"
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: budwood-curl\nVersion: 0.1.0\n{requires}")
    import tomllib

    ((name, value),) = tomllib.loads((folder / "pyproject.toml").read_text())["project"]["entry-points"][
        plugins.GROUP
    ].items()
    (info / "entry_points.txt").write_text(f"[{plugins.GROUP}]\n{name} = {value}\n")
    monkeypatch.syspath_prepend(str(folder / "src"))
    plugins._scan.cache_clear()
    try:
        said = budwood("plugin", "check", "curl", "--json")
        assert said.json.keys() == {"plugin", "findings"}
        assert [finding for finding in said.json["findings"] if finding["level"] == "error"] == []
        assert said.code == 0
    finally:
        plugins._scan.cache_clear()
