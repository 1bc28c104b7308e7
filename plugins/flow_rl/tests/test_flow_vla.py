"""Fields of LeRobot's policies: stock sampling to the bit, replayed likelihoods, gradients, padding, refusals."""

import copy
from types import SimpleNamespace

import pytest
from pydantic import ValidationError

torch = pytest.importorskip("torch")
pytest.importorskip("lerobot")

from rowwise import Rowwise  # noqa: E402

from budwood.api import BindingError, ChunkPolicy, LossInputs, NativePolicyFactory  # noqa: E402
from budwood_flow_rl.chains import rollout  # noqa: E402
from budwood_flow_rl.convention import check_convention  # noqa: E402
from budwood_flow_rl.families import sample  # noqa: E402
from budwood_flow_rl.kernels import FlowSDE, NoisyEuler  # noqa: E402
from budwood_flow_rl.noise import NoiseNet  # noqa: E402
from budwood_flow_rl.vla.config import FlowVLAConfig  # noqa: E402
from budwood_flow_rl.vla.critic import PrefixCritic  # noqa: E402
from budwood_flow_rl.vla.factory import FlowVLAFactory  # noqa: E402
from budwood_flow_rl.vla.fields import FIELDS, field_of, noise_time  # noqa: E402
from budwood_flow_rl.vla.learning import FlowVLALearning  # noqa: E402
from budwood_flow_rl.vla.policy import FlowVLAPolicy  # noqa: E402
from budwood_lerobot.testing import tiny_observation, tiny_policy  # noqa: E402

KINDS = tuple(FIELDS)
NOISE_TIME = ("pi0", "pi05", "smolvla")
ROWS, EXECUTED = 3, 5
STEPS_NAME = {"pi0": "num_inference_steps", "pi05": "num_inference_steps", "smolvla": "num_steps"}
STEPS_NAME["multi_task_dit"] = "num_integration_steps"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("tiny")


@pytest.fixture(scope="module")
def originals(folder):
    """One policy a kind with random weights, moved off the inits that would make a test pass by zeros."""
    return {kind: tiny_policy(kind, folder, **one_observation(kind)) for kind in KINDS}


@pytest.fixture
def native(request, originals):
    return copy.deepcopy(originals[request.param])


def one_observation(kind):
    return {"n_obs_steps": 1} if kind == "multi_task_dit" else {}


def every(kinds):
    return pytest.mark.parametrize("native", kinds, indirect=True)


def noisy(field, steps=4, smin=0.05, smax=0.2):
    head = NoiseNet(field.feat_dim, field.horizon, field.action_dim, (16,), smin, smax, per_token=True)
    return NoisyEuler(steps, head, noisy_dims=field.real_dim)


def kernels(field, steps=4):
    dims = field.real_dim
    return {
        "noise": noisy(field, steps),
        "sde": FlowSDE(steps, 0.5, noisy_dims=dims),
        "hybrid": FlowSDE(steps, 0.5, hybrid=True, noisy_dims=dims),
    }


def policy_of(field, kernel, **options):
    critic = PrefixCritic(field.summary_dim, (16, 8, 8))
    return FlowVLAPolicy(field, kernel, critic, executed=(EXECUTED, field.real_dim), **options)


def start(field, seed=1, rows=ROWS):
    return torch.randn(rows, field.horizon, field.action_dim, generator=torch.Generator().manual_seed(seed))


def stock(native, observation, x0, monkeypatch):
    """LeRobot's own sampling from ``x0``, the whole horizon, real dimensions."""
    if native.config.type == "multi_task_dit":
        condition = native.observation_encoder.encode(
            {
                "observation.state": observation["observation.state"][:, None],
                "observation.images": observation["observation.images.top"][:, None, None],
                **{name: value for name, value in observation.items() if "language" in name},
            }
        )
        monkeypatch.setattr(torch, "randn", lambda *_args, **_options: x0)
        return native.objective.conditional_sample(native.noise_predictor, len(x0), condition).detach()
    if native.config.type == "smolvla":
        return native.predict_action_chunk(dict(observation), noise=x0)
    monkeypatch.setattr(native.model, "sample_noise", lambda *_: x0)
    return native.predict_action_chunk(observation)


