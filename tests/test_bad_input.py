"""Whatever is wrong with what a person gives: one paragraph that says what, where, who and what to do, and nothing lost.

Every case goes through the command line, once for people and once with ``--json``; the messages are exact.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from budwood.api import BudwoodError
from budwood.checkpoint import Checkpoints
from budwood.folder import RunFolder, list_runs

CONFIG, PLUGIN, CONTRIBUTION, CHECKPOINT = 2, 3, 4, 5
"""Exit codes by kind of error."""

HEAD = """\
import numpy as np
from budwood.api import LossTerm, RewardTerm, hookimpl

class Plugin:
"""
LOSS_TERM = """
    @hookimpl
    def loss_terms(self, run):
        return LossTerm("contrast", lambda inputs: 0.0)
"""
READS_Q_VALUES = """
    @hookimpl
    def loss_terms(self, run):
        return LossTerm("contrast", lambda inputs: inputs.q_values.mean(), needs=frozenset({"log_prob", "q_values"}))
"""
POLICY = """
    @hookimpl
    def build_policy(self, run):
        return lambda observations, actions: None
"""
ADVANTAGE = """
    @hookimpl
    def advantage(self, run):
        return lambda inputs: inputs.rewards
"""
NO_TERM = """
    @hookimpl
    def reward_terms(self, run):
        return [0.5]
"""
RAISES = """
    @hookimpl
    def callbacks(self, run):
        return [1 / 0]
"""
OPTIONS = """
    @hookimpl
    def config_model(self):
        from budwood.api import Config

        class Options(Config):
            weight: float

        return Options
"""


def term(how: str) -> str:
    return f"""
    @hookimpl
    def reward_terms(self, run):
        return RewardTerm("bend", {how})
