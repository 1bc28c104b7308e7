"""Loss terms and objectives: what they see, that they count, and what is said when they cannot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from stable_baselines3 import PPO

from budwood.api import ContributionError, LossTerm, Objective, hookimpl
from budwood_sb3 import algorithms, updates

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

ARGS = {
    "ppo": {"n_steps": 16, "batch_size": 8, "n_epochs": 1},
    "a2c": {"n_steps": 16},
    "sac": {"learning_starts": 10, "batch_size": 8, "buffer_size": 200, "policy_kwargs": {"net_arch": [16]}},
}


class Extra:
    def __init__(self, *terms: LossTerm, objective: Objective | None = None) -> None:
        self.terms, self.claimed = terms, objective

    @hookimpl
    def loss_terms(self, run: Any) -> Any:
        return list(self.terms)

    @hookimpl
    def objective(self, run: Any) -> Any:
        return self.claimed


def run_for(make_run: Any, algo: str, env: str = "Point-v0", **args: Any) -> Any:
    return make_run({"algo": algo, "args": {**ARGS[algo], **args}, "total_timesteps": 32}, {"id": env, "n_envs": 2})


@pytest.mark.parametrize("algo", ARGS)
def test_a_loss_sees_what_the_adapter_says_it_offers(algo: str, make_run: Any, train: Any) -> None:
    shapes: dict[str, Any] = {}

    def look(inputs: Any) -> torch.Tensor:
        for name in algorithms.capabilities(algorithms.ALGORITHMS[algo]).loss_inputs:
            shapes[name] = getattr(inputs, name)
        return torch.zeros(())

    trainer = train(run_for(make_run, algo), Extra(LossTerm("look", look)))
    batch = {"ppo": 8, "a2c": 32, "sac": 8}[algo]
    scalars = {"policy": trainer.native.policy, "clip_range": 0.2, "share": 1.0}
    assert shapes["policy"] is scalars["policy"]
    assert shapes.get("clip_range", 0.2) == 0.2
    assert shapes.get("share", 1.0) == 1.0
    wide = {"obs": 2, "next_obs": 2, "actions": 1, "replay_actions": 1}
    for name in set(shapes) - set(scalars):
        expected = () if name == "ent_coef" else (batch, wide[name]) if name in wide else (batch,)
        assert tuple(shapes[name].shape) == expected, name
    gradients = {name for name, value in shapes.items() if isinstance(value, torch.Tensor) and value.requires_grad}
    assert gradients == ({"actions", "log_prob", "q_values"} if algo == "sac" else {"log_prob", "values", "entropy"})


@pytest.mark.parametrize("algo", ARGS)
def test_a_term_is_weighted_logged_and_changes_the_policy(
    algo: str, make_run: Any, train: Any, same: Any, events: Any
) -> None:
    def likelihood(inputs: Any) -> torch.Tensor:
        return -inputs.log_prob.mean()

    seen = events()
    run = run_for(make_run, algo)
    with_term = train(run, Extra(LossTerm("likely", likelihood, weight=2.0)), events=seen)
    assert not same(with_term.native, train(run).native)
    assert not same(with_term.native, train(run, Extra(LossTerm("likely", likelihood, weight=1.0))).native)
    assert same(with_term.native, train(run, Extra(LossTerm("likely", lambda i: 2 * likelihood(i)))).native)
    assert "train/extra.likely" in with_term.native.logger.name_to_value


@pytest.mark.parametrize("algo", ARGS)
def test_an_objective_takes_the_place_of_the_policy_loss(algo: str, make_run: Any, train: Any, same: Any) -> None:
    own = {"ppo": updates.clipped_surrogate, "a2c": updates.policy_gradient, "sac": updates.soft_actor}[algo]
    run = run_for(make_run, algo)
    flat = Extra(objective=Objective("flat", lambda inputs: 0.0 * own(inputs)))
    back = Extra(LossTerm("back", own), objective=Objective("flat", lambda inputs: 0.0 * own(inputs)))
    assert not same(train(run, flat).native, train(run).native)
    assert same(train(run, back).native, train(run).native)


@pytest.mark.parametrize("env", ["PointDiscrete-v0", "PointDict-v0"])
def test_other_spaces_with_clipped_values_and_an_update_that_ends_early(
    env: str, make_run: Any, train: Any, same: Any
) -> None:
    run = run_for(make_run, "ppo", env, clip_range_vf=0.1, n_epochs=3, target_kl=1e-7)
    zero = Extra(LossTerm("zero", lambda inputs: torch.zeros(())))
    assert same(train(run, zero).native, train(run).native)


@pytest.mark.parametrize(
    ("term", "message"),
    [
        (
            LossTerm("wide", lambda inputs: inputs.log_prob),
            "plugins.extra: loss term extra.wide returned Tensor of shape (8,), and a loss is one finite number in a tensor. "
            "Asked for by budwood-extra 1.0.",
        ),
        (
            LossTerm("nan", lambda inputs: torch.tensor(float("nan"))),
            "plugins.extra: loss term extra.nan returned tensor(nan), and a loss is one finite number in a tensor. "
            "Asked for by budwood-extra 1.0.",
        ),
        (
            LossTerm("float", lambda inputs: 1.0),  # type: ignore[arg-type,return-value]
            "plugins.extra: loss term extra.float returned 1.0, and a loss is one finite number in a tensor. "
            "Asked for by budwood-extra 1.0.",
        ),
        (
            LossTerm("asks", lambda inputs: inputs.logits),
            "plugins.extra: loss term extra.asks raised AttributeError: this trainer gives a loss no 'logits'; it gives "
            "actions, advantages, clip_range, entropy, log_prob, obs, old_log_prob, old_values, policy, returns, "
            "share, values. "
            "Asked for by budwood-extra 1.0. Run again with --debug to see where.",
        ),
    ],
)
def test_a_loss_that_misbehaves_is_named(term: LossTerm, message: str, make_run: Any, train: Any) -> None:
    with pytest.raises(ContributionError) as raised:
        train(run_for(make_run, "ppo"), Extra(term))
    assert str(raised.value) == message


def test_the_model_is_saved_as_the_plain_one(make_run: Any, train: Any, tmp_path: Path, same: Any) -> None:
    trainer = train(run_for(make_run, "ppo"), Extra(LossTerm("zero", lambda inputs: torch.zeros(()))))
    assert type(trainer.native).__name__ == "PPO"
    loaded = PPO.load(trainer.export(tmp_path))
    assert type(loaded) is PPO
    assert not hasattr(loaded, "_losses")
    assert same(loaded, trainer.native)
