"""A chain's log-probability against brute force, torch.distributions and itself."""

from __future__ import annotations

import copy
from itertools import product

import pytest
import torch
from rowwise import Rowwise
from safetensors.torch import load, save
from torch import nn
from torch.autograd import gradcheck
from torch.distributions import Independent, MultivariateNormal, Normal
from torch.func import functional_call

from budwood_flow_rl.chains import Chain, log_prob, rollout
from budwood_flow_rl.families import FAMILIES, RectifiedFlow
from budwood_flow_rl.kernels import FlowCPS, FlowSDE, Kernel, NoisyEuler
from budwood_flow_rl.noise import NoiseNet
from budwood_flow_rl.objective import ppo_loss

H, D, OBS = 2, 3, 5


class Linear(nn.Module):
    """v = W_k x + b_k on flat chunks, with another matrix at every step; ``feat`` is the step's number."""

    horizon, action_dim = H, D

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.steps = steps
        self.W = nn.Parameter(torch.randn(steps, H * D, H * D, dtype=torch.float64))
        self.b = nn.Parameter(torch.randn(steps, H * D, dtype=torch.float64))

    def velocity(self, x, s, o, h=None):
        k = (s * self.steps).round().long()
        v = (self.W[k] @ x.flatten(1)[..., None])[..., 0] + self.b[k]
        return v.reshape(-1, H, D), s[:, None]


class Fixed(nn.Module):
    """The std of every step, looked up by its time."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.sigma = torch.rand(steps, H, D, dtype=torch.float64) + 0.1

    def forward(self, feat):
        return self.sigma[(feat[:, 0] * len(self.sigma)).round().long()]


def fields(family: str, hidden: int = 32) -> nn.Module:
    return FAMILIES[family](OBS, H, D, hidden=(hidden,) * 3)


def kernels(field: nn.Module, K: int) -> dict[str, Kernel]:
    found: dict[str, Kernel] = {"noise": NoisyEuler(K, NoiseNet(field.feat_dim, H, D, (16, 16), 0.1, 0.24))}
    if K > 1:
        found |= {"sde": FlowSDE(K, 0.5), "hybrid": FlowSDE(K, 0.5, hybrid=True), "cps": FlowCPS(K, 0.5)}
        found["hybrid, last ignored"] = FlowSDE(K, 0.5, hybrid=True, ignore_last=True)
        found["truncated"] = NoisyEuler(K, NoiseNet(field.feat_dim, H, D, (16,), 0.1, 0.24), truncate=3.0)
        found["clipped"] = NoisyEuler(K, NoiseNet(field.feat_dim, H, D, (16,), 0.1, 0.24), clip_mean=1.0)
        found["clamped"] = NoisyEuler(K, NoiseNet(field.feat_dim, H, D, (16,), 0.1, 0.24), clamp_last=1.0)
    return found


def joint(score) -> torch.Tensor:
    return score.elements.sum((1, 2))


def taken(chain: Chain, rows: torch.Tensor) -> Chain:
    return Chain(chain.x[rows], None if chain.k is None else chain.k[rows])


# ---- T1: the chain is one Gaussian ---------------------------------------------------------------------------------------


def affine_steps(kernel: Kernel, field: Linear) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Matrix, shift and std of every step, from the kernels' definitions in noise time."""
    K, found, eye = kernel.steps, [], torch.eye(H * D, dtype=torch.float64)
    for k in range(K):
        t, d, W, b = 1 - k / K, 1 / K, -field.W[k], -field.b[k]  # in noise time
        data, noise = (eye - t * W, -t * b), (eye + (1 - t) * W, (1 - t) * b)
        if isinstance(kernel, NoisyEuler):
            found.append((eye - d * W, -d * b, kernel.noise.sigma[k].flatten()))
            continue
        if isinstance(kernel, FlowSDE):
            sigma = kernel.level * (t / (1 - t if k else 1 / K)) ** 0.5
            weights, std = (1 - t + d, t - d - sigma**2 * d / (2 * t)), d**0.5 * sigma
        else:
            angle = torch.tensor(torch.pi * kernel.level / 2, dtype=torch.float64)
            weights, std = (1 - t + d, (t - d) * angle.cos()), (t - d) * angle.sin()
        matrix, shift = (weights[0] * data[i] + weights[1] * noise[i] for i in (0, 1))
        found.append((matrix, shift, torch.as_tensor(std, dtype=torch.float64).expand(H * D)))
    return found


