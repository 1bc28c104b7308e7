"""A state tree survives the way to disk and back exactly: types, bits, shapes and keys."""

from __future__ import annotations

import enum
import json
import struct
import subprocess
import sys
from collections import OrderedDict, deque, namedtuple
from pathlib import Path

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from budwood import tree
from budwood.api import CheckpointError, copied, storable

torch = pytest.importorskip("torch")

DTYPES = [
    "?",
    "i1",
    "u1",
    "<i2",
    "u2",
    "<i4",
    "u4",
    "i8",
    "u8",
    "f2",
    "f4",
    "f8",
    "c8",
    "c16",
    ">f4",
    ">i8",
    "M8[us]",
    "U5",
    "S3",
]
TORCH_DTYPES = [
    torch.bool, torch.uint8, torch.int16, torch.int64, torch.float16, torch.bfloat16, torch.float32, torch.float64,
    torch.complex64, torch.complex128, torch.uint16, torch.float8_e4m3fn,
]  # fmt: skip


def round_trip(state, folder: Path):
    structure, tensors = tree.encode(state)
    structure = json.loads(json.dumps(structure, allow_nan=False))
    path = folder / "tensors.safetensors"
    path.write_bytes(b"".join(bytes(chunk) for chunk in tree.tensor_file(tensors)))
    with tree.open_tensors(path) as fetch:
        return tree.decode(structure, fetch)


def same(a, b) -> bool:
    """Equal with equal types, floats compared by their bits."""
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if type(a) is not type(b):
        return False
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and raw(a) == raw(b)
    if isinstance(a, np.ndarray | np.generic):
        return a.dtype == b.dtype and np.shape(a) == np.shape(b) and a.tobytes() == b.tobytes()
    if isinstance(a, float):
        return struct.pack(">d", a) == struct.pack(">d", b)
    return a == b


def raw(tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


@st.composite
def tensors(draw):
    shape = draw(hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3))
    dtype = draw(st.sampled_from(TORCH_DTYPES))
    count = int(np.prod(shape)) * dtype.itemsize
    data = bytes(draw(st.binary(min_size=count, max_size=count))) if dtype != torch.bool else bytes(count)
    tensor = torch.frombuffer(bytearray(data), dtype=dtype) if count else torch.empty(0, dtype=dtype)
    tensor = tensor.reshape(shape)
    return tensor.transpose(0, -1) if draw(st.booleans()) and tensor.dim() > 1 else tensor


arrays = st.sampled_from(DTYPES).flatmap(
    lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3))
)
scalars = st.sampled_from([d for d in DTYPES if d[0] not in "<>"]).flatmap(
    lambda dtype: hnp.arrays(dtype, (1,)).map(lambda array: array[0])
)
leaves = (
    st.none() | st.booleans() | st.integers() | st.integers(-(2**130), 2**130) | st.floats() | st.text() | st.binary()
    | arrays | scalars | tensors()
)  # fmt: skip
keys = st.text() | st.integers() | st.sampled_from(["$", "a.b", "__metadata__", ""])
trees = st.dictionaries(
    keys,
    st.recursive(
        leaves,
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.lists(inner, max_size=3).map(tuple)
            | st.dictionaries(keys, inner, max_size=4)
        ),
        max_leaves=12,
    ),
    max_size=5,
)


@settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(trees)
def test_round_trip(tmp_path, state):
    assert storable(state)
    assert same(state, round_trip(state, tmp_path))


