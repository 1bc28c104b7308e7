"""Packs against the environments: every term and signal on real steps, and the sums that make the environment's own reward."""

from __future__ import annotations

import pickle
import sys

import numpy as np
import pytest

from budwood.api import Contributed, Contributions, StepBatch
from budwood_reward_shaping.packs import arms, pendulums, planar, spatial
from budwood_reward_shaping.packs.gymnasium_mujoco import PACKS
from budwood_reward_shaping.packs.parts import Alive
from budwood_reward_shaping.terms import KIND, Registry

pytest.importorskip("budwood_sb3")

OWN_REWARD = {
    "HalfCheetah": ["forward", "effort"],
    "Hopper": ["forward", "effort", "alive"],
    "Walker2d": ["forward", "effort", "alive"],
    "Swimmer": ["forward", "effort"],
    "Ant": ["forward", "effort", "alive", "contact"],
    "Humanoid": ["forward", "effort", "alive", "contact"],
    "HumanoidStandup": ["rise", "effort", "impact"],
    "Reacher": ["reach", "effort"],
    "Pusher": ["push", "near", "effort"],
    "InvertedPendulum": ["alive"],
    "InvertedDoublePendulum": ["alive", "tip", "still"],
}
"""Terms whose sum is the environment's own reward; HumanoidStandup adds 1 a step."""

NEEDS_OLD_MUJOCO = "Pusher-v4"
NO_CONTACT_FORCES = ("HumanoidStandup-v4", "envpool", "impact")
"""EnvPool computes them from version 5 on."""
STALE = {"InvertedDoublePendulum": 2e-4}
"""MuJoCo leaves positions of sites one substep behind the joints that the observation gives."""
N, STEPS = 2, 70
"""Random actions fall within so many steps wherever a fall ends the episode."""


def cases() -> list:
    return [
        (env_id, vec)
        for env_id in PACKS
        for vec in ("dummy", "envpool")
        if (env_id, vec) != (NEEDS_OLD_MUJOCO, "dummy")
    ]


def made(env_id: str, vec: str, wrap=lambda venv: venv):
    from budwood_sb3 import envs
    from budwood_sb3.config import EnvConfig

    if vec == "envpool":
        pytest.importorskip("envpool")
    args = {"num_threads": 1} if vec == "envpool" else {}
    return wrap(envs.make(EnvConfig(id=env_id, n_envs=N, vec=vec, args=args), seed=0))


class Watch:
    """Every signal of a pack as a reward term would see it, beside the terms themselves."""

    def __init__(self, env_id: str) -> None:
        self.pack = PACKS[env_id]
        self.registry = Registry(env_id, [Contributed({env_id: self.pack}, "own", "own 1.0")])
        self.falls: list[np.ndarray] = []
        read = [*self.pack.signals, *(criterion.source for criterion in self.pack.criteria)]
        self.signals: dict[str, list[np.ndarray]] = {name: [] for name in read}

    def __call__(self, batch: StepBatch) -> np.ndarray:
        self.falls.append(batch.dones & ~batch.timeouts)
        for name, seen in self.signals.items():
            seen.append(self.registry.source(name, {})(batch))
        return np.zeros(len(batch.dones))


def played(env_id: str, vec: str) -> tuple[Watch, np.ndarray, dict[str, np.ndarray]]:
    """STEPS random steps: what was watched, the environment's own rewards (S, n), and every term (S, n)."""
    from budwood.api import RewardTerm
    from budwood_sb3.vec import TermVecEnv

    watch = Watch(env_id)
    terms = [term.contribution() for term in watch.pack.terms]
    contributed = [Contributed(term, "own", "own 1.0") for term in (*terms, RewardTerm("watch", fn=watch))]
    venv = made(env_id, vec, lambda inner: TermVecEnv(inner, Contributions(reward_terms=contributed)))
    rng, rows = np.random.default_rng(0), []
    low, high, kind = venv.action_space.low, venv.action_space.high, venv.action_space.dtype
    venv.reset()
    for _ in range(STEPS):
        venv.step(rng.uniform(low, high, (N, *low.shape)).astype(kind))
        rows.append(venv.terms.copy())
    venv.close()
    matrix = np.stack(rows)
    return watch, matrix[..., 0], {term.name: matrix[..., i] for i, term in enumerate(watch.pack.terms, 1)}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(("env_id", "vec"), cases())
