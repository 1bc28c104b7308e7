"""The critic of large policies: it reads the encoded observation and no chain, so rollout and update see one value."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from budwood_flow_rl.fields import Projection, precise
from budwood_flow_rl.vla.prefix import Prefix


class PrefixCritic(nn.Module):
    """V(o): a prefix of B rows -> (B,), an MLP in float32 on ``Prefix.summary``; its gradient stops there.

    Hidden layers Kaiming (fan-out), last layer std 0.02. Begins near ``bias``. piRL reads pi0's value from the expert's
    tokens, which depend on the chain; with one stochastic step a chain those differ between rollout and update.
    """

    def __init__(self, width: int, hidden: Sequence[int] = (512, 256, 128), bias: float = 0.0) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise([width, *hidden]):
            layer = Projection(inputs, outputs)
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(layer.bias)
            layers += [layer, nn.ReLU()]
        last = Projection(hidden[-1], 1)
        nn.init.normal_(last.weight, std=0.02)
        nn.init.constant_(last.bias, bias)
        self.net = nn.Sequential(*layers, last)

    def forward(self, prefix: Prefix) -> Tensor:
        value: Tensor = self.net(precise(prefix.summary.detach()))
        return value[:, 0]
