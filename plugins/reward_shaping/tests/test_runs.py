"""Whole runs of what the search can be made of: off-policy trainers, weights of the state, estimators, retraining."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from budwood.api import PluginError
from budwood_reward_shaping import demo

pytest.importorskip("budwood_sb3")

OUTER = {"steps": 4, "inner_iterations": 2, "episodes": 2}
SAC = {"learning_starts": 50, "buffer_size": 2_000, "batch_size": 32, "policy_kwargs": {"net_arch": [16]}}


def config(tmp_path: Path, total: int = 1_600, **section):
    """ReachBudget with outer steps of 400 environment steps."""
    made = demo.config("tiny", 0, str(tmp_path), total)
    made["env"] = {"id": "budwood_reward_shaping.reach_budget:ReachBudget", "n_envs": 4}
    made["trainer"]["args"] |= {"batch_size": 100, "n_epochs": 2}
    made["plugins"]["reward_shaping"] |= {"outer": OUTER, **section}
    return {
        **made,
        "checkpoint": {"every": None},
        "tracking": {"enabled": False},
        "evaluation": {"every": None, "episodes": 0},
    }


def sac(tmp_path: Path, total: int = 800, **section):
    made = config(tmp_path, total, **section)
    made["trainer"] = {"kind": "sb3", "algo": "sac", "total_timesteps": total, "args": SAC}
    return made


def logged(result) -> dict[tuple[int, str], float]:
    numbers = {}
    for line in Path(result.paths["events"]).read_text().splitlines():
        event = json.loads(line)
        if event["kind"] == "metrics":
            numbers |= {(event["step"], k): v for k, v in event["data"].items() if not k.startswith("time/")}
    return numbers


def series(result, name) -> list[float]:
    return [value for (_, key), value in sorted(logged(result).items()) if key == f"reward_shaping/{name}"]


def parameters(result, algorithm="PPO"):
    import stable_baselines3

    return getattr(stable_baselines3, algorithm).load(result.paths["native"], device="cpu").policy.state_dict()


def same(first, second, algorithm="PPO") -> bool:
    one, two = parameters(first, algorithm), parameters(second, algorithm)
    return all(tensor.equal(two[name]) for name, tensor in one.items())


NORMALISED = {"n_envs": 4, "normalize": {"obs": True}}
VARYING = [
    {"name": f"x {x:g}", "source": "x", "stat": "final", "op": ">=", "threshold": float(x)}
    for x in np.arange(-1, 3, 0.25)
] + [{"name": "far", "source": "x", "stat": "final", "op": ">=", "threshold": 100.0}]
"""In task mode fraction the reward varies from the start, and success is out of reach."""


@pytest.mark.parametrize(
    ("section", "env", "happened"),
    [
        ({"weights": {"param": "simplex", "scale": None, "w_task": 0.0}}, {}, "explored"),
        (
            {"weights": {"param": "state", "w_task": 1.0}, "criteria": VARYING, "task_mode": "fraction"},
            NORMALISED,
            "stepped",
        ),
        (
            {
                "outer": {**OUTER, "estimator": "neumann", "precond": "adam"},
                "criteria": VARYING,
                "task_mode": "fraction",
            },
            {},
            "stepped",
        ),
        ({"outer": {**OUTER, "estimator": "score", "samples": 2}}, {}, "P"),
        ({"explore": {"variant": "noise"}}, NORMALISED, "noise"),
        ({"outer": {**OUTER, "steps": 2, "final_seeds": 2}, "baseline": "sweep"}, {}, "explored"),
    ],
    ids=["simplex", "state", "neumann adam", "score", "noise", "final"],
)
def test_resumed_in_the_middle_of_an_outer_step_it_is_the_uninterrupted_one(tmp_path, section, env, happened):
    from budwood import resume, run

    def made(folder: str, total: int):
        built = config(tmp_path / folder, total, **section)
        built["env"] |= env
        return built

    whole = run(made("whole", 1_600))
    first = run(made("parts", 1_000))
    second = resume(first.paths["folder"], ["trainer.total_timesteps=1_600"])
    assert any(series(whole, happened)) or happened == "P"
    assert logged(second) == logged(whole)
    assert same(whole, second)


def test_a_search_that_was_cut_off_says_so_and_a_complete_one_does_not(tmp_path):
    from budwood import resume, run

    cut = run(config(tmp_path / "cut", 1_000))
    assert any("cut off after 2 of 4 outer steps" in note for note in cut.notes)
    assert "cut off after 2 of 4 outer steps" in Path(cut.paths["report"]).read_text()
    whole = resume(cut.paths["folder"], ["trainer.total_timesteps=1_600"])
    assert not any("cut off" in note for note in whole.notes)
    assert any(note.startswith("best task performance P = 0.00 in 4 outer steps") for note in whole.notes)
    final = {"outer": {**OUTER, "steps": 2, "final_seeds": 2}, "baseline": "sweep"}
    short = run(config(tmp_path / "short", 1_300, **final))
    assert any("cut off after 1 of 2 final policies" in note for note in short.notes)


def test_virtual_steps_that_diverge_are_counted_and_told(tmp_path):
    from budwood import run

    settings = {**OUTER, "estimator": "neumann", "alpha": 1e6}
    result = run(config(tmp_path, outer=settings, criteria=VARYING, task_mode="fraction"))
    assert not any(series(result, "stepped"))
    assert any("the virtual policy steps diverged" in note for note in result.notes)


def test_weights_of_the_state_follow_the_gradient(tmp_path):
    """Task mode fraction gives the task reward variance, so there is a gradient from the start."""
    from budwood import run

    weights = {"param": "state", "scale": None, "w_task": 0.0}
    made = config(tmp_path, weights=weights, task_mode="fraction", outer={**OUTER, "lr_state": 0.05})
    made["env"] |= {"normalize": {"obs": True}}
    result = run(made)
    stepped, spread = series(result, "stepped"), series(result, "w_spread/speed")
    assert spread[0] == 0.0
    assert spread[stepped[:-1].index(1.0) + 1] > 0
    mean = np.array([series(result, "w/speed"), series(result, "w/effort")])
    np.testing.assert_allclose(mean.sum(axis=0), 2.0)


def test_the_exported_policy_is_that_of_the_best_weights(tmp_path):
    """Measured again on the search's own environments it does as well as the best trial."""
    from stable_baselines3 import PPO

    from budwood import run
    from budwood_reward_shaping.reach_budget import ReachBudget

    marks = [-2.0, -1.0, -0.5, -0.2, 0.2, 0.5, 1.0, 2.0, 1_000.0]  # the last is never met: the search goes on
    criteria = [{"name": str(x), "source": "x", "stat": "final", "op": ">=", "threshold": x} for x in marks]
    result = run(config(tmp_path, total=2_000, criteria=criteria, baseline="sweep", outer={**OUTER, "steps": 9}))
    parts = series(result, "P_soft")
    assert parts[-1] < max(parts), "keeping the last policy would show"
    model, env = PPO.load(result.paths["native"], device="cpu"), ReachBudget()
    obs, _ = env.reset()
    ended = False
    while not ended:
        action, _ = model.predict(obs, deterministic=True)
        obs, _, ended, _, info = env.step(action)
    assert np.mean([info["x"] >= x for x in marks]) == pytest.approx(max(parts))


