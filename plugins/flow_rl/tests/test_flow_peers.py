"""Peers of flows, a Gaussian and a diffusion policy, through the same demonstrations and the same PPO."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from torch.nn import functional

pytest.importorskip("budwood_sb3")

from budwood import run
from budwood.api import ConfigError
from budwood_flow_rl import exporting, point
from budwood_flow_rl.chains import log_prob, rollout
from budwood_flow_rl.config import FlowConfig
from budwood_flow_rl.evaluation import evaluate
from budwood_flow_rl.gaussian import Gaussian
from budwood_flow_rl.kernels import NoisyEuler
from budwood_flow_rl.noise import NoiseNet
from budwood_flow_rl.pretraining import Pretraining, Settings
from budwood_flow_rl.saved import load_flow

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Folders of small policies cloned from walks to both modes, by family."""
    folder, walks = tmp_path_factory.mktemp("peers"), point.demonstrations()
    for family, steps in (("gaussian", 300), ("diffusion", 600)):
        settings = Settings(family=family, horizon=4, hidden=(64, 64, 64), steps=steps, batch=128, held_out=0.0)
        Pretraining(folder / family, walks, settings).run()
    return folder


def section(folder, output, **settings):
    return {
        "trainer": {"kind": "sb3", "algo": "ppo", "total_timesteps": 1_536, "args": {"n_steps": 32, "batch_size": 128}},
        "env": {"id": "budwood_flow_rl.point:TwoModes", "n_envs": 16},
        "device": "cpu",
        "output": str(output),
        "plugins": {"flow_rl": {"init": str(folder), "schedule": {"critic_warmup": 0}, **settings}},
        "evaluation": {"every": 512, "episodes": 10},
        "tracking": {"enabled": False},
    }


def test_one_step_of_a_gaussian_lands_on_its_mean_from_anywhere():
    torch.manual_seed(0)
    field, o = Gaussian(3, 2, 2, hidden=(16, 16, 16)), torch.randn(5, 3)
    kernel = NoisyEuler(1, NoiseNet(field.feat_dim, 2, 2, (8,), 0.1, 0.2))
    ends = [rollout(field, kernel, o, torch.randn(5, 2, 2), noise_free=True).actions for _ in range(2)]
    torch.testing.assert_close(*ends)
    chain = rollout(field, kernel, o)
    sigma = kernel.noise(torch.cat([field.time(torch.zeros(5, 1)), o], dim=1))
    exact = torch.distributions.Normal(ends[0], sigma).log_prob(chain.actions)
    torch.testing.assert_close(log_prob(field, kernel, chain, o).steps[:, 0], exact, rtol=0, atol=1e-5)


def test_a_gaussian_is_cloned_by_regression():
    torch.manual_seed(0)
    field, o, actions = Gaussian(3, 2, 2, hidden=(16, 16, 16)), torch.randn(64, 3), torch.randn(64, 2, 2)
    mean = field.velocity(torch.zeros(64, 2, 2), torch.zeros(64), o)[0]
    torch.testing.assert_close(field.pretrain_loss(actions, o), functional.mse_loss(mean, actions))


def test_regression_averages_two_modes_and_diffusion_keeps_them(saved):
    """The mean of walks to (-1, 0) and (1, 0) goes nowhere, and earns next to nothing."""
    earned = {
        family: evaluate(load_flow(saved / family), episodes=60).returns.mean() for family in ("gaussian", "diffusion")
    }
    assert earned["gaussian"] < 0.2
    assert earned["diffusion"] > 0.3


def test_a_peer_is_evaluated_with_its_own_steps_only(saved):
    with pytest.raises(ConfigError, match="the saved gaussian policy takes 1 steps, not 4"):
        evaluate(load_flow(saved / "gaussian"), episodes=1, steps=4)
    assert len(evaluate(load_flow(saved / "diffusion"), episodes=1, steps=10).returns) == 1
    with pytest.raises(ConfigError, match="the saved diffusion policy takes 10 steps, not 5"):
        evaluate(load_flow(saved / "diffusion"), episodes=1, steps=5)


@pytest.mark.parametrize(
    ("family", "settings", "used"),
    [("gaussian", {}, (1, "noisy_euler")), ("diffusion", {"clip": {"discount": 0.99}}, (10, "ddpm"))],
)
def test_peers_are_fine_tuned_by_the_same_ppo_in_steps_of_their_own(saved, tmp_path, family, settings, used):
    found = run(section(saved / family, tmp_path, **settings))
    assert found.status == "finished"
    assert found.metrics["flow_rl/first_ratio_worst"] < 1e-4
    assert found.metrics["flow_rl/clip_fraction"] > 0
    kept = yaml.safe_load(Path(found.paths["config"]).read_text())["plugins"]["flow_rl"]
    assert (kept["steps"], kept["kernel"]["name"]) == used, "what was used is written down, and resumed with"
    assert exporting.of_run(found.paths["folder"]).field.name == family


@pytest.mark.parametrize("text", ["", "[]", "3", '{"family": "diffusion"}', '{"family": "shortcut"}'])
def test_what_says_nothing_of_a_peer_changes_nothing(tmp_path, text):
    (tmp_path / "flow.json").write_text(text)
    for folder in (tmp_path, tmp_path / "nowhere"):
        made = FlowConfig(init=str(folder))
        assert (made.steps, made.kernel.name) == (4, "noisy_euler")


@pytest.mark.parametrize(
    ("family", "settings", "words"),
    [
        (
            "diffusion",
            {"kernel": {"name": "noisy_euler"}},
            "noisy_euler cannot step with a saved policy of the family diffusion",
        ),
        ("diffusion", {"steps": 4, "kernel": {"name": "ddpm"}}, "takes 10 steps, not 4"),
        ("gaussian", {"steps": 4}, "takes 1 steps, not 4"),
        (
            "gaussian",
            {"steps": 1, "kernel": {"name": "ddpm"}},
            "ddpm cannot step with a saved policy of the family gaussian",
        ),
    ],
)
def test_kernels_that_do_not_fit_are_refused(saved, tmp_path, family, settings, words):
    with pytest.raises(ConfigError, match=words):
        run(section(saved / family, tmp_path, **settings))
