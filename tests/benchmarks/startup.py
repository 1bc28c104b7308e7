"""How long the command line takes: imports of ``--help`` and ``plugins``, and the way to the first environment step.

    python tests/benchmarks/startup.py [--repeats 7]

CPU seconds (user + system) of the whole process for the commands; wall seconds to the first step for a run, against a bare
Stable-Baselines3 script that does the same; interleaved, medians.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

FORBIDDEN = ("torch", "mlflow", "trl", "lerobot", "pydantic", "numpy", "gymnasium")

BARE = """
import time, sys
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv
step = DummyVecEnv.step_wait
def first(self):
    print("first", time.time(), flush=True); sys.exit()
DummyVecEnv.step_wait = first
PPO("MlpPolicy", make_vec_env("HalfCheetah-v5", n_envs=8, seed=0), seed=0, device="cpu").learn(2048)
"""

OURS = """
import time, sys, os
from budwood.cli import main
import importlib.abc
class Watch(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "budwood_sb3.trainer":
            sys.meta_path.remove(self)
            from stable_baselines3.common.vec_env import DummyVecEnv
            def first(self):
                print("first", time.time(), flush=True); os._exit(0)
            DummyVecEnv.step_wait = first
sys.meta_path.insert(0, Watch())
sys.argv = ["budwood", "run", sys.argv[1], "tracking.enabled=false", f"output={sys.argv[2]}"]
main()
"""

CONFIG = """
trainer: {kind: sb3, algo: ppo, total_timesteps: 2048}
env: {id: HalfCheetah-v5, n_envs: 8}
device: cpu
"""


def cpu_of(command: list[str]) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def seconds_to_first_step(code: str, *arguments: str) -> float:
    started = time.time()
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("first ")]
    if not lines:
        raise SystemExit(done.stderr)
    return float(lines[0].split()[1]) - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    repeats = parser.parse_args().repeats
    os.environ["OMP_NUM_THREADS"] = "1"
    for words in (["--help"], ["plugins"]):
        command = [sys.executable, "-m", "budwood", *words]
        figures = [cpu_of(command) for _ in range(repeats)]
        seen = subprocess.run(
            [sys.executable, "-X", "importtime", "-m", "budwood", *words], capture_output=True, text=True, check=True
        ).stderr
        roots = {line.rsplit("|", 1)[-1].strip().partition(".")[0] for line in seen.splitlines()}
        print(
            f"budwood {words[0]:8s} {statistics.median(figures):.3f} s CPU (bound 0.3), "
            f"imported of the forbidden: {sorted(roots & set(FORBIDDEN)) or 'none'}"
        )
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "run.yaml"
        file.write_text(CONFIG)
        pairs = [(seconds_to_first_step(OURS, str(file), folder), seconds_to_first_step(BARE)) for _ in range(repeats)]
    extra = [ours - bare for ours, bare in pairs]
    print(
        json.dumps(
            {
                "bare_s": round(statistics.median(bare for _, bare in pairs), 2),
                "budwood_s": round(statistics.median(ours for ours, _ in pairs), 2),
                "extra_s": round(statistics.median(extra), 2),
                "bound_extra_s": 1.5,
            }
        )
    )


if __name__ == "__main__":
    main()
