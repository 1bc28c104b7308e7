"""Whole runs through ``budwood.run``: journal, checkpoints, report and export; killed and resumed; shaped rewards searched."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny import ARGS, numbers
from transformers import AutoModelForCausalLM

import budwood
from budwood import journal
from budwood.api import CheckpointError, ConfigError, ContributionError
from budwood.checkpoint import Checkpoints
from budwood.planning import explain
from budwood.runs import evaluate


@pytest.fixture
def config(model_folder: Path, rows_file: Any, tmp_path: Path) -> Any:
    def make(algo: str, steps: int = 4, **changes: Any) -> dict[str, Any]:
        made = {
            "name": f"tiny-{algo}",
            "seed": 3,
            "device": "cpu",
            "trainer": {
                "kind": "trl",
                "algo": algo,
                "model": str(model_folder),
                "total_steps": steps,
                "args": dict(ARGS[algo]),
            },
            "dataset": {"train": str(rows_file(algo)), "eval": str(rows_file(algo, 8))},
            "plugins": {"words": None} if algo in ("grpo", "rloo") else {},
            "evaluation": {"every": 2},
            "checkpoint": {"every": 2},
            "tracking": {"enabled": False},
            "output": str(tmp_path / "runs"),
        }
        for key, value in changes.items():
            made[key] = {**made.get(key, {}), **value} if key != "plugins" and isinstance(value, dict) else value
        return made

    return make


def test_a_run_leaves_a_journal_a_report_and_a_model_that_loads(
    config: Any, words: None, capfd: pytest.CaptureFixture[str]
) -> None:
    result = budwood.run(config("grpo"))
    assert capfd.readouterr() == ("", ""), "no bars of transformers, datasets and TRL"
    assert result.status == "finished"
    history = journal.history(Path(result.paths["folder"]))
    assert history["train/loss"][0] == [1, 2, 3, 4]
    assert history["eval/loss"][0] == [2, 4]
    assert set(history) >= {"train/reward", "train/rewards/words.vowels/mean", "eval/rewards/words.brief/mean"}
    assert "words.vowels" in Path(result.paths["report"]).read_text()
    exported = Path(result.paths["native"])
    assert json.loads((exported.parent / "rewards.json").read_text()) == [
        {"name": "words.vowels", "declared_weight": 1.0}, {"name": "words.brief", "declared_weight": 0.5},
    ]  # fmt: skip
    loaded = AutoModelForCausalLM.from_pretrained(exported).state_dict()
    (checkpoint,) = Path(result.paths["checkpoint"]).rglob("*.safetensors")
    saved = {
        name: value for name, value in load_file(checkpoint).items() if "policy" in name and "embed_tokens" in name
    }
    assert any(torch.equal(value, loaded["model.embed_tokens.weight"]) for value in saved.values())
    assert not list(Path(result.paths["folder"]).rglob("*.pt")), "nothing is pickled"
    assert not list(Path(result.paths["folder"]).rglob("*.bin"))


PATIENCE_SECONDS = 300
"""A fork of a process with threads may hang; a test that fails is better than one that never ends."""


def in_child(work: Any) -> int:
    """Run ``work`` in a fork, so that heavy imports are paid once; the wait status."""
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    give_up = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < give_up:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return status
        time.sleep(0.1)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    raise AssertionError(f"a fork of this process was not done after {PATIENCE_SECONDS} s")


@pytest.mark.parametrize("algo", ["grpo", "dpo"])
def test_killed_and_resumed_it_is_the_run_that_was_never_killed(
    config: Any, words: None, algo: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    accumulated = {"args": {**ARGS[algo], **({"steps_per_generation": 4} if algo == "grpo" else {})}}
    given = config(algo, steps=6, trainer=accumulated, plugins={"words": None} if algo == "grpo" else {})
    whole = budwood.run({**given, "name": "whole"})

    def killed() -> None:
        if algo == "grpo":
            os.environ["KILL_AT"] = "5"
        else:
            from budwood_trl.bridge import Bridge

            at = Bridge.on_step_begin

            def die(self: Any, args: Any, state: Any, control: Any, **others: Any) -> None:
                at(self, args, state, control, **others)
                if state.global_step == 5:
                    os.kill(os.getpid(), signal.SIGKILL)

            monkeypatch.setattr(Bridge, "on_step_begin", die)
        budwood.run({**given, "name": "cut"})

    assert os.WTERMSIG(in_child(killed)) == signal.SIGKILL
    (folder,) = [path for path in (Path(given["output"])).iterdir() if path.name.startswith("cut")]
    assert not (folder / "export").exists()
    again = budwood.resume(str(folder))
    assert again.status == "finished"
    models = [load_file(Path(result.paths["native"]) / "model.safetensors") for result in (whole, again)]
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])
    logs = [journal.history(Path(result.paths["folder"])) for result in (whole, again)]
    assert numbers([dict(logs[0])]) == numbers([dict(logs[1])])


def test_more_steps_are_trained_on_and_a_finished_run_says_so(config: Any) -> None:
    constant = {"args": {**ARGS["sft"], "lr_scheduler_type": "constant"}}
    long = budwood.run(config("sft", steps=6, trainer=constant, name="long"))
    short = budwood.run(config("sft", steps=4, trainer=constant, name="short"))
    folder = short.paths["folder"]
    with pytest.raises(ConfigError, match=r"this run is finished, at 4 steps.*trainer\.total_steps=8"):
        budwood.resume(folder)
    more = budwood.resume(folder, ["trainer.total_steps=6"])
    assert more.notes == [f"continuing from {Path(short.paths['checkpoint']).name}"]
    models = [load_file(Path(result.paths["native"]) / "model.safetensors") for result in (long, more)]
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])


def test_another_length_under_a_schedule_that_depends_on_it_is_told(config: Any) -> None:
    short = budwood.run(config("sft", steps=2))
    more = budwood.resume(short.paths["folder"], ["trainer.total_steps=3"])
    assert more.notes[1:] == [
        "The learning rate's schedule, linear, depends on the length of the run: up to here it was that of 2 steps, from "
        "here on it is that of 3."
    ]


def test_a_checkpoint_that_lacks_a_key_is_one_paragraph(config: Any) -> None:
    written = budwood.run(config("sft", steps=2))
    folder = Path(written.paths["folder"])
    store = Checkpoints(folder / "checkpoints", 1)
    state, meta = store.load(Path(written.paths["checkpoint"]))
    del state["trainer"]["first"]
    path = store.save(2, state, meta)
    with pytest.raises(CheckpointError) as caught:
        budwood.resume(written.paths["folder"], ["trainer.total_steps=3"])
    assert str(caught.value) == (
        f"{path}: the checkpoint has no 'first': another version wrote it, or another trainer. Install what the run was "
        "trained with, which its versions.json names, or start a new run with init_from=RUN."
    )
    del state["trainer"]["policy"]
    store.save(2, state, meta)
    with pytest.raises(CheckpointError, match="the checkpoint has no 'policy'"):
        budwood.run(config("sft", steps=2, init_from=written.paths["folder"]))


def test_a_run_starts_from_anothers_policy(config: Any) -> None:
    first = budwood.run(config("sft", name="first"))
    warm = budwood.run(config("sft", steps=1, name="warm", init_from=first.paths["folder"]))
    cold = budwood.run(config("sft", steps=1, name="cold"))
    done = (first, warm, cold)
    assert [result.status for result in done] == ["finished"] * 3, [result.notes for result in done]
    losses = [journal.history(Path(result.paths["folder"]))["train/loss"][1][0] for result in (warm, cold)]
    assert losses[0] < losses[1]


def test_interrupted_before_its_first_step_it_says_so_and_goes_on(config: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from budwood_trl.bridge import Bridge

    given = config("sft", steps=2)
    whole = budwood.run(given)
    began = Bridge.on_train_begin

    def terminated(self: Any, *arguments: Any, **others: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        began(self, *arguments, **others)

    with monkeypatch.context() as patched:
        patched.setattr(Bridge, "on_train_begin", terminated)
        cut = budwood.run(given)
    assert (cut.status, cut.notes) == ("interrupted", ["interrupted by SIGTERM"])
    assert "train/loss" not in journal.history(Path(cut.paths["folder"]))
    again = budwood.resume(cut.paths["folder"])
    assert again.status == "finished"
    models = [load_file(Path(result.paths["native"]) / "model.safetensors") for result in (whole, again)]
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])


@pytest.mark.parametrize("algo", ["dpo", "sft", "reward", "kto"])
def test_a_trainer_without_episodes_is_evaluated_by_its_own_numbers(config: Any, algo: str, rows_file: Any) -> None:
    trained = budwood.run(config(algo, steps=2))
    history = journal.history(Path(trained.paths["folder"]))
    numbers, checkpoint = evaluate(trained.paths["folder"])
    assert str(checkpoint) == trained.paths["checkpoint"]
    assert numbers["eval/loss"] == pytest.approx(history["eval/loss"][1][-1], abs=1e-6)
    assert {name for name in history if name.startswith("eval/")} == set(numbers)
    other, _ = evaluate(trained.paths["folder"], overrides=[f"dataset.eval={rows_file(algo, 5)}"])
    assert other["eval/loss"] != numbers["eval/loss"]
    with pytest.raises(ContributionError, match=r"has no episodes.*dataset\.eval=FILE; budwood eval takes that too"):
        evaluate(trained.paths["folder"], overrides=["dataset.eval=null"])


def test_a_trainer_of_completions_has_both(config: Any, words: None) -> None:
    trained = budwood.run(config("grpo", steps=1))
    numbers, _ = evaluate(trained.paths["folder"])
    assert "eval/reward" in numbers
    episodes, _ = evaluate(trained.paths["folder"], episodes=3)
    assert len(episodes.returns) == 3
    without_rows, _ = evaluate(trained.paths["folder"], overrides=["dataset.eval=null"])
    assert len(without_rows.returns) == 20


def test_lora_trains_and_exports_the_adapter(config: Any) -> None:
    peft = {"peft": {"r": 2, "target_modules": ["q_proj", "v_proj"]}}
    result = budwood.run(config("sft", trainer=peft))
    assert (Path(result.paths["native"]) / "adapter_model.safetensors").exists()
    with pytest.raises(ConfigError, match=r"LoraConfig has no field 'lora_alfa' \(did you mean 'lora_alpha'"):
        budwood.run(config("sft", trainer={"peft": {"lora_alfa": 3}}))


def test_trls_own_rewards_by_name(config: Any, tmp_path: Path) -> None:
    own = {"trainer": {"rewards": {"think_format_reward": 2.0}}, "plugins": {}}
    with pytest.raises(
        ConfigError, match="think_format_reward of TRL read conversations, and the prompts of the rows are text"
    ):
        budwood.run(config("grpo", **own))
    talk = tmp_path / "talk.jsonl"
    talk.write_text("".join(json.dumps({"prompt": [{"role": "user", "content": f"{i}?"}]}) + "\n" for i in range(8)))
    result = budwood.run(config("grpo", steps=1, **own, dataset={"train": str(talk), "eval": None}))
    assert result.metrics["train/rewards/trl.think_format_reward/mean"] == 0.0


def test_what_trl_refuses_is_one_paragraph(config: Any, words: None) -> None:
    bad = {"args": {**ARGS["grpo"], "num_generations": 3}}
    with pytest.raises(ConfigError, match=r"trainer\.args: GRPOConfig refuses its fields: .*num_generations"):
        budwood.run(config("grpo", trainer=bad))


def test_every_problem_stands_at_its_key_and_cheap_ones_come_first(config: Any, words: None) -> None:
    bad = {"args": {"num_generation": 4, "seed": 1}, "rewards": {"think_reward": 1.0}}
    with pytest.raises(ConfigError) as caught:
        explain(config("grpo", trainer=bad))
    assert [problem.partition(":")[0] for problem in caught.value.problems] == ["trainer.rewards.think_reward"]
    with pytest.raises(ConfigError) as caught:
        explain(config("grpo", trainer={**bad, "rewards": {}}))
    assert [problem.partition(":")[0] for problem in caught.value.problems] == [
        "trainer.args.num_generation",
        "trainer.args.seed",
    ]


def test_a_misspelt_key_is_told_before_trl_is_imported(config: Any, words: None, tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text(json.dumps(config("grpo", evalution={"every": 2})))
    code = (
        "import json, sys, budwood\nfrom budwood.planning import explain\n"
        "try:\n    explain(json.load(open(sys.argv[1])))\nexcept budwood.api.ConfigError as error:\n    print(error)\n"
        "print({'trl', 'transformers', 'torch', 'datasets'} & set(sys.modules))"
    )
    paths = {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "bad.json")],
        capture_output=True, text=True, check=True, env={**os.environ, **paths},
    )  # fmt: skip
    assert "evalution: unknown key (did you mean 'evaluation'?)" in done.stdout
    assert done.stdout.splitlines()[-1] == "set()"


SHAPED = {
    "terms": [{"name": "vowels", "info": "words.vowels"}, {"name": "brief", "info": "words.brief"}],
    "weights": {"scale": None, "initial": {"vowels": 2.0, "brief": 0.5}},
    "outer": None,
}


def test_fixed_weights_of_reward_shaping_drive_reward_funcs(config: Any, words: None) -> None:
    pytest.importorskip("budwood_reward_shaping")
    result = budwood.run(config("grpo", plugins={"words": None, "reward_shaping": SHAPED}))
    history = journal.history(Path(result.paths["folder"]))
    vowels, brief = (history[f"train/rewards/reward_shaping.{name}/mean"][1] for name in ("vowels", "brief"))
    expected = [2.0 * v + 0.5 * b for v, b in zip(vowels, brief, strict=True)]
    assert history["train/reward"][1] == pytest.approx(expected, abs=1e-6)


SEARCHED = {
    **SHAPED,
    "criteria": [{"name": "writes", "source": "words.vowels", "stat": "final", "op": ">=", "threshold": 2.0}],
    "weights": {"scale": None, "w_task": 0.0},
    "outer": {"steps": 4, "inner_steps": 2, "estimator": "score", "samples": 2, "episodes": 4},
}


def test_the_search_over_weights_runs_on_completions(config: Any, words: None) -> None:
    pytest.importorskip("budwood_reward_shaping")
    result = budwood.run(
        config("grpo", steps=10, plugins={"words": None, "reward_shaping": SEARCHED}, evaluation={"every": None})
    )
    history = journal.history(Path(result.paths["folder"]))
    steps, performance = history["reward_shaping/P"]
    assert steps[:4] == [2, 4, 6, 8]
    assert all(0.0 <= value <= 1.0 for value in performance)
    weights = history["reward_shaping/w/vowels"][1]
    assert len(set(weights)) > 1, "the score estimator tries weights on both sides"


def test_explain_says_what_binds_and_trains_nothing(config: Any, words: None) -> None:
    planned = explain(config("grpo"))
    assert [(b.kind, b.name, b.place, b.grade) for b in planned.bindings] == [
        ("completion_rewards", "words.vowels", "reward_funcs", "A"),
        ("completion_rewards", "words.brief", "reward_funcs", "A"),
        ("callbacks", "Killed", "TrainerCallback: between two optimiser steps", "A"),
    ]
