"""The table of compatibility: what it asks exists, and what it says of results."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from drift import KINDS, ROOT, TRAINERS, outcomes, pins, selected, table, verdict


def test_every_file_and_test_that_is_asked_for_exists() -> None:
    for test in selected():
        file, _, name = test.partition("::")
        assert not name or re.search(rf"^def {name}\(", (ROOT / file).read_text(), re.MULTILINE), test
        assert (ROOT / file).is_file()


def test_every_parity_and_canary_of_the_repository_is_asked() -> None:
    wanted = [*ROOT.glob("tests/test_parity_*.py"), *ROOT.glob("adapters/*/tests/test_parity_*.py")]
    wanted += [*ROOT.glob("tests/test_canary_*.py"), *ROOT.glob("adapters/*/tests/test_canary_*.py")]
    assert {str(path.relative_to(ROOT)) for path in wanted} <= set(selected())


def test_the_readme_names_the_versions_that_are_pinned() -> None:
    readme, pinned = (ROOT / "README.md").read_text(), pins()
    names = [*TRAINERS, "torch", "transformers", "gymnasium", "mujoco", "accelerate", "mlflow"]
    (line,) = [line for line in readme.splitlines() if line.startswith("Tested with ")]
    assert [f"{name} {pinned[name]}" for name in names] == re.findall(r"[\w-]+ \d[\d.]*\d", line.partition(":")[2])


@pytest.mark.parametrize(
    ("results", "said"),
    [
        (["passed"] * 3, "3 passed"),
        (["passed", "failure", "error"], "2 of 3 failed"),
        (["skipped"], "not run"),
        ([], "not run"),
        (["passed", "skipped"], "1 passed"),
    ],
)
def test_what_did_not_run_is_never_taken_for_a_pass(results: list[str], said: str) -> None:
    assert verdict(results) == said


def test_a_table_from_results(tmp_path: Path) -> None:
    (tmp_path / "junit.xml").write_text(
        "<testsuites><testsuite>"
        '<testcase classname="tests.test_parity_sb3" name="test_a"/>'
        '<testcase classname="tests.test_parity_sb3" name="test_b"><failure/></testcase>'
        '<testcase classname="adapters.trl.tests.test_canary_trl" name="test_c"><skipped/></testcase>'
        '<testcase classname="plugins.reward_shaping.tests.test_plugin" name="test_contract"/>'
        '<testcase classname="plugins.reward_shaping.tests.test_plugin" name="test_else"><failure/></testcase>'
        "</testsuite></testsuites>"
    )
    found = outcomes(tmp_path / "junit.xml")
    assert found["stable-baselines3"] == {"parity": ["passed", "failure"], "canary": [], "contract": ["passed"]}
    said = table(
        found, {"stable-baselines3": "2.10.0", "trl": "1.16.0"}, {"stable-baselines3": "2.9.2", "trl": "1.16.0"}
    )
    assert "| stable-baselines3 | 2.9.2 | 2.10.0 | 1 of 2 failed | not run | 1 passed |" in said
    assert said.endswith("1 packages moved from their pins: stable-baselines3 2.9.2 to 2.10.0")
    assert len(KINDS) == said.splitlines()[0].count("|") - 4
