"""Members as a stranger gets them: wheels, installed into empty environments.

python -m pytest -m wheels tests/test_independence.py
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.wheels

ROOT = Path(__file__).parents[1]
MEMBERS = [
    path.parent for pattern in ("core", "adapters/*", "plugins/*") for path in ROOT.glob(f"{pattern}/pyproject.toml")
]
QUIET = {"OMP_NUM_THREADS": "1", "MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "1"}
RUN = """
device: cpu
trainer: {kind: sb3, algo: ppo, total_timesteps: 1_024, args: {n_steps: 64, batch_size: 64, n_epochs: 2}}
env: {id: Pendulum-v1, n_envs: 4}
evaluation: {every: null, episodes: 2}
tracking: {enabled: false}
"""


def call(*words: str | Path, cwd: Path = ROOT, expect: int = 0) -> str:
    """Standard output of a command; the environment of the tests themselves does not leak into it."""
    hidden = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "MLFLOW_TRACKING_URI", "BUDWOOD_OUTPUT")
    environment = {name: value for name, value in os.environ.items() if name not in hidden} | QUIET
    done = subprocess.run(words, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == expect, f"{' '.join(map(str, words))}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def build(project: Path, into: Path) -> Path:
    """The wheel of a project, by the standard front end and the back end that is installed here."""
    before = set(into.glob("*.whl"))
    call(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", into, project)
    (made,) = set(into.glob("*.whl")) - before
    return made


@dataclass(frozen=True)
class Environment:
    """A virtual environment of its own; ``work`` is an empty folder to type commands in."""

    folder: Path
    work: Path

    @classmethod
    def create(cls, parent: Path) -> Environment:
        work = parent / "work"
        work.mkdir(parents=True)
        call(sys.executable, "-m", "uv", "venv", "-q", "-p", sys.executable, parent / "env")
        return cls(parent / "env", work)

    def install(self, *what: Path | str) -> None:
        python = self.folder / "bin" / "python"
        call(sys.executable, "-m", "uv", "pip", "install", "-q", "-p", python, "-c", ROOT / ".constraints.txt", *what)

    def has(self, module: str) -> bool:
        code = f"from importlib.util import find_spec; print(find_spec({module!r}) is not None)"
        return call(self.folder / "bin" / "python", "-c", code, cwd=self.work).strip() == "True"

    def budwood(self, *words: str | Path, expect: int = 0) -> Any:
        """The last line of standard output of a command with ``--json``."""
        printed = call(self.folder / "bin" / "budwood", *words, "--json", cwd=self.work, expect=expect)
        return json.loads(printed.splitlines()[-1])


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Name of the member's folder -> its wheel."""
    folder = tmp_path_factory.mktemp("wheels")
    return {member.name: build(member, folder) for member in MEMBERS}


@pytest.fixture(scope="module")
def trio(tmp_path_factory: pytest.TempPathFactory, wheels: dict[str, Path]) -> Environment:
    """Core, the SB3 adapter and the reward-shaping plugin, and nothing else of ours."""
    environment = Environment.create(tmp_path_factory.mktemp("trio"))
    environment.install(wheels["core"], wheels["sb3"], wheels["reward_shaping"])
    return environment


def test_core_alone_answers(tmp_path, wheels):
    alone = Environment.create(tmp_path)
    alone.install(wheels["core"])
    assert alone.budwood("plugins") == []
    assert alone.budwood("plugins", "--hooks") == []
    findings = alone.budwood("doctor")
    assert findings
    assert not [finding for finding in findings if finding["level"] == "error"]
    assert not [module for module in ("torch", "gymnasium", "stable_baselines3") if alone.has(module)]
    (alone.work / "run.yaml").write_text(RUN)
    refused = alone.budwood("run", "run.yaml", expect=2)
    assert "pip install budwood-sb3" in refused["error"]["problems"][0]


def test_demo_needs_no_other_trainer(trio):
    assert not [module for module in ("trl", "lerobot", "transformers", "mujoco", "envpool") if trio.has(module)]
    assert {row["name"] for row in trio.budwood("plugins")} == {"sb3", "reward_shaping"}
    trio.budwood("demo")
    assert list(trio.work.rglob("report.html"))


def test_a_third_partys_plugin(trio, tmp_path):
    """Written by `plugin new`, built, installed from its wheel: listed, checked, and it changes a run."""
    project = tmp_path / "budwood-curiosity"
    trio.budwood("plugin", "new", "curiosity", "--path", project)
    trio.install(build(project, tmp_path))

    row = next(row for row in trio.budwood("plugins", "--hooks") if row["name"] == "curiosity")
    assert (row["distribution"], row["version"]) == ("budwood-curiosity", "0.1.0")
    assert "reward_terms" in row["hooks"]
    checked = trio.budwood("plugin", "check", "curiosity")
    assert {finding["level"] for finding in checked["findings"]} <= {"ok"}

    (trio.work / "run.yaml").write_text(RUN)
    bare = trio.budwood("run", "run.yaml")["metrics"]
    shaped = trio.budwood("run", "run.yaml", "plugins={curiosity: {coefficient: 5.0}}")["metrics"]
    assert "terms/curiosity.effort" in shaped
    assert shaped["eval/return_mean"] != bare["eval/return_mean"]

    trio.install("pytest")
    call(trio.folder / "bin" / "python", "-m", "pytest", "-q", "-p", "no:cacheprovider", project, cwd=tmp_path)
