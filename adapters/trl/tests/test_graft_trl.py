"""Plugins in a script of TRL's own kind: ``GRPOTrainer = budwood.graft(GRPOTrainer, {...})``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from tiny import ARGS, Vowels, active, parameters, rows, same
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer

import budwood
from budwood import grafting
from budwood.api import BindingError, CompletionReward, ConfigError, LossTerm, Run, RunCallback, hookimpl
from budwood.plugins import Activation
from budwood_trl.models import load


class Stops(RunCallback):
    """Counts boundaries, tells them, and stops after two."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def on_update_end(self, control: Any) -> None:
        self.seen.append(control.steps)
        control.log({"words/told": float(control.steps)})
        if control.steps == 2:
            control.stop("enough")


class Words(Vowels):
    def __init__(self) -> None:
        made.append(self)
        self.callback = Stops()

    @hookimpl
    def callbacks(self, run: Run) -> Any:
        return self.callback


class Pulls:
    @hookimpl
    def loss_terms(self, run: Run) -> Any:
        return LossTerm("pull", lambda inputs: sum((p**2).sum() for p in inputs.policy.parameters()), 0.1)


class Quiet:
    @hookimpl
    def callbacks(self, run: Run) -> Any:
        return Stops()


class Weighs:
    """A combination, and no reward of its own."""

    version, needs_obs = 0, False
    names = ("env.reward", "script.short")
    column_weights = np.array([0.0, 5.0])

    @hookimpl
    def reward_combination(self, run: Run) -> Any:
        return self

    def bind(self, columns: Any) -> None:
        assert tuple(column.name for column in columns) == self.names

    def __call__(self, terms: Any, obs: Any) -> Any:
        return terms @ self.column_weights


made: list[Any] = []
KINDS: dict[str, Any] = {"weighs": Weighs, "words": Words, "pulls": Pulls, "vowels": Vowels, "quiet": Quiet}


