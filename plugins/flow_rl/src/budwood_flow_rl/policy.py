"""A flow field, its noise and a critic as a trainer-neutral policy whose action is the whole denoising chain."""

from __future__ import annotations

import time
from typing import Any, Literal

import torch
from torch import Tensor, nn

from budwood_flow_rl.chains import Chain, flatten, log_prob, rollout, unflatten
from budwood_flow_rl.kernels import Kernel
from budwood_flow_rl.reductions import Reduction, Support, divisor, joint

StartNoise = Literal["random", "zeros", "fixed"]


class FlowPolicy(nn.Module):
    """Implements :class:`budwood.api.Policy`. ``field`` is a :class:`FlowField` over (H, D); C x De of it are executed.

    The log-probability is the chain's joint one, so that a trainer's own KL is on the joint scale; the entropy is divided
    as the reduction says. ``scale`` is applied to observations first. ``frozen`` is a copy of the flow at the start, kept
    for regularisers. While ``warming`` the critic alone gets gradients.
    """

    def __init__(
        self,
        field: Any,
        kernel: Kernel,
        critic: nn.Module,
        *,
        executed: tuple[int, int] | None = None,
        scale: Any | None = None,
        frozen: Any | None = None,
        reduction: Reduction = "mean_n",
        support: Support = "all",
        x0: StartNoise = "random",
        critic_lr_scale: float = 1.0,
        warming: bool = False,
    ) -> None:
        super().__init__()
        self.field, self.kernel, self.critic, self.scale = field, kernel, critic, scale
        self.frozen = None if frozen is None else frozen.requires_grad_(False)
        self.H, self.D = field.horizon, field.action_dim
        self.executed = executed or (self.H, self.D)
        self.support, self.x0, self.critic_lr_scale = support, x0, critic_lr_scale
        self.divisor = divisor(reduction, kernel.noisy_steps, kernel.hybrid, support, self.H, self.D, *self.executed)
        self.warming = warming
        self.sampling_seconds = 0.0
        fixed = torch.randn((1, self.H, self.D), generator=torch.Generator().manual_seed(0))
        self.register_buffer("fixed_x0", fixed, persistent=False)

    fixed_x0: Tensor

    def act(self, obs: Any, deterministic: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """-> flat chain (B, A), its joint log-probability (B,), value (B,). ``deterministic``: no noise but x_0's, and
        log-probability 0."""
        began = time.process_time()
        o = self.seen(obs)
        value = self.value(obs)
        chain = rollout(self.field, self.kernel, o, self._start(len(value)) if deterministic else None, deterministic)
        score = torch.zeros_like(value)
        if chain.log_prob is not None:
            score = joint(chain.log_prob.elements, self.support, self.executed)
        if not deterministic:
            self.sampling_seconds += time.process_time() - began
        return flatten(chain), score, value

    def evaluate(self, obs: Any, actions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """-> joint log-probability (B,), entropy (B,), value (B,)"""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.warming):
            found = log_prob(self.field, self.kernel, self.chain(actions), self.seen(obs))
            score = joint(found.elements, self.support, self.executed)
            entropy = joint(found.entropy, self.support, self.executed) / self.divisor
        return score, entropy, self.value(obs)

    def value(self, obs: Any) -> Tensor:
        value: Tensor = self.critic(self.seen(obs))
        return value

    def chunk(self, actions: Tensor) -> Tensor:
        """(B, A) -> (B, C, De): the steps to execute, in normalised units, not clamped."""
        C, De = self.executed
        return self.chain(actions).actions[:, :C, :De]

    def chain(self, actions: Tensor) -> Chain:
        return unflatten(actions, self.kernel.steps, self.H, self.D, self.kernel.hybrid)

    def seen(self, obs: Any) -> Any:
        """The observation as the networks read it."""
        return obs if self.scale is None else self.scale.scale(obs)

    def param_groups(self) -> list[dict[str, Any]]:
        """Flow and noise at the trainer's learning rate, the critic at its own."""
        actor = [*self.field.parameters(), *self.kernel.parameters()]
        return [
            {"params": actor, "lr_scale": 1.0},
            {"params": list(self.critic.parameters()), "lr_scale": self.critic_lr_scale},
        ]

    @torch.no_grad()
    def step_noise(self, obs: Any, actions: Tensor) -> Tensor:
        """(K,) mean std of each step where it is stochastic, over the chains in ``actions`` (B, A)."""
        o, x = self.seen(obs), self.chain(actions).x
        means = []
        for step in range(self.kernel.noisy_steps):
            k = torch.full((len(x),), step, dtype=torch.long, device=x.device)
            _, std, _ = self.kernel.step_dist(self.field, x[:, step], k, o)
            assert std is not None
            means.append(std.mean())
        return torch.stack(means)

    def _start(self, rows: int) -> Tensor | None:
        """x_0 of an evaluation; None draws it anew."""
        if self.x0 == "random":
            return None
        x0 = self.fixed_x0 if self.x0 == "fixed" else torch.zeros_like(self.fixed_x0)
        return x0.expand(rows, -1, -1)
