"""Whole runs of the plugin: learning, stopping, resuming, refusing, composing, and what it leaves in the report."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from base64 import b64encode
from pathlib import Path
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
import torch
import yaml

pytest.importorskip("budwood_sb3")

from budwood import restored, resume, run, tracking
from budwood.api import BindingError, BudwoodError, CheckpointError, ConfigError
from budwood.cli import main
from budwood.planning import explain
from budwood.sink import Sink
from budwood.testing import check_plugin
from budwood_flow_rl import exporting, film, point, recording
from budwood_flow_rl.callback import FlowCallback
from budwood_flow_rl.config import FlowConfig
from budwood_flow_rl.families import RectifiedFlow
from budwood_flow_rl.noise import const_schedule_itr
from budwood_flow_rl.normalisation import MinMax, Normalisation
from budwood_flow_rl.report import sections
from budwood_flow_rl.saved import Meta, load_flow, save_flow
from budwood_flow_rl.shortcut import Shortcut
from budwood_flow_rl.start import FlowStart

torch.set_num_threads(1)
ROOT = Path(__file__).parents[3]
KERNELS = {"noise": {"name": "noisy_euler"}, "sde": {"name": "flow_sde"}}


@pytest.fixture(scope="module")
def flow(tmp_path_factory) -> Path:
    """A flow cloned from walks to both modes."""
    folder = tmp_path_factory.mktemp("flow")
    point.pretrain(folder, point.demonstrations())
    return folder


def config(flow: Path, output: Path, total=10_240, every=1_024, **section):
    """The shipped configuration of the point task."""
    made = yaml.safe_load((ROOT / "configs" / "flow_rl" / "point.yaml").read_text())
    made["trainer"]["total_timesteps"] = total
    made["plugins"]["flow_rl"] |= {"init": str(flow), **section}
    return {
        **made,
        "output": str(output),
        "device": "cpu",
        "evaluation": {"every": every, "episodes": 100 if every else 0},
        "tracking": {"enabled": False},
    }


def logged(result, clocks=False) -> dict[tuple[int, str], float]:
    """(step, name) -> value of everything that does not measure time."""
    numbers = {}
    for line in Path(result.paths["events"]).read_text().splitlines():
        event = json.loads(line)
        if event["kind"] == "metrics":
            numbers |= {(event["step"], name): value for name, value in event["data"].items()}
    return {key: value for key, value in numbers.items() if clocks or not key[1].startswith(("time/", "flow_rl/cpu/"))}


def series(result, name) -> list[float]:
    return [value for (_, key), value in sorted(logged(result, clocks=True).items()) if key == name]


def parameters(result):
    from stable_baselines3 import PPO

    return PPO.load(result.paths["native"], device="cpu").policy.state_dict()


def test_contract(flow):
    for section in ({}, {"init": str(flow), "kernel": {"name": "flow_sde"}, "regularisers": {"w2": 0.1, "bc": 0.1}}):
        assert [finding for finding in check_plugin("flow_rl", section) if finding.level != "ok"] == []


def test_importing_the_plugin_is_light():
    heavy = ("torch", "gymnasium", "stable_baselines3", "lerobot", "mlflow")
    code = f"import sys, budwood_flow_rl.plugin; print(set({heavy}) & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert found.strip() == "set()"


# ---- T15: learning -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_flow_of_two_modes_learns_which_one_is_rewarded(flow, tmp_path, kernel):
    result = run(config(flow, tmp_path, kernel=KERNELS[kernel]))
    returns = series(result, "eval/return_mean")
    assert 0.3 < returns[0] < 0.6, "the clone earns about half"
    assert returns[-1] > 0.9
    assert max(series(result, "flow_rl/first_ratio_worst")) <= 1e-4
    assert result.metrics["flow_rl/env_steps"] == 4 * 10_240
    spent = {part: sum(series(result, f"flow_rl/cpu/{part}")) for part in ("physics", "sampling", "update")}
    assert all(seconds > 0 for seconds in spent.values())
    assert sum(spent.values()) < 60
    page = Path(result.paths["report"]).read_text()
    figures = ("Return with noise and without", "Noise of each step", "Joint KL", "Clipping", "Critic", "CPU time")
    for text in ("Flow policy", *figures, "ratios clipped", "executed actions beyond bounds"):
        assert text in page, text
    assert result.metrics["flow_rl/return_without_noise"] > result.metrics["flow_rl/return_with_noise"] > 0.8


def test_steps_of_the_environment_are_counted_beside_decisions(flow, tmp_path):
    """Episodes of eight steps in chunks of three: 3, 3 and 2."""
    made = config(flow, tmp_path, total=512, every=512, chunk={"execute": 3})
    made["evaluation"]["episodes"] = 16
    made["env"]["n_envs"] = 8
    made["trainer"]["args"]["n_steps"] = 64
    result = run(made)
    trained = result.metrics["flow_rl/env_steps"]
    assert trained == 8 * (21 * 8 + 3), "each environment finished 21 episodes and took one chunk of the next"
    assert result.metrics["eval/env_steps"] == trained + 16 * 8
    page = Path(result.paths["report"]).read_text()
    assert ">decisions, each of one or more environment steps<" in page
    assert ">environment steps<" not in page


def test_numbers_of_the_plugin_are_in_mlflow(flow, tmp_path, monkeypatch):
    """Sent in this process once the run is over; that a process of its own does so meanwhile is core's affair."""
    from mlflow.tracking import MlflowClient

    monkeypatch.setattr(tracking, "_launch", lambda folder, address: None)
    monkeypatch.setattr(tracking, "finish", lambda folder, **_: tracking.status(folder))
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    done = run({**config(flow, tmp_path, total=1_024, every=None), "tracking": {"uri": uri}})
    folder = Path(done.paths["folder"])
    Sink(folder).run(deadline=0)
    client, kept = MlflowClient(uri), tracking.status(folder)
    assert kept.complete
    sent = client.get_metric_history(kept.mlflow_run_id, "flow_rl/joint_kl")
    assert sorted((point.step, point.value) for point in sent) == [
        (step, value) for (step, name), value in sorted(logged(done).items()) if name == "flow_rl/joint_kl"
    ]
    assert sent
    assert client.get_run(kept.mlflow_run_id).data.params["plugins.flow_rl.kernel.name"] == "noisy_euler"


