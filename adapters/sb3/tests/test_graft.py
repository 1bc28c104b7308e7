"""Plugins in a user's own script: a class that stays the class it was, and a model that is already built."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3 import DQN, PPO, SAC, HerReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecFrameStack, VecNormalize

from budwood.api import (
    BindingError,
    Contributed,
    Contributions,
    Evaluator,
    Graft,
    LossTerm,
    RewardTerm,
    RunCallback,
)
from budwood.progress import silent
from budwood.rhythm import Rhythm
from budwood.session import Session
from budwood_sb3 import vec
from budwood_sb3.graft import build, graft_capabilities

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

ROLLOUTS: dict[str, Any] = {"n_steps": 16, "batch_size": 16, "n_epochs": 1, "seed": 0, "device": "cpu"}
REPLAY: dict[str, Any] = {"learning_starts": 10, "batch_size": 8, "buffer_size": 200, "seed": 0}
SPEED = RewardTerm("speed", info_key="speed", weight=0.1)


class Log:
    def __init__(self, log: Any) -> None:
        self.metrics = log

    def flush(self) -> None: ...


def grafted(target: Any, make: Any) -> Any:
    """``target`` with what ``make()`` gives, through core's own session."""

    def events(trainer: Any, contributions: Any, log: Any) -> Any:
        return Session(trainer, contributions, Log(log), silent(), Rhythm())

    return build(Graft(make, events), target)


def own(value: Any) -> Contributed[Any]:
    return Contributed(value, "shape", "budwood-shape 1.0")


def terms(weight: float = 0.1, **more: Any) -> Any:
    return lambda: Contributions(reward_terms=[own(RewardTerm("speed", info_key="speed", weight=weight))], **more)


def points(n: int = 2, name: str = "Point-v0") -> Any:
    return make_vec_env(name, n_envs=n, seed=0)


def same(first: Any, second: Any) -> bool:
    one, two = first.policy.state_dict(), second.policy.state_dict()
    return all(torch.equal(one[name], two[name]) for name in one)


# ---- a class -------------------------------------------------------------------------------------------------------


def test_a_grafted_class_looks_and_is_used_like_the_class() -> None:
    Grafted = grafted(PPO, terms())
    assert (Grafted.__name__, Grafted.__module__, Grafted.__qualname__) == ("PPO", PPO.__module__, "PPO")
    assert issubclass(Grafted, PPO)
    model = Grafted("MlpPolicy", "Point-v0", **ROLLOUTS)
    assert model.learn(64) is model
    assert isinstance(model.env, vec.TermVecEnv)
    assert model.rollout_buffer.terms.shape == (16, 1, 2)


def test_grafting_nothing_is_the_class_itself() -> None:
    bare = PPO("MlpPolicy", points(), **ROLLOUTS).learn(96)
    model = grafted(PPO, Contributions)("MlpPolicy", points(), **ROLLOUTS).learn(96)
    assert same(model, bare)
    zero = grafted(PPO, terms(weight=0.0))("MlpPolicy", points(), **ROLLOUTS).learn(96)
    assert same(zero, bare)
    assert not same(grafted(PPO, terms(weight=1.0))("MlpPolicy", points(), **ROLLOUTS).learn(96), bare)


def test_terms_go_inside_the_normalisation_of_the_user() -> None:
    env = VecNormalize(points(), norm_reward=True)
    model = grafted(SAC, terms())("MlpPolicy", env, **REPLAY).learn(40)
    assert model.env is env
    assert isinstance(env.venv, vec.TermVecEnv)
    assert model.replay_buffer.terms.shape == (100, 2, 2)


def test_every_model_has_contributions_of_its_own() -> None:
    made = []

    def make() -> Contributions:
        made.append(terms()())
        return made[-1]

    Grafted = grafted(PPO, make)
    first, second = (Grafted("MlpPolicy", points(), **ROLLOUTS) for _ in range(2))
    assert first.env.contributions is made[-2]
    assert second.env.contributions is made[-1]


