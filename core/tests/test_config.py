"""Configuration: what people write, what comes out, and every message for what does not fit."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import pytest
from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, model_validator

from budwood import config, config_messages
from budwood.api import Config, ConfigError, PluginError, hookimpl
from budwood.plugins import Activation, activate
from budwood.redact import redact
from budwood.yaml_io import dump, inline, read


class Box(Config):
    kind: Literal["box"]
    size: int = 3
    label: str = ""


class Ball(Config):
    kind: Literal["ball"]
    radius: float
    label: str = ""


class Options(Config):
    outer_every: int = Field(default=10, gt=0)
    noise: float = 0.5
    mode: Literal["slow", "fast"] = "slow"
    shape: Annotated[Box | Ball, Field(discriminator="kind")] | None = None
    limit: int | str = 0
    terms: tuple[Box, ...] = ()
    pair: tuple[int, ...] = Field(default=(), max_length=2)
    kinds: frozenset[str] = frozenset()
    api_token: str | None = None
    login: SecretStr | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.noise < 0:
            raise ValueError("noise below zero makes no sense")
        if self.noise > 100:
            raise RuntimeError("a bug of the plugin")
        if self.noise == 99:
            raise PluginError("its data set is gone", where="plugins.flow.noise")
        return self


class Flow:
    @hookimpl
    def config_model(self) -> Any:
        return Options


class Bare:
    """A plugin without options."""


class Rootstock:
    """An adapter."""

    @hookimpl
    def config_model(self) -> Any:
        class TrainerConfig(Config):
            kind: Literal["rootstock"]
            total_timesteps: int
            args: dict[str, Any] = Field(default_factory=dict)

        class EnvConfig(Config):
            id: str
            n_envs: int = Field(1, description="environments side by side")

        class Sections(Config):
            trainer: TrainerConfig
            env: EnvConfig

        return Sections

    @hookimpl
    def build_trainer(self, run: Any, contributions: Any) -> Any: ...


MINIMAL = """\
trainer: {kind: rootstock, total_timesteps: 1_000}
env: {id: Reach-v0}
"""


@pytest.fixture
def activation(in_memory: Any) -> Activation:
    """The adapter ``rootstock`` 2.0 with the plugins ``flow`` 0.3 and ``bare``."""
    plugins = [in_memory("flow", Flow(), "0.3"), in_memory("bare_one", Bare())]
    return Activation(plugins, in_memory("rootstock", Rootstock(), "2.0"))


@pytest.fixture
def alone(in_memory: Any) -> Activation:
    return Activation([], in_memory("rootstock", Rootstock(), "2.0"))


def written(folder: Path, text: str, name: str = "run.yaml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def refused(call: Any, folder: Path | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        call()
    return str(caught.value).replace(f"{folder}/", "")


# ---- reading ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e5", 100_000),
        ("1E6", 1_000_000),
        ("1_000_000", 1_000_000),
        ("-3", -3),
        ("010", 10),
        ("0x1F", 31),
        ("1e-3", 0.001),
        ("2.5e3", 2500.0),
        (".5", 0.5),
        ("1e16", 1e16),
        ("-.inf", -math.inf),
        ("true", True),
        ("no", False),
        ("~", None),
        ("", None),
        ("1:30", "1:30"),
        ("2026-01-01", "2026-01-01"),
        ("'1e5'", "1e5"),
        ("1__0", "1__0"),
        ("{1: a, on: b, null: c}", {"1": "a", "on": "b", "null": "c"}),
        ("{a: &x {p: 1, q: 2}, b: {<<: *x, q: 3}}", {"a": {"p": 1, "q": 2}, "b": {"p": 1, "q": 3}}),
    ],
)
def test_values_read_as_people_expect(text: str, value: Any) -> None:
    got, _ = read(text, "x")
    assert got == value
    assert type(got) is type(value)
    assert read(dump(value), "x")[0] == value


@pytest.mark.parametrize(
    "text", ["1e5", "yes", "010", "1:30", "0o17", "", "null", "<<", "a: b", "#", "2026-01-01", "é"]
)
def test_text_survives_being_written_and_read(text: str) -> None:
    assert read(dump({"a": [text]}), "x")[0] == {"a": [text]}
    assert read(inline(text), "x")[0] == text


UNREADABLE = {
    "a: [1, 2\nb: 3\n": (
        "run.yaml, line 2, column 2: this is not readable YAML: expected ',' or ']', but got ':'. "
        "Check quotes, brackets and indentation just before this place."
    ),
    "a:\n\tb: 1\n": (
        "run.yaml, line 2, column 1: this is not readable YAML: found character '\\t' that cannot start any token. "
        "Indent with spaces, not with tabs."
    ),
    "a: b: c\n": (
        "run.yaml, line 1, column 5: this is not readable YAML: mapping values are not allowed here. "
        "Check the indentation, and write a text that contains ': ' in quotes."
    ),
    "a: *b\n": (
        "run.yaml, line 1, column 4: this is not readable YAML: found undefined alias 'b'. "
        "A text that starts with * belongs in quotes."
    ),
    "a: 1\nb: \x07\n": (
        "run.yaml, line 2: the character '\\x07' is not allowed in YAML. "
        "Remove it, or write it in double quotes as an escape."
    ),
    "a: 1\n\nb: !!python/object/apply:os.system ['touch owned']\n": (
        "run.yaml, line 3: the tag '!!python/object/apply:os.system' asks for Python code to be run, and a configuration "
        "never runs code. Remove the tag and write the value itself."
    ),
    "a: !!python/name:os.system\n": (
        "run.yaml, line 1: the tag '!!python/name:os.system' asks for Python code to be run, and a configuration "
        "never runs code. Remove the tag and write the value itself."
    ),
    "? !!python/name:os.system\n: 1\n": (
        "run.yaml, line 1: the tag '!!python/name:os.system' asks for Python code to be run, and a configuration "
        "never runs code. Remove the tag and write the value itself."
    ),
    "a: !env HOME\n": (
        "run.yaml, line 1: the tag '!env' is not allowed: a configuration holds plain values only. "
        "Remove the tag and write the value itself."
    ),
    "a:\n  seed: 1\n  b: 2\n  seed: 3\n": (
        "run.yaml, line 4: the key 'a.seed' was already given on line 2. Keep one of them."
    ),
    "a: &a [1, *a]\n": "run.yaml, line 1: an alias contains itself. Write the value out.",
    "a: !!int one\n": (
        "run.yaml, line 1: 'one' cannot be read as a number or truth value. Put it in quotes if it is text."
    ),
    "a: 12e3456\n": (
        "run.yaml, line 1: '12e3456' cannot be read as a number or truth value. Put it in quotes if it is text."
    ),
    "[1, 2]: 3\n": "run.yaml, line 1: a key must be a plain word. Write keys without brackets.",
    "a: {<<: 3}\n": "run.yaml, line 1: << needs a mapping. Write <<: *NAME, NAME being a mapping.",
    "": "run.yaml: the file is empty. A run needs at least trainer and env.",
    "# only a comment\n": "run.yaml: the file is empty. A run needs at least trainer and env.",
    "- a\n": "run.yaml: the file holds a list, not keys and values. A run needs at least trainer and env.",
    "word\n": "run.yaml: the file holds a single value, not keys and values. A run needs at least trainer and env.",
    "[" * 500: "run.yaml: this YAML is nested too deeply. Use fewer levels.",
    "a: 1\nplugins:\n  my-flow: {}\n  My_Flow: {}\n": (
        "run.yaml: plugins.My_Flow (line 4) is the same plugin as plugins.my-flow (line 3). Keep one of them."
    ),
}


@pytest.mark.parametrize("text", UNREADABLE, ids=lambda text: repr(text[:20]))
def test_unreadable_files(tmp_path: Path, text: str) -> None:
    path = written(tmp_path, text)
    assert refused(lambda: config.load(path), tmp_path) == UNREADABLE[text]
    assert [item.name for item in tmp_path.iterdir()] == ["run.yaml"]


def test_exponential_aliases_are_refused_quickly(tmp_path: Path) -> None:
    levels = "\n".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12))
    path = written(tmp_path, f"a0: &a0 1\n{levels}\n")
    assert "the file expands to more than 100,000 values. Use fewer aliases." in refused(lambda: config.load(path))


def test_files_that_cannot_be_opened(tmp_path: Path) -> None:
    assert (
        refused(lambda: config.load(tmp_path / "no.yaml"), tmp_path)
        == "no.yaml: there is no such file. Check the path."
    )
    assert refused(lambda: config.load(tmp_path)).endswith(
        "the file cannot be read: Is a directory. Check the path and its permissions."
    )
    (tmp_path / "latin.yaml").write_bytes(b"name: caf\xe9\n")
    assert refused(lambda: config.load(tmp_path / "latin.yaml"), tmp_path) == (
        "latin.yaml: byte 9 is not UTF-8 text. Save the file as UTF-8."
    )


# ---- overrides --------------------------------------------------------------------------------------------------


def test_overrides_are_yaml_and_reach_any_depth(tmp_path: Path) -> None:
    path = written(tmp_path, f"{MINIMAL}evaluation: {{every: 5}}\nplugins:\n  my-flow:\n")
    overrides = [
        "evaluation.every=null",
        "trainer.total_timesteps=2e3",
        "plugins.my-flow.noise=0.3",
        "env.args.a.b=[1, x]",
    ]
    loaded = config.load(path, [*overrides, "init_from=", "name=a=b"])
    assert loaded.data == {
        "trainer": {"kind": "rootstock", "total_timesteps": 2000},
        "env": {"id": "Reach-v0", "args": {"a": {"b": [1, "x"]}}},
        "evaluation": {"every": None},
        "plugins": {"my_flow": {"noise": 0.3}},
        "name": "a=b",
        "init_from": None,
    }


def test_overrides_that_cannot_be_applied_are_listed_together(tmp_path: Path) -> None:
    path = written(tmp_path, f"{MINIMAL}seed: 3\nplugins: {{flow: {{terms: [1, 2]}}}}\n")
    wrong = ["seed", "a..b=1", "seed.x=1", "plugins.flow.terms.0=3", "env.id=[", "env.id=!!python/name:os.system"]
    assert refused(lambda: config.load(path, ["name=ok", *wrong]), tmp_path) == (
        "run.yaml: 6 overrides cannot be applied.\n"
        "  - seed: an override has the form a.b.c=value. Write one key, = and a value\n"
        "  - a..b=1: an override has the form a.b.c=value. Write one key, = and a value\n"
        "  - seed.x=1: seed is 3, which has no key 'x'. Give seed itself\n"
        "  - plugins.flow.terms.0=3: plugins.flow.terms is a list. Give the whole list: plugins.flow.terms=[...]\n"
        "  - env.id=[: this is not readable YAML: expected the node content, but found '<stream end>'. "
        "Check quotes, brackets and indentation just before this place\n"
        "  - env.id=!!python/name:os.system: the tag '!!python/name:os.system' asks for Python code to be run, "
        "and a configuration never runs code. Remove the tag and write the value itself"
    )


def test_keyword_overrides_say_the_same() -> None:
    values = {"seed": 3, "trainer__total_timesteps": 1_000, "name": "1e5", "env__args": {"a": None}, "x": float("nan")}
    assert config.keyword_overrides(values) == [
        "seed=3",
        "trainer.total_timesteps=1000",
        "name='1e5'",
        "env.args={a: null}",
        "x=.nan",
    ]
    assert refused(lambda: config.keyword_overrides({"env__fn": print})) == (
        "an argument is not plain data.\n  - env__fn: builtin_function_or_method is no configuration value"
    )


def test_a_mapping_is_a_configuration_too(alone: Activation) -> None:
    import numpy as np

    source = {
        "trainer": {"kind": "rootstock", "total_timesteps": np.int64(5), "args": {"pair": (1, np.float32(0.5))}},
        "env": {"id": "Reach-v0"},
        "output": Path("some/where"),
    }
    data = config.resolve(config.load(source), alone).data
    assert data["trainer"] == {"kind": "rootstock", "total_timesteps": 5, "args": {"pair": [1, 0.5]}}
    assert (data["name"], data["output"]) == ("run", "some/where")
    assert refused(lambda: config.load({"env": {"a": [print]}, "b": object()})) == (
        "config: the configuration has 2 problems. Give numbers, text, lists and mappings only:\n"
        "  - env.a[0]: builtin_function_or_method is no configuration value\n"
        "  - b: object is no configuration value"
    )


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


WRONG = {
    "sed: 3": "sed (line 3): unknown key (did you mean 'seed'?)",
    "plugins: {flow: {outer_evry: 3}}": (
        "plugins.flow.outer_evry (line 3): unknown key (did you mean 'outer_every'?) [budwood-flow 0.3]"
    ),
    "plugins: {flow: {radius: 3}}": (
        "plugins.flow.radius (line 3): unknown key (did you mean 'shape.radius'?) [budwood-flow 0.3]"
    ),
    "total_timesteps: 3": "total_timesteps (line 3): unknown key (did you mean 'trainer.total_timesteps'?)",
    "episodes: 3": "episodes (line 3): unknown key (did you mean 'evaluation.episodes'?)",
    "every: 3": "every (line 3): unknown key (did you mean 'evaluation.every' or 'checkpoint.every'?)",
    "evaluation: {zzz: 1}": "evaluation.zzz (line 3): unknown key (known here: every, episodes, seed)",
    "plugins: {flow: {}, bare_one: {a: 1}}": (
        "plugins.bare_one.a (line 3): unknown key (none is known here) [budwood-bare-one 1.0]"
    ),
    "plugins: {flow: {terms: [{kind: box, sise: 1}]}}": (
        "plugins.flow.terms[0].sise (line 3): unknown key (did you mean 'size'?) [budwood-flow 0.3]"
    ),
    "plugins: {flow: {shape: {kind: ball}}}": "plugins.flow.shape.radius (line 3): is required [budwood-flow 0.3]",
    "plugins: {flow: {shape: {}}}": "plugins.flow.shape.kind (line 3): is required [budwood-flow 0.3]",
    "plugins: {flow: {shape: {kind: bal}}}": (
        "plugins.flow.shape.kind (line 3): expected 'box', 'ball', got 'bal' (did you mean 'ball'?) [budwood-flow 0.3]"
    ),
    "plugins: {flow: {shape: {kind: ball, radus: 1, radius: 2}}}": (
        "plugins.flow.shape.radus (line 3): unknown key (did you mean 'radius'?) [budwood-flow 0.3]"
    ),
    "plugins: {flow: {shape: {kind: ball, size: 1, radius: 2}}}": (
        "plugins.flow.shape.size (line 3): belongs to kind: box, and plugins.flow.shape.kind (line 3) is ball, which takes "
        "radius, label [budwood-flow 0.3]"
    ),
    "plugins: {flow: {noise: '0.1'}}": (
        "plugins.flow.noise (line 3): expected a number, got the text '0.1' [budwood-flow 0.3]"
    ),
    "plugins: {flow: {outer_every: 2.5}}": (
        "plugins.flow.outer_every (line 3): expected a whole number, got 2.5 [budwood-flow 0.3]"
    ),
    "plugins: {flow: {outer_every: 0}}": (
        "plugins.flow.outer_every (line 3): must be greater than 0, got 0 [budwood-flow 0.3]"
    ),
    "plugins: {flow: {limit: [1]}}": (
        "plugins.flow.limit (line 3): expected a whole number or text, got a list [budwood-flow 0.3]"
    ),
    "plugins: {flow: {mode: fas}}": (
        "plugins.flow.mode (line 3): expected 'slow' or 'fast', got the text 'fas' (did you mean 'fast'?) [budwood-flow 0.3]"
    ),
    "plugins: {flow: {pair: [1, 2, 3]}}": "plugins.flow.pair (line 3): takes at most 2 items [budwood-flow 0.3]",
    "plugins: {flow: {pair: 1}}": "plugins.flow.pair (line 3): expected a list, got 1 [budwood-flow 0.3]",
    "plugins: {flow: {noise: -1}}": "plugins.flow (line 3): noise below zero makes no sense [budwood-flow 0.3]",
    "plugins: {flow: {api_token: 12345}}": (
        "plugins.flow.api_token (line 3): expected text, got something else (not shown, being secret) [budwood-flow 0.3]"
    ),
    "plugins: {flow: 3}": "plugins.flow (line 3): expected keys with values, got 3 [budwood-flow 0.3]",
    "checkpoint: {every: yes}": "checkpoint.every (line 3): expected a whole number, got true",
    "checkpoint: {replay_buffer: 1}": "checkpoint.replay_buffer (line 3): expected true or false, got 1",
    "tracking: {tags: {trial: 3}}": "tracking.tags.trial (line 3): expected text, got 3",
    "tracking: null": "tracking (line 3): expected keys with values, got nothing",
    "output: ''": "output (line 3): needs at least 1 character",
    "seed: -1": "seed (line 3): must be at least 0, got -1",
    "seed: 4294967296": "seed (line 3): must be less than 4294967296, got 4294967296",
    "name: a/b": (
        "name (line 3): a name starts with a letter or digit and goes on with letters, digits, '.', '_' and '-'"
    ),
    "device: gpu": "device (line 3): expected auto, cpu, cuda, cuda:N, mps or xpu",
    "precision: double": "precision (line 3): expected 'fp32', 'tf32' or 'bf16', got the text 'double'",
}


@pytest.mark.parametrize("line", WRONG)
def test_one_thing_wrong(tmp_path: Path, activation: Activation, line: str) -> None:
    plugins = "" if line.startswith("plugins") else "plugins: {flow: {}, bare_one: {}}"
    wanted = line if plugins or "bare_one" in line else f"{line.removesuffix('}')}, bare-one: null}}"
    path = written(tmp_path, f"{MINIMAL}{wanted}\n{plugins}\n")
    assert refused(lambda: config.resolve(config.load(path), activation), tmp_path) == (
        f"run.yaml: the configuration has 1 problem.\n  - {WRONG[line]}"
    )


def test_all_errors_at_once_in_the_order_of_the_file(tmp_path: Path, activation: Activation) -> None:
    text = """\
