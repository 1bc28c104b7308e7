"""One GPU: with simulation on the CPU beside it, and with everything on it. docs/scaling/devices.csv.

    OMP_NUM_THREADS=1 python tests/benchmarks/devices.py --out docs/scaling/devices.csv       # a GPU and 16 cores, 4 minutes
    OMP_NUM_THREADS=1 python tests/benchmarks/devices.py --device cpu --quick --out here.csv  # the same code without a GPU

PPO on Hopper-v5 (16 environments, 128 steps, minibatches of 512 rows, 5 epochs): the policy on the CPU or on the GPU,
environments in the process of the trainer or in a worker each, and the run in one process or in two that share the GPU.
GRPO has no simulation: SmolLM2-135M with random weights writes 16 completions of 64 tokens a step, and scores them and
learns from them on the device. Every cell is a run of ``budwood run`` or ``budwood launch``; seconds are between two
entries of its journal: the median, and the quartiles as low and high, without the first two. Nothing is downloaded.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from budwood.folder import list_runs

ENVS, STEPS = 16, 128
NETWORKS = {"64 x 2": [64, 64], "1,024 x 3": [1024, 1024, 1024]}
GENERATED = {"per_device_train_batch_size": 16, "num_generations": 8, "max_completion_length": 64}
COLUMNS = (
    "device",
    "training",
    "policy",
    "precision",
    "simulation",
    "processes",
    "unit",
    "per_second",
    "low",
    "high",
    "beside",
)


def ppo(device: str, network: str, simulation: str, steps: int) -> dict[str, Any]:
    args = {"n_steps": STEPS, "batch_size": 512, "n_epochs": 5, "policy_kwargs": {"net_arch": NETWORKS[network]}}
    return {
        "trainer": {"kind": "sb3", "algo": "ppo", "total_timesteps": steps * ENVS * STEPS, "args": args},
        "env": {"id": "Hopper-v5", "n_envs": ENVS, "vec": "dummy" if simulation == "in the trainer" else "subproc"},
        "device": device,
    }


def grpo(device: str, precision: str, steps: int, folder: Path) -> dict[str, Any]:
    rows = folder / "rows.jsonl"
    rows.write_text(
        "".join(json.dumps({"prompt": [{"role": "user", "content": f"{i} + {i + 3} ="}]}) + "\n" for i in range(64))
    )
    return {
        "trainer": {
            "kind": "trl",
            "algo": "grpo",
            "model": str(language_model(folder / "model")),
            "total_steps": steps,
            "args": {**GENERATED, "learning_rate": 1e-6},
            "rewards": {"think_format_reward": 1.0},
        },
        "dataset": {"train": str(rows)},
        "device": device,
        "precision": precision,
    }


def language_model(folder: Path) -> Path:
    """SmolLM2-135M's sizes with weights drawn at random, and a tokenizer of bytes."""
    if folder.exists():
        return folder
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    letters = ["<pad>", "<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    bytewise = Tokenizer(models.BPE(vocab={text: i for i, text in enumerate(letters)}, merges=[]))
    bytewise.pre_tokenizer, bytewise.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    made = PreTrainedTokenizerFast(tokenizer_object=bytewise, pad_token="<pad>", bos_token="<s>", eos_token="</s>")
    made.chat_template = "{% for message in messages %}{{ message['content'] }}{{ eos_token }}{% endfor %}"
    made.save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=49_152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
        num_key_value_heads=3, tie_word_embeddings=True, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def per_second(config: Mapping[str, Any], processes: int, each: int, folder: Path) -> np.ndarray:
    """``each`` of whatever is counted, a step of the journal, over the seconds since the one before."""
    output = folder / f"runs-{time.monotonic_ns()}"
    whole = {
        "seed": 0,
        "evaluation": {"every": None, "episodes": 0},
        "checkpoint": {"every": None},
        "tracking": {"enabled": False},
        "output": str(output),
        **config,
    }
    file = folder / "run.yaml"
    file.write_text(yaml.safe_dump(whole))
    launch = ["launch", "-n", str(processes)] if processes > 1 else []
    done = subprocess.run(
        [sys.executable, "-m", "budwood", *launch, "run", str(file)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    lines = map(json.loads, (list_runs(output)[-1].folder / "events.jsonl").read_text().splitlines())
    first: dict[int, float] = {}
    for line in lines:
        if line["kind"] == "metrics":
            first.setdefault(line["step"], line["t"] / 1e3)
    steps, times = np.array(sorted(first)), np.array([first[step] for step in sorted(first)])
    spent = np.diff(times) / np.diff(steps)
    return each / spent[2:]


def cells(device: str, quick: bool, folder: Path) -> Iterator[tuple[dict[str, Any], dict[str, Any], int, int]]:
    """(columns, configuration, processes, what a step of the journal counts)."""
    for network, where in product(NETWORKS, dict.fromkeys(("cpu", device))):
        for simulation, processes in (("in the trainer", 1), ("a worker each", 1), ("in the trainer", 2)):
            shown = {
                "training": "PPO",
                "policy": network,
                "precision": "fp32",
                "simulation": simulation,
                "unit": "environment steps",
            }
            yield {**shown, "device": where}, ppo(where, network, simulation, 4 if quick else 14), processes, 1
    for precision in ("fp32",) if device == "cpu" else ("fp32", "tf32", "bf16"):
        shown = {
            "training": "GRPO",
            "policy": "SmolLM2-135M",
            "precision": precision,
            "simulation": "none",
            "unit": "completions",
        }
        yield (
            {**shown, "device": device},
            grpo(device, precision, 4 if quick else 14, folder),
            1,
            GENERATED["per_device_train_batch_size"],
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true", help="a few steps of each, for a look at the code")
    parser.add_argument("--beside", default="no", help="whether other work runs on the machine, for the rows")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    names = {"cpu": "CPU", "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else ""}
    with tempfile.TemporaryDirectory(prefix="devices-") as scratch, options.out.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        for shown, config, processes, each in cells(options.device, options.quick, Path(scratch)):
            rates = per_second(config, processes, each, Path(scratch))
            low, middle, high = np.quantile(rates, [0.25, 0.5, 0.75])
            row = {**shown, "device": names[shown["device"]], "processes": processes, "beside": options.beside}
            row |= {"per_second": f"{middle:.4g}", "low": f"{low:.4g}", "high": f"{high:.4g}"}
            writer.writerow(row)
            file.flush()
            print(row, flush=True)


if __name__ == "__main__":
    main()
