"""Every message for what does not fit a configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from rootstock import MINIMAL, Ball, refused, written

from budwood import config, config_messages
from budwood.api import ConfigError, PluginError
from budwood.plugins import Activation
from budwood.yaml_io import read

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
