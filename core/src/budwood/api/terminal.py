"""What commands of plugins show while they work."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import click


class ProgressLine:
    """A line that is rewritten on a terminal; elsewhere a new one every ten seconds. On standard error."""

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()
        self._every = 0.2 if self._terminal else 10.0
        self._next = time.monotonic() + self._every

    def show(self, line: Callable[[], str]) -> None:
        """``line`` is called only when it is time for one."""
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + self._every
        click.echo(f"\r\x1b[K{line()}" if self._terminal else line(), nl=not self._terminal, err=True)

    def clear(self) -> None:
        if self._terminal:
            click.echo("\r\x1b[K", nl=False, err=True)
