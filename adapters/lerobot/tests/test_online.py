"""Whole runs of the online loop in environments of LeRobot: learning, resuming, exporting, and what plugins bind."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from points import Gaussian, Reach, Tokens, flat
from robots import Nowhere

from budwood import tree
from budwood.api import (
    AdvantageInputs,
    BindingError,
    ConfigError,
    ContributionError,
    Contributions,
    EvalReport,
    Evaluator,
    LossTerm,
    Objective,
    RewardTerm,
    Rollout,
    RunCallback,
)
from budwood.checkpoint import Checkpoints
from budwood.rhythm import Rhythm
from budwood.session import Session

pytest.importorskip("lerobot")
from lerobot.configs import FeatureType, PolicyFeature
from online_runs import LENGTH, Brings, Events, ReachConfig, built, numbers, numbers_of, same

from budwood_lerobot.config import EnvConfig
from budwood_lerobot.features import unread
from budwood_lerobot.online import building
from budwood_lerobot.sections import Sections

# ---- learning ------------------------------------------------------------------------------------------------------

GAUSSIAN = {"rollout": 64, "minibatch": 128, "epochs": 6, "learning_rate": 2e-3, "gamma": 0.9}
GROUP = {"advantage": "group", "group_size": 8, "rollout": 8, "minibatch": 128, "epochs": 4, "learning_rate": 3e-3}


@pytest.mark.parametrize(
    ("policy", "settings", "n", "steps"),
    [(Gaussian, GAUSSIAN, 8, 15_000), (Tokens, GROUP, 64, 25_000)],
    ids=["gaussian, critic", "tokens, groups"],
)
def test_it_learns(policy: Any, settings: dict[str, Any], n: int, steps: int) -> None:
    trainer = built(Brings(policy), env={"n_envs": n}, total_steps=steps, **settings)
    before = trainer.evaluate(64, 1)
    events = Events()
    trainer.fit(events)
    after = trainer.evaluate(64, 1)
    assert before.metrics["success_rate"] < 0.4
    assert after.metrics["success_rate"] > 0.85, (before.metrics, after.metrics, events.logged[-1])
    assert after.returns.mean() > before.returns.mean() + 0.4
    last = events.logged[-1][1]
    assert last["rollout/success_rate"] > 0.7
    assert {"time/physics_cpu", "time/sampling_cpu", "time/update_cpu", "rollout/env_steps"} <= set(last)
    trainer.close()


def test_a_policy_that_may_not_move_does_not_learn() -> None:
    trainer = built(Brings(Gaussian), **{**GAUSSIAN, "learning_rate": 1e-30}, total_steps=2_000)
    before = trainer.evaluate(32, 1).returns
    trainer.fit(Events())
    np.testing.assert_array_equal(trainer.evaluate(32, 1).returns, before)


@pytest.mark.parametrize("edge", [0.0, np.inf], ids=["some", "all"])
def test_a_group_whose_returns_are_equal_is_left_out_of_the_update(
    edge: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the left of the edge every reward is 0."""
    real = Reach._distance
    monkeypatch.setattr(Reach, "_distance", lambda self: 1.0 if self.goal[0] < edge else real(self))
    settings = {"advantage": "group", "group_size": 2, "rollout": 4, "epochs": 1, "minibatch": 1}
    trainer, events = built(Brings(Tokens), env={"n_envs": 16}, total_steps=192, **settings), Events()
    trainer.fit(events)
    shares, before = [], 0
    for steps, row in events.logged:
        shares.append(row["rollout/identical_share"])
        assert row.get("train/minibatches", 0) == round((1 - shares[-1]) * (steps - before))
        before = steps
    assert set(shares) == {1.0} if edge else 0 < np.mean(shares) < 1
    assert bool(trainer.update.count) == (not edge)


def test_an_episode_that_a_short_rollout_leaves_unfinished_is_no_success() -> None:
    settings = {"advantage": "group", "group_size": 2, "rollout": 2, "epochs": 1}
    trainer, events = built(Brings(Tokens), env={"n_envs": 32}, total_steps=1, **settings), Events(rollouts=True)
    trainer.fit(events)
    returns, lengths, successes = map(np.array, zip(*trainer.collector.episodes.recent, strict=True))
    assert len(returns) == 32
    assert (lengths[successes == 0] == 4).all()
    assert sorted(returns) == pytest.approx(sorted(events.shown[0].rewards.sum(axis=0)))
    assert events.logged[0][1]["rollout/success_rate"] == successes.mean() < 1


