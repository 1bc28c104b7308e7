"""``budwood demo``: equal weights fail at a task, the search over weights does it, on the same number of steps."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

Config = dict[str, Any]


def config(name: str, seed: int, output: str | None, total_timesteps: int, **shaping: Any) -> Config:
    """The run of ``configs/reward_shaping/reach_budget.yaml``; ``shaping`` changes keys of the plugin's section."""
    section = {
        "terms": ["speed", "effort"],
        "criteria": [
            {"name": "distance", "source": "x", "stat": "final", "op": ">=", "threshold": 4.0},
            {"name": "budget", "source": "effort", "stat": "sum", "op": ">=", "threshold": -1.0},
        ],
        "weights": {"w_task": 0.0, "bounds": [0.2, 5.0], "scale": None},
        "outer": {"steps": 15, "inner_iterations": 16, "episodes": 8, "lr": 0.2},
    }
    args = {
        "n_steps": 50,
        "batch_size": 200,
        "n_epochs": 5,
        "learning_rate": 0.003,
        "gamma": 1.0,
        "gae_lambda": 1.0,
        "policy_kwargs": {"log_std_init": -0.7},
    }
    return {
        "name": name,
        "seed": seed,
        "trainer": {"kind": "sb3", "algo": "ppo", "total_timesteps": total_timesteps, "args": args},
        "env": {"id": "budwood_reward_shaping.reach_budget:ReachBudget", "n_envs": 16},
        "device": "cpu",
        "plugins": {"reward_shaping": {**section, **shaping}},
        "evaluation": {"every": None, "episodes": 8},
        "checkpoint": {"every": 48_000},
        "tracking": {"experiment": "reach-budget"},
        **({"output": output} if output else {}),
    }


SEARCH = {"explore": {"novelty": "maxmin", "candidates": 128}}
EQUAL = {"baseline": "uniform"}
BUDGET = 192_000


@dataclass(frozen=True)
class Trace:
    """What a run measured at each outer step, in order; ``steps`` of training, ``env_steps`` with evaluations."""

    steps: list[int]
    env_steps: list[float]
    performance: list[float]
    speed: list[float]
    effort: list[float]

    @property
    def ratios(self) -> list[float]:
        return [a / b for a, b in zip(self.speed, self.effort, strict=True)]

    @classmethod
    def read(cls, events: Path) -> Trace:
        """From a run's journal, one JSON object a line."""
        rows: list[tuple[int, dict[str, float]]] = []
        for line in events.read_text().splitlines():
            event = json.loads(line)
            if event["kind"] == "metrics" and "reward_shaping/P" in event["data"]:
                rows.append((event["step"], event["data"]))
        keys = ("env_steps", "P", "w/speed", "w/effort")
        return cls([step for step, _ in rows], *([row[f"reward_shaping/{key}"] for _, row in rows] for key in keys))


class Lines:
    """Progress of a run: a line for every set of weights that was tried."""

    shown = False
    _told = 0.0

    def update(self, steps: int, metrics: Mapping[str, float]) -> None:
        if metrics.get("reward_shaping/env_steps", self._told) == self._told:
            return
        self._told = metrics["reward_shaping/env_steps"]
        speed, effort, p = (metrics[f"reward_shaping/{key}"] for key in ("w/speed", "w/effort", "P"))
        click.echo(
            f"  {steps:>7,} training steps  speed {speed:.2f}  effort {effort:.2f}  task done in {p:.0%} of the episodes"
        )

    def start(self, total: int, already: int = 0) -> None:
        self._told = 0.0

    def phase(self, text: str) -> None: ...

    def message(self, text: str) -> None: ...

    def stop(self, text: str = "") -> None: ...


