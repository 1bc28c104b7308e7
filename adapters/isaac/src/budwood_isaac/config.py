"""The section ``plugins.isaac`` of a run."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from budwood.api import Config

Visualizer = Literal["kit", "newton_gl", "rerun", "viser"]


class IsaacConfig(Config):
    """How tasks of Isaac Lab are simulated. Which task, and its own settings, stand in ``env``."""

    device: str | None = Field(None, description="what is simulated on: cpu, cuda, cuda:1; null: the run's own device")
    physics: str | None = Field(
        None,
        description="one of the task's physics presets, e.g. newton_mjwarp or isaacsim_physx; null: the task's own",
    )
    visualizer: Visualizer | None = Field(
        None, description="window on the training; null: headless, and so are evaluations always"
    )
