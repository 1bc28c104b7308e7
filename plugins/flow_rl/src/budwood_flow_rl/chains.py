"""Chains from noise to an action chunk: sampled, scored, and flattened into what a trainer calls an action.

What is scored is the density of the chain, not of the action alone. The policy gradient stays right, for an advantage
depends on the chain through its last element only. B rows, H horizon, D action dimension, K steps, S scored steps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from budwood.api import BindingError, ContributionError
from budwood_flow_rl.fields import FlowField, precise, repeated, rows_of
from budwood_flow_rl.kernels import Kernel

LOG_2PI = math.log(2 * math.pi)


@dataclass(frozen=True)
class ChainLogProb:
    """``steps`` (B, S, H, D) log-densities of the scored steps, ``start`` (B, H, D) of x_0 ~ N(0, I), and the steps' ``std``
    (B, S, H, D), under ``kernel``.

    A full chain has S stochastic steps; a hybrid one the drawn step alone, and ``start`` 0. An element without noise counts 0.
    """

    steps: Tensor
    start: Tensor
    std: Tensor
    kernel: Kernel

    @property
    def elements(self) -> Tensor:
        """(B, H, D) log-density of each element's whole chain."""
        return self.steps.sum(1) + self.start

    @property
    def entropy(self) -> Tensor:
        """(B, H, D) of each element's whole chain; computed when asked for, which a rollout never does."""
        of_steps = entropy(self.std[..., : self.kernel.noisy_dims], self.kernel.truncate).sum(1)
        padded = functional.pad(of_steps, (0, self.std.shape[-1] - of_steps.shape[-1]))
        return padded if self.kernel.hybrid else padded + (1 + LOG_2PI) / 2


@dataclass(frozen=True)
class Chain:
    """``x`` (B, K+1, H, D) from noise to action; ``k`` (B,) the stochastic step of each row of a hybrid kernel.

    ``log_prob`` is that of the pass which sampled the chain, without gradient; None if noise-free or unflattened.
    """

    x: Tensor
    k: Tensor | None = None
    log_prob: ChainLogProb | None = None

    @property
    def actions(self) -> Tensor:
        """(B, H, D), not clamped."""
        return self.x[:, -1]


@torch.no_grad()
def rollout(
    field: FlowField,
    kernel: Kernel,
    o: Any,
    x0: Tensor | None = None,
    noise_free: bool = False,
    generator: torch.Generator | None = None,
) -> Chain:
    """Samples one chain a row of ``o``, from ``x0`` (B, H, D) or from N(0, I).

    Steps of a ``stateless`` field are taken in inference mode, a tenth faster; what is returned are ordinary tensors.
    ``noise_free`` follows the ODE, with the clipping that training has; it is deterministic only for a given ``x0``. Raises
    ContributionError where an element is not finite.
    """
    rows, device = rows_of(o)
    x = normal((rows, field.horizon, field.action_dim), generator, device) if x0 is None else precise(x0)
    drawn: Tensor | None = None
    if kernel.hybrid:
        drawn = torch.zeros(rows, dtype=torch.long, device=device)
        if not noise_free:
            drawn = torch.randint(kernel.noisy_steps, (rows,), generator=generator, device=device)
    chain, means, stds = [x], [], []
    noise: tuple[Tensor, ...] = ()
    if not noise_free:
        noise = normal((kernel.noisy_steps, *x.shape), generator, device, x.dtype, kernel.truncate).unbind()
    steps = torch.arange(kernel.steps, device=device)[:, None].expand(-1, rows)
    here = steps.unbind() if drawn is None else (steps == drawn).unbind()
    with torch.inference_mode() if getattr(field, "stateless", False) else torch.no_grad():
        grid = zip(*(each.unbind() for each in kernel.grid(steps, x.dtype)), strict=True)
        for step, (k, at) in enumerate(zip(steps.unbind(), grid, strict=True)):
            noisy: Tensor | bool = step < len(noise)
            if noisy and drawn is not None:
                noisy = here[step]
            mean, std, _ = kernel.step_dist(field, x, k, o, noisy, at)
            x = mean
            if std is not None:
                x = torch.addcmul(mean, std, noise[step])
                means.append(mean)
                stds.append(std)
            chain.append(x)
    if kernel.clamp_last is not None:
        chain[-1] = x.clamp(-kernel.clamp_last, kernel.clamp_last)
    whole = torch.stack(chain, dim=1)
    _check_finite(whole, stds)
    if noise_free:
        return Chain(whole, drawn)
    if drawn is None:
        after = whole[:, 1 : len(noise) + 1]
        mean, std = torch.stack(means, 1), torch.stack(stds, 1)
        return Chain(whole, None, _scored(kernel, after, mean, std, whole[:, 0]))
    at = torch.arange(rows, device=device), drawn
    after, mean, std = (each[at].unsqueeze(1) for each in (whole[:, 1:], torch.stack(means, 1), torch.stack(stds, 1)))
    return Chain(whole, drawn, _scored(kernel, after, mean, std))


