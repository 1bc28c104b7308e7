"""Flow policies inside Stable-Baselines3's own PPO: its distribution, its buffer, its advantages, its update."""

from __future__ import annotations

from copy import deepcopy

import gymnasium as gym
import numpy as np
import pytest
import torch

pytest.importorskip("budwood_sb3")

from rowwise import Rowwise
from stable_baselines3 import PPO
from stable_baselines3.common.distributions import DiagGaussianDistribution
from torch.distributions import Normal

from budwood.planning import explain
from budwood_flow_rl import regularisers
from budwood_flow_rl.config import ScheduleConfig
from budwood_flow_rl.kernels import NoisyEuler

torch.set_num_threads(1)
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


class Episodes(gym.Env):
    """Plays ``script``, a list of (length, terminated, truncated), over and over; rewards and observations are random.

    ``log`` keeps (reward, terminated, truncated, observation) of every step of all environments, by number.
    """

    log: dict[int, list] = {}  # noqa: RUF012
    script: list = [(5, True, False)]  # noqa: RUF012

    def __init__(self):
        self.observation_space = gym.spaces.Box(-9, 9, (3,), np.float32)
        self.action_space = gym.spaces.Box(-1, 1, (2,), np.float32)
        self.number, self.played, self.time = len(Episodes.log), len(Episodes.log), 0
        Episodes.log[self.number] = []
        self.rng = np.random.default_rng(self.number)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.time = 0
        return self._observed(), {}

    def step(self, action):
        length, *how = self.script[self.played % len(self.script)]
        self.time += 1
        over = self.time == length
        self.played += over
        terminated, truncated = (flag and over for flag in how)
        obs, reward = self._observed(), float(self.rng.normal())
        Episodes.log[self.number].append((reward, terminated, truncated, obs))
        return obs, reward, terminated, truncated, {}

    def _observed(self):
        return self.rng.normal(size=3).astype(np.float32)


gym.register("FlowEpisodes-v0", entry_point=Episodes)


def model_of(args=None, n_envs=2, script=((5, True, False),), **section):
    """PPO with the plugin, not trained; its environments play ``script``."""
    Episodes.log, Episodes.script = {}, list(script)
    made = {
        "trainer": {
            "kind": "sb3",
            "algo": "ppo",
            "total_timesteps": 1_000,
            "args": {"n_steps": 16, "batch_size": 16, **(args or {})},
        },
        "env": {"id": "FlowEpisodes-v0", "n_envs": n_envs},
        "device": "cpu",
        "plugins": {
            "flow_rl": {
                "schedule": {"critic_warmup": 0},
                "critic": {"hidden": [16, 16, 16]},
                **({} if "family" in section else {"family": {"hidden": [32, 32, 32]}}),
                **section,
            }
        },
    }
    return explain(made).build_trainer().native


def collected(model):
    """One rollout in the model's buffer."""
    _, callback = model._setup_learn(1_000, None)
    model.collect_rollouts(model.env, callback, model.rollout_buffer, model.n_steps)
    return model


# ---- T2: one integration step is a Gaussian policy on (o, x_0) --------------------------------------------------------


def gaussian(policy, obs, actions):
    """Stable-Baselines3's own distribution of x_1 given (o, x_0), as ``evaluate_actions`` gives it."""
    flow = policy.network
    x0, x1 = actions[:, : flow.D], actions[:, flow.D :]
    v, feat = flow.field.velocity(x0[:, None], torch.zeros(len(x0)), obs, torch.ones(len(x0)))
    distribution = DiagGaussianDistribution(flow.D)
    distribution.distribution = Normal(x0 + v[:, 0], flow.kernel.noise(feat)[:, 0])
    return flow.value(obs)[:, None], distribution.log_prob(x1), distribution.entropy()


def start_log_prob(model, actions):
    return Normal(0.0, 1.0).log_prob(torch.as_tensor(actions[..., : model.policy.network.D])).sum(-1)


ONE = {"steps": 1, "chunk": {"horizon": 1}, "reduction": "sum"}


def test_one_step_has_the_log_probability_and_entropy_of_a_gaussian_policy():
    model = collected(model_of(**ONE))
    for batch in model.rollout_buffer.get(32):
        value, log_prob, entropy = model.policy.evaluate_actions(batch.observations, batch.actions)
        expected_value, conditional, expected_entropy = gaussian(model.policy, batch.observations, batch.actions)
        start = start_log_prob(model, batch.actions)
        torch.testing.assert_close(log_prob, conditional + start, atol=1e-5, rtol=1e-6)
        torch.testing.assert_close(value, expected_value)
        initial = model.policy.network.D * 0.5 * np.log(2 * np.pi * np.e)  # H(x_0), a constant
        torch.testing.assert_close(entropy, expected_entropy + initial, atol=1e-5, rtol=1e-6)


