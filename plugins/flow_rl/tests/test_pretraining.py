"""Pre-training: what it learns, its moving average in closed form, and a kill that changes no bit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from budwood.api import CheckpointError, ConfigError
from budwood_flow_rl.demonstrations import Demonstrations, concatenated, save
from budwood_flow_rl.evaluation import _actor
from budwood_flow_rl.families import FAMILIES
from budwood_flow_rl.pretraining import METRICS, TRAINING, Pretraining, Settings, average, generator_of, split
from budwood_flow_rl.saved import FACTS, WEIGHTS, load_flow

torch.set_num_threads(1)
SMALL = Settings(hidden=(16,), steps=60, batch=32, every=20, horizon=3)


def walk(episodes: int = 12, length: int = 20) -> Demonstrations:
    """Actions follow observations: a = sin(o)."""
    rng = np.random.default_rng(0)
    rows = [rng.normal(size=(length, 4)) for _ in range(episodes)]
    parts = [(each, np.sin(each[:, :2]), each[:, 0]) for each in rows]
    return concatenated(parts, [True] * episodes, [False] * episodes, about={"source": "a test"})


def two_modes(share: float = 0.7, steps: int = 4000) -> Demonstrations:
    """One step an episode, no information in the observation: (0.8, -0.4) in ``share`` of them, (-0.6, 0.8) otherwise."""
    rng = np.random.default_rng(0)
    first = rng.random(steps) < share
    actions = np.where(first[:, None], [0.8, -0.4], [-0.6, 0.8]) + rng.normal(0, 0.05, (steps, 2))
    parts = [(np.zeros((1, 1)), action[None], np.zeros(1)) for action in actions]
    return concatenated(parts, [True] * steps, [False] * steps)


def acted(folder: Path, observations: np.ndarray, steps: int, seed: int) -> np.ndarray:
    """(n, C, D): what the saved flow does, in the demonstrations' own units."""
    flow = load_flow(folder)
    chunks = _actor(flow, steps, seed)(observations)
    return flow.normalisation.actions.unscale(torch.from_numpy(chunks.clip(-1, 1))).numpy()


@pytest.mark.parametrize("family", FAMILIES)
def test_both_modes_are_learnt_with_their_shares(tmp_path: Path, family: str) -> None:
    settings = Settings(family, horizon=1, hidden=(64, 64, 64), steps=2000, batch=256, every=1000, held_out=0.1)
    ended = Pretraining(tmp_path, two_modes(), settings).run()
    assert ended.step == 2000
    sampled = acted(tmp_path, np.zeros((4000, 1), np.float32), steps=20, seed=1)[:, 0]
    to_first = np.linalg.norm(sampled - [0.8, -0.4], axis=1)
    to_second = np.linalg.norm(sampled - [-0.6, 0.8], axis=1)
    near = np.minimum(to_first, to_second) < 0.3
    assert near.mean() > 0.9
    assert (to_first < to_second)[near].mean() == pytest.approx(0.7, abs=0.05)
    assert sampled[to_first < 0.3].mean(axis=0) == pytest.approx([0.8, -0.4], abs=0.05)


def test_the_held_out_loss_falls_and_every_line_is_told(tmp_path: Path) -> None:
    training = Pretraining(tmp_path, walk(), replace(SMALL, steps=300, every=100, hidden=(64,)))
    before = training.held_out_loss()
    ended = training.run()
    lines = [json.loads(line) for line in (tmp_path / METRICS).read_text().splitlines()]
    assert [line["step"] for line in lines] == [100, 200, 300]
    assert set(lines[0]) == {"step", "loss", "held_out_loss", "lr", "seconds"}
    assert ended.held_out_loss == lines[-1]["held_out_loss"] < before
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert ended.loss == lines[-1]["loss"]