def test_environments_of_another_grafted_model_are_refused() -> None:
    Grafted = grafted(PPO, terms())
    model = Grafted("MlpPolicy", points(), **ROLLOUTS)
    with pytest.raises(BindingError) as raised:
        Grafted("MlpPolicy", model.get_env(), **ROLLOUTS)
    assert str(raised.value) == (
        "env: these environments already carry the reward terms of another grafted model. Make environments of its own for "
        "each model."
    )


def test_losses_advantage_and_policy() -> None:
    bare = PPO("MlpPolicy", points(), **ROLLOUTS).learn(64)
    push = own(LossTerm("push", lambda inputs: -inputs.log_prob.mean()))
    assert not same(
        grafted(PPO, lambda: Contributions(loss_terms=[push]))("MlpPolicy", points(), **ROLLOUTS).learn(64), bare
    )
    flat = Contributions(advantage=own(lambda inputs: np.zeros_like(inputs.values)))
    model = grafted(PPO, lambda: flat)("MlpPolicy", points(), **ROLLOUTS).learn(64)
    assert (model.rollout_buffer.returns == model.rollout_buffer.values).all()


class Linear(torch.nn.Module):
    """The smallest neutral policy."""

    def __init__(self, observations: Any, actions: Any) -> None:
        super().__init__()
        self.mean, self.baseline = torch.nn.Linear(2, 1), torch.nn.Linear(2, 1)

    def act(self, obs: Any, deterministic: bool = False) -> Any:
        around = torch.distributions.Normal(self.mean(obs), 0.5)
        action = around.mean if deterministic else around.sample()
        return action, around.log_prob(action), self.value(obs)

    def evaluate(self, obs: Any, actions: Any) -> Any:
        around = torch.distributions.Normal(self.mean(obs), 0.5)
        return around.log_prob(actions), around.entropy(), self.value(obs)

    def value(self, obs: Any) -> Any:
        return self.baseline(obs)


def test_a_policy_of_a_plugin_is_saved_without_it(tmp_path: Path) -> None:
    Grafted = grafted(PPO, lambda: Contributions(policy=own(Linear)))
    model = Grafted("MlpPolicy", points(), **ROLLOUTS).learn(64)
    assert isinstance(model.policy.network, Linear)
    assert model.policy_class is PPO.policy_aliases["MlpPolicy"]
    model.save(tmp_path / "model")
    assert same(Grafted.load(tmp_path / "model"), model)


class Watching(RunCallback):
    def __init__(self, stop_at: int = 1 << 60, evaluate: bool = False) -> None:
        self.stop_at, self.evaluate = stop_at, evaluate
        self.seen: list[Any] = []

    def on_run_start(self, control: Any) -> None:
        self.seen.append(("start", control.total_steps, control.n_envs))

    def on_rollout_end(self, control: Any, rollout: Any) -> None:
        self.seen.append("rollout")

    def on_update_end(self, control: Any) -> None:
        self.seen.append(control.steps)
        control.log({"shape/steps": control.steps})
        if self.evaluate:
            self.seen.append(control.evaluate(2, 5).lengths.tolist())
        if control.steps >= self.stop_at:
            control.stop("enough")

    def on_run_end(self, control: Any) -> None:
        self.seen.append("end")


class Counting(BaseCallback):
    def _on_step(self) -> bool:
        return True


def test_callbacks_follow_learn_beside_those_of_the_user() -> None:
    watching, mine = Watching(), Counting()
    model = grafted(PPO, lambda: Contributions(callbacks=[own(watching)]))("MlpPolicy", points(), **ROLLOUTS)
    model.learn(64, callback=mine)
    assert watching.seen == [("start", 64, 2), "rollout", 32, "rollout", 64, "end"]
    assert mine.n_calls == 32
    watching.seen.clear()
    model.learn(32, callback=[mine], reset_num_timesteps=False)
    assert watching.seen == [("start", 96, 2), "rollout", 96, "end"]
    watching.seen.clear()
    model.learn(32, callback=lambda locals_, globals_: True)
    assert watching.seen == [("start", 32, 2), "rollout", 32, "end"]


