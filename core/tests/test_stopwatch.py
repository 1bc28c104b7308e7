"""Seconds by activity: an activity inside another is counted once, also when it fails."""

from __future__ import annotations

from contextlib import suppress

import pytest

from budwood import stopwatch
from budwood.stopwatch import Stopwatch


@pytest.mark.parametrize("fails", [False, True])
def test_an_activity_inside_another_is_counted_once(fails: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(stopwatch, "time", type("Clock", (), {"perf_counter": staticmethod(lambda: now[0])}))
    watch = Stopwatch("callbacks", "evaluation")
    with watch.timed("callbacks"):
        now[0] += 1
        with suppress(ValueError), watch.timed("evaluation"):
            now[0] += 10
            if fails:
                raise ValueError
        now[0] += 2
    assert watch.seconds == {"callbacks": 3.0, "evaluation": 10.0}
