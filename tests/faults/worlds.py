"""Small runs of every adapter to injure, and when two runs are the same run."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from budwood import journal
from budwood.checkpoint import Checkpoints
from budwood.folder import RunFolder

ROOT = Path(__file__).parents[2]
COMMON = {"seed": 1, "device": "cpu", "tracking": {"enabled": False}, "checkpoint": {"every": 1, "keep": 2}}


def sb3(_files: Path) -> dict[str, Any]:
    """Proximal policy optimisation under a search for reward weights: eight updates, a checkpoint after every second."""
    return {
        **COMMON,
        "name": "sb3",
        "trainer": {
            "kind": "sb3",
            "algo": "ppo",
            "total_timesteps": 2048,
            "args": {"n_steps": 32, "batch_size": 64, "n_epochs": 2, "policy_kwargs": {"net_arch": [16]}},
        },
        "env": {"id": "budwood_reward_shaping.reach_budget:ReachBudget-v0", "n_envs": 8},
        "plugins": {
            "reward_shaping": {
                "terms": ["speed", "effort"],
                "criteria": ["distance"],
                "outer": {"steps": 4, "inner_iterations": 2},
            }
        },
        "evaluation": {"every": 1024, "episodes": 2},
        "checkpoint": {"every": 512, "keep": 2},
    }


def sb3_processes(files: Path) -> dict[str, Any]:
    """The same with two environments in processes of their own."""
    made = sb3(files)
    made["env"] |= {"vec": "subproc", "n_envs": 2}
    made["trainer"]["total_timesteps"] = 512
    return {**made, "name": "sb3-processes", "checkpoint": {"every": 128, "keep": 2}}


def trl(files: Path) -> dict[str, Any]:
    """GRPO of a random two-layer Llama that is rewarded for the form of its answers."""
    sys.path.insert(0, str(ROOT / "adapters" / "trl" / "tests"))
    from tiny import byte_tokenizer, rows
    from transformers import LlamaConfig, LlamaForCausalLM

    model, train = files / "llama", files / "rows.jsonl"
    if not model.exists():
        import torch

        torch.manual_seed(0)
        tokenizer = byte_tokenizer()
        sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
        ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
        LlamaForCausalLM(
            LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=128, **sizes, **ids)
        ).save_pretrained(model)
        tokenizer.save_pretrained(model)
        talk = [{"prompt": [{"role": "user", "content": row["prompt"]}]} for row in rows("grpo")]
        train.write_text("".join(json.dumps(row) + "\n" for row in talk))
    return {
        **COMMON,
        "name": "trl",
        "trainer": {
            "kind": "trl",
            "algo": "grpo",
            "model": str(model),
            "total_steps": 8,
            "rewards": {"think_format_reward": 1.0},
            "args": {
                "per_device_train_batch_size": 4,
                "num_generations": 4,
                "max_completion_length": 6,
                "learning_rate": 1e-2,
                "logging_steps": 1,
            },
        },
        "dataset": {"train": str(train)},
        "evaluation": {"every": None, "episodes": 0},
        "checkpoint": {"every": 2, "keep": 2},
    }


def lerobot(files: Path) -> dict[str, Any]:
    """A small ACT that imitates three short episodes."""
    sys.path.insert(0, str(ROOT / "adapters" / "lerobot" / "tests"))
    from robots import ACT, ARGS, write_dataset

    root = files / "middle"
    if not root.exists():
        write_dataset(root)
    return {
        **COMMON,
        "name": "lerobot",
        "trainer": {"kind": "lerobot", "algo": "offline", "total_steps": 8, "policy": dict(ACT), "args": dict(ARGS)},
        "dataset": {"repo_id": "local/middle", "root": str(root)},
        "evaluation": {"every": None, "episodes": 0},
        "checkpoint": {"every": 2, "keep": 2},
    }


def sb3_two(files: Path) -> dict[str, Any]:
    """The environments shared by two processes."""
    return {**sb3(files), "name": "sb3-two"}


def sb3_mlflow(files: Path) -> dict[str, Any]:
    """Tracked by an MLflow server, whose address the drill gives."""
    return {**sb3(files), "name": "sb3-mlflow", "tracking": {"enabled": True}}


def trl_two(files: Path) -> dict[str, Any]:
    return {**trl(files), "name": "trl-two"}


def lerobot_two(files: Path) -> dict[str, Any]:
    made = lerobot(files)
    made["trainer"]["args"]["batch_size"] = 6
    return {**made, "name": "lerobot-two"}


WORLDS: Mapping[str, Callable[[Path], dict[str, Any]]] = {
    "sb3": sb3,
    "sb3-processes": sb3_processes,
    "sb3-two": sb3_two,
    "sb3-mlflow": sb3_mlflow,
    "trl": trl,
    "trl-two": trl_two,
    "lerobot": lerobot,
    "lerobot-two": lerobot_two,
}
PROCESSES: Mapping[str, int] = {"sb3-two": 2, "trl-two": 2, "lerobot-two": 2}
"""World -> how many processes it is launched in."""


def is_clock(name: str) -> bool:
    """Whether a number of this name measures time, and so is another one in every run."""
    return bool(
        re.fullmatch(
            r"t|t_start|episode_times|time/.*|(.*[/_])?(start_time|step_time|seconds|runtime|fps|per_second|s)", name
        )
    )


def differences(left: Any, right: Any, path: str = "") -> Iterator[str]:
    """Where two state trees are not the same to the last bit; wall-clock times do not count."""
    if is_clock(path.rpartition(".")[2]):
        return
    if isinstance(left, Mapping) and isinstance(right, Mapping):
        for key in left.keys() | right.keys():
            yield from differences(left.get(key, "absent"), right.get(key, "absent"), f"{path}.{key}")
    elif isinstance(left, (list, tuple)) and isinstance(right, (list, tuple)) and len(left) == len(right):
        for index, (a, b) in enumerate(zip(left, right, strict=True)):
            yield from differences(a, b, f"{path}.{index}")
    elif hasattr(left, "numpy") or isinstance(left, np.ndarray):
        a, b = np.asarray(left), np.asarray(right)
        if a.dtype != b.dtype or a.shape != b.shape or a.tobytes() != b.tobytes():
            yield path
    elif left != right and not (left != left and right != right):
        yield f"{path}: {left!r} and {right!r}"


def metrics(run: RunFolder) -> list[tuple[int, dict[str, float]]]:
    """Every number that the journal holds but those that measure time."""
    return [
        (event.step, {key: value for key, value in event.data.items() if not is_clock(key)})
        for event in journal.read(run.folder)
        if event.kind == "metrics"
    ]


def state(run: RunFolder) -> Any:
    found = Checkpoints(run.checkpoints, 2).latest()
    assert found is not None
    return Checkpoints(run.checkpoints, 2).load(found[0])[0]


def apart(one: RunFolder, other: RunFolder) -> list[str]:
    """What the second run lost or changed against the first: nothing, if it is the same run."""
    found = [f"state{place}" for place in differences(state(one), state(other))]
    if repr(metrics(one)) != repr(metrics(other)):
        found.append("numbers of the journal")
    return found
