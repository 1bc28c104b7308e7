"""What ``budwood plugin new`` writes: the files under ``plugin/`` with three words put in."""

from __future__ import annotations

import keyword
import re
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

from budwood.api import ConfigError
from budwood.plugins import kebab, snake

SUFFIX = ".tmpl"


def write_plugin(name: str, folder: Path | None = None) -> Path:
    """Write the package of a new plugin; ``folder`` (default ``budwood-NAME``) must not exist. Returns it."""
    word = _checked(name)
    target = (folder or Path(f"budwood-{kebab(word)}")).expanduser()
    if target.exists():
        raise ConfigError(
            "this folder exists, and nothing is overwritten", where=str(target), do="Choose another --path"
        )
    camel = "".join(part.capitalize() for part in word.split("_"))
    words = {"{{name}}": word, "{{kebab}}": kebab(word), "{{Class}}": camel}
    for source, place in _templates(files(__name__) / "plugin", Path()):
        path = target / place.replace("package", f"budwood_{word}").removesuffix(SUFFIX)
        path.parent.mkdir(parents=True, exist_ok=True)
        text = source.read_text(encoding="utf-8")
        for placeholder, value in words.items():
            text = text.replace(placeholder, value)
        path.write_text(text, encoding="utf-8")
    return target


def _checked(name: str) -> str:
    word = snake(name)
    if word.startswith("budwood"):
        raise ConfigError(f"{name!r} repeats the prefix", do="Leave it out: the package is called budwood-NAME")
    if not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", word) or keyword.iskeyword(word):
        raise ConfigError(
            f"{name!r} cannot be the name of a plugin", do="Use lower-case words such as curiosity or random-network"
        )
    return word


def _templates(folder: Traversable, inside: Path) -> list[tuple[Traversable, str]]:
    found = []
    for item in folder.iterdir():
        if item.is_dir():
            found += _templates(item, inside / item.name)
        elif item.name.endswith(SUFFIX):
            found.append((item, str(inside / item.name)))
    return found
