"""``budwood models``: what is here, what is not and how to get it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click

from budwood_models.cache import cache_folder, is_whole, manifest
from budwood_models.errors import ModelError, install
from budwood_models.packaged import PACKAGED


@dataclass(frozen=True)
class Row:
    """``name`` is what the load functions take; ``state`` is ready, installed (converted at its first use) or missing."""

    name: str
    kind: str
    state: str
    where: str
    what: str
    do: str = ""


@click.group()
def models() -> None:
    """Language models, encoders and rerankers that plugins can load by name.

    \b
      budwood models list                  what is here, and how to get the rest
      budwood models convert smollm2       now what its first use would do
      budwood models convert my-model.gguf
    """


@models.command("list")
def list_models() -> list[dict[str, str]]:
    """Models by short name, converted GGUF files and what the hub's cache holds. Nothing is loaded or fetched.

    \b
      budwood models list
      budwood models list --json
    """
    rows = [*_packaged(), *_converted(), *_from_the_hub()]
    width = max(map(len, PACKAGED))
    for row in rows:
        name = row.name.ljust(width) if len(row.name) <= width else f"{row.name}\n{' ' * width}"
        click.echo(f"{name}  {row.state:9}  {row.kind:14}  {row.what}")
        for line in filter(None, (row.where, f"-> {row.do}" if row.do else "")):
            click.echo(f"{' ' * width}  {line}")
    click.echo(f"\nconverted models are kept in {cache_folder() / 'models'}; BUDWOOD_CACHE chooses another folder")
    return [asdict(row) for row in rows]


def _packaged() -> Iterator[Row]:
    converted = {facts["source"] for _, facts in _conversions()}
    for model in PACKAGED.values():
        found = model.find()
        if found is None:
            yield Row(model.name, model.kind, "missing", "", model.what, install(model.extra))
        elif found.suffix == ".gguf" and found.name not in converted:
            do = f"budwood models convert {model.name}"
            yield Row(model.name, model.kind, "installed", str(found), model.what, do)
        else:
            yield Row(model.name, model.kind, "ready", str(found), model.what)


def _converted() -> Iterator[Row]:
    for folder, facts in _conversions():
        megabytes = sum(facts["files"].values()) / 1e6
        yield Row(str(folder), "language model", "ready", "", f"from {facts['source']}, {megabytes:.0f} MB")


def _conversions() -> Iterator[tuple[Path, dict[str, Any]]]:
    for folder in sorted((cache_folder() / "models").glob("*")):
        facts = manifest(folder)
        if facts is not None and is_whole(folder):
            yield folder, facts


def _from_the_hub() -> Iterator[Row]:
    from huggingface_hub import constants, scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        repositories = scan_cache_dir(constants.HF_HUB_CACHE).repos
    except CacheNotFound:
        return
    for repository in sorted(repositories, key=lambda each: each.repo_id):
        if repository.repo_type == "model":
            what = f"from the hub, {repository.size_on_disk / 1e6:.0f} MB"
            yield Row(repository.repo_id, "any", "ready", str(repository.repo_path), what)


@models.command()
@click.argument("name")
def convert(name: str) -> dict[str, str | float]:
    """Convert a GGUF file into an ordinary model folder, as its first use would. NAME is a short name or a file.

    \b
      budwood models convert smollm2
      budwood models convert ~/models/my-model.gguf --json
    """
    from budwood_models.language_model import resolve

    begun = time.perf_counter()
    folder = resolve(name)
    facts = manifest(Path(folder))
    if facts is None:
        raise ModelError("there is nothing to convert: it loads as it is", where=name)
    seconds = time.perf_counter() - begun
    click.echo(f"{folder}  ({seconds:.1f} s)")
    return {"folder": folder, "source": facts["source"], "sha256": facts["sha256"], "seconds": round(seconds, 2)}
