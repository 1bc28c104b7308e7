"""The versions that this adapter was written for, read from its own metadata before anything heavy is imported."""

from __future__ import annotations

from importlib import metadata

from packaging.requirements import Requirement

from budwood.api import PluginError

WATCHED = ("lerobot", "transformers")
"""pi0 and pi05 fail inside newer versions of transformers, with an error about shapes that says nothing of the cause."""


def check_versions() -> None:
    """
    :raises PluginError: LeRobot or transformers is outside the range that ``budwood-lerobot`` declares.
    """
    for requirement in map(Requirement, metadata.requires("budwood-lerobot") or ()):
        if requirement.name not in WATCHED or (requirement.marker and not requirement.marker.evaluate({"extra": ""})):
            continue
        found = metadata.version(requirement.name)
        if not requirement.specifier.contains(found, prereleases=True):
            raise PluginError(
                f"{requirement.name} {found} is installed, and budwood-lerobot works with "
                f"{requirement.name}{requirement.specifier}",
                where="trainer.kind",
                who=f"budwood-lerobot {metadata.version('budwood-lerobot')}",
                do=f'pip install "{requirement.name}{requirement.specifier}"',
            )
