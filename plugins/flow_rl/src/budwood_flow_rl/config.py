"""The section ``plugins.flow_rl`` of a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from budwood.api import Config


class FamilyConfig(Config):
    """A flow with random weights, for runs that start from nothing."""

    name: Literal["rectified", "shortcut"] = Field(
        default="rectified", description="rectified: v(x, s); shortcut: v(x, s, h), which also knows the step size h"
    )
    hidden: list[Annotated[int, Field(gt=0)]] = Field(
        default=[256, 256, 256], min_length=1, description="widths of the velocity network"
    )


class ChunkConfig(Config):
    """A decision is a chunk of actions; ``total_timesteps``, ``n_steps``, ``gamma`` and every ``every`` count decisions."""

    horizon: int | None = Field(default=None, ge=1, description="H actions predicted; null: the saved flow's, else 4")
    execute: int | None = Field(default=None, ge=1, description="C of them executed; null: the saved flow's, else H")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.horizon is not None and self.execute is not None and self.execute > self.horizon:
            raise ValueError(f"execute: {self.execute} actions cannot be executed of {self.horizon} predicted")
        return self


class NoisyEulerConfig(Config):
    """ReinFlow and Flow-Noise: x + d v + sigma z at every step, sigma from a network that learns with the policy."""

    name: Literal["noisy_euler"] = Field(description="learned noise at every step")
    sigma: list[float] = Field(
        default=[0.10, 0.24], min_length=2, max_length=2, description="range of sigma, in normalised units"
    )
    hidden: list[Annotated[int, Field(gt=0)]] = Field(
        default=[64, 64], min_length=1, description="widths of the noise network"
    )
    clip_mean: float | None = Field(
        default=None, gt=0, description="clip the mean to +- this; kills gradients where actions saturate"
    )
    truncate: float | None = Field(default=None, gt=0, description="truncate z at +- this; ReinFlow has 3")
    time_independent: bool = Field(
        default=False, description="sigma from the observation alone, the same at every step; ReinFlow on images"
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        low, high = self.sigma
        if not 0 < low <= high:
            raise ValueError("sigma: needs 0 < lowest <= highest")
        return self


class FlowSDEConfig(Config):
    """piRL's Flow-SDE: the flow's ODE as an SDE with the same marginals, std sqrt(d) a sqrt(t / (1 - t))."""

    name: Literal["flow_sde"] = Field(description="an SDE in place of the ODE")
    level: float = Field(default=0.5, gt=0, description="a, how much noise; 0.5 in the released configurations")
    hybrid: bool = Field(
        default=True, description="one stochastic step a chunk, drawn for each environment; the others follow the ODE"
    )
    ignore_last: bool = Field(default=False, description="never draw the last step")


class FlowCPSConfig(Config):
    """Coefficient-preserving sampling: noise in place of part of the old noise."""

    name: Literal["flow_cps"] = Field(description="noise for noise")
    level: float = Field(default=0.5, gt=0, le=1, description="a in sin(pi a / 2)")


class DDPMConfig(Config):
    """Diffusion policies (DPPO), the peer of flows: ancestral sampling, whose noise is never below ``smallest``."""

    name: Literal["ddpm"] = Field(description="denoising steps of a diffusion policy")
    smallest: float = Field(default=0.1, gt=0, description="least standard deviation of a step, in normalised units")


class ClipConfig(Config):
    """The clipped loss, on the log-ratio divided as ``reduction`` says."""

    per: Literal["chain", "step"] | None = Field(
        default=None,
        description="what has a ratio: the chain, or each of its steps (DPPO, and Flow-SDE's full two-layer process); null: "
        "step with ddpm and with flow_sde without hybrid, else chain",
    )
    discount: float = Field(
        default=1.0, gt=0, le=1, description="with per: step, of the advantage for each step that is still to come"
    )

    low: float | None = Field(default=None, gt=0, lt=1, description="eps below 1; null: 0.01 with mean_n, else 0.2")
    high: float | None = Field(default=None, gt=0, description="eps above 1; null: as low")
    dual: float | None = Field(
        default=None, gt=1, description="bound of the loss of bad actions, 3 in piRL; null: unbounded"
    )


class CriticConfig(Config):
    """A residual network on the observation alone; it never sees the chain."""

    hidden: list[Annotated[int, Field(gt=0)]] = Field(
        default=[256, 256, 256], min_length=1, description="width of each block"
    )
    bias: float = Field(default=0.0, description="value predicted at the start; a guess at the start policy's return")
    lr_scale: float = Field(default=2.0, gt=0, description="learning rate, in times of trainer.args.learning_rate")


class RegularisersConfig(Config):
    """Weights of the terms that hold the policy near the flow it started from; 0: off."""

    w2: float = Field(default=0.0, ge=0, description="mean squared distance of both flows' actions from the same noise")
    bc: float = Field(
        default=0.0, ge=0, description="minus the mean log-probability of the start flow's chains; may trap the policy"
    )


class ScheduleConfig(Config):
    """What changes between iterations, never inside one."""

    noise: Literal["learn", "learn_decay", "const", "const_schedule_itr"] = Field(
        default="learn",
        description="learn: range of sigma kept; learn_decay: its top lowered after 35 % of the run; const: sigma is the "
        "range's bottom; const_schedule_itr: one sigma that rises and falls again",
    )
    critic_warmup: int = Field(default=2, ge=0, description="iterations in which the critic alone learns")


class EvalConfig(Config):
    """Evaluations have no noise in the chain (sigma = 0)."""

    x0: Literal["random", "zeros", "fixed"] = Field(
        default="random", description="where chains begin: random noise, zeros, or one draw kept for all"
    )
    film: bool = Field(
        default=False, description="render an episode before and after training into the run's folder, as GIF"
    )


class ParityConfig(Config):
    """Behaviour of the reference that its authors would hardly want; for comparisons only."""

    clamp_action: bool = Field(default=False, description="clamp x_K to [-1, 1] before it is stored and scored")
    clamp_log_prob: bool = Field(default=False, description="clamp reduced log-probabilities to [-1, 1]")
    zero_x0: bool = Field(default=False, description="the W2 term compares chains from zeros, not from noise")
    reset_value: bool = Field(
        default=False,
        description="after a time limit, credit goes on into the next episode, from the value of its reset",
    )


Kernel = NoisyEulerConfig | FlowSDEConfig | FlowCPSConfig | DDPMConfig


def peer_of(folder: Path) -> dict[str, Any]:
    """The settings that the policy saved in ``folder`` is made for, if it is a peer of flows; a flow takes any, and what
    cannot be read is refused later."""
    try:
        facts = json.loads((folder / "flow.json").read_bytes())
        if facts["family"] == "gaussian":
            return {"steps": 1}
        return (
            {"steps": facts["arguments"]["steps"], "kernel": {"name": "ddpm"}} if facts["family"] == "diffusion" else {}
        )
    except (OSError, ValueError, KeyError, TypeError):
        return {}


class FlowConfig(Config):
    """PPO on a flow-matching policy; the whole denoising chain is the action.

    ``trainer.total_timesteps`` counts decisions: a decision is a chunk of up to ``chunk.execute`` environment steps, which
    are logged as ``flow_rl/env_steps``.
    """

    init: str | None = Field(
        default=None, description="folder of a flow saved by budwood flow-rl pretrain; null: random weights"
    )
    family: FamilyConfig | None = Field(
        default=None, description="network of a random flow; a saved flow brings its own"
    )
    chunk: ChunkConfig = Field(default=ChunkConfig(), description="actions a decision")
    steps: int = Field(
        default=4,
        ge=1,
        le=100,
        description="K, integration steps of the flow; left out: 4, or those a saved peer is made for",
    )
    kernel: Annotated[Kernel, Field(discriminator="name")] = Field(
        default=NoisyEulerConfig(name="noisy_euler"),
        description="where the noise comes from; left out: noisy_euler, or ddpm with a saved diffusion policy",
    )
    reduction: Literal["sum", "mean_n", "mean_k"] | None = Field(
        default=None,
        description="divisor of the log-ratio before the clip: 1, all n entries, or the K + 1 steps; null: mean_n with "
        "noisy_euler (ReinFlow) and ddpm (DPPO), else sum (piRL)",
    )
    support: Literal["executed", "all"] = Field(
        default="all", description="entries of the chunk whose probability counts; the flow mixes them, so all"
    )
    clip: ClipConfig = Field(default=ClipConfig(), description="of the policy loss")
    critic: CriticConfig = Field(default=CriticConfig(), description="value network")
    regularisers: RegularisersConfig = Field(default=RegularisersConfig(), description="near the start flow")
    schedule: ScheduleConfig = Field(default=ScheduleConfig(), description="over the run")
    eval: EvalConfig = Field(default=EvalConfig(), description="evaluations")
    parity: ParityConfig = Field(default=ParityConfig(), description="defects of the reference, each off")

    @model_validator(mode="before")
    @classmethod
    def _fitting(cls, given: Any) -> Any:
        """``steps`` and ``kernel`` that were left out are what a saved peer of flows was made for."""
        if not isinstance(given, dict) or not isinstance(given.get("init"), str):
            return given
        return {**peer_of(Path(given["init"])), **given}

    @property
    def hybrid(self) -> bool:
        return isinstance(self.kernel, FlowSDEConfig) and self.kernel.hybrid

    @property
    def reduced_by(self) -> Literal["sum", "mean_n", "mean_k"]:
        return self.reduction or ("mean_n" if isinstance(self.kernel, NoisyEulerConfig | DDPMConfig) else "sum")

    @property
    def extra(self) -> int:
        """Entries of an action that follow its chain: log-probabilities of stochastic steps, or a hybrid chain's drawn step."""
        if self.per_step:
            return self.steps - isinstance(self.kernel, FlowCPSConfig)
        return int(self.hybrid)

    @property
    def per_step(self) -> bool:
        if self.clip.per is not None:
            return self.clip.per == "step"
        return isinstance(self.kernel, DDPMConfig) or (isinstance(self.kernel, FlowSDEConfig) and not self.hybrid)

    @property
    def clip_range(self) -> tuple[float, float]:
        """(eps below, eps above): the clip of the reduced ratio that the published configurations go with."""
        low = self.clip.low or (0.01 if self.reduced_by == "mean_n" else 0.2)
        return low, self.clip.high or low

    @model_validator(mode="after")
    def _check(self) -> Self:
        problems = []
        if self.steps == 1 and isinstance(self.kernel, FlowSDEConfig | FlowCPSConfig):
            problems.append(f"kernel: {self.kernel.name} is degenerate with steps: 1; use noisy_euler, or more steps")
        if isinstance(self.kernel, FlowSDEConfig) and self.kernel.ignore_last and not self.kernel.hybrid:
            problems.append("kernel.ignore_last: says which steps are drawn, and without hybrid all are stochastic")
        if self.hybrid and self.clip.per == "step":
            problems.append(
                "clip.per: a hybrid chain has one stochastic step, so chain and step are the same; leave it out"
            )
        if not self.per_step and self.clip.discount != 1:
            problems.append("clip.discount: discounts steps, and the ratio here is the chain's; set clip.per: step")
        if isinstance(self.kernel, DDPMConfig) and self.init is None:
            problems.append("kernel: ddpm moves a diffusion policy; name a saved one as init")
        if self.init is not None and self.family is not None:
            problems.append("family: describes a random flow, and init names a saved one, which brings its own")
        if not isinstance(self.kernel, NoisyEulerConfig) and self.parity.clamp_action:
            problems.append(f"parity.clamp_action: is ReinFlow's, whose kernel is noisy_euler, not {self.kernel.name}")
        if not isinstance(self.kernel, NoisyEulerConfig) and self.schedule.noise != "learn":
            problems.append(f"schedule.noise: is about the noise network, and {self.kernel.name} has none")
        if problems:
            raise ValueError("; ".join(problems))
        return self