# ---- state ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "settings"),
    [(Gaussian, {"epochs": 2}), (Tokens, {"advantage": "group", "group_size": 2, "epochs": 2})],
    ids=["critic", "groups"],
)
def test_a_resumed_run_goes_on_to_the_bit(policy: Any, settings: dict[str, Any]) -> None:
    at_once, halves = Events(), Events(at=lambda steps: steps < 100)
    whole = built(Brings(policy), **settings)
    whole.fit(at_once)
    first = built(Brings(policy), **settings)
    first.fit(halves)
    structure, tensors = tree.encode(first.state_dict())
    first.evaluate(3, 0)
    saved = tree.decode(structure, lambda framework, name: tensors[name])
    second, rest = built(Brings(policy), **settings, seed=0), Events()
    second.evaluate(2, 5)  # whatever happens before
    assert list(second.load_state_dict(saved)) == []
    second.fit(rest)
    assert numbers(halves) + numbers(rest) == numbers(at_once)
    assert same(whole, second)
    assert not same(whole, first)


class Pushes(Gaussian):
    """PushT's actions are places, of 0 to 512."""

    def chunk(self, actions: Any) -> Any:
        return 256 + 256 * super().chunk(actions)


def test_pusht_goes_on_from_a_checkpoint_on_disk(tmp_path: Path) -> None:
    """Its physics are brought about again by seed and actions; core's own session evaluates and saves."""
    pytest.importorskip("gym_pusht")
    env = {"type": "pusht", "n_envs": 2, "obs_type": "environment_state_agent_pos"}
    store, paths = Checkpoints(tmp_path, 9), []

    def run(restored: Any = None) -> tuple[Any, Nowhere]:
        trainer, memory = built(Brings(Pushes), env=env, total_steps=96, rollout=16, epochs=1), Nowhere()
        if restored is not None:
            assert list(trainer.load_state_dict(restored["trainer"])) == []

        def save(session: Session) -> Path:
            state = {"trainer": trainer.state_dict(), "session": session.state_dict()}
            paths.append(store.save(session.steps, state, {}))
            return paths[-1]

        rhythm = Rhythm(evaluate_every=32, episodes=1, checkpoint_every=32)
        session = Session(
            trainer,
            Contributions(),
            memory,
            memory,
            rhythm,
            save if restored is None else None,
            restored and restored["session"],
        )
        trainer.fit(session)
        return trainer, memory

    whole, records = run()
    saved, _ = store.load(paths[0])
    assert saved["trainer"]["steps"] == 32
    assert [len(actions) for actions in saved["trainer"]["collector"]["episodes"]["executed"]] == [32, 32]
    again, rest = run(saved)
    assert same(whole, again)
    clockless = [(step, numbers_of(row)) for step, row in records.records if step > 32]
    assert [(step, numbers_of(row)) for step, row in rest.records] == clockless
    assert any("eval/success_rate" in row for _, row in rest.records)


def test_an_evaluation_changes_nothing_and_depends_on_its_seed_alone() -> None:
    alone = built(Brings(Gaussian))
    alone.fit(Events())
    watched, found = built(Brings(Gaussian)), []
    watched.fit(Events(at=lambda steps: found.append(watched.evaluate(5, 7)) is None))
    assert same(watched, alone)
    fresh = built(Brings(Gaussian))
    fresh.load_policy(watched.policy_state())
    again = fresh.evaluate(5, 7)
    np.testing.assert_array_equal(again.returns, found[-1].returns)
    assert again.env_steps == again.lengths.sum()


def test_an_observer_sees_the_steps_that_count() -> None:
    trainer, seen = built(Brings(Gaussian)), []

    def observe(batch: Any) -> None:
        rows = [info["env_index"] for info in batch.infos]
        seen.append((rows, batch.rewards.copy(), batch.dones.copy(), batch.timeouts.copy()))
        assert len(batch.obs["agent_pos"]) == len(batch.actions) == len(rows)
        assert batch.info("wind").shape == (len(rows),)

    found = trainer.evaluate(7, 2, observe)
    assert sum(len(rows) for rows, *_ in seen) == found.env_steps
    assert sum(rewards.sum() for _, rewards, *_ in seen) == pytest.approx(found.returns.sum())
    assert sum(dones.sum() for *_, dones, _ in seen) == 7
    assert sum(timeouts.sum() for *_, timeouts in seen) == (found.lengths == LENGTH).sum()


