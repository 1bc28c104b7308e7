"""Several processes of one run inside a test: forked from it, so that what it has imported is not imported again."""

from __future__ import annotations

import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from typing import Any

from budwood.processes import environment

DEADLINE_SECONDS = 120.0


def forked(count: int, work: Callable[[], Any]) -> list[Any]:
    """What ``work`` returns in each of ``count`` processes, by rank; in each, ``budwood.run`` finds the others.

    It is to return plain values and arrays of numpy: the memory of a tensor ends with its process.

    :raises RuntimeError: it failed in one of them, with that one's traceback.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("fork")
    children, answers = [], []
    for rank in range(count):
        answer, sender = context.Pipe(duplex=False)
        given = environment(rank, count, port, DEADLINE_SECONDS)
        child = context.Process(target=_answer, args=(work, given, sender))
        child.start()
        sender.close()
        children.append(child)
        answers.append(answer)
    told = [_received(answer) for answer in answers]
    for child in children:
        child.join()
    failed = [text for done, text in told if not done]
    if failed:
        raise RuntimeError("\n".join(failed))
    return [value for _, value in told]


def _answer(work: Callable[[], Any], given: Mapping[str, str], sender: Connection) -> None:
    os.environ.update(given)
    try:
        sender.send((True, work()))
    except BaseException:
        sender.send((False, traceback.format_exc()))
        raise


def _received(answer: Connection) -> tuple[bool, Any]:
    try:
        done, value = answer.recv()
    except EOFError:
        return False, "a process ended without a word"
    return done, value