"""


@dataclass(frozen=True)
class Case:
    """``text`` is what is said; in it, ``{file}`` and ``{output}`` stand for their paths in the test."""

    text: str
    code: int
    settings: tuple[str, ...] = ()
    yaml: str | None = None
    plugins: dict[str, str] = field(default_factory=dict)
    """Name -> body of the class ``Plugin``; each is installed as budwood-NAME 1.0."""
    requires: str = "budwood>=0.1,<0.2"


TRAINER = "trainer: {kind: sb3, algo: ppo, total_timesteps: 64}"
ENV = "env: {id: Pendulum-v1}"

BEFORE_TRAINING = {
    "unknown key": Case(
        "{file}: the configuration has 3 problems.\n"
        "  - trainer.total_timestep (line 1): unknown key (did you mean 'total_timesteps'?) [budwood-sb3 0.1.0]\n"
        "  - sead (line 3): unknown key (did you mean 'seed'?)\n"
        "  - evaluation.episode (override): unknown key (did you mean 'episodes'?)",
        CONFIG,
        ("evaluation.episode=3",),
        yaml=f"{TRAINER[:-1]}, total_timestep: 5}}\n{ENV}\nsead: 3\n",
    ),
    "unknown argument of the trainer": Case(
        "{file}: the configuration has 1 problem.\n"
        "  - trainer (line 2): PPO takes no argument 'n_step' (did you mean 'n_steps'?) [budwood-sb3 0.1.0]",
        CONFIG,
        ("trainer.args={n_step: 5}",),
    ),
    "unknown option of a plugin": Case(
        "{file}: the configuration has 2 problems.\n"
        "  - plugins.curl.weight (override): is required [budwood-curl 1.0]\n"
        "  - plugins.curl.wait (override): unknown key (did you mean 'weight'?) [budwood-curl 1.0]",
        CONFIG,
        ("plugins.curl={wait: 2.0}",),
        plugins={"curl": OPTIONS},
    ),
    "wrong type": Case(
        "{file}: the configuration has 3 problems.\n"
        "  - trainer.total_timesteps (line 1): expected a whole number, got the text 'many' [budwood-sb3 0.1.0]\n"
        "  - env.n_envs (line 2): expected a whole number, got a list [budwood-sb3 0.1.0]\n"
        "  - seed (line 3): expected a whole number, got 1.5",
        CONFIG,
        yaml=f"{TRAINER.replace('64', 'many')}\n{ENV[:-1]}, n_envs: [4]}}\nseed: 1.5\n",
    ),
    "unknown plugin": Case(
        "{file}: the configuration has 1 problem.\n"
        "  - plugins.curl (line 3): no installed plugin is called 'curl'. "
        "If it is published under the usual name: pip install budwood-curl",
        CONFIG,
        yaml=f"{TRAINER}\n{ENV}\nplugins: {{curl: {{}}}}\n",
    ),
    "misspelt plugin": Case(
        "{file}: the configuration has 1 problem.\n"
        "  - plugins.reward_shapign (override): no installed plugin is called 'reward_shapign'. "
        "Did you mean 'reward_shaping'?",
        CONFIG,
        ("plugins.reward_shapign={}",),
    ),
    "unknown adapter": Case(
        "{file}: the configuration has 1 problem.\n"
        "  - trainer.kind (override): no installed adapter is called 'rllib'. "
        "If it is published under the usual name: pip install budwood-rllib",
        CONFIG,
        ("trainer.kind=rllib",),
    ),
    "plugin for another API version": Case(
        "{file}: the configuration has 1 problem.\n"
        "  - plugins.curl (override): it needs budwood>=7,<8, and this is budwood 0.1.0. "
        "pip install -U budwood-curl budwood [budwood-curl 1.0]",
        CONFIG,
        ("plugins.curl={}",),
        plugins={"curl": "    raise RuntimeError('must not be imported')"},
        requires="budwood>=7,<8",
    ),
    "two plugins claim one seam": Case(
        "plugins: advantage is claimed by both curl (budwood-curl 1.0) and twirl (budwood-twirl 1.0). "
        "Only one plugin may own it: remove one of them from the run.",
        PLUGIN,
        ("plugins={curl: {}, twirl: {}}",),
        plugins={"curl": ADVANTAGE, "twirl": ADVANTAGE},
    ),
    "loss term on DQN": Case(
        "plugins.curl: trainer DQN cannot bind loss term curl.contrast: the update of DQN has no place for it: "
        "PPO, A2C and SAC have. Asked for by budwood-curl 1.0. "
        "Choose another trainer, or switch this contribution off.",
        PLUGIN,
        ("trainer={kind: sb3, algo: dqn, total_timesteps: 64}", "plugins.curl={}"),
        plugins={"curl": LOSS_TERM},
    ),
    "neutral policy on SAC": Case(
        "plugins.curl: trainer SAC cannot bind policy <lambda>: the networks of SAC are an actor and critics, "
        "not one actor-critic policy. Asked for by budwood-curl 1.0. "
        "Choose another trainer, or switch this contribution off.",
        PLUGIN,
        ("trainer={kind: sb3, algo: sac, total_timesteps: 64}", "plugins.curl={}"),
        plugins={"curl": POLICY},
    ),
    "loss input that the trainer does not offer": Case(
        "plugins.curl: loss term curl.contrast needs `q_values`; trainer PPO offers actions, advantages, clip_range, "
        "entropy, log_prob, obs, old_log_prob, old_values, policy, returns, share, values. Asked for by budwood-curl 1.0. "
        "Choose a trainer that offers it, or switch this contribution off.",
        PLUGIN,
        ("plugins.curl={}",),
        plugins={"curl": READS_Q_VALUES},
    ),
    "two misfits at once": Case(
        "2 contributions do not fit.\n"
        "  - plugins.curl: trainer SAC cannot bind policy <lambda>: the networks of SAC are an actor and critics, "
        "not one actor-critic policy. Asked for by budwood-curl 1.0. "
        "Choose another trainer, or switch this contribution off.\n"
        "  - plugins.twirl: trainer SAC cannot bind advantage <lambda>: SAC learns from a replay buffer and computes no "
        "advantages. Asked for by budwood-twirl 1.0. Choose another trainer, or switch this contribution off.",
        PLUGIN,
        ("trainer={kind: sb3, algo: sac, total_timesteps: 64}", "plugins={twirl: {}, curl: {}}"),
        plugins={"curl": POLICY, "twirl": ADVANTAGE},
    ),
    "a hook that returns something else": Case(
        "plugins.curl: its hook reward_terms returned a value of type float, expected RewardTerm. "
        "Asked for by budwood-curl 1.0. Report this to its author.",
        PLUGIN,
        ("plugins.curl={}",),
        plugins={"curl": NO_TERM},
    ),
    "a hook that raises": Case(
        "plugins.curl: its hook callbacks raised ZeroDivisionError: division by zero. "
        "Asked for by budwood-curl 1.0. Run again with --debug to see where.",
        PLUGIN,
        ("plugins.curl={}",),
        plugins={"curl": RAISES},
    ),
    "a plugin that raises when it is imported": Case(
        "plugins.curl: importing offered_budwood_curl:Plugin failed: RuntimeError: no luck. "
        "Asked for by budwood-curl 1.0. Reinstall it, or run: budwood plugin check curl --debug.",
        PLUGIN,
        ("plugins.curl={}",),
        plugins={"curl": "    raise RuntimeError('no luck')"},
    ),
    "unknown environment": Case(
        "env.id: no environment is called 'Pendulumm-v1'. Asked for by budwood-sb3 0.1.0. "
        "Did you mean 'Pendulum-v1'? A class of your own is written module:Class.",
        CONFIG,
        ("env.id=Pendulumm-v1",),
    ),
    "unknown environment of a module": Case(
        "env.id: budwood_reward_shaping.reach_budget neither defines nor registers 'ReachBuget'. "
        "Asked for by budwood-sb3 0.1.0. Did you mean 'ReachBudget'? A class of your own is written module:Class.",
        CONFIG,
        ("env.id=budwood_reward_shaping.reach_budget:ReachBuget",),
    ),
    "actions that the algorithm does not take": Case(
        "trainer.algo: DQN takes Discrete actions, and Pendulum-v1 has Box actions. Asked for by budwood-sb3 0.1.0. "
        "For Box actions use ppo, a2c, sac, td3, ddpg, recurrent_ppo, trpo, tqc, crossq, ars.",
        CONFIG,
        yaml=f"{TRAINER.replace('ppo', 'dqn')}\n{ENV}\n",
    ),
    "unreadable YAML": Case(
        "{file}, line 2, column 7: this is not readable YAML: mapping values are not allowed here. "
        "Check the indentation, and write a text that contains ': ' in quotes.",
        CONFIG,
        yaml="name: x\n  seed: 3\n",
    ),
    "a tag that tries to run code": Case(
        "{file}, line 3: the tag '!!python/object/apply:os.system' asks for Python code to be run, "
        "and a configuration never runs code. Remove the tag and write the value itself.",
        CONFIG,
        yaml=f"{TRAINER}\n{ENV}\nname: !!python/object/apply:os.system ['touch escaped']\n",
    ),
    "a tag in an override": Case(
        "{file}: an override cannot be applied.\n"
        "  - name=!!python/name:os.system: the tag '!!python/name:os.system' asks for Python code to be run, "
        "and a configuration never runs code. Remove the tag and write the value itself",
        CONFIG,
        ("name=!!python/name:os.system",),
    ),
    "an error of several lines is told in one": Case(
        "plugins.curl: its hook callbacks raised ValueError: first second. "
        "Asked for by budwood-curl 1.0. Run again with --debug to see where.",
        PLUGIN,
        ("plugins.curl={}",),
        plugins={"curl": RAISES.replace("return [1 / 0]", "raise ValueError('first\\nsecond')")},
    ),
    "no such file": Case("{file}: there is no such file. Check the path.", CONFIG, yaml=""),
    "a run that is not there to start from": Case(
        "init_from: no run 'nothing' under {output}. "
        "budwood runs lists them; a run elsewhere is named by its folder, or set BUDWOOD_OUTPUT.",
        CONFIG,
        ("init_from=nothing",),
    ),
}

FIRST_STEP = "plugins.curl: reward term curl.bend"
BY_CURL = "Asked for by budwood-curl 1.0."

IN_TRAINING = {
    "missing info key": Case(
        f"{FIRST_STEP} reads the info key 'height', which environment 0 does not give. {BY_CURL} "
        "It gives effort, speed, x.",
        CONTRIBUTION,
        plugins={"curl": term("info_key='height'")},
    ),
    "missing info key of a function": Case(
        f"{FIRST_STEP} cannot be computed: the environment gives no info key 'height'; "
        f"it gives effort, speed, x. {BY_CURL}",
        CONTRIBUTION,
        plugins={"curl": term("fn=lambda batch: batch.info('height')")},
    ),
    "NaN": Case(
        f"{FIRST_STEP} is nan in environment 1. {BY_CURL} A term must be a finite number at every step.",
        CONTRIBUTION,
        plugins={"curl": term("fn=lambda batch: np.where([False, True], np.nan, batch.rewards)")},
    ),
    "wrong shape": Case(
        f"{FIRST_STEP} returned shape (2, 3), and 2 environments need (2,). {BY_CURL}",
        CONTRIBUTION,
        plugins={"curl": term("fn=lambda batch: batch.obs")},
    ),
    "a term that raises": Case(
        f"{FIRST_STEP} raised KeyError: 'nothing'. {BY_CURL} Run again with --debug to see where.",
        CONTRIBUTION,
        plugins={"curl": term("fn=lambda batch: {}['nothing']")},
    ),
}


def write(case: Case, file: Path, offer: Any) -> None:
    if case.yaml is not None:
        file.write_text(case.yaml)
        if not case.yaml:
            file.unlink()
    for name, body in case.plugins.items():
        offer(name, HEAD + body, case.requires)


def assert_said(case: Case, budwood: Callable[..., Any], file: Path, output: Path) -> None:
    """The text, the exit code and the object of ``--json`` are those of the case."""
    expected = case.text.replace("{file}", str(file)).replace("{output}", str(output))
    said = budwood("run", file, *case.settings)
    assert said.error == expected
    assert said.code == case.code
    assert said.out == ""
    said = budwood("run", file, *case.settings, "--json")
    assert said.error == expected
    assert said.code == case.code
    error = said.json["error"]
    assert error.keys() == {"type", "what", "where", "who", "do", "problems"}
    parts = {key: tuple(value) if key == "problems" else value for key, value in error.items() if key != "type"}
    assert str(BudwoodError(**parts)) == expected


@pytest.mark.parametrize("name", BEFORE_TRAINING)
def test_before_training(name: str, budwood: Callable[..., Any], small: Path, output: Path, offer: Any) -> None:
    case = BEFORE_TRAINING[name]
    write(case, small, offer)
    assert_said(case, budwood, small, output)
    assert list(output.glob("*")) == [], "nothing half-made"
    assert not (output.parent / "escaped").exists()


@pytest.mark.parametrize("name", IN_TRAINING)
def test_in_training(name: str, budwood: Callable[..., Any], small: Path, output: Path, offer: Any) -> None:
    case = IN_TRAINING[name]
    write(case, small, offer)
    assert_said(Case(case.text, case.code, ("plugins.curl={}",)), budwood, small, output)
    for run in list_runs(output):
        assert (run.status["status"], run.status["error"]) == ("failed", case.text)
        assert not list(run.checkpoints.glob("*"))


LATE_NAN = """\
    seen = 0

    @hookimpl
    def reward_terms(self, run):
        def bend(batch):
            self.seen += len(batch.rewards)
            return np.full(len(batch.rewards), np.nan if self.seen > 300 else 0.0)

        return RewardTerm("bend", fn=bend)
