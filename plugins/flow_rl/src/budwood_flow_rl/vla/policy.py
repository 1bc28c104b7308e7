"""A LeRobot flow policy as a trainer-neutral policy, whose action is the whole denoising chain."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from budwood_flow_rl.kernels import Kernel
from budwood_flow_rl.policy import FlowPolicy, StartNoise
from budwood_flow_rl.reductions import Reduction, Support
from budwood_flow_rl.vla.prefix import Prefix

if TYPE_CHECKING:
    from budwood_flow_rl.vla.fields import VLAField


class FlowVLAPolicy(FlowPolicy):
    """Implements :class:`budwood.api.ChunkPolicy` over observations as the policy's pre-processor leaves them.

    An observation batch is encoded once a call, for the chain and the value. ``executed`` (C, De) are the first steps and
    the robot's dimensions. Chunks are in model space: the policy's post-processor makes commands of them.
    """

    field: VLAField

    def __init__(
        self,
        field: VLAField,
        kernel: Kernel,
        critic: nn.Module,
        *,
        executed: tuple[int, int],
        reduction: Reduction = "sum",
        support: Support = "all",
        x0: StartNoise = "random",
        critic_lr_scale: float = 1.0,
        per_step: bool = False,
    ) -> None:
        super().__init__(
            field,
            kernel,
            critic,
            executed=executed,
            reduction=reduction,
            support=support,
            x0=x0,
            critic_lr_scale=critic_lr_scale,
            per_step=per_step,
        )

    def act(self, obs: Any, deterministic: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        return super().act(self.seen(obs), deterministic)

    def evaluate(self, obs: Any, actions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return super().evaluate(self.seen(obs), actions)

    def seen(self, obs: Any) -> Prefix:
        """The prefix of an observation, or of one that is encoded already."""
        return obs if isinstance(obs, Prefix) else self.field.encode(obs)

    def step_noise(self, obs: Any, actions: Tensor) -> Tensor:
        """(K,) mean std of each step over the dimensions that have noise."""
        noise: Tensor = super().step_noise(self.seen(obs), actions) * (self.D / self.noisy)
        return noise

    def param_groups(self) -> list[dict[str, Any]]:
        """What is not frozen of the policy, and the noise, at the trainer's learning rate; the critic at its own."""
        actor = [*self.field.parameters(), *self.kernel.parameters()]
        return [
            {"params": [weight for weight in actor if weight.requires_grad], "lr_scale": 1.0},
            {"params": list(self.critic.parameters()), "lr_scale": self.critic_lr_scale},
        ]
