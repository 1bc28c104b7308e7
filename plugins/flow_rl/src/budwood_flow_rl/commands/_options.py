"""What the subcommands share: types of options, the progress line, and Ctrl-C that waits for a moment to stop at."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

FILE = click.Path(dir_okay=False, path_type=Path)
FOLDER = click.Path(file_okay=False, path_type=Path)


class Count(click.ParamType[int]):
    """A positive integer, with ``_`` between digits if one likes."""

    name = "integer"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            number = int(value)
        except ValueError:
            self.fail(f"{value!r} is no integer", param, ctx)
        if number < 1:
            self.fail(f"{number} is not positive", param, ctx)
        return number


def arguments(_ctx: click.Context, _param: click.Parameter, text: str | None) -> dict[str, Any] | None:
    """``--env-args``: a JSON object."""
    if text is None:
        return None
    try:
        value = json.loads(text)
    except ValueError as error:
        raise click.BadParameter(f"not JSON: {error}") from error
    if not isinstance(value, dict):
        raise click.BadParameter('a JSON object is needed, as {"reset_noise_scale": 0.1}')
    return value


@contextmanager
def stoppable() -> Iterator[Callable[[], bool]]:
    """Gives ``stop()``: whether Ctrl-C or SIGTERM came. A second one interrupts at once."""
    asked = False

    def handle(_number: int, _frame: Any) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True

    numbers = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
    before = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield lambda: asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