"""


def test_an_error_in_training_leaves_the_last_checkpoint(
    budwood: Callable[..., Any], small: Path, output: Path, offer: Any
) -> None:
    offer("curl", HEAD + LATE_NAN)
    said = budwood("run", small, "plugins.curl={}")
    assert (
        said.error == f"{FIRST_STEP} is nan in environment 0. {BY_CURL} A term must be a finite number at every step."
    )
    assert said.code == CONTRIBUTION
    (run,) = list_runs(output)
    path, damaged = Checkpoints(run.checkpoints, 3).latest() or (Path(), [])
    assert (path.name, damaged) == ("step_000000000256", [])
    assert not list(run.checkpoints.glob(".tmp*"))
    assert (run.status["status"], run.status["steps"]) == ("failed", 256)
    assert budwood("eval", run.folder, "--episodes", "1").code == 0
    (row,) = budwood("runs", "--json").json
    assert (row["status"], row["steps"]) == ("failed", 256)


# ---- what this machine lacks -----------------------------------------------------------------------------------------


@pytest.fixture
def no_mujoco(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in [name for name in sys.modules if name.startswith(("mujoco", "gymnasium.envs.mujoco"))]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "mujoco", None)


@pytest.mark.usefixtures("no_mujoco")
def test_missing_mujoco_extra(budwood: Callable[..., Any], small: Path, output: Path) -> None:
    said = budwood("run", small, "env.id=HalfCheetah-v5")
    assert said.error == (
        'env.id: HalfCheetah-v5 cannot be made: MuJoCo is not installed, run `pip install "gymnasium[mujoco]"`. '
        'Asked for by budwood-sb3 0.1.0. pip install "budwood-sb3[mujoco]".'
    )
    assert said.code == CONFIG
    assert list(output.glob("*")) == []


def test_output_folder_cannot_be_written(
    budwood: Callable[..., Any], small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Portable: what the system would answer is made up."""
    target = tmp_path / "sealed"
    real = Path.touch

    def touch(path: Path, *arguments: Any, **options: Any) -> None:
        if path.parent == target:
            raise PermissionError(13, "Permission denied", str(path))
        real(path, *arguments, **options)

    monkeypatch.setattr(Path, "touch", touch)
    said = budwood("run", small, f"output={target}")
    assert said.error == f"{target}: this folder cannot be written to. Choose another one with output=FOLDER."
    assert said.code == CONFIG
    assert list(target.iterdir()) == []


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    """A folder that even root cannot write to, with one finished run's worth of space."""
    target = tmp_path / "sealed"
    target.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", target], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("a read-only file system cannot be mounted here; the portable test covers the message")
    yield target
    subprocess.run(["umount", target], check=True)


