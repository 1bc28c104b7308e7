"""A random two-layer Llama with a byte tokenizer in a folder, rows for every trainer, and runs of them in memory."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from budwood import compose, plugins
from budwood.api import ALONE, CompletionReward, Completions, Contributions, Run, hookimpl
from budwood.plugins import Activation, Active, Installed
from budwood_trl.config import DatasetConfig, TrainerConfig
from budwood_trl.families import FAMILIES, capabilities
from budwood_trl.plugin import TRL

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerFast

    from budwood_trl.trainer import TRLTrainer

CHAT = (
    "{% for message in messages %}[{{ message['role'] }}]{{ message['content'] }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
GENERATING = {"per_device_train_batch_size": 4, "num_generations": 4, "max_completion_length": 6, "learning_rate": 1e-2}
ARGS: Mapping[str, dict[str, Any]] = {
    "grpo": GENERATING,
    "rloo": GENERATING,
    "dpo": {"per_device_train_batch_size": 2, "learning_rate": 1e-2, "max_length": 32},
    "sft": {"per_device_train_batch_size": 2, "learning_rate": 1e-2, "max_length": 32},
    "reward": {"per_device_train_batch_size": 2, "learning_rate": 1e-2, "max_length": 32},
    "kto": {"per_device_train_batch_size": 4, "learning_rate": 1e-2, "max_length": 32},
}


def byte_tokenizer() -> PreTrainedTokenizerFast:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = ["<pad>", "<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    bytewise = Tokenizer(models.BPE(vocab={text: i for i, text in enumerate(letters)}, merges=[]))
    bytewise.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytewise.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(
        tokenizer_object=bytewise, pad_token="<pad>", bos_token="<s>", eos_token="</s>", padding_side="left"
    )
    made.chat_template = CHAT
    return made


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("llama")
    tokenizer = byte_tokenizer()
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=128, num_key_value_heads=1, **sizes, **ids)
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def rows(algo: str, count: int = 16) -> list[dict[str, Any]]:
    sums = [(f"{i}+{i % 3}=", f"{i + i % 3}", f"{i}") for i in range(count)]
    if algo in ("grpo", "rloo"):
        return [{"prompt": question, "answer": answer} for question, answer, _ in sums]
    if algo == "sft":
        return [{"prompt": question, "completion": answer} for question, answer, _ in sums]
    if algo == "kto":
        return [
            {"prompt": q, "completion": a if i % 2 else b, "label": bool(i % 2)} for i, (q, a, b) in enumerate(sums)
        ]
    return [{"prompt": question, "chosen": answer, "rejected": other} for question, answer, other in sums]


@pytest.fixture(scope="session")
def rows_file(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    folder = tmp_path_factory.mktemp("rows")

    def write(algo: str, count: int = 16) -> Path:
        path = folder / f"{algo}-{count}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows(algo, count)))
        return path

    return write


def vowels(batch: Completions) -> list[float | None]:
    """How many of the completion's letters are vowels, counted with a little of its length."""
    return [sum(letter in "aeiou" for letter in text) + len(text) / 100 for text in batch.texts]


class Vowels:
    """A plugin with one reward."""

    @hookimpl
    def completion_rewards(self, run: Run) -> Any:
        return CompletionReward("vowels", vowels)


def active(name: str, instance: object) -> Active:
    entry = metadata.EntryPoint(name, f"{type(instance).__name__}:it", "budwood.plugins")
    return Active(Installed(name, entry.value, f"budwood-{name}", "1.0", ">=0.1,<0.2", entry), instance)


@pytest.fixture
def trainer(model_folder: Path, rows_file: Callable[..., Path], tmp_path: Path) -> Callable[..., TRLTrainer]:
    """``trainer(algo, plugins, steps, args)``: as a run would build it, from plugins that are objects of the test."""

    def make(
        algo: str,
        plugins: Mapping[str, object] | None = None,
        steps: int = 3,
        sections: Mapping[str, Any] | None = None,
        model: str | Path = model_folder,
        begun_with: int = 1,
        **args: Any,
    ) -> TRLTrainer:
        from budwood_trl.building import build

        given = plugins if plugins is not None else {"words": Vowels()} if FAMILIES[algo].generates else {}
        run, contributions = planned(
            algo, given, steps, {"train": str(rows_file(algo))}, model, tmp_path, sections, args, begun_with
        )
        return build(run, contributions)

    return make


