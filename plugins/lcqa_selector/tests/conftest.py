"""A policy for tests: two layers, and every valid answer about four passages is one token."""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest


@dataclass(frozen=True)
class Toy:
    """A completion is one token, so a random policy writes many valid answers, and a step is fast."""

    tokenizer: Any

    def policy(self) -> Any:
        import torch
        from transformers import LlamaConfig, LlamaForCausalLM

        torch.manual_seed(0)
        return LlamaForCausalLM(
            LlamaConfig(
                vocab_size=len(self.tokenizer),
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=2,
                num_attention_heads=2,
                max_position_embeddings=512,
                eos_token_id=self.tokenizer.eos_token_id,
                pad_token_id=self.tokenizer.pad_token_id,
            )
        )

    def save(self, folder: Path) -> Path:
        self.policy().save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        return folder


@pytest.fixture(scope="session")
def toy() -> Toy:
    pytest.importorskip("torch")
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    subsets = itertools.chain.from_iterable(itertools.combinations(("p1", "p2", "p3", "p4"), n) for n in range(5))
    answers = [json.dumps({"ids": subset}) for subset in subsets]
    parts = [*answers, "<eos>", "<pad>", "<unk>", "Question", '{"ids": ["p9"]}']
    made = Tokenizer(models.WordLevel({part: i for i, part in enumerate(parts)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Split(Regex(r"\w+|\s+|[^\w\s]"), "isolated")
    made.decoder = decoders.Fuse()
    return Toy(
        PreTrainedTokenizerFast(
            tokenizer_object=made,
            eos_token="<eos>",
            pad_token="<pad>",
            unk_token="<unk>",
            padding_side="left",
            chat_template="{% for message in messages %}{{ message['content'] }} {% endfor %}",
        )
    )
