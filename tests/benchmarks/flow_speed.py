"""What chains cost against a plain PyTorch loop of the same arithmetic, and a one-step update against the whole chain's.

    OMP_NUM_THREADS=1 python tests/benchmarks/flow_speed.py                 # about 3 minutes on a free core
    OMP_NUM_THREADS=1 python tests/benchmarks/flow_speed.py --pairs 11 --chunks 500

Sampling: 40 environments, K = 4, H x D = 4 x 3, residual MLP of 512 x 3, learned noise of 64 x 64, with the log-probability
of every chain; and again with one drawn step of an SDE. The plain loops are written out here, and how far their chains are
from ours, from the same random numbers, is printed first. What a chain costs beyond a Gaussian policy of as many layers is
split into arithmetic, which the plain loop does as well, and bookkeeping, which it does not. Update: log-probability, clipped
loss and backward on 2,000 chunks, for full chains and for a drawn step of each. Pairs are interleaved and their order
alternates; times are CPU time of one thread.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from budwood_flow_rl.chains import flatten, log_prob, rollout, unflatten
from budwood_flow_rl.families import RectifiedFlow
from budwood_flow_rl.kernels import FlowSDE, Kernel, NoisyEuler
from budwood_flow_rl.noise import NoiseNet
from budwood_flow_rl.objective import ppo_loss
from budwood_flow_rl.reductions import joint

ENVS, K, H, D, OBS = 40, 4, 4, 3, 11
LOW, HIGH = math.log(0.10), math.log(0.24)


def velocity(field: RectifiedFlow, x: Tensor, k: int, o: Tensor) -> tuple[Tensor, Tensor]:
    """-> v (B, HD) and the time embedding: the layers of the same network, called one after the other."""
    net = field.net
    (block,) = net.blocks
    angles = torch.full((len(o), 1), k / K) * field.time.frequencies
    waves = torch.cat([angles.sin(), angles.cos()], 1)
    embedded = field.time.second(torch.nn.functional.mish(field.time.first(waves)))
    hidden = net.first(torch.cat([x, embedded, o], 1))
    hidden = hidden + block.second(torch.relu(block.first(torch.relu(hidden))))
    return net.last(hidden), embedded


def score_of(x: Tensor, mean: Tensor, sigma: Tensor, log_sigma: Tensor) -> Tensor:
    return -(((x - mean) / sigma) ** 2 / 2 + log_sigma + math.log(2 * math.pi) / 2).sum(1)


@torch.no_grad()
def plain_noise(field: RectifiedFlow, noise: NoiseNet, o: Tensor) -> tuple[Tensor, Tensor]:
    """Actions (B, (K+1) HD), which are whole chains, and log-probabilities (B,), with learned noise."""
    x = torch.randn(len(o), H * D)
    z = torch.randn(K, len(o), H * D)
    chain, score = [x], -(x**2 + math.log(2 * math.pi)).sum(1) / 2
    for k in range(K):
        v, embedded = velocity(field, x, k, o)
        raw = noise.layers(torch.cat([embedded, o], 1))
        log_sigma = LOW + (HIGH - LOW) * (torch.tanh(raw) + 1) / 2
        sigma = log_sigma.exp()
        mean = x + v / K
        x = mean + sigma * z[k]
        score = score + score_of(x, mean, sigma, log_sigma)
        chain.append(x)
    return torch.stack(chain, 1).flatten(1), score


@torch.no_grad()
def plain_sde(field: RectifiedFlow, level: float, o: Tensor) -> tuple[Tensor, Tensor]:
    """The same with one stochastic step a row, drawn, and kept as a last entry."""
    x = torch.randn(len(o), H * D)
    drawn = torch.randint(K, (len(o), 1))
    z = torch.randn(K, len(o), H * D)
    chain, score = [x], torch.zeros(len(o))
    for k in range(K):
        v, _ = velocity(field, x, k, o)
        ode = x + v / K
        sigma = torch.full_like(x, level * math.sqrt((K - k) / (K * max(k, 1))))
        here = drawn == k
        mean = torch.where(here, ode - level**2 / (2 * max(k, 1)) * (x - k / K * v), ode)
        x = torch.where(here, mean + sigma * z[k], mean)
        score = score + torch.where(here[:, 0], score_of(x, mean, sigma, sigma.log()), 0.0)
        chain.append(x)
    return torch.cat([torch.stack(chain, 1).flatten(1), drawn], 1), score


@torch.no_grad()
def plain_gaussian(net: torch.nn.Module, log_sigma: Tensor, o: Tensor) -> tuple[Tensor, Tensor]:
    """Actions (B, HD) and log-probabilities (B,) of a Gaussian around one pass of a network of the same widths."""
    mean, sigma = net(o), log_sigma.exp().expand(len(o), -1)
    actions = mean + sigma * torch.randn_like(mean)
    return actions, score_of(actions, mean, sigma, log_sigma)


def perceptron() -> torch.nn.Sequential:
    widths = (OBS, 512, 512, 512)
    hidden = [layer for pair in pairwise(widths) for layer in (torch.nn.Linear(*pair), torch.nn.ReLU())]
    return torch.nn.Sequential(*hidden, torch.nn.Linear(512, H * D))


def sampled(field: RectifiedFlow, kernel: Kernel, o: Tensor) -> tuple[Tensor, Tensor]:
    """What a policy hands to its trainer: an action and its log-probability."""
    chain = rollout(field, kernel, o)
    assert chain.log_prob is not None
    return flatten(chain), joint(chain.log_prob.elements, "all", (H, D))


def update(field: RectifiedFlow, kernel: Kernel, actions: Tensor, o: Tensor, old: Tensor, advantages: Tensor) -> None:
    chain = unflatten(actions, K, H, D, kernel.hybrid)
    new = joint(log_prob(field, kernel, chain, o).elements, "all", (H, D))
    loss, _ = ppo_loss(new, old, advantages, 0.01, 0.01, divisor=60.0)
    loss.backward()


def spent(call: Callable[[], object], repeats: int) -> float:
    started = time.process_time()
    for _ in range(repeats):
        call()
    return (time.process_time() - started) / repeats


def paired(one: Callable[[], object], other: Callable[[], object], pairs: int, repeats: int) -> tuple[np.ndarray, ...]:
    """Seconds (pairs,) of each, after one uncounted round; the order within a pair alternates."""
    spent(one, 1), spent(other, 1)
    rows = []
    for pair in range(pairs):
        if pair % 2:
            rows.append((spent(one, repeats), spent(other, repeats)))
        else:
            second = spent(other, repeats)
            rows.append((spent(one, repeats), second))
    return tuple(np.array(rows).T)


def interval(ratios: np.ndarray, draws: int = 10_000) -> tuple[float, float]:
    """Bootstrap 95 % interval of the median."""
    picks = np.random.default_rng(0).choice(ratios, (draws, len(ratios)))
    low, high = np.quantile(np.median(picks, axis=1), [0.025, 0.975])
    return float(low), float(high)


def report(title: str, names: tuple[str, str], one: np.ndarray, other: np.ndarray) -> None:
    ratios = one / other
    low, high = interval(ratios)
    print(
        f"{title:34} {names[0]} {1e3 * np.median(one):8.2f} ms, {names[1]} {1e3 * np.median(other):8.2f} ms, "
        f"ratio {np.median(ratios):.3f} [{low:.3f}, {high:.3f}] over {len(ratios)} pairs"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=21)
    parser.add_argument("--repeats", type=int, default=20, help="calls of one timing of sampling")
    parser.add_argument("--chunks", type=int, default=2_000)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    field = RectifiedFlow(OBS, H, D, hidden=(512, 512, 512))
    noise = NoiseNet(field.feat_dim, H, D, (64, 64), 0.10, 0.24)
    chains, hybrid = NoisyEuler(K, noise), FlowSDE(K, 0.5, hybrid=True)
    o = torch.randn(ENVS, OBS)
    net, log_sigma = perceptron(), torch.full((H * D,), math.log(0.2))

    for title, kernel, plain in (
        ("sampling, learned noise", chains, lambda: plain_noise(field, noise, o)),
        ("sampling, one SDE step", hybrid, lambda: plain_sde(field, 0.5, o)),
    ):
        torch.manual_seed(1)
        actions, score = sampled(field, kernel, o)
        torch.manual_seed(1)
        theirs, expected = plain()
        print(
            f"{title}: from the same random numbers chains differ by "
            f"{(actions - theirs).abs().max():.1e} and log-probabilities by "
            f"{(score - expected).abs().max():.1e}"
        )
        one, other = paired(lambda kernel=kernel: sampled(field, kernel, o), plain, options.pairs, options.repeats)
        report(title, ("ours", "plain loop"), one, other)
        gaussian, beside = paired(lambda: plain_gaussian(net, log_sigma, o), plain, options.pairs, options.repeats)
        arithmetic, bookkeeping = np.median(beside - gaussian), np.median(one - other)
        print(
            f"{'':34} a Gaussian {1e3 * np.median(gaussian):.2f} ms; a chain costs {1e3 * arithmetic:.2f} ms of arithmetic "
            f"and {1e3 * bookkeeping:.2f} ms of bookkeeping more"
        )

    with torch.inference_mode():
        x, k, s = torch.randn(ENVS, H, D), torch.zeros(ENVS, dtype=torch.long), torch.zeros(ENVS)
        networks = spent(lambda: (lambda found: noise(found[1]))(field.velocity(x, s, o, s)), 10 * options.repeats)
        steps = spent(lambda: chains.step_dist(field, x, k, o), 10 * options.repeats)
    whole = spent(lambda: sampled(field, chains, o), 5 * options.repeats)
    print(
        f"split of one call with learned noise: networks {1e3 * K * networks:.2f} ms, steps around them "
        f"{1e3 * K * (steps - networks):.2f} ms, noise, scores and the flat chain {1e3 * (whole - K * steps):.2f} ms"
    )

    o, advantages = torch.randn(options.chunks, OBS), torch.randn(options.chunks)
    work = {}
    for name, kernel in {"full": chains, "hybrid": hybrid}.items():
        actions, old = sampled(field, kernel, o)
        work[name] = lambda kernel=kernel, actions=actions, old=old: update(field, kernel, actions, o, old, advantages)
    full, single = paired(work["full"], work["hybrid"], max(5, options.pairs // 3), 1)
    report(f"loss and backward, {options.chunks} chunks", ("full chain", "one step"), full, single)


if __name__ == "__main__":
    main()
