"""The framework's promise: with no plugin, and with plugins that change nothing, training is bare TRL.

Three steps on CPU, then every parameter, bit for bit, and every logged number but the clock's. One step of a real model, which
takes about four minutes and as many gigabytes:  pytest adapters/trl/tests/test_parity_trl.py -m slow
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from datasets import Dataset
from tiny import ARGS, Nowhere, Vowels, numbers, parameters, rows, same, vowels

from budwood.api import (
    CompletionReward,
    Contributed,
    Contributions,
    EvalReport,
    Evaluator,
    LossTerm,
    RewardTerm,
    Run,
    RunCallback,
    hookimpl,
)
from budwood.rhythm import Rhythm
from budwood.session import Session
from budwood_trl.families import FAMILIES
from budwood_trl.models import load

CASES = {
    **{f"grpo {loss}": ("grpo", {"loss_type": loss}) for loss in ("grpo", "dapo", "dr_grpo")},
    "grpo accumulated": ("grpo", {"gradient_accumulation_steps": 2, "beta": 0.1, "num_iterations": 2}),
    "rloo": ("rloo", {}),
    "dpo": ("dpo", {}),
    "sft": ("sft", {"gradient_accumulation_steps": 2}),
    "reward": ("reward", {}),
    "kto": ("kto", {}),
}


def by_text(completions: list[str], **others: Any) -> list[float | None]:
    class Batch:
        texts = completions

    return vowels(Batch)  # type: ignore[arg-type]


by_text.__name__ = "words.vowels"


def bare(algo: str, args: dict[str, Any], model: str | Path, folder: Path, steps: int = 3) -> Any:
    """What a person writes who has never heard of budwood."""
    family = FAMILIES[algo]
    transformers.set_seed(3)
    loaded, tokenizer = load(str(model), scores=algo == "reward")
    quiet = {"report_to": "none", "save_strategy": "no", "disable_tqdm": True, "logging_steps": 1, "use_cpu": True}
    cpu = {"bf16": False, "gradient_checkpointing": False, "dataloader_pin_memory": False}
    config = family.load_config()(
        output_dir=str(folder / "bare"), max_steps=steps, seed=3, **quiet, **cpu, **{**ARGS[algo], **args}
    )
    reward = {"reward_funcs": [by_text]} if family.generates else {}
    trainer = family.load()(
        model=loaded, args=config, train_dataset=Dataset.from_list(rows(algo)), processing_class=tokenizer, **reward
    )
    trainer.train()
    return trainer


def trained(made: Any, contributions: Any = None) -> Nowhere:
    memory = Nowhere()
    session = Session(made, contributions or Contributions(), memory, memory, Rhythm())
    made.fit(session)
    session.finish()
    return memory


@pytest.mark.parametrize("case", CASES)
def test_without_plugins_it_is_the_bare_trainer(case: str, trainer: Any, model_folder: Path, tmp_path: Path) -> None:
    algo, args = CASES[case]
    made = trainer(algo, **args)
    assert type(made.native) is FAMILIES[algo].load(), "nothing of ours is in the class"
    memory = trained(made)
    theirs = bare(algo, args, model_folder, tmp_path)
    assert numbers(made.native.state.log_history) == numbers(theirs.state.log_history)
    assert same(parameters(made.native), parameters(theirs))
    assert made.native.state.global_step == 3
    losses = [row["train/loss"] for _, row in memory.records]
    assert losses == [row["loss"] for row in theirs.state.log_history if "loss" in row]


class Watching(RunCallback):
    """Overrides events and changes nothing; ``seen`` are the steps it was called at."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def on_run_start(self, control: Any) -> None:
        self.seen.append(control.steps)

    def on_update_end(self, control: Any) -> None:
        self.seen.append(control.steps)


class AsDeclared:
    """The reward by the weight that TRL would give it."""

    version, needs_obs = 0, False
    names = ("env.reward", "words.vowels")
    column_weights = np.array([0.0, 1.0])

    def bind(self, columns: Any) -> None:
        assert tuple(column.name for column in columns) == self.names

    def __call__(self, terms: Any, obs: Any) -> Any:
        return terms @ self.column_weights


