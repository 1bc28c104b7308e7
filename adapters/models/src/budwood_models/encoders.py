"""Texts to unit vectors, whose inner product is how near two texts are in meaning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from budwood_models.digests import digest_tokenizer, digest_weights
from budwood_models.errors import missing_extra
from budwood_models.language_model import check_complete, quiet, reading
from budwood_models.packaged import lookup, short_names
from budwood_models.texts import check_texts, in_batches

if TYPE_CHECKING:
    from budwood.api import Array

MINILM_TOKENS = 256
"""What all-MiniLM-L6-v2 was trained with; longer texts are cut there, as sentence-transformers does."""


class Encoder(Protocol):
    """``dimension`` d of its vectors; ``identity`` is JSON that differs whenever vectors may differ."""

    dimension: int

    @property
    def identity(self) -> Mapping[str, Any]: ...

    def encode(self, texts: Sequence[str], batch_size: int = 32) -> Array:
        """(n, d) float32, every row of length 1. Equal texts give equal rows up to rounding (1e-6), whatever their company."""
        ...


def load_encoder(name: str | Path = "minilm", *, device: str = "cpu") -> Encoder:
    """``minilm`` from its package, or any sentence-transformers id or folder, which needs that extra."""
    packaged = lookup(name, "encoder")
    if packaged is None:
        return SentenceTransformerEncoder(name, device)
    return MeanPoolEncoder(packaged.locate(), device, MINILM_TOKENS)


class MeanPoolEncoder:
    """A transformer whose token vectors are averaged, in plain transformers."""

    def __init__(self, folder: Path, device: str, max_tokens: int) -> None:
        from transformers import AutoModel, AutoTokenizer

        with reading(str(folder), short_names("encoder")), quiet():
            self.tokenizer: Any = AutoTokenizer.from_pretrained(folder)
            loaded: Any = AutoModel.from_pretrained(folder, use_safetensors=True, output_loading_info=True)
        check_complete(loaded[1], str(folder))
        self.model: Any = loaded[0].to(device).eval()
        self.max_tokens = max_tokens
        self.dimension: int = self.model.config.hidden_size

    @cached_property
    def identity(self) -> Mapping[str, Any]:
        return {
            "encoder": "mean-pool",
            "weights": digest_weights(self.model),
            "tokenizer": digest_tokenizer(self.tokenizer),
            "max_tokens": self.max_tokens,
        }

    def encode(self, texts: Sequence[str], batch_size: int = 32) -> Array:
        """(n, d) float32, every row of length 1."""
        import torch

        listed = check_texts(texts)
        rows = self.tokenizer(listed, truncation=True, max_length=self.max_tokens)["input_ids"] if listed else []

        def answer(batch: list[int]) -> Array:
            padded = self.tokenizer.pad({"input_ids": [rows[i] for i in batch]}, return_tensors="pt")
            padded = padded.to(self.model.device)
            with torch.inference_mode():
                hidden = self.model(**padded).last_hidden_state  # (B, T, d)
            weight = padded["attention_mask"].unsqueeze(-1)  # (B, T, 1)
            mean = (hidden * weight).sum(1) / weight.sum(1)
            return torch.nn.functional.normalize(mean, dim=-1).float().cpu().numpy()

        return in_batches(rows, batch_size, answer, (self.dimension,))


class SentenceTransformerEncoder:
    """Whatever sentence-transformers loads: its own pooling, prompts and length."""

    def __init__(self, name: str | Path, device: str) -> None:
        try:
            from sentence_transformers import SentenceTransformer
        except ImportError:
            what = f"the encoder {str(name)!r}"
            raise missing_extra(what, "sentence-transformers", "sentence-transformers") from None
        with reading(str(name), short_names("encoder")), quiet():
            self.model: Any = SentenceTransformer(
                str(name), device=device, trust_remote_code=False, model_kwargs={"use_safetensors": True}
            )
        self.dimension = len(self.model.encode("", show_progress_bar=False))

    @cached_property
    def identity(self) -> Mapping[str, Any]:
        return {
            "encoder": "sentence-transformers",
            "weights": digest_weights(self.model),
            "tokenizer": digest_tokenizer(self.model.tokenizer),
            "max_tokens": self.model.max_seq_length,
            "modules": [{"module": type(module).__name__, **module.get_config_dict()} for module in self.model],
            "prompts": dict(self.model.prompts),
            "default_prompt": self.model.default_prompt_name,
        }

    def encode(self, texts: Sequence[str], batch_size: int = 32) -> Array:
        """(n, d) float32, every row of length 1."""
        import numpy as np

        listed = check_texts(texts)
        if not listed:
            return np.zeros((0, self.dimension), np.float32)
        options = {"batch_size": batch_size, "normalize_embeddings": True, "show_progress_bar": False}
        return np.asarray(self.model.encode(listed, **options), np.float32)
