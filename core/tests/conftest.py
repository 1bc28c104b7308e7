"""Distributions that exist only in a test's folder, and plugins that exist only in memory."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from budwood import plugins
from budwood.plugins import Activation, Active, Installed

sys.path.insert(0, str(Path(__file__).parent))  # for rootstock, which several tests share


class Site:
    """A folder on ``sys.path``; its distributions are the only ones that discovery sees."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def add(
        self,
        distribution: str,
        version: str,
        entries: Mapping[str, str],
        source: Mapping[str, str] | None = None,
        requires: str = "",
    ) -> None:
        """Write ``entries`` (name -> module:object), the ``source`` of modules, and ``requires``, a Requires-Dist line.

        The distribution calls itself a thing by its own name.
        """
        info = self.folder / f"{distribution.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        lines = [f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\nSummary: A\n  {distribution}"]
        (info / "METADATA").write_text("\n".join([*lines, *([f"Requires-Dist: {requires}"] if requires else []), ""]))
        listed = "\n".join(f"{name} = {value}" for name, value in entries.items())
        (info / "entry_points.txt").write_text(f"[{plugins.GROUP}]\n{listed}\n")
        for module, text in (source or {}).items():
            (self.folder / f"{module}.py").write_text(text)
        plugins._scan.cache_clear()


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    folder = tmp_path / "site"
    folder.mkdir()
    everything = metadata.distributions
    monkeypatch.setattr(metadata, "distributions", lambda: everything(path=[str(folder)]))
    monkeypatch.syspath_prepend(str(folder))
    plugins._scan.cache_clear()
    before = set(sys.modules)
    yield Site(folder)
    for name in set(sys.modules) - before:
        if (getattr(sys.modules[name], "__file__", None) or "").startswith(str(folder)):
            del sys.modules[name]
    plugins._scan.cache_clear()


@pytest.fixture
def toy(site: Site, monkeypatch: pytest.MonkeyPatch) -> Path:
    """``trainer: {kind: toy}`` of ``toy.py``, here and in the processes that are started; the folder of its module."""
    source = Path(__file__).with_name("toy.py").read_text()
    site.add("budwood-toy", "1.0", {"toy": "toy_adapter:Adapter"}, {"toy_adapter": source})
    monkeypatch.setenv("PYTHONPATH", str(site.folder))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return site.folder


@pytest.fixture
def in_memory() -> Callable[..., Active]:
    """(name, instance, version) -> the plugin as if it came from ``budwood-<name>``."""

    def make(name: str, instance: object, version: str = "1.0") -> Active:
        entry = metadata.EntryPoint(name, f"{name}:Plugin", plugins.GROUP)
        return Active(Installed(name, entry.value, f"budwood-{name.replace('_', '-')}", version, "", entry), instance)

    return make


@pytest.fixture
def activation(in_memory: Any) -> Activation:
    """The adapter ``rootstock`` 2.0 with the plugins ``flow`` 0.3 and ``bare``."""
    from rootstock import Bare, Flow, Rootstock

    plugins = [in_memory("flow", Flow(), "0.3"), in_memory("bare_one", Bare())]
    return Activation(plugins, in_memory("rootstock", Rootstock(), "2.0"))


@pytest.fixture
def alone(in_memory: Any) -> Activation:
    from rootstock import Rootstock

    return Activation([], in_memory("rootstock", Rootstock(), "2.0"))
