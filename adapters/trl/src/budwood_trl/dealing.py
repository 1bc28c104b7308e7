"""How the rows of an optimiser step are dealt out among processes.

TRL's configuration says how many rows each process takes. A run that goes on in another number of processes keeps the rows
of its steps, so the sizes of each process follow from those of the processes that it began with.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from budwood.api import ConfigError

ROWS, MICRO_BATCHES = "per_device_train_batch_size", "gradient_accumulation_steps"
GENERATION, GENERATED = "steps_per_generation", "generation_batch_size"
TO_THE_LEFT = ("prompt_ids", "prompt_mask")
"""What TRL pads at its beginning; all else is padded at its end."""


@dataclass(frozen=True)
class Deal:
    """In each of ``processes``, an optimiser step takes ``micro_batches`` of ``rows``."""

    rows: int
    micro_batches: int
    processes: int

    @property
    def step(self) -> int:
        """Rows of an optimiser step, of all processes together."""
        return self.rows * self.micro_batches * self.processes

    def among(self, processes: int, generated: int | None = None) -> Deal:
        """The same step in another number of processes: in as few micro-batches as are no larger than these, of which a whole
        number makes the ``generated`` rows that are completed at once.

        :raises ConfigError: its rows cannot be divided evenly.
        """
        each, rest = divmod(self.step, processes)
        if rest:
            fitting = [count for count in range(1, self.step + 1) if self.step % count == 0]
            raise ConfigError(
                f"a step has {self.step} rows ({self.processes} processes x {self.micro_batches} micro-batches x "
                f"{self.rows} rows), which cannot be divided among {processes}",
                where=f"trainer.args.{ROWS}",
                do=f"Go on in a number of processes that divides them: {', '.join(map(str, fitting[:8]))}",
            )
        fewest = -(-each // self.rows)
        for count in range(fewest, each + 1):
            if each % count == 0 and (generated or 0) % (each // count * processes) == 0:
                return Deal(each // count, count, processes)
        raise ConfigError(
            f"completions are written for {generated} rows at once, which cannot be divided among {processes} processes",
            where=f"trainer.args.{GENERATION}",
            do=f"Go on in a number of processes that divides them, such as {self.processes}",
        )


def sizes_among(
    args: Mapping[str, Any], defaults: Mapping[str, Any], begun_with: int, processes: int
) -> dict[str, Any]:
    """``trainer.args``, written for ``begun_with`` processes, as each of ``processes`` has to have them.

    :raises ConfigError: the rows of a step, or of a generation, cannot be divided evenly.
    """
    if processes == begun_with:
        return dict(args)
    rows, micro_batches = (int(args.get(name) or defaults[name]) for name in (ROWS, MICRO_BATCHES))
    generated = args.get(GENERATED) or rows * begun_with * int(args.get(GENERATION) or 0)
    here = Deal(rows, micro_batches, begun_with).among(processes, generated)
    changed = {**args, ROWS: here.rows, MICRO_BATCHES: here.micro_batches}
    if args.get(GENERATION):
        changed[GENERATION] = generated // (here.rows * processes)
    return changed


def dealt_anew(held: Sequence[Sequence[Mapping[str, Any]]], here: Deal, rank: int) -> list[dict[str, Any]] | None:
    """The micro-batches of completions that process ``rank`` has in hand; None where their values are not one for each row.

    ``held``: those of every process that wrote them. A value is a tensor (rows, ...) or a list with an entry for each row; one
    that belongs to the whole batch is a tensor without dimensions or None. A step takes the rows that it would have taken.
    """
    singles: list[dict[str, Any]] = []
    for batch in (batch for of_all in zip(*held, strict=True) for batch in of_all):
        size = len(batch["prompt_ids"])
        if not all(_of_all(value) or _of_rows(value, size) for value in batch.values()):
            return None
        singles += [
            {name: value if _of_all(value) else value[row : row + 1] for name, value in batch.items()}
            for row in range(size)
        ]
    step = here.rows * here.processes
    return [_together(singles[first : first + here.rows]) for first in range(rank * here.rows, len(singles), step)]


def _of_all(value: Any) -> bool:
    return value is None or (isinstance(value, torch.Tensor) and value.ndim == 0)


def _of_rows(value: Any, size: int) -> bool:
    """Whether it can be taken apart and padded: a list, numbers, or sequences of them."""
    return isinstance(value, list | torch.Tensor) and len(value) == size and getattr(value, "ndim", 1) <= 2


def _together(singles: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One micro-batch of single rows, padded to the longest of them: masks say what is padding."""
    found: dict[str, Any] = {}
    for name, first in singles[0].items():
        values = [single[name] for single in singles]
        if _of_all(first):
            found[name] = first
        elif isinstance(first, torch.Tensor):
            found[name] = torch.cat(_padded(values, left=name in TO_THE_LEFT))
        else:
            found[name] = [entry for value in values for entry in value]
    return found


def _padded(values: Sequence[torch.Tensor], left: bool) -> list[torch.Tensor]:
    """Of shape (1, T) or (1,): zeros up to the largest T."""
    if values[0].ndim == 1:
        return list(values)
    longest = max(value.shape[1] for value in values)
    gaps = [longest - value.shape[1] for value in values]
    return [
        torch.nn.functional.pad(value, (gap, 0) if left else (0, gap)) if gap else value
        for value, gap in zip(values, gaps, strict=True)
    ]