@pytest.mark.parametrize("K", [2, 3, 5])
@pytest.mark.parametrize("make", ["noise", "sde", "cps"])
def test_chain_of_linear_steps_has_the_density_of_one_gaussian(make, K):
    torch.manual_seed(0)
    field = Linear(K)
    kernel = {"noise": lambda: NoisyEuler(K, Fixed(K)), "sde": lambda: FlowSDE(K, 0.7), "cps": lambda: FlowCPS(K, 0.4)}[
        make
    ]()
    size, steps = H * D, kernel.noisy_steps
    means, rows = [torch.zeros(size, dtype=torch.float64)], [torch.eye(size, (steps + 1) * size, dtype=torch.float64)]
    for k, (matrix, shift, std) in enumerate(affine_steps(kernel, field)[:steps]):
        means.append(matrix @ means[-1] + shift)
        row = matrix @ rows[-1]
        row[:, (k + 1) * size : (k + 2) * size] = torch.diag(std)
        rows.append(row)
    whole = MultivariateNormal(torch.cat(means), scale_tril=torch.cat(rows))
    x0 = torch.randn(7, H, D, dtype=torch.float64)
    chain = rollout(field, kernel, torch.zeros(7, 1), x0=x0)
    expected = whole.log_prob(chain.x[:, : steps + 1].flatten(1))
    assert torch.allclose(joint(log_prob(field, kernel, chain, torch.zeros(7, 1))), expected, rtol=0, atol=1e-9)
    entropy = log_prob(field, kernel, chain, torch.zeros(7, 1)).entropy.sum((1, 2))
    assert torch.allclose(entropy, whole.entropy().expand(7), rtol=0, atol=1e-9)


# ---- T2: one step is an ordinary Gaussian policy -----------------------------------------------------------------------


def test_one_step_is_a_diagonal_gaussian_policy_with_its_loss_and_gradients():
    torch.manual_seed(1)
    field, o, advantages = fields("rectified"), torch.randn(64, OBS), torch.randn(64)
    kernel = NoisyEuler(1, NoiseNet(field.feat_dim, H, D, (16,), 0.1, 0.24))
    chain = rollout(field, kernel, o)
    for module in (field, kernel):
        for parameter in module.parameters():
            parameter.data += 0.01 * torch.randn_like(parameter)

    def plain() -> tuple[torch.Tensor, torch.Tensor]:
        x0 = chain.x[:, 0]
        v, feat = field.velocity(x0, torch.zeros(64), o, torch.ones(64))
        policy = Independent(Normal(x0 + v, kernel.noise(feat)), 2)
        return policy.log_prob(chain.actions), policy.entropy()

    first = Independent(Normal(torch.zeros(H, D), torch.ones(H, D)), 2)
    old = joint(chain.log_prob)
    ours, (theirs, entropy) = log_prob(field, kernel, chain, o), plain()
    assert torch.allclose(joint(ours) - first.log_prob(chain.x[:, 0]), theirs, rtol=0, atol=1e-5)
    assert torch.allclose(ours.entropy.sum((1, 2)) - first.entropy(), entropy, rtol=0, atol=1e-5)

    loss, metrics = ppo_loss(joint(ours), old, advantages, 0.2, 0.2)
    ratio = (theirs - (old - first.log_prob(chain.x[:, 0]))).exp()
    expected = -torch.min(advantages * ratio, advantages * ratio.clamp(0.8, 1.2)).mean()
    assert loss.item() == pytest.approx(expected.item(), abs=1e-6)
    assert metrics["clip_fraction"].item() == ((ratio - 1).abs() > 0.2).float().mean().item() > 0
    parameters = [*field.parameters(), *kernel.parameters()]
    for ours_g, theirs_g in zip(
        torch.autograd.grad(loss, parameters), torch.autograd.grad(expected, parameters), strict=True
    ):
        assert torch.allclose(ours_g, theirs_g, rtol=1e-4, atol=1e-6)


