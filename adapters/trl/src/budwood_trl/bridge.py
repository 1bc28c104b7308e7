"""Between the training loop of transformers and budwood's events.

A boundary lies after an optimiser step, once its numbers are logged. transformers logs after ``on_step_end``, so a step
whose numbers are due has its boundary in ``on_log``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback

from budwood.api import TrainerEvents


class StopTraining(Exception):  # noqa: N818
    """Leaves ``train`` before its first step; caught around it."""


class Bridge(TrainerCallback):
    """``begin()`` is called once when ``train`` has set everything up; ``before_step()`` before every optimiser step.

    ``tells``: whether the trainer's own numbers go to the events, as in a run; in a grafted script they stay where they are.
    """

    def __init__(
        self, events: TrainerEvents, begin: Callable[[], None], before_step: Callable[[], None], tells: bool = True
    ) -> None:
        self.events = events
        self._begin, self._before_step, self._tells = begin, before_step, tells
        self.logged = False
        """Whether the numbers of the last step have gone out."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        self._begin()
        if not self.events.start():
            raise StopTraining

    def on_step_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        self._before_step()
        self.logged = False

    def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        if not control.should_log:
            self._boundary(state, control)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **others: Any) -> None:
        if not logs or "loss" not in logs:
            return  # an evaluation's, or the summary at the end
        if self._tells:
            numbers = {f"train/{name}": float(value) for name, value in logs.items() if is_number(value)}
            self.events.log(numbers, state.global_step)
        self.logged = True
        self._boundary(state, control)

    def _boundary(self, state: Any, control: Any) -> None:
        if state.global_step >= self.events.next_boundary and not self.events.boundary(state.global_step):
            control.should_training_stop = True

    def on_train_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        self.events.boundary(state.global_step)


def is_number(value: Any) -> bool:
    return isinstance(value, (bool, int, float))