def test_output_folder_is_on_a_read_only_file_system(budwood: Callable[..., Any], small: Path, read_only: Path) -> None:
    for target in (read_only, read_only / "deeper"):
        said = budwood("run", small, f"output={target}")
        assert said.error == f"{target}: this folder cannot be written to. Choose another one with output=FOLDER."
        assert said.code == CONFIG


def test_output_is_a_file(budwood: Callable[..., Any], small: Path) -> None:
    said = budwood("run", small, f"output={small}")
    assert said.error == f"output: {small} is not a folder. Choose another one."
    assert said.code == CONFIG


# ---- a run that is there ---------------------------------------------------------------------------------------------


def test_a_checkpoint_from_another_configuration(budwood: Callable[..., Any], small: Path, output: Path) -> None:
    assert budwood("run", small, "trainer.total_timesteps=128").code == 0
    (run,) = list_runs(output)
    before = contents(run)
    for settings, changed in (
        (("seed=1",), "seed"),
        (
            ("trainer.args.policy_kwargs.net_arch=[4]", "env.n_envs=4"),
            "trainer.args.policy_kwargs.net_arch, env.n_envs",
        ),
        (("plugins.reward_shaping={terms: [speed], outer: null}",), "plugins"),
    ):
        said = budwood("resume", run.folder, *settings)
        assert said.error == (
            f"{run.checkpoints}/step_000000000128.1: this checkpoint comes from another configuration: {changed} changed. "
            "Undo the change, or start a new run with init_from=RUN."
        )
        assert said.code == CHECKPOINT
    assert contents(run) == before, "a refused resume touches nothing"