@every(KINDS)
@pytest.mark.parametrize("steps", [1, 3, 10])
def test_without_noise_equals_stock_sampling_to_the_bit(native, steps, monkeypatch):
    """T5."""
    setattr(native.config, STEPS_NAME[native.config.type], steps)
    observation, field = tiny_observation(native, ROWS), field_of(native)
    x0 = start(field)
    assert field.steps == steps
    chain = rollout(field, noisy(field, steps), field.encode(observation), x0, noise_free=True)
    theirs = stock(native, observation, x0, monkeypatch)
    ours = chain.actions[..., : field.real_dim]
    assert (theirs - x0[..., : field.real_dim]).abs().max() > 0.1
    if native.config.type == "multi_task_dit" and steps > 1:  # LeRobot's grid there is a float32 linspace
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
    else:
        assert torch.equal(ours, theirs)


def test_noise_time_is_the_float_that_lerobot_has():
    for steps in range(1, 101):
        k = torch.arange(steps)
        s, h = k.float() / steps, torch.full((steps,), 1 / steps)
        theirs = torch.tensor([1.0 + step * (-1.0 / steps) for step in range(steps)])
        assert torch.equal(noise_time(s, h), theirs)
    off_grid = torch.tensor([0.123456])
    assert torch.equal(noise_time(off_grid, torch.tensor([0.25])), 1 - off_grid)


@every(KINDS)
def test_a_known_field_leads_to_its_data_in_the_declared_time_only(native, monkeypatch):
    """Straight paths to a point g: v_t = (x - g)/t, and v_s = (g - x)/(1 - s) in data time; Euler is exact on them."""
    observation, field = tiny_observation(native, ROWS), field_of(native)
    goal = start(field, seed=5, rows=1)

    def by_noise_time(*_, x_t, timestep, **__):
        return (x_t - goal) / timestep[:, None, None].clamp(min=0.01)

    def by_data_time(x, s, conditioning_vec):
        return (goal - x) / (1 - s)[:, None, None].clamp(min=0.01)

    if native.config.type in NOISE_TIME:
        monkeypatch.setattr(native.model, "denoise_step", by_noise_time)
    else:
        monkeypatch.setattr(native.noise_predictor, "forward", by_data_time)
    monkeypatch.setattr(type(field), "velocity", _without_feat)
    x0, prefix = start(field), field.encode(observation)
    torch.testing.assert_close(sample(field, prefix, 4, x0), goal.expand_as(x0), rtol=0, atol=1e-5)
    with monkeypatch.context() as patched:
        theirs = stock(native, observation, x0, patched)
    torch.testing.assert_close(theirs, goal[..., : field.real_dim].expand_as(theirs), rtol=0, atol=1e-5)
    assert check_convention(field, prefix) == "data time"
    logged = begun(native, observation)
    assert logged["flow_vla/data_time"] == 1.0
    assert logged["flow_vla/sigma_mean"] > 0
    monkeypatch.setattr(type(field), "noise_time", not field.noise_time)
    with pytest.raises(BindingError, match="wrong direction of time"):
        begun(native, observation)
    wrong = sample(field, prefix, 4, x0)
    assert not torch.isfinite(wrong).all() or (wrong - goal).abs().max() > 0.5


def begun(native, observation):
    """What is logged of a first rollout and its update."""
    learning, logged = FlowVLALearning(FlowVLAFactory(FlowVLAConfig())), {}
    actions, _, _ = learning.factory.wrap(native).act(observation)
    rows = SimpleNamespace(
        actions=actions.detach().numpy()[None], obs={name: value.numpy()[None] for name, value in observation.items()}
    )
    control = SimpleNamespace(log=logged.update, steps=3, total_steps=6)
    learning.on_rollout_end(control, rows)
    learning.on_update_end(control)
    assert learning.progress == 0.5
    return logged


def _without_feat(self, x, s, o, h=None):
    v = self._denoise(x, noise_time(s, h) if self.noise_time else s, o)
    return (-v if self.noise_time else v), x


@every(KINDS)
@pytest.mark.parametrize(
    ("name", "steps"), [("noise", 1), ("noise", 2), ("noise", 4), ("sde", 2), ("sde", 4), ("hybrid", 2), ("hybrid", 4)]
)
def test_replayed_ratio(native, name, steps):
    """T3: exactly, where the arithmetic of a row does not depend on the others; else as close as other splits of the batch.

    In training mode. An SDE of one step is degenerate.
    """
    observation, field = tiny_observation(native, 6), field_of(native)
    policy = policy_of(field, noisy(field, steps) if name == "noise" else kernels(field, steps)[name])
    with torch.no_grad(), Rowwise():
        actions, old, _ = policy.act(observation)
        policy.train()
        again = policy.evaluate(observation, actions)[0]
    assert torch.equal(again, old)
    with torch.no_grad():
        policy.eval()
        actions, old, value = policy.act(observation)
        policy.train()
        again, entropy, value_again = policy.evaluate(observation, actions)
        split = [
            policy.evaluate({k: v[rows] for k, v in observation.items()}, actions[rows])[0]
            for rows in (slice(0, 1), slice(1, 3), slice(3, 6))
        ]
    for new in (again, torch.cat(split)):
        assert (new - old).expm1().abs().max() <= 1e-4
    assert torch.isfinite(entropy).all()
    assert torch.equal(value, value_again)
    moved = actions.clone()
    moved[:, field.horizon * field.action_dim + 1] += 0.01  # an element of x_1: the replay does read the chain
    assert (policy.evaluate(observation, moved)[0] - old).abs().min() > 0 or name == "hybrid"


