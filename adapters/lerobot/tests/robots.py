"""A LeRobotDataset of three short episodes, small ACT and diffusion policies, and runs of them in memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from budwood import compose
from budwood.api import Contributions, Run
from budwood.plugins import Activation, Active, Installed
from budwood_lerobot.config import DatasetConfig, EnvConfig, OfflineConfig
from budwood_lerobot.offline import build, capabilities
from budwood_lerobot.plugin import LeRobot

if TYPE_CHECKING:
    from budwood_lerobot.trainer import OfflineTrainer

torch.set_num_threads(1)

SIDE, EPISODES, FRAMES = 48, 3, 8
ACT = {
    "type": "act", "chunk_size": 4, "n_action_steps": 4, "dim_model": 32, "n_heads": 2, "dim_feedforward": 32,
    "n_encoder_layers": 1, "n_vae_encoder_layers": 1, "latent_dim": 8, "pretrained_backbone_weights": None,
}  # fmt: skip
DIFFUSION = {
    "type": "diffusion", "horizon": 8, "n_action_steps": 4, "n_obs_steps": 2, "down_dims": [16, 32],
    "diffusion_step_embed_dim": 16, "num_train_timesteps": 10, "pretrained_backbone_weights": None,
    "drop_n_last_frames": 0,
}  # fmt: skip
NOD = {"type": "nod", "discover_packages_path": "nodding"}
"""A matrix: the package beside this file is a third party's."""
POLICIES: Mapping[str, dict[str, Any]] = {"act": ACT, "diffusion": DIFFUSION}
ARGS = {"batch_size": 5, "num_workers": 0, "log_freq": 1}
"""24 frames are 5 batches an epoch, the last one smaller."""


def write_dataset(
    root: Path, side: int = SIDE, numbers: int = 2, actions: int | None = None, image: str = "observation.image"
) -> Path:
    """Numbers that move to the middle, and a picture of the first two; by default with the features of PushT."""
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    actions = actions or numbers
    features = {
        "observation.state": {"dtype": "float32", "shape": (numbers,), "names": None},
        image: {"dtype": "image", "shape": (side, side, 3), "names": ["height", "width", "channels"]},
        "action": {"dtype": "float32", "shape": (actions,), "names": None},
    }
    rows = LeRobotDataset.create(repo_id="local/middle", fps=10, features=features, root=root, use_videos=False)
    rng = np.random.default_rng(0)
    for _ in range(EPISODES):
        position = rng.uniform(0, 1, numbers).astype(np.float32)
        for _ in range(FRAMES):
            move = np.clip(0.5 - position, -1, 1).astype(np.float32)
            picture = np.zeros((side, side, 3), np.uint8)
            x, y = (position[:2] * (side - 6)).astype(int)
            picture[y : y + 6, x : x + 6] = 255
            action = np.resize(move, actions)
            rows.add_frame({"observation.state": position, image: picture, "action": action, "task": "to the middle"})
            position = np.clip(position + 0.3 * move, 0, 1)
        rows.save_episode()
    rows.finalize()
    return root


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("rows") / "middle")


def active(name: str, instance: object) -> Active:
    entry = metadata.EntryPoint(name, f"{type(instance).__name__}:it", "budwood.plugins")
    return Active(Installed(name, entry.value, f"budwood-{name}", "1.0", ">=0.1,<0.2", entry), instance)


def planned(
    config: OfflineConfig,
    plugins: Mapping[str, object],
    folder: Path | None,
    sections: Mapping[str, Any],
) -> tuple[Run, Contributions]:
    actives = [active(name, instance) for name, instance in plugins.items()]
    activation = Activation(actives, active("lerobot", LeRobot()))

    def run_for(one: Active) -> Run:
        return Run("test", 3, sections, None, config, None, folder, "cpu", lambda kind: ())

    made = compose.contributions(activation, run_for, capabilities())
    return run_for(activation.adapter), made  # type: ignore[arg-type]


@pytest.fixture
def trainer(dataset: Path, tmp_path: Path) -> Callable[..., OfflineTrainer]:
    """``trainer(policy, plugins, steps, ...)``: as a run would build it, from plugins that are objects of the test."""

    def make(
        policy: str | Mapping[str, Any] = "act",
        plugins: Mapping[str, object] | None = None,
        steps: int = 3,
        rows: Mapping[str, Any] | None = None,
        env: Mapping[str, Any] | None = None,
        evaluation: Mapping[str, Any] | None = None,
        **args: Any,
    ) -> OfflineTrainer:
        native = POLICIES[policy] if isinstance(policy, str) else policy
        config = OfflineConfig.model_validate(
            {"kind": "lerobot", "algo": "offline", "policy": native, "total_steps": steps, "args": {**ARGS, **args}}
        )
        given = {"repo_id": "local/middle", "root": str(dataset), **(rows or {})}
        sections = {
            "dataset": _plain(DatasetConfig.model_validate(given)),
            "env": None if env is None else _plain(EnvConfig.model_validate(env)),
            "evaluation": {"seed": 7, **(evaluation or {})},
        }
        return build(*planned(config, plugins or {}, tmp_path, sections))

    return make


def _plain(section: Any) -> dict[str, Any]:
    return dict(section)


def nod_policy() -> Any:
    """A ``NodPolicy`` on two numbers, the same every time."""
    from lerobot.configs import FeatureType, PolicyFeature
    from nodding.configuration_nod import NodConfig
    from nodding.modeling_nod import NodPolicy

    two = {kind: PolicyFeature(kind, (2,)) for kind in (FeatureType.STATE, FeatureType.ACTION)}
    config = NodConfig(
        input_features={"observation.state": two[FeatureType.STATE]},
        output_features={"action": two[FeatureType.ACTION]},
        device="cpu",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return NodPolicy(config)


class Nowhere:
    """A recorder and a screen that keep nothing but the numbers."""

    shown = False

    def __init__(self) -> None:
        self.records: list[tuple[int, dict[str, float]]] = []

    def metrics(self, data: Mapping[str, float], step: int) -> None:
        self.records.append((step, dict(data)))

    def flush(self) -> None: ...

    def update(self, steps: int, metrics: Mapping[str, float]) -> None: ...

    def phase(self, text: str) -> None: ...

    def message(self, text: str) -> None: ...


def parameters(policy: Any) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in policy.state_dict().items()}


def same(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


CLOCK = ("_s", "_mem_gb")


def numbers(row: Mapping[str, float]) -> dict[str, float]:
    """What was logged, without what a clock or a GPU decides."""
    return {key: value for key, value in row.items() if not key.endswith(CLOCK)}
