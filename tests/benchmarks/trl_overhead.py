"""CPU time of GRPO through budwood against a bare TRL script, in turns of a few steps.

    OMP_NUM_THREADS=1 python tests/benchmarks/trl_overhead.py             # about 4 minutes

GRPO on a random two-layer Llama of width 64 with a byte tokenizer, 4 groups of 4 completions of 16 tokens a step, one torch
thread, every step logged; tracking, evaluation and checkpoints off. ``none``: no plugin, TRL's own think_format_reward on both
sides. ``reward``: the same reward as a plugin's, given completions as text. ``null``: the bare script against itself, which is
what the method can tell apart. Both trainings live in one process, a thread each, and take turns, so that whatever else the
machine does falls on both, and each comes first in half of the pairs. Printed: medians in milliseconds of CPU per step, the
median ratio of neighbours with a bootstrap 95 % interval, and the bound it is held against.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from threading import Semaphore, Thread
from typing import Any

import numpy as np
import torch
from overhead import Nowhere, interval
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, PrinterCallback, TrainerCallback
from trl import GRPOConfig, GRPOTrainer
from trl.rewards import think_format_reward

from budwood import config
from budwood.api import CompletionReward, Completions, Contributed, Contributions
from budwood.planning import plan
from budwood.progress import silent
from budwood.rhythm import Rhythm
from budwood.session import Session
from budwood_models import load_language_model
from budwood_trl.building import build
from budwood_trl.data import read
from budwood_trl.trainer import TRLTrainer

ARGS: dict[str, Any] = {"per_device_train_batch_size": 16, "num_generations": 4, "max_completion_length": 16}
BOUNDS = {"null": 1.01, "none": 1.01, "reward": 1.02}


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


def bare(folder: Path, steps: int) -> GRPOTrainer:
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
    return trainer


def by_text(batch: Completions) -> list[float | None]:
    return think_format_reward([[{"content": text}] for text in batch.texts])  # type: ignore[return-value]


def through(folder: Path, steps: int, which: str) -> tuple[TRLTrainer, Session]:
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
    return trainer, Session(trainer, contributions, Nowhere(), silent(), Rhythm())


class Turn(TrainerCallback):
    """Lets a training take its steps in turns with another: one, then two each, so that each comes first in half of the pairs.

    ``spent`` are the seconds of CPU of its steps; ``first``: whether it begins.
    """

    def __init__(self, first: bool) -> None:
        self.mine, self.other = Semaphore(int(first)), Semaphore(0)
        self.first, self.spent = first, []
        self.began: float | None = None

    def on_step_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        if self.began is not None:
            self.spent.append(time.thread_time() - self.began)
            if len(self.spent) % 2 == int(self.first):
                self.other.release()
                self.mine.acquire()
        else:
            self.mine.acquire()
        self.began = time.thread_time()


def compare(folder: Path, steps: int, which: str) -> tuple[np.ndarray, np.ndarray]:
    """Seconds of CPU of every two steps but the first two, ours and the bare script's."""
    plain = bare(folder, steps)
    if which == "null":
        native = bare(folder, steps)
        work: Callable[[], Any] = native.train
    else:
        trainer, session = through(folder, steps, which)
        native, work = trainer.native, lambda: trainer.fit(session)
    ours, theirs = Turn(first=True), Turn(first=False)
    ours.other, theirs.other = theirs.mine, ours.mine
    native.add_callback(ours)
    plain.add_callback(theirs)
    works = ((ours, work), (theirs, plain.train))

    def run(turn: Turn, train: Callable[[], Any]) -> None:
        train()
        for _ in range(steps):
            turn.other.release()

    threads = [Thread(target=run, args=pair) for pair in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    even = (steps - 3) // 2 * 2  # the last step ends without a turn
    return tuple(np.array(turn.spent[2 : even + 2]).reshape(-1, 2).sum(axis=1) for turn in (ours, theirs))  # type: ignore[return-value]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("which", nargs="*", choices=BOUNDS, help="default: all")
    parser.add_argument("--steps", type=int, default=402)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder)
        for which in options.which or BOUNDS:
            ours, theirs = compare(folder, options.steps, which)
            ratios, bound = ours / theirs, BOUNDS[which]
            low, high = interval(ratios)
            print(
                f"{which:8s} bare {500 * np.median(theirs):6.1f} ms/step, budwood {500 * np.median(ours):6.1f} ms/step, "
                f"ratio {np.median(ratios):.4f} [{low:.4f}, {high:.4f}] over {len(ratios)} pairs of two steps, "
                f"bound {bound}: {'holds' if high <= bound else 'DOES NOT HOLD'}",
                flush=True,
            )


if __name__ == "__main__":
    main()
