"""Two stages in one run: first a loose size limit, then a tight one. A state machine that knows no trainer.

The switch decides which prompt rows are rendered with from then on. What a row is scored with is the stage that it carries
itself, since rows may have been fetched before the switch and be scored after it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field

from budwood.api import CheckpointError, Config, ConfigError, StateTree
from budwood_lcqa_selector.prompts import TIGHT, WIDE

STATE_FILE = "stage_state.json"
Reason = Literal["max_steps", "plateau"]
NOTHING = 0.0
"""What an empty pick earns, and one beyond the limit; a malformed answer earns less."""


class Stage(Config):
    """One stage. It ends after ``max_steps`` optimiser steps, or when ``patience`` evaluations in a row have not gained
    ``min_delta``, but not before ``min_steps``; the last one never ends. The paper gives none of these numbers.

    A reward that has not gained ``min_delta`` over :data:`NOTHING` in this stage is dead, not on a plateau: nothing is
    learned yet, and ``max_steps`` alone ends the stage. This is ours; the paper says only "plateaus"."""

    name: str = Field(min_length=1, description="how logs and the report call it")
    red: int = Field(ge=0, description="passages allowed beyond the evidence: red_i of the paper")
    prompt: str = Field(min_length=1, description="the stage's sentence in the picker's instructions")
    max_steps: int | None = Field(
        default=None,
        ge=1,
        description="optimiser steps after which the next stage begins; "
        "give them where the reward may start dead, at 0 or less, which is no plateau",
    )
    min_steps: int = Field(default=0, ge=0, description="optimiser steps before which no plateau ends it")
    patience: int = Field(default=3, ge=1, description="evaluations without a gain, after one, that end it")
    min_delta: float = Field(default=0.005, ge=0, description="smallest gain that counts as one")


RECALL = Stage(name="recall", red=4, prompt=WIDE)
PRECISION = Stage(name="precision", red=1, prompt=TIGHT)
TWO_STAGES = (RECALL, PRECISION)


@dataclass(frozen=True)
class Switch:
    """Stage ``index`` began after ``step`` optimiser steps, for ``reason``."""

    index: int
    step: int
    reason: Reason


class StageController:
    """Which stage rows are rendered for now. Fed with steps and evaluations that all processes see alike, so that all switch
    together."""

    def __init__(self, stages: Sequence[Stage] = TWO_STAGES) -> None:
        self.stages = tuple(stages)
        self.index = 0
        self.switches: list[Switch] = []
        self.began, self.stale, self.best = 0, 0, NOTHING

    @property
    def stage(self) -> Stage:
        return self.stages[self.index]

    @property
    def last(self) -> bool:
        return self.index == len(self.stages) - 1

    def stepped(self, step: int) -> Switch | None:
        """After ``step`` optimiser steps of the whole run: the switch, if the stage has had its steps."""
        limit = self.stage.max_steps
        if self.last or limit is None or step - self.began < limit:
            return None
        return self._next(step, "max_steps")

    def evaluated(self, step: int, value: float) -> Switch | None:
        """After an evaluation, higher being better: the switch, if the stage has gained and has stopped gaining."""
        if value > self.best + self.stage.min_delta:  # never true of NaN
            self.best, self.stale = value, 0
        elif self.best > NOTHING:
            self.stale += 1
        done = self.stale >= self.stage.patience and step - self.began >= self.stage.min_steps
        return self._next(step, "plateau") if done and not self.last else None

    def measured(self, step: int, metrics: Mapping[str, float], monitor: str) -> Switch | None:
        """:meth:`evaluated` with the number ``monitor``, which budwood calls ``eval/NAME`` and TRL ``eval_NAME``.

        :raises ConfigError: if it is not among ``metrics``, and a stage waits for it.
        """
        found = next((metrics[name] for name in (f"eval/{monitor}", f"eval_{monitor}") if name in metrics), None)
        if found is not None:
            return self.evaluated(step, found)
        if self.last:
            return None
        there = (
            ", ".join(sorted(name.removeprefix("eval")[1:] for name in metrics if name.startswith("eval"))) or "none"
        )
        raise ConfigError(
            f"the stage {self.stage.name!r} ends when {monitor!r} of evaluations stops rising, and this evaluation has none",
            where="monitor",
            do=f"Choose among the numbers there are: {there}",
        )

    def _next(self, step: int, reason: Reason) -> Switch:
        self.index += 1
        self.began, self.stale, self.best = step, 0, NOTHING
        switch = Switch(self.index, step, reason)
        self.switches.append(switch)
        return switch

    # ---- state -------------------------------------------------------------------------------------------------------

    def state_dict(self) -> StateTree:
        return {
            "names": [stage.name for stage in self.stages],
            "index": self.index,
            "began": self.began,
            "best": self.best,
            "stale": self.stale,
            "switches": [[switch.index, switch.step, switch.reason] for switch in self.switches],
        }

    def load_state_dict(self, state: StateTree) -> None:
        names = [stage.name for stage in self.stages]
        if list(state["names"]) != names:
            raise CheckpointError(
                f"it was written in a run of the stages {', '.join(state['names'])}; this one has {', '.join(names)}",
                where=STATE_FILE,
                do="Resume with the stages it was started with",
            )
        self.index, self.began = int(state["index"]), int(state["began"])
        self.best = NOTHING if state["best"] is None else float(state["best"])  # null until 0.1.0: no evaluation yet
        self.stale = int(state["stale"])
        self.switches = [Switch(int(index), int(step), reason) for index, step, reason in state["switches"]]

    def save(self, folder: Path) -> None:
        """Write ``stage_state.json`` into a checkpoint's folder."""
        (folder / STATE_FILE).write_text(json.dumps(self.state_dict(), indent=1))

    def load(self, folder: Path) -> None:
        """:raises CheckpointError: if ``folder`` holds no state that belongs to these stages."""
        path = folder / STATE_FILE
        try:
            state = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"the stage of the run cannot be read: {error}",
                where=str(path),
                do="Resume from a checkpoint that was written with the same stage callback",
            ) from error
        self.load_state_dict(state)


def said_of_waiting(stages: Sequence[Stage]) -> str | None:
    """What to know of a stage before the last that evaluations alone end."""
    waiting = [stage.name for stage in stages[:-1] if stage.max_steps is None]
    if not waiting:
        return None
    return (
        f"stage {waiting[0]!r} has no max_steps: as long as the monitored number of evaluations is {NOTHING:g} or less, "
        "nothing ends it"
    )


def refuse_endless(stages: Sequence[Stage], evaluated: bool, where: str) -> None:
    """:raises ConfigError: for a stage before the last that nothing ends: no ``max_steps``, and no evaluation to watch."""
    endless = [stage.name for stage in stages[:-1] if stage.max_steps is None]
    if endless and not evaluated:
        raise ConfigError(
            f"the stage {endless[0]!r} would never end: it has no max_steps, and no evaluation comes before training ends",
            where=where,
            do="Give it max_steps, or held-out rows and evaluations on them",
        )
