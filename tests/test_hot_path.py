"""Without plugins no Python frame of budwood runs once per environment step."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping
from types import FrameType
from typing import Any

import pytest

from budwood import config
from budwood.planning import plan
from budwood.progress import silent
from budwood.rhythm import Rhythm
from budwood.session import Session

pytest.importorskip("budwood_sb3")


class Nowhere:
    def metrics(self, data: Mapping[str, float], step: int) -> None: ...

    def flush(self) -> None: ...


def frames(n_steps: int, plugins: Mapping[str, Any]) -> Counter[str]:
    """Calls of budwood's functions while one rollout of ``n_steps`` x 2 steps is collected and learnt from."""
    run = {
        "device": "cpu",
        "trainer": {"kind": "sb3", "algo": "ppo", "total_timesteps": 2 * n_steps, "args": {"n_steps": n_steps}},
        "env": {"id": "Pendulum-v1", "n_envs": 2},
        "plugins": plugins,
    }
    planned = plan(config.load(run), None)
    trainer = planned.build_trainer()
    session = Session(trainer, planned.contributions, Nowhere(), silent(), Rhythm())
    calls: Counter[str] = Counter()

    def profile(frame: FrameType, event: str, argument: object) -> None:
        if event == "call" and "budwood" in frame.f_globals.get("__name__", ""):
            calls[f"{frame.f_globals['__name__']}.{frame.f_code.co_qualname}"] += 1

    sys.setprofile(profile)
    try:
        trainer.fit(session)
    finally:
        sys.setprofile(None)
        trainer.close()
    return calls


def test_the_number_of_our_calls_does_not_grow_with_the_steps() -> None:
    short, long = frames(32, {}), frames(128, {})
    assert short
    assert short == long


def test_reward_terms_are_seen_by_the_same_count() -> None:
    pytest.importorskip("budwood_reward_shaping")
    shaping = {"reward_shaping": {"terms": ["native"], "outer": None, "weights": {"scale": None}}}
    short, long = frames(32, shaping), frames(128, shaping)
    step = "budwood_sb3.vec.TermVecEnv.step_wait"
    assert (short[step], long[step]) == (32, 128)
