"""evaluate: the return of a flow without noise, saved or of a run, beside that of its demonstrations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from budwood.api.terminal import ProgressLine
from budwood_flow_rl.commands import _options as shared


@click.command()
@click.argument("source", metavar="FOLDER|RUN")
@click.option("--at", "checkpoint", type=shared.Count(), help="A run's checkpoint of this step; default: the newest.")
@click.option("--episodes", type=shared.Count(), default=20, show_default=True)
@click.option(
    "--steps",
    type=shared.Count(),
    help="K, the integration steps of a sample; by default 4, those a peer was made for, or those a run trained with.",
)
@click.option("--n-envs", type=shared.Count(), default=10, show_default=True, help="Environments stepped together.")
@click.option("--seed", type=click.IntRange(0), default=20_000, show_default=True)
@click.option("--env", "env_id", help="Default: the environment of the demonstrations, unless it names a module.")
@click.option("--env-args", callback=shared.arguments, help="Its arguments, a JSON object.")
def command(
    source: str,
    checkpoint: int | None,
    episodes: int,
    steps: int | None,
    n_envs: int,
    seed: int,
    env_id: str | None,
    env_args: dict[str, Any] | None,
) -> dict[str, Any]:
    """Play a saved flow, or that of a run, without noise.

    What is played is the flow's ordinary differential equation in K steps; samples start from random x_0 all the same.
    FOLDER holds a saved flow; RUN is a run of flow_rl: its folder, its id, or `last`.

    \b
      budwood flow-rl evaluate flow --episodes 20
      budwood flow-rl evaluate last
    """
    import torch

    from budwood_flow_rl import exporting
    from budwood_flow_rl.evaluation import evaluate, steps_of
    from budwood_flow_rl.saved import FACTS, load_flow

    torch.set_num_threads(1)
    folder = Path(source)
    is_run = (folder / "status.json").exists() or not (folder.exists() or len(folder.parts) > 1)
    if (folder / FACTS).exists() or not is_run:
        if checkpoint is not None:
            raise click.UsageError(f"{source} is a saved flow and has no checkpoints: leave --at out.")
        flow = load_flow(folder)
    else:
        flow = exporting.of_run(source, checkpoint)
        if env_id is None:  # a person has named the run, and making it has imported its environment
            env_id, env_args = flow.meta.env_id, env_args or dict(flow.meta.env_args)
    steps = steps_of(flow, steps)
    progress = ProgressLine()
    found = evaluate(
        flow,
        episodes=episodes,
        steps=steps,
        n_envs=n_envs,
        seed=seed,
        env_id=env_id,
        env_args=env_args,
        progress=lambda done: progress.show(lambda: f"{done}/{episodes} episodes"),
    )
    progress.clear()
    returns = found.returns
    mean, std = float(returns.mean()), float(returns.std(ddof=1)) if len(returns) > 1 else 0.0
    demonstrated = flow.meta.source.get("demonstrations", {}).get("mean_return")
    click.echo(
        f"return {mean:.1f}, standard deviation {std:.1f}, over {len(returns)} episodes without noise, K = {steps}"
    )
    if demonstrated is not None:
        click.echo(f"demonstrations {demonstrated:.1f}")
    return {
        "mean": mean,
        "std": std,
        "returns": returns,
        "lengths": found.lengths,
        "steps": steps,
        "seed": seed,
        "demonstrations": demonstrated,
    }
