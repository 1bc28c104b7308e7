"""The stage controller in a run: what it hears, and what it records."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from budwood.api import RunCallback, RunControl, StateTree
from budwood_lcqa_selector.scoring import PREFIX
from budwood_lcqa_selector.stages import StageController, Switch, said_of_waiting

SAMPLES_FILE = "lcqa_selector_samples.json"


class StageCallback(RunCallback):
    """Tells the controller of optimiser steps and of evaluations, and logs the stage.

    ``samples`` are the last answers to some questions; they are left in ``folder`` for the report.
    """

    across_processes = "same"

    def __init__(
        self, controller: StageController, monitor: str, samples: Mapping[str, Any], folder: Path | None
    ) -> None:
        self.controller, self.monitor = controller, monitor
        self._samples, self._folder = samples, folder

    def on_run_start(self, control: RunControl) -> None:
        control.log({f"{PREFIX}current_stage": float(self.controller.index)})
        if note := said_of_waiting(self.controller.stages):
            control.note(note)

    def on_update_end(self, control: RunControl) -> None:
        self._record(control, self.controller.stepped(control.steps))

    def on_eval_metrics(self, control: RunControl, metrics: Mapping[str, float]) -> None:
        self._record(control, self.controller.measured(control.steps, metrics, self.monitor))

    def on_run_end(self, control: RunControl) -> None:
        if self._folder is not None and self._samples:
            (self._folder / SAMPLES_FILE).write_text(json.dumps(list(self._samples.values()), ensure_ascii=False))

    def _record(self, control: RunControl, switch: Switch | None) -> None:
        if switch is not None:
            control.log({f"{PREFIX}current_stage": float(switch.index), f"{PREFIX}switched": float(switch.step)})

    def state_dict(self) -> StateTree:
        return self.controller.state_dict()

    def load_state_dict(self, state: StateTree) -> None:
        self.controller.load_state_dict(state)
