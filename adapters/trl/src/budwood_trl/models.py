"""The model and the tokenizer of a run."""

from __future__ import annotations

import dataclasses
from typing import Any

from budwood.api import ConfigError
from budwood_models.language_model import check_complete, load_language_model, quiet, reading, resolve
from budwood_models.packaged import short_names
from budwood_trl.families import unknown


def load(name: str, *, scores: bool = False) -> tuple[Any, Any]:
    """(model, tokenizer) in float32 on the CPU, from where TRL moves it. ``scores``: with one number a text for a head."""
    if not scores:
        loaded = load_language_model(name)
        return loaded.model, loaded.tokenizer
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    source = resolve(name)
    with reading(name, short_names("language model")), quiet():
        tokenizer = AutoTokenizer.from_pretrained(source, padding_side="left")
        both: Any = AutoModelForSequenceClassification.from_pretrained(
            source, num_labels=1, dtype="float32", use_safetensors=True, output_loading_info=True
        )
    model, found = both
    body = f"{model.base_model_prefix}."
    check_complete({**found, "missing_keys": [key for key in found["missing_keys"] if key.startswith(body)]}, name)
    return model, tokenizer


def lora(fields: dict[str, Any], *, scores: bool = False) -> Any:
    """A ``LoraConfig``; its task is the trainer's unless the configuration says otherwise."""
    try:
        from peft import LoraConfig
    except ImportError as error:
        raise ConfigError("peft is not installed", where="trainer.peft", do="pip install budwood-trl[peft]") from error
    known = [item.name for item in dataclasses.fields(LoraConfig)]
    problems = [f"LoraConfig has no field {unknown(key, known)}" for key in fields if key not in known]
    if problems:
        raise ConfigError("; ".join(problems), where="trainer.peft")
    try:
        return LoraConfig(**{"task_type": "SEQ_CLS" if scores else "CAUSAL_LM", **fields})
    except (TypeError, ValueError) as error:
        raise ConfigError(f"LoraConfig refuses its fields: {error}", where="trainer.peft") from error
