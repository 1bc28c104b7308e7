"""Seconds by activity, an activity inside another counted once."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Stopwatch:
    def __init__(self, *activities: str) -> None:
        self.seconds = dict.fromkeys(activities, 0.0)
        self._inside = 0.0

    @contextmanager
    def timed(self, what: str) -> Iterator[None]:
        """Count seconds under ``what``, less those that an activity inside it counts itself."""
        outside, self._inside = self._inside, 0.0
        started = time.perf_counter()
        try:
            yield
        finally:
            spent = time.perf_counter() - started
            self.seconds[what] += spent - self._inside
            self._inside = outside + spent