# ---- T3: the ratio is 1 right after collection ------------------------------------------------------------------------

CASES = [(family, K, name) for family, K in product(FAMILIES, (1, 2, 4, 8)) for name in kernels(fields("rectified"), K)]


@pytest.mark.parametrize(("family", "K", "name"), CASES)
def test_ratio_is_1_on_the_batch_and_on_other_splits_of_it(family, K, name):
    torch.manual_seed(2)
    field, o = fields(family), torch.randn(40, OBS)
    kernel = kernels(field, K)[name]
    with torch.no_grad():
        _check_ratio(field, kernel, o)


def _check_ratio(field, kernel, o) -> None:
    with Rowwise():
        chain = rollout(field, kernel, o)
        assert (joint(log_prob(field, kernel, chain, o)) - joint(chain.log_prob)).expm1().abs().max() <= 1e-6
    chain = rollout(field, kernel, o)
    old = joint(chain.log_prob)
    for size in (1, 7, 16, len(o)):
        for rows in torch.randperm(len(o)).split(size):
            new = joint(log_prob(field, kernel, taken(chain, rows), o[rows]))
            assert (new - old[rows]).expm1().abs().max() <= 1e-4


@pytest.mark.parametrize("family", FAMILIES)
def test_ratio_is_1_after_a_change_of_the_noise_range(family):
    torch.manual_seed(3)
    field, o = fields(family), torch.randn(40, OBS)
    kernel = kernels(field, 4)["noise"]
    before = rollout(field, kernel, o)
    kernel.noise.set_range(0.05, 0.15)
    with torch.no_grad():
        _check_ratio(field, kernel, o)
        new = joint(log_prob(field, kernel, before, o))
    assert (new - joint(before.log_prob)).abs().max() > 1, "a chain of the old range is another one's"


@pytest.mark.parametrize("name", ["noise", "sde", "hybrid"])
@pytest.mark.parametrize("family", FAMILIES)
def test_log_probability_survives_saving_bit_for_bit(family, name):
    torch.manual_seed(4)
    field, o = fields(family), torch.randn(40, OBS)
    kernel = kernels(field, 4)[name]
    if name == "noise":
        kernel.noise.set_range(0.07, 0.19)
    chain = rollout(field, kernel, o)
    again = FAMILIES[family](**field.arguments())
    again.load_state_dict(load(save(field.state_dict())))
    kernel_again = kernels(again, 4)[name]
    if name == "noise":
        kernel_again.noise.set_range(0.07, 0.19)
    kernel_again.load_state_dict(load(save(kernel.state_dict())) if kernel.state_dict() else {})
    assert torch.equal(joint(log_prob(again, kernel_again, chain, o)), joint(log_prob(field, kernel, chain, o)))


