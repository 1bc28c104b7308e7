"""A policy that knows nothing of Stable-Baselines3 trains in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import nn

from budwood.api import ConfigError, ContributionError, hookimpl

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


class Gaussian(nn.Module):
    """Linear mean, fixed width, linear value."""

    def __init__(self, observations: Any, actions: Any) -> None:
        super().__init__()
        self.mean, self.baseline = (
            nn.Linear(gym.spaces.flatdim(observations), actions.shape[0]),
            nn.Linear(gym.spaces.flatdim(observations), 1),
        )

    def _distribution(self, obs: Any) -> Any:
        return torch.distributions.Normal(self.mean(obs), 0.5)

    def act(self, obs: Any, deterministic: bool = False) -> Any:
        distribution = self._distribution(obs)
        action = distribution.mean if deterministic else distribution.sample()
        return action, distribution.log_prob(action).sum(1), self.value(obs)

    def evaluate(self, obs: Any, actions: Any) -> Any:
        distribution = self._distribution(obs)
        return distribution.log_prob(actions).sum(1), distribution.entropy().sum(1), self.value(obs)

    def value(self, obs: Any) -> Any:
        return self.baseline(obs)[:, 0]


class Choice(Gaussian):
    """The same over three actions."""

    def __init__(self, observations: Any, actions: Any) -> None:
        super().__init__(observations, gym.spaces.Box(-1, 1, (int(actions.n),)))

    def _distribution(self, obs: Any) -> Any:
        return torch.distributions.Categorical(logits=self.mean(obs))

    def act(self, obs: Any, deterministic: bool = False) -> Any:
        distribution = self._distribution(obs)
        action = distribution.mode if deterministic else distribution.sample()
        return action[:, None], distribution.log_prob(action), self.value(obs)

    def evaluate(self, obs: Any, actions: Any) -> Any:
        assert actions.shape[1] == 1
        return self._distribution(obs).log_prob(actions[:, 0]), None, self.value(obs)


class WithoutCritic(Gaussian):
    def act(self, obs: Any, deterministic: bool = False) -> Any:
        return *super().act(obs, deterministic)[:2], None


class Neutral:
    def __init__(self, factory: Any) -> None:
        self.factory = factory

    @hookimpl
    def build_policy(self, run: Any) -> Any:
        return self.factory


def run_for(make_run: Any, algo: str = "ppo", env: str = "Point-v0", **args: Any) -> Any:
    own = {"n_steps": 32, "batch_size": 32, "n_epochs": 4} if algo == "ppo" else {"n_steps": 32}
    return make_run({"algo": algo, "args": {**own, **args}, "total_timesteps": 128}, {"id": env, "n_envs": 2})


@pytest.mark.parametrize("algo", ["ppo", "a2c"])
@pytest.mark.parametrize(("env", "factory"), [("Point-v0", Gaussian), ("PointDiscrete-v0", Choice)])
def test_it_trains(algo: str, env: str, factory: Any, make_run: Any, train: Any, events: Any) -> None:
    seen = events(rollouts=True)
    trainer = train(run_for(make_run, algo, env), Neutral(factory), events=seen)
    network = trainer.native.policy.network
    assert isinstance(network, factory)
    torch.manual_seed(0)
    assert not torch.equal(
        network.mean.weight, factory(trainer.native.observation_space, trainer.native.action_space).mean.weight
    )
    assert trainer.evaluate(2, 1).lengths.tolist()
    rollout = seen.shown[0]
    assert np.isfinite(rollout.advantages).all()
    trainer.reset_policy(3)
    assert trainer.native.policy.network is not network


def test_stored_log_probabilities_are_those_of_evaluate(make_run: Any, train: Any, events: Any) -> None:
    class Looking(events):  # type: ignore[misc]
        def rollout_end(self, rollout: Any) -> None:
            obs, actions = torch.as_tensor(rollout.obs).flatten(0, 1), torch.as_tensor(rollout.actions).flatten(0, 1)
            self.pair = (
                rollout.log_prob(obs, actions).detach(),
                torch.as_tensor(self.model().rollout_buffer.log_probs).flatten(),
            )

    from budwood_sb3.trainer import build

    run = run_for(make_run)
    looking = Looking(rollouts=True)
    trainer = build(run, _contributions(run, Neutral(Gaussian)))
    looking.model = lambda: trainer.native
    trainer.fit(looking)
    assert looking.pair[0] == pytest.approx(looking.pair[1], abs=1e-6)


def _contributions(run: Any, plugin: Any) -> Any:
    from budwood.api import Contributed, Contributions

    return Contributions(policy=Contributed(plugin.build_policy(run), "neutral", "budwood-neutral 1.0"))


def test_it_goes_on_from_a_checkpoint_and_is_exported(
    make_run: Any, train: Any, events: Any, same: Any, tmp_path: Path
) -> None:
    from stable_baselines3 import PPO

    from budwood_sb3.trainer import build

    run = run_for(make_run)
    first = build(run, _contributions(run, Neutral(Gaussian)))
    first.fit(events(at=lambda steps: False, every=64))
    saved = first.state_dict()
    second = build(run, _contributions(run, Neutral(Gaussian)))
    second.load_state_dict(saved)
    second.fit(events())
    whole = train(run, Neutral(Gaussian))
    assert same(second.native, whole.native)
    assert same(PPO.load(whole.export(tmp_path)), whole.native)


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        (
            lambda observations, actions: nn.Linear(2, 1),
            "plugins.neutral: the policy that build_policy made lacks act, evaluate, value. Asked for by budwood-neutral 1.0.",
        ),
        (
            lambda observations, actions: type(
                "Plain", (), {n: lambda self: None for n in ("act", "evaluate", "value")}
            )(),
            "plugins.neutral: the policy that build_policy made is no torch.nn.Module. Asked for by budwood-neutral 1.0.",
        ),
        (
            lambda observations, actions: type(
                "Empty", (nn.Module,), {n: lambda self: None for n in ("act", "evaluate", "value")}
            )(),
            "plugins.neutral: the policy that build_policy made has no parameters to train. Asked for by budwood-neutral 1.0.",
        ),
    ],
)
def test_what_is_no_policy_is_named(factory: Any, message: str, make_run: Any, train: Any) -> None:
    with pytest.raises(ContributionError) as raised:
        train(run_for(make_run), Neutral(factory))
    assert str(raised.value) == message


def test_options_of_another_policy_are_refused(make_run: Any, train: Any) -> None:
    with pytest.raises(
        ConfigError, match=r"^trainer.args: PPO refuses its arguments: .*unexpected keyword argument 'net_arch'"
    ):
        train(run_for(make_run, policy_kwargs={"net_arch": [8]}), Neutral(Gaussian))
    with pytest.raises(ConfigError, match=r"^trainer.args: PPO refuses its arguments: use_sde needs a Gaussian policy"):
        train(run_for(make_run, use_sde=True), Neutral(Gaussian))


class TwoRates(Gaussian):
    """The value learns at three times the rate of the mean."""

    scale = 3.0

    def param_groups(self) -> Any:
        return [
            {"params": list(self.mean.parameters()), "lr_scale": 1.0},
            {"params": list(self.baseline.parameters()), "lr_scale": self.scale},
        ]


@pytest.mark.parametrize("algo", ["ppo", "a2c"])
def test_parameter_groups_keep_the_proportion_of_their_rates(
    algo: str, make_run: Any, train: Any, events: Any, same: Any
) -> None:
    rates = []

    class Looking(events):  # type: ignore[misc]
        def boundary(self, steps: int) -> bool:
            rates.append([group["lr"] for group in self.model().policy.optimizer.param_groups])
            return bool(super().boundary(steps))

    from budwood_sb3.trainer import build

    run = run_for(make_run, algo, learning_rate={"linear": [0.01, 0.0]})
    trainer = build(run, _contributions(run, Neutral(TwoRates)))
    seen = Looking(at=lambda steps: True, every=64)
    seen.model = lambda: trainer.native
    assert [group["lr"] for group in trainer.native.policy.optimizer.param_groups] == pytest.approx([0.01, 0.03])
    trainer.fit(seen)
    assert len({actor for actor, _ in rates}) > 1
    assert all(critic == pytest.approx(3 * actor) for actor, critic in rates)


def test_equal_rates_in_groups_are_those_of_a_policy_without(make_run: Any, train: Any, same: Any) -> None:
    class Ones(TwoRates):
        scale = 1.0

    grouped, plain = (train(run_for(make_run), Neutral(factory)).native for factory in (Ones, Gaussian))
    assert all(tensor.equal(grouped.policy.state_dict()[name]) for name, tensor in plain.policy.state_dict().items())


def test_a_policy_without_a_critic_is_refused(make_run: Any, train: Any) -> None:
    with pytest.raises(ContributionError, match="gives no value, and Stable-Baselines3's on-policy algorithms need"):
        train(run_for(make_run), Neutral(WithoutCritic))


def test_the_size_of_a_critics_gradient_does_not_change_the_actors_step(make_run: Any, train: Any) -> None:
    """Clipped together, a critic whose returns are in the thousands would leave nothing of the actor's gradient."""
    from types import SimpleNamespace

    from budwood_sb3.pieces import Piece, Whole
    from budwood_sb3.updates import _step

    moved = []
    for size in (1.0, 1e6):
        policy = train(run_for(make_run), Neutral(TwoRates)).native.policy
        before = policy.network.mean.weight.detach().clone()
        _, value, log_prob = policy(torch.ones(4, *policy.observation_space.shape))
        model = SimpleNamespace(policy=policy, max_grad_norm=0.5, _pieces=Whole())
        _step(model, 100 * log_prob.mean() + size * value.mean(), Piece(None, log_prob))
        moved.append(policy.network.mean.weight.detach() - before)
    assert moved[0].abs().max() > 0
    torch.testing.assert_close(moved[0], moved[1], rtol=0, atol=0)
