"""From a fine-tuned run back to a saved flow: what ``flow-rl evaluate`` plays and the ``init`` of another run begins from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from budwood.api import ConfigError
from budwood_flow_rl.normalisation import MinMax, Normalisation
from budwood_flow_rl.policy import FlowPolicy
from budwood_flow_rl.saved import Meta, SavedFlow, load_flow


def of_run(reference: str, checkpoint: int | None = None) -> SavedFlow:
    """The flow of a run at its checkpoint of ``checkpoint`` steps, by default the newest; nothing is unpickled.

    The noise network and the critic stay behind. ``meta.source`` names the run, the checkpoint and K.

    :raises ConfigError: the run trained no flow on Stable-Baselines3, or one that a saved flow cannot stand for.
    """
    from budwood import restored

    with restored(reference, checkpoint) as run:
        section = run.config["plugins"].get("flow_rl")
        if section is None:
            raise ConfigError(
                "it trained no flow by flow_rl",
                where=run.run_id,
                do="Name a run of flow_rl; one of flow_vla leaves a policy for LeRobot's own tools in its export folder",
            )
        native: Any = run.trainer.native
        policy: FlowPolicy = native.policy.network.cpu()
        _check(run.run_id, run.config, policy)
        began = None if section["init"] is None else load_flow(Path(section["init"]))
        actions = _range_of(run.run_id, native.env) if began is None else began.normalisation.actions
        one = np.ones(policy.field.obs_dim)
        source: dict[str, Any] = {"run": run.run_id, "checkpoint": run.checkpoint.name, "steps": policy.kernel.steps}
        if began is not None and "demonstrations" in began.meta.source:
            source["demonstrations"] = began.meta.source["demonstrations"]
        return SavedFlow(
            policy.field.eval(),
            Normalisation(policy.scale or MinMax(-one, one), actions),
            Meta(policy.executed[0], run.config["env"]["id"], run.config["env"]["args"], source),
            f"the flow of {run.run_id}",
        )


def _check(run_id: str, config: Any, policy: FlowPolicy) -> None:
    if (config["env"]["normalize"] or {}).get("obs"):
        raise ConfigError(
            "it read observations under running statistics, and a saved flow has a fixed range",
            where=run_id,
            do="Use budwood eval for it, or train without env.normalize.obs",
        )
    if policy.kernel.clip_mean is not None:
        raise ConfigError(
            "its steps are clipped by kernel.clip_mean, and a saved flow is integrated without that",
            where=run_id,
            do="Use budwood eval for it, or train without clip_mean",
        )


def _range_of(run_id: str, env: Any) -> MinMax:
    """Where no demonstrations gave a range of actions: the environment's."""
    space = env.get_attr("scale", 0)[0]
    if not np.isfinite(space.limit).all():
        raise ConfigError(
            "its actions have no bounds and no demonstrations gave them a range, which a saved flow needs",
            where=run_id,
            do="Use budwood eval for it",
        )
    return MinMax(space.low, space.high)
