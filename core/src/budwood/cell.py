"""One run of a study, in a process of its own: ``python -m budwood.cell FOLDER``.

Standard input brings the run's configuration as one line of JSON and then stays open for as long as the run is wanted: when
it closes, because a person stopped the study or the study's process died, the run checkpoints and stops. What the study
shows of it goes out on the original standard output as lines of JSON; whatever else is printed goes to standard error.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from budwood.progress import Progress
from budwood.redact import scrubbed, without_secrets

EVERY_SECONDS = 0.5


class Lines(Progress):
    """Progress for a program that reads it. A reader that went away ends nothing."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._told = 0.0

    def start(self, total: int, already: int = 0) -> None:
        self.say(steps=already)

    def update(self, steps: int, metrics: Mapping[str, float]) -> None:
        if time.monotonic() - self._told > EVERY_SECONDS:
            self._told = time.monotonic()
            self.say(steps=steps)

    def message(self, text: str) -> None:
        print(without_secrets(text), file=sys.stderr, flush=True)

    def stop(self, text: str = "") -> None:
        """Trained, failed or interrupted: what is left is to wait for the tracker, which needs no core."""
        self.say(trained=True)

    def say(self, **facts: Any) -> None:
        with suppress(OSError):
            os.write(self._descriptor, f"{json.dumps(scrubbed(facts))}\n".encode())


def main() -> int:
    channel = os.dup(1)
    os.dup2(2, 1)
    order = json.loads(_line(0))
    threading.Thread(target=_stop_when_closed, args=(0,), daemon=True).start()

    from budwood.api import BudwoodError
    from budwood.folder import RunFolder
    from budwood.overrides import Loaded
    from budwood.runs import take_up

    lines = Lines(channel)
    try:
        take_up(RunFolder(Path(sys.argv[1])), Loaded(order["config"], order["origin"], {}), lines)
    except BudwoodError as error:
        lines.say(error=str(error))
        lines.message(f"error: {error}")
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    return 0


def _line(descriptor: int) -> bytes:
    """Up to and without the line's end. Not buffered: the rest of the pipe belongs to :func:`_stop_when_closed`."""
    line = bytearray()
    while (byte := os.read(descriptor, 1)) not in (b"", b"\n"):
        line += byte
    return bytes(line)


def _stop_when_closed(descriptor: int) -> None:
    """What Ctrl-C does to a run. Before training has begun nothing handles the signal, and the process just ends."""
    while os.read(descriptor, 1):
        pass
    main = threading.main_thread().ident
    assert main is not None
    signal.pthread_kill(main, signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main())