def test_the_average_is_its_closed_form() -> None:
    """theta_0 decay^n + (1 - decay) sum_k decay^(n - k) theta_k."""
    decay, count = 0.9, 25
    torch.manual_seed(0)
    current = torch.nn.Linear(3, 2).double()
    averaged = deepcopy(current)
    history = [current.weight.detach().clone()]
    for _ in range(count):
        with torch.no_grad():
            current.weight.add_(torch.randn(2, 3, dtype=torch.float64))
        history.append(current.weight.detach().clone())
        average(averaged, current, decay)
    closed = history[0] * decay**count + (1 - decay) * sum(
        decay ** (count - k) * history[k] for k in range(1, count + 1)
    )
    assert torch.allclose(averaged.weight, closed, rtol=0, atol=1e-12)


def test_the_average_is_saved_and_not_the_raw_weights(tmp_path: Path) -> None:
    training = Pretraining(tmp_path, walk(), SMALL)
    training.run()
    saved = load_flow(tmp_path).field.state_dict()
    for name, value in training.averaged.state_dict().items():
        assert torch.equal(saved[name], value)
    raw = training.field.state_dict()
    assert any(not torch.equal(saved[name], value) for name, value in raw.items())


def test_every_step_and_every_seed_has_randomness_of_its_own() -> None:
    drawn = {tuple(torch.rand(3, generator=generator_of(seed, step)).tolist()) for seed in (0, 1) for step in range(50)}
    assert len(drawn) == 100
    assert torch.rand(3, generator=generator_of(1, 7)).tolist() == torch.rand(3, generator=generator_of(1, 7)).tolist()


def test_the_learning_rate_is_a_half_cosine() -> None:
    settings = Settings(steps=100)
    assert settings.rate(0) == pytest.approx(1e-3)
    assert settings.rate(50) == pytest.approx(5.5e-4)
    assert settings.rate(100) == pytest.approx(1e-4)


def files(folder: Path) -> list[bytes]:
    return [(folder / name).read_bytes() for name in (WEIGHTS, FACTS, TRAINING)]


def losses(folder: Path) -> list[tuple[int, float]]:
    lines = [json.loads(line) for line in (folder / METRICS).read_text().splitlines()]
    return [(line["step"], line["held_out_loss"]) for line in lines]


@pytest.mark.parametrize("family", FAMILIES)
def test_stop_and_resume_change_no_bit(tmp_path: Path, family: str) -> None:
    settings = replace(SMALL, family=family)
    Pretraining(tmp_path / "whole", walk(), settings).run()
    cut = Pretraining(tmp_path / "cut", walk(), settings)
    assert cut.run(stop=lambda: cut.step >= 33).step == 33
    load_flow(tmp_path / "cut")  # usable as it is
    again = Pretraining(tmp_path / "cut", walk(), settings)
    again.resume()
    assert again.step == 33
    assert again.run().step == 60
    assert files(tmp_path / "cut") == files(tmp_path / "whole")
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")


KILLED = """
import sys, time
from pathlib import Path
from budwood_flow_rl.demonstrations import load
from budwood_flow_rl.pretraining import Pretraining, Settings
settings = Settings(hidden=(16,), steps=60, batch=32, every=20, horizon=3)
training = Pretraining(Path(sys.argv[2]), load(Path(sys.argv[1])), settings)
def progress(step, metrics):
    if step == 47:
        print("there", flush=True)
        time.sleep(60)
training.run(progress=progress)
"""


def test_kill_and_resume_change_no_bit(tmp_path: Path) -> None:
    """SIGKILL between two states: what was done since the last one is done again."""
    demos = walk()
    save(tmp_path / "demos", demos)
    command = [sys.executable, "-c", KILLED, str(tmp_path / "demos"), str(tmp_path / "cut")]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert child.stdout is not None
    assert child.stdout.readline() == "there\n"
    child.send_signal(signal.SIGKILL)
    child.wait(10)
    child.stdout.close()
    assert not (tmp_path / "cut" / FACTS).exists()
    again = Pretraining(tmp_path / "cut", demos, SMALL)
    again.resume()
    assert again.step == 40
    again.run()
    Pretraining(tmp_path / "whole", demos, SMALL).run()
    assert files(tmp_path / "cut") == files(tmp_path / "whole")
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")


