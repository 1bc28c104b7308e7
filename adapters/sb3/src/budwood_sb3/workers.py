"""Environments in processes of their own, and a sentence about the one that died."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from stable_baselines3.common.vec_env import SubprocVecEnv

from budwood.api import ContributionError

GONE = (EOFError, BrokenPipeError, ConnectionResetError)
"""What the pipe to a process says when the process is not there."""


class WorkerVecEnv(SubprocVecEnv):
    """Stable-Baselines3's own; a process that ended is named instead of the pipe that broke."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        with self._alive():
            super().__init__(*args, **kwargs)

    def reset(self) -> Any:
        with self._alive():
            return super().reset()

    def has_attr(self, attr_name: str) -> bool:
        with self._alive():
            return super().has_attr(attr_name)

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        with self._alive():
            return super().get_attr(attr_name, indices)

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> list[Any]:
        with self._alive():
            return super().env_method(method_name, *args, indices=indices, **kwargs)

    def step_async(self, actions: Any) -> None:
        with self._alive():
            super().step_async(actions)

    def step_wait(self) -> Any:
        with self._alive():
            return super().step_wait()

    def close(self) -> None:
        """As ever, but for processes that are gone already; the others are ended."""
        if self.closed:
            return
        if all(process.is_alive() for process in self.processes):
            super().close()
            return
        for process in self.processes:
            process.terminate()
            process.join()
        self.closed = True

    @contextmanager
    def _alive(self) -> Iterator[None]:
        try:
            yield
        except GONE as error:
            traceback.clear_frames(
                error.__traceback__
            )  # a half-sent message left in them crashes CPython 3.12's collector
            for process in self.processes:
                process.join(timeout=1.0 / len(self.processes))  # its exit code may come after the end of its pipe
            ended = [
                f"environment {index} with exit code {process.exitcode}"
                for index, process in enumerate(self.processes)
                if process.exitcode is not None
            ]
            raise ContributionError(
                f"a process of an environment ended: {', '.join(ended) or 'which one cannot be told'}",
                where="env.vec",
                do="-9 is a kill, by a person or for want of memory; what it printed stands above. Then resume the run",
            ) from error
