"""What can go wrong with a model, as paragraphs a person can act on."""

from __future__ import annotations

from budwood.api import BudwoodError


class ModelError(BudwoodError):
    """A model is missing, cannot be read, was asked for something it cannot do, or does not answer."""

    exit_code = 7


def missing_extra(what: str, extra: str, module: str) -> ModelError:
    """``what`` needs the Python module ``module``, which the extra ``extra`` brings."""
    return ModelError(f"{what} needs the package {module}, which is not installed", do=install(extra))


def install(extra: str) -> str:
    return f'pip install "budwood-models[{extra}]"'
