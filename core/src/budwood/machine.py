"""What a run depends on outside its configuration: package versions, the commit, the hardware; and what may be wrong here.

Everything comes from metadata, files and short-lived commands. No plugin, trainer or tracker is imported for it.
"""

from __future__ import annotations

import ctypes.util
import os
import platform
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from packaging.requirements import Requirement

GIT_SECONDS = 2.0
CONNECT_SECONDS = 2.0
LOW_DISK, FULL_DISK = 2e9, 2e8
"""Bytes free in the output folder below which doctor warns, and calls it an error."""


def versions() -> dict[str, str]:
    """Python, budwood, every plugin's distribution and whatever they require, as far as it is installed."""
    found = {"python": platform.python_version()}
    for name in _ours():
        found[name] = metadata.version(name)
        for requirement, _ in _requirements(name):
            if (version := _version(requirement.name)) is not None:
                found[requirement.name] = version
    return dict(sorted(found.items()))


def version_changes(before: Mapping[str, str]) -> list[str]:
    """One sentence for every package that is not what it was when ``before`` was recorded."""
    now = versions()
    return [
        f"{name} was {before.get(name, 'not installed')} and is {now.get(name, 'not installed')} now"
        for name in sorted({*before, *now})
        if before.get(name) != now.get(name)
    ]


def cpu_seconds() -> float:
    """User and system time of this process so far, of its children that ended and, on Linux, of those that live and of theirs.

    A child in a process session of its own, such as the tracking process, counts only once it has ended.
    """
    return sum(os.times()[:4]) + sum(map(_cpu_of, _living_below("self")))


def _living_below(process: int | str) -> Iterator[int]:
    """Environment workers, for one, are children of the process that forks them."""
    for listed in Path(f"/proc/{process}/task").glob("*/children"):
        with suppress(OSError):
            for pid in map(int, listed.read_text().split()):
                if os.getsid(pid) == os.getsid(0):
                    yield pid
                    yield from _living_below(pid)