def test_round_trip_of_the_corner_cases(tmp_path):
    weight = torch.arange(12.0).reshape(3, 4)
    state = {
        "rng": np.random.default_rng(3).bit_generator.state,
        "legacy": np.random.RandomState(3).get_state(),
        "floats": [
            float("nan"),
            float("inf"),
            -float("inf"),
            -0.0,
            5e-324,
            struct.unpack(">d", b"\xff\xf8" + bytes(6))[0],
        ],
        "zero-d": [np.array(3.0), torch.tensor(3), np.array(True)],
        "empty": [np.zeros((0, 4), np.float32), torch.zeros(0, 3), [], {}, (), "", b""],
        "shared": [weight, weight[1:], weight.T, torch.nn.Parameter(weight)],
        "strided": np.arange(20)[::3],
        "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "table": np.array([(1, 2.5)], dtype=[("a", "i4"), ("b", ">f8")]),
        "wide": [np.longdouble(1) / 3, np.array([np.longdouble(1) / 3])],
        "surrogate": "\ud800",
        "a.b": np.ones(1),
        "a": {"b": np.zeros(2)},
        3: {-(2**70): 2**200},
    }
    back = round_trip(state, tmp_path)
    state["shared"][3] = state["shared"][3].detach()
    state["fortran"] = np.ascontiguousarray(state["fortran"])
    assert same(state, back)
    assert back["fortran"].flags.writeable


def test_ordered_dict_comes_back_as_dict(tmp_path):
    module = torch.nn.Linear(2, 2)
    assert type(module.state_dict()) is OrderedDict
    assert same(dict(module.state_dict()), round_trip({"m": module.state_dict()}, tmp_path)["m"])


def test_the_file_is_what_safetensors_writes_and_reads(tmp_path):
    from safetensors.torch import load_file

    given = {
        "w": torch.rand(3, 2).bfloat16(),
        "b": torch.tensor([True, False]),
        "s": torch.tensor(2.5, dtype=torch.float64),
    }
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"".join(bytes(chunk) for chunk in tree.tensor_file(given)))
    assert same(given, dict(sorted(load_file(path).items(), key=lambda x: list(given).index(x[0]))))


class Colour(enum.IntEnum):
    RED = 1


@pytest.mark.parametrize(
    ("value", "named"),
    [
        (deque([1]), "collections.deque"),
        ({1, 2}, "builtins.set"),
        (Colour.RED, "Colour"),
        (namedtuple("Pair", "a b")(1, 2), "Pair"),
        (np.array([object()]), "dtype object"),
        (np.ma.masked_array([1.0], [True]), "MaskedArray"),
        ({(1, 2): 3}, "the key (1, 2)"),
        ({True: 3}, "the key True"),
        (torch.eye(2).to_sparse(), "sparse"),
        (torch.nn.Linear(1, 1), "Linear"),
        (lambda: None, "function"),
    ],
)
def test_what_cannot_be_stored_is_named_with_its_place(value, named):
    with pytest.raises(CheckpointError) as caught:
        tree.encode({"plugins": {"mine": [0, {"x": value}]}})
    assert str(caught.value).startswith("state.plugins.mine[1].x: a checkpoint cannot hold ")
    assert named in str(caught.value)
    assert not storable(value)


def test_unknown_kinds_are_refused():
    with pytest.raises(CheckpointError, match="unknown kind of value, 'code'"):
        tree.decode({"a": {"$": "code", "text": "import os"}}, lambda *_: None)


def test_torch_is_imported_only_for_tensors(tmp_path):
    script = f"""
import sys, pathlib, numpy as np
from budwood.checkpoint import Checkpoints
folder = Checkpoints(pathlib.Path({str(tmp_path)!r}), keep=1)
path = folder.save(3, {{"a": np.arange(3), "b": np.ones(2, np.complex128)}}, {{}})
assert folder.load(path)[0]["b"].sum() == 2
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


def test_a_copied_tree_does_not_follow_what_it_was_copied_of() -> None:
    weight = torch.ones(2, requires_grad=True)
    kept = copied({"weight": weight, "pair": (weight, [1, None]), "text": "same"})
    with torch.no_grad():
        weight.zero_()
    assert kept["weight"].tolist() == kept["pair"][0].tolist() == [1.0, 1.0]
    assert not kept["weight"].requires_grad
    assert (kept["pair"][1], kept["text"], type(kept["pair"])) == ([1, None], "same", tuple)
