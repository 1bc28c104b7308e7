"""Digests of other people's source that a seam relies on without it being promised."""

from __future__ import annotations

import ast
import hashlib
import importlib
import inspect
import textwrap
from typing import Any


def source_hash(place: str) -> str:
    """Of the function at ``module:Class.name``: 16 hex digits of its syntax without docstring, comments and layout.

    A changed hash is no bug. It says that what relies on the function has to be read again before the newer version is
    allowed.
    """
    module, _, path = place.partition(":")
    found: Any = importlib.import_module(module)
    for name in path.split("."):
        found = inspect.getattr_static(found, name)
    function = inspect.unwrap(getattr(found, "__func__", found))
    parsed: Any = ast.parse(textwrap.dedent(inspect.getsource(function)))
    body = parsed.body[0].body
    if isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant):
        del body[0]
    return hashlib.sha256(ast.dump(parsed).encode()).hexdigest()[:16]
