"""A trainer-neutral policy in the clothes that PPO and A2C expect."""

from __future__ import annotations

from functools import cache
from typing import Any, ClassVar

import torch
from gymnasium import Space
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.preprocessing import preprocess_obs
from stable_baselines3.common.type_aliases import Schedule
from torch import Tensor

from budwood.api import Contributed, ContributionError, Policy, PolicyFactory


class NeutralPolicy(BasePolicy):
    """Wraps a :class:`budwood.api.Policy`. Observations reach it as float tensors, images scaled to [0, 1].

    Exploration by gSDE belongs to Stable-Baselines3's own Gaussian policies and is refused here.
    """

    make: ClassVar[PolicyFactory]

    def __init__(
        self,
        observation_space: Space[Any],
        action_space: Space[Any],
        lr_schedule: Schedule,
        use_sde: bool = False,
        optimizer_class: type[torch.optim.Optimizer] = torch.optim.Adam,
        optimizer_kwargs: dict[str, Any] | None = None,
    ) -> None:
        if use_sde:
            raise ValueError("use_sde needs a Gaussian policy of Stable-Baselines3, and a plugin supplies the policy")
        super().__init__(observation_space, action_space)
        self.network = type(self).make(observation_space, action_space)
        if optimizer_kwargs is None:
            optimizer_kwargs = {"eps": 1e-5} if optimizer_class is torch.optim.Adam else {}
        rate = lr_schedule(1)
        self.optimizer = optimizer_class(
            _parameters(self.network, rate),
            lr=rate,  # type: ignore[call-arg]
            **optimizer_kwargs,
        )

    def forward(self, obs: Any, deterministic: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """-> actions (B, ...) in the shape of the action space, values (B, 1), log-probs (B,)"""
        actions, log_prob, value = self.network.act(self._seen(obs), deterministic)
        return actions.reshape(-1, *(self.action_space.shape or ())), _critic(value), log_prob.reshape(-1)

    def evaluate_actions(self, obs: Any, actions: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """-> values (B, 1), log-probs (B,), entropy (B,) or None"""
        log_prob, entropy, value = self.network.evaluate(self._seen(obs), actions.reshape(len(actions), -1))
        return _critic(value), log_prob.reshape(-1), None if entropy is None else entropy.reshape(-1)

    def predict_values(self, obs: Any) -> Tensor:
        return _critic(self.network.value(self._seen(obs)))

    def _predict(self, observation: Any, deterministic: bool = False) -> Tensor:
        return self.forward(observation, deterministic)[0]

    def _seen(self, obs: Any) -> Any:
        return preprocess_obs(obs, self.observation_space, normalize_images=True)

    network: Policy


def _parameters(network: Policy, rate: float) -> Any:
    """All parameters, or the groups that the policy asks for, each with its rate; ``ScaledRates`` keeps the proportion."""
    groups = getattr(network, "param_groups", None)
    if groups is None:
        return network.parameters()  # type: ignore[attr-defined]  # checked by neutral_policy
    return [{**group, "lr": rate * group["lr_scale"]} for group in groups()]


class ScaledRates(BaseAlgorithm):
    """Mixed into the class of an algorithm whose policy is a plugin's: a group with ``lr_scale`` has a rate of its own,
    where Stable-Baselines3 gives all groups the same."""

    def _update_learning_rate(self, optimizers: Any) -> None:
        super()._update_learning_rate(optimizers)
        for optimizer in optimizers if isinstance(optimizers, list) else [optimizers]:
            for group in optimizer.param_groups:
                if "lr_scale" in group:
                    group["lr"] *= group["lr_scale"]


@cache
def with_rates(cls: type[BaseAlgorithm]) -> type[BaseAlgorithm]:
    """``cls`` that honours ``lr_scale``, under the same name."""
    return type(cls.__name__, (ScaledRates, cls), {"__module__": cls.__module__, "__doc__": cls.__doc__})


def _critic(value: Tensor | None) -> Tensor:
    if value is None:
        raise ContributionError(
            "the policy gives no value, and Stable-Baselines3's on-policy algorithms need a critic",
            where="build_policy",
        )
    return value.reshape(-1, 1)


def neutral_policy(policy: Contributed[PolicyFactory]) -> type[NeutralPolicy]:
    """A policy class for the constructor of PPO or A2C, made by the plugin's factory."""

    def make(observations: Space[Any], actions: Space[Any]) -> Policy:
        made = policy.value(observations, actions)
        missing = [name for name in ("act", "evaluate", "value") if not callable(getattr(made, name, None))]
        what = ""
        if missing:
            what = f"lacks {', '.join(missing)}"
        elif not isinstance(made, torch.nn.Module):
            what = "is no torch.nn.Module"
        elif next(made.parameters(), None) is None:
            what = "has no parameters to train"
        if what:
            raise ContributionError(
                f"the policy that build_policy made {what}", where=f"plugins.{policy.plugin}", who=policy.who
            )
        return made

    return type("NeutralPolicy", (NeutralPolicy,), {"make": staticmethod(make), "__module__": __name__})
