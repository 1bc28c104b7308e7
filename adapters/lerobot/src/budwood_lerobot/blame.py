"""Whatever a plugin's function raises during training becomes an error that names the plugin."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from budwood.api import BudwoodError, Contributed, ContributionError


@contextmanager
def blamed(item: Contributed[Any], what: str) -> Iterator[None]:
    try:
        yield
    except BudwoodError as error:
        error.who = error.who or item.who
        raise
    except Exception as error:
        raise ContributionError(
            f"its {what} raised {type(error).__name__}: {error}",
            where=f"plugins.{item.plugin}",
            who=item.who,
            do="Run again with --debug to see where",
        ) from error


def misfit(item: Contributed[Any], what: str, do: str = "Report this to its author") -> ContributionError:
    return ContributionError(what, where=f"plugins.{item.plugin}", who=item.who, do=do)
