"""Scales are measured once, in the first rollout."""

from __future__ import annotations

import numpy as np

from budwood.api import BindingError, Rollout, RunCallback, RunControl, StateTree
from budwood_reward_shaping.combination import PLUGIN
from budwood_reward_shaping.hypergrad import discounted_std
from budwood_reward_shaping.shaping import Shaping


class Calibration(RunCallback):
    """Sets every ``auto`` scale from the first rollout, which is given its rewards anew, and never again."""

    across_processes = "same"

    def __init__(self, shaping: Shaping) -> None:
        self.shaping = shaping
        self.done = False

    def without_rollouts(self) -> BindingError:
        return BindingError(
            "scale: auto is measured on the first rollout, and this trainer shows none",
            where=f"plugins.{PLUGIN}.weights.scale",
            do="Give every term a number, or null for no scaling",
        )

    def on_rollout_end(self, control: RunControl, rollout: Rollout) -> None:
        if self.done:
            return
        assert rollout.terms is not None
        combination, names = self.shaping.combination, self.shaping.config.names
        terms = rollout.terms[..., combination.columns]
        spread = discounted_std(terms, rollout.episode_starts.astype(np.float64), rollout.gamma)
        measured = np.divide(1.0, spread, out=np.ones_like(spread), where=spread > 0)
        combination.change(scales=np.where(self.shaping.pending, measured, combination.scales))
        self.done = True
        scales = zip(names, combination.scales.tolist(), strict=True)
        control.log({f"{PLUGIN}/scale/{name}": scale for name, scale in scales})

    def state_dict(self) -> StateTree:
        return {"done": self.done, "combination": self.shaping.combination.state_dict()}

    def load_state_dict(self, state: StateTree) -> None:
        self.done = state["done"]
        self.shaping.combination.load_state_dict(state["combination"])