def contents(run: RunFolder) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in run.folder.rglob("*") if path.is_file()}


def test_all_checkpoints_damaged(budwood: Callable[..., Any], small: Path, output: Path) -> None:
    assert budwood("run", small, "trainer.total_timesteps=128", "checkpoint.every=null").code == 0
    (run,) = list_runs(output)
    (newest,) = run.checkpoints.iterdir()
    (newest / "state.json").unlink()
    for command in ("resume", "eval", "export"):
        said = budwood(command, run.folder)
        assert said.error == (
            f"{run.checkpoints}: every checkpoint is damaged ({newest.name}: state.json is missing). "
            "Restore the folder from a backup, or start the run again."
        )
        assert said.code == CHECKPOINT


def test_no_such_run(budwood: Callable[..., Any], small: Path, output: Path) -> None:
    for command in ("resume", "eval", "export"):
        said = budwood(command, "elsewhere")
        assert said.error == (
            f"no run 'elsewhere' under {output}. "
            "budwood runs lists them; a run elsewhere is named by its folder, or set BUDWOOD_OUTPUT."
        )
        assert said.code == CONFIG


# ---- a broken plugin stops nobody else ---------------------------------------------------------------------------------


def test_a_plugin_that_cannot_be_imported_stops_no_other_command(
    budwood: Callable[..., Any], small: Path, output: Path, offer: Any
) -> None:
    offer("curl", "raise RuntimeError('no luck')")
    listed = {row["name"]: row for row in budwood("plugins", "--json").json}
    assert listed["curl"]["version"] == "1.0"
    hooks = {row["name"]: row for row in budwood("plugins", "--hooks", "--json").json}
    assert hooks["curl"]["error"].startswith(
        "plugins.curl: importing offered_budwood_curl:Plugin failed: RuntimeError: no luck. Asked for by budwood-curl 1.0."
    )
    assert "build_trainer" in hooks["sb3"]["hooks"]
    assert budwood("explain", small).code == 0
    assert budwood("run", small, "trainer.total_timesteps=64").code == 0
    assert "offered_budwood_curl" not in sys.modules