def test_one_step_is_updated_as_stable_baselines3_updates_a_gaussian_policy():
    """The plugin's update on one side, PPO's untouched ``train`` with SB3's Gaussian on the other.

    No gradient reaches ``max_grad_norm``: PPO clips actor and critic together, and here each is clipped by itself.
    """
    args = {"n_steps": 32, "batch_size": 16, "n_epochs": 3, "ent_coef": 0.01, "learning_rate": 1e-3, "target_kl": 5.0}
    args["max_grad_norm"] = 1e6
    ours = collected(model_of(args, **ONE))
    theirs_policy, theirs_buffer = deepcopy(ours.policy), deepcopy(ours.rollout_buffer)
    before = {name: tensor.clone() for name, tensor in ours.policy.state_dict().items()}
    state = np.random.get_state()
    ours.train()

    class Reference(type(theirs_policy)):
        def evaluate_actions(self, obs, actions):
            return gaussian(self, obs, actions)

    after = {name: tensor.clone() for name, tensor in ours.policy.state_dict().items()}
    theirs_policy.__class__ = Reference
    theirs_buffer.log_probs = theirs_buffer.log_probs - start_log_prob(ours, theirs_buffer.actions).numpy()
    ours.policy, ours.rollout_buffer = theirs_policy, theirs_buffer
    np.random.set_state(state)
    PPO.train(ours)
    moved = max(float((after[name] - before[name]).abs().max()) for name in after)
    apart = max(float((after[name] - tensor).abs().max()) for name, tensor in theirs_policy.state_dict().items())
    assert moved > 1e-3
    assert apart < 1e-6, f"{apart:.1e} after updates that moved parameters by {moved:.1e}"


@pytest.mark.parametrize("horizon", [1, 4])
def test_epochs_stop_by_the_joint_divergence_whatever_the_ratio_is_divided_by(horizon):
    """Every epoch is one minibatch, so after the update the policy is the one that was found too far."""
    target, args = 0.01, {"batch_size": 32, "n_epochs": 20, "learning_rate": 1e-3}
    model = collected(model_of({**args, "target_kl": target}, chunk={"horizon": horizon}, reduction="mean_n"))
    rows = deepcopy(model.rollout_buffer)
    model.train()
    (batch,) = rows.get(32)
    with torch.no_grad():
        log_ratio = model.policy.evaluate_actions(batch.observations, batch.actions)[1] - batch.old_log_prob
    n = model.policy.network.divisor
    joint, divided = (float((r.expm1() - r).mean()) for r in (log_ratio, log_ratio / n))
    assert n == (4 + 1) * horizon * 2
    assert 1 < model._n_updates < 20
    assert divided < 0.1 * target < 1.5 * target < joint


# ---- T3: recomputed probabilities are the stored ones -----------------------------------------------------------------

KERNELS = {
    "noise": {"kernel": {"name": "noisy_euler"}},
    "truncated": {"kernel": {"name": "noisy_euler", "truncate": 3.0, "clip_mean": 1.0}},
    "sde": {"kernel": {"name": "flow_sde", "hybrid": False}},
    "hybrid": {"kernel": {"name": "flow_sde"}},
    "cps": {"kernel": {"name": "flow_cps"}},
}


def ratio_error(model, size):
    """max |r - 1| over the rollout in minibatches of ``size``; None: row by row of environments, as it was collected."""
    buffer = model.rollout_buffer
    worst = 0.0
    with torch.no_grad():
        if size is None:
            for t in range(buffer.buffer_size):
                obs, actions = torch.as_tensor(buffer.observations[t]), torch.as_tensor(buffer.actions[t])
                new = model.policy.evaluate_actions(obs, actions)[1]
                worst = max(worst, float((new - torch.as_tensor(buffer.log_probs[t])).expm1().abs().max()))
            return worst
        for batch in buffer.get(size):
            new = model.policy.evaluate_actions(batch.observations, batch.actions)[1]
            worst = max(worst, float((new - batch.old_log_prob).expm1().abs().max()))
    return worst


ONE_STEP = ("noise", "truncated")
"""Kernels that have a single step; the others are degenerate with it, and refused."""


