"""The closed form of the hypergradient: against autograd through the whole update, differences and brute force (O5)."""

from __future__ import annotations

import copy
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call

from budwood.api import Rollout
from budwood_reward_shaping import hypergrad
from budwood_reward_shaping.policy_steps import PolicySteps
from budwood_reward_shaping.weights import StaticWeights

ALPHA = 0.05


class GaussianLogProb(nn.Module):
    """A two-layer Gaussian policy in float64, for checks that float32 would hide."""

    def __init__(self, obs: int, actions: int) -> None:
        super().__init__()
        self.mean = nn.Sequential(nn.Linear(obs, 16), nn.Tanh(), nn.Linear(16, actions)).double()
        self.log_std = nn.Parameter(torch.zeros(actions, dtype=torch.float64))

    def forward(self, obs: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        return torch.distributions.Normal(self.mean(obs), self.log_std.exp()).log_prob(actions).sum(dim=-1)


class PolicyLogProb(nn.Module):
    """log pi(a | s) of a Stable-Baselines3 policy."""

    def __init__(self, policy: Any) -> None:
        super().__init__()
        self.policy = policy

    def forward(self, obs: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        return self.policy.evaluate_actions(obs, actions)[1]


def make_rollout(log_prob: nn.Module, obs: Any, actions: np.ndarray, seed: int, terms: int = 4) -> Rollout:
    """(T, n) rewards from ``terms`` random columns, of which column 1 is a sparse task; advantages of weights 1."""
    rng = np.random.default_rng(seed)
    steps, n = actions.shape[:2]
    starts = (rng.random((steps, n)) < 0.2).astype(np.float32)
    starts[0] = 1
    last_dones = rng.random(n) < 0.5
    matrix = rng.normal(size=(steps, n, terms))
    ends = np.concatenate([starts[1:], last_dones[None]]) > 0
    matrix[..., 1] = np.where(ends, rng.random((steps, n)) < 0.5, 0.0)
    values = rng.normal(size=(steps, n)).astype(np.float32)
    rollout = Rollout(
        obs=obs,
        actions=actions,
        terms=matrix,
        columns=("env.reward", "reward_shaping.task", *(f"reward_shaping.t{k}" for k in range(terms - 2))),
        rewards=matrix[..., 2:].sum(-1),
        values=values,
        advantages=np.zeros((steps, n)),
        episode_starts=starts,
        last_dones=last_dones,
        gamma=0.97,
        gae_lambda=0.9,
        log_prob=log_prob,
        after_transforms=lambda: None,
    )
    advantages = gae(torch.as_tensor(rollout.rewards), rollout).numpy()
    return Rollout(**{**rollout.__dict__, "advantages": advantages})


def gae(rewards: torch.Tensor, rollout: Rollout) -> torch.Tensor:
    """Generalised advantages, differentiable in the rewards; the value after the last step is 0.3."""
    values = torch.as_tensor(rollout.values, dtype=rewards.dtype)
    starts = torch.as_tensor(rollout.episode_starts, dtype=rewards.dtype)
    last = 1.0 - torch.as_tensor(rollout.last_dones, dtype=rewards.dtype)
    advantages: list[torch.Tensor] = []
    running = torch.zeros_like(rewards[0])
    for t in reversed(range(len(rewards))):
        alive, following = (
            (last, torch.full_like(running, 0.3)) if t == len(rewards) - 1 else (1.0 - starts[t + 1], values[t + 1])
        )
        running = (
            rewards[t]
            + rollout.gamma * following * alive
            - values[t]
            + rollout.gamma * rollout.gae_lambda * alive * running
        )
        advantages.append(running)
    return torch.stack(advantages[::-1])


def brute_force_task_advantage(rollout: Rollout) -> np.ndarray:
    task = rollout.terms[..., 1]
    steps, n = task.shape
    ends = np.concatenate([rollout.episode_starts[1:], rollout.last_dones[None]]) > 0
    returns = np.full((steps, n), np.nan)
    for t in range(steps):
        for i in range(n):
            for end in range(t, steps):
                if ends[end, i]:
                    returns[t, i] = task[t : end + 1, i].sum()
                    break
    known = ~np.isnan(returns)
    return np.where(known, (returns - returns[known].mean()) / returns[known].std(), 0.0)


def performance(phi: torch.Tensor, rollout: Rollout, task: torch.Tensor, create_graph: bool) -> torch.Tensor:
    """The task's surrogate after one policy step on the rewards that log-weights ``phi`` give: all by autograd."""
    theta = {name: p.detach().requires_grad_() for name, p in rollout.log_prob.named_parameters()}
    like = next(iter(theta.values())).dtype
    obs = (
        {k: torch.as_tensor(v).flatten(0, 1) for k, v in rollout.obs.items()}
        if isinstance(rollout.obs, dict)
        else torch.as_tensor(rollout.obs).flatten(0, 1)
    )
    actions = torch.as_tensor(rollout.actions).flatten(0, 1)
    rewards = (torch.as_tensor(rollout.terms[..., 2:]) * torch.exp(phi)).sum(-1)
    advantages = gae(rewards, rollout).flatten()
    normalised = ((advantages - advantages.mean()) / advantages.std()).to(like)
    log_probs = functional_call(rollout.log_prob, theta, (obs, actions))
    objective = (normalised * log_probs).mean()
    step = torch.autograd.grad(objective, list(theta.values()), create_graph=create_graph, allow_unused=True)
    stepped = {name: p if g is None else p + ALPHA * g for (name, p), g in zip(theta.items(), step, strict=True)}
    ratio = torch.exp(functional_call(rollout.log_prob, stepped, (obs, actions)) - log_probs.detach())
    return (ratio * task.to(like)).sum() / (task != 0).sum()


def reference(rollout: Rollout) -> np.ndarray:
    phi = torch.zeros(rollout.terms.shape[-1] - 2, dtype=torch.float64, requires_grad=True)
    task = torch.as_tensor(brute_force_task_advantage(rollout)).flatten()
    return torch.autograd.grad(performance(phi, rollout, task, True), phi)[0].numpy()


def closed_form(rollout: Rollout) -> np.ndarray | None:
    adjoint = hypergrad.reward_adjoint(rollout, 1, PolicySteps(ALPHA))
    if adjoint is None:
        return None
    terms = rollout.terms[..., 2:]
    ones = np.ones(terms.shape[-1])
    return StaticWeights(0.1, 10.0, False).pullback(np.zeros_like(ones), ones, adjoint, terms, None)


@pytest.mark.parametrize(("steps", "n", "terms"), [(40, 4, 5), (30, 1, 4), (40, 2, 3), (25, 3, 12)])
def test_closed_form_is_autograd_through_the_whole_update(steps, n, terms):
    torch.manual_seed(0)
    rng = np.random.default_rng(1)
    log_prob = GaussianLogProb(3, 2)
    rollout = make_rollout(
        log_prob, rng.normal(size=(steps, n, 3)), rng.normal(size=(steps, n, 2)), seed=2, terms=terms
    )
    expected = reference(rollout)
    np.testing.assert_allclose(closed_form(rollout), expected, rtol=1e-8, atol=1e-12 * np.abs(expected).max())


def test_closed_form_is_the_slope_by_central_differences():
    torch.manual_seed(0)
    rng = np.random.default_rng(1)
    log_prob = GaussianLogProb(3, 2)
    rollout = make_rollout(log_prob, rng.normal(size=(40, 4, 3)), rng.normal(size=(40, 4, 2)), seed=2)
    task = torch.as_tensor(brute_force_task_advantage(rollout)).flatten()
    slopes = []
    for k in range(2):
        move = torch.zeros(2, dtype=torch.float64)
        move[k] = 1e-4
        above, below = (performance(sign * move, rollout, task, False).item() for sign in (1, -1))
        slopes.append((above - below) / 2e-4)
    np.testing.assert_allclose(closed_form(rollout), slopes, rtol=1e-5)


@pytest.mark.parametrize("env", ["Pendulum-v1", "CartPole-v1"])
def test_o5_on_a_real_policy(env):
    """Gaussian and categorical heads of Stable-Baselines3, float32 throughout."""
    from stable_baselines3 import PPO

    model = PPO("MlpPolicy", env, seed=0, n_steps=64, device="cpu")
    rng = np.random.default_rng(0)
    obs = rng.normal(size=(64, 4, *model.observation_space.shape)).astype(np.float32)
    if isinstance(model.action_space, gym.spaces.Box):
        actions = rng.normal(size=(64, 4, *model.action_space.shape)).astype(np.float32)
    else:
        actions = rng.integers(0, 2, size=(64, 4)).astype(np.float32)
    rollout = make_rollout(PolicyLogProb(model.policy), obs, actions, seed=3, terms=5)
    before = [p.clone() for p in model.policy.parameters()]
    generator = torch.get_rng_state()
    mode = model.policy.training
    found, expected = closed_form(rollout), reference(rollout)
    assert np.abs(found - expected).max() < 2e-6 * np.abs(expected).max()
    assert all(torch.equal(a, b) for a, b in zip(before, model.policy.parameters(), strict=True))
    assert torch.equal(generator, torch.get_rng_state())
    assert model.policy.training == mode
    with torch.no_grad():
        rollout.log_prob(torch.as_tensor(obs[0]), torch.as_tensor(actions[0]))  # what ``after_transforms`` does
    copy.deepcopy(model.policy)


def test_dict_observations():
    class Both(GaussianLogProb):
        def forward(self, obs: Any, actions: torch.Tensor) -> torch.Tensor:
            return super().forward(torch.cat([obs["a"], obs["b"]], dim=-1), actions)

    torch.manual_seed(0)
    rng = np.random.default_rng(1)
    obs = {"a": rng.normal(size=(20, 2, 1)), "b": rng.normal(size=(20, 2, 2))}
    rollout = make_rollout(Both(3, 1), obs, rng.normal(size=(20, 2, 1)), seed=2)
    np.testing.assert_allclose(closed_form(rollout), reference(rollout), rtol=1e-8)


def test_misleading_heuristic_on_samples():
    """O2's bandit through the estimator: up for the helpful heuristic, down for the misleading one, flat for the constant."""
    heuristics = np.array([[0.0, 0.5, 1, 0.5, 0], [1, 0.2, 0, 0, 0], [0.4, 0.4, 0.4, 0.4, 0.4]])
    rng = np.random.default_rng(0)
    arms = rng.integers(0, 5, size=(500, 8))

    class Bandit(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.logits = nn.Parameter(torch.zeros(5, dtype=torch.float64))

        def forward(self, obs: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
            return torch.log_softmax(self.logits, dim=0)[actions.flatten()]

    terms = np.stack([np.zeros(arms.shape), arms == 2, *heuristics[:, arms]], axis=-1).astype(np.float64)
    rewards = terms[..., 2:].sum(-1)
    rollout = Rollout(
        obs=np.zeros((500, 8, 1)), actions=arms[..., None], terms=terms, columns=(), rewards=rewards,
        values=np.zeros(arms.shape), advantages=rewards, episode_starts=np.ones(arms.shape), last_dones=np.ones(8, bool),
        gamma=1.0, gae_lambda=1.0, log_prob=Bandit(), after_transforms=lambda: None,
    )  # fmt: skip
    helpful, misleading, constant = closed_form(rollout)
    assert helpful > 0 > misleading
    assert abs(constant) < 1e-10 * helpful


def test_task_advantage_is_the_brute_force_one_and_unfinished_episodes_do_not_count():
    log_prob = GaussianLogProb(3, 2)
    rollout = make_rollout(log_prob, np.zeros((50, 6, 3)), np.zeros((50, 6, 2)), seed=5)
    found = hypergrad.task_advantage(rollout.terms[..., 1], rollout.episode_starts, rollout.last_dones)
    np.testing.assert_allclose(found, brute_force_task_advantage(rollout), atol=1e-12)
    assert (found[-1][~rollout.last_dones] == 0).all()


def test_gae_adjoint_is_the_transpose():
    rng = np.random.default_rng(0)
    rollout = make_rollout(GaussianLogProb(3, 2), np.zeros((30, 2, 3)), np.zeros((30, 2, 2)), seed=6)
    rewards = torch.as_tensor(rng.normal(size=(30, 2)), dtype=torch.float64).requires_grad_()
    g = rng.normal(size=(30, 2))
    (expected,) = torch.autograd.grad((gae(rewards, rollout) * torch.as_tensor(g)).sum(), rewards)
    found = hypergrad.gae_adjoint(g, rollout.episode_starts.astype(np.float64), rollout.gamma * rollout.gae_lambda)
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-12)


def test_no_variance_means_no_gradient():
    rollout = make_rollout(GaussianLogProb(3, 2), np.zeros((20, 2, 3)), np.zeros((20, 2, 2)), seed=7)
    never = rollout.terms.copy()
    never[..., 1] = 0.0
    assert closed_form(Rollout(**{**rollout.__dict__, "terms": never})) is None
    flat = np.ones_like(rollout.advantages)
    assert closed_form(Rollout(**{**rollout.__dict__, "advantages": flat})) is None
    starts = np.zeros_like(rollout.episode_starts)
    unfinished = {"episode_starts": starts, "last_dones": np.zeros(2, bool)}
    assert closed_form(Rollout(**{**rollout.__dict__, **unfinished})) is None


def test_after_transforms_is_called_even_after_an_error():
    called = []

    class Broken(GaussianLogProb):
        def forward(self, obs: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("no")

    rollout = make_rollout(Broken(3, 2), np.zeros((20, 2, 3)), np.zeros((20, 2, 2)), seed=8)
    with pytest.raises(RuntimeError):
        closed_form(Rollout(**{**rollout.__dict__, "after_transforms": lambda: called.append(1)}))
    assert called == [1]


def test_discounted_std_restarts_with_episodes():
    terms = np.array([[[1.0]], [[1.0]], [[1.0]], [[3.0]]])
    starts = np.array([[1.0], [0.0], [1.0], [0.0]])
    returns = [1.0, 1.5, 1.0, 3.5]
    np.testing.assert_allclose(hypergrad.discounted_std(terms, starts, 0.5), [np.std(returns)])
