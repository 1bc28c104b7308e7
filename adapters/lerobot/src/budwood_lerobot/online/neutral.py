"""What a plugin's policy answers, checked once here so that nobody else has to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from budwood.api import BudwoodError, Contributed, ContributionError, ParamGroup, Policy

Obs = Mapping[str, Tensor]


class Neutral:
    """A :class:`budwood.api.Policy` and who made it. Shapes: B observations, A numbers an action, C steps a decision.

    ``critic``: whether values are asked for; without it they are 0. The policy is always in evaluation mode: dropout between
    collecting and updating would change the probabilities of what was done.
    """

    def __init__(self, contributed: Contributed[Any], policy: Policy, critic: bool) -> None:
        self._by, self.critic = contributed, critic
        missing = [
            name for name in ("act", "evaluate", *["value"] * critic) if not callable(getattr(policy, name, None))
        ]
        if missing:
            raise self._error(f"lacks {', '.join(missing)}")
        if not isinstance(policy, torch.nn.Module):
            raise self._error("is no torch.nn.Module")
        if next(policy.parameters(), None) is None:
            raise self._error("has no parameters to train")
        self.policy: Any = policy.eval()
        self._steps: int | None = None

    def act(self, obs: Obs, deterministic: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """-> actions (B, A), log-probs (B,), values (B,), without gradient"""
        count = _count(obs)
        with torch.no_grad():
            actions, log_prob, value = self._ask(obs, lambda: self.policy.act(obs, deterministic))
        if not isinstance(actions, Tensor) or actions.dim() != 2 or len(actions) != count:
            raise self._error(f"gives actions {_shape(actions)} for {count} observations, and they are (B, A)")
        return actions.float(), self._row(log_prob, count, "log-probability"), self._value(value, count)

    def evaluate(self, obs: Obs, actions: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
        """-> log-probs (B,), entropy (B,) or None, values (B,), with gradient"""
        count = _count(obs)
        log_prob, entropy, value = self._ask(obs, lambda: self.policy.evaluate(obs, actions))
        entropy = None if entropy is None else self._row(entropy, count, "entropy")
        return self._row(log_prob, count, "log-probability"), entropy, self._value(value, count)

    def value(self, obs: Obs) -> Tensor:
        """-> values (B,), without gradient"""
        with torch.no_grad():
            return self._value(self._ask(obs, lambda: self.policy.value(obs)) if self.critic else None, _count(obs))

    def chunk(self, actions: Tensor) -> Tensor:
        """actions (B, A) -> the steps to execute (B, C, D), as many in every decision"""
        if not callable(getattr(self.policy, "chunk", None)):
            return actions[:, None]
        with torch.no_grad():
            steps = self.policy.chunk(actions)
        if not isinstance(steps, Tensor) or steps.dim() != 3 or len(steps) != len(actions) or steps.shape[1] == 0:
            raise self._error(f"cuts {len(actions)} actions into chunks {_shape(steps)}, and they are (B, C, D)")
        if self._steps not in (None, steps.shape[1]):
            raise self._error(
                f"decided {self._steps} steps at first and {steps.shape[1]} now; let all chunks be as long"
            )
        self._steps = steps.shape[1]
        return steps.float()

    def param_groups(self) -> list[ParamGroup]:
        """What is trained: the policy's own groups, or everything that asks for a gradient."""
        groups = getattr(self.policy, "param_groups", None)
        if groups is None:
            groups = [ParamGroup(params=[p for p in self.policy.parameters() if p.requires_grad], lr_scale=1.0)]
        else:
            groups = [ParamGroup(params=list(group["params"]), lr_scale=float(group["lr_scale"])) for group in groups()]
        trained = [parameter for group in groups for parameter in group["params"]]
        if not trained:
            raise self._error("has no parameters to train")
        if len({id(parameter) for parameter in trained}) < len(trained):
            raise self._error("names a parameter in two param_groups")
        return groups

    def _ask(self, obs: Obs, answer: Callable[[], Any]) -> Any:
        try:
            return answer()
        except BudwoodError:
            raise
        except KeyError as error:
            raise self._error(
                f"asks for {error}, and the observations are {', '.join(sorted(obs))}",
                do="Check the environment's features_map, or what the policy expects",
            ) from error

    def _value(self, value: Any, count: int) -> Tensor:
        if not self.critic:
            return torch.zeros(count)
        if value is None:
            raise self._error("has no critic", do="Give it one, or set advantage: group and group_size")
        return self._row(value, count, "value")

    def _row(self, given: Any, count: int, what: str) -> Tensor:
        """One number a sample, whatever the shape it comes in."""
        if not isinstance(given, Tensor) or given.numel() != count:
            raise self._error(f"gives {what} {_shape(given)} for {count} observations, and it is (B,)")
        row = given.reshape(count).float()
        if not torch.isfinite(row.detach()).all():
            raise self._error(f"gives a {what} that is {row.detach()[~torch.isfinite(row.detach())][0].item()}")
        return row

    def _error(self, what: str, do: str = "") -> ContributionError:
        by = self._by
        return ContributionError(
            f"the policy that build_policy made {what}", where=f"plugins.{by.plugin}", who=by.who, do=do
        )


class LogProb(torch.nn.Module):
    """log pi(a|s) as a module of its own, for ``torch.func``: forward(obs name -> (N, ...), actions (N, A)) -> (N,)."""

    def __init__(self, policy: Any) -> None:
        super().__init__()
        self.policy = policy

    def forward(self, obs: Obs, actions: Tensor) -> Tensor:
        log_prob: Tensor = self.policy.evaluate(obs, actions)[0]
        return log_prob.reshape(-1)


def _count(obs: Obs) -> int:
    return len(next(iter(obs.values())))


def _shape(value: Any) -> str:
    return str(tuple(value.shape)) if isinstance(value, Tensor) else f"of type {type(value).__name__}"
