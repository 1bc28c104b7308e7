"""A GGUF file as an ordinary model folder: float32 weights, a tokenizer that is right, end tokens that agree.

Transformers takes half a minute to read a GGUF file; the folder loads in a second.
"""

from __future__ import annotations

import logging
from importlib import metadata as installed
from pathlib import Path
from typing import Any

from budwood_models.cache import cache_folder, digest_file, made_once
from budwood_models.errors import ModelError
from budwood_models.gguf_tokenizer import build_tokenizer, read_metadata
from budwood_models.language_model import check_complete, quiet

CONVERTER = 2
"""Raised whenever a conversion gives another result than before; folders of an older one are left alone."""
log = logging.getLogger(__name__)


def converted(gguf: Path, cache: Path | None = None) -> Path:
    """The model folder for a GGUF file, converted at the first use. ``cache`` is the folder for all of them."""
    digest = digest_file(gguf)
    folder = (cache or cache_folder()) / "models" / f"{gguf.stem}-{digest[:16]}-{CONVERTER}"

    def make(into: Path) -> dict[str, Any]:
        log.info("converting %s; this happens once, in about half a minute for 100 MB", gguf.name)
        convert(gguf, into)
        versions = {name: installed.version(name) for name in ("gguf", "tokenizers", "torch", "transformers")}
        return {"source": gguf.name, "sha256": digest, "converter": CONVERTER, "versions": versions}

    return made_once(folder, make)


def convert(gguf: Path, into: Path) -> None:
    """Write ``gguf`` into the existing folder ``into``."""
    from transformers import GenerationConfig

    tokenizer = build_tokenizer(read_metadata(gguf), str(gguf))
    model = _weights(gguf)
    rows = model.get_input_embeddings().num_embeddings
    if len(tokenizer) > rows:
        raise ModelError(f"it lists {len(tokenizer)} tokens and has embeddings for {rows}", where=str(gguf))
    ends = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    model.config.update(ends)
    model.generation_config = GenerationConfig(**ends)
    with quiet():
        model.save_pretrained(into)
        tokenizer.save_pretrained(into)


def _weights(gguf: Path) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    try:
        with quiet():
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                str(gguf.parent), gguf_file=gguf.name, dtype=torch.float32, output_loading_info=True
            )
    except (ValueError, KeyError, NotImplementedError) as error:
        do = "Load the same model from its original folder or hub id instead"
        raise ModelError(f"transformers cannot read this GGUF file: {error}", where=str(gguf), do=do) from error
    model, found = loaded
    check_complete(found, str(gguf))
    return model
