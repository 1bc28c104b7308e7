"""The processes that train one run together, as adapters and plugins see them. One alone is the usual case."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Literal, TypeVar

Value = TypeVar("Value")

Across = Literal["same", "environments", "first"]
"""What a contribution that remembers something says of its memory, as its attribute ``across_processes``:

* ``same``: it follows from what every process is told alike (steps, evaluations, rollouts, the run's own generators), or
  ``synchronise(processes)``, called on every process at every boundary, makes it so. Compared at every checkpoint.
* ``environments``: every numpy array and torch tensor of its state, at whatever depth, has one row for each of this process's
  environments; all else in it is the same everywhere. A checkpoint holds the rows of all.
* ``first``: of a callback that only watches, such as one that writes a file: process 0 alone calls it. It may look, log and
  note. Stopping, saving, resetting, loading and evaluating it may not ask for, in one process either: the others would not hear
  of it in time, and an evaluation needs them.
"""
ACROSS: tuple[Across, ...] = ("same", "environments", "first")


class Processes:
    """``count`` processes, of which this one is ``rank`` (from 0); ``local_rank`` counts those of this machine.

    Every method is called by all of them, at the same place and in the same order; each waits for the others.
    """

    rank = 0
    local_rank = 0
    count = 1

    @property
    def first(self) -> bool:
        """Whether this is the one that tracks, writes and draws."""
        return self.rank == 0

    @property
    def several(self) -> bool:
        return self.count > 1

    def part(self, total: int) -> slice:
        """This process's share of ``total`` items, which ``count`` divides."""
        size, rest = divmod(total, self.count)
        if rest:
            raise ValueError(f"{total} cannot be divided among {self.count}")
        return slice(self.rank * size, (self.rank + 1) * size)

    def watched(self, folder: Path) -> AbstractContextManager[None]:
        """Around a training in ``folder``: an exchange that fails because another process did is told as that one's failure,
        and one that waits in vain leaves there what every process was doing."""
        return nullcontext()

    def gather(self, value: Value) -> list[Value]:
        """Every process's ``value``, by rank: anything that can be pickled, such as numbers, dicts of them and numpy arrays.

        Pickled between the processes of one run only. Everybody gets a copy of everything: for what process 0 alone needs,
        :meth:`to_first`, and for a sum of tensors, :meth:`sum`.
        """
        return [value]

    def to_first(self, value: Value) -> list[Value]:
        """What :meth:`gather` gives, on process 0; an empty list on the others."""
        return [value]

    def from_first(self, value: Value) -> Value:
        """The ``value`` of process 0."""
        return value

    def sum(self, tensor: Any) -> Any:
        """A torch tensor becomes the sum over all processes, in place; every process gets the same bits.

        Of a numpy array, ``sum(torch.from_numpy(array))`` changes the array too. Without torch: ``np.sum(gather(array), 0)``.
        """
        return tensor


ALONE = Processes()