@click.command()
@click.option("--output", type=click.Path(file_okay=False), help="Folder for the runs; default: as for budwood run.")
@click.option("--seed", default=0, show_default=True)
def command(output: str | None, seed: int) -> dict[str, Any]:
    """The weights of two heuristics decide whether a task is done.

    A cart must cover 4 m and spend little. PPO is rewarded for speed and punished for effort. With equal weights it
    overspends; the search finds weights that do the task, and the picture shows them inside the window of weights that is
    known to be right.

    \b
      budwood demo
      budwood demo reward_shaping --seed 3
    """
    import torch

    from budwood import run

    torch.set_num_threads(1)  # the networks are small: a second thread gains nothing, and loses much on a busy machine
    began = time.perf_counter()
    screen: Any = Lines()
    click.secho("PPO with a search over the weights", bold=True)
    search = run(config("demo-search", seed, output, BUDGET, **SEARCH), progress=screen)
    searched = Trace.read(Path(search.paths["events"]))
    click.secho("PPO with equal weights, on as many steps", bold=True)
    equal = run(config("demo-equal", seed, output, searched.steps[-1], **EQUAL), progress=screen)
    kept = Trace.read(Path(equal.paths["events"]))
    picture = draw(searched, kept, Path(search.paths["folder"]).parent / "demo_reward_shaping.png")
    seconds = time.perf_counter() - began
    _table({"equal weights": (equal, kept), "search": (search, searched)})
    click.echo(f"report   {search.paths['report']}")
    click.echo(f"picture  {picture}")
    name = "budwood" if shutil.which("budwood") else sys.argv[0]  # the README's command activates no environment
    click.echo(f"mlflow   {name} ui{f' --output {output}' if output else ''}")
    if searched.performance[-1] < kept.performance[-1] + 0.5:
        click.echo(f"This time the search found nothing better than equal weights: try budwood demo --seed {seed + 1}")
    return {
        "search": _facts(search, searched),
        "equal": _facts(equal, kept),
        "picture": str(picture),
        "seconds": round(seconds, 1),
    }


def _facts(result: Any, trace: Trace) -> dict[str, Any]:
    return {
        "run_id": result.run_id,
        "status": result.status,
        "report": result.paths["report"],
        "mlflow_run_id": result.mlflow_run_id,
        "P": trace.performance[-1],
        "ratio": trace.ratios[-1],
        "env_steps": trace.env_steps[-1],
    }


def _table(rows: Mapping[str, tuple[Any, Trace]]) -> None:
    from rich.console import Console
    from rich.table import Table

    from budwood_reward_shaping.reach_budget import WINDOW

    table = Table(title=f"weight of speed / weight of effort must lie in [{WINDOW[0]:.3f}, {WINDOW[1]:.3f}]")
    for heading in ("", "speed / effort", "task done", "steps, evaluation included"):
        table.add_column(heading, justify="left" if not heading else "right")
    for name, (_, trace) in rows.items():
        table.add_row(name, f"{trace.ratios[-1]:.3f}", f"{trace.performance[-1]:.0%}", f"{trace.env_steps[-1]:,.0f}")
    Console().print(table)


def draw(search: Trace, equal: Trace, path: Path) -> Path:
    """Performance over environment steps for both, and the ratio of weights over them with the known window."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from budwood_reward_shaping.reach_budget import WINDOW

    figure = Figure(figsize=(9, 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    done, ratio = figure.subplots(1, 2)
    for trace, label, colour in ((equal, "equal weights", "#999999"), (search, "search", "#2f7d32")):
        thousands = [steps / 1000 for steps in trace.env_steps]
        done.plot(thousands, trace.performance, "o-", color=colour, label=label)
        ratio.plot(thousands, trace.ratios, "o-", color=colour, label=label)
    done.set(xlabel="environment steps (thousands)", ylabel="task done (part of episodes)", ylim=(-0.05, 1.05))
    ratio.axhspan(*WINDOW, color="#2f7d32", alpha=0.2, label="does the task (closed form)")
    ratio.set(xlabel="environment steps (thousands)", ylabel="weight of speed / weight of effort", yscale="log")
    ratio.legend(frameon=False, fontsize="small")
    for axes in (done, ratio):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
    return path