def test_a_callback_may_stop_and_evaluate_on_environments_of_its_own() -> None:
    watching = Watching(stop_at=32, evaluate=True)
    env = VecNormalize(points(), norm_reward=False)
    model = grafted(PPO, lambda: Contributions(callbacks=[own(watching)]))("MlpPolicy", env, **ROLLOUTS)
    assert model.learn(320) is model
    assert watching.seen == [("start", 320, 2), "rollout", 32, [25, 25], "end"]
    assert model.num_timesteps == 32


def test_evaluators_run_at_their_pace() -> None:
    ran = []

    def run(control: Any) -> Any:
        from budwood.api import EvalReport

        ran.append(control.steps)
        return EvalReport({"height": 1.0})

    evaluator = own(Evaluator("height", every=64, run=run))
    grafted(PPO, lambda: Contributions(evaluators=[evaluator]))("MlpPolicy", points(), **ROLLOUTS).learn(160)
    assert ran == [64, 128, 160]


def test_what_plugins_log_and_the_terms_reach_the_logger_of_the_user(capsys: pytest.CaptureFixture[str]) -> None:
    make = terms(callbacks=[own(Watching())])
    grafted(PPO, make)("MlpPolicy", points(), **ROLLOUTS, verbose=1).learn(96)
    shown = capsys.readouterr().out
    assert "shape/" in shown
    assert "env.reward" in shown
    assert "shape.speed" in shown
    assert "ep_rew_mean" in shown


@pytest.mark.parametrize("where", ["Point", "stack", "nowrap"])
def test_where_environments_cannot_be_rebuilt_the_reason_is_said(where: str, point: Any) -> None:
    class Secret(gym.Wrapper):
        def __init__(self, env: Any) -> None:
            super().__init__(env)

    env, reason = {
        "Point": (lambda: make_vec_env(point, n_envs=1), "they were not made by gymnasium.make"),
        "stack": (lambda: VecFrameStack(points(1), 2), "VecFrameStack around them cannot be rebuilt"),
        "nowrap": (
            lambda: make_vec_env("Point-v0", wrapper_class=Secret),
            "the arguments of their wrapper Secret are not recorded",
        ),
    }[where]
    watching = Watching(evaluate=True)
    model = grafted(PPO, lambda: Contributions(callbacks=[own(watching)]))(
        "MlpPolicy", env(), **{**ROLLOUTS, "n_steps": 8}
    )
    with pytest.raises(BindingError) as raised:
        model.learn(8)
    assert raised.value.what == (
        f"an evaluation needs environments of its own, and the training ones cannot be rebuilt: {reason}"
    )


@pytest.mark.parametrize("cls", [PPO, SAC])
def test_saving_and_loading(cls: Any, tmp_path: Path) -> None:
    args = ROLLOUTS if cls is PPO else REPLAY
    Grafted = grafted(cls, terms(callbacks=[own(Watching())]))
    model = Grafted("MlpPolicy", points(), **args).learn(48)
    model.save(tmp_path / "model")
    plain = cls.load(tmp_path / "model")
    assert type(plain) is cls
    assert same(plain, model)
    assert not [name for name, value in vars(plain).items() if "budwood" in type(value).__module__]
    again = Grafted.load(tmp_path / "model", env=points())
    assert same(again, model)
    again.learn(48)
    assert isinstance(again.env, vec.TermVecEnv)
    if cls is SAC:
        model.save_replay_buffer(tmp_path / "buffer")
        again.load_replay_buffer(tmp_path / "buffer")
        assert (again.replay_buffer.terms == model.replay_buffer.terms).all()
        again.learn(20, reset_num_timesteps=False)


def test_other_environments_can_be_set() -> None:
    model = grafted(PPO, terms())("MlpPolicy", points(), **ROLLOUTS).learn(32)
    other = points()
    model.set_env(other)
    assert model.env.venv is other
    assert model.rollout_buffer._source is model.env
    model.learn(32)


# ---- an object -----------------------------------------------------------------------------------------------------


