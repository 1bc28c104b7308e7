"""What a model is, as a number: digests of weights, configurations and tokenizers in memory, for the keys of caches."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

LENGTH = 32
"""Hexadecimal digits kept of a SHA-256."""
UNTOLD = ("_name_or_path", "transformers_version")


def digest_weights(module: torch.nn.Module) -> str:
    """Of every parameter and buffer that is saved with the model: name, shape, type and bits."""
    import torch

    total = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        total.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        total.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return total.hexdigest()[:LENGTH]


def digest_config(model: PreTrainedModel) -> str:
    """Of what its configurations say besides defaults; not where it was read from, nor by which version."""
    says = [model.config.to_diff_dict()]
    if model.generation_config is not None:
        says.append(model.generation_config.to_diff_dict())
    told = [{name: value for name, value in given.items() if name not in UNTOLD} for given in says]
    return hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode()).hexdigest()[:LENGTH]


def digest_tokenizer(tokenizer: PreTrainedTokenizerBase) -> str:
    """Of its backend, its special tokens and its chat template."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    text = backend.to_str() if backend is not None else str(sorted(tokenizer.get_vocab().items()))
    parts = (text, str(sorted(tokenizer.special_tokens_map.items())), str(tokenizer.chat_template))
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:LENGTH]