def planned(
    algo: str,
    plugins: Mapping[str, object],
    steps: int,
    dataset: Mapping[str, Any],
    model: str | Path,
    folder: Path,
    sections: Mapping[str, Any] | None = None,
    args: Mapping[str, Any] | None = None,
    begun_with: int = 1,
) -> tuple[Run, Contributions]:
    own = dict(sections or {})
    config = TrainerConfig(
        kind="trl", algo=algo, model=str(model), total_steps=steps, args={**ARGS[algo], **(args or {})},
        **own.pop("trainer", {}),
    )  # fmt: skip
    rows_of = DatasetConfig(**{**dataset, **own.pop("dataset", {})}).model_dump()
    whole = {"dataset": rows_of, "evaluation": own.pop("evaluation", {"seed": 7})}
    actives = [active(name, instance) for name, instance in plugins.items()]
    activation = Activation(actives, active("trl", TRL()))

    def run_for(one: Active) -> Run:
        return Run("test", 3, whole, own.get(one.name), config, None, folder, "cpu", lambda kind: (), ALONE, begun_with)

    made = compose.contributions(activation, run_for, capabilities(FAMILIES[algo]))
    return run_for(activation.adapter), made  # type: ignore[arg-type]


class Nowhere:
    """A recorder and a screen that keep nothing but the numbers."""

    shown = False

    def __init__(self) -> None:
        self.records: list[tuple[int, dict[str, float]]] = []

    def metrics(self, data: Mapping[str, float], step: int) -> None:
        self.records.append((step, dict(data)))

    def flush(self) -> None: ...

    def update(self, steps: int, metrics: Mapping[str, float]) -> None: ...

    def phase(self, text: str) -> None: ...

    def message(self, text: str) -> None: ...


def parameters(native: Any) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in native.model.state_dict().items()}


def same(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> bool:
    import torch

    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


CLOCK = ("step_time", "runtime", "per_second")


def numbers(history: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What was logged, without what a clock decides."""
    return [{k: v for k, v in row.items() if not any(word in k for word in CLOCK)} for row in history]


WORDS = """
import os, signal
from budwood.api import CompletionReward, RunCallback, hookimpl


class Killed(RunCallback):
    def on_update_end(self, control):
        if os.environ.get("KILL_AT") == str(control.steps):
            os.kill(os.getpid(), signal.SIGKILL)


def vowels(batch):
    return [float(sum(letter in "aeiou" for letter in text)) for text in batch.texts]


def brief(batch):
    return [-len(text) / 10 for text in batch.texts]


class Plugin:
    @hookimpl
    def completion_rewards(self, run):
        return [CompletionReward("vowels", vowels), CompletionReward("brief", brief, weight=0.5)]

    @hookimpl
    def callbacks(self, run):
        return Killed()
"""


@pytest.fixture
def words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A distribution ``budwood-words`` beside the real ones, with two rewards; ``KILL_AT`` ends its process at that step."""
    site = tmp_path / "site"
    info = site / "budwood_words-1.0.dist-info"
    info.mkdir(parents=True)
    about = "Metadata-Version: 2.1\nName: budwood-words\nVersion: 1.0\nRequires-Dist: budwood>=0.1,<0.2\n"
    (info / "METADATA").write_text(about)
    (info / "entry_points.txt").write_text(f"[{plugins.GROUP}]\nwords = offered_words:Plugin\n")
    (site / "offered_words.py").write_text(WORDS)
    monkeypatch.syspath_prepend(str(site))
    plugins._scan.cache_clear()
    yield
    sys.modules.pop("offered_words", None)
    plugins._scan.cache_clear()
