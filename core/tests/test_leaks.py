"""What a run took and did not give back: told once it is more than trainers take."""

from __future__ import annotations

import os
import threading
from contextlib import ExitStack

import pytest

from budwood.leaks import ALLOWED_FILES, ALLOWED_THREADS, FILES_AN_ENVIRONMENT, Held, grown, held


def test_files_and_threads_of_this_process_are_counted() -> None:
    before, done = held(), threading.Event()
    threads = [threading.Thread(target=done.wait) for _ in range(3)]
    with ExitStack() as stack:
        for _ in range(5):
            stack.enter_context(open(os.devnull))
        for thread in threads:
            thread.start()
        now = held()
        done.set()
    for thread in threads:
        thread.join()
    assert (now.files - before.files, now.threads - before.threads) == (5 if before.files else 0, 3)


@pytest.mark.parametrize("environments", [1, 4])
def test_more_than_a_trainer_with_its_environments_takes_is_told(environments: int) -> None:
    before = Held(20, 2)
    files = 20 + ALLOWED_FILES + FILES_AN_ENVIRONMENT * environments
    assert not list(grown(before, Held(files, 2 + ALLOWED_THREADS), environments))
    (said,) = grown(before, Held(files + 1, 2), environments)
    assert said.startswith(f"this process has {files + 1 - 20} open files and 0 threads more than when training began")
    (said,) = grown(before, Held(10, 3 + ALLOWED_THREADS), environments)
    assert said.startswith(f"this process has 0 open files and {1 + ALLOWED_THREADS} threads more")
