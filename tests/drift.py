"""python tests/drift.py: installs the newest trainers that the members allow, and prints what still holds with them.

A fresh environment in build/drift, resolved without the pins; there the tests of parity, the canaries on private code of the
trainers and the contracts of the plugins run. The table goes to standard output, the tests' own output to build/drift.log.
Exit code 1 if anything failed. About ten minutes on two cores, most of it tests.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]

Checks = Mapping[str, Sequence[str]]
"""Kind of check -> the test files, or single tests, that make it."""

TRAINERS: Mapping[str, Checks] = {
    "stable-baselines3": {
        "parity": ["tests/test_parity_sb3.py"],
        "canary": ["tests/test_canary_sb3.py"],
        "contract": [
            "plugins/reward_shaping/tests/test_plugin.py::test_contract",
            "plugins/flow_rl/tests/test_flow_runs.py::test_contract",
        ],
    },
    "trl": {
        "parity": ["adapters/trl/tests/test_parity_trl.py"],
        "canary": ["adapters/trl/tests/test_canary_trl.py"],
        "contract": ["plugins/lcqa_selector/tests/test_selector_plugin.py::test_contract"],
    },
    "lerobot": {
        "parity": ["adapters/lerobot/tests/test_parity_lerobot.py", "adapters/lerobot/tests/test_vla_lerobot.py"],
        "canary": ["adapters/lerobot/tests/test_canary_lerobot.py"],
        "contract": ["plugins/flow_rl/tests/test_flow_vla_online.py::test_contract"],
    },
}
KINDS = ("parity", "canary", "contract")
OUTCOMES = ("failure", "error", "skipped")


def selected() -> list[str]:
    return [test for checks in TRAINERS.values() for tests in checks.values() for test in tests]


def pins() -> dict[str, str]:
    """Distribution -> the version in .constraints.txt."""
    lines = (ROOT / ".constraints.txt").read_text().splitlines()
    found = (line.partition(" ;")[0].partition("==") for line in lines if "==" in line)
    return {name: version for name, _, version in found}


def installed(python: Path) -> dict[str, str]:
    listed = subprocess.run(
        [sys.executable, "-m", "uv", "pip", "list", "-q", "-p", str(python), "--format", "json"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return {item["name"].lower(): item["version"] for item in json.loads(listed.stdout)}


def outcomes(junit: Path) -> dict[str, dict[str, list[str]]]:
    """Trainer -> kind -> one of passed, failure, error or skipped for each test of it that ran."""
    found: dict[str, dict[str, list[str]]] = {name: {kind: [] for kind in KINDS} for name in TRAINERS}
    for case in ET.parse(junit).iter("testcase"):
        place, name = case.get("classname", "").replace(".", "/") + ".py", case.get("name", "")
        outcome = next((child.tag for child in case if child.tag in OUTCOMES), "passed")
        for trainer, checks in TRAINERS.items():
            for kind, tests in checks.items():
                if any(place == test or f"{place}::{name}" == test for test in tests):
                    found[trainer][kind].append(outcome)
    return found


def verdict(results: Sequence[str]) -> str:
    """ "12 passed", "1 of 12 failed", or "not run": no answer is never taken for a good one."""
    ran = [result for result in results if result != "skipped"]
    bad = len([result for result in ran if result != "passed"])
    return "not run" if not ran else f"{bad} of {len(ran)} failed" if bad else f"{len(ran)} passed"


def table(found: Mapping[str, Mapping[str, Sequence[str]]], now: Mapping[str, str], pinned: Mapping[str, str]) -> str:
    rows = [f"| trainer | pinned | newest allowed | {' | '.join(KINDS)} |", "|---|---|---|---|---|---|"]
    rows += [
        f"| {name} | {pinned.get(name, '')} | {now.get(name, '')} | {' | '.join(verdict(found[name][k]) for k in KINDS)} |"
        for name in TRAINERS
    ]
    moved = [
        f"{name} {pinned[name]} to {now[name]}" for name in sorted(now) if now[name] != pinned.get(name, now[name])
    ]
    return "\n".join(
        [*rows, "", f"{len(moved)} packages moved from their pins{': ' if moved else '.'}{', '.join(moved)}"]
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", type=Path, default=ROOT / "build" / "drift", help="where the environment is made anew")
    env: Path = parser.parse_args().env.resolve()
    env.parent.mkdir(parents=True, exist_ok=True)
    uv, python, junit, log = [sys.executable, "-m", "uv"], env / "bin" / "python", env / "junit.xml", f"{env}.log"
    subprocess.run([*uv, "venv", "-q", "--clear", "-p", sys.executable, str(env)], check=True)
    print("installing the newest versions that fit ...", file=sys.stderr)
    subprocess.run([*uv, "pip", "install", "-q", "-p", str(python), "--group", "dev"], cwd=ROOT, check=True)
    print(f"running {len(selected())} files and tests, output in {log} ...", file=sys.stderr)
    with Path(log).open("w") as output:
        done = subprocess.run(
            [str(python), "-m", "pytest", "-q", f"--junitxml={junit}", *selected()],
            cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
    if not junit.exists():
        print(f"the tests could not be run: {log}", file=sys.stderr)
        return 1
    found = outcomes(junit)
    print(table(found, installed(python), pins()))
    complete = all(verdict(found[name][kind]).endswith("passed") for name in TRAINERS for kind in KINDS)
    return 0 if complete and done.returncode == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
