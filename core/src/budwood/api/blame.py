"""What goes wrong in a plugin's code during training becomes an error that names the plugin."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from budwood.api.errors import BudwoodError, ContributionError
from budwood.api.trainer import Contributed


@contextmanager
def blamed(item: Contributed[Any], what: str, when: str = "") -> Iterator[None]:
    """Around a call of ``item``. ``what`` was called, e.g. ``reward term speed``; ``when`` goes behind the place.

    :raises ContributionError: for whatever it raises; errors of ours pass, attributed.
    """
    try:
        yield
    except BudwoodError as error:
        error.who = error.who or item.who
        raise
    except Exception as error:
        raise ContributionError(
            f"its {what} raised {type(error).__name__}: {error}",
            where=f"plugins.{item.plugin}{when and f', {when}'}",
            who=item.who,
            do="Run again with --debug to see where",
        ) from error


def misfit(item: Contributed[Any], what: str, do: str = "Report this to its author") -> ContributionError:
    """To raise for a value that cannot be used."""
    return ContributionError(what, where=f"plugins.{item.plugin}", who=item.who, do=do)
