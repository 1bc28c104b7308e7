"""A simulation in its own process gives what it gives here; whatever goes wrong there is told in one paragraph."""

from __future__ import annotations

import os
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import refusals
import stand_in
from stand_in import StandIn

from budwood.api import ConfigError, ContributionError
from budwood_isaac.process import Remote
from budwood_isaac.simulation import Simulation


@pytest.fixture(autouse=True)
def _outputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))


def test_it_is_the_same_simulation() -> None:
    remote, other, here = Remote(stand_in.launch), Remote(stand_in.launch), Simulation(StandIn(3, seed=5))
    before = random.getstate()
    assert remote.facts == here.facts
    assert (remote.reset(None) == here.reset(None)).all()
    assert (remote.reset(11) == here.reset(11)).all()
    for push in np.random.default_rng(0).uniform(-1, 1, (10, 3, 1)).astype(np.float32):
        there, expected = remote.step(push), here.step(push)
        for one, two in zip(there, expected, strict=True):
            assert np.array_equal(one, two) if two is not None else one is None
    assert random.getstate() == before
    assert remote.output.read_text() == "starting\n"
    remote.close()
    assert remote._process.returncode == 0
    assert not remote.output.exists()
    remote.close()
    assert (other.reset(11) == here.reset(11)).all()
    other.output.unlink()  # by whoever tidies temporary files
    other.close()


def three_steps(launch: Any) -> None:
    remote = Remote(launch)
    remote.reset(None)
    for _ in range(3):
        remote.step(np.zeros((3, 1), np.float32))


def said(launch: Any) -> tuple[Exception, Path]:
    with pytest.raises((ConfigError, ContributionError)) as raised:
        three_steps(launch)
    (output,) = Path(tempfile.gettempdir()).glob("budwood-isaac-*.log")
    return raised.value, output


def test_an_error_of_ours_arrives_as_it_was() -> None:
    error, _ = said(refusals.launch_misconfigured)
    assert type(error) is ConfigError
    assert str(error) == "env.id: no task is called 'x'. Choose another."


def test_an_error_of_the_simulator_is_told_with_what_it_printed() -> None:
    error, output = said(refusals.launch_broken)
    assert str(error) == (
        f"env: the simulation failed: ZeroDivisionError: division by zero. What it printed is in {output}."
    )
    assert output.read_text().startswith("no such robot\nTraceback")


def test_a_process_that_dies_is_told() -> None:
    error, output = said(stand_in.launch_dying)
    assert str(error) == (
        f"env: the simulation's process ended by itself with status 7. What it printed is in {output}."
    )


@pytest.fixture
def _yes_on_standard_input() -> Iterator[None]:
    kept, (theirs, ours) = os.dup(0), os.pipe()
    os.write(ours, b"Yes\n")
    os.dup2(theirs, 0)
    yield
    os.dup2(kept, 0)
    for descriptor in (kept, theirs, ours):
        os.close(descriptor)


@pytest.mark.usefixtures("_yes_on_standard_input")
def test_a_licence_is_never_accepted_for_the_user() -> None:
    error, output = said(refusals.launch_licensed)
    assert str(error) == (
        "env: the simulation failed: SystemExit: EULA not accepted. Isaac Sim asks whether you accept its licence (EULA), "
        f"which only you can answer: {output} has what it asks and how to accept."
    )