def test_terms_on_real_steps(env_id, vec):
    """Finite, of the declared sign, not all constant; their sum is the environment's own reward."""
    watch, own, terms = played(env_id, vec)
    assert len(terms) >= 3
    for term in watch.pack.terms:
        values = terms[term.name]
        assert np.isfinite(values).all()
        if term.sign is not None:
            assert ((values >= 0) if term.sign == "+" else (values <= 0)).all(), term.name
        constant = term.name == "alive" or (env_id, vec, term.name) == NO_CONTACT_FORCES
        assert constant or values.std() > 0, term.name
    for name, seen in watch.signals.items():
        assert np.stack(seen).shape == (STEPS, N), name
        assert np.isfinite(seen).all()
    name, version = env_id.rsplit("-", 1)
    total = sum(terms[wanted] for wanted in OWN_REWARD[name] if wanted in terms)
    assert ("contact" in terms) == (name in ("Ant", "Humanoid") and version == "v5")
    if name == "HumanoidStandup":
        total = total + 1.0
    falls = np.stack(watch.falls)
    assert falls.any() == ("alive" in terms)
    if version == "v4" and falls.any():
        (bonus,) = (term.fn.bonus for term in watch.pack.terms if term.name == "alive")
        total = total + np.where(falls, bonus, 0.0)
    np.testing.assert_allclose(total, own, rtol=2e-5, atol=STALE.get(name, 2e-5))


def bodies(env_id: str, steps: int = 40):
    """An environment after random steps with its kinematics brought up to date, and the step as a batch."""
    import gymnasium as gym
    import mujoco

    env = gym.make(env_id)
    env.action_space.seed(1)
    env.reset(seed=1)
    for _ in range(steps):
        action = env.action_space.sample()
        obs, _, _, _, info = env.step(action)
    model, data = env.unwrapped.model, env.unwrapped.data
    mujoco.mj_forward(model, data)
    batch = StepBatch()
    batch.next_obs, batch.actions, batch.infos = obs[None], action[None], [info]
    batch.dones = batch.timeouts = np.array([False])
    return data, batch


def signal(env_id: str, name: str, batch: StepBatch) -> float:
    return float(Registry(env_id, [Contributed(PACKS, "own", "own 1.0")]).source(name, {})(batch)[0])


@pytest.mark.parametrize(
    ("env_id", "read"),
    [("Ant-v5", spatial.standing), ("Humanoid-v5", spatial.standing), ("HumanoidStandup-v5", spatial.head_up)],
)
def test_orientation_is_the_torsos(env_id, read):
    data, batch = bodies(env_id)
    axis = data.body("torso").xmat.reshape(3, 3)[2]
    vertical = -axis[0] if env_id == "HumanoidStandup-v5" else axis[2]
    assert read(batch)[0] == pytest.approx(vertical, abs=1e-9)
    assert signal(env_id, "upright", batch) == pytest.approx(vertical - 1.0, abs=1e-9)
    assert signal(env_id, "is_upright", batch) == float(vertical > np.cos(1.0))
    assert signal(env_id, "height", batch) == pytest.approx(data.body("torso").xpos[2])


def test_the_lying_model_has_its_head_where_it_is_said_to_be():
    data, batch = bodies("HumanoidStandup-v5")
    to_head = data.geom("head").xpos - data.body("torso").xpos
    assert spatial.head_up(batch)[0] == pytest.approx(to_head[2] / np.linalg.norm(to_head), abs=1e-3)


@pytest.mark.parametrize("env_id", ["HalfCheetah-v5", "Hopper-v5", "Walker2d-v5"])
def test_pitch_and_height_are_the_torsos(env_id):
    data, batch = bodies(env_id)
    pitch = data.joint("rooty").qpos[0]
    assert signal(env_id, "upright", batch) == pytest.approx(-abs(pitch))
    assert signal(env_id, "is_upright", batch) == float(abs(pitch) < 1)
    assert signal(env_id, "height", batch) == pytest.approx(data.joint("rootz").qpos[0])


def test_a_swimmers_heading_is_its_front_links():
    data, batch = bodies("Swimmer-v5")
    assert signal("Swimmer-v5", "straight", batch) == pytest.approx(-abs(data.joint("free_body_rot").qpos[0]))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("env_id", ["Reacher-v4", "Reacher-v5"])
