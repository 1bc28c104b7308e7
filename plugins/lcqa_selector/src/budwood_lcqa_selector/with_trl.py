"""The picker in a script of one's own, with TRL and without ``budwood run``.

controller = StageController(config.stages)
GRPOTrainer(
    model, reward_funcs=picker_reward(config), train_dataset=stage_dataset(rows, controller, config.prompt),
    eval_dataset=stage_dataset(held_out, controller, config.prompt, role="eval"),
    callbacks=[StageTrainerCallback(controller, config.monitor)], args=GRPOConfig(eval_strategy="steps", eval_steps=10, ...),
)

Evaluations end a stage; without any, every stage but the last needs ``max_steps``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from budwood.api import Completions
from budwood_lcqa_selector.config import SelectorConfig
from budwood_lcqa_selector.dataset import refuse_workers
from budwood_lcqa_selector.scoring import PickerScore
from budwood_lcqa_selector.stages import StageController, refuse_endless


def picker_reward(config: SelectorConfig) -> PickerReward:
    """The reward function of ``config``, as TRL calls one."""
    return PickerReward(PickerScore(config.stages, config.gamma, config.mode, config.think))


class PickerReward:
    """TRL's call of a reward function -> :class:`PickerScore`. Its name is that of the columns TRL logs."""

    __name__ = "lcqa_selector.evidence"

    def __init__(self, score: PickerScore) -> None:
        self.score = score

    def __call__(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        completion_ids: Sequence[Sequence[int]],
        trainer_state: TrainerState | None = None,
        log_metric: Callable[[str, float], None] | None = None,
        log_extra: Callable[..., None] | None = None,
        **columns: Sequence[Any],
    ) -> list[float | None]:
        texts = [text if isinstance(text, str) else text[-1]["content"] for text in completions]
        return self.score(
            Completions(
                prompts=prompts,
                texts=texts,
                ids=completion_ids,
                columns=columns,
                step=trainer_state.global_step if trainer_state is not None else 0,
                log=log_metric or _nowhere,
            )
        )


def _nowhere(name: str, value: float) -> None: ...


class StageTrainerCallback(TrainerCallback):
    """Tells ``controller`` of steps and evaluations; its state is a file of every checkpoint, read when training resumes.

    Resuming from a folder that is not ``output_dir/checkpoint-STEP``: call ``controller.load(folder)`` before, and give
    ``resumed=True``.
    """

    def __init__(self, controller: StageController, monitor: str = "reward", *, resumed: bool = False) -> None:
        self.controller, self.monitor, self.resumed = controller, monitor, resumed

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        refuse_workers(args.dataloader_num_workers, "dataloader_num_workers")
        refuse_endless(self.controller.stages, args.eval_strategy != "no", "stages")
        if state.global_step and not self.resumed:
            self.controller.load(_checkpoint(args, state))

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.controller.stepped(state.global_step)

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.controller.measured(state.global_step, kwargs["metrics"], self.monitor)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            self.controller.save(_checkpoint(args, state))


def _checkpoint(args: TrainingArguments, state: TrainerState) -> Path:
    return Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