def _cpu_of(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def tags() -> dict[str, str]:
    """Commit and hardware as tracking tags; what cannot be found out is left out."""
    facts = {f"hardware.{name}": str(value) for name, value in hardware().items()}
    return {**git(Path.cwd()), "python": platform.python_version(), **facts}


def git(folder: Path) -> dict[str, str]:
    """``git.commit`` and ``git.dirty`` (tracked files only) of the repository around ``folder``; empty without one."""
    command = ["git", "status", "--porcelain=v2", "--branch", "--untracked-files=no"]
    quiet = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
    try:
        done = subprocess.run(
            command, cwd=folder, env=quiet, capture_output=True, text=True, timeout=GIT_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return {}
    head, changes = "", False
    for line in done.stdout.splitlines():
        if line.startswith("# branch.oid "):
            head = line.removeprefix("# branch.oid ")
        changes |= not line.startswith("#")
    return {"git.commit": head, "git.dirty": str(changes).lower()} if len(head) >= 40 else {}


def hardware() -> dict[str, str | int | float]:
    """``platform``, ``cpu``, ``cores`` this process may use, ``memory_gb``, ``gpu`` (names, joined by ``, ``)."""
    facts: dict[str, str | int | float] = {
        "platform": platform.platform(),
        "cpu": _cpu(),
        "cores": cores(),
        "memory_gb": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9, 1),
    }
    gpus = _gpus()
    return {**facts, "gpu": ", ".join(gpus)} if gpus else facts


def cores() -> int:
    """CPU cores this process may use, a container's quota included."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota, _, period = _text("/sys/fs/cgroup/cpu.max").partition(" ")
    return min(allowed, max(1, int(quota) // int(period))) if quota.isdigit() else allowed


@dataclass(frozen=True)
class Finding:
    """One line of ``budwood doctor``: ``do`` is the next step, empty if there is none to take."""

    level: Literal["ok", "warn", "error"]
    topic: str
    what: str
    do: str = ""


def doctor(output: Path | None = None) -> list[Finding]:
    """Look at everything a run needs. ``output`` is the folder for runs, by default the one a run would use."""
    from budwood.folder import default_output

    folder = (output or default_output()).absolute()
    return [
        *_python(),
        *_plugins(),
        *_packages(),
        *_devices(),
        *_rendering(),
        *_threads(),
        *_output(folder),
        *_tracker(folder),
    ]


def _python() -> Iterator[Finding]:
    from packaging.specifiers import SpecifierSet

    needed = metadata.metadata("budwood").get("Requires-Python", "")
    here = f"Python {platform.python_version()} at {sys.executable}"
    if SpecifierSet(needed).contains(platform.python_version()):
        yield Finding("ok", "python", here)
    else:
        yield Finding("error", "python", f"{here}; budwood needs {needed}", "Make an environment with such a Python")


def _plugins() -> Iterator[Finding]:
    from budwood import __version__
    from budwood.api.errors import PluginError
    from budwood.plugins import check_range, find, installed

    if not installed():
        yield Finding("warn", "plugins", "no plugin and no trainer adapter is installed", "pip install budwood-sb3")
    for name in dict.fromkeys(item.name for item in installed()):
        try:
            item = find(name)
            check_range(item, __version__)
        except PluginError as error:
            yield Finding("error", "plugins", f"{name}: {error.what}" + (f" ({error.who})" * bool(error.who)), error.do)
        else:
            yield Finding("ok", "plugins", f"{name} ({item.who})")
    for who, names in _commands().items():
        yield Finding("ok", "commands", f"{', '.join(names)} ({who})")


def _commands() -> dict[str, list[str]]:
    """Commands of distributions that bring no plugin, by who brings them: libraries that plugins share."""
    from budwood.plugins import COMMAND_GROUP, entry_points, installed

    plugins = {item.distribution for item in installed()}
    found: dict[str, list[str]] = {}
    for item in entry_points(COMMAND_GROUP):
        if item.distribution not in plugins:
            found.setdefault(item.who, []).append(item.name)
    return found


def _packages() -> Iterator[Finding]:
    for name in _ours():
        for requirement, optional in _requirements(name):
            version = _version(requirement.name)
            if version is None and not optional:
                yield Finding("error", "packages", f"{name} needs {requirement.name}: not installed", _pip(requirement))
            elif version is not None and not requirement.specifier.contains(version, prereleases=True):
                found = f"{requirement.name} {version} is outside {requirement.specifier}, which {name} needs"
                yield Finding("warn" if optional else "error", "packages", found, _pip(requirement))
    for name, use in (("mlflow", "tracking"), ("torch", "training")):
        if (version := _version(name)) is not None:
            yield Finding("ok", "packages", f"{name} {version}")
        else:
            yield Finding("warn", "packages", f"{name} is not installed: no {use} here", f"pip install {name}")


def _devices() -> Iterator[Finding]:
    facts = hardware()
    yield Finding("ok", "hardware", f"{facts['cpu']}, {facts['cores']} cores, {facts['memory_gb']} GB memory")
    yield Finding("ok", "hardware", f"GPU: {facts.get('gpu', 'none found')}")


def _rendering() -> Iterator[Finding]:
    if _version("mujoco") is None:
        return
    chosen = os.environ.get("MUJOCO_GL", "")
    there = [name for name in ("EGL", "OSMesa") if ctypes.util.find_library(name)]
    if chosen.lower() in ("egl", "osmesa") and chosen.lower() not in [name.lower() for name in there]:
        what = f"MUJOCO_GL={chosen}, and that library is not installed: importing MuJoCo environments may fail"
        yield Finding("error", "rendering", what, "Unset MUJOCO_GL, or install libegl1 or libosmesa6")
    elif there:
        yield Finding("ok", "rendering", f"off-screen rendering with {' or '.join(there)}")
    else:
        what = "neither EGL nor OSMesa is installed: training works, images of MuJoCo environments do not"
        yield Finding("warn", "rendering", what, "Install libegl1 or libosmesa6 if you need images")


def _threads() -> Iterator[Finding]:
    asked, available = os.environ.get("OMP_NUM_THREADS", ""), cores()
    if asked.isdigit() and int(asked) > available:
        what = f"OMP_NUM_THREADS={asked} on {available} cores slows training down"
        yield Finding("warn", "threads", what, f"export OMP_NUM_THREADS={available}")
    else:
        yield Finding("ok", "threads", f"OMP_NUM_THREADS={asked or 'unset'}, {available} cores")


def _output(folder: Path) -> Iterator[Finding]:
    there = next(path for path in (folder, *folder.parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        yield Finding("error", "output", f"cannot write in {there}: {error.strerror}", "Choose another output folder")
        return
    free = shutil.disk_usage(there).free
    level: Literal["ok", "warn", "error"] = "error" if free < FULL_DISK else "warn" if free < LOW_DISK else "ok"
    do = "" if level == "ok" else "Free some space, or choose another output folder"
    yield Finding(level, "output", f"{folder}: {free / 1e9:.1f} GB free", do)


def _tracker(folder: Path) -> Iterator[Finding]:
    from budwood import tracking

    address, _ = tracking.target(None, folder)
    shown, parts = tracking.without_password(address), urlsplit(address)
    if parts.scheme in ("http", "https") and parts.hostname:
        try:
            with socket.create_connection(
                (parts.hostname, parts.port or (443 if parts.scheme == "https" else 80)), CONNECT_SECONDS
            ):
                yield Finding("ok", "tracker", f"{shown} answers")
        except OSError as error:
            what = f"{shown} does not answer ({error}): runs are kept on disk until it does"
            yield Finding("warn", "tracker", what, "Start it, or check MLFLOW_TRACKING_URI")
    else:
        yield Finding("ok", "tracker", f"MLflow at {shown}")
    waiting = tracking.pending(folder)
    for damage in waiting.damaged:
        yield Finding("error", "tracker", f"{damage.where}: {damage.what}", damage.do)
    if waiting.folders:
        names = ", ".join(path.name for path in waiting.folders[:3])
        what = f"{len(waiting.folders)} runs have something that MLflow has not got yet: {names}"
        yield Finding("warn", "tracker", what, "budwood runs --sync")


def _ours() -> list[str]:
    from budwood.plugins import COMMAND_GROUP, entry_points, installed

    items = (*installed(), *entry_points(COMMAND_GROUP))
    return list(dict.fromkeys(["budwood", *(item.distribution for item in items)]))


def _requirements(distribution: str) -> Iterator[tuple[Requirement, bool]]:
    """(requirement, whether it belongs to an extra) of an installed distribution, for this machine."""
    from packaging.requirements import Requirement

    dist = metadata.distribution(distribution)
    extras = dist.metadata.get_all("Provides-Extra") or []
    for requirement in map(Requirement, dist.requires or ()):
        marker = requirement.marker
        if marker is None or marker.evaluate({"extra": ""}):
            yield requirement, False
        elif any(marker.evaluate({"extra": extra}) for extra in extras):
            yield requirement, True


def _pip(requirement: Requirement) -> str:
    return f'pip install "{requirement.name}{requirement.specifier}"'


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _cpu() -> str:
    for line in _text("/proc/cpuinfo").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _gpus() -> list[str]:
    """From the driver's files; from torch only where it is imported already and there are none (other vendors)."""
    files = Path("/proc/driver/nvidia/gpus").glob("*/information")
    names = [
        line.partition(":")[2].strip() for f in files for line in _text(f).splitlines() if line.startswith("Model")
    ]
    torch = sys.modules.get("torch")
    if names or torch is None or not torch.cuda.is_available():
        return names
    return [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]


def _text(path: str | Path) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""
