"""A language model and its tokenizer, from wherever they are.

A name is, in this order: a short name (``smollm2``), a folder, a GGUF file, an id on the hub.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from budwood_models.errors import ModelError
from budwood_models.packaged import lookup, short_names

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

DTYPES = ("float32", "bfloat16", "float16", "auto")


@dataclass(frozen=True)
class LanguageModel:
    """``source`` is the folder or hub id that both were read from, for libraries that want a name.

    The tokenizer pads on the left, knows the end token, and has no id that the model has no embedding for.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    source: str

    def save(self, folder: str | Path) -> Path:
        """Write both as safetensors and JSON; :func:`load_language_model` on that folder gives the same again."""
        folder = Path(folder)
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        return folder


def load_language_model(
    name: str | Path, *, dtype: str = "float32", device: str = "cpu", cache: str | Path | None = None
) -> LanguageModel:
    """Load ``name``; a GGUF file is converted once, into ``cache`` (default :func:`budwood_models.cache.cache_folder`).

    ``dtype``: ``float32``, ``bfloat16``, ``float16`` or ``auto`` (as saved). ``device``: as torch names it. Code that
    comes with a model is not run, and pickled weights are refused. Raises :class:`ModelError` with what to do.
    """
    if dtype not in DTYPES:
        raise ModelError(f"no dtype {dtype!r}", where=str(name), do=f"Choose one of {', '.join(DTYPES)}")
    source = resolve(name, Path(cache) if cache is not None else None)

    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with reading(str(name), short_names("language model")), quiet():
        tokenizer = AutoTokenizer.from_pretrained(source, padding_side="left")
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source, dtype=_torch_dtype(dtype), use_safetensors=True, output_loading_info=True
        )
    model, found = loaded
    check_complete(found, str(name))
    if tokenizer.eos_token_id is None:
        raise ModelError("its tokenizer names no end token", where=str(name), do="Set eos_token in its folder")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        do = "Use the tokenizer it was trained with, or resize its embeddings and save it"
        raise ModelError(f"its tokenizer has {len(tokenizer)} ids for {rows} embeddings", where=str(name), do=do)
    try:
        return LanguageModel(model.to(torch.device(device)), tokenizer, source)
    except (RuntimeError, AssertionError) as error:
        do = "Choose a device that torch sees here, e.g. cpu"
        raise ModelError(f"it cannot be moved to {device!r}: {error}", where=str(name), do=do) from error


def load_tokenizer(name: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer of :func:`load_language_model` alone, as it was saved. Raises :class:`ModelError` with what to do."""
    source = resolve(name)
    from transformers import AutoTokenizer

    with reading(str(name), short_names("language model")), quiet():
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(source, padding_side="left")
    return tokenizer


def resolve(name: str | Path, cache: Path | None = None) -> str:
    """The folder or hub id that transformers can read, converting a GGUF file if it must be."""
    from budwood_models.conversion import converted

    packaged = lookup(name, "language model")
    path = packaged.locate() if packaged is not None else Path(name).expanduser()
    if path.is_file():
        if path.suffix.lower() != ".gguf":
            raise ModelError("this file is no GGUF file", where=str(path), do="Give a folder or a .gguf file")
        return str(converted(path, cache))
    if path.is_dir():
        return str(path)
    if isinstance(name, Path) or str(name).count("/") > 1 or str(name).startswith(("/", ".", "~")):
        raise ModelError("there is no such folder or file", where=str(name), do="Check the path")
    return str(name)


def check_complete(found: Mapping[str, Any], name: str) -> None:
    """Transformers fills weights that it does not find with random numbers; here that is an error.

    ``found`` is what ``output_loading_info`` gave.
    """
    lacking = sorted([*found["missing_keys"], *(key for key, *_ in found.get("mismatched_keys", ()))])
    if lacking:
        what = f"{len(lacking)} weights are not in it or have another shape, {lacking[0]} among them"
        raise ModelError(what, where=name, do="Use a complete checkpoint of this kind of model")


@contextmanager
def reading(name: str, known: str) -> Iterator[None]:
    """What transformers says when it cannot read ``name``, as one paragraph that says how to get it.

    ``known`` lists the short names that would have been understood.
    """
    try:
        yield
    except (OSError, ValueError) as error:
        first = str(error).strip().splitlines()[0]
        if Path(name).expanduser().exists():
            do = "A model folder has config.json, model.safetensors and tokenizer files, as save_pretrained writes them"
            raise ModelError(f"this folder cannot be read: {first}", where=name, do=do) from error
        if isinstance(error, ValueError):
            raise ModelError(f"transformers does not know this model: {first}", where=name) from error
        do = f"Download it on a machine that reaches the hub (hf download {name}), or give a local folder"
        if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
            do += "; HF_HUB_OFFLINE is set, so nothing is fetched here: unset it to allow that"
        what = f"it is no folder, no short name ({known}) and not in the hub's cache: {first}"
        raise ModelError(what, where=name, do=do) from error


@contextmanager
def quiet() -> Iterator[None]:
    """Without transformers' progress bars and tables of weights; what matters in those is checked here."""
    from transformers.utils import logging

    bars, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _torch_dtype(name: str) -> Any:
    import torch

    return name if name == "auto" else getattr(torch, name)
