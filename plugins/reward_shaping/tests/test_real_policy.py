"""O5: the hypergradient of every parametrisation on a real Stable-Baselines3 policy, against the whole update by autograd.

The update: rewards under the weights, GAE, normalisation, steps of the policy, and the task's surrogate after them. float32,
as Stable-Baselines3 casts observations to it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call

from budwood.api import Rollout
from budwood_reward_shaping.hypergrad import reward_adjoint, task_advantage
from budwood_reward_shaping.policy_steps import PolicySteps, second_moment
from budwood_reward_shaping.state_weights import StateWeights
from budwood_reward_shaping.weights import SimplexWeights, StaticWeights

SCALES = np.array([1.0, 0.3, 2.0])
T, N = 48, 4
BOUNDS = (0.1, 10.0)


class PolicyLogProb(nn.Module):
    def __init__(self, policy: Any) -> None:
        super().__init__()
        self.policy = policy

    def forward(self, obs: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        return self.policy.evaluate_actions(obs, actions)[1]


@pytest.fixture(scope="module")
def model():
    """After an update, so that Adam has moments."""
    from stable_baselines3 import PPO

    made = PPO("MlpPolicy", "Pendulum-v1", seed=0, n_steps=64, batch_size=32, n_epochs=2, device="cpu")
    return made.learn(64)


@pytest.fixture
def rollout(model) -> Rollout:
    """Sparse task in column 0, three terms after it; rewards are filled in by the test."""
    rng = np.random.default_rng(0)
    obs = rng.normal(size=(T, N, 3)).astype(np.float32)
    starts = (rng.random((T, N)) < 0.15).astype(np.float32)
    starts[0] = 1
    last_dones = np.array([True, False, True, True])
    ends = np.concatenate([starts[1:], last_dones[None]]) > 0
    terms = np.concatenate(
        [np.where(ends, rng.random((T, N)) < 0.5, 0.0)[..., None], rng.normal(size=(T, N, 3))], axis=-1
    )
    return Rollout(
        obs=obs, actions=rng.normal(size=(T, N, 1)).astype(np.float32), terms=terms, columns=(), rewards=np.zeros((T, N)),
        values=rng.normal(size=(T, N)), advantages=np.zeros((T, N)), episode_starts=starts, last_dones=last_dones,
        gamma=0.97, gae_lambda=0.9, log_prob=PolicyLogProb(model.policy), after_transforms=lambda: None, raw_obs=obs,
        optimizer=model.policy.optimizer,
    )  # fmt: skip


def gae(rewards: torch.Tensor, rollout: Rollout) -> torch.Tensor:
    values, starts = torch.as_tensor(rollout.values), torch.as_tensor(rollout.episode_starts, dtype=torch.float64)
    alive = torch.cat([1 - starts[1:], 1 - torch.as_tensor(rollout.last_dones, dtype=torch.float64)[None]])
    following = torch.cat([values[1:], torch.full((1, N), 0.3, dtype=torch.float64)])
    advantages, running = [], torch.zeros(N, dtype=torch.float64)
    for t in reversed(range(T)):
        delta = rewards[t] + rollout.gamma * following[t] * alive[t] - values[t]
        running = delta + rollout.gamma * rollout.gae_lambda * alive[t] * running
        advantages.append(running)
    return torch.stack(advantages[::-1])


def weights_of(param: str, space: Any, phi: torch.Tensor, obs: np.ndarray) -> torch.Tensor:
    """(T N, n) or (n,), written out once more: the weight network as torch modules."""
    if param == "static":
        return torch.exp(phi)
    if param == "simplex":
        return len(phi) * torch.softmax(phi, dim=0)
    x = torch.from_numpy(np.clip((obs.reshape(-1, 3).astype(np.float64) - space.mean) / space.std, -10, 10))
    position = 0
    for inputs, outputs, last in ((3, 64, False), (64, 64, False), (64, 3, True)):
        weight = phi[position : position + inputs * outputs].view(inputs, outputs)
        bias = phi[position + inputs * outputs : position + (inputs + 1) * outputs]
        position += (inputs + 1) * outputs
        x = torch.nn.functional.linear(x, weight.T, bias)
        x = x if last else x.tanh()
    return 3 * torch.softmax(x, dim=1)


def performance(phi: torch.Tensor, param: str, space: Any, rollout: Rollout, steps: PolicySteps) -> torch.Tensor:
    terms = torch.from_numpy(rollout.terms[..., 1:] * SCALES)
    weights = weights_of(param, space, phi, rollout.raw_obs)
    weights = weights.view(T, N, 3) if weights.dim() == 2 else weights
    advantages = gae((weights * terms).sum(-1), rollout)
    normalised = ((advantages - advantages.mean()) / advantages.std()).flatten().float()
    task = torch.from_numpy(task_advantage(rollout.terms[..., 0], rollout.episode_starts, rollout.last_dones)).flatten()
    inputs = torch.from_numpy(rollout.obs).flatten(0, 1), torch.from_numpy(rollout.actions).flatten(0, 1)
    names = [name for name, _ in rollout.log_prob.named_parameters()]
    start = [p.detach().requires_grad_() for _, p in rollout.log_prob.named_parameters()]
    moments = second_moment(rollout) if steps.adam else dict.fromkeys(names, 1.0)

    def log_probs(theta: list[torch.Tensor]) -> torch.Tensor:
        return functional_call(rollout.log_prob, dict(zip(names, theta, strict=True)), inputs)

    before = log_probs(start).detach()

    def slopes(theta: list[torch.Tensor], weights: torch.Tensor) -> list[torch.Tensor]:
        surrogate = (torch.exp(log_probs(theta) - before) * weights).mean()
        return list(torch.autograd.grad(surrogate, theta, create_graph=True, materialize_grads=True))

    first = [moments[name] * slope for name, slope in zip(names, slopes(start, normalised), strict=True)]
    term, moved = first, first
    for _ in range(steps.order):  # the curvature is held constant: products with it are linear in ``term``
        fixed = slopes(start, normalised.detach())
        dummy = [torch.zeros_like(p, requires_grad=True) for p in start]
        pulled = torch.autograd.grad(fixed, start, dummy, create_graph=True, materialize_grads=True)
        bent = torch.autograd.grad(pulled, dummy, term, create_graph=True, materialize_grads=True)
        term = [
            t + steps.alpha * (moments[name] * b - steps.damping * t)
            for name, t, b in zip(names, term, bent, strict=True)
        ]
        moved = [m + t for m, t in zip(moved, term, strict=True)]
    stepped = [p + steps.alpha * m for p, m in zip(start, moved, strict=True)]
    ratio = torch.exp(log_probs(stepped) - before)
    return (ratio * task.float()).sum() / (task != 0).sum()


def space_of(param: str) -> tuple[Any, np.ndarray]:
    rng = np.random.default_rng(3)
    if param == "static":
        return StaticWeights(*BOUNDS, False), rng.normal(size=3) * 0.5
    if param == "simplex":
        return SimplexWeights(*BOUNDS), rng.normal(size=3) * 0.5
    space = StateWeights(*BOUNDS, 3)
    space.freeze(rng.normal(size=(200, 3)), rng)
    phi = space.start(np.array([1.0, 0.7, 1.3]))
    return space, phi + 0.5 * space.noise(rng, 1, len(phi))[0]


def under(rollout: Rollout, param: str, space: Any, phi: np.ndarray) -> Rollout:
    """The rollout with the rewards and advantages of these weights."""
    weights = weights_of(param, space, torch.from_numpy(phi), rollout.raw_obs)
    weights = weights.view(T, N, 3) if weights.dim() == 2 else weights
    rewards = (weights * torch.from_numpy(rollout.terms[..., 1:] * SCALES)).sum(-1)
    return Rollout(**{**rollout.__dict__, "rewards": rewards.numpy(), "advantages": gae(rewards, rollout).numpy()})


STEPS = {
    "one_step": PolicySteps(0.05),
    "neumann": PolicySteps(0.05, order=3, damping=0.5),
    "one_step, adam": PolicySteps(3e-4, adam=True),
    "neumann, adam": PolicySteps(3e-5, order=5, damping=1.0, adam=True),
}


@pytest.mark.parametrize("steps", STEPS.values(), ids=STEPS)
@pytest.mark.parametrize("param", ["static", "simplex", "state"])
def test_o5_closed_form_is_autograd_through_the_whole_update(rollout, param, steps):
    space, phi = space_of(param)
    shown = under(rollout, param, space, phi)
    adjoint = reward_adjoint(shown, 0, steps)
    found = space.pullback(phi, SCALES, adjoint, shown.terms[..., 1:], shown.raw_obs)
    leaf = torch.tensor(phi, requires_grad=True)
    (expected,) = torch.autograd.grad(performance(leaf, param, space, shown, steps), leaf)
    assert found.shape == phi.shape
    assert np.abs(expected.numpy()).max() > 0
    np.testing.assert_allclose(found, expected.numpy(), rtol=0, atol=5e-6 * np.abs(expected.numpy()).max())


@pytest.mark.parametrize("param", ["static", "simplex", "state"])
def test_o5_closed_form_is_the_slope_by_central_differences(rollout, param):
    """Along the gradient itself, in float32: differences agree to their own error."""
    space, phi = space_of(param)
    shown = under(rollout, param, space, phi)
    steps = PolicySteps(0.05)
    found = space.pullback(phi, SCALES, reward_adjoint(shown, 0, steps), shown.terms[..., 1:], shown.raw_obs)
    direction = found / np.linalg.norm(found)
    h = 0.02
    above, below = (
        performance(torch.from_numpy(phi + sign * h * direction), param, space, shown, steps).item() for sign in (1, -1)
    )
    assert (above - below) / (2 * h) == pytest.approx(np.linalg.norm(found), rel=0.02)