@pytest.mark.parametrize(
    "section",
    [
        {"baseline": "random", "outer": {**OUTER, "inner_steps": 200}},
        {"outer": {**OUTER, "inner_steps": 200, "estimator": "score", "samples": 2}},
    ],
    ids=["random", "score"],
)
def test_a_search_with_an_off_policy_trainer(tmp_path, section):
    """Weights change, the policy starts afresh, experience stays; and it resumes exactly."""
    from budwood import resume, run

    whole = run(sac(tmp_path / "whole", **section))
    assert len(series(whole, "P")) == 4
    assert len(set(series(whole, "w/speed"))) == 4
    first = run(sac(tmp_path / "parts", total=500, **section))
    second = resume(first.paths["folder"], ["trainer.total_timesteps=800"])
    assert logged(second) == logged(whole)
    assert same(whole, second, "SAC")


def test_old_experience_is_sampled_under_the_weights_as_they_are(tmp_path, monkeypatch):
    """After a jump, rewards that SAC samples are those of the new weights, for rows written under the old ones too."""
    import stable_baselines3

    from budwood import run

    seen, algorithm = [], stable_baselines3.SAC
    original = algorithm.train

    def train(self, *args, **kwargs):
        original(self, *args, **kwargs)
        buffer = self.replay_buffer
        rows = np.arange(buffer.pos)
        rewards = buffer._get_samples(rows).rewards.numpy()
        seen.append((len(rows), buffer._source.combination.version, rewards.shape))
        expected = buffer._source.combination(buffer.terms[: buffer.pos].reshape(-1, buffer.terms.shape[-1]), None)
        np.testing.assert_array_equal(buffer.rewards[: buffer.pos].flatten(), expected.astype(np.float32))

    monkeypatch.setattr(algorithm, "train", train)
    run(sac(tmp_path, total=500, baseline="random", outer={**OUTER, "inner_steps": 200}))
    assert seen[-1][0] > 100, "the buffer holds what older weights collected"
    assert seen[-1][1] == 2


ADVANTAGE = """
from budwood.api import hookimpl

@hookimpl
def advantage(run):
    return lambda inputs: inputs.rewards - inputs.values
"""


@pytest.fixture
def temporal_difference(tmp_path, monkeypatch):
    """An installed plugin ``td`` that makes its own advantages."""
    from budwood import plugins

    site = tmp_path / "site"
    info = site / "budwood_td-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "td_advantage.py").write_text(ADVANTAGE)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: budwood-td\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[budwood.plugins]\ntd = td_advantage\n")
    monkeypatch.syspath_prepend(str(site))
    plugins._scan.cache_clear()
    yield
    plugins._scan.cache_clear()


