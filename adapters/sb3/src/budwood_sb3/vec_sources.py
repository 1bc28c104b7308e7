"""Vectors of environments that plugins bring, for simulators that step all of theirs together.

``env.vec`` names one where it names none of the adapter's own. A plugin offers them by the hook ``components`` under
``sb3.vec_envs``: name -> maker.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any, Protocol

from stable_baselines3.common.vec_env import VecEnv

from budwood.api import ConfigError, Contributed, PluginError, Run

KIND = "sb3.vec_envs"
BUILT_IN = ("dummy", "subproc", "envpool")


class MakeVecEnv(Protocol):
    """Makes a VecEnv that resets by itself and puts Monitor's ``episode`` statistics into its infos.

    ``name`` is ``env.id``, ``args`` are ``env.args``; ``role`` is ``train`` or ``eval``. If the VecEnv has
    ``info_arrays()``, infos are read from that mapping of info key to (n,) arrays, and the dicts need only say what
    happens at the end of an episode. With ``state_dict`` and ``load_state_dict`` its episodes go on after a resume.
    """

    def __call__(self, name: str, n_envs: int, seed: int, args: Mapping[str, Any], role: str) -> VecEnv: ...


def chosen(run: Run) -> Contributed[MakeVecEnv] | None:
    """The maker that ``env.vec`` of this run names; None for the adapter's own."""
    name = run.config["env"]["vec"]
    if name in BUILT_IN:
        return None
    offers = [
        Contributed(make, item.plugin, item.who)
        for item in run.components(KIND)
        for key, make in item.value.items()
        if key == name
    ]
    if len(offers) > 1:
        raise PluginError(
            f"two plugins offer {name!r}: {' and '.join(offer.who for offer in offers)}",
            where="env.vec",
            do="Remove one of them from the run",
        )
    if not offers:
        known = [*BUILT_IN, *(key for item in run.components(KIND) for key in item.value)]
        near = difflib.get_close_matches(name, known, n=1)
        raise ConfigError(
            f"no vector of environments is called {name!r}; this run knows {', '.join(known)}",
            where="env.vec",
            do=f"Did you mean {near[0]!r}?" if near else "A plugin that brings one has to be named under plugins",
        )
    return offers[0]
