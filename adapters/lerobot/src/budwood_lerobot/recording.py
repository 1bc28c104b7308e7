"""A dataset to record demonstrations into."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from budwood.api import ConfigError
from budwood_lerobot.native import video_backend


def begun(folder: Path, robot: str, fps: int, features: Mapping[str, Any]) -> Any:
    """An empty LeRobotDataset in ``folder``, called ``local/ROBOT``, with pictures as images and not as films.

    ``fps`` in steps a second; ``features`` as LeRobot has them: name -> dtype, shape and names.

    :raises ConfigError: the folder exists.
    """
    from lerobot.datasets import LeRobotDataset

    if folder.exists():
        raise ConfigError(f"{folder} exists already", where="FOLDER", do="Name a folder that is not there yet")
    return LeRobotDataset.create(
        repo_id=f"local/{robot}",
        fps=fps,
        features=dict(features),
        root=folder,
        robot_type=robot,
        use_videos=False,
        video_backend=video_backend(),
    )