# ---- T8: gradients -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["noise", "sde", "hybrid", "cps", "truncated"])
@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_are_those_of_finite_differences(family, name):
    torch.manual_seed(5)
    field = FAMILIES[family](2, H, D, hidden=(4, 4, 4), activation="mish", time_dim=4).double()
    kernel = kernels(field, 2)[name].double()
    if isinstance(kernel, NoisyEuler):  # of o alone: gradients stop at the time embedding, finite differences do not
        kernel.noise = NoiseNet(field.feat_dim, H, D, (4,), 0.1, 0.24, skip=field.time_dim).double()
    o = torch.randn(3, 2, dtype=torch.float64)
    chain = rollout(field, kernel, o, x0=torch.randn(3, H, D, dtype=torch.float64))
    assert chain.x.dtype == torch.float64
    modules = {"field": field, "kernel": kernel}
    names = [(owner, key) for owner, module in modules.items() for key, _ in module.named_parameters()]
    values = tuple(modules[owner].get_parameter(key) for owner, key in names)

    class Replay(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.field, self.kernel = field, kernel

        def forward(self) -> torch.Tensor:
            return joint(log_prob(self.field, self.kernel, chain, o))

    def score(*parameters):
        changed = {f"{owner}.{key}": value for (owner, key), value in zip(names, parameters, strict=True)}
        return functional_call(replay, changed, ())

    replay = Replay()
    assert gradcheck(score, values)
    gradients = torch.autograd.grad(score(*values).sum(), values)
    assert all(gradient.abs().max() > 0 for gradient in gradients)


def test_a_frozen_prefix_and_the_time_embedding_get_no_gradient_from_the_noise():
    class Prefixed(RectifiedFlow):
        def __init__(self) -> None:
            super().__init__(OBS, H, D, hidden=(16, 16, 16))
            self.prefix = nn.Linear(OBS, OBS).requires_grad_(False)

        def velocity(self, x, s, o, h=None):
            return super().velocity(x, s, self.prefix(o), h)

    torch.manual_seed(6)
    field, o = Prefixed(), torch.randn(8, OBS, requires_grad=False)
    kernel = kernels(field, 4)["noise"]
    score = log_prob(field, kernel, rollout(field, kernel, o), o)
    score.entropy.sum().backward(retain_graph=True)
    assert all(parameter.grad is None for parameter in field.parameters()), "the entropy belongs to the noise alone"
    assert all(parameter.grad.abs().max() > 0 for parameter in kernel.parameters())
    joint(score).sum().backward()
    assert all(parameter.grad is None for parameter in field.prefix.parameters())
    assert all(
        parameter.grad.abs().max() > 0 for name, parameter in field.named_parameters() if not name.startswith("prefix")
    )


# ---- T11: one stochastic step --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("ignore_last", "choices"), [(False, 4), (True, 3)])
def test_a_hybrid_chain_has_one_stochastic_step_drawn_uniformly(ignore_last, choices):
    torch.manual_seed(7)
    field, o = fields("rectified", hidden=8), torch.randn(8000, OBS)
    kernel = FlowSDE(4, 0.5, hybrid=True, ignore_last=ignore_last)
    chain = rollout(field, kernel, o)
    counts = torch.bincount(chain.k, minlength=4).double()
    assert (counts[choices:] == 0).all()
    expected = 8000 / choices
    assert ((counts[:choices] - expected) ** 2 / expected).sum() < 21.1, "chi-squared at 1e-4 of 3 degrees of freedom"

    off = torch.zeros(8000)
    for step in range(4):
        k = torch.full((8000,), step)
        ode, none, _ = kernel.step_dist(field, chain.x[:, step], k, o, noisy=False)
        assert none is None
        moved = (chain.x[:, step + 1] != ode).flatten(1).any(1)
        assert torch.equal(moved, chain.k == step), "other steps are the ODE's, to the bit"
        mean, std, _ = kernel.step_dist(field, chain.x[:, step], k, o, noisy=chain.k == step)
        assert torch.equal((std > 0).flatten(1).all(1), chain.k == step)
        assert torch.equal((std > 0).flatten(1).any(1), chain.k == step)
        off += Normal(mean, std.clamp(min=1e-3)).log_prob(chain.x[:, step + 1]).sum((1, 2)) * (chain.k == step)
    assert torch.allclose(joint(chain.log_prob), off, rtol=0, atol=2e-5), "deterministic steps count exactly 0"


def test_mixed_steps_of_one_minibatch_equal_one_evaluation_a_step():
    torch.manual_seed(8)
    field, o = fields("shortcut"), torch.randn(64, OBS)
    kernel = FlowSDE(4, 0.5, hybrid=True)
    chain = rollout(field, kernel, o)
    mixed = joint(log_prob(field, kernel, chain, o))
    for step in range(4):
        rows = (chain.k == step).nonzero()[:, 0]
        alone = log_prob(field, kernel, taken(chain, rows), o[rows])
        assert torch.allclose(joint(alone), mixed[rows], rtol=0, atol=1e-5)


# ---- T12: padding --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["noise", "sde", "hybrid", "cps"])
def test_noise_is_kept_off_padded_dimensions(name):
    torch.manual_seed(9)
    field, o, real = fields("rectified"), torch.randn(16, OBS), D - 1
    kernel = kernels(field, 4)[name]
    kernel.noisy_dims = real
    chain = rollout(field, kernel, o)
    score = log_prob(field, kernel, chain, o)
    assert (score.std[..., :real] > 0).all()
    assert (score.std[..., real:] == 0).all()
    first = (
        torch.zeros(H, D - real)
        if kernel.hybrid
        else -(chain.x[:, 0, :, real:] ** 2) / 2 - torch.log(torch.tensor(2 * torch.pi)) / 2
    )
    assert torch.allclose(score.elements[..., real:], first.expand(16, H, D - real), atol=1e-6)
    for step in range(4):
        ode, _, _ = kernel.step_dist(field, chain.x[:, step], torch.full((16,), step), o, noisy=False)
        assert torch.equal(chain.x[:, step + 1, :, real:], ode[..., real:]), "padded dimensions follow the ODE"


def test_observations_of_one_minibatch_may_be_a_mapping_or_know_how_to_repeat_themselves():
    class Cached:
        def __init__(self, o: torch.Tensor) -> None:
            self.o, self.rows, self.device = o, len(o), o.device

        def repeated(self, times: int) -> Cached:
            return Cached(self.o.repeat_interleave(times, 0))

    class Unwrapping(RectifiedFlow):
        def velocity(self, x, s, o, h=None):
            return super().velocity(x, s, o["state"] if isinstance(o, dict) else o.o, h)

    torch.manual_seed(10)
    plain, o = fields("rectified"), torch.randn(8, OBS)
    field = Unwrapping(**plain.arguments())
    field.load_state_dict(plain.state_dict())
    kernel = kernels(plain, 4)["noise"]
    chain = rollout(plain, kernel, o)
    expected = joint(log_prob(plain, kernel, chain, o))
    for observation in ({"state": o, "task": "push"}, Cached(o)):
        assert torch.equal(joint(log_prob(field, kernel, chain, observation)), expected)
        assert rollout(field, kernel, observation).x.shape == chain.x.shape


@pytest.mark.parametrize("name", ["noise", "hybrid"])
def test_a_rollout_makes_its_grid_once_and_no_entropy(name, monkeypatch):
    torch.manual_seed(0)
    field = fields("rectified")
    kernel, made = kernels(field, 4)[name], []
    grid = Kernel.grid
    monkeypatch.setattr(Kernel, "grid", lambda self, k, dtype: made.append(k.shape) or grid(self, k, dtype))
    monkeypatch.setattr("budwood_flow_rl.chains.entropy", lambda *_: pytest.fail("nobody reads it there"))
    rollout(field, kernel, torch.randn(3, OBS))
    assert made == [(4, 3)]


def test_half_precision_weights_leave_log_probabilities_in_float32():
    torch.manual_seed(11)
    field, o = fields("rectified").bfloat16(), torch.randn(8, OBS)
    kernel = copy.deepcopy(kernels(field, 4)["noise"])
    chain = rollout(field, kernel, o)
    score = log_prob(field, kernel, chain, o)
    assert chain.x.dtype == score.elements.dtype == score.std.dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        chain = rollout(fields("rectified"), kernel, o)
    assert chain.x.dtype == chain.log_prob.elements.dtype == torch.float32
