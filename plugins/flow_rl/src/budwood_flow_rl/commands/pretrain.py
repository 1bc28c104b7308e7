"""pretrain: a flow policy that does what demonstrations do."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from budwood.api.terminal import ProgressLine
from budwood_flow_rl.commands import _options as shared

if TYPE_CHECKING:
    from budwood_flow_rl.pretraining import Settings


def widths(_ctx: click.Context, _param: click.Parameter, text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise click.BadParameter("write widths as 256,256,256") from error


@click.command()
@click.argument("demos", type=shared.FILE)
@click.option("--out", type=shared.FOLDER, required=True, help="Folder of the flow policy.")
@click.option(
    "--family",
    default="rectified",
    show_default=True,
    help="rectified or shortcut; peers to compare with: gaussian, diffusion.",
)
@click.option("--horizon", type=shared.Count(), default=4, show_default=True, help="Actions predicted at once.")
@click.option("--chunk", type=shared.Count(), help="Of them executed; default: all.")
@click.option("--hidden", default="256,256,256", show_default=True, callback=widths, help="Widths of the network.")
@click.option("--steps", type=shared.Count(), default=6000, show_default=True, help="Optimiser steps.")
@click.option("--batch", type=shared.Count(), default=256, show_default=True, help="Windows in a batch.")
@click.option("--ema", default=0.995, show_default=True, help="Weight of the past in the moving average.")
@click.option("--lr", default=1e-3, show_default=True, help="Learning rate at the start.")
@click.option("--lr-end", default=1e-4, show_default=True, help="At the end, by a half cosine.")
@click.option("--weight-decay", default=1e-6, show_default=True)
@click.option("--held-out", default=0.1, show_default=True, help="Share of the episodes that only measure.")
@click.option("--every", type=shared.Count(), default=500, show_default=True, help="Steps between losses in the log.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option(
    "--resume", is_flag=True, help="Go on with what was interrupted in --out, to the same weights bit for bit."
)
def command(demos: Path, out: Path, resume: bool, **settings: Any) -> dict[str, Any]:
    """Clone recorded demonstrations into a flow policy.

    DEMOS is a file of `budwood flow-rl record`. OUT gets the moving average of the weights, losses as JSON lines, and the
    state to resume from. Ctrl-C keeps the average so far.

    \b
      budwood flow-rl pretrain hopper.safetensors --out flow
      budwood flow-rl pretrain hopper.safetensors --out flow --resume
    """
    from budwood_flow_rl.pretraining import Settings

    return pretrain(demos, out, resume, Settings(**settings))


def pretrain(demos: Path, out: Path, resume: bool, settings: Settings) -> dict[str, Any]:
    import torch

    from budwood.api import ConfigError
    from budwood_flow_rl.demonstrations import load
    from budwood_flow_rl.pretraining import METRICS, TRAINING, Pretraining

    torch.set_num_threads(1)  # small networks gain nothing from more
    training = Pretraining(out, load(demos), settings)
    if resume:
        training.resume()
        click.echo(f"continuing from step {training.step:,}")
    elif any((out / name).exists() for name in (TRAINING, METRICS)):
        raise ConfigError(
            "a pre-training is there already", where=str(out), do="Go on with it by --resume, or choose another folder"
        )
    for note in training.notes:
        click.echo(note)
    progress = ProgressLine()

    def show(step: int, metrics: Any) -> None:
        losses = "".join(
            f"  {name.replace('_', ' ')} {metrics[name]:.4f}" for name in ("loss", "held_out_loss") if name in metrics
        )
        progress.show(lambda: f"{step:,}/{settings.steps:,} steps{losses}")

    with shared.stoppable() as stop:
        ended = training.run(stop, show)
    progress.clear()
    held = "" if ended.held_out_loss is None else f", held-out loss {ended.held_out_loss:.4f}"
    click.echo(f"{ended.step:,} steps, loss {ended.loss:.4f}{held}; the moving average is in {out}")
    finished = ended.step == settings.steps
    if not finished:
        click.echo("stopped early; the same command with --resume goes on")
    return {
        "out": str(out),
        "step": ended.step,
        "finished": finished,
        "loss": ended.loss,
        "held_out_loss": ended.held_out_loss,
        "notes": ended.notes,
    }
