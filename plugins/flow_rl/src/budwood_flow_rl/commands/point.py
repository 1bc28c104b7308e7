"""point: the two-mode point task, ready to be fine-tuned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from budwood_flow_rl.commands import _options as shared


@click.command()
@click.option("--out", type=shared.FOLDER, required=True, help="Folder of the flow policy.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
def command(out: Path, seed: int) -> dict[str, Any]:
    """Clone scripted walks of a point to both of two modes, of which one is rewarded. Takes ten seconds.

    \b
      budwood flow-rl point --out flows/point
      budwood run configs/flow_rl/point.yaml
    """
    import torch

    from budwood_flow_rl.point import demonstrations, pretrain

    torch.set_num_threads(1)  # small networks gain nothing from more
    walks = demonstrations(seed=seed)
    pretrain(out, walks, seed)
    click.echo(f"demonstrations earn {walks.mean_return:.2f} on average; their clone is in {out}")
    return {"out": str(out), "mean_return": walks.mean_return}