def test_an_episode_is_shown_and_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ReachConfig, "gym_kwargs", {"render_mode": "rgb_array"})
    monkeypatch.setattr(Reach, "render", lambda reach: reach.point.astype(np.float32), raising=False)
    alone = built(Brings(Gaussian))
    alone.fit(Events())
    trainer, shown = built(Brings(Gaussian)), []
    trainer.fit(Events(at=lambda steps: trainer.play(7, shown.append) == (10, "reach the goal")))
    assert same(trainer, alone)

    steps: list[Any] = []
    trainer.evaluate(1, 7, steps.append)
    expected = [steps[0].obs["agent_pos"][0], *(step.next_obs["agent_pos"][0] for step in steps)]
    np.testing.assert_array_equal(shown[-len(expected) :], expected)


def test_an_episode_is_shown_in_this_process_or_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    section = EnvConfig(type="budwood_reach", n_envs=4, use_async_envs=True)
    with pytest.raises(ConfigError, match=r"env.type: budwood_reach gives no pictures to film"):
        building._shown(section, print)
    monkeypatch.setattr(ReachConfig, "gym_kwargs", {"render_mode": "rgb_array"})
    assert building._shown(section, print).n == 1


def test_a_policy_is_made_anew_in_place() -> None:
    trainer = built(Brings(Gaussian))
    trainer.fit(Events())
    policy = trainer.neutral.policy
    trainer.reset_policy(3)
    assert trainer.neutral.policy is policy
    assert not trainer.update.optimizer.state
    other = built(Brings(Gaussian))
    assert not same(trainer, other)
    other.reset_policy(3)
    assert same(trainer, other)


# ---- plugins -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("resumed", [False, True])
def test_a_reset_goes_back_to_what_the_run_began_from(resumed: bool) -> None:
    def follows() -> Any:
        return Brings(Gaussian, callbacks=[Follows()])

    given, trainer = built(Brings(Gaussian), seed=5), built(follows(), total_steps=64)
    trainer.load_policy(given.policy_state())
    trainer.fit(Events())
    trainer.load_policy(trainer.policy_state())  # a plugin puts one back
    if resumed:
        structure, tensors = tree.encode(trainer.state_dict())
        trainer = built(follows(), total_steps=64)
        trainer.load_state_dict(tree.decode(structure, lambda framework, name: tensors[name]))
    assert not same(trainer, given)
    trainer.reset_policy(3)
    assert same(trainer, given)


class Follows(RunCallback):
    def on_rollout_end(self, control: Any, rollout: Rollout) -> None: ...


def test_what_plugins_bind() -> None:
    seen: list[AdvantageInputs] = []

    def advantage(inputs: AdvantageInputs) -> Any:
        seen.append(inputs)
        return inputs.rewards

    def objective(inputs: Any) -> Any:
        return -(inputs.advantages * inputs.log_prob).mean()

    term = LossTerm("small", lambda inputs: inputs.policy.log_std.square().mean(), 0.1, frozenset(("policy",)))
    plugin = Brings(
        Gaussian,
        advantage=advantage,
        objective=Objective("gradient", objective),
        loss_terms=[term],
        callbacks=[Follows()],
        evaluators=[Evaluator("nothing", 10, lambda control: EvalReport())],
    )
    trainer, events = built(plugin, total_steps=64), Events(rollouts=True)
    trainer.fit(events)
    assert seen[0].rewards.shape == (16, 4)
    assert seen[0].groups is None
    assert "train/toy0.small" in events.logged[0][1]
    rollout = events.shown[0]
    assert rollout.obs["observation.state"].shape == (16, 4, 2)
    assert rollout.advantages_by == "toy0 (budwood-toy0 1.0)"
    np.testing.assert_array_equal(rollout.advantages, rollout.rewards)
    obs = {key: torch.from_numpy(part).flatten(0, 1) for key, part in rollout.obs.items()}
    assert rollout.log_prob(obs, torch.from_numpy(rollout.actions).flatten(0, 1)).shape == (64,)


@pytest.mark.parametrize(
    ("plugins", "settings", "error", "message"),
    [
        ([], {}, BindingError, "tell no probability of what they do"),
        ([Brings(Gaussian, reward_terms=[RewardTerm("x", info_key="wind")])], {}, BindingError, "an episode may end inside"),
        (
            [Brings(Tokens, loss_terms=[LossTerm("v", lambda i: i.values.mean(), needs=frozenset(("values",)))])],
            {"advantage": "group", "group_size": 2},
            BindingError,
            "needs values, and advantage: group has no critic",
        ),
        ([Brings(Tokens)], {}, ContributionError, "lacks value"),
        ([Brings(lambda o, a: object())], {}, ContributionError, "lacks act, evaluate, value"),
        ([Brings(Gaussian)], {"policy": {"type": "act"}}, BindingError, "wraps none of LeRobot's"),
    ],
)  # fmt: skip
def test_what_cannot_be_bound_is_said(plugins: Any, settings: Any, error: Any, message: str) -> None:
    with pytest.raises(error) as caught:
        built(*plugins, **settings)
    assert message in str(caught.value)