def test_an_actor_without_a_learning_rate_does_not_move(flow, tmp_path):
    still = config(flow, tmp_path, total=2_048)
    still["trainer"]["args"]["learning_rate"] = 0.0
    frozen, kept = run(still), load_flow(flow).field.state_dict()
    warming = run(config(flow, tmp_path, total=4_096, schedule={"critic_warmup": 100}))
    for result in (frozen, warming):
        learnt = parameters(result)
        assert all(learnt[f"network.field.{name}"].equal(tensor) for name, tensor in kept.items())
        assert max(series(result, "eval/return_mean")) < 0.65
        assert max(series(result, "flow_rl/joint_kl")) < 1e-6
    critic = "network.critic.net.first.weight"
    assert not parameters(warming)[critic].equal(parameters(frozen)[critic]), "the critic alone has learnt"


# ---- what changes over a run, and goes on after it was cut off ---------------------------------------------------------

CHANGING = {
    "kernel": {"name": "noisy_euler", "sigma": [0.05, 0.25]},
    "schedule": {"noise": "learn_decay", "critic_warmup": 1},
    "regularisers": {"w2": 0.01},
}


def crash_in_iteration(monkeypatch, number):
    """The process dies after a rollout, before its update is over: what follows the last checkpoint is lost."""
    original = FlowCallback.on_rollout_end

    def dying(self, control, rollout):
        if self.iterations == number:
            raise KeyboardInterrupt
        original(self, control, rollout)

    monkeypatch.setattr(FlowCallback, "on_rollout_end", dying)
    return lambda: monkeypatch.setattr(FlowCallback, "on_rollout_end", original)


@pytest.mark.parametrize("section", [CHANGING, {"kernel": {"name": "flow_sde"}}], ids=["noise", "sde"])
def test_a_run_that_was_killed_goes_on_bit_for_bit(flow, tmp_path, monkeypatch, section):
    def made(folder):
        return {**config(flow, tmp_path / folder, total=3_072, **section), "checkpoint": {"every": 512, "keep": 2}}

    whole = run(made("whole"))
    restored = crash_in_iteration(monkeypatch, 4)
    with pytest.raises(KeyboardInterrupt):
        run(made("parts"))
    restored()
    (folder,) = (tmp_path / "parts").iterdir()
    resumed = resume(str(folder))
    assert logged(resumed) == logged(whole)
    kept, straight = parameters(resumed), parameters(whole)
    assert kept.keys() == straight.keys()
    assert all(tensor.equal(kept[name]) for name, tensor in straight.items())
    if section is CHANGING:
        assert "network.frozen.net.first.weight" in kept
        assert series(whole, "flow_rl/warming") == [1.0, 0.0, 0.0, 0.0, 0.0, 0.0]


