"""point: the two-mode point task, ready to be fine-tuned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from budwood_flow_rl.commands import _options as shared

EPISODES = 100


@click.command()
@click.option("--out", type=shared.FOLDER, required=True, help="Folder of the flow policy.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
def command(out: Path, seed: int) -> dict[str, Any]:
    """Make the flow of the two-mode point task, in ten seconds.

    It is a clone of scripted walks to both modes, of which one is rewarded. Ends with what the clone earns and the command
    that improves it.

    \b
      budwood flow-rl point --out flows/point
      budwood run configs/flow_rl/point.yaml
    """
    import torch

    from budwood_flow_rl.evaluation import evaluate
    from budwood_flow_rl.point import demonstrations, pretrain
    from budwood_flow_rl.saved import load_flow

    torch.set_num_threads(1)  # small networks gain nothing from more
    walks = demonstrations(seed=seed)
    pretrain(out, walks, seed)
    earned = float(evaluate(load_flow(out), episodes=EPISODES, n_envs=EPISODES).returns.mean())
    click.echo(f"demonstrations earn {walks.mean_return:.2f} on average; their clone, in {out}, earns {earned:.2f}")
    there = "" if out == Path("flows/point") else f" plugins.flow_rl.init={out}"
    click.echo(f"next: budwood run configs/flow_rl/point.yaml{there}")
    return {"out": str(out), "mean_return": walks.mean_return, "clone": earned}
