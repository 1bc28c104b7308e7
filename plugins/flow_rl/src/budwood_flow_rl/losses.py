"""The policy loss and the regularisers as a trainer asks for them, with the numbers that the run logs about them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from budwood.api import ALONE, LossInputs, LossTerm, Objective, Processes
from budwood_flow_rl import regularisers
from budwood_flow_rl.config import ClipConfig, FlowConfig
from budwood_flow_rl.objective import ppo_loss
from budwood_flow_rl.policy import FlowPolicy


class Clipping(Protocol):
    """A section of the configuration that says how the loss is clipped."""

    @property
    def clip(self) -> ClipConfig: ...

    @property
    def clip_range(self) -> tuple[float, float]: ...


class FlowObjective:
    """PPO's clipped loss on the reduced log-ratio; ``clamp`` as in :func:`ppo_loss`. ``drain`` gives the means over an
    update, of the rows of all processes, and of its first minibatch how far the ratio was from 1 before anything had moved."""

    def __init__(self, config: Clipping, clamp: bool = False) -> None:
        self.low, self.high = config.clip_range
        self.dual, self.discount, self.clamp = config.clip.dual, config.clip.discount, clamp
        self._seen: dict[str, list[float]] = defaultdict(list)
        self._shares: list[float] = []

    def __call__(self, inputs: LossInputs) -> Tensor:
        policy = policy_of(inputs)
        new, old, advantages = inputs.log_prob, inputs.old_log_prob, inputs.advantages
        if policy.stored:
            new, old = policy.step_log_prob.flatten(), policy.stored_log_prob(inputs.actions).flatten()
            advantages = per_step(advantages, policy.stored, self.discount).flatten()
        loss, metrics = ppo_loss(new, old, advantages, self.low, self.high, policy.divisor, self.dual, self.clamp)
        if policy.stored:
            with torch.no_grad():
                joint = inputs.log_prob - inputs.old_log_prob
                metrics |= {"joint_kl": (joint.expm1() - joint).mean(), "joint_ratio_worst": joint.expm1().abs().max()}
        if not self._seen:
            self._seen["first_ratio_worst"] = [float(metrics["joint_ratio_worst"])]
        for name, value in metrics.items():
            self._seen[name].append(float(value))
        self._shares.append(getattr(inputs, "share", 1.0))
        return loss

    def drain(self, processes: Processes = ALONE) -> dict[str, float]:
        parts = processes.gather((dict(self._seen), self._shares))
        means = {name: _mean(name, [(seen[name], shares) for seen, shares in parts]) for name in self._seen}
        self._seen.clear()
        self._shares = []
        return means

    def as_objective(self) -> Objective:
        return Objective("flow_ppo", self, frozenset({"actions", "log_prob", "old_log_prob", "advantages", "policy"}))


def _mean(name: str, parts: Sequence[tuple[Sequence[float], Sequence[float]]]) -> float:
    """Over minibatches, of what their rows have on average, or at worst; ``parts`` are (values, shares) of each process."""
    minibatches: list[float] = []
    for pieces in zip(*(zip(values, shares, strict=False) for values, shares in parts), strict=True):
        counting = [(value, share) for value, share in pieces if share]
        if name.endswith("_worst"):
            minibatches.append(max(value for value, _ in counting))
        else:
            minibatches.append(sum(value * share for value, share in counting))
    return sum(minibatches) / len(minibatches)


def per_step(advantages: Tensor, steps: int, discount: float) -> Tensor:
    """(B,) -> (B, K): the chunk's advantage for each of its steps, discounted by how far the step is from the action."""
    ahead = torch.arange(steps - 1, -1, -1, device=advantages.device)
    return advantages[:, None] * discount**ahead


class W2:
    """Squared distance of the actions of the policy and of the start flow, from the same noise by the kernel's steps."""

    def __init__(self, zero_x0: bool) -> None:
        self.zero_x0 = zero_x0

    def __call__(self, inputs: LossInputs) -> Tensor:
        policy = policy_of(inputs)
        if policy.warming:
            return torch.zeros((), device=inputs.log_prob.device)
        assert policy.frozen is not None
        shape = (len(inputs.log_prob), policy.H, policy.D)
        make = torch.zeros if self.zero_x0 else torch.randn
        x0 = make(shape, device=inputs.log_prob.device)
        return regularisers.w2(policy.field, policy.frozen, policy.seen(inputs.obs), x0, policy.kernel)


class BC:
    """Minus the log-probability of chains that the start flow samples under the noise of now."""

    def __call__(self, inputs: LossInputs) -> Tensor:
        policy = policy_of(inputs)
        if policy.warming:
            return torch.zeros((), device=inputs.log_prob.device)
        assert policy.frozen is not None
        return regularisers.bc(policy.field, policy.frozen, policy.kernel, policy.seen(inputs.obs))


def loss_terms(config: FlowConfig) -> Iterable[LossTerm]:
    needs = frozenset({"obs", "log_prob", "policy"})
    if config.regularisers.w2 > 0:
        yield LossTerm("w2", W2(config.parity.zero_x0), config.regularisers.w2, needs)
    if config.regularisers.bc > 0:
        yield LossTerm("bc", BC(), config.regularisers.bc, needs)


def policy_of(inputs: LossInputs) -> FlowPolicy:
    """The flow policy that a trainer shows a loss: bare, or as the network of Stable-Baselines3's policy."""
    policy = getattr(inputs.policy, "network", inputs.policy)
    assert isinstance(policy, FlowPolicy), "another plugin wraps the policy of flow_rl"
    return policy
