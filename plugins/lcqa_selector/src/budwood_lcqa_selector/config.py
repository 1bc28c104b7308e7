"""The plugin's section of a YAML."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from budwood.api import Config
from budwood_lcqa_selector.prompts import REASONED, TASK, UNREASONED, PickerPrompt
from budwood_lcqa_selector.reward import Mode
from budwood_lcqa_selector.stages import TWO_STAGES, Stage


class SelectorConfig(Config):
    """What the picker is trained on, how it is asked, and how its picks are rewarded."""

    rows: str | None = Field(
        default=None, description="JSON lines of pool rows to train on, as `lcqa mine` writes them"
    )
    eval_rows: str | None = Field(default=None, description="JSON lines of pool rows to evaluate on")
    stages: tuple[Stage, ...] = Field(default=TWO_STAGES, min_length=1, description="stages in their order")
    mode: Mode = Field(default="within", description="reading of the size penalty: within, paper, beyond or none")
    gamma: float = Field(
        default=0.5, ge=0.0, le=1.0, description="what a passage too many costs, in parts of the limit"
    )
    rationale: bool = Field(default=True, description="whether the picker is asked for a rationale before the ids")
    think: bool = Field(default=False, description="whether text before the JSON object is allowed")
    task: str = Field(default=TASK, description="what the picker is told to do")
    words: int = Field(default=200, ge=1, description="words of a passage that the prompt shows")
    tokenizer: str | None = Field(
        default=None, description="the model whose control tokens passages must not hold; null: that of trainer.model"
    )
    monitor: str = Field(
        default="reward",
        description="number of evaluations whose plateau ends a stage; it must be 0 or less where nothing is right",
    )

    @model_validator(mode="after")
    def _stages_are_told_apart(self) -> Self:
        names = [stage.name for stage in self.stages]
        if len(set(names)) < len(names):
            raise ValueError(f"two stages have the same name: {', '.join(names)}")
        return self

    @property
    def prompt(self) -> PickerPrompt:
        return PickerPrompt(task=self.task, form=REASONED if self.rationale else UNREASONED, words=self.words)
