"""A small run, the command line in this process, and plugins that exist only in a test's folder."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from budwood import plugins
from budwood.cli import main

os.environ.setdefault("OMP_NUM_THREADS", "1")

SMALL = """\
name: small
trainer:
  kind: sb3
  algo: ppo
  total_timesteps: 512
  args: {n_steps: 32, batch_size: 32, n_epochs: 1, policy_kwargs: {net_arch: [8]}}
env: {id: "budwood_reward_shaping.reach_budget:ReachBudget", n_envs: 2}
device: cpu
evaluation: {every: 256, episodes: 1}
checkpoint: {every: 128}
tracking: {enabled: false}
"""


@dataclass(frozen=True)
class Said:
    """What one command line answered."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The last line of standard output, which under ``--json`` is the only one."""
        (line,) = self.out.splitlines()
        return json.loads(line)

    @property
    def error(self) -> str:
        """The paragraph that an error ends with, and the findings below it; progress lines come before."""
        assert "Traceback" not in self.err
        before, mark, text = self.err.partition("error: ")
        assert mark, self.err
        assert not before or before.endswith("\n")
        assert text.endswith("\n")
        paragraph, *findings = text.splitlines()
        assert all(line.startswith("  - ") for line in findings), "one paragraph, then one line a finding"
        return "\n".join([paragraph, *findings])


@pytest.fixture
def budwood(capfd: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    """``budwood("run", "x.yaml")`` as on the command line, in this process."""

    def run(*words: str | Path) -> Said:
        capfd.readouterr()
        code = main([str(word) for word in words])
        captured = capfd.readouterr()
        return Said(code, captured.out, captured.err)

    return run


@pytest.fixture
def output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The output folder of this test, which is also its working directory's neighbour."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("BUDWOOD_OUTPUT", str(tmp_path / "runs"))
    return tmp_path / "runs"


@pytest.fixture
def small(output: Path) -> Path:
    """``small.yaml``: 512 steps of PPO on ReachBudget, in about half a second; checkpoints at 128, 256, 384 and 512."""
    pytest.importorskip("budwood_sb3")
    pytest.importorskip("budwood_reward_shaping")
    file = output.with_name("small.yaml")
    file.write_text(SMALL)
    return file


class Offer:
    """``offer("curl", source)`` installs a distribution ``budwood-curl 1.0`` beside the real ones."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(
        self, name: str, source: str, requires: str = "budwood>=0.1,<0.2", distribution: str | None = None
    ) -> Path:
        """Its object is ``Plugin`` in ``source``; the folder of its metadata."""
        distribution = distribution or f"budwood-{plugins.kebab(name)}"
        module = f"offered_{plugins.snake(distribution)}"
        info = self.folder / f"{plugins.snake(distribution)}-1.0.dist-info"
        files: Mapping[Path, str] = {
            info
            / "METADATA": f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\nRequires-Dist: {requires}\n",
            info / "entry_points.txt": f"[{plugins.GROUP}]\n{name} = {module}:Plugin\n",
            self.folder / f"{module}.py": source,
        }
        info.mkdir()
        for path, text in files.items():
            path.write_text(text)
        plugins._scan.cache_clear()
        return info


@pytest.fixture
def offer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Offer]:
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    before = set(sys.modules)
    yield Offer(folder)
    for name in set(sys.modules) - before:
        if (getattr(sys.modules[name], "__file__", None) or "").startswith(str(folder)):
            del sys.modules[name]
    plugins._scan.cache_clear()
