from typing import Any

import torch
from lerobot.policies.pretrained import PreTrainedPolicy

from .configuration_nod import NodConfig


class NodPolicy(PreTrainedPolicy):
    """A matrix."""

    config_class = NodConfig
    name = "nod"

    def __init__(self, config: NodConfig, **others: Any) -> None:
        super().__init__(config)
        self.matrix = torch.nn.Linear(2, 2)

    def get_optim_params(self) -> Any:
        return self.parameters()

    def reset(self) -> None: ...

    def forward(self, batch: dict[str, Any]) -> tuple[torch.Tensor, dict[str, Any] | None]:
        return ((self.predict_action_chunk(batch) - batch["action"]) ** 2).mean(), None

    def predict_action_chunk(self, batch: dict[str, Any], **others: Any) -> torch.Tensor:
        return self.config.gain * self.matrix(batch["observation.state"])[:, None]

    def select_action(self, batch: dict[str, Any], **others: Any) -> torch.Tensor:
        return self.predict_action_chunk(batch)[:, 0]
