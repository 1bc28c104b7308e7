"""What a run starts from: a saved flow or random weights, its chunks and scales, and the policy made of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from budwood.api import Array, BindingError, BudwoodError, CheckpointError, ConfigError, Run
from budwood_flow_rl import environments
from budwood_flow_rl.chunks import ChainActions, ChainShape
from budwood_flow_rl.config import DDPMConfig, FlowConfig, FlowCPSConfig, FlowSDEConfig
from budwood_flow_rl.convention import check_convention
from budwood_flow_rl.critic import Critic
from budwood_flow_rl.diffusion import DDPM, Diffusion
from budwood_flow_rl.families import FAMILIES
from budwood_flow_rl.kernels import FlowCPS, FlowSDE, Kernel, NoisyEuler
from budwood_flow_rl.noise import SCHEDULES, NoiseNet
from budwood_flow_rl.policy import FlowPolicy
from budwood_flow_rl.saved import FACTS, SavedFlow, load_flow

HORIZON = 4
"""Actions of a chunk where neither the configuration nor a saved flow says."""
WHO = f"budwood-flow-rl {version('budwood-flow-rl')}"
INIT = "plugins.flow_rl.init"


@contextmanager
def ours() -> Iterator[None]:
    """Errors of what a trainer calls later are this plugin's, as those of its hooks are."""
    try:
        yield
    except BudwoodError as error:
        error.who = error.who or WHO
        raise


