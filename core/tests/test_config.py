"""Configuration: the plugins it names, what comes out, and what may change."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, Field, ValidationError
from rootstock import MINIMAL, Flow, Options, refused, written

from budwood import config
from budwood.api import Config, ConfigError, PluginError, hookimpl
from budwood.plugins import Activation, activate
from budwood.redact import redact
from budwood.yaml_io import read

# ---- names ------------------------------------------------------------------------------------------------------


def test_names_in_the_order_of_the_file(site: Any, tmp_path: Path) -> None:
    for name in ("rootstock", "flow", "my-calm"):
        site.add(f"budwood-{name}", "1.0", {name: f"{name.replace('-', '_')}_x:Plugin"})
    text = "trainer: {kind: Rootstock}\nplugins:\n  my-calm:\n  flow: {a: 1}\n"
    assert config.names(config.load(written(tmp_path, text))) == ("rootstock", ("my_calm", "flow"))
    assert config.names(config.load({"trainer": {"kind": "rootstock"}})) == ("rootstock", ())


def test_everything_that_metadata_can_tell_is_told_at_once(
    site: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("budwood.config.__version__", "0.1.0")
    site.add("budwood-rootstock", "2.0", {"rootstock": "rootstock_x:Plugin"})
    site.add("budwood-old", "1.5", {"old": "old_x:Plugin"}, requires="budwood<0.1")
    text = "trainer:\n  kind: rootstok\nplugins:\n  my-floww: {}\n  old: {}\n  rootstock: {}\n"
    assert refused(lambda: config.names(config.load(written(tmp_path, text))), tmp_path) == (
        "run.yaml: the configuration has 3 problems.\n"
        "  - trainer.kind (line 2): no installed adapter is called 'rootstok'. Did you mean 'rootstock'?\n"
        "  - plugins.my_floww (line 4): no installed plugin is called 'my_floww'. "
        "If it is published under the usual name: pip install budwood-my-floww\n"
        "  - plugins.old (line 5): it needs budwood<0.1, and this is budwood 0.1.0. "
        "pip install -U budwood-old budwood [budwood-old 1.5]"
    )


@pytest.mark.parametrize(
    ("text", "problems"),
    [
        (
            "seed: 1\n",
            ["trainer.kind: is required, the name of an installed adapter (installed plugins: rootstock)"],
        ),
        (
            "trainer:\n  kind: 3\nplugins: [flow]\n",
            [
                "plugins (line 3): write plugin names with their options, e.g. name: {}",
                "trainer.kind (line 2): is required, the name of an installed adapter (installed plugins: rootstock)",
            ],
        ),
        (
            "trainer: {kind: rootstock}\nplugins:\n  Rootstock: {}\n",
            ["plugins.rootstock (line 3): is the trainer of this run, not a plugin of it"],
        ),
    ],
)
def test_no_name_to_be_found(site: Any, tmp_path: Path, text: str, problems: list[str]) -> None:
    site.add("budwood-rootstock", "2.0", {"rootstock": "rootstock_x:Plugin"})
    path = written(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        config.names(config.load(path))
    assert list(caught.value.problems) == problems


# ---- resolving --------------------------------------------------------------------------------------------------


def test_resolved_data_is_complete_and_reads_back_as_itself(tmp_path: Path, activation: Activation) -> None:
    flow = "{noise: 1, pair: [1, 2], kinds: [b, a], shape: {kind: ball, radius: 2}}"
    text = f"{MINIMAL}plugins:\n  flow: {flow}\n  bare-one:\n"
    resolved = config.resolve(config.load(written(tmp_path, text, "half cheetah.yaml")), activation)
    assert list(resolved.data) == [
        *("name", "seed", "processes", "trainer", "env", "plugins", "budget", "evaluation", "checkpoint", "tracking"),
        *("output", "init_from", "device", "precision"),
    ]
    assert resolved.data["name"] == "half-cheetah"
    assert resolved.data["evaluation"] == {"every": 20_000, "episodes": 10, "seed": 10_000}
    assert resolved.data["checkpoint"] == {"every": 50_000, "keep": 3, "replay_buffer": True}
    assert resolved.data["plugins"] == {
        "flow": {
            "outer_every": 10,
            "noise": 1.0,
            "mode": "slow",
            "shape": {"kind": "ball", "radius": 2.0, "label": ""},
            "limit": 0,
            "terms": [],
            "pair": [1, 2],
            "kinds": ["a", "b"],
            "api_token": None,
            "login": None,
        },
        "bare_one": {},
    }
    assert resolved.section("flow").pair == (1, 2)
    assert resolved.model.trainer.total_timesteps == 1_000
    with pytest.raises(ValidationError, match="frozen"):
        resolved.model.seed = 3
    again = config.resolve(config.load(written(tmp_path, config.dump(resolved.data))), activation)
    assert again.data == resolved.data
    assert config.digest(again.data) == config.digest(resolved.data)


def test_secrets_live_in_the_model_only_and_must_be_given_again(tmp_path: Path, activation: Activation) -> None:
    plugins = {"flow": {"login": "hunter2", "api_token": "t0ken"}, "bare_one": {}}
    resolved = config.resolve(config.load({**read(MINIMAL, "x")[0], "plugins": plugins}), activation)
    assert resolved.section("flow").login.get_secret_value() == "hunter2"
    assert resolved.data["plugins"]["flow"]["login"] == "***"
    kept = config.dump(redact(resolved.data))
    assert "hunter2" not in kept
    assert "t0ken" not in kept
    path = written(tmp_path, kept)
    assert refused(lambda: config.resolve(config.load(path), activation), tmp_path) == (
        "run.yaml: the configuration has 2 problems.\n"
        "  - plugins.flow.api_token (line 21): this secret was not kept on disk; give it again as plugins.flow.api_token=...\n"
        "  - plugins.flow.login (line 22): this secret was not kept on disk; give it again as plugins.flow.login=..."
    )
    again = config.resolve(config.load(path, ["plugins.flow.login=other", "plugins.flow.api_token=other"]), activation)
    assert config.differing(resolved.data, again.data) == []
    record = config.resolve(config.load(path), activation, recorded=True)
    assert config.differing(record.data, again.data) == []


class Shape(Enum):
    ROUND = "round"


@pytest.mark.parametrize(
    ("answer", "adapter", "expected"),
    [
        (
            BaseModel,
            False,
            "plugins.flow: its hook config_model returned <class 'pydantic.main.BaseModel'>, "
            "expected a subclass of budwood.api.Config. Asked for by budwood-flow 1.0. Report this to its author.",
        ),
        (
            Options,
            True,
            "trainer.kind: its config_model has no field trainer. Asked for by budwood-flow 1.0. Report this to its author.",
        ),
        (
            config.RunConfig,
            True,
            "trainer.kind: its config_model describes budget, checkpoint, device, evaluation, init_from, name, output, "
            "plugins, precision, processes, seed, tracking, which budwood owns. Asked for by budwood-flow 1.0. "
            "Report this to its author.",
        ),
    ],
)
def test_models_that_cannot_be_composed(in_memory: Any, answer: Any, adapter: bool, expected: str) -> None:
    class Plugin:
        @hookimpl
        def config_model(self) -> Any:
            return answer

        @hookimpl
        def build_trainer(self, run: Any) -> Any: ...

    one = in_memory("flow", Plugin())
    activation = Activation([], one) if adapter else Activation([one], None)
    with pytest.raises(PluginError) as caught:
        config.schema(activation)
    assert str(caught.value) == expected


def test_a_plugin_is_no_adapter(in_memory: Any) -> None:
    with pytest.raises(
        PluginError, match=r"trainer.kind: 'flow' builds no trainer, so it is no adapter. .*budwood-flow"
    ):
        config.resolve(config.load({"trainer": {"kind": "flow"}}), Activation([], in_memory("flow", Flow())))


def test_sections_without_an_adapter(in_memory: Any) -> None:
    activation = Activation([in_memory("flow", Flow(), "0.3")], None)
    assert config.resolve_sections({"flow": {"noise": 2}}, activation)["flow"] == Options(noise=2.0)
    assert "plugins.flow.nois: unknown key (did you mean 'noise'?) [budwood-flow 0.3]" in refused(
        lambda: config.resolve_sections({"flow": {"nois": 2}}, activation)
    )


def test_values_of_every_type_become_plain_data(in_memory: Any) -> None:
    class Many(Config):
        shape: Shape = Shape.ROUND
        folder: Path = Path("a/b")
        often: int = Field(1, alias="every")
        high: float = math.inf

    class Plugin:
        @hookimpl
        def config_model(self) -> Any:
            return Many

    activation = Activation([in_memory("flow", Plugin())], None)
    loaded = config.load({"trainer": None, "plugins": {"flow": {"every": 5}}})
    resolved = config.resolve(loaded, activation)
    expected = {"shape": "round", "folder": "a/b", "every": 5, "high": math.inf}
    assert resolved.data["plugins"]["flow"] == expected
    assert config.resolve(config.load(read(config.dump(resolved.data), "x")[0]), activation).data == resolved.data


# ---- what may change, and what editors see ----------------------------------------------------------------------


def changed(data: Mapping[str, Any], path: str, value: Any) -> dict[str, Any]:
    first, _, rest = path.partition(".")
    return {**data, first: changed(data[first], rest, value) if rest else value}


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        ("name", "other", []),
        ("output", "other", []),
        ("evaluation.every", 7, []),
        ("checkpoint", {"every": None}, []),
        ("tracking.tags", {"a": "b"}, []),
        ("trainer.total_timesteps", 9, []),
        ("seed", 1, ["seed"]),
        ("precision", "bf16", ["precision"]),
        ("trainer.args", {"n": 1}, ["trainer.args.n"]),
        ("env.n_envs", 2, ["env.n_envs"]),
        ("plugins.flow", {"a": 1, "b": 3}, ["plugins.flow.b"]),
        ("plugins.flow", {"a": 1}, ["plugins.flow.b"]),
        ("plugins", {"calm": {}, "flow": {"a": 1, "b": 2}}, ["the order of plugins"]),
        ("plugins.flow.password", "new", []),
    ],
)
def test_digest_and_the_keys_that_may_not_differ_agree(path: str, value: Any, named: list[str]) -> None:
    data: dict[str, Any] = {
        "name": "a",
        "seed": 0,
        "trainer": {"total_timesteps": 5, "args": {}},
        "env": {"n_envs": 1},
        "plugins": {"flow": {"a": 1, "b": 2}, "calm": {}},
        "evaluation": {"every": 1},
        "checkpoint": {},
        "tracking": {"tags": {}},
        "output": "runs",
        "precision": "fp32",
    }
    if path.endswith("password"):
        data["plugins"]["flow"]["password"] = "old"
    other = changed(data, path, value)
    assert config.differing(data, other) == named
    assert (config.digest(data) == config.digest(other)) is (named == [])


def test_digest_is_that_of_written_down_text() -> None:
    data = {"seed": 0, "env": {"b": math.nan, "a": [1.5, None, "é"]}, "name": "x", "plugins": {"flow": {}}}
    text = '{"env.a":[1.5,null,"\\u00e9"],"env.b":NaN,"plugins.flow":{},"seed":0,"the order of plugins":["flow"]}'
    assert config.digest(data) == hashlib.sha256(text.encode()).hexdigest()


def test_json_schema_for_editors(activation: Activation) -> None:
    made = config.schema(activation)
    json.dumps(made)
    assert made["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert made["title"] == "budwood run"
    assert made["required"] == ["trainer", "env"]
    assert made["additionalProperties"] is False
    assert list(made["properties"])[:6] == ["name", "seed", "processes", "trainer", "env", "plugins"]

    def follow(node: Mapping[str, Any]) -> Mapping[str, Any]:
        return made["$defs"][node["$ref"].rpartition("/")[2]] if "$ref" in node else node

    plugins = follow(made["properties"]["plugins"])
    assert "required" not in plugins
    assert plugins["properties"]["flow"]["description"] == "options of budwood-flow 0.3"
    options, nothing = plugins["properties"]["flow"]["anyOf"]
    assert nothing == {"type": "null"}
    assert follow(options)["properties"]["outer_every"]["exclusiveMinimum"] == 0
    assert follow(made["properties"]["env"])["properties"]["n_envs"]["description"] == "environments side by side"


def test_the_whole_way_from_metadata_to_a_section(site: Any, tmp_path: Path) -> None:
    adapter = """
from budwood.api import Config, hookimpl
from typing import Any, Literal

class Trainer(Config):
    kind: Literal["root_stock"]

class Sections(Config):
    trainer: Trainer
    env: dict[str, Any] = {}

class Plugin:
    @hookimpl
    def config_model(self): return Sections
    @hookimpl
    def build_trainer(self, run, contributions): ...
"""
    plugin = """
from budwood.api import Config, hookimpl

class Options(Config):
    a: int = 1

class Plugin:
    @hookimpl
    def config_model(self): return Options
"""
    site.add("budwood-root-stock", "2.0", {"root-stock": "root_stock_x:Plugin"}, {"root_stock_x": adapter})
    site.add("budwood-my-flow", "0.3", {"my_flow": "my_flow_x:Plugin"}, {"my_flow_x": plugin})
    loaded = config.load(
        written(tmp_path, "trainer: {kind: Root-Stock}\nplugins:\n  my-flow:\n"), ["plugins.my-flow.a=2"]
    )
    adapter_name, names = config.names(loaded)
    resolved = config.resolve(loaded, activate(names, adapter_name))
    assert resolved.section("my_flow").a == 2
    assert resolved.model.trainer.kind == "root_stock"