def test_the_range_of_the_noise_follows_its_schedule(flow, tmp_path):
    made = config(flow, tmp_path, total=2_048, every=None, schedule={"noise": "const_schedule_itr", "critic_warmup": 0})
    sigmas = series(run(made), "flow_rl/sigma_mean")
    expected = [const_schedule_itr(progress, 0.10, 0.24)[0] for progress in (0.0, 0.25, 0.5, 0.75)]
    assert len(set(expected)) == 4
    np.testing.assert_allclose(sigmas, expected, rtol=1e-5)


def test_a_policy_that_is_reset_has_the_noise_of_now_and_a_critic_that_warms_up_again(flow, tmp_path, monkeypatch):
    original = FlowCallback.on_update_end

    def resetting(self, control):
        original(self, control)
        if control.steps == 3 * 512:
            control.reset_policy(7)

    monkeypatch.setattr(FlowCallback, "on_update_end", resetting)
    schedule = {"noise": "const_schedule_itr", "critic_warmup": 2}
    result = run(config(flow, tmp_path, total=3_072, every=None, schedule=schedule))
    expected = [const_schedule_itr(k / 6, 0.10, 0.24)[0] for k in range(6)]
    np.testing.assert_allclose(series(result, "flow_rl/sigma_mean"), expected, rtol=1e-5)
    assert series(result, "flow_rl/warming") == [1.0, 1.0, 0.0, 1.0, 1.0, 0.0], "reset after the third"


# ---- what is refused ---------------------------------------------------------------------------------------------------


def refused(kind, made, *parts):
    with pytest.raises(kind) as raised:
        run(made)
    text = str(raised.value)
    for part in parts:
        assert part in text, text
    assert len(text.splitlines()) == 1 or raised.value.problems


def test_flows_that_do_not_fit_are_refused_before_anything_is_trained_and_by_explain(flow, tmp_path):
    def changed(section=None, **env):
        made = config(flow, tmp_path / "none", total=512, every=None, **(section or {}))
        made["env"] |= env
        return made

    def anywhere(name, **other):
        """The same flow, which says of no environment that it is its own, with some of it changed."""
        saved = load_flow(flow)
        field, scale = saved.field, saved.normalisation
        if other:
            field = RectifiedFlow(**field.arguments() | other)
            sizes = (field.obs_dim, field.action_dim)
            scale = Normalisation(*(MinMax(-np.ones(size), np.ones(size)) for size in sizes))
        save_flow(tmp_path / name, field, scale, Meta(saved.meta.chunk))
        return {"init": str(tmp_path / name)}

    for kind, made, *parts in [
        (
            CheckpointError,
            changed({"chunk": {"horizon": 8}}),
            f"plugins.flow_rl.chunk.horizon: {flow} was made for horizon 4, and not for horizon 8",
            "Leave the key out, or pre-train a flow with --horizon 8",
        ),
        (
            CheckpointError,
            changed(id="MountainCarContinuous-v0"),
            f"plugins.flow_rl.init: {flow} was made for budwood_flow_rl.point:TwoModes, 3 observations, 2 actions, and not for "
            "MountainCarContinuous-v0, 2 observations, 1 action",
            "Record and clone a policy of MountainCarContinuous-v0",
        ),
        (ConfigError, changed({"chunk": {"execute": 5}}), "5 actions cannot be executed of the 4"),
        (ConfigError, changed(normalize={"obs": True}), "env.normalize.obs", "scaled already"),
        (CheckpointError, changed({"init": str(tmp_path / "nowhere")}), "nowhere", "budwood flow-rl pretrain"),
        (CheckpointError, changed(anywhere("d", action_dim=3)), "made for 3 actions, and not for 2 actions"),
        (CheckpointError, changed(anywhere("o", obs_dim=5)), "made for 5 observations, and not for 3 observations"),
    ]:
        refused(kind, made, *parts)
        with pytest.raises(kind) as raised:
            explain(made).preflight()
        assert "Asked for by budwood-flow-rl" in str(raised.value)
        assert all(part in str(raised.value) for part in parts), str(raised.value)
    assert not list((tmp_path / "none").glob("*/status.json")), "nothing was begun"
    explain(changed(anywhere("same"))).preflight()