def gradients(module):
    return {
        name for name, weight in module.named_parameters() if weight.grad is not None and weight.grad.abs().sum() > 0
    }


EXPERT = {"pi0": "gemma_expert", "pi05": "gemma_expert", "smolvla": "lm_expert", "multi_task_dit": "transformer_blocks"}


@every(KINDS)
@pytest.mark.parametrize("train_expert_only", [True, False])
def test_gradients_reach_the_expert_and_the_noise_head_and_no_frozen_prefix(native, train_expert_only):
    """T8."""
    observation, field = tiny_observation(native, ROWS), field_of(native, train_expert_only)
    policy = policy_of(field, noisy(field))
    actions, _, _ = policy.act(observation)
    score, entropy, value = policy.evaluate(observation, actions)
    trunk = {id(weight) for module in field.trunk() for weight in module.parameters()}
    value.sum().backward(retain_graph=True)
    assert gradients(policy.critic)
    assert not gradients(field)  # the critic's gradient stops at the prefix
    (score + entropy).sum().backward()
    assert any(EXPERT[native.config.type] in name for name in gradients(field))
    assert any(name.endswith("proj.weight") for name in gradients(field))
    assert gradients(policy.kernel)
    reached = [weight for weight in field.parameters() if id(weight) in trunk and weight.grad is not None]
    assert bool(reached) is not train_expert_only
    actor, critic = policy.param_groups()
    assert (len(trunk & {id(weight) for weight in actor["params"]}) == 0) is train_expert_only
    assert {id(weight) for weight in critic["params"]} == {id(weight) for weight in policy.critic.parameters()}


@every(NOISE_TIME)
def test_padding_has_no_noise_and_no_say(native):
    """T12."""
    observation, field = tiny_observation(native, ROWS), field_of(native)
    H, Dp, De = field.horizon, field.action_dim, field.real_dim
    assert Dp > De
    policy = policy_of(field, noisy(field), support="executed")
    with torch.no_grad():
        actions, _, _ = policy.act(observation)
        prefix, chain = field.encode(observation), policy.chain(actions)
        for k in range(4):
            at = torch.full((ROWS,), k)
            mean, std, _ = policy.kernel.step_dist(field, chain.x[:, k], at, prefix)
            assert torch.equal(mean[..., De:], chain.x[:, k + 1, :, De:])
            assert (std[..., De:] == 0).all()
            assert (std[..., :De] > 0).all()
            torch.testing.assert_close(policy.step_noise(observation, actions)[k], std[..., :De].mean())
        last = chain.x.clone()
        last[:, -1, :, De:] += 3.0
        again, _, _ = policy.evaluate(observation, last.flatten(1))
        assert torch.equal(again, policy.evaluate(observation, actions)[0])
    assert policy.chunk(actions).shape == (ROWS, EXECUTED, De)
    assert torch.equal(policy.chunk(actions), chain.x[:, -1, :EXECUTED, :De])
    assert policy.divisor == 1.0
    assert policy_of(field, noisy(field), reduction="mean_n").divisor == 5 * H * De


@every(KINDS)
def test_one_prefix_a_call_and_one_network_evaluation_a_hybrid_update(native, monkeypatch):
    observation, field = tiny_observation(native, ROWS), field_of(native)
    rows, prefixes = [], []
    denoise, encode = field._denoise, field._encode
    monkeypatch.setattr(field, "_denoise", lambda x, time, o: rows.append(len(x)) or denoise(x, time, o))
    monkeypatch.setattr(field, "_encode", lambda batch: prefixes.append(1) or encode(batch))
    for name, sampling, update in (("noise", [ROWS] * 4, [4 * ROWS]), ("hybrid", [ROWS] * 4, [ROWS])):
        policy = policy_of(field, kernels(field)[name])
        actions, _, _ = policy.act(observation)
        assert (rows, prefixes) == (sampling, [1])
        rows.clear(), prefixes.clear()
        policy.evaluate(observation, actions)
        assert (rows, prefixes) == (update, [1])
        rows.clear(), prefixes.clear()


