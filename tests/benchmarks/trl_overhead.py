"""CPU time of GRPO through budwood against a bare TRL script, in interleaved pairs.

    OMP_NUM_THREADS=1 python tests/benchmarks/trl_overhead.py             # about 10 minutes

GRPO on a random two-layer Llama of width 64 with a byte tokenizer, 4 groups of 4 completions of 16 tokens a step, one torch
thread, every step logged; tracking, evaluation and checkpoints off. ``none``: no plugin, TRL's own think_format_reward on both
sides. ``reward``: the same reward as a plugin's, given completions as text. The order within a pair alternates. Printed:
medians in milliseconds of CPU per step, the median ratio with a bootstrap 95 % interval, and the bound it is held against.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from overhead import Nowhere, interval
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, PrinterCallback
from trl import GRPOConfig, GRPOTrainer
from trl.rewards import think_format_reward

from budwood import config
from budwood.api import CompletionReward, Completions, Contributed, Contributions
from budwood.planning import plan
from budwood.progress import silent
from budwood.rhythm import Rhythm
from budwood.session import Session
from budwood_models import load_language_model
from budwood_trl.data import read
from budwood_trl.trainer import build

ARGS: dict[str, Any] = {"per_device_train_batch_size": 16, "num_generations": 4, "max_completion_length": 16}
BOUNDS = {"none": 1.01, "reward": 1.02}


def prepare(folder: Path) -> None:
    letters = ["<pad>", "<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    bytewise = Tokenizer(models.BPE(vocab={text: i for i, text in enumerate(letters)}, merges=[]))
    bytewise.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytewise.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bytewise, pad_token="<pad>", bos_token="<s>", eos_token="</s>", padding_side="left"
    )
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(vocab_size=len(letters), max_position_embeddings=256, **sizes, **ids)).save_pretrained(
        folder
    )
    tokenizer.save_pretrained(folder)
    rows = [{"prompt": [{"role": "user", "content": f"{a}+{b}="}]} for a in range(8) for b in range(8)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def bare(folder: Path, steps: int) -> float:
    loaded = load_language_model(folder)
    quiet = {"report_to": "none", "save_strategy": "no", "disable_tqdm": True, "logging_steps": 1, "use_cpu": True}
    cpu = {"bf16": False, "gradient_checkpointing": False, "dataloader_pin_memory": False}
    args = GRPOConfig(output_dir=str(folder / "out"), max_steps=steps, seed=0, **quiet, **cpu, **ARGS)
    trainer = GRPOTrainer(
        loaded.model,
        reward_funcs=[think_format_reward],
        args=args,
        processing_class=loaded.tokenizer,
        train_dataset=read(folder / "rows.jsonl", ""),
    )
    trainer.remove_callback(PrinterCallback)  # a printed line a step is no part of the comparison
    started = time.process_time()
    trainer.train()
    return time.process_time() - started


def by_text(batch: Completions) -> list[float | None]:
    return think_format_reward([[{"content": text}] for text in batch.texts])  # type: ignore[return-value]


def through(folder: Path, steps: int, which: str) -> float:
    own = {"rewards": {"think_format_reward": 1.0}} if which == "none" else {}
    run = {
        "device": "cpu",
        "trainer": {"kind": "trl", "algo": "grpo", "model": str(folder), "total_steps": steps, "args": ARGS, **own},
        "dataset": {"train": str(folder / "rows.jsonl")},
    }
    planned = plan(config.load(run), None)
    contributions = planned.contributions
    if which == "reward":
        reward = Contributed(CompletionReward("format", by_text), "words", "budwood-words 1.0")
        contributions = Contributions(completion_rewards=[reward])
    trainer = build(planned.run_for(planned.activation.adapter), contributions)  # type: ignore[arg-type]
    session = Session(trainer, contributions, Nowhere(), silent(), Rhythm())
    started = time.process_time()
    trainer.fit(session)
    return time.process_time() - started


def compare(ours: Callable[[], float], theirs: Callable[[], float], pairs: int) -> tuple[np.ndarray, np.ndarray]:
    """Seconds of CPU (pairs,) of ours and of the bare script, after one uncounted round of each."""
    ours(), theirs()
    rows = []
    for pair in range(pairs):
        if pair % 2:
            rows.append((ours(), theirs()))
        else:
            first = theirs()
            rows.append((ours(), first))
    return tuple(np.array(rows).T)  # type: ignore[return-value]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("which", nargs="*", choices=BOUNDS, help="default: both")
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--steps", type=int, default=40)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder)
        for which in options.which or BOUNDS:
            ours, theirs = compare(
                lambda which=which: through(folder, options.steps, which),
                lambda: bare(folder, options.steps),
                options.pairs,
            )
            ratios, bound = ours / theirs, BOUNDS[which]
            low, high = interval(ratios)
            print(
                f"{which:8s} bare {1e3 * np.median(theirs) / options.steps:6.1f} ms/step, "
                f"budwood {1e3 * np.median(ours) / options.steps:6.1f} ms/step, "
                f"ratio {np.median(ratios):.4f} [{low:.4f}, {high:.4f}] over {options.pairs} pairs, "
                f"bound {bound}: {'holds' if high <= bound else 'DOES NOT HOLD'}",
                flush=True,
            )


if __name__ == "__main__":
    main()