def test_damaged_metadata_is_named_and_stops_no_other_command(
    budwood: Callable[..., Any], small: Path, output: Path, offer: Any
) -> None:
    info = offer("curl", HEAD + LOSS_TERM)
    (info / "METADATA").write_bytes(b"Name: \xff\xfe\n")
    said = budwood("plugins")
    assert said.code == 0
    assert f"note: {info}: its metadata cannot be read (UnicodeDecodeError" in said.out
    assert "sb3" in said.out
    assert budwood("explain", small).code == 0
    said = budwood("explain", small, "plugins.curl={}")
    assert said.code == CONFIG
    assert f"Not readable: {info}: its metadata cannot be read" in said.error


def test_two_distributions_with_one_name_stop_only_who_uses_it(
    budwood: Callable[..., Any], small: Path, output: Path, offer: Any
) -> None:
    offer("curl", HEAD + LOSS_TERM)
    offer("curl", HEAD + LOSS_TERM, distribution="curl-of-others")
    assert budwood("explain", small).code == 0
    said = budwood("run", small, "plugins.curl={}")
    assert said.code == CONFIG
    assert said.error == (
        f"{small}: the configuration has 1 problem.\n"
        "  - plugins.curl (override): the name 'curl' is provided by two distributions: "
        "budwood-curl 1.0 and curl-of-others 1.0. Uninstall one of them"
    )