def test_sections_that_do_not_fit() -> None:
    trainer = {"kind": "lerobot", "algo": "online", "total_steps": 1}
    with pytest.raises(ValueError, match="name an environment under env"):
        Sections.model_validate({"trainer": trainer})
    with pytest.raises(ValueError, match="reads no dataset"):
        Sections.model_validate({"trainer": trainer, "env": {"type": "budwood_reach"}, "dataset": {"repo_id": "a/b"}})


def test_a_reward_that_is_no_number_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Reach, "_distance", lambda self: float("nan"))
    with pytest.raises(ContributionError, match="environment 0 gives the reward nan"):
        built(Brings(Gaussian)).fit(Events())


def test_a_claimed_advantage_of_another_shape_is_told() -> None:
    with pytest.raises(ContributionError, match=r"its advantage is an array \(4,\)"):
        built(Brings(Gaussian, advantage=lambda inputs: inputs.last_values)).fit(Events())


# ---- policies of LeRobot -------------------------------------------------------------------------------------------

ACT = {
    "type": "act", "chunk_size": 2, "n_action_steps": 2, "dim_model": 32, "n_heads": 2, "dim_feedforward": 32,
    "n_encoder_layers": 1, "use_vae": False,
}  # fmt: skip


class Noisy(torch.nn.Module):
    """An ACT policy of LeRobot with Gaussian noise around its chunk, and a critic."""

    def __init__(self, native: Any) -> None:
        super().__init__()
        self.native, self.critic = native, torch.nn.Linear(4, 1)

    def _distribution(self, obs: Any) -> Any:
        mean = self.native.model(dict(obs))[0]
        return torch.distributions.Normal(mean.flatten(1), 0.3)

    def act(self, obs: Any, deterministic: bool = False) -> Any:
        distribution = self._distribution(obs)
        actions = distribution.mean if deterministic else distribution.sample()
        return actions, distribution.log_prob(actions).sum(1), self.value(obs)

    def evaluate(self, obs: Any, actions: Any) -> Any:
        distribution = self._distribution(obs)
        return distribution.log_prob(actions).sum(1), None, self.value(obs)

    def value(self, obs: Any) -> Any:
        return self.critic(flat(obs))[:, 0]

    def chunk(self, actions: Any) -> Any:
        return actions.reshape(len(actions), 2, 2)


class Wraps:
    def __call__(self, observation_space: Any, action_space: Any) -> Any:
        raise AssertionError("a policy was loaded")

    def wrap(self, native: Any) -> Any:
        return Noisy(native)


def test_a_policy_of_lerobot_is_wrapped_trained_and_exported(tmp_path: Path) -> None:
    from lerobot.policies import make_pre_post_processors
    from lerobot.policies.act.modeling_act import ACTPolicy

    trainer = built(Brings(Wraps()), policy=ACT, total_steps=128)
    assert isinstance(trainer.native, ACTPolicy)
    before = {name: value.clone() for name, value in trainer.native.state_dict().items()}
    trainer.fit(Events())
    moved = [name for name, value in trainer.native.state_dict().items() if not torch.equal(value, before[name])]
    assert any("decoder" in name for name in moved)
    folder = trainer.export(tmp_path)
    loaded = ACTPolicy.from_pretrained(folder)
    assert all(torch.equal(value, trainer.native.state_dict()[name]) for name, value in loaded.state_dict().items())
    before_it, _ = make_pre_post_processors(loaded.config, pretrained_path=str(folder))
    assert any(type(step).__name__ == "NormalizerProcessorStep" for step in before_it.steps)
    again = built(Brings(Wraps()), policy={"path": str(folder)}, total_steps=128)
    a, b = (t.neutral.policy.native.state_dict() for t in (again, trainer))
    assert all(torch.equal(a[name], b[name]) for name in a)
    again.fit(Events())
    again.reset_policy(9)
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in again.native.state_dict().items())


