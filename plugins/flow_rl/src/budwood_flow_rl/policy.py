"""A flow field, its noise and a critic as a trainer-neutral policy whose action is the whole denoising chain."""

from __future__ import annotations

import time
from typing import Any, Literal

import torch
from torch import Tensor, nn

from budwood_flow_rl.chains import Chain, ChainLogProb, flatten, log_prob, rollout, unflatten
from budwood_flow_rl.kernels import Kernel
from budwood_flow_rl.reductions import Reduction, Support, divisor, joint

StartNoise = Literal["random", "zeros", "fixed"]


class FlowPolicy(nn.Module):
    """Implements :class:`budwood.api.Policy`. ``field`` is a :class:`FlowField` over (H, D); C x De of it are executed.

    The log-probability is the chain's joint one, so that a trainer's own KL is on the joint scale; the entropy is divided
    as the reduction says of a chain. ``scale`` is applied to observations first. ``frozen`` is a copy of the flow at the
    start, kept for regularisers. While ``warming`` the critic alone gets gradients. With ``per_step`` an action also carries
    the log-probability of each of its steps, for a loss that clips every step by itself.
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
        per_step: bool = False,
    ) -> None:
        super().__init__()
        self.field, self.kernel, self.critic, self.scale = field, kernel, critic, scale
        self.frozen = None if frozen is None else frozen.requires_grad_(False)
        self.H, self.D = field.horizon, field.action_dim
        self.executed = executed or (self.H, self.D)
        self.support, self.x0, self.critic_lr_scale = support, x0, critic_lr_scale
        self.noisy = kernel.noisy_dims or self.D  # padding follows the ODE: it has no noise to score
        shape = (support, self.H, self.noisy, *self.executed)
        self.of_chain = divisor(reduction, kernel.noisy_steps, kernel.hybrid, *shape)
        self.divisor = divisor(reduction, kernel.noisy_steps, kernel.hybrid or per_step, *shape)
        self.warming = warming
        self.stored = kernel.noisy_steps if per_step else 0
        self.step_log_prob = torch.zeros(0, self.stored)
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
        score, steps = torch.zeros_like(value), value.new_zeros(len(value), self.stored)
        if chain.log_prob is not None:
            score = joint(chain.log_prob.elements, self.support, self.executed)
            steps = self._of_steps(chain.log_prob)
        if not deterministic:
            self.sampling_seconds += time.process_time() - began
        return torch.cat([flatten(chain), steps], dim=1), score, value

    def evaluate(self, obs: Any, actions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """-> joint log-probability (B,), entropy (B,), value (B,); leaves that of single steps in ``step_log_prob`` (B, K)."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.warming):
            found = log_prob(self.field, self.kernel, self.chain(actions), self.seen(obs))
            score = joint(found.elements, self.support, self.executed)
            entropy = joint(found.entropy, self.support, self.executed) / self.of_chain
            self.step_log_prob = self._of_steps(found)
        return score, entropy, self.value(obs)

    def value(self, obs: Any) -> Tensor:
        value: Tensor = self.critic(self.seen(obs))
        return value

    def chunk(self, actions: Tensor) -> Tensor:
        """(B, A) -> (B, C, De): the steps to execute, in normalised units, not clamped."""
        C, De = self.executed
        return self.chain(actions).actions[:, :C, :De]

    def chain(self, actions: Tensor) -> Chain:
        own = actions.shape[1] - self.stored
        return unflatten(actions[:, :own], self.kernel.steps, self.H, self.D, self.kernel.hybrid)

    def stored_log_prob(self, actions: Tensor) -> Tensor:
        """(B, K) log-probability of each step when the action was sampled."""
        return actions[:, actions.shape[1] - self.stored :]

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

    def _of_steps(self, found: ChainLogProb) -> Tensor:
        """(B, K) if steps are clipped one by one, else (B, 0)."""
        if not self.stored:
            return found.steps.new_zeros(len(found.steps), 0)
        return joint(found.steps.flatten(0, 1), self.support, self.executed).reshape(-1, self.stored)

    def _start(self, rows: int) -> Tensor | None:
        """x_0 of an evaluation; None draws it anew."""
        if self.x0 == "random":
            return None
        x0 = self.fixed_x0 if self.x0 == "fixed" else torch.zeros_like(self.fixed_x0)
        return x0.expand(rows, -1, -1)