def log_prob(field: FlowField, kernel: Kernel, chain: Chain, o: Any) -> ChainLogProb:
    """The chain's log-probability under the field and kernel of now, with gradient: one evaluation of B S rows."""
    rows = len(chain.x)
    if kernel.hybrid:
        assert chain.k is not None, "a hybrid kernel's chain names the step that was stochastic"
        row = torch.arange(rows, device=chain.x.device)
        mean, std, _ = kernel.step_dist(field, chain.x[row, chain.k], chain.k, o)
        assert std is not None
        return _scored(kernel, chain.x[row, chain.k + 1, None], mean[:, None], std[:, None])
    steps = kernel.noisy_steps
    k = torch.arange(steps, device=chain.x.device).repeat(rows)
    mean, std, _ = kernel.step_dist(field, chain.x[:, :steps].flatten(0, 1), k, repeated(o, steps))
    assert std is not None
    shape = (rows, steps, *mean.shape[1:])
    return _scored(kernel, chain.x[:, 1 : steps + 1], mean.reshape(shape), std.reshape(shape), chain.x[:, 0])


def _scored(kernel: Kernel, after: Tensor, mean: Tensor, std: Tensor, x0: Tensor | None = None) -> ChainLogProb:
    """Of ``after`` (B, S, H, D), where S Gaussian steps led; ``x0`` (B, H, D) adds that it is from N(0, I)."""
    after, real = precise(after), kernel.noisy_dims
    if real is None:
        steps = log_density(after, mean, std, kernel.truncate)
    else:
        steps = log_density(after[..., :real], mean[..., :real], std[..., :real], kernel.truncate)
        steps = functional.pad(steps, (0, after.shape[-1] - real))
    start = torch.zeros_like(steps[:, 0]) if x0 is None else (precise(x0) ** 2 + LOG_2PI) / -2
    return ChainLogProb(steps, start, std, kernel)


def log_density(x: Tensor, mean: Tensor, std: Tensor, truncate: float | None = None) -> Tensor:
    """Per element of N(mean, std^2), cut off at ``truncate`` standard deviations."""
    z = (x - mean) / std
    mass = 1.0 if truncate is None else math.erf(truncate / math.sqrt(2))
    return -(torch.addcmul(std.log(), z, z, value=0.5) + (LOG_2PI / 2 + math.log(mass)))


def entropy(std: Tensor, truncate: float | None = None) -> Tensor:
    """Per element of N(mean, std^2), cut off at ``truncate`` standard deviations."""
    if truncate is None:
        return std.log() + (1 + LOG_2PI) / 2
    mass = math.erf(truncate / math.sqrt(2))
    edge = truncate * math.exp(-(truncate**2) / 2) / math.sqrt(2 * math.pi) / mass
    return std.log() + ((1 + LOG_2PI) / 2 + math.log(mass) - edge)


def normal(
    shape: tuple[int, ...],
    generator: torch.Generator | None,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    truncate: float | None = None,
) -> Tensor:
    """Standard normal numbers; with ``truncate`` those of the distribution cut off there, not clamped to it."""
    if truncate is None:
        return torch.randn(shape, generator=generator, device=device, dtype=dtype)
    z = torch.empty(shape, device=device, dtype=dtype)
    return torch.nn.init.trunc_normal_(z, a=-truncate, b=truncate, generator=generator)


def flatten(chain: Chain) -> Tensor:
    """(B, (K+1) H D), and the drawn step as a last entry where there is one: an action of any trainer."""
    flat = chain.x.flatten(1)
    return flat if chain.k is None else torch.cat([flat, chain.k[:, None].to(flat.dtype)], dim=1)


def unflatten(actions: Tensor, K: int, H: int, D: int, hybrid: bool) -> Chain:
    size = (K + 1) * H * D
    if actions.shape[1] != size + hybrid:
        raise BindingError(
            f"an action of {actions.shape[1]} numbers is no chain of {K} steps over {H} x {D} actions, which has "
            f"{size + hybrid}",
            do="Use the kernel, the number of steps and the chunk length that the chains were made with",
        )
    return Chain(actions[:, :size].reshape(-1, K + 1, H, D), actions[:, size].long() if hybrid else None)


def _check_finite(x: Tensor, stds: list[Tensor]) -> None:
    if math.isfinite(x.sum().item()):
        return
    finite = torch.isfinite(x).flatten(2).all(2)  # (B, K+1)
    if bool(finite.all()):
        return
    first = int((~finite).any(0).nonzero()[0])
    share = float((~finite[:, first]).float().mean())
    if first == 0:
        what, do = "the noise that a chain begins with", "Give a finite x0"
    elif first <= len(stds) and not bool(torch.isfinite(stds[first - 1]).all()):
        what, do = f"the noise of step {first - 1}", "Lower the noise range, and the learning rate of the noise network"
    else:
        what = f"the velocity of step {first - 1}"
        do = "Lower the actor's learning rate, clip its gradient, and look at the joint KL of the last updates"
    steps = x.shape[1] - 1
    raise ContributionError(
        f"{what} (of 0..{steps - 1}) is not finite in {share:.0%} of {len(x)} rows", where="flow policy", do=do
    )
