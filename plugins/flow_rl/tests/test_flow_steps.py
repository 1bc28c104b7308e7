"""A clipped ratio for every step: against loops, and against the ratio of the chain where the two are the same."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch

from budwood.api import LossInputs
from budwood_flow_rl.config import FlowConfig
from budwood_flow_rl.critic import Critic
from budwood_flow_rl.diffusion import DDPM, Diffusion
from budwood_flow_rl.families import RectifiedFlow
from budwood_flow_rl.kernels import FlowCPS, FlowSDE, Kernel, NoisyEuler
from budwood_flow_rl.losses import FlowObjective
from budwood_flow_rl.noise import NoiseNet
from budwood_flow_rl.policy import FlowPolicy

OBS, H, D, B = 3, 2, 2, 40


def kernel_of(name: str, K: int, field: RectifiedFlow | Diffusion) -> Kernel:
    if name == "ddpm":
        return DDPM(K)
    if name == "flow_sde":
        return FlowSDE(K, 0.5)
    if name == "flow_cps":
        return FlowCPS(K, 0.5)
    return NoisyEuler(K, NoiseNet(field.feat_dim, H, D, (8,), 0.1, 0.2))


def case(name: str, K: int, reduction: str = "mean_n", per_step: bool = True):
    """A policy, observations, what it did there, and the inputs of a loss after its weights have moved."""
    torch.manual_seed(0)
    field = Diffusion(OBS, H, D, (16, 16, 16), steps=K) if name == "ddpm" else RectifiedFlow(OBS, H, D, (16, 16, 16))
    policy = FlowPolicy(
        field, kernel_of(name, K, field), Critic(OBS, (8, 8, 8), 0.0), reduction=reduction, per_step=per_step
    )
    obs = torch.randn(B, OBS)
    with torch.no_grad():
        actions, old, _ = policy.act(obs)
        for parameter in policy.field.parameters():
            parameter += 0.002 * torch.randn_like(parameter)
    new, _, _ = policy.evaluate(obs, actions)
    inputs = LossInputs(
        obs=obs,
        actions=actions,
        log_prob=new,
        old_log_prob=old,
        advantages=torch.randn(B),
        policy=SimpleNamespace(network=policy),
    )
    return policy, inputs


@pytest.mark.parametrize("name", ["ddpm", "flow_sde", "flow_cps", "noisy_euler"])
def test_steps_are_scored_as_they_were_sampled_and_add_up_to_the_chain(name):
    torch.manual_seed(0)
    policy, inputs = case(name, 4)
    replayed = policy.stored_log_prob(inputs.actions)
    assert replayed.shape == (B, policy.kernel.noisy_steps)
    start = -(policy.chain(inputs.actions).x[:, 0] ** 2 + math.log(2 * math.pi)).flatten(1).sum(1) / 2
    torch.testing.assert_close(replayed.sum(1) + start, inputs.old_log_prob, rtol=0, atol=2e-5)
    torch.testing.assert_close(policy.step_log_prob.sum(1) + start, inputs.log_prob, rtol=0, atol=2e-5)


def test_the_loss_is_that_of_a_loop_over_chains_and_steps():
    policy, inputs = case("ddpm", 5)
    config = FlowConfig.model_validate(
        {"init": "flow", "steps": 5, "kernel": {"name": "ddpm"}, "clip": {"low": 0.01, "high": 0.02, "discount": 0.9}}
    )
    objective = FlowObjective(config)
    found = objective(inputs)
    new, old = policy.step_log_prob.tolist(), policy.stored_log_prob(inputs.actions).tolist()
    total = 0.0
    for b in range(B):
        for k in range(5):
            advantage = inputs.advantages[b].item() * 0.9 ** (4 - k)
            ratio = math.exp((new[b][k] - old[b][k]) / (H * D))
            total += min(ratio * advantage, min(max(ratio, 0.99), 1.02) * advantage)
    assert found.item() == pytest.approx(-total / (5 * B), rel=1e-4)
    (gradient,) = torch.autograd.grad(found, policy.field.net.last.weight)
    assert gradient.abs().max() > 0
    joint = (inputs.log_prob - inputs.old_log_prob).double()
    assert objective.drain()["joint_kl"] == pytest.approx((joint.expm1() - joint).mean().item(), rel=1e-3)


def test_one_step_is_its_chain():
    losses = []
    for per_step in (True, False):
        _, inputs = case("noisy_euler", 1, "sum", per_step)
        clip = {"low": 0.2, "per": "step" if per_step else "chain"}
        config = FlowConfig.model_validate({"steps": 1, "reduction": "sum", "clip": clip})
        losses.append(FlowObjective(config)(inputs).item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_the_entropy_of_a_chain_is_one_number_whatever_has_a_ratio():
    entropies = []
    for per_step in (True, False):
        policy, inputs = case("noisy_euler", 4, "mean_n", per_step)
        entropies.append(policy.evaluate(inputs.obs, inputs.actions)[1])
    torch.testing.assert_close(*entropies, rtol=0.2, atol=0)  # other chains, the same policy


def test_settings_that_contradict_each_other_are_refused():
    for section, words in (
        ({"kernel": {"name": "ddpm"}}, "name a saved one as init"),
        ({"kernel": {"name": "flow_sde"}, "clip": {"per": "step"}}, "a hybrid chain has one stochastic step"),
        ({"clip": {"discount": 0.9}}, "the ratio here is the chain's"),
    ):
        with pytest.raises(ValueError, match=words):
            FlowConfig.model_validate(section)
