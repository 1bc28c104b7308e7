"""Whole runs of the shipped configuration in LeRobot's online loop: a tiny SmolVLA on PushT, with pictures."""

import json
import math
from base64 import b64encode
from pathlib import Path

import pytest
import yaml

pytest.importorskip("lerobot")
pytest.importorskip("gym_pusht")
from safetensors.torch import load_file

import budwood
from budwood.testing import check_plugin
from budwood_flow_rl.vla.learning import FlowVLALearning
from budwood_lerobot import tiny

ROOT = Path(__file__).parents[3]
SMALL = {"total_steps": 12, "rollout": 2, "epochs": 2, "minibatch": 2, "learning_rate": 1e-4}
"""Three updates of four decisions, the first of the critic alone."""


@pytest.fixture(scope="module")
def policy(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("policies") / "smolvla"
    assert tiny.write(folder) < 300_000
    return folder


def config(policy: Path, output: Path, **section):
    made = yaml.safe_load((ROOT / "configs" / "flow_rl" / "smolvla_pusht.yaml").read_text())
    made["trainer"] |= SMALL
    made["trainer"]["policy"]["path"] = str(policy)
    made["plugins"]["flow_vla"] |= section
    return {
        **made,
        "output": str(output),
        "device": "cpu",
        "env": {"type": "pusht", "n_envs": 2, "episode_length": 20},
        "evaluation": {"every": 12, "episodes": 1},
        "checkpoint": {"every": 4, "keep": 2},
        "tracking": {"enabled": False},
    }


def test_contract():
    """Its distribution carries the name of the other plugin in it: the one thing that is remarked."""
    remarks = [finding.what for finding in check_plugin("flow_vla") if finding.level != "ok"]
    assert remarks == ["the distribution is called 'budwood-flow-rl'"]


def logged(result) -> dict[tuple[int, str], float]:
    """(step, name) -> value of everything that does not measure time."""
    numbers = {}
    for line in Path(result.paths["events"]).read_text().splitlines():
        event = json.loads(line)
        if event["kind"] == "metrics":
            numbers |= {(event["step"], name): value for name, value in event["data"].items()}
    return {key: value for key, value in numbers.items() if not key[1].startswith("time/")}


def series(result, name) -> list[float]:
    return [value for (_, key), value in sorted(logged(result).items()) if key == f"flow_vla/{name}"]


def killed_in_last_update(monkeypatch, made):
    """The folder of a run whose process dies after its last rollout."""
    original = FlowVLALearning.on_rollout_end

    def dying(self, control, rollout):
        if control.steps == 8:
            raise KeyboardInterrupt
        original(self, control, rollout)

    with monkeypatch.context() as patched:
        patched.setattr(FlowVLALearning, "on_rollout_end", dying)
        with pytest.raises(KeyboardInterrupt):
            budwood.run(made)
    (folder,) = Path(made["output"]).iterdir()
    return folder


NOISE = {"kernel": {"name": "noisy_euler"}, "noise_schedule": "learn_decay"}
SECTIONS = [
    pytest.param({}, (0.5, 0.5), id="hybrid sde"),
    pytest.param(NOISE, (0.08, 0.16), id="noise", marks=pytest.mark.slow),
    pytest.param({"kernel": {"name": "flow_sde", "hybrid": False}}, (0.25, 0.5), id="full sde", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("section", "sigma"), SECTIONS)
def test_a_run_that_was_killed_goes_on_bit_for_bit_and_lerobot_loads_it(policy, tmp_path, monkeypatch, section, sigma):
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    whole = budwood.run(config(policy, tmp_path / "whole", **section))
    folder = killed_in_last_update(monkeypatch, config(policy, tmp_path / "parts", **section))
    resumed = budwood.resume(str(folder))
    weights, straight = (load_file(Path(result.paths["native"]) / "model.safetensors") for result in (resumed, whole))
    assert all(tensor.equal(weights[name]) for name, tensor in straight.items())
    start = load_file(policy / "model.safetensors")
    assert any(not tensor.equal(straight[name]) for name, tensor in start.items())
    assert all(tensor.equal(straight[name]) for name, tensor in start.items() if ".vlm." in name)
    assert same(logged(resumed), logged(whole))

    assert len(series(whole, "first_ratio_worst")) == 2, "of three updates one moved the critic alone"
    assert max(series(whole, "first_ratio_worst")) <= 1e-4, "minibatches are other splits than what was collected"
    for name in ("joint_kl", "clip_fraction"):
        assert len(series(whole, name)) == 2
    assert len(series(whole, "sigma_mean")) == 3
    assert all(sigma[0] - 1e-6 <= value <= sigma[1] + 1e-6 for value in series(whole, "sigma/step_0"))
    assert series(whole, "data_time") == [0.0], "random weights show nothing, and only the first rollout is looked at"
    page = Path(whole.paths["report"]).read_text()
    for text in ("Flow policy", "did not show which way time runs", "Noise of each step", "Joint KL", "CPU time"):
        assert text in page
    assert "in 12 decisions; the trainer, its total_steps" in page

    from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy

    assert SmolVLAPolicy.from_pretrained(whole.paths["native"]).config.num_steps == 4


def same(left, right) -> bool:
    """NaN, the explained variance of returns that do not vary, equals itself."""
    return left.keys() == right.keys() and all(
        value == right[key] or (math.isnan(value) and math.isnan(right[key])) for key, value in left.items()
    )


def test_films_show_an_episode_before_and_after_and_change_nothing(policy, tmp_path, monkeypatch):
    from PIL import Image, ImageSequence

    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    plain, filmed = (budwood.run(config(policy, tmp_path / str(film), film=film)) for film in (False, True))
    folder, page = Path(filmed.paths["folder"]), Path(filmed.paths["report"]).read_text()
    shown = []
    for name in ("rollout_before.gif", "rollout_after.gif"):
        with Image.open(folder / name) as film:
            frames = [(frame.info["duration"], frame.convert("RGB")) for frame in ImageSequence.Iterator(film)]
        assert frames[0][1].size == (320, 320)
        assert sum(duration for duration, _ in frames) == 21 * 100, "ten a second: the first state and twenty steps"
        shown.append(frames[0][1].tobytes())
        assert b64encode((folder / name).read_bytes()).decode() in page
    assert shown[0] == shown[1], "the same episode"
    assert len({(folder / name).read_bytes() for name in ("rollout_before.gif", "rollout_after.gif")}) == 2
    assert "a frame a step of the environment" in page
    assert "image/gif" not in Path(plain.paths["report"]).read_text()
    weights, others = (load_file(Path(result.paths["native"]) / "model.safetensors") for result in (filmed, plain))
    assert all(tensor.equal(weights[name]) for name, tensor in others.items())
    assert same(logged(filmed), logged(plain))
