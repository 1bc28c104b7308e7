"""What a configuration may say, and the words for what it may not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from stable_baselines3.common.noise import NormalActionNoise, OrnsteinUhlenbeckActionNoise

from budwood.api import BindingError, ConfigError, Contributed, Contributions
from budwood_sb3.config import native_arguments
from budwood_sb3.plugin import SB3
from budwood_sb3.trainer import build

PPO = {"kind": "sb3", "algo": "ppo", "total_timesteps": 10}


def said(trainer: Any = PPO, env: Any = None) -> str:
    with pytest.raises(ValidationError) as raised:
        SB3().config_model().model_validate({"trainer": trainer, "env": env or {"id": "Point-v0"}})
    return "; ".join(
        str(error["ctx"]["error"]) if "error" in error.get("ctx", {}) else error["msg"]
        for error in raised.value.errors()
    )


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"n_step": 5}, "PPO takes no argument 'n_step' (did you mean 'n_steps'?)"),
        ({"seed": 1}, "'seed' cannot be set here: the run has one seed: use the top-level key seed"),
        ({"device": "cpu"}, "'device' cannot be set here: the run has one device: use the top-level key device"),
        ({"env": "Point-v0"}, "'env' cannot be set here: budwood builds the environments: use the section env"),
        ({"policy": "MlpPolicy"}, "'policy' cannot be set here: write it beside algo, as trainer.policy"),
        ({"verbose": 1}, "'verbose' cannot be set here: budwood shows the progress"),
        (
            {"tensorboard_log": "x"},
            "'tensorboard_log' cannot be set here: metrics go to the journal and to MLflow: use the section tracking",
        ),
        ({"_init_setup_model": False}, "'_init_setup_model' cannot be set here: it is private to Stable-Baselines3"),
        (
            {"rollout_buffer_class": "X"},
            "'rollout_buffer_class' cannot be set here: it is a class, and a configuration holds plain values",
        ),
        (
            {"learning_rate": {"linear": 1}},
            "learning_rate: a schedule is a number or {linear: [start, end]}",
        ),
        (
            {"policy_kwargs": {"activation_fn": "tahn"}},
            "policy_kwargs.activation_fn: 'tahn' is not one of elu, gelu, leaky_relu, relu, selu, sigmoid, silu, softplus, "
            "tanh",
        ),
        (
            {"n_step": 5, "seed": 1, "clip_range": {"cosine": [1, 0]}},
            "PPO takes no argument 'n_step' (did you mean 'n_steps'?); 'seed' cannot be set here: the run has one seed: "
            "use the top-level key seed; clip_range: a schedule is a number or {linear: [start, end]}",
        ),
    ],
)
def test_arguments_are_checked_all_at_once(args: dict[str, Any], message: str) -> None:
    assert said({**PPO, "args": args}) == message


def test_other_keys() -> None:
    assert said({**PPO, "policy": "MlpPolcy"}) == (
        "PPO has no policy 'MlpPolcy'; it has MlpPolicy, CnnPolicy, MultiInputPolicy"
    )
    assert said({**PPO, "algo": "sac", "args": {"action_noise": 0.1}}) == (
        "action_noise: write {normal: sigma} or {ornstein_uhlenbeck: sigma}"
    )
    assert said(env={"id": "Point-v0", "fast": True, "vec": "subproc"}) == "fast is for vec: dummy, and vec is subproc"
    assert said({**PPO, "total_timesteps": 0}) == "Input should be greater than 0"


def test_plain_values_become_what_the_trainer_takes() -> None:
    args = {
        "learning_rate": {"linear": [1e-3, 1e-4]},
        "clip_range": 0.1,
        "train_freq": [2, "episode"],
        "policy_kwargs": {"activation_fn": "leaky_relu", "net_arch": {"pi": [8], "vf": [8]}},
        "action_noise": {"normal": 0.1},
    }
    native = native_arguments(args, (3,))
    assert native["learning_rate"](1.0) == pytest.approx(1e-3)
    assert native["learning_rate"](0.0) == pytest.approx(1e-4)
    assert native["learning_rate"](0.5) == pytest.approx(5.5e-4)
    assert native["clip_range"] == 0.1
    assert native["train_freq"] == (2, "episode")
    assert native["policy_kwargs"] == {"activation_fn": torch.nn.LeakyReLU, "net_arch": {"pi": [8], "vf": [8]}}
    assert isinstance(native["action_noise"], NormalActionNoise)
    assert native["action_noise"]().shape == (3,)
    noise = native_arguments({"action_noise": {"ornstein_uhlenbeck": 0.2}}, (1,))["action_noise"]
    assert isinstance(noise, OrnsteinUhlenbeckActionNoise)


def built(make_run: Any, **changes: Any) -> Any:
    run = make_run(
        {"algo": changes.pop("algo", "ppo"), "args": changes.pop("args", {}), "total_timesteps": 10},
        {"id": changes.pop("env", "Point-v0"), **changes.pop("env_section", {})},
        **changes,
    )
    return build(run, Contributions())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"env": "HalfCheeta-v5"},
            "env.id: no environment is called 'HalfCheeta-v5'. Did you mean 'HalfCheetah-v5'? A class of your own is "
            "written module:Class.",
        ),
        (
            {"env": "math:Tower"},
            "env.id: math neither defines nor registers 'Tower'. A class of your own is written module:Class.",
        ),
        (
            {"env": "no_such_module:Tower"},
            "env.id: cannot import no_such_module: No module named 'no_such_module'. "
            "Install it, or correct the module's name.",
        ),
        (
            {"env_section": {"args": {"gravity": 1}}},
            "env.args: Point-v0 refuses its arguments: Point.__init__() got an unexpected keyword argument 'gravity' was "
            "raised from the environment creator for Point-v0 with kwargs ({'gravity': 1}).",
        ),
        (
            {"args": {"batch_size": 1}},
            "trainer.args: PPO refuses its arguments: `batch_size` must be greater than 1. See "
            "https://github.com/DLR-RM/stable-baselines3/issues/440.",
        ),
        (
            {"algo": "sac", "args": {"train_freq": [2, "episode"]}, "env_section": {"n_envs": 3}},
            "trainer.args.train_freq: an update every 2 episodes needs a single environment, and there are 3. Count steps "
            "instead, or set env.n_envs to 1.",
        ),
        (
            {"precision": "bf16"},
            "precision: Stable-Baselines3 keeps its networks and optimisers in float32 and offers no autocast. Use fp32, or "
            "tf32 on a GPU.",
        ),
    ],
)
def test_what_cannot_be_built_is_said_in_one_paragraph(make_run: Any, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        built(make_run, **changes)
    assert str(raised.value) == message


def test_a_missing_mujoco_extra_is_named_with_its_pip_line(make_run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    for name in list(sys.modules):
        if name == "imageio" or name.startswith(("imageio.", "gymnasium.envs.mujoco")):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "imageio", None)
    with pytest.raises(ConfigError) as raised:
        built(make_run, env="HalfCheetah-v5")
    assert str(raised.value) == (
        "env.id: HalfCheetah-v5 cannot be made: import of imageio halted; None in sys.modules. "
        'pip install "budwood-sb3[mujoco]".'
    )


def test_a_missing_gpu_is_not_replaced_in_silence(make_run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    run = replace(make_run({"algo": "ppo", "total_timesteps": 10}, {"id": "Point-v0"}), device="cuda")
    with pytest.raises(ConfigError, match=r"^device: PyTorch sees no CUDA device here. Use device: cpu or auto.$"):
        build(run, Contributions())


def test_tf32_is_set_and_fp32_puts_it_back(make_run: Any) -> None:
    built(make_run, precision="tf32")
    assert torch.get_float32_matmul_precision() == "high"
    built(make_run, precision="fp32")
    assert torch.get_float32_matmul_precision() == "highest"


def test_normalised_rewards_do_not_go_with_weights_that_change(make_run: Any) -> None:
    class Combination:
        version, needs_obs = 0, False

        def bind(self, columns: Any) -> None: ...

        def __call__(self, terms: Any, obs: Any) -> Any:
            return terms[:, 0]

    env = {"id": "Point-v0", "normalize": {"reward": True}}
    run = make_run({"algo": "ppo", "total_timesteps": 10}, env)
    claimed = Contributions(reward_combination=Contributed(Combination(), "shape", "budwood-shape 1.0"))
    with pytest.raises(BindingError) as raised:
        build(run, claimed)
    assert str(raised.value) == (
        "env.normalize.reward: reward normalisation divides by the spread of past returns, which belongs to the old weights "
        "once the combination of the reward terms changes. Asked for by budwood-shape 1.0. Switch reward normalisation off; "
        "observations may be normalised."
    )
    assert build(run, Contributions()).native.get_vec_normalize_env().norm_reward