trainer:
  kind: rootstock
  total_steps: 3
env: {id: 7}
plugins:
  flow:
    noise: much
    terms:
      - {kind: box}
      - {kind: box, size: big}
  bare-one: {}
sedd: 1
"""
    loaded = config.load(written(tmp_path, text), ["checkpoint.keep=0", "env.n_envs=two"])
    assert refused(lambda: config.resolve(loaded, activation), tmp_path) == (
        "run.yaml: the configuration has 8 problems.\n"
        "  - trainer.total_timesteps (line 1): is required [budwood-rootstock 2.0]\n"
        "  - trainer.total_steps (line 3): unknown key (did you mean 'total_timesteps'?) [budwood-rootstock 2.0]\n"
        "  - env.id (line 4): expected text, got 7 [budwood-rootstock 2.0]\n"
        "  - plugins.flow.noise (line 7): expected a number, got the text 'much' [budwood-flow 0.3]\n"
        "  - plugins.flow.terms[1].size (line 10): expected a whole number, got the text 'big' [budwood-flow 0.3]\n"
        "  - sedd (line 12): unknown key (did you mean 'seed'?)\n"
        "  - env.n_envs (override): expected a whole number, got the text 'two' [budwood-rootstock 2.0]\n"
        "  - checkpoint.keep (override): must be greater than 0, got 0"
    )


def test_the_place_is_where_the_value_was_last_written(site: Any, tmp_path: Path, activation: Activation) -> None:
    text = f"{MINIMAL}plugins:\n  flow:\n    noise: 1\n    mode: 3\n  bare-one:\n"
    loaded = config.load(
        written(tmp_path, text), ["plugins.flow={noise: much}", "trainer.total_timesteps=1.5", "env={}"]
    )
    with pytest.raises(ConfigError) as caught:
        config.resolve(loaded, activation)
    assert list(caught.value.problems) == [
        "trainer.total_timesteps (override): expected a whole number, got 1.5 [budwood-rootstock 2.0]",
        "env.id (override): is required [budwood-rootstock 2.0]",
        "plugins.flow.noise (override): expected a number, got the text 'much' [budwood-flow 0.3]",
    ]
    loaded = config.load(written(tmp_path, "trainer: {kind: none}\n"), ["trainer.args.a=1", "plugins.no.a=1"])
    with pytest.raises(ConfigError) as caught:
        config.names(loaded)
    assert [problem.partition(":")[0] for problem in caught.value.problems] == [
        "trainer.kind (line 1)",
        "plugins.no (override)",
    ]


def test_a_choice_that_an_override_changed_leaves_the_files_keys_behind(tmp_path: Path, activation: Activation) -> None:
    shape = "{kind: box, size: 4, label: x}"
    path = written(tmp_path, f"{MINIMAL}plugins:\n  bare_one: {{}}\n  flow:\n    shape: {shape}\n")
    given = ["plugins.flow.shape.kind=ball", "plugins.flow.shape.radius=2"]
    with pytest.raises(ConfigError) as caught:
        config.resolve(config.load(path, given), activation)
    advice = "plugins.flow.shape={kind: ball, radius: 2, label: x}"
    assert list(caught.value.problems) == [
        "plugins.flow.shape.size (line 6): belongs to kind: box, and plugins.flow.shape.kind (override) is ball, which takes "
        f"radius, label; to leave the file's keys behind, give the whole section: '{advice}' [budwood-flow 0.3]"
    ]
    assert config.resolve(config.load(path, [advice]), activation).section("flow").shape == Ball(
        kind="ball", radius=2.0, label="x"
    )
    with pytest.raises(ConfigError) as caught:
        config.resolve(config.load(path, ["plugins.flow.shape.radius=2"]), activation)
    assert list(caught.value.problems) == [
        "plugins.flow.shape.radius (override): belongs to kind: ball, and plugins.flow.shape.kind (line 6) is box, which takes "
        "size, label [budwood-flow 0.3]"
    ]


def test_credentials_in_a_wrong_value_are_not_shown(alone: Activation) -> None:
    source = {"trainer": {"kind": "rootstock", "total_timesteps": "https://me:hunter2@host/x"}, "env": {"id": "a"}}
    text = refused(lambda: config.resolve(config.load(source), alone))
    assert "the text 'https://***@host/x'" in text
    assert "hunter2" not in text


def test_a_validator_that_crashes_names_its_plugin(activation: Activation) -> None:
    source = {**read(MINIMAL, "x")[0], "plugins": {"flow": {"noise": 101}, "bare_one": {}}}
    with pytest.raises(PluginError) as caught:
        config.resolve(config.load(source), activation)
    assert str(caught.value) == (
        "plugins.flow: checking its options raised RuntimeError: a bug of the plugin. Asked for by budwood-flow 0.3. "
        "Report this to its author."
    )


def test_a_validator_may_speak_for_itself(activation: Activation) -> None:
    source = {**read(MINIMAL, "x")[0], "plugins": {"flow": {"noise": 99}, "bare_one": {}}}
    with pytest.raises(PluginError, match=r"^plugins.flow.noise: its data set is gone.$"):
        config.resolve(config.load(source), activation)


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


# ---- secrets ----------------------------------------------------------------------------------------------------


def test_redact() -> None:
    data = {
        "hub_token": "a",
        "API-KEY": "b",
        "apiKey": "c",
        "db": [{"password": 5}, {"client_secret": {"x": "y"}}],
        "uri": "postgresql://me:p@ss@host/db?x=1",
        "query": "https://host/x?a=1&api_key=abc&b=2",
        "note": "see https://me:pw@one/ and https://two/",
        "typed": SecretStr("z"),
        "tokens": 7,
        "max_new_tokens": 9,
        "token": None,
        "use_token": True,
        "file": "sqlite:///a@b.db",
        "mail": "a@b.c",
    }
    assert redact(data) == {
        "hub_token": "***",
        "API-KEY": "***",
        "apiKey": "***",
        "db": [{"password": "***"}, {"client_secret": "***"}],
        "uri": "postgresql://***@host/db?x=1",
        "query": "https://host/x?a=1&api_key=***&b=2",
        "note": "see https://***@one/ and https://two/",
        "typed": "***",
        "tokens": 7,
        "max_new_tokens": 9,
        "token": None,
        "use_token": True,
        "file": "sqlite:///a@b.db",
        "mail": "a@b.c",
    }
    assert data["hub_token"] == "a"
    assert redact(redact(data)) == redact(data)


def test_a_key_of_another_choice_is_told_wherever_the_tag_stands() -> None:
    class Ball(BaseModel):
        model_config = ConfigDict(extra="forbid")
        mode: Literal["soft", "hard"] = "soft"
        kind: Literal["ball"]

    class Box(BaseModel):
        kind: Literal["box"]
        size: int

    class Toys(BaseModel):
        shape: Annotated[Ball | Box, Field(discriminator="kind")]

    data = {"shape": {"kind": "ball", "size": 3}}
    with pytest.raises(ValidationError) as caught:
        Toys.model_validate(data)
    (told,) = config_messages.explain(caught.value, Toys, data, lambda path: "", {})
    assert told == "shape.size: belongs to kind: box, and shape.kind is ball, which takes mode"
