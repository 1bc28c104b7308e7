"""Launches that come to nothing, without anything heavy to import."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from budwood.api import ConfigError


def launch_broken(use: Callable[[Callable[[], Any]], None]) -> None:
    print("no such robot", flush=True)
    use(lambda: 1 / 0)


def launch_misconfigured(use: Callable[[Callable[[], Any]], None]) -> None:
    raise ConfigError("no task is called 'x'", where="env.id", do="Choose another")


def launch_licensed(use: Callable[[Callable[[], Any]], None]) -> None:
    """Asks on standard input, and leaves with a hint, as isaacsim-kernel 6.2.0.0 does when it is imported."""
    print("Do you accept the EULA? (Yes/No): ", end="", flush=True)
    try:
        input()
    except EOFError:
        sys.exit("EULA not accepted.")
    sys.exit("accepted")
