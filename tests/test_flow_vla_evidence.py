"""The table of the discs says what its rows say, and its claim holds as it was said before."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from budwood.study_config import load

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "methods" / "flow_rl" / "vla.md").read_text()
CLONES = ("study", "one_run_clone")
ROWS = {
    clone: list(csv.DictReader((ROOT / "docs" / "methods" / "flow_rl" / "discs" / f"{clone}.csv").open()))
    for clone in CLONES
}
KERNELS = ("flow-sde", "flow-noise")


def of(clone: str, variant: str, column: str = "success") -> np.ndarray:
    """(3,) by seed."""
    rows = sorted((row for row in ROWS[clone] if row["variant"] == variant), key=lambda row: int(row["seed"]))
    assert [row["seed"] for row in rows] == ["0", "1", "2"]
    assert all(row["status"] == "finished" for row in rows)
    return np.array([float(row[column]) for row in rows])


def gain(clone: str, variant: str) -> tuple[float, float, float]:
    """Mean over the seeds and both ends of the 95 % interval, in points."""
    gains = 100 * (of(clone, variant) - of(clone, "bc"))
    half = stats.t.ppf(0.975, len(gains) - 1) * gains.std(ddof=1) / len(gains) ** 0.5
    return gains.mean(), gains.mean() - half, gains.mean() + half


@pytest.mark.parametrize("clone", CLONES)
@pytest.mark.parametrize("variant", KERNELS)
def test_each_kernel_gains_what_was_claimed(variant: str, clone: str) -> None:
    assert (of(clone, "bc") > 0.2).all()
    assert (of(clone, "bc") < 0.6).all()
    mean, low, _ = gain(clone, variant)
    assert mean >= 15
    assert low > 0


@pytest.mark.parametrize("clone", CLONES)
@pytest.mark.parametrize("variant", ["bc", *KERNELS])
def test_every_row_is_quoted_as_it_is(variant: str, clone: str) -> None:
    each = ", ".join(f"{100 * share:.1f}" for share in of(clone, variant))
    seconds = ", ".join(f"{of(clone, variant, part).mean():.2f}" for part in ("physics", "sampling", "update"))
    told = "" if variant == "bc" else "{:.1f} ({:.1f} to {:.1f})".format(*gain(clone, variant))
    minutes = of(clone, variant, "cpu_minutes").mean()
    line = f"| {variant} | {each} | {told} | {seconds} | {minutes:.1f} |".replace("|  |", "| |")
    assert line in PAGE, line


def test_the_budget_is_the_one_that_was_said() -> None:
    study = load(ROOT / "configs" / "studies" / "flow_vla_discs.yaml")
    assert study.runs["flow-sde"].data["trainer"]["total_steps"] == 40_960
    assert "40,960 decisions each" in PAGE
    for variant in KERNELS:
        assert all((of(clone, variant, "steps") == 40_960).all() for clone in CLONES)


def test_the_first_clone_and_the_gpu_are_quoted_as_they_are() -> None:
    first = list(csv.DictReader((ROOT / "docs" / "methods" / "flow_rl" / "discs" / "first_clone.csv").open()))
    for variant, text in (
        ("bc", "{:.1f} % and so outside"),
        ("flow-sde", "`flow_sde` {:.1f} %"),
        ("flow-noise", "`noisy_euler` {:.1f} %"),
    ):
        shares = [float(row["success"]) for row in first if row["variant"] == variant]
        assert text.format(100 * float(np.mean(shares))) in PAGE
    rows = list(csv.DictReader((ROOT / "docs" / "methods" / "flow_rl" / "gpu.csv").open()))
    for row in rows:
        if row["what"] == "update minibatch":
            line = f"| {row['policy']}, {row['dtype']} | {row['kernel']} |"
            assert any(
                told.startswith(line) and f"| {float(row['seconds']):.2f} | {float(row['peak_gib']):.1f} |" in told
                for told in PAGE.splitlines()
            )
    again = csv.DictReader((ROOT / "docs" / "methods" / "flow_rl" / "gpu_again.csv").open())
    seconds, peaks = zip(
        *((float(row["seconds"]), float(row["peak_gib"])) for row in again if row["what"] == "update minibatch"),
        strict=True,
    )
    assert f"{seconds[0]:.2f} and {seconds[1]:.2f} s an update, {peaks[0]:.1f} and {peaks[1]:.1f} GiB" in PAGE
