"""The reward of a manager-based task, term by term, beside the author's total.

Isaac Lab's reward manager keeps weight x term in a tensor ``_step_reward`` (n, K), which it overwrites at every step. It
is not multiplied by the step's length, while the total is, and a term of weight 0 is not computed at all. So every term is
asked for with weight +1 or -1, the author's sign, and the author's total is put together again from the same numbers.
"""

from __future__ import annotations

from typing import Any

import torch


class PerTermRewards:
    """Stands where an environment's reward manager stood: ``compute`` differs, everything else is the manager's own.

    ``names`` are its K active terms. After ``compute``, ``terms`` (n, K) float64 holds sign x term x dt, and
    ``author_weights`` what the author, or a curriculum of the task, had set: |weight| x terms, summed, is the total.
    A term that the author gave weight 0 counts as positive.
    """

    def __init__(self, manager: Any) -> None:
        self._manager = manager
        self.names: tuple[str, ...] = tuple(manager.active_terms)
        self.author_weights = self._weights()
        self._signs = [-1.0 if weight < 0 else 1.0 for weight in self.author_weights]
        self.terms = torch.zeros(0, len(self.names), dtype=torch.float64)
        self._magnitudes: torch.Tensor | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._manager, name)

    def compute(self, dt: float) -> torch.Tensor:
        """The author's total (n,), to the bit what the manager itself returns under the author's weights."""
        weights = self._weights()
        if weights != self.author_weights:
            self.author_weights, self._magnitudes = weights, None
        self._set(self._signs)
        try:
            self._manager.compute(dt=dt)
        finally:
            self._set(self.author_weights)
        signed: torch.Tensor = self._manager._step_reward
        self.terms = signed.to(torch.float64) * dt
        if self._magnitudes is None:
            signs = zip(self.author_weights, self._signs, strict=True)
            self._magnitudes = signed.new_tensor([weight * sign for weight, sign in signs])
        weighted = torch.where(self._magnitudes == 0, 0.0, signed * self._magnitudes)  # 0 x inf is no zero
        return weighted.sum(dim=1).mul_(dt)

    def _weights(self) -> list[float]:
        return [float(self._manager.get_term_cfg(name).weight) for name in self.names]

    def _set(self, weights: list[float]) -> None:
        for name, weight in zip(self.names, weights, strict=True):
            term = self._manager.get_term_cfg(name)
            term.weight = weight
            self._manager.set_term_cfg(name, term)
