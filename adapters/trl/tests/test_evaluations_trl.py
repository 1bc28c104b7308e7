"""Between the steps: evaluations that leave no trace in what plugins remember, parameters taken over, and what is refused."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file, save_file
from test_seams import fit, logged, plugin
from tiny import numbers, parameters, same

from budwood.api import (
    CompletionReward,
    Completions,
    ConfigError,
    Contributed,
    Contributions,
    EvalReport,
    Evaluator,
    Generated,
    RewardTerm,
    RunCallback,
    StepBatch,
)
from budwood.rhythm import Rhythm
from budwood_models.errors import ModelError


class Counts:
    """How often it was asked, as a reward and as a term; it remembers in place, as an array may."""

    def __init__(self) -> None:
        self.widths: list[int] = []
        self.asked = np.zeros(1)

    def reward(self, batch: Completions) -> list[float | None]:
        self.asked += len(batch.texts)
        return [float(self.asked[0])] * len(batch.texts)

    def term(self, batch: StepBatch) -> Any:
        self.widths.append(len(batch.infos))
        self.asked += len(batch.infos)
        return np.full(len(batch.infos), self.asked[0])

    def state_dict(self) -> dict[str, Any]:
        return {"asked": self.asked}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.asked[:] = state["asked"]


def counting() -> tuple[Counts, dict[str, Any]]:
    reward, term = Counts(), Counts()
    return term, {
        "words": plugin(completion_rewards=CompletionReward("asked", reward.reward, state=reward)),
        "x": plugin(reward_terms=RewardTerm("asked", fn=term.term, state=term)),
    }


class Evaluates(RunCallback):
    def on_update_end(self, control: Any) -> None:
        control.evaluate(2, 0)


def of(*callbacks: RunCallback) -> Contributions:
    return Contributions(callbacks=[Contributed(callback, "e", "budwood-e 1.0") for callback in callbacks])


def test_what_rewards_and_terms_remember_is_of_the_training_alone(trainer: Any, rows_file: Any) -> None:
    _, plugins = counting()
    alone = trainer("grpo", plugins)
    fit(alone)
    assert logged(alone, "rewards/x.asked/mean") == logged(alone, "rewards/words.asked/mean") == [4.0, 8.0, 12.0]
    term, plugins = counting()
    held_out = {"dataset": {"eval": str(rows_file("grpo", 8))}}
    watched = trainer("grpo", plugins, sections=held_out, per_device_eval_batch_size=8)
    watched.evaluate(3, 0)
    fit(watched, of(Evaluates()), Rhythm(1, 1))
    assert set(term.widths) == {4}, "a term sees batches of one width, whoever asks first"
    assert len(term.widths) > 3 + 3
    trained = [row for row in numbers(watched.native.state.log_history) if "loss" in row]
    assert trained == [row for row in numbers(alone.native.state.log_history) if "loss" in row]


def test_padding_of_an_evaluation_reaches_no_term(trainer: Any) -> None:
    term, plugins = counting()
    made = trainer("grpo", plugins)
    function = made.columns.functions[1]
    made.columns.board["words.asked"] = [1.0] * 6
    assert function(completions=["a"] * 6) == [4.0] * 4 + [8.0] * 2
    assert term.asked[0] == 4.0


def test_a_rollouts_columns_reach_rewards_in_an_evaluation(trainer: Any) -> None:
    def roll(request: Any) -> Generated:
        drawn = request.generate(request.prompt_ids)
        return Generated(drawn.ids, drawn.log_probs, columns={"turns": [7.0 + i for i in range(len(drawn.ids))]})

    reward = CompletionReward("turns", lambda batch: list(batch.columns["turns"]))
    made = trainer("grpo", {"x": plugin(completion_rewards=reward, rollout=roll)}, steps=1)
    assert made.evaluate(4, 0).returns.tolist() == [7.0, 8.0, 9.0, 10.0]


def test_a_note_says_that_nothing_is_evaluated(trainer: Any, rows_file: Any) -> None:
    class Notes(RunCallback):
        def on_run_end(self, control: Any) -> None:
            notes.extend(control.notes)

    due = {"evaluation": {"every": 2, "seed": 7}}
    for more, count in (({}, 1), ({"dataset": {"eval": str(rows_file("sft", 4))}}, 0)):
        notes: list[str] = []
        fit(trainer("sft", sections={**due, **more}), of(Notes()))
        assert len(notes) == count
        assert all("evaluation.every" in note and "dataset.eval" in note for note in notes)


# ---- parameters taken over -------------------------------------------------------------------------------------------


class Nothing(RunCallback): ...


def test_a_reset_goes_back_to_what_a_warm_start_brought_also_after_a_resume(trainer: Any) -> None:
    plugins = {"x": plugin(callbacks=Nothing())}
    first = trainer("sft", plugins)
    fit(first)
    warm = trainer("sft", plugins)
    base = parameters(warm.native)
    warm.load_policy(first.policy_state())
    begun = parameters(warm.native)
    fit(warm)
    saved = warm.state_dict()
    warm.reset_policy(0)
    assert same(parameters(warm.native), begun)
    assert not same(begun, base)
    again = trainer("sft", plugins, steps=5)
    again.load_state_dict(saved)
    fit(again)
    again.reset_policy(0)
    assert same(parameters(again.native), begun)
    cold = trainer("sft", plugins, steps=5)
    cold.load_state_dict(first.state_dict())
    fit(cold)
    cold.reset_policy(0)
    assert same(parameters(cold.native), base)


def test_an_evaluator_may_ask_for_a_reset(trainer: Any) -> None:
    def run(control: Any) -> EvalReport:
        control.reset_policy(1)
        return EvalReport({})

    given = Evaluator("e", 1, run)
    made = trainer("sft", {"x": plugin(evaluators=given)}, steps=2)
    fit(made, Contributions(evaluators=[Contributed(given, "x", "budwood-x 1.0")]))
    assert made.native.state.global_step == 2


def test_completions_in_hand_go_when_other_parameters_come(trainer: Any) -> None:
    class Loads(RunCallback):
        def on_update_end(self, control: Any) -> None:
            held.append(made.native._buffered_inputs is not None)
            if control.steps == 1:
                control.load_policy(first)
                held.append(made.native._buffered_inputs is not None)

    held: list[bool] = []
    made = trainer("grpo", steps=3, steps_per_generation=4)
    first = made.policy_state()
    fit(made, of(Loads()))
    assert held == [True, False, True, True]


# ---- refused ---------------------------------------------------------------------------------------------------------


def test_several_processes_are_refused(trainer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match=r"several processes do not work yet.*started 2 of them"):
        trainer("sft")


def test_a_reward_model_begins_with_a_whole_model(trainer: Any, model_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no folder, no short name .* and not in the hub's cache"):
        trainer("reward", model="nobody/no-such-model")
    broken = tmp_path / "broken"
    shutil.copytree(model_folder, broken)
    weights = load_file(broken / "model.safetensors")
    kept = {name: value for name, value in weights.items() if "layers.1" not in name}
    save_file(kept, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=f"{len(weights) - len(kept)} weights are not in it"):
        trainer("reward", model=broken)
    assert trainer("reward").native.model.score.weight.shape == (1, 32)