def test_metrics_after_the_kept_state_come_once(tmp_path: Path) -> None:
    whole = Pretraining(tmp_path, walk(), SMALL)
    whole.run(stop=lambda: whole.step >= 40)
    with (tmp_path / METRICS).open("a") as file:
        file.write('{"step": 60, "loss": 0.5, "held_out_loss": 0.5, "lr": 0.1, "seconds": 1}\n{"step": 6')
    again = Pretraining(tmp_path, walk(), SMALL)
    again.resume()
    again.run()
    assert [step for step, _ in losses(tmp_path)] == [20, 40, 60]


def test_resume_refuses_other_settings_and_other_demonstrations(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="there is no such file"):
        Pretraining(tmp_path, walk(), SMALL).resume()
    Pretraining(tmp_path, walk(), SMALL).run()
    with pytest.raises(CheckpointError, match="batch, ema changed"):
        Pretraining(tmp_path, walk(), replace(SMALL, batch=16, ema=0.9)).resume()
    with pytest.raises(CheckpointError, match="the demonstrations changed"):
        Pretraining(tmp_path, walk(episodes=13), SMALL).resume()
    Pretraining(tmp_path, walk(), replace(SMALL, every=7)).resume()


def test_a_loss_that_is_not_finite_stops_and_leaves_what_was_kept(tmp_path: Path) -> None:
    training = Pretraining(tmp_path, walk(), replace(SMALL, lr=1e30, lr_end=1e29, steps=200))
    with pytest.raises(CheckpointError, match=r"the loss of step \d+ is (nan|inf)"):
        training.run()
    assert not list(tmp_path.iterdir())


def test_weights_that_an_update_ruined_are_not_kept(tmp_path: Path) -> None:
    training = Pretraining(tmp_path, walk(), SMALL)
    training.run(stop=lambda: training.step >= 25)
    kept = files(tmp_path)

    def ruin(step: int, _metrics: object) -> None:
        if step == 39:
            with torch.no_grad():
                next(training.field.parameters())[0, 0] = np.inf
            training._update = lambda: 0.5  # an update whose loss was finite and whose gradient was not

    with pytest.raises(CheckpointError, match="the update of step 39 left weights that are not finite"):
        training.run(progress=ruin)
    assert files(tmp_path) == kept


def test_whole_episodes_are_held_out() -> None:
    demos = walk(episodes=12)
    learnt, held = split(demos, 0.1, seed=0)
    assert len(held) == 2 * 20
    assert sorted([*learnt, *held]) == list(range(240))
    assert len(set(held // 20)) == 2
    assert split(demos, 0.1, seed=0)[1].tolist() == held.tolist()
    assert len(split(walk(episodes=1), 0.5, seed=0)[1]) == 0
    assert len(split(demos, 0.0, seed=0)[1]) == 0


def test_one_episode_is_learnt_from_without_measuring(tmp_path: Path) -> None:
    ended = Pretraining(tmp_path, walk(episodes=1), SMALL).run()
    assert ended.held_out_loss is None
    assert "held_out_loss" not in json.loads((tmp_path / METRICS).read_text().splitlines()[0])


def test_a_constant_action_is_cloned_and_said(tmp_path: Path) -> None:
    demos = walk()
    actions = demos.actions.copy()
    actions[:, 1] = 0.25
    training = Pretraining(tmp_path, replace(demos, actions=actions), replace(SMALL, steps=400, hidden=(64,)))
    assert training.run().notes == training.notes
    assert "action dimensions 1" in training.notes[0]
    chunk = acted(tmp_path, demos.observations, steps=4, seed=0)
    assert np.isfinite(chunk).all()
    assert np.abs(chunk[..., 1] - 0.25).mean() < 0.3


@pytest.mark.parametrize(
    "wrong",
    [{"horizon": 0}, {"chunk": 5}, {"ema": 1.0}, {"lr": 0.0}, {"lr_end": 1.0}, {"held_out": 1.0}],
)
def test_settings_out_of_range_are_named(wrong: dict) -> None:
    with pytest.raises(ConfigError, match=f"{next(iter(wrong))}="):
        Settings(**wrong)


def test_training_leaves_the_callers_randomness_alone(tmp_path: Path) -> None:
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    Pretraining(tmp_path, walk(), replace(SMALL, steps=3)).run()
    assert torch.equal(torch.random.get_rng_state(), before)
