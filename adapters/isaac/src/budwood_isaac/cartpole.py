"""Isaac Lab's manager-based cart-pole with nothing that has to be fetched: no Isaac Sim, no GPU, no asset store.

The task ``budwood_isaac.cartpole:Budwood-Cartpole`` is ``Isaac-Cartpole`` of isaaclab_tasks, its rewards, resets and
terminations included. Its robot is the cart-pole that the newton package brings, whose joints carry the same names; the
ground plane and the light, which the physics does not need, are left out.
"""

from __future__ import annotations

import atexit
import shutil
import tempfile
from pathlib import Path
from typing import Any

import gymnasium

gymnasium.register(
    id="Budwood-Cartpole",
    entry_point="isaaclab.envs:ManagerBasedRLEnv",
    disable_env_checker=True,
    kwargs={"env_cfg_entry_point": f"{__name__}:configuration"},
)


def configuration() -> Any:
    """The task's configuration; ``robot`` is spawned from a file that lives as long as this process."""
    from isaaclab_tasks.core.cartpole.cartpole_manager_env_cfg import CartpoleEnvCfg

    cfg = CartpoleEnvCfg()
    cfg.scene.ground = None
    cfg.scene.distant_light = None
    cfg.scene.clone_in_fabric = False
    cfg.scene.robot.spawn.usd_path = str(robot())
    return cfg


def robot() -> Path:
    """A copy of newton's cart-pole, which names a default prim that it lacks in newton 1.6."""
    import newton

    source = Path(newton.__file__).parent / "examples" / "assets" / "cartpole_single_pendulum.usda"
    folder = Path(tempfile.mkdtemp(prefix="budwood-cartpole-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    path = folder / source.name
    path.write_text(source.read_text().replace('defaultPrim = "cartPole"', 'defaultPrim = "cartpole"'))
    return path
