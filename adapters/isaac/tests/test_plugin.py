"""What the plugin offers to a run, and what it says where Isaac Lab is not installed."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from budwood.api import ConfigError, RewardTerm, Run, StepBatch
from budwood_isaac import __main__ as command
from budwood_isaac import tasks
from budwood_isaac.config import IsaacConfig
from budwood_isaac.plugin import Isaac, make

WEIGHTS = {"alive": 1.0, "effort": -0.01, "metric": 0.0}


def run(vec: str = "isaac", **section: Any) -> Run:
    env = {"id": "robots:Walk-v0", "vec": vec, "args": {"length": 3}}
    return Run("r", 0, {"env": env}, IsaacConfig(**section), None, env["id"], None, "auto", lambda kind: ())


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Any:
    """One manager-based task, as if Isaac Lab were there."""
    terms = {name: SimpleNamespace(weight=weight) for name, weight in WEIGHTS.items()}
    cfg = SimpleNamespace(length=5.0, rewards=SimpleNamespace(**terms))
    monkeypatch.setattr(tasks, "missing", lambda: None)
    monkeypatch.setattr(tasks, "load", lambda name, physics=None: cfg)
    return cfg


def test_a_pack_for_the_task_of_the_run(installed: Any) -> None:
    (name, pack), *others = Isaac().components(run(), "reward_shaping.terms").items()
    assert (name, others) == ("Walk-v0", [])
    assert installed.length == 3.0  # the run's own changes come first: they may be about rewards
    assert [(term.name, term.sign) for term in pack.terms] == [(name, None) for name in WEIGHTS]
    assert pack.terms[1].contribution() == RewardTerm("effort", info_key="reward/effort", weight=0.01)
    assert pack.author_weights == {"alive": 1.0, "effort": 0.01}
    batch = StepBatch()
    batch.infos = [{"reward/effort": -2.0}, {"reward/effort": 0.5}]
    assert np.array_equal(pack.terms[1].signal(batch), [-2.0, 0.5])


def test_nothing_is_offered_where_nothing_can_be_known(installed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Isaac().components(run("dummy"), "reward_shaping.terms") == {}
    assert Isaac().components(run(), "another.kind") == {}
    assert Isaac().components(SimpleNamespace(config={}), "reward_shaping.terms") == {}  # type: ignore[arg-type]
    del installed.rewards
    assert Isaac().components(run(), "reward_shaping.terms") == {}
    monkeypatch.setattr(tasks, "missing", lambda: ConfigError("not here"))
    assert Isaac().components(run(), "reward_shaping.terms") == {}


def test_making_environments_without_isaac_lab_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "missing", lambda: ConfigError("Isaac Lab is not installed", where="env.vec"))
    with pytest.raises(ConfigError, match=r"^env.vec: Isaac Lab is not installed"):
        make(run(), "Walk-v0", 2, 0, {}, "train")


def test_the_command_prints_the_authors_weights_for_the_configuration(
    installed: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(["Walk-v0"]) == 0
    assert capsys.readouterr().out.splitlines()[3:] == [
        "terms: [alive, effort]",
        "weights: {w_task: 0.0, scale: null, bounds: [0.001, 10], initial: {alive: 1, effort: 0.01}}",
        "# left at 0 by the author: metric",
    ]
    del installed.rewards
    assert command.main(["Walk-v0"]) == 0
    assert "has no reward manager (direct workflow)" in capsys.readouterr().out


def test_the_command_says_what_is_missing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(
        command.metadata, "version", lambda name: {"newton": "1.6.1"}[name] if name == "newton" else absent()
    )
    monkeypatch.setattr(tasks, "missing", lambda: ConfigError("Isaac Lab is not installed", where="env.vec"))
    assert command.main([]) == 0
    assert command.main(["Walk-v0"]) == 2
    printed = capsys.readouterr()
    assert printed.out.splitlines()[:3] == [
        "isaaclab: not installed (tasks)",
        "isaacsim: not installed (Isaac Sim, for PhysX and RTX)",
        "newton: 1.6.1 (physics without Isaac Sim)",
    ]
    assert printed.err == "env.vec: Isaac Lab is not installed.\n"


def absent() -> str:
    raise command.metadata.PackageNotFoundError
