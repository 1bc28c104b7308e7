from dataclasses import dataclass, field
from typing import Any

from lerobot.configs.policies import PreTrainedConfig
from lerobot.configs.types import NormalizationMode
from lerobot.optim import AdamConfig


@PreTrainedConfig.register_subclass("nod")
@dataclass
class NodConfig(PreTrainedConfig):
    gain: float = 1.0
    normalization_mapping: dict[str, NormalizationMode] = field(
        default_factory=lambda: dict.fromkeys(("STATE", "VISUAL", "ACTION"), NormalizationMode.MEAN_STD)
    )

    @property
    def observation_delta_indices(self) -> None: ...

    @property
    def action_delta_indices(self) -> list[int]:
        return [0]

    @property
    def reward_delta_indices(self) -> None: ...

    def get_optimizer_preset(self) -> Any:
        return AdamConfig(lr=1e-2, weight_decay=0.0)

    def get_scheduler_preset(self) -> None: ...

    def validate_features(self) -> None: ...
