"""State trees on disk: a JSON structure beside named tensors, with nothing lost between the two.

A tree is made of dicts (keys str or int), lists, tuples, None, bool, int, float, str, bytes, numpy arrays and scalars, and
torch tensors. What JSON can say stays plain JSON; the rest is an object with the key ``$``::

    {"$": "dict", "items": [[key, value], ...]}      keys that are not all str, or one that is "$"
    {"$": "tuple", "items": [...]}
    {"$": "int", "hex": "-0x..."}                    beyond 64 bits, as in the state of a random generator
    {"$": "float", "hex": "7ff0000000000000"}        nan and infinities, bit by bit
    {"$": "bytes", "base64": "..."}
    {"$": "scalar", "dtype": "<f4", "hex": "..."}    numpy scalar
    {"$": "array", "name": "..."}                    numpy array in the tensor file
    {"$": "npy", "name": "..."}                      likewise, of a dtype safetensors has no word for
    {"$": "tensor", "name": "..."}                   torch tensor; with "dtype" and "shape" if stored as raw bytes

Mappings come back as dict, tensors contiguous, on the CPU and without gradient. torch is imported only if a tensor is there.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import struct
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from math import isfinite, prod
from pathlib import Path
from typing import Any

import numpy as np

from budwood.api import Array, CheckpointError, StateTree

Json = Any
Fetch = Callable[[str, str], Any]
"""(framework, name) -> tensor; the framework is "np" or "pt", as safetensors calls them."""

_WORDS = {
    "float64": ("F64", 8), "int64": ("I64", 8), "uint64": ("U64", 8),
    "float32": ("F32", 4), "int32": ("I32", 4), "uint32": ("U32", 4),
    "float16": ("F16", 2), "bfloat16": ("BF16", 2), "int16": ("I16", 2), "uint16": ("U16", 2),
    "int8": ("I8", 1), "uint8": ("U8", 1), "bool": ("BOOL", 1),
}  # fmt: skip
"""dtype -> (its name in a safetensors header, bytes an element)"""

UNREADABLE = (
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    RuntimeError,
    RecursionError,
    struct.error,
)
"""What foreign structures end in; all of it, for nothing here runs code of anybody else."""

_ALLOWED = "dict, list, tuple, None, bool, int, float, str, bytes, numpy arrays and scalars, torch tensors"


def encode(state: StateTree) -> tuple[Json, dict[str, Any]]:
    """-> (json-able structure, name -> numpy array or torch tensor). Copies no data.

    :raises CheckpointError: a value that cannot be stored, with its place in the tree.
    """
    tensors: dict[str, Any] = {}
    return _encode(state, "state", tensors), tensors


def decode(structure: Json, fetch: Fetch) -> StateTree:
    """The inverse of :func:`encode`; ``fetch`` gives the tensors by name.

    :raises CheckpointError: ``structure`` is not one that :func:`encode` makes.
    """
    try:
        state: StateTree = _decode(structure, fetch)
    except UNREADABLE as error:
        raise CheckpointError(f"the state cannot be read: {type(error).__name__}: {error}") from error
    return state


def tensor_file(tensors: Mapping[str, Any]) -> Iterator[bytes | memoryview]:
    """The bytes of a safetensors file, piece by piece, so that no more than one tensor is ever copied.

    Wide elements come first: every tensor is aligned to its element size.
    """
    entries = sorted(((name, tensor, *_word(tensor)) for name, tensor in tensors.items()), key=lambda entry: -entry[3])
    header, offset = {}, 0
    for name, tensor, word, width in entries:
        shape = [int(size) for size in tensor.shape]
        end = offset + width * prod(shape)
        header[name] = {"dtype": word, "shape": shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    yield struct.pack("<Q", len(text)) + text
    for _, tensor, _, _ in entries:
        yield _bytes(tensor)


def fingerprint(state: Any) -> str:
    """A digest of everything that :func:`encode` and :func:`tensor_file` would write of ``state``: of its bits, so that a NaN
    is itself, and -0.0 is not 0.0."""
    structure, tensors = encode(state)
    digest = hashlib.sha256(json.dumps(structure, sort_keys=True).encode())
    for piece in tensor_file(dict(sorted(tensors.items()))):
        digest.update(piece)
    return digest.hexdigest()


@contextmanager
def open_tensors(path: Path) -> Iterator[Fetch]:
    """The ``fetch`` of :func:`decode` for a safetensors file; what it returns is independent of the file."""
    from safetensors import SafetensorError, safe_open

    with ExitStack() as stack:
        opened: dict[str, Any] = {}

        def fetch(framework: str, name: str) -> Any:
            try:
                if framework not in opened:
                    opened[framework] = stack.enter_context(safe_open(path, framework))
                tensor = opened[framework].get_tensor(name)
            except SafetensorError as error:
                raise CheckpointError(f"cannot read tensor {name!r}: {error}", where=str(path)) from error
            return tensor.clone() if framework == "pt" else tensor

        yield fetch


def _encode(value: Any, place: str, tensors: dict[str, Any]) -> Json:
    kind = type(value)
    if value is None or kind is bool or kind is str:
        return value
    if kind is int:
        return value if -(2**63) <= value < 2**63 else {"$": "int", "hex": hex(value)}
    if kind is float:
        return value if isfinite(value) else {"$": "float", "hex": struct.pack(">d", value).hex()}
    if kind is bytes:
        return {"$": "bytes", "base64": base64.b64encode(value).decode("ascii")}
    if kind is list:
        return [_encode(item, f"{place}[{index}]", tensors) for index, item in enumerate(value)]
    if kind is tuple:
        return {"$": "tuple", "items": [_encode(item, f"{place}[{i}]", tensors) for i, item in enumerate(value)]}
    if isinstance(value, dict):
        return _encode_dict(value, place, tensors)
    if isinstance(value, np.generic):
        return _encode_scalar(value, place)
    if kind is np.ndarray:
        return _encode_array(value, place, tensors)
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        return _encode_tensor(value, place, tensors)
    raise _refusal(place, f"a {kind.__module__}.{kind.__qualname__}")


def _encode_dict(value: dict[Any, Any], place: str, tensors: dict[str, Any]) -> Json:
    for key in value:
        if type(key) not in (str, int):
            raise _refusal(place, f"a dict with the key {key!r}: only str and int are possible")
    items = [(key, _encode(item, f"{place}.{key}", tensors)) for key, item in value.items()]
    if "$" in value or any(type(key) is int for key in value):
        return {"$": "dict", "items": [[key, item] for key, item in items]}
    return dict(items)


def _encode_scalar(value: np.generic, place: str) -> Json:
    if isinstance(value, np.str_ | np.bytes_):
        plain = str(value) if isinstance(value, np.str_) else value.hex()
        return {"$": "scalar", "dtype": value.dtype.kind, "value": plain}
    if value.dtype.kind in "OV":
        raise _refusal(place, f"a numpy scalar of dtype {value.dtype}")
    return {"$": "scalar", "dtype": value.dtype.str, "hex": value.tobytes().hex()}


def _encode_array(value: Array, place: str, tensors: dict[str, Any]) -> Json:
    if value.dtype.name in _WORDS and value.dtype.isnative:
        return {"$": "array", "name": _keep(place, value, tensors)}
    if value.dtype.hasobject:
        raise _refusal(place, f"a numpy array of dtype {value.dtype}")
    buffer = io.BytesIO()
    np.save(buffer, value, allow_pickle=False)
    return {"$": "npy", "name": _keep(place, np.frombuffer(buffer.getvalue(), np.uint8), tensors)}


def _encode_tensor(value: Any, place: str, tensors: dict[str, Any]) -> Json:
    import torch

    if value.layout is not torch.strided or value.is_quantized or value.is_meta:
        raise _refusal(place, "a torch tensor that is sparse, quantised or without data")
    tensor = value.detach().resolve_conj().resolve_neg()
    dtype = str(tensor.dtype).removeprefix("torch.")
    if dtype in _WORDS:
        return {"$": "tensor", "name": _keep(place, tensor, tensors)}
    raw = tensor.contiguous().reshape(-1).view(torch.uint8)
    return {"$": "tensor", "name": _keep(place, raw, tensors), "dtype": dtype, "shape": list(tensor.shape)}


def _keep(place: str, tensor: Any, tensors: dict[str, Any]) -> str:
    name, copies = place, 1
    while name in tensors:  # {"a.b": x} beside {"a": {"b": x}}
        copies += 1
        name = f"{place}#{copies}"
    tensors[name] = tensor
    return name


def _refusal(place: str, what: str) -> CheckpointError:
    return CheckpointError(f"a checkpoint cannot hold {what}", where=place, do=f"A state may contain {_ALLOWED}.")


def _decode(value: Json, fetch: Fetch) -> Any:
    if isinstance(value, list):
        return [_decode(item, fetch) for item in value]
    if not isinstance(value, dict):
        return value
    if "$" not in value:
        return {key: _decode(item, fetch) for key, item in value.items()}
    match value["$"]:
        case "dict":
            return {key: _decode(item, fetch) for key, item in value["items"]}
        case "tuple":
            return tuple(_decode(item, fetch) for item in value["items"])
        case "int":
            return int(value["hex"], 16)
        case "float":
            return struct.unpack(">d", bytes.fromhex(value["hex"]))[0]
        case "bytes":
            return base64.b64decode(value["base64"])
        case "scalar":
            return _decode_scalar(value)
        case "array":
            return fetch("np", value["name"])
        case "npy":
            return np.load(io.BytesIO(fetch("np", value["name"]).tobytes()), allow_pickle=False)
        case "tensor":
            return _decode_tensor(value, fetch)
        case kind:
            raise CheckpointError(f"the state contains an unknown kind of value, {kind!r}")


def _decode_scalar(value: Json) -> np.generic:
    if value["dtype"] == "U":
        return np.str_(value["value"])
    if value["dtype"] == "S":
        return np.bytes_(bytes.fromhex(value["value"]))
    scalar: np.generic = np.frombuffer(bytes.fromhex(value["hex"]), np.dtype(value["dtype"]))[0]
    return scalar


def _decode_tensor(value: Json, fetch: Fetch) -> Any:
    tensor = fetch("pt", value["name"])
    if "dtype" not in value:
        return tensor
    import torch

    dtype = getattr(torch, value["dtype"])
    if not isinstance(dtype, torch.dtype):
        raise TypeError(f"{value['dtype']} is no dtype")
    return tensor.view(dtype).reshape(value["shape"])


def _word(tensor: Any) -> tuple[str, int]:
    return _WORDS[tensor.dtype.name if isinstance(tensor, np.ndarray) else str(tensor.dtype).removeprefix("torch.")]


def _bytes(tensor: Any) -> memoryview:
    """The elements in C order, as bytes; little-endian, as every machine budwood runs on."""
    if isinstance(tensor, np.ndarray):
        return memoryview(np.ravel(tensor, order="C").view(np.uint8))
    import torch

    return memoryview(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