@pytest.fixture(autouse=True)
def of_the_test(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plugins that are classes of this file instead of installed ones."""
    made.clear()
    monkeypatch.setattr(
        grafting, "activate", lambda names, adapter: Activation([active(name, KINDS[name]()) for name in names], None)
    )


@pytest.fixture
def script(model_folder: Path, tmp_path: Path) -> Callable[..., Any]:
    """(trainer class, config class, algo) -> an object made as a script makes it."""

    def make(cls: Any, config: Any, algo: str, steps: int = 3, args: Any = None, **more: Any) -> Any:
        model, tokenizer = load(str(model_folder))
        quiet = {"report_to": "none", "save_strategy": "no", "disable_tqdm": True, "use_cpu": True}
        cpu = {"bf16": False, "gradient_checkpointing": False, "dataloader_pin_memory": False}
        settings = config(
            output_dir=str(tmp_path),
            max_steps=steps,
            seed=3,
            **quiet,
            **cpu,
            **ARGS[algo],
            **{"logging_steps": 1, **(args or {})},
        )
        dataset = Dataset.from_list(rows(algo))
        return cls(model=model, args=settings, train_dataset=dataset, processing_class=tokenizer, **more)

    return make


def short(completions: list[str], **others: Any) -> list[float]:
    return [-float(len(text)) for text in completions]


def test_a_grafted_class_adds_rewards_and_callbacks_to_the_scripts_own(script: Any) -> None:
    grafted = budwood.graft(GRPOTrainer, {"words": {}})
    assert (grafted.__name__, grafted.__module__, issubclass(grafted, GRPOTrainer)) == (
        "GRPOTrainer",
        GRPOTrainer.__module__,
        True,
    )
    trainer = script(grafted, GRPOConfig, "grpo", reward_funcs=short, args={"reward_weights": [0.5]})
    assert trainer.reward_func_names == ["short", "words.vowels"]
    assert trainer.reward_weights.tolist() == [0.5, 1.0]
    trainer.train()
    assert made[-1].callback.seen == [1, 2]
    assert trainer.state.global_step == 2, "a plugin stopped it"
    history = trainer.state.log_history
    assert [row["words/told"] for row in history if "words/told" in row] == [1.0, 2.0]
    means = [row["rewards/words.vowels/mean"] for row in history if "rewards/words.vowels/mean" in row]
    assert len(means) == 2, "what a plugin tells leaves TRL's own numbers alone"


def test_a_script_may_use_its_configuration_again(script: Any, model_folder: Path, tmp_path: Path) -> None:
    grafted = budwood.graft(GRPOTrainer, {"words": {}})
    first = script(grafted, GRPOConfig, "grpo", reward_funcs=short, args={"reward_weights": [0.5]})
    assert first.args.reward_weights == [0.5, 1.0]
    settings = GRPOConfig(output_dir=str(tmp_path), bf16=False, report_to="none", **ARGS["grpo"])
    model, tokenizer = load(str(model_folder))
    for _ in "ab":
        made = grafted(model, short, settings, Dataset.from_list(rows("grpo")), processing_class=tokenizer)
        assert settings.reward_weights is None
        assert made.reward_weights.tolist() == [1.0, 1.0]


def test_a_combination_alone_weighs_the_scripts_rewards(script: Any) -> None:
    trainer = script(budwood.graft(GRPOTrainer, {"weighs": {}}), GRPOConfig, "grpo", steps=1, reward_funcs=short)
    trainer.train()
    assert trainer.reward_weights.tolist() == [5.0]


class Varied(SFTTrainer):  # type: ignore[misc]
    """A subclass as scripts write them."""

    def __init__(self, *args: Any, note: str = "", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.note = note


def test_a_subclass_that_passes_its_arguments_on(script: Any) -> None:
    grafted = budwood.graft(Varied, {"quiet": {}})
    trainer = script(lambda model, args, **more: grafted(model, args, note="mine", **more), SFTConfig, "sft")
    assert (trainer.note, trainer.args.max_steps, type(trainer).__name__) == ("mine", 3, "Varied")
    trainer.train()
    assert trainer.state.global_step == 2, "a plugin stopped it"
    with pytest.raises(TypeError, match="positional arguments"):
        grafted(*range(30))
    with pytest.raises(TypeError, match="colour"):
        script(grafted, SFTConfig, "sft", colour=1)


def test_every_object_has_plugins_of_its_own(script: Any) -> None:
    grafted = budwood.graft(GRPOTrainer, {"words": {}})
    one, other = (script(grafted, GRPOConfig, "grpo", steps=1) for _ in "ab")
    one.train()
    assert [plugin.callback.seen for plugin in made[-2:]] == [[1], []]
    del other


def test_without_contributions_of_effect_a_grafted_class_trains_as_before(script: Any) -> None:
    plain = script(SFTTrainer, SFTConfig, "sft", steps=2)
    plain.train()
    grafted = script(budwood.graft(SFTTrainer, {"quiet": {}}), SFTConfig, "sft", steps=2)
    grafted.train()
    assert same(parameters(plain), parameters(grafted))


def test_a_loss_term_reaches_a_grafted_dpo(script: Any) -> None:
    plain, grafted = (
        script(DPOTrainer, DPOConfig, "dpo"),
        script(budwood.graft(DPOTrainer, {"pulls": {}}), DPOConfig, "dpo"),
    )
    plain.train()
    grafted.train()
    sizes = [sum(float((value**2).sum()) for value in parameters(t).values()) for t in (plain, grafted)]
    assert sizes[1] < sizes[0]
    assert torch.isfinite(torch.tensor(sizes)).all()


def test_a_script_that_counts_epochs(script: Any) -> None:
    trainer = script(budwood.graft(SFTTrainer, {"quiet": {}}), SFTConfig, "sft", steps=-1, args={"num_train_epochs": 1})
    trainer.train()
    assert trainer.state.global_step == 2


def test_a_built_trainer_takes_callbacks_and_refuses_what_its_constructor_takes(script: Any) -> None:
    trainer = script(SFTTrainer, SFTConfig, "sft")
    assert budwood.graft(trainer, {"quiet": {}}) is trainer
    trainer.train()
    assert trainer.state.global_step == 2
    with pytest.raises(BindingError, match="it is grafted already"):
        budwood.graft(trainer, {"quiet": {}})
    fresh = script(SFTTrainer, SFTConfig, "sft")
    with pytest.raises(
        BindingError, match=r"loss_terms pulls\.pull cannot be bound to a trainer that is already built"
    ):
        budwood.graft(fresh, {"pulls": {}})


def test_what_a_class_cannot_bind_is_refused_at_once() -> None:
    with pytest.raises(BindingError, match=r"SFTTrainer cannot bind completion reward vowels\.vowels: .*writes none"):
        budwood.graft(SFTTrainer, {"vowels": {}})


class Counts:
    """A reward that remembers how often it was asked, and a callback that hears evaluations."""

    def __init__(self) -> None:
        self.calls, self.heard = 0.0, []
        made.append(self)

    def reward(self, batch: Any) -> list[float]:
        self.calls += 1
        return [self.calls] * len(batch.texts)

    def state_dict(self) -> dict[str, float]:
        return {"calls": self.calls}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.calls = state["calls"]

    @hookimpl
    def completion_rewards(self, run: Run) -> Any:
        return CompletionReward("calls", self.reward, state=self)

    @hookimpl
    def callbacks(self, run: Run) -> Any:
        return Hears(self.heard)


class Hears(RunCallback):
    def __init__(self, heard: list[Any]) -> None:
        self.heard = heard

    def on_eval_metrics(self, control: Any, metrics: Any) -> None:
        self.heard.append((control.steps, sorted(metrics)[:1], metrics["eval/reward"]))


def test_a_scripts_own_evaluations_move_no_plugin_and_are_heard(script: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(KINDS, "counts", Counts)
    grafted = budwood.graft(GRPOTrainer, {"counts": {}})
    evaluated = {"eval_strategy": "steps", "eval_steps": 2, "per_device_eval_batch_size": 4, "logging_steps": 4}
    held_out = Dataset.from_list(rows("grpo", 8))
    trainer = script(grafted, GRPOConfig, "grpo", steps=4, eval_dataset=held_out, args=evaluated)
    trainer.evaluate()
    trainer.train()
    trainer.evaluate(eval_dataset={"one": held_out, "two": held_out})
    counts = made[-1]
    assert counts.calls == 4
    assert [steps for steps, _, _ in counts.heard] == [2, 4], "those amid training"
    history = trainer.state.log_history
    evaluated = [row["eval_reward"] for row in history if "eval_reward" in row]
    assert evaluated[:2] == [reward for _, _, reward in counts.heard] == [6.5, 8.5], "calls 3 to 10, and 5 to 12"
    assert evaluated[2:] == [8.5, 8.5], "each of several sets of rows"
    assert [row["reward"] for row in history if "reward" in row] == [2.5], "the mean of 1 to 4"


def test_several_processes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match=r"graft: several processes do not work yet.*started 2 of them"):
        budwood.graft(SFTTrainer, {"quiet": {}})
