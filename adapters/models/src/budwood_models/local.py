"""Replies of a model in this process.

Prompts are sorted by length and padded on the left. A sample is drawn by the Gumbel-max trick, argmax(logits / T + g) with g
standard Gumbel noise, which has the distribution softmax(logits / T). Every conversation has noise of its own, seeded by the
seed and the conversation, so its reply depends on what else is in the batch only through rounding.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any

from budwood_models.control_tokens import without_control_tokens
from budwood_models.errors import ModelError
from budwood_models.generation import Conversation, Reply, check, copies, in_order, shown
from budwood_models.language_model import LanguageModel

if TYPE_CHECKING:
    import torch


class LocalGenerator:
    """A :class:`LanguageModel` with fixed weights as a generator; after training, make a new one.

    ``batch_size``: conversations at a time. ``template``: further arguments of the chat template, such as
    ``{"enable_thinking": False}``. Control tokens come from the template alone: see :func:`without_control_tokens`.
    """

    def __init__(
        self, language_model: LanguageModel, *, batch_size: int = 8, template: Mapping[str, Any] | None = None
    ) -> None:
        self.model: Any = language_model.model
        self.tokenizer: Any = language_model.tokenizer
        self.name = language_model.source
        self.batch_size = batch_size
        self.template = dict(template or {})
        if not self.tokenizer.chat_template:
            raise ModelError(
                "it has no chat template, so it is no model to converse with",
                where=self.name,
                do="Use the instruction-tuned version of the model, or set tokenizer.chat_template",
            )

    @cached_property
    def identity(self) -> Mapping[str, Any]:
        """Digests of weights and configuration in memory and of the tokenizer with its template: a name says little."""
        from budwood_models.digests import digest_config, digest_tokenizer, digest_weights

        return {
            "generator": "local",
            "weights": digest_weights(self.model),
            "config": digest_config(self.model),
            "tokenizer": digest_tokenizer(self.tokenizer),
            "dtype": str(self.model.dtype),
            "template": self.template,
        }

    @property
    def max_context(self) -> int | None:
        """Tokens of prompt and reply together that the model was made for, where its configuration says so."""
        return getattr(self.model.config.get_text_config(), "max_position_embeddings", None)

    def generate(
        self, prompts: Sequence[Conversation], *, max_tokens: int, temperature: float = 0.0, seed: int = 0
    ) -> list[Reply]:
        """One reply a conversation, in order."""
        return in_order(self.stream(prompts, max_tokens=max_tokens, temperature=temperature, seed=seed), len(prompts))

    def stream(
        self, prompts: Sequence[Conversation], *, max_tokens: int, temperature: float = 0.0, seed: int = 0
    ) -> Iterator[tuple[int, Reply]]:
        """(index, reply), batch by batch, the shortest prompts first."""
        check(prompts)
        ids = [self._encode(i, prompt, max_tokens) for i, prompt in enumerate(prompts)]
        seeds = [row_seed(seed, ids[i], copy) for i, copy in enumerate(copies(prompts))]
        order = sorted(range(len(prompts)), key=lambda i: len(ids[i]))
        for start in range(0, len(order), self.batch_size):
            batch = order[start : start + self.batch_size]
            completions = self._complete([ids[i] for i in batch], [seeds[i] for i in batch], max_tokens, temperature)
            for i, (tokens, truncated) in zip(batch, completions, strict=True):
                text = self.tokenizer.decode(tokens, skip_special_tokens=True)
                yield i, Reply(text, len(ids[i]), len(tokens), truncated)

    def _encode(self, index: int, prompt: Conversation, max_tokens: int) -> list[int]:
        messages = [
            {**message, "content": without_control_tokens(message["content"], self.tokenizer)} for message in prompt
        ]
        ids = self.tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True, return_dict=False, **self.template
        )
        limit = self.max_context
        if limit is not None and len(ids) + max_tokens > limit:
            raise ModelError(
                f"prompt {index} ({shown(prompt)}) has {len(ids)} tokens; with {max_tokens} for the reply that is more "
                f"than the {limit} that {self.name} can hold",
                do="Give it less text, or lower max_tokens",
            )
        return list(ids)

    def _complete(
        self, ids: list[list[int]], seeds: list[int], max_tokens: int, temperature: float
    ) -> list[tuple[list[int], bool]]:
        """(completion without the end token's tail, whether it was cut) a row."""
        import torch
        from transformers import GenerationConfig

        width = max(map(len, ids))
        pad = self.tokenizer.pad_token_id
        device = self.model.device
        tokens = torch.tensor([[pad] * (width - len(row)) + row for row in ids], device=device)  # (B, T)
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in ids], device=device)
        ends = self._ends()
        config = GenerationConfig(
            do_sample=False,
            num_beams=1,
            repetition_penalty=1.0,
            max_new_tokens=max_tokens,
            eos_token_id=sorted(ends),
            pad_token_id=pad,
        )
        noise = [gumbel(temperature, seeds)] if temperature > 0 else []
        with evaluating(self.model), torch.inference_mode():
            made = self.model.generate(
                input_ids=tokens, attention_mask=mask, generation_config=config, logits_processor=noise
            )
        return [upto_end(row, ends) for row in made[:, width:].tolist()]

    def _ends(self) -> set[int]:
        """Every token that ends a reply, the model's and the tokenizer's."""
        own = self.model.generation_config.eos_token_id
        return {self.tokenizer.eos_token_id, *(own if isinstance(own, list) else [] if own is None else [own])}


def upto_end(row: Sequence[int], ends: set[int]) -> tuple[list[int], bool]:
    """The row up to and with its first end token, and whether it has none."""
    for i, token in enumerate(row):
        if token in ends:
            return list(row[: i + 1]), False
    return list(row), True


def row_seed(seed: int, ids: Sequence[int], copy: int) -> int:
    """A seed for one conversation: the same wherever it stands, another one for each of its copies."""
    text = f"{seed}/{copy}/{','.join(map(str, ids))}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) >> 1


def gumbel(temperature: float, seeds: Sequence[int]) -> Any:
    """A logits processor after which the likeliest token is a sample at ``temperature``."""
    import torch

    sources = [torch.Generator().manual_seed(seed) for seed in seeds]

    def perturb(_: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:  # (B, T), (B, V) -> (B, V)
        noise = torch.stack([torch.empty(scores.shape[1]).exponential_(generator=source) for source in sources])
        return scores.float() / temperature - noise.log().to(scores.device)  # -log Exp(1) is standard Gumbel

    return perturb


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Dropout off, and afterwards as it was."""
    was = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was)