def test_a_built_model_is_bound_where_it_stands() -> None:
    fresh = grafted(PPO, terms(weight=1.0))("MlpPolicy", points(), **ROLLOUTS).learn(96)
    model = PPO("MlpPolicy", points(), **ROLLOUTS)
    assert grafted(model, terms(weight=1.0)) is model
    assert isinstance(model, PPO)
    assert type(model).__name__ == "PPO"
    assert same(model.learn(96), fresh)


def test_a_model_that_has_learned_goes_on() -> None:
    model = PPO("MlpPolicy", VecNormalize(points(), norm_reward=False), **ROLLOUTS).learn(64)
    seen: list[Any] = []
    term = RewardTerm("place", fn=lambda batch: seen.append(batch.obs.copy()) or batch.obs[:, 0])
    grafted(model, lambda: Contributions(reward_terms=[own(term)], callbacks=[own(Watching())]))
    raw = np.copy(model._last_original_obs)
    model.learn(32, reset_num_timesteps=False)
    assert (seen[0] == raw).all()
    assert model.num_timesteps == 96


def test_a_replay_buffer_with_experience_cannot_get_terms() -> None:
    model = DQN("MlpPolicy", points(1, "PointDiscrete-v0"), **REPLAY).learn(20)
    with pytest.raises(
        BindingError, match=r"^replay_buffer: the replay buffer holds experience without these reward terms"
    ):
        grafted(model, terms())
    assert type(model) is DQN
    assert vec.find(model.env) is None


class Goals(gym.Env):
    """The least that HerReplayBuffer accepts."""

    def __init__(self) -> None:
        box = gym.spaces.Box(-1, 1, (1,), np.float32)
        self.observation_space = gym.spaces.Dict(dict.fromkeys(("observation", "achieved_goal", "desired_goal"), box))
        self.action_space = box

    def reset(self, **kwargs: Any) -> Any:
        return self.observation_space.sample(), {}

    def compute_reward(self, achieved: Any, desired: Any, info: Any) -> Any:
        return np.zeros(len(achieved))


def test_imagined_goals_have_no_terms() -> None:
    model = SAC("MultiInputPolicy", Goals(), **REPLAY, replay_buffer_class=HerReplayBuffer)
    with pytest.raises(BindingError) as raised:
        grafted(model, terms())
    assert str(raised.value) == (
        "replay_buffer_class: HerReplayBuffer asks the environment for the rewards of imagined goals, which have no reward "
        "terms. Use another replay buffer, or no reward terms."
    )


def test_what_is_fixed_at_construction_is_not_graftable() -> None:
    model = PPO("MlpPolicy", points(), **ROLLOUTS)
    known = graft_capabilities(model)
    assert known is not None
    assert known.graftable == {"reward_terms", "reward_combination", "advantage", "callbacks", "evaluators"}
    assert {"loss_terms", "objective", "build_policy"} <= set(known.seams)
    assert known.refused["build_env"] == "a grafted script makes its own environments"


class OwnUpdate(PPO):
    def train(self) -> None: ...


def test_a_class_with_an_update_of_its_own_gets_no_loss() -> None:
    known = graft_capabilities(OwnUpdate)
    assert known is not None
    assert known.refused["loss_terms"] == "OwnUpdate has a train() of its own, which budwood cannot extend"
    assert "loss_terms" not in known.seams


def test_other_classes_are_not_ours() -> None:
    assert graft_capabilities(dict) is None
    assert graft_capabilities(object()) is None


def test_once_is_enough() -> None:
    Grafted = grafted(PPO, terms())
    with pytest.raises(BindingError, match=r"^it is grafted already. Give all plugins in one call of graft.$"):
        grafted(Grafted, terms())


def test_normalised_rewards_do_not_go_with_weights_that_change() -> None:
    claimed = own(vec.WeightedSum())
    make = terms(reward_combination=claimed)
    with pytest.raises(BindingError, match=r"^VecNormalize\(norm_reward=True\): reward normalisation divides"):
        grafted(PPO, make)("MlpPolicy", VecNormalize(points()), **ROLLOUTS)