@dataclass
class FlowStart:
    """A :data:`budwood.api.PolicyFactory` that knows its run. The saved flow is read when the first part of it is needed,
    so that a configuration can be resolved on a machine that lacks the folder; once read it travels along when pickled."""

    config: FlowConfig
    env_id: str | None
    obs_normalised: bool
    progress: float = 0.0
    """Of the run, in [0, 1]: a policy that is made anew in its middle begins with the noise range of then."""
    env_args: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, run: Run) -> FlowStart:
        """
        :raises BindingError: the trainer is LeRobot's, whose flow policies another plugin trains.
        :raises ConfigError: an argument of PPO is given that this plugin's loss would not read.
        """
        trainer = run.config.get("trainer") or {}
        if trainer.get("kind") == "lerobot":
            raise BindingError(
                "flow_rl trains a flow policy of its own, and trainer.kind is lerobot",
                where="trainer.kind",
                do="Use the plugin flow_vla and trainer: {kind: lerobot, algo: online}, or trainer: {kind: sb3, algo: ppo}",
            )
        if "clip_range" in (trainer.get("args") or {}):
            raise ConfigError(
                "the loss of a flow policy has a clip of its own, and PPO's would be ignored",
                where="trainer.args.clip_range",
                do="Leave it out, and set plugins.flow_rl.clip: {low: ..., high: ...}; clip_range_vf may stay",
            )
        env = run.config.get("env") or {}
        normalised = bool((env.get("normalize") or {}).get("obs", False))
        return cls(run.section, run.env_id, normalised, env_args=env.get("args") or {})

    @cached_property
    def saved(self) -> SavedFlow | None:
        if self.config.init is None:
            return None
        folder = Path(self.config.init)
        if (folder / "status.json").exists() and not (folder / FACTS).exists():
            raise CheckpointError(
                f"{folder} is a run, and init wants the folder of a flow, as budwood flow-rl pretrain writes it",
                where=INIT,
                do="Make one of the run's flow by budwood flow-rl export RUN --out FOLDER; with its critic and noise it is "
                "the start of another run by init_from: RUN, and budwood resume goes on",
            )
        saved = load_flow(folder)
        horizon = self.config.chunk.horizon
        saved.require(
            "plugins.flow_rl.chunk.horizon",
            do=f"Leave the key out, or pre-train a flow with --horizon {horizon}",
            horizon=horizon,
        )
        if None not in (there := saved.meta.env_id, self.env_id) and there != self.env_id:
            saved.require(
                INIT,
                do=f"Record and clone a policy of {self.env_id}: budwood flow-rl record, budwood flow-rl pretrain",
                env_id=self.env_id,
                **self._sizes(),
            )
        self._check_kernel(saved.field)
        if self.obs_normalised:
            raise ConfigError(
                "the saved flow scales observations by its demonstrations, and would read ones that are scaled already",
                where="env.normalize.obs",
                do="Set it to false; rewards may be normalised",
            )
        if saved.field.name in FAMILIES:
            check_convention(saved.field, _observations(saved), generator=torch.Generator().manual_seed(0), where=INIT)
        return saved

    def _sizes(self) -> dict[str, int]:
        """O and D of the run's environment, to tell a flow of another one apart; nothing where none can be made."""
        with suppress(BudwoodError):
            env = environments.factory(str(self.env_id), self.env_args)()
            env.close()
            return {"obs_dim": env.observation_space.shape[0], "action_dim": env.action_space.shape[0]}  # type: ignore[index]
        return {}

    def _check_kernel(self, field: Any) -> None:
        diffusion, ddpm = isinstance(field, Diffusion), isinstance(self.config.kernel, DDPMConfig)
        if diffusion != ddpm:
            raise ConfigError(
                f"{self.config.kernel.name} cannot step with a saved policy of the family {field.name}",
                where="plugins.flow_rl.kernel",
                do="Use ddpm for a diffusion policy, and another kernel for a flow",
            )
        own = getattr(field, "steps", None)
        if own is not None and own != self.config.steps:
            raise ConfigError(
                f"the saved {field.name} policy takes {own} steps, not {self.config.steps}",
                where="plugins.flow_rl.steps",
                do=f"Set it to {own}",
            )

    @cached_property
    def shape(self) -> ChainShape:
        chunk, saved = self.config.chunk, self.saved
        horizon = saved.field.horizon if saved is not None else chunk.horizon or HORIZON
        execute = chunk.execute or (saved.meta.chunk if saved is not None else horizon)
        if execute > horizon:
            raise ConfigError(
                f"{execute} actions cannot be executed of the {horizon} that the flow predicts",
                where="plugins.flow_rl.chunk.execute",
                do=f"Give at most {horizon}",
            )
        return ChainShape(self.config.steps, horizon, execute, self.config.extra)

    @property
    def action_data(self) -> tuple[Array, Array] | None:
        """Centre and radius of the demonstrations' actions, (D,) each; None without a saved flow."""
        if self.saved is None:
            return None
        actions = self.saved.normalisation.actions
        return actions.centre.numpy(), actions.radius.numpy()

    def check(self) -> None:
        """What a run would stop at, found without one: the saved flow is read, and one environment is made and closed.

        :raises BudwoodError: the flow cannot be used, or its family, H, C, D or observations do not fit.
        """
        _ = self.shape
        if self.env_id is None:
            return
        env = self.wrap_env(environments.factory(self.env_id, self.env_args)())
        if self.saved is not None:
            self.saved.require(INIT, obs_dim=env.observation_space.shape[0])  # type: ignore[index]
        env.close()

    @ours()
    def wrap_env(self, env: Any, role: str = "eval") -> ChainActions:
        data = self.action_data
        wrapped = ChainActions(env, self.shape, data, self.config.parity.reset_value and role == "train")
        if data is not None and len(data[0]) != wrapped.action_dim:
            assert self.saved is not None
            self.saved.require(INIT, action_dim=wrapped.action_dim)
        return wrapped

    @ours()
    def __call__(self, observations: Any, actions: Any) -> FlowPolicy:
        config, saved, shape = self.config, self.saved, self.shape
        obs_dim, action_dim = observations.shape[0], shape.action_dim(actions.shape[0])
        if saved is not None:
            saved.require(INIT, obs_dim=obs_dim, action_dim=action_dim)
            field = deepcopy(saved.field)
        else:
            field = self._random_field(obs_dim, action_dim)
        regularised = config.regularisers.w2 > 0 or config.regularisers.bc > 0
        return FlowPolicy(
            field,
            self._kernel(field),
            Critic(obs_dim, config.critic.hidden, config.critic.bias),
            executed=(shape.execute, action_dim),
            scale=None if saved is None else deepcopy(saved.normalisation.observations),
            frozen=deepcopy(field) if regularised else None,
            reduction=config.reduced_by,
            support=config.support,
            x0=config.eval.x0,
            critic_lr_scale=config.critic.lr_scale,
            warming=config.schedule.critic_warmup > 0,
            per_step=config.per_step,
        )

    def _random_field(self, obs_dim: int, action_dim: int) -> torch.nn.Module:
        family = self.config.family
        kind = FAMILIES["rectified" if family is None else family.name]
        hidden = {} if family is None else {"hidden": tuple(family.hidden)}
        return kind(obs_dim=obs_dim, horizon=self.shape.horizon, action_dim=action_dim, **hidden)

    def _kernel(self, field: Any) -> Kernel:
        steps, kernel = self.config.steps, self.config.kernel
        if isinstance(kernel, FlowSDEConfig):
            return FlowSDE(steps, kernel.level, kernel.hybrid, kernel.ignore_last)
        if isinstance(kernel, DDPMConfig):
            return DDPM(steps, kernel.smallest)
        if isinstance(kernel, FlowCPSConfig):
            return FlowCPS(steps, kernel.level)
        low, high = SCHEDULES[self.config.schedule.noise](self.progress, *kernel.sigma)
        skip = field.time_dim if kernel.time_independent else 0
        noise = NoiseNet(field.feat_dim, field.horizon, field.action_dim, kernel.hidden, low, high, skip=skip)
        clamp = 1.0 if self.config.parity.clamp_action else None
        return NoisyEuler(steps, noise, kernel.clip_mean, kernel.truncate, clamp_last=clamp)


def _observations(saved: SavedFlow) -> torch.Tensor:
    """(4, O) scaled observations within the range of the demonstrations: its middle, and three at random."""
    shape = (3, len(saved.normalisation.observations.low))
    drawn = 2 * torch.rand(shape, generator=torch.Generator().manual_seed(0)) - 1
    return torch.cat([torch.zeros(1, shape[1]), drawn])
