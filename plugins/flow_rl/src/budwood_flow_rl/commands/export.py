"""export: the flow that a run of flow_rl has fine-tuned, as a folder again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from budwood_flow_rl.commands import _options as shared


@click.command()
@click.argument("run")
@click.option("--out", type=shared.FOLDER, required=True, help="Folder of the flow policy.")
@click.option("--at", "checkpoint", type=shared.Count(), help="The checkpoint of this step; default: the newest.")
def command(run: str, out: Path, checkpoint: int | None) -> dict[str, Any]:
    """Write a run's fine-tuned flow as a saved flow.

    It is what evaluate and the init of another run take. The noise network and the critic stay behind: a flow acts without
    them. RUN is a run of flow_rl: its folder, its id, or `last`.

    \b
      budwood flow-rl export last --out flows/better
      budwood flow-rl evaluate flows/better
    """
    from budwood.api import ConfigError
    from budwood_flow_rl import exporting
    from budwood_flow_rl.saved import FACTS, save_flow

    if (out / FACTS).exists():
        raise ConfigError("a flow is there already", where=str(out), do="Choose another folder")
    flow = exporting.of_run(run, checkpoint)
    out.mkdir(parents=True, exist_ok=True)
    save_flow(out, flow.field, flow.normalisation, flow.meta)
    source = flow.meta.source
    click.echo(f"the flow of {source['run']}, {source['checkpoint']}, is in {out}")
    return {"out": str(out), **source}
