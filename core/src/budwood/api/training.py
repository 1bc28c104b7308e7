"""Contributions to the optimisation: loss terms, objective, advantage, policy, and what a rollout shows to callbacks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypedDict, runtime_checkable

from budwood.api.state import Array

if TYPE_CHECKING:
    import torch


class LossInputs:
    """What a loss sees of one minibatch of B samples. Only the names an adapter offers are set; see ``LossTerm.needs``.

    ``obs`` (B, ...), ``actions`` (B, ...), ``log_prob`` (B,) with gradient, ``old_log_prob`` (B,), ``advantages`` (B,) as
    the objective uses them (normalised if the trainer normalises), ``returns`` (B,), ``values`` (B,) with gradient,
    ``old_values`` (B,), ``entropy`` (B,) or None, ``clip_range`` float, ``next_obs`` (B, ...), ``rewards`` (B,), ``dones``
    (B,), ``q_values`` (B,) smallest critic value of the sampled action, ``ent_coef`` () temperature, ``policy`` the
    trainer's policy module. Offered by on-policy trainers: the first ten and ``policy``; by SAC: ``obs``, ``actions``
    (sampled now, with gradient), ``log_prob``, ``replay_actions``, ``next_obs``, ``rewards``, ``dones``, ``q_values``,
    ``ent_coef`` and ``policy``.

    Of several processes each sees its own rows of a minibatch. ``share`` float is which part of the minibatch they are, 0 for
    a row that stands for none: the mean over the minibatch is the sum over processes of share times mean. Offered by
    Stable-Baselines3's PPO and A2C and by LeRobot's online loop.
    """

    def __init__(self, **values: Any) -> None:
        self.__dict__.update(values)

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"this trainer gives a loss no {name!r}; it gives {', '.join(sorted(self.__dict__))}")


@dataclass(frozen=True)
class LossTerm:
    """``weight * fn(inputs)`` is added to the trainer's loss (the actor's loss for SAC). ``fn`` returns a scalar tensor.

    ``needs`` names the attributes of :class:`LossInputs` that ``fn`` reads; checked at set-up against the adapter.
    """

    name: str
    fn: Callable[[LossInputs], torch.Tensor]
    weight: float = 1.0
    needs: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Objective:
    """Replaces the trainer's policy loss (PPO: clipped surrogate; A2C: policy gradient; SAC: actor loss). Scalar tensor."""

    name: str
    fn: Callable[[LossInputs], torch.Tensor]
    needs: frozenset[str] = frozenset()


@dataclass(frozen=True)
class AdvantageInputs:
    """Arrays of a finished rollout, T decisions by n environments, float32. A decision is one step, or a chunk of steps.

    ``rewards`` (T, n) summed over a decision's steps, with the time-limit bootstrap already added, ``values`` (T, n),
    ``episode_starts`` (T, n) 1 where a sample begins an episode, ``last_values`` (n,) and ``last_dones`` (n,) after the last
    decision; values are 0 where the trainer runs without a critic. ``groups`` (n,) numbers the environments that began from
    the same state alike, None where a trainer has no such groups.
    """

    rewards: Array
    values: Array
    episode_starts: Array
    last_values: Array
    last_dones: Array
    gamma: float
    gae_lambda: float
    groups: Array | None = None


AdvantageFn = Callable[[AdvantageInputs], Array]
"""Returns advantages (T, n); the returns used as value targets are advantages + values."""


type Observations = torch.Tensor | Mapping[str, torch.Tensor]
"""(B, ...) of a trainer whose observations are one array (Stable-Baselines3), or name -> (B, ...) (LeRobot)."""


class Policy(Protocol):
    """A trainer-neutral actor-critic, a ``torch.nn.Module``; Gaussian, flow and token policies alike.

    Observations are (B, ...) float tensors, or a mapping of tensors whose first axis is B; actions are (B, A) floats, whatever
    the policy needs to tell their log-probability again (a flow policy's whole chain, a token policy's tokens); log-prob and
    value are (B,), value None from a policy without a critic, which only a trainer that needs none will take.

    Optional: ``chunk``, see :class:`ChunkPolicy`; ``param_groups() -> list[ParamGroup]``, the parameters to train with their
    learning rates, without which all parameters are trained at the trainer's.
    """

    def act(
        self, obs: Observations, deterministic: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """-> action, log_prob, value"""

    def evaluate(
        self, obs: Observations, actions: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """-> log_prob, entropy or None, value"""

    def value(self, obs: Observations) -> torch.Tensor:
        """-> value; not asked of a policy without a critic"""


@runtime_checkable
class ChunkPolicy(Policy, Protocol):
    """A policy that decides several environment steps at once, or whose actions are not what an environment takes.

    A policy without ``chunk`` decides one step, and its action is what the environment takes.
    """

    def chunk(self, actions: torch.Tensor) -> torch.Tensor:
        """(B, A) actions of :meth:`Policy.act` -> (B, C, D): the C steps to execute, in the units of the policy's output."""


class ParamGroup(TypedDict):
    """Parameters that share a learning rate, ``lr_scale`` times the trainer's, whatever its schedule, and a gradient that is
    clipped by itself, where the trainer clips."""

    params: Sequence[torch.nn.Parameter]
    lr_scale: float


PolicyFactory = Callable[[Any, Any], Policy]
"""(observation_space, action_space) -> Policy. What ``build_policy`` returns."""


@runtime_checkable
class NativePolicyFactory(Protocol):
    """A :data:`PolicyFactory` that can also make a neutral policy out of one of the trainer's own."""

    def __call__(self, observation_space: Any, action_space: Any) -> Policy:
        """A policy from nothing, for a trainer that has none of its own."""

    def wrap(self, native: Any) -> Policy:
        """``native`` is what the trainer has loaded, e.g. LeRobot's ``PreTrainedPolicy``; its parameters are trained in place.

        :raises BudwoodError: it is not of a kind that this factory knows, with the kinds that it does.
        """


@dataclass(frozen=True)
class Rollout:
    """A finished on-policy rollout, before the update that consumes it. Arrays are the trainer's own: do not write.

    T decisions by n environments; ``obs`` (T, n, ...), or name -> (T, n, ...), as the policy saw it, ``actions`` (T, n, A),
    ``terms`` (T, n, K) float64 or None without reward terms, ``columns`` their names, ``rewards``, ``values``,
    ``advantages`` (T, n) un-normalised, ``episode_starts`` (T, n),
    ``last_dones`` (n,). ``log_prob`` is a ``torch.nn.Module`` over the policy's parameters: forward(obs (N, ...), actions
    (N, A)) -> (N,), usable under ``torch.func``; ``after_transforms()`` must be called once afterwards (in ``finally``).
    ``raw_obs`` (T, n, ...) is what a :class:`RewardCombination` with ``needs_obs`` is given, None for others; ``optimizer``
    is the torch optimiser that moves the policy; ``advantages_by`` is the plugin whose advantage function made
    ``advantages``, as ``name (distribution version)``, None where they are the trainer's own.
    """

    obs: Any
    actions: Array
    terms: Array | None
    columns: tuple[str, ...]
    rewards: Array
    values: Array
    advantages: Array
    episode_starts: Array
    last_dones: Array
    gamma: float
    gae_lambda: float
    log_prob: Any
    after_transforms: Callable[[], None]
    raw_obs: Any = None
    optimizer: torch.optim.Optimizer | None = None
    advantages_by: str | None = None
    extras: Mapping[str, Any] = field(default_factory=dict)
