"""The section ``plugins.flow_vla`` of a run."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from budwood.api import Config
from budwood_flow_rl.config import ClipConfig, FlowCPSConfig, FlowSDEConfig, NoisyEulerConfig

Width = Annotated[int, Field(gt=0)]


class FlowNoiseConfig(NoisyEulerConfig):
    """piRL's Flow-Noise: x + d v + sigma z at every step, sigma from a head on the expert's action tokens."""

    sigma: list[float] = Field(
        default=[0.08, 0.16], min_length=2, max_length=2, description="range of sigma, in the policy's normalised units"
    )
    hidden: list[Width] = Field(default=[128, 64], min_length=1, description="widths of the noise head")
    time_independent: Literal[False] = Field(
        default=False, description="always false: the expert's action tokens have read the time"
    )


class PrefixCriticConfig(Config):
    """A network on the encoded observation; it never sees the chain."""

    hidden: list[Width] | None = Field(
        default=None, min_length=1, description="widths; null: 512, 256, 128, and of pi05 1024, 512, 256"
    )
    bias: float = Field(default=0.0, description="value predicted at the start; a guess at the start policy's return")
    lr_scale: float = Field(default=2.0, gt=0, description="learning rate, in times of trainer.learning_rate")


class FlowVLAConfig(Config):
    """Flow-RL of a LeRobot policy that ``trainer.policy`` loads: pi0, pi05, smolvla or multi_task_dit.

    K, the number of integration steps, and C, the steps of a chunk that are executed, are the policy's own
    (``num_inference_steps``, ``num_steps`` or ``num_integration_steps``; ``n_action_steps``): set them in ``trainer.policy``,
    so that what is trained is what LeRobot's tools run later.
    """

    train_expert_only: bool = Field(
        default=True,
        description="freeze what encodes the observation; false: train what LeRobot's configuration leaves trainable too",
    )
    kernel: Annotated[FlowNoiseConfig | FlowSDEConfig | FlowCPSConfig, Field(discriminator="name")] = Field(
        default=FlowSDEConfig(name="flow_sde"), description="where the noise comes from"
    )
    reduction: Literal["sum", "mean_n", "mean_k"] = Field(
        default="mean_k",
        description="divisor of the joint log-ratio before the clip: 1, all n entries, or the K + 1 steps (1 if hybrid)",
    )
    support: Literal["executed", "all"] = Field(
        default="all", description="entries of the chunk whose probability counts; the flow mixes them, so all"
    )
    clip: ClipConfig = Field(default=ClipConfig(), description="of the policy loss")
    critic: PrefixCriticConfig = Field(default=PrefixCriticConfig(), description="value network")
    noise_schedule: Literal["learn", "learn_decay", "const", "const_schedule_itr"] = Field(
        default="learn", description="how the range of sigma moves over the run, as schedule.noise of flow_rl"
    )
    x0: Literal["random", "zeros", "fixed"] = Field(
        default="random", description="where chains of an evaluation begin: noise, zeros, or one draw kept for all"
    )
    film: bool = Field(
        default=False, description="render an episode before and after training into the run's folder, as GIF"
    )

    @property
    def per_step(self) -> bool:
        if self.clip.per is not None:
            return self.clip.per == "step"
        return isinstance(self.kernel, FlowSDEConfig) and not self.kernel.hybrid

    @property
    def clip_range(self) -> tuple[float, float]:
        """(eps below, eps above)."""
        low = self.clip.low or (0.01 if self.reduction == "mean_n" else 0.2)
        return low, self.clip.high or low

    @model_validator(mode="after")
    def _check(self) -> Self:
        kernel, problems = self.kernel, []
        hybrid = isinstance(kernel, FlowSDEConfig) and kernel.hybrid
        if hybrid and self.clip.per == "step":
            problems.append(
                "clip.per: a hybrid chain has one stochastic step, so chain and step are the same; leave it out"
            )
        if not self.per_step and self.clip.discount != 1:
            problems.append("clip.discount: discounts steps, and the ratio here is the chain's; set clip.per: step")
        if isinstance(kernel, FlowSDEConfig) and kernel.ignore_last and not hybrid:
            problems.append("kernel.ignore_last: says which steps are drawn, and without hybrid all are stochastic")
        if not isinstance(kernel, FlowNoiseConfig) and self.noise_schedule != "learn":
            problems.append(f"noise_schedule: is about the noise head, and {kernel.name} has none")
        if problems:
            raise ValueError("; ".join(problems))
        return self