class Identity(Vowels):
    """Contributions of every kind that GRPO can bind, which change nothing."""

    @hookimpl
    def completion_rewards(self, run: Run) -> Any:
        return CompletionReward("vowels", vowels)

    @hookimpl
    def loss_terms(self, run: Run) -> Any:
        return LossTerm("zero", lambda inputs: inputs.log_prob.sum() * 0.0, needs=frozenset({"log_prob"}))

    @hookimpl
    def completion_advantage(self, run: Run) -> Any:
        return lambda scored: scored.advantages

    @hookimpl
    def rollout(self, run: Run) -> Any:
        return lambda request: request.generate(request.prompt_ids)

    @hookimpl
    def decoder(self, run: Run) -> Any:
        return lambda request: request.generate(request.prompt_ids)

    @hookimpl
    def reward_terms(self, run: Run) -> Any:
        return RewardTerm("vowels", info_key="words.vowels")

    @hookimpl
    def reward_combination(self, run: Run) -> Any:
        return AsDeclared()

    @hookimpl
    def evaluators(self, run: Run) -> Any:
        return Evaluator("probe", 1, lambda control: EvalReport({"return": control.evaluate(2, 0).returns.mean()}))

    @hookimpl
    def callbacks(self, run: Run) -> Any:
        return Watching()

    @hookimpl(wrapper=True)
    def build_dataset(self, run: Run, role: str) -> Any:
        return (yield)

    @hookimpl(wrapper=True)
    def build_model(self, run: Run) -> Any:
        return (yield)


class Nothing:
    """For the trainers that write no completions."""

    @hookimpl
    def loss_terms(self, run: Run) -> Any:
        return LossTerm(
            "zero", lambda inputs: next(inputs.policy.parameters()).sum() * 0.0, needs=frozenset({"policy"})
        )

    @hookimpl
    def callbacks(self, run: Run) -> Any:
        return Watching()


class Scored:
    """For RLOO, whose constructor takes no rollout."""

    @hookimpl
    def completion_rewards(self, run: Run) -> Any:
        return CompletionReward("vowels", vowels)

    @hookimpl
    def loss_terms(self, run: Run) -> Any:
        return LossTerm(
            "zero", lambda inputs: (inputs.entropy * inputs.mask).sum() * 0.0, needs=frozenset({"entropy", "mask"})
        )

    @hookimpl
    def completion_advantage(self, run: Run) -> Any:
        return lambda scored: np.array(scored.advantages)


@pytest.mark.parametrize(
    ("case", "plugin"), [("grpo accumulated", Identity), ("rloo", Scored), ("dpo", Nothing), ("sft", Nothing)]
)
def test_contributions_that_change_nothing_change_nothing(
    case: str, plugin: Any, trainer: Any, model_folder: Path, tmp_path: Path
) -> None:
    algo, args = CASES[case]
    given = plugin()
    made = trainer(algo, {"words": given}, **args)
    watching = Watching()
    memory = trained(
        made,
        Contributions(
            callbacks=[Contributed(watching, "words", "budwood-words 1.0")],
            evaluators=[Contributed(given.evaluators(None), "words", "budwood-words 1.0")]
            if plugin is Identity
            else [],
        ),
    )
    assert watching.seen == [0, 1, 2, 3]
    assert [step for step, row in memory.records if "words/return" in row] == ([1, 2, 3] if plugin is Identity else [])
    theirs = bare(algo, args, model_folder, tmp_path)
    assert same(parameters(made.native), parameters(theirs))
    ours = [{k: v for k, v in row.items() if "losses/" not in k} for row in numbers(made.native.state.log_history)]
    assert ours == numbers(theirs.state.log_history)


def test_a_contribution_that_changes_something_is_seen_here(trainer: Any, model_folder: Path, tmp_path: Path) -> None:
    class Pulls(Vowels):
        @hookimpl
        def loss_terms(self, run: Run) -> Any:
            return LossTerm(
                "pull", lambda inputs: -(inputs.log_prob * inputs.mask).sum(), 0.1, frozenset({"log_prob", "mask"})
            )

    made = trainer("grpo", {"words": Pulls()})
    trained(made)
    theirs = bare("grpo", {}, model_folder, tmp_path)
    assert not same(parameters(made.native), parameters(theirs))
    assert torch.isfinite(torch.tensor([row["loss"] for row in made.native.state.log_history if "loss" in row])).all()


@pytest.mark.slow
@pytest.mark.parametrize("case", [name for name in CASES if name not in ("grpo accumulated", "reward", "kto")])
def test_one_step_of_smollm2_is_the_bare_trainers(case: str, trainer: Any, tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    algo, args = CASES[case]
    made = trainer(algo, steps=1, model="smollm2", **args)
    trained(made)
    ours, history = parameters(made.native), numbers(made.native.state.log_history)
    del made
    theirs = bare(algo, args, "smollm2", tmp_path, steps=1)
    assert history == numbers(theirs.state.log_history)
    assert same(ours, parameters(theirs))
