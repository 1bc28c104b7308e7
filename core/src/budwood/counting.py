"""How far training is in environment steps: what budgets are told in, and methods compared by."""

from __future__ import annotations

from budwood.api import Counted, Processes, Trainer


class EnvSteps:
    """``trained``: by the trainer's own count, of all processes together; where it has none, as many as steps."""

    def __init__(self, trainer: Trainer, processes: Processes) -> None:
        self._trainer, self._processes = trainer, processes
        self.trained = 0
        self._seen: int | None = None

    def begin(self) -> None:
        """What the trainer has counted so far is from before."""
        self._seen = self._counted()

    def advance(self, by: int) -> None:
        """Training went on by ``by`` steps."""
        now = self._counted()
        self.trained += by if now is None or self._seen is None else now - self._seen
        self._seen = now

    def left(self, budget: int) -> int:
        """Steps of training until ``budget`` environment steps are trained, if they can be told: else 0."""
        return max(0, budget - self.trained) if self._seen is None else 0

    def _counted(self) -> int | None:
        here = self._trainer.env_steps() if isinstance(self._trainer, Counted) else None
        if not self._processes.several:
            return here
        everywhere: list[int | None] = self._processes.gather(here)
        counted = [count for count in everywhere if count is not None]
        return sum(counted) if counted else None