def test_arguments_of_the_command_line_never_reach_lerobot_here_either(monkeypatch: pytest.MonkeyPatch) -> None:
    """When the first policy is made, and when another is made anew like it."""
    from lerobot import policies

    given, seen, make = ["budwood", "--policy.path=/nowhere", "run.yaml"], [], policies.make_policy

    def making(**given: Any) -> Any:
        seen.append(list(sys.argv))
        return make(**given)

    monkeypatch.setattr(sys, "argv", given)
    monkeypatch.setattr(policies, "make_policy", making)
    built(Brings(Wraps()), policy=ACT).reset_policy(1)
    assert seen == [["budwood"], ["budwood"]]
    assert sys.argv is given


def test_a_saved_step_that_is_no_step_is_not_run(tmp_path: Path) -> None:
    """LeRobot would call what the file names."""
    folder = built(Brings(Wraps()), policy=ACT).export(tmp_path)
    file, ran = folder / "policy_preprocessor.json", tmp_path / "ran"
    saved = json.loads(file.read_text())
    saved["steps"].insert(0, {"class": "subprocess.Popen", "config": {"args": ["touch", str(ran)]}})
    file.write_text(json.dumps(saved))
    with pytest.raises(ConfigError, match=r"'subprocess\.Popen' is no step of LeRobot's own"):
        built(Brings(Wraps()), policy={"path": str(folder)})
    assert not ran.exists()
    file.unlink()
    with pytest.raises(
        ConfigError, match=r"trainer\.policy: LeRobot cannot make the processors of act: .*preprocessor"
    ):
        built(Brings(Wraps()), policy={"path": str(folder)})


def test_a_task_that_is_not_there_is_told() -> None:
    with pytest.raises(ConfigError, match=r"env: LeRobot cannot make the environment pusht: .*budwood-none"):
        built(Brings(Gaussian), env={"type": "pusht", "task": "budwood-none-v0"})


def test_a_policy_that_reads_what_the_environment_does_not_give() -> None:
    features = {
        "observation.state": {"type": "STATE", "shape": [2]},
        "observation.images.top": {"type": "VISUAL", "shape": [3, 32, 32]},
    }
    with pytest.raises(ConfigError, match=r"reads observation\.images\.top, and the environment gives observation"):
        built(Brings(Wraps()), policy={**ACT, "input_features": features, "pretrained_backbone_weights": None})


def test_a_policy_of_another_robot_is_refused_before_it_is_made() -> None:
    features = {"observation.state": {"type": "STATE", "shape": [3]}}
    acts = {"action": {"type": "ACTION", "shape": [7]}}
    with pytest.raises(
        ConfigError, match=r"state is \(3,\) for the policy and \(2,\) .*; action is \(7,\) .* \(2,\) in"
    ):
        built(Brings(Wraps()), policy={**ACT, "input_features": features, "output_features": acts})


@pytest.mark.parametrize(
    ("declared", "given", "missing"),
    [
        (["image"], ["image"], []),
        (["images.a", "images.empty_camera_0"], ["images.a"], []),
        (["images.a"], ["images.a", "images.b"], []),
        (["images.a", "images.b"], [], ["images.a", "images.b"]),
        (["images.a", "images.b"], ["images.b", "images.c"], ["images.a"]),
        (["images.a", "more"], ["images.a"], ["more"]),
        ([], ["images.a"], []),
    ],
)
def test_cameras_may_be_fewer_or_more_than_declared(declared: list[str], given: list[str], missing: list[str]) -> None:
    kinds = {True: FeatureType.VISUAL, False: FeatureType.STATE}
    features = {f"observation.{key}": PolicyFeature(kinds["image" in key], (3,)) for key in ["state", *declared]}
    seen = {f"observation.{key}": torch.zeros(3) for key in ["state", *given]}
    assert unread(features, seen, fills=True) == [f"observation.{key}" for key in missing]
    lacks = [f"observation.{key}" for key in sorted({*declared} - {*given})]
    assert unread(features, seen, fills=False) == lacks, "act stacks every camera that it declares"


def test_bf16_is_refused() -> None:
    with pytest.raises(ConfigError, match="precision: the precision of a plugin's policy is its own matter"):
        built(Brings(Gaussian), precision="bf16")


def test_a_policy_that_reads_a_history_is_refused_before_it_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    def made(**given: Any) -> Any:
        raise AssertionError("the policy was made")

    monkeypatch.setattr("lerobot.policies.make_policy", made)
    with pytest.raises(ConfigError) as caught:
        built(Brings(Wraps()), policy={"type": "diffusion"})
    text = str(caught.value)
    assert "\n" not in text
    assert text.startswith(
        "trainer.policy: the policy diffusion reads the last 2 observations (n_obs_steps), and this loop"
    )
    assert "Set n_obs_steps: 1" in text
