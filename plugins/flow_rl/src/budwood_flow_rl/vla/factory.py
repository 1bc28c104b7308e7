"""From a policy that LeRobot loaded and a section of the configuration to a policy that learns."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from budwood.api import BindingError
from budwood_flow_rl.config import FlowSDEConfig
from budwood_flow_rl.kernels import FlowCPS, FlowSDE, Kernel, NoisyEuler
from budwood_flow_rl.noise import SCHEDULES, NoiseNet
from budwood_flow_rl.vla.config import FlowNoiseConfig, FlowVLAConfig
from budwood_flow_rl.vla.critic import PrefixCritic
from budwood_flow_rl.vla.policy import FlowVLAPolicy

if TYPE_CHECKING:
    from lerobot.policies.pretrained import PreTrainedPolicy

    from budwood_flow_rl.vla.fields import VLAField


class FlowVLAFactory:
    """A :class:`budwood.api.NativePolicyFactory`. ``trained`` is the first policy it wraps: a trainer wraps others only to
    ask how one begins. ``progress`` of the run, in [0, 1]: one made in its middle begins with the noise range of then."""

    def __init__(self, config: FlowVLAConfig) -> None:
        self.config = config
        self.trained: FlowVLAPolicy | None = None
        self.progress = 0.0

    def __call__(self, observation_space: Any, action_space: Any) -> FlowVLAPolicy:
        raise BindingError(
            "flow_vla makes no policy from nothing: it trains one that LeRobot has loaded",
            where="trainer.policy",
            do="Name a policy there, a type or the path of a trained one; for flows on states use plugins.flow_rl with sb3",
        )

    def wrap(self, native: PreTrainedPolicy) -> FlowVLAPolicy:
        """:raises BindingError: no flow policy that is known, or settings under which a chain cannot be replayed."""
        from budwood_flow_rl.vla.fields import field_of

        config, field = self.config, field_of(native, self.config.train_expert_only)
        if field.executed > field.horizon:
            raise BindingError(
                f"{field.executed} actions cannot be executed of the {field.horizon} that the policy predicts",
                where="trainer.policy",
                do="Lower n_action_steps",
            )
        critic = config.critic
        policy = FlowVLAPolicy(
            field,
            kernel_of(config, field, self.progress),
            PrefixCritic(field.summary_dim, critic.hidden or field.critic_hidden, critic.bias),
            executed=(field.executed, field.real_dim),
            reduction=config.reduction,
            support=config.support,
            x0=config.x0,
            critic_lr_scale=critic.lr_scale,
            per_step=config.per_step,
        )
        policy.to(next(native.parameters()).device)
        if self.trained is None:
            self.trained = policy
        return policy


def kernel_of(config: FlowVLAConfig, field: VLAField, progress: float) -> Kernel:
    """Noise on the robot's dimensions only; the padding follows the ODE."""
    kernel, real = config.kernel, field.real_dim
    if isinstance(kernel, FlowSDEConfig):
        return FlowSDE(field.steps, kernel.level, kernel.hybrid, kernel.ignore_last, noisy_dims=real)
    if not isinstance(kernel, FlowNoiseConfig):
        return FlowCPS(field.steps, kernel.level, noisy_dims=real)
    low, high = SCHEDULES[config.noise_schedule](progress, *kernel.sigma)
    head = NoiseNet(field.feat_dim, field.horizon, field.action_dim, kernel.hidden, low, high, per_token=True)
    return NoisyEuler(field.steps, head, kernel.clip_mean, kernel.truncate, noisy_dims=real)