def test_explain_shows_the_plan_and_then_what_would_stop_the_run(flow, tmp_path, capsys):
    made = tmp_path / "made.yaml"
    made.write_text(yaml.safe_dump(config(flow, tmp_path)))
    assert main(["explain", str(made)]) == 0
    assert "bindings to PPO" in capsys.readouterr().out
    assert main(["explain", str(made), "plugins.flow_rl.init=nowhere"]) != 0
    said = capsys.readouterr()
    assert "bindings to PPO" in said.out
    assert said.err.startswith("error: nowhere: the saved flow cannot be used")
    assert said.err.count("\n") == 1, "one paragraph"


def test_on_lerobot_the_plugin_to_use_is_named():
    """What explain answers is in docs/composition.md, which a test asks for; here, what to do."""
    run_of_lerobot = SimpleNamespace(config={"trainer": {"kind": "lerobot", "algo": "online"}})
    with pytest.raises(BindingError, match=r"of its own, and trainer\.kind is lerobot") as told:
        FlowStart.of(run_of_lerobot)
    assert told.value.do.startswith("Use the plugin flow_vla and trainer: {kind: lerobot, algo: online}")


def test_a_flow_that_was_trained_in_noise_time_is_refused_before_anything_is_trained(flow, tmp_path):
    saved = load_flow(flow)
    torch.manual_seed(0)
    field = RectifiedFlow(**saved.field.arguments() | {"hidden": [64, 64, 64]})
    optimizer = torch.optim.Adam(field.parameters(), 3e-3)
    for _ in range(300):
        o, e, t = 2 * torch.rand(128, field.obs_dim) - 1, torch.randn(128, 4, field.action_dim), torch.rand(128, 1, 1)
        actions = 0.5 * o[:, :1, None].expand_as(e)
        v, _ = field.velocity((1 - t) * actions + t * e, t.flatten(), o)  # as LeRobot trains: t = 1 is noise, v = e - a
        optimizer.zero_grad()
        (v - (e - actions)).square().mean().backward()
        optimizer.step()
    save_flow(tmp_path / "flow", field, saved.normalisation, saved.meta)
    made = config(tmp_path / "flow", tmp_path / "none", total=512, every=None)
    refused(BindingError, made, "plugins.flow_rl.init", "the wrong direction of time", "t = 1 - s")
    assert not list((tmp_path / "none").glob("*/status.json")), "nothing was begun"


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"kernel": {"name": "flow_sde"}, "steps": 1}, "flow_sde is degenerate with steps: 1; use noisy_euler"),
        ({"kernel": {"name": "noisy_euler", "sigma": [0.2, 0.1]}}, "sigma: needs 0 < lowest <= highest"),
        ({"family": {"name": "shortcut"}}, "init names a saved one, which brings its own"),
        ({"kernel": {"name": "flow_sde"}, "schedule": {"noise": "const"}}, "flow_sde has none"),
        ({"kernel": {"name": "flow_sde", "hybrid": False, "ignore_last": True}}, "without hybrid all are stochastic"),
        (
            {"kernel": {"name": "flow_cps"}, "parity": {"clamp_action": True}},
            "whose kernel is noisy_euler, not flow_cps",
        ),
        ({"chunk": {"horizon": 2, "execute": 4}}, "4 actions cannot be executed of 2 predicted"),
    ],
)
def test_sections_that_contradict_themselves(flow, tmp_path, section, message):
    refused(ConfigError, config(flow, tmp_path, **section), "plugins.flow_rl", message)


def test_other_trainers_and_environments(flow, tmp_path):
    made = config(flow, tmp_path, total=512)
    refused(BindingError, made | {"trainer": {"kind": "sb3", "algo": "sac", "total_timesteps": 512}}, "cannot bind")
    free = made | {"plugins": {"flow_rl": {}}}
    refused(BindingError, free | {"env": {"id": "CartPole-v1"}}, "env.id", "Discrete(2)")


def test_the_folder_of_a_run_is_no_saved_flow(flow, tmp_path):
    folder = run(config(flow, tmp_path, total=512, every=None)).paths["folder"]
    made = config(Path(folder), tmp_path / "none", total=512, every=None)
    refused(CheckpointError, made, "plugins.flow_rl.init", "is a run", "budwood flow-rl pretrain", "init_from")


def test_a_fine_tuned_flow_cannot_be_recorded(flow, tmp_path):
    folder = run(config(flow, tmp_path, total=512, every=None)).paths["folder"]
    with pytest.raises(ConfigError, match="a fine-tuned flow cannot be recorded"), recording.of_run(folder):
        pass