@pytest.mark.parametrize("family", ["rectified", "shortcut"])
@pytest.mark.parametrize(
    ("kernel", "steps"), [(kernel, K) for kernel in KERNELS for K in (1, 2, 4, 8) if K > 1 or kernel in ONE_STEP]
)
def test_probabilities_of_a_rollout_are_recomputed_from_its_buffer(kernel, family, steps):
    model = model_of(n_envs=4, steps=steps, family={"name": family, "hidden": [32, 32, 32]}, **KERNELS[kernel])
    if isinstance(model.policy.network.kernel, NoisyEuler):
        model.policy.network.kernel.noise.set_range(0.05, 0.12)
    with Rowwise():
        assert ratio_error(collected(model), None) <= 1e-6
    collected_already = deepcopy(collected(model).rollout_buffer)
    for size in (64, 7, 1):
        model.rollout_buffer = deepcopy(collected_already)
        assert ratio_error(model, size) <= 1e-4, size


# ---- T10: advantages over chunks ---------------------------------------------------------------------------------------

CHUNK = 3
MIXED = [
    (3, True, False),  # at a border of chunks
    (4, False, True),  # inside a chunk, cut off
    (5, True, False),  # inside a chunk
    (6, False, True),  # at a border, cut off
    (1, True, False),
    (2, False, True),
    (8, True, True),  # both at once: terminated counts
]


def decisions_of(log, first):
    """The steps of one environment as chunks: (o, summed reward, terminated, over, o after the last step)."""
    made, reward, steps, start = [], 0.0, 0, first
    for r, terminated, truncated, obs in log:
        reward, steps = reward + r, steps + 1
        if steps == CHUNK or terminated or truncated:
            made.append((start, reward, terminated, terminated or truncated, obs))
            reward, steps, start = 0.0, 0, obs
    return made


def slow_advantages(decisions, values, finals, gamma, lam):
    """Sum over the rest of the episode, for every decision anew: O(T^2)."""
    advantages = []
    for t in range(len(decisions)):
        total, weight = 0.0, 1.0
        for step in range(t, len(decisions)):
            _, reward, terminated, over, _ = decisions[step]
            total += weight * (reward + gamma * (not terminated) * finals[step] - values[step])
            if over:
                break
            weight *= gamma * lam
        advantages.append(total)
    return advantages


def test_advantages_over_chunks_are_those_of_a_slow_sum():
    args = {"gamma": 0.9, "gae_lambda": 0.8, "n_steps": 40, "batch_size": 10}
    chunk = {"horizon": CHUNK + 1, "execute": CHUNK}
    model = collected(model_of(args, n_envs=3, script=MIXED, chunk=chunk))
    buffer = model.rollout_buffer
    kinds = set()
    for env in range(3):
        decisions = decisions_of(Episodes.log[env], None)[:40]
        kinds |= {(terminated, over) for _, _, terminated, over, _ in decisions}
        with torch.no_grad():
            after = torch.as_tensor(np.array([final for *_, final in decisions]))
            finals = model.policy.predict_values(after).flatten().tolist()
        values = buffer.values[:, env].tolist()
        expected = slow_advantages(decisions, values, finals, 0.9, 0.8)
        np.testing.assert_allclose(buffer.advantages[:, env], expected, atol=2e-5)
    assert kinds == {(False, False), (True, True), (False, True)}
    steps = [length for env in Episodes.log.values() for length in [len(env)]]
    assert model.env.get_attr("total_steps") == steps
    assert sum(steps) < 3 * 40 * CHUNK, "some chunks were cut short"


def test_the_reference_leaks_credit_through_time_limits_and_can_be_compared_with():
    args = {"gamma": 0.9, "gae_lambda": 0.8, "n_steps": 40, "batch_size": 10}
    chunk = {"horizon": CHUNK, "execute": CHUNK}
    model = collected(model_of(args, n_envs=3, script=MIXED, chunk=chunk, parity={"reset_value": True}))
    buffer, crossed = model.rollout_buffer, 0
    last = model.policy.predict_values(torch.as_tensor(model._last_obs)).flatten().tolist()
    for env in range(3):
        decisions = decisions_of(Episodes.log[env], None)[:40]
        crossed += sum(over and not terminated for _, _, terminated, over, _ in decisions)
        values = buffer.values[:, env].tolist()
        through = [(o, reward, terminated, terminated, final) for o, reward, terminated, _, final in decisions]
        expected = slow_advantages(through, values, [*values[1:], last[env]], 0.9, 0.8)
        np.testing.assert_allclose(buffer.advantages[:, env], expected, atol=2e-5)
    assert crossed > 10
    assert len(model.ep_info_buffer) > 30, "returns are logged of episodes that were cut off, too"


# ---- what changes between iterations -----------------------------------------------------------------------------------