@every(KINDS)
def test_the_critic_reads_the_observation_and_no_chain(native):
    observation, field = tiny_observation(native, ROWS), field_of(native)
    policy = policy_of(field, kernels(field)["hybrid"])
    one, _, value = policy.act(observation)
    two, _, _ = policy.act(observation)
    assert not torch.equal(one, two)
    assert torch.equal(policy.evaluate(observation, one)[2], policy.evaluate(observation, two)[2])
    torch.testing.assert_close(policy.value(observation), value)
    for name in observation:
        changed = {**observation, name: observation[name].flip(0)}
        state_unread = native.config.type == "pi05" and name == "observation.state"  # it is in the prompt
        assert torch.equal(policy.value(changed), value) is state_unread or "mask" in name


REFUSED = [
    ("pi0", {"gradient_checkpointing": True}, "drops the cached prefix"),
    ("pi05", {"compile_model": True}, "compile_model compiles a sampler"),
    ("smolvla", {"rtc_config": object()}, "rtc_config guides the sampler"),
    ("smolvla", {"adapt_to_pi_aloha": True}, "adapt_to_pi_aloha converts actions"),
    ("smolvla", {"use_cache": False}, "leaves no prefix"),
    ("multi_task_dit", {"objective": "diffusion"}, "its objective is diffusion, not a flow"),
    ("multi_task_dit", {"integration_method": "rk4"}, "integrates by rk4"),
    ("multi_task_dit", {"n_obs_steps": 2}, "it reads 2 observations"),
]


@pytest.mark.parametrize(("native", "settings", "finding"), REFUSED, indirect=["native"])
def test_settings_that_break_replay_are_refused(native, settings, finding):
    native.config = copy.copy(native.config)
    for name, value in settings.items():
        setattr(native.config, name, value)
    with pytest.raises(BindingError, match=finding):
        field_of(native)


@every(["pi0"])
def test_a_policy_that_cannot_be_replayed_here_is_refused(native, folder, monkeypatch):
    with pytest.raises(BindingError, match="of type act is no flow-matching policy"):
        field_of(tiny_policy("act", folder))
    field = field_of(native)
    observation = tiny_observation(native, ROWS)
    del observation["observation.language.tokens"]
    with pytest.raises(BindingError, match="pre-processor"):
        field.encode(observation)
    observation, actions = (
        tiny_observation(native, ROWS),
        policy_of(field, noisy(field)).act(tiny_observation(native, ROWS))[0],
    )
    with pytest.raises(BindingError, match="is no chain of 3 steps over 8 x 8 actions"):
        policy_of(field, noisy(field, 3)).evaluate(observation, actions)
    native.model.gradient_checkpointing_enable()
    with pytest.raises(BindingError, match="gradient checkpointing is on in the model"):
        field_of(native)
    native.model.gradient_checkpointing_disable()
    monkeypatch.setattr("budwood_flow_rl.vla.refusals.version", lambda _: "5.23.0")
    with pytest.raises(BindingError, match=r"transformers 5.23.0 is installed"):
        field_of(native)


@every(KINDS)
@pytest.mark.parametrize(
    ("kernel", "divisor"),
    [
        ({"name": "noisy_euler"}, 5),
        ({"name": "flow_sde"}, 1),
        ({"name": "flow_sde", "hybrid": False}, 1),
        ({"name": "flow_cps"}, 4),
    ],
    ids=["noise", "hybrid", "sde", "cps"],
)
def test_factory_makes_what_the_section_says(native, kernel, divisor):
    native.config.n_action_steps = EXECUTED
    learning = FlowVLALearning(FlowVLAFactory(FlowVLAConfig.model_validate({"kernel": kernel})))
    factory = learning.factory
    assert isinstance(factory, NativePolicyFactory)
    policy = factory.wrap(native)
    assert isinstance(policy, ChunkPolicy)
    assert (policy.kernel.steps, policy.kernel.noisy_dims) == (4, 4)
    assert factory.trained is policy
    factory.wrap(copy.deepcopy(native))
    assert factory.trained is policy
    observation = tiny_observation(native, ROWS)
    with torch.no_grad():
        actions, score, value = policy.act(observation)
        again, _, _ = policy.evaluate(observation, actions)
    assert policy.chunk(actions).shape == (ROWS, EXECUTED, 4)
    assert score.shape == value.shape == (ROWS,)
    assert policy.divisor == divisor
    assert policy.stored == (4 if kernel.get("hybrid") is False else 0), "the full process clips every step by itself"
    inputs = {"actions": actions, "log_prob": again, "old_log_prob": score, "advantages": torch.ones(ROWS)}
    assert learning.objective(LossInputs(**inputs, policy=policy)).item() == pytest.approx(-1, abs=1e-5)
    assert learning.objective.drain()["first_ratio_worst"] <= 1e-4
    _, score, _ = policy.act(observation, deterministic=True)
    assert (score == 0).all()
    native.config.n_action_steps = 99
    with pytest.raises(BindingError, match="99 actions cannot be executed of the 8"):
        factory.wrap(native)
    with pytest.raises(BindingError, match="makes no policy from nothing"):
        factory(None, None)