@pytest.mark.parametrize(
    "section",
    [{"kernel": {"name": "flow_sde"}, "steps": 3, "schedule": {"critic_warmup": 0}}, {"init": None}],
    ids=["K=3", "random"],
)
def test_a_fine_tuned_flow_is_a_saved_flow_again_and_earns_the_same_to_the_bit(flow, tmp_path, capsys, section):
    def said(*words):
        assert main(["flow-rl", *map(str, words), "--json"]) == 0
        return json.loads(capsys.readouterr().out.splitlines()[-1])

    folder = run(config(flow, tmp_path, total=1_024, every=None, **section)).paths["folder"]
    with restored(folder) as found:
        torch.manual_seed(5)
        own = found.trainer.evaluate(32, 5).returns
    out, options = tmp_path / "better", ("--episodes", 32, "--n-envs", 16, "--seed", 5)
    exported = said("export", folder, "--out", out)
    assert exported["steps"] == section.get("steps", 4)
    for source in (folder, out):
        told = said("evaluate", source, *options)
        assert told["steps"] == exported["steps"], "the run's K"
        assert np.float32(told["returns"]).tolist() == own.tolist(), "vectors of environments keep rewards in float32"
    before, after = (None if folder is None else load_flow(folder) for folder in (section.get("init", flow), out))
    if before is not None:
        assert after.normalisation.as_json() == before.normalisation.as_json()
        assert any(not after.field.state_dict()[name].equal(old) for name, old in before.field.state_dict().items())
    again = run(config(out, tmp_path / "again", total=512, every=None))
    assert again.status == "finished"
    assert main(["flow-rl", "export", folder, "--out", str(out)]) != 0
    assert "a flow is there already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("section", "normalize", "message"),
    [
        ({"kernel": {"name": "noisy_euler", "clip_mean": 1.0}}, {}, "clipped by kernel.clip_mean"),
        ({"init": None}, {"obs": True}, "observations under running statistics"),
    ],
)
def test_what_a_saved_flow_cannot_stand_for_is_not_exported(flow, tmp_path, section, normalize, message):
    made = config(flow, tmp_path, total=512, every=None, **section)
    made["env"]["normalize"] = normalize or None
    folder = run(made).paths["folder"]
    with pytest.raises(ConfigError, match=message):
        exporting.of_run(folder)


def test_errors_of_the_section_name_this_plugin(flow, tmp_path):
    """Also those that come when the adapter makes environments and the policy."""
    start = FlowStart(FlowConfig(init=str(flow)), None, False)
    space = gym.spaces.Box(-1, 1, (7,))
    calls = {
        "wrap": lambda: start.wrap_env(gym.make("CartPole-v1")),
        "policy": lambda: start(space, gym.spaces.Box(-1, 1, (start.shape.size(2),))),
        "run": lambda: run(config(flow, tmp_path, total=512, every=None, chunk={"execute": 5})),
        "init": lambda: run(config(tmp_path / "nowhere", tmp_path, total=512, every=None)),
    }
    for name, call in calls.items():
        with pytest.raises(BudwoodError) as raised:
            call()
        assert "Asked for by budwood-flow-rl " in str(raised.value), (name, str(raised.value))


def test_the_clip_of_ppo_is_refused_and_that_of_its_critic_is_not(flow, tmp_path):
    made = config(flow, tmp_path, total=512, every=None)
    made["trainer"]["args"]["clip_range_vf"] = 0.2
    assert run(made).status == "finished"
    made["trainer"]["args"]["clip_range"] = 0.2
    refused(ConfigError, made, "trainer.args.clip_range", "plugins.flow_rl.clip")


def test_a_checkpoint_of_another_flow_is_refused(flow, tmp_path):
    made = config(flow, tmp_path, total=512, every=None)
    made["plugins"]["flow_rl"] |= {"init": None, "family": {"hidden": [16, 16, 16]}}
    folder = run(made).paths["folder"]
    for key, value in {"steps": 2, "family.name": "shortcut"}.items():
        with pytest.raises(CheckpointError) as raised:
            resume(folder, ["trainer.total_timesteps=1_024", f"plugins.flow_rl.{key}={value}"])
        said = str(raised.value)
        assert f"this checkpoint comes from another configuration: plugins.flow_rl.{key} changed. Undo" in said
        assert "\n" not in said


