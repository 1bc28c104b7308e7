"""evaluate: the return of a saved flow without noise, beside that of its demonstrations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from budwood.api.terminal import ProgressLine
from budwood_flow_rl.commands import _options as shared


@click.command()
@click.argument("folder", type=shared.FOLDER)
@click.option("--episodes", type=shared.Count(), default=20, show_default=True)
@click.option(
    "--steps",
    type=shared.Count(),
    help="K, the integration steps of a sample; by default 4, or those a peer was made for.",
)
@click.option("--n-envs", type=shared.Count(), default=10, show_default=True, help="Environments stepped together.")
@click.option("--seed", type=click.IntRange(0), default=20_000, show_default=True)
@click.option("--env", "env_id", help="Default: the environment of the demonstrations, unless it names a module.")
@click.option("--env-args", callback=shared.arguments, help="Its arguments, a JSON object.")
def command(
    folder: Path,
    episodes: int,
    steps: int | None,
    n_envs: int,
    seed: int,
    env_id: str | None,
    env_args: dict[str, Any] | None,
) -> dict[str, Any]:
    """Play episodes of the flow in FOLDER without noise: its ordinary differential equation in K steps.

    Samples start from random x_0 all the same.

    \b
      budwood flow-rl evaluate flow --episodes 20
    """
    import torch

    from budwood_flow_rl.evaluation import evaluate, steps_of
    from budwood_flow_rl.saved import load_flow

    torch.set_num_threads(1)
    flow = load_flow(folder)
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
