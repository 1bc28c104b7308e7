"""An environment whose pictures are looked at while it is played."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym

from budwood.api import Array

Show = Callable[[Array], None]
"""Gets a picture (height, width, 3) uint8."""


class Shown(gym.Wrapper[Any, Array, Any, Array]):
    """``show`` gets what the environment renders after every reset and step."""

    def __init__(self, env: gym.Env[Any, Array], show: Show) -> None:
        super().__init__(env)
        self._show = show

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        found = self.env.reset(seed=seed, options=options)
        self._show(self.env.render())  # type: ignore[arg-type]
        return found

    def step(self, action: Array) -> Any:
        found = self.env.step(action)
        self._show(self.env.render())  # type: ignore[arg-type]
        return found