def test_a_checkpoint_of_another_family_is_refused_where_the_saved_flow_was_written_anew(flow, tmp_path):
    saved = load_flow(flow)
    sizes = saved.field.arguments()
    fields = [
        kind(sizes["obs_dim"], sizes["horizon"], sizes["action_dim"], [16, 16, 16])
        for kind in (RectifiedFlow, Shortcut)
    ]
    init = tmp_path / "flow"
    save_flow(init, fields[0], saved.normalisation, saved.meta)
    folder = run(config(init, tmp_path / "runs", total=512, every=None)).paths["folder"]
    shutil.rmtree(init)
    save_flow(init, fields[1], saved.normalisation, saved.meta)
    with pytest.raises(CheckpointError) as raised:
        resume(folder, ["trainer.total_timesteps=1_024"])
    said = str(raised.value)
    assert "the checkpoint's networks do not fit the model: " in said
    assert "size mismatch for network.field.time.first.weight" in said, (
        "a shortcut model is told the size of its step too"
    )
    assert "\n" not in said


# ---- beside another plugin ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("execute", [1, 2])
def test_rewards_are_shaped_under_a_flow_policy(tmp_path, execute):
    pytest.importorskip("budwood_reward_shaping")
    shaping = {
        "terms": ["speed", "effort"],
        "criteria": ["distance"],
        "outer": {"steps": 2, "inner_iterations": 2, "rollouts": 1, "episodes": 2},
        "weights": {"w_task": 1.0, "scale": None},
        "task_mode": "fraction",
    }
    section = {"family": {"hidden": [16, 16, 16]}, "chunk": {"horizon": 2, "execute": execute}}
    made = {
        "name": "both",
        "trainer": {
            "kind": "sb3",
            "algo": "ppo",
            "total_timesteps": 800,
            "args": {"n_steps": 50, "batch_size": 50, "n_epochs": 2},
        },
        "env": {"id": "budwood_reward_shaping.reach_budget:ReachBudget", "n_envs": 4},
        "plugins": {"reward_shaping": shaping, "flow_rl": section},
        "output": str(tmp_path),
        "device": "cpu",
        "tracking": {"enabled": False},
        "evaluation": {"every": None, "episodes": 0},
    }
    result = run(made)
    assert {"reward_shaping/P", "flow_rl/joint_kl"} <= result.metrics.keys()
    assert result.status == "finished"


def test_films_show_an_episode_before_and_after_and_change_nothing(flow, tmp_path):
    from PIL import Image

    plain, filmed = (
        run(config(flow, tmp_path / str(film), total=512, every=None, eval={"film": film})) for film in (False, True)
    )
    folder = Path(filmed.paths["folder"])
    for name in ("rollout_before.gif", "rollout_after.gif"):
        with Image.open(folder / name) as film:
            assert (film.n_frames, film.size) == (3, (96, 96)), "the first state and two decisions"
        assert b64encode((folder / name).read_bytes()).decode() in Path(filmed.paths["report"]).read_text()
    assert "image/gif" not in Path(plain.paths["report"]).read_text()
    assert all(tensor.equal(parameters(filmed)[name]) for name, tensor in parameters(plain).items())


def test_a_film_that_fails_at_the_end_costs_nothing(flow, tmp_path, monkeypatch):
    save = film.save

    def full(path, *rest):
        if path.name == film.AFTER:
            raise OSError("no space left on device")
        save(path, *rest)

    with monkeypatch.context() as patched:
        patched.setattr(film, "save", full)
        with pytest.raises(BudwoodError, match="its on_run_end raised OSError: no space left"):
            run(config(flow, tmp_path, total=512, every=None, eval={"film": True}))
    (folder,) = tmp_path.glob("*/config.yaml")
    resumed = resume(folder.parent)
    assert resumed.status == "finished"
    assert (folder.parent / film.AFTER).exists()
    whole = run(config(flow, tmp_path / "whole", total=512, every=None))
    assert all(tensor.equal(parameters(resumed)[name]) for name, tensor in parameters(whole).items())


def test_the_readme_explains_every_key():
    table = (ROOT / "plugins" / "flow_rl" / "README.md").read_text()
    for name, field in FlowConfig.model_fields.items():
        (row,) = [line for line in table.splitlines() if line.startswith(f"| `{name}` |")]
        inner = getattr(field.annotation, "model_fields", {})
        assert all(key in row for key in inner), (name, set(inner))


def test_no_section_without_an_iteration():
    assert sections(FlowConfig(), {}) == []