@pytest.mark.parametrize(
    ("section", "finding"),
    [
        ({"clip": {"per": "step"}}, "one stochastic step"),
        ({"clip": {"discount": 0.9}}, "set clip.per: step"),
        ({"kernel": {"name": "flow_sde", "hybrid": False, "ignore_last": True}}, "without hybrid all are stochastic"),
        ({"noise_schedule": "learn_decay"}, "flow_sde has none"),
    ],
)
def test_settings_without_effect_are_refused(section, finding):
    with pytest.raises(ValidationError, match=finding):
        FlowVLAConfig.model_validate(section)


LEARNS = [
    ("smolvla", "flow_sde", 1e-3),
    ("smolvla", "flow_sde", 0.0),
    ("smolvla", "noisy_euler", 1e-3),
    ("multi_task_dit", "noisy_euler", 1e-3),
]


@pytest.mark.slow
@pytest.mark.parametrize(("native", "kernel", "rate"), LEARNS, indirect=["native"])
def test_reward_rises_with_the_plugins_loss_and_stays_without_a_learning_rate(native, kernel, rate):
    """40 updates of 64 chains; at the published sigma most of what a chain earns is decided by its x_0, so few do not do."""
    torch.manual_seed(0)
    learning = FlowVLALearning(FlowVLAFactory(FlowVLAConfig.model_validate({"kernel": {"name": kernel}})))
    policy, goal = learning.factory.wrap(native), 0.5
    observation = {name: value.repeat_interleave(4, 0) for name, value in tiny_observation(native, 16).items()}

    def reward(actions):
        return -(policy.chunk(actions) - goal).square().mean((1, 2))

    def noise_free():
        """Over 256 chains, from the same noise each time."""
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(7)
            return torch.stack([reward(policy.act(observation, True)[0]).mean() for _ in range(4)]).mean()

    before = noise_free()
    actor = policy.param_groups()[0]["params"]
    optimizer = torch.optim.AdamW(actor, lr=rate, weight_decay=0.0)
    for _ in range(40):
        with torch.no_grad():
            actions, old, _ = policy.act(observation)
            gained = reward(actions)
        inputs = {"actions": actions, "old_log_prob": old, "advantages": (gained - gained.mean()) / gained.std()}
        for _ in range(2):
            score, _, _ = policy.evaluate(observation, actions)
            loss = learning.objective(LossInputs(**inputs, log_prob=score, policy=policy))
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(actor, 1.0)
            optimizer.step()
    after = noise_free()
    print(f"{native.config.type} {kernel} lr {rate}: {before:.2f} -> {after:.2f}; {learning.objective.drain()}")
    if rate:
        assert after > 0.5 * before
    else:
        assert torch.equal(after, before)


@every(("smolvla",))
def test_a_policy_made_anew_or_reset_to_init_from_in_the_middle_of_a_run_has_the_noise_of_then(native):
    native.config.n_action_steps = EXECUTED
    section = {"kernel": {"name": "noisy_euler", "sigma": [0.1, 0.2]}, "noise_schedule": "const_schedule_itr"}
    learning = FlowVLALearning(FlowVLAFactory(FlowVLAConfig.model_validate(section)))
    policy = learning.factory.wrap(native)
    trained, first = policy.kernel.noise, copy.deepcopy(policy.state_dict())
    began = trained.middle.clone()
    control = SimpleNamespace(log=lambda metrics: None, steps=3, total_steps=6)
    learning.on_update_end(control)
    anew = learning.factory.wrap(copy.deepcopy(native)).kernel.noise
    assert not torch.equal(trained.middle, began)
    assert torch.equal(anew.middle, trained.middle)
    policy.load_state_dict(first)  # as LeRobot's loop resets a policy that began from another run's
    assert torch.equal(anew.middle, trained.middle)