def test_a_reachers_distance_and_speed(env_id):
    data, batch = bodies(env_id, steps=5)
    gap = data.body("fingertip").xpos - data.body("target").xpos
    assert signal(env_id, "distance", batch) == pytest.approx(np.linalg.norm(gap[:2]), abs=1e-5)
    assert signal(env_id, "speed", batch) == pytest.approx(np.linalg.norm(data.qvel[:2]))
    assert signal(env_id, "still", batch) == pytest.approx(-np.square(data.qvel[:2]).sum())


def test_a_pushers_distances_are_those_it_is_rewarded_for():
    _, batch = bodies("Pusher-v5", steps=5)
    assert signal("Pusher-v5", "distance", batch) == pytest.approx(-signal("Pusher-v5", "push", batch))
    assert signal("Pusher-v5", "gap", batch) == pytest.approx(-2.0 * signal("Pusher-v5", "near", batch))


def test_pendulums_are_read_from_observations():
    data, batch = bodies("InvertedPendulum-v5", steps=3)
    assert signal("InvertedPendulum-v5", "position", batch) == pytest.approx(data.qpos[0])
    assert signal("InvertedPendulum-v5", "angle", batch) == pytest.approx(data.qpos[1])
    data, batch = bodies("InvertedDoublePendulum-v5", steps=3)
    assert signal("InvertedDoublePendulum-v5", "tip_height", batch) == pytest.approx(data.site("tip").xpos[2], abs=1e-6)
    assert signal("InvertedDoublePendulum-v5", "centred", batch) == pytest.approx(-abs(data.qpos[0]))


def test_alive_ends_with_a_fall_and_not_with_the_time_limit(batch):
    step = batch([{}] * 3, dones=[False, True, True], timeouts=[False, False, True])
    np.testing.assert_array_equal(Alive(5.0)(step), [5.0, 0.0, 5.0])


def test_packs_travel_to_workers():
    for env_id, pack in PACKS.items():
        again = pickle.loads(pickle.dumps(pack))
        assert [term.name for term in again.terms] == [term.name for term in pack.terms], env_id


def test_a_pack_is_found_through_the_environments_name(batch):
    from budwood_reward_shaping.plugin import RewardShaping

    offered = [Contributed(RewardShaping().components(KIND), "reward_shaping", "own 1.0")]
    assert Registry("Pusher-v5", offered).term("near") is arms.NEAR
    assert Registry("Swimmer-v5", offered).term("straight") in planar.SWIMMER.terms
    assert Registry("InvertedDoublePendulum-v4", offered).term("tip") in pendulums.DOUBLE.terms


SOMEBODYS = """
import numpy as np
from budwood.api import hookimpl
from budwood_reward_shaping.terms import BatchTerm, Pack


def gentle(batch):
    return -np.abs(batch.actions[:, 0]).astype(float)


class Plugin:
    @hookimpl
    def components(self, kind):
        return {"ReachBudget": Pack((BatchTerm("gentle", gentle, sign="-"),), {"pace": "speed"})} if kind == %r else {}
"""


@pytest.fixture
def somebodys(tmp_path, monkeypatch):
    """A plugin ``gentleness`` of somebody else's, installed for this test."""
    from budwood import plugins

    info = tmp_path / "site" / "budwood_gentleness-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: budwood-gentleness\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{plugins.GROUP}]\ngentleness = somebodys_gentleness:Plugin\n")
    (tmp_path / "site" / "somebodys_gentleness.py").write_text(SOMEBODYS % KIND)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    plugins._scan.cache_clear()
    yield
    sys.modules.pop("somebodys_gentleness", None)
    plugins._scan.cache_clear()


def test_another_plugins_pack_is_used_in_a_run(tmp_path, somebodys):
    """Named in the run beside this one: its term is trained on and its signal decides a criterion."""
    from budwood import run
    from budwood_reward_shaping import demo

    made = demo.config("tiny", 0, str(tmp_path), 400, terms=["speed", "gentle"])
    made["env"] |= {"n_envs": 2}
    made["trainer"]["args"] |= {"batch_size": 50, "n_epochs": 1}
    made["plugins"]["gentleness"] = {}
    made["plugins"]["reward_shaping"] |= {
        "criteria": [{"name": "pace", "source": "pace", "stat": "min", "op": ">=", "threshold": -9.0}],
        "outer": {"steps": 2, "inner_iterations": 1, "episodes": 2},
    }
    result = run({**made, "tracking": {"enabled": False}, "evaluation": {"every": None, "episodes": 0}})
    assert result.metrics["reward_shaping/criterion/pace"] == 1.0
    assert result.metrics["terms/reward_shaping.gentle"] < 0.0