def test_another_plugins_advantage_is_refused_before_training(tmp_path, temporal_difference):
    from budwood import run

    made = config(tmp_path / "out", total=400)
    made["plugins"]["td"] = {}
    with pytest.raises(PluginError) as error:
        run(made)
    assert "estimator one_step of reward_shaping differentiates GAE" in str(error.value)
    assert "made by td (budwood-td 1.0)" in str(error.value)
    assert error.value.who.startswith("budwood-reward-shaping ")
    assert not list((tmp_path / "out").glob("tiny*")), "nothing was started"
    made["plugins"]["reward_shaping"]["baseline"] = "random"
    assert run(made).status == "finished"


# ---- O9: what is awkward behaves as documented ----------------------------------------------------------------------


def criterion(name, op, threshold):
    return {"name": name, "source": "x", "stat": "final", "op": op, "threshold": threshold}


@pytest.mark.parametrize(
    ("criteria", "soft"),
    [
        ([criterion("never", ">=", 1_000.0)], 0.0),
        ([criterion("far", ">=", 0.0), criterion("near", "<=", -1e-9)], 0.5),
    ],
    ids=["never", "contradictory"],
)
def test_criteria_that_cannot_hold_are_never_met_and_end_with_the_budget(tmp_path, criteria, soft):
    """No variance in the task's reward, so no gradient, every rollout of it counted, and a jump each time."""
    from budwood import run

    result = run(config(tmp_path, criteria=criteria))
    assert result.status == "finished"
    assert series(result, "P") == [0.0] * 4
    assert series(result, "P_soft") == [soft] * 4
    assert series(result, "zero_grad") == [2.0] * 4
    assert series(result, "grad_norm") == [0.0] * 4
    assert series(result, "explored") == [1.0] * 3 + [0.0], "the last step keeps the best"


def test_contradictory_criteria_with_a_fraction_have_a_gradient(tmp_path):
    """The part met differs between episodes once one criterion is sometimes met: the search has something to follow."""
    from budwood import run

    criteria = [criterion("far", ">=", 0.0), criterion("nearer", "<=", -0.2), criterion("away", ">=", 0.2)]
    result = run(config(tmp_path, criteria=criteria, task_mode="fraction"))
    assert max(series(result, "P")) == 0.0
    assert max(series(result, "grad_norm")) > 0.0


@pytest.mark.parametrize("param", ["static", "simplex", "state"])
def test_ten_terms_one_of_them_constant_in_one_environment(tmp_path, param):
    from budwood import run

    distractors = ["push", "brake", "rush", "early", "late", "home", "waves", "clock"]
    terms = ["speed", "effort", *distractors]
    criteria = [criterion("forward", ">=", 0.0), criterion("never", ">=", 1_000.0)]
    made = config(tmp_path, 1_200, terms=terms, criteria=criteria, task_mode="fraction", weights={"param": param})
    made["env"]["n_envs"] = 1
    made["trainer"]["args"] |= {"n_steps": 200, "batch_size": 50}
    result = run(made)
    assert len(series(result, "P")) == 3
    weights = [series(result, f"w/{name}") for name in terms]
    assert np.isfinite(weights).all()
    assert len(set(weights[0])) > 1, "it moves"


def test_a_term_that_is_not_a_number_is_named(tmp_path):
    """Even where its weight would hide it."""
    import stable_baselines3
    from stable_baselines3.common.vec_env import DummyVecEnv

    from budwood import graft
    from budwood.api import ContributionError
    from budwood_reward_shaping.reach_budget import ReachBudget

    class Broken(ReachBudget):
        def step(self, action):
            *rest, info = super().step(action)
            return *rest, info | {"speed": float("nan") if self.t == 7 else info["speed"]}

    section = {"terms": [{"name": "speed", "info": "speed"}, {"name": "effort", "info": "effort"}], "outer": None}
    made = graft(stable_baselines3.PPO, {"reward_shaping": {**section, "weights": {"scale": None}}})
    model = made("MlpPolicy", DummyVecEnv([ReachBudget, Broken]), n_steps=32, batch_size=32, device="cpu")
    with pytest.raises(ContributionError) as error:
        model.learn(64)
    assert "reward term reward_shaping.speed is nan in environment 1" in str(error.value)
    assert error.value.who.startswith("budwood-reward-shaping ")


@pytest.mark.parametrize(
    ("trainer", "outer", "message"),
    [
        ({"args": {"n_steps": 50, "batch_size": 100, "use_sde": True}}, {}, "no log-probability of stored actions"),
        ({"algo": "a2c", "args": {"n_steps": 50}}, {"precond": "adam"}, "reads the second moments of Adam"),
    ],
)
def test_what_no_gradient_can_go_through_is_said_in_the_first_rollout(tmp_path, trainer, outer, message):
    """Not when the first gradient appears: on a task that is never done that would be never."""
    from budwood import run
    from budwood.api import BindingError

    made = config(tmp_path, outer={**OUTER, **outer})
    made["trainer"] |= trainer
    with pytest.raises(BindingError, match=message):
        run(made)
