"""What a large policy knows of an observation before it looks at actions, computed once and read by every step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Prefix:
    """B encoded observations.

    ``summary`` (B, S) float32 is what a critic reads. ``pad_mask`` (B, L) and ``cache`` hold the L prefix tokens' keys and
    values, None of a policy without tokens; ``state`` (B, padded) is set where the state enters with the actions.
    """

    summary: Tensor
    pad_mask: Tensor | None = None
    cache: Any = None
    state: Tensor | None = None

    @property
    def rows(self) -> int:
        return len(self.summary)

    @property
    def device(self) -> torch.device:
        return self.summary.device

    def repeated(self, times: int) -> Prefix:
        """Every row ``times`` times, copies of a row next to each other; with one, the same object."""
        if times == 1:
            return self

        def rows(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.repeat_interleave(times, dim=0)

        cache = None
        if self.cache is not None:
            layers = ((rows(keys), rows(values), window) for keys, values, window in self.cache)
            cache = type(self.cache)(tuple(layers))
        return Prefix(self.summary.repeat_interleave(times, dim=0), rows(self.pad_mask), cache, rows(self.state))


def pooled(tokens: Tensor, pad_mask: Tensor) -> Tensor:
    """(B, L, W), (B, L) -> (B, W) float32: the mean over the tokens that are there."""
    there = pad_mask.unsqueeze(-1)
    total = tokens.float().masked_fill(~there, 0.0).sum(1)
    return total / there.sum(1).clamp(min=1)
