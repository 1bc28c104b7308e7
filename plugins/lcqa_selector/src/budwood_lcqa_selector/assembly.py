"""What the hooks of one run share: one controller, which the dataset, the callback and the checkpoint all mean."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from budwood.api import ConfigError, Run
from budwood_lcqa_selector.config import SelectorConfig
from budwood_lcqa_selector.dataset import refuse_workers, stage_dataset
from budwood_lcqa_selector.following import StageCallback
from budwood_lcqa_selector.records import read_rows
from budwood_lcqa_selector.scoring import PickerScore
from budwood_lcqa_selector.stages import StageController, refuse_endless

WHERE = "plugins.lcqa_selector"


class Picking:
    """The picker's side of ``run``. :raises ConfigError: for loader processes, which would never hear of a switch."""

    def __init__(self, run: Run) -> None:
        config: SelectorConfig = run.section
        self.run, self.config = run, config
        trainer = run.config.get("trainer", {})
        arguments = trainer.get("args", {}) if isinstance(trainer, Mapping) else {}
        refuse_workers(arguments.get("dataloader_num_workers") or 0, "trainer.args.dataloader_num_workers")
        self.controller = StageController(config.stages)
        self.score = PickerScore(config.stages, config.gamma, config.mode, config.think)

    def dataset(self, role: str) -> Any | None:
        """The rows of ``role``, train or eval; None where the section names no file for it."""
        if role == "eval" and "evaluation" in self.run.config:
            refuse_endless(self.config.stages, self._evaluated(), f"{WHERE}.stages")
        name = self.config.rows if role == "train" else self.config.eval_rows
        if name is None:
            return None
        rows = list(read_rows(Path(name).expanduser()))
        if not rows:
            key = "rows" if role == "train" else "eval_rows"
            raise ConfigError(f"{name} has no rows", where=f"{WHERE}.{key}", do="Mine some: lcqa mine")
        return stage_dataset(
            rows, self.controller, self.config.prompt, seed=self.run.seed, role=role, tokenizer=self._tokenizer
        )

    @cached_property
    def _tokenizer(self) -> Any | None:
        """The policy's; None in a script that does not say which."""
        name = self.config.tokenizer or getattr(self.run.trainer, "model", None)
        if name is None:
            return None
        from budwood_models.language_model import load_tokenizer

        return load_tokenizer(name)

    def _evaluated(self) -> bool:
        """Whether the run evaluates, on rows of its own, before its end."""
        evaluation, trainer = self.run.config["evaluation"], self.run.config["trainer"]
        rows = self.config.eval_rows or self.run.config.get("dataset", {}).get("eval")
        every = evaluation["every"]
        return bool(rows and evaluation["episodes"] and every and every < trainer["total_steps"])

    def callback(self) -> StageCallback:
        folder = self.run.folder if self.run.processes.first else None
        return StageCallback(self.controller, self.config.monitor, self.score.samples, folder)
