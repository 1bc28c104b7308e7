"""The file of a study: what it means, and every mistake in one go."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from budwood import study_config
from budwood.api import ConfigError
from budwood.cli import main
from budwood.yaml_io import dump

BASE = {"trainer": {"kind": "toy", "args": {"rate": 1.0}}, "plugins": {"shape-r": {"weight": 1}}}
STUDY: dict[str, Any] = {
    "base": BASE,
    "seeds": 3,
    "budget": 1000,
    "variants": {"a": None, "b": {"trainer.args.rate": 2.0, "plugins.shape-r.weight": 3}, "c": {"plugins": {}}},
    "metrics": {"P": {"metric": "x/P", "of": "x/env_steps"}, "return": {"metric": "eval/return_mean"}},
}


def written(folder: Path, **changes: Any) -> Path:
    path = folder / "my grid.yaml"
    path.write_text(dump({**STUDY, **changes}))
    return path


def test_variants_are_the_base_with_settings(tmp_path: Path) -> None:
    study = study_config.load(written(tmp_path))
    assert study.config.name == "my-grid"
    runs = {variant: loaded.data for variant, loaded in study.runs.items()}
    assert runs["a"] == {
        **BASE, "plugins": {"shape_r": {"weight": 1}}, "name": "my-grid-a", "budget": 1000,
    }  # fmt: skip
    assert runs["b"]["trainer"]["args"] == {"rate": 2.0}
    assert runs["b"]["plugins"] == {"shape_r": {"weight": 3}}
    assert runs["c"]["plugins"] == {}


def test_base_may_be_a_file_beside(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "base.yaml").write_text(dump(BASE))
    study = study_config.load(written(tmp_path, base="runs/base.yaml"))
    assert study.runs["b"].data["trainer"]["args"] == {"rate": 2.0}
    with pytest.raises(ConfigError, match="no such file"):
        study_config.load(written(tmp_path, base="base.yaml"))


def test_an_override_is_a_key_of_the_study_or_else_of_every_run(tmp_path: Path) -> None:
    overrides = ["seeds=[4, 7]", "budget=50", "metrics.P.take=best", "trainer.args.rate=5.0", "device=cpu"]
    study = study_config.load(written(tmp_path), overrides)
    assert study.config.seed_list == [4, 7]
    assert study.config.metrics["P"].take == "best"
    assert {run.data["budget"] for run in study.runs.values()} == {50}
    assert {variant: run.data["trainer"]["args"]["rate"] for variant, run in study.runs.items()} == {
        "a": 5.0, "b": 2.0, "c": 5.0,
    }  # fmt: skip
    recorded = study_config.load(study.document)
    assert recorded.config.model_dump(exclude={"base"}) == study.config.model_dump(exclude={"base"})
    assert {variant: run.data for variant, run in recorded.runs.items()} == {
        variant: run.data for variant, run in study.runs.items()
    }


def test_defaults(tmp_path: Path) -> None:
    config = study_config.load({"base": BASE, "variants": {"x": None, "y": None, "z": None}}).config
    assert config.seed_list == [0, 1, 2, 3, 4]
    assert (config.main_metric, config.pair_list) == ("return", [("y", "x"), ("z", "x")])
    assert study_config.load(written(tmp_path, pairs=[["a", "c"]], main="return")).config.pair_list == [("a", "c")]


@pytest.mark.parametrize(
    ("changes", "problems"),
    [
        (
            {"seds": 2, "metrics": {"P": {"metrc": "x", "better": "more"}}, "variants": {"a b": None, "c": 3}},
            [
                "variants.a b: a name starts with a letter",
                "variants.c: expected keys with values, got 3",
                "metrics.P.metric: is required",
                "metrics.P.better: expected 'higher' or 'lower'",
                "metrics.P.metrc: unknown key (did you mean 'metric'?)",
                "seds: unknown key (did you mean 'seeds'?)",
            ],
        ),
        (
            {"main": "p", "pairs": [["a", "d"]], "seeds": [1, 1], "budget": None,
             "metrics": {"P": {"metric": "x", "reaches": 1.0, "take": "best"}}},
            [
                "main: there is no 'p' (known: P)",
                "pairs[0]: there is no 'd' (known: a, b, c)",
                "seeds: a seed is listed twice",
                "metrics.P: give take or reaches, not both",
                "metrics.P: reaches needs a budget",
            ],
        ),
        (
            {"variants": {"a": {"seed": 3, "budget": 5}, "b": {"output": "x"}}},
            [
                "variants.a.seed: belongs to the whole study; seeds of the study says it",
                "variants.a.budget: belongs to the whole study; budget of the study says it",
                "variants.b.output: belongs to the whole study; put it into base",
            ],
        ),
        (
            {"variants": {"a": {"trainer.kind.x": 1}, "b": {"plugins.": 2}}},
            ["variants.a: trainer.kind.x=1", "variants.b: plugins.=2"],
        ),
        ({"base": {**BASE, "seed": 3}}, ["base.seed: belongs to the whole study; seeds of the study says it"]),
        ({"seeds": 0}, ["seeds: must be at least 1, got 0"]),
        ({"plugins": {"x": {}}}, ["plugins: unknown key"]),
    ],
)  # fmt: skip
def test_every_mistake_in_one_error(changes: dict[str, Any], problems: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        study_config.load({**STUDY, **changes})
    assert len(caught.value.problems) == len(problems)
    for start, problem in zip(problems, caught.value.problems, strict=True):
        assert problem.startswith(start)


def test_a_seed_for_every_run_is_refused_and_that_of_a_file_is_its_own(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        study_config.load(written(tmp_path), ["seed=3"])
    assert caught.value.problems == ("seed=3: belongs to the whole study; seeds of the study says it",)
    (tmp_path / "run.yaml").write_text(dump({**BASE, "seed": 3}))
    study = study_config.load(written(tmp_path, base="run.yaml"))
    assert all("seed" not in run.data for run in study.runs.values())
    assert study_config.load(study.document).runs.keys() == study.runs.keys(), "what is recorded is a study again"


def test_the_schema_names_every_key() -> None:
    schema = study_config.schema()
    assert set(schema["properties"]) == set(study_config.StudyConfig.model_fields)
    assert schema["additionalProperties"] is False
    assert all("description" in option for option in schema["properties"].values())


def test_the_schema_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema", "--study"]) == 0
    assert json.loads(capsys.readouterr().out) == study_config.schema()