def test_while_the_critic_warms_up_the_actor_has_no_gradient():
    model = collected(model_of({"ent_coef": 0.05}, schedule={"critic_warmup": 3}, regularisers={"w2": 0.1, "bc": 0.1}))
    flow = model.policy.network
    before = deepcopy(flow.state_dict())
    model.train()
    for name, tensor in flow.state_dict().items():
        assert tensor.equal(before[name]) == (not name.startswith("critic")), name
    assert all(parameter.grad is None for parameter in flow.field.parameters())


def test_constant_noise_is_the_bottom_of_its_range():
    flow = model_of(kernel={"name": "noisy_euler", "sigma": [0.1, 0.3]}, schedule={"noise": "const"}).policy.network
    obs = torch.randn(8, 3)
    np.testing.assert_allclose(flow.step_noise(obs, flow.act(obs)[0]), [0.1] * 4, rtol=1e-6)
    assert "sigma is the range's bottom" in ScheduleConfig.model_fields["noise"].description


@pytest.mark.parametrize("blind", [False, True])
def test_noise_is_the_same_at_every_step_if_it_does_not_read_the_time(blind):
    flow = model_of(kernel={"name": "noisy_euler", "time_independent": blind}).policy.network
    obs = torch.randn(8, 3)
    steps = flow.step_noise(obs, flow.act(obs)[0])
    assert (len(set(steps.tolist())) == 1) == blind
    one, other = (flow.step_noise(obs[row : row + 1], flow.act(obs[row : row + 1])[0]) for row in (0, 1))
    assert not torch.equal(one, other), "it reads the observation"


@pytest.mark.parametrize("term", ["w2", "bc"])
def test_regularisers_move_the_actor_and_never_its_copy(term):
    models = [collected(model_of(regularisers={term: weight})) for weight in (1e-9, 10.0)]
    copies = [deepcopy(model.policy.network.frozen.state_dict()) for model in models]
    for model in models:
        model.train()
    free, held = (model.policy.network for model in models)
    assert all(tensor.equal(copies[1][name]) for name, tensor in held.frozen.state_dict().items())
    assert any(not tensor.equal(free.field.state_dict()[name]) for name, tensor in held.field.state_dict().items())


@pytest.mark.parametrize("x0", ["random", "zeros", "fixed"])
def test_evaluation_is_free_of_noise_and_begins_where_it_is_told(x0):
    model = model_of(eval={"x0": x0})
    obs = np.zeros((2, 3), np.float32)
    first, again = (torch.as_tensor(model.predict(obs, deterministic=True)[0]) for _ in "ab")
    flow = model.policy.network
    x = flow.chain(first).x
    o = torch.zeros(2, 3)
    for step in range(4):
        k = torch.full((2,), step)
        mean, std, _ = flow.kernel.step_dist(flow.field, x[:, step], k, o, False)
        assert std is None
        torch.testing.assert_close(mean, x[:, step + 1])
    assert torch.equal(first, again) == (x0 != "random")
    assert bool((x[:, 0] == 0).all()) == (x0 == "zeros")
    assert not torch.equal(torch.as_tensor(model.predict(obs)[0]), torch.as_tensor(model.predict(obs)[0]))


# ---- what the reference does -------------------------------------------------------------------------------------------


def furthest_action(**section):
    model = collected(model_of(**section))
    actions = torch.as_tensor(model.rollout_buffer.actions).flatten(0, 1)
    return float(model.policy.network.chunk(actions).abs().max())


def test_actions_are_clamped_where_the_section_says_so():
    assert furthest_action(parity={"clamp_action": True}) <= 1.0
    assert furthest_action() > 1.0


@pytest.mark.parametrize("clamp", [True, False])
def test_clamped_log_probabilities_that_are_all_above_1_leave_the_actor_without_a_gradient(clamp):
    narrow = {"kernel": {"name": "noisy_euler", "sigma": [0.01, 0.02]}, "reduction": "sum"}
    model = collected(model_of(parity={"clamp_log_prob": clamp}, **narrow))
    assert model.rollout_buffer.log_probs.min() > 1
    before = deepcopy(model.policy.network.field.state_dict())
    model.train()
    after = model.policy.network.field.state_dict()
    assert all(tensor.equal(before[name]) for name, tensor in after.items()) == clamp


@pytest.mark.parametrize("zero", [True, False])
def test_w2_compares_chains_from_zeros_where_the_section_says_so_else_from_noise(zero, monkeypatch):
    model, seen = collected(model_of(parity={"zero_x0": zero}, regularisers={"w2": 1.0})), []
    w2 = regularisers.w2

    def spy(field, frozen, o, x0, kernel):
        seen.append(x0)
        return w2(field, frozen, o, x0, kernel)

    monkeypatch.setattr(regularisers, "w2", spy)
    model.train()
    assert seen
    assert all(bool((x0 == 0).all()) == zero for x0 in seen)
