"""One paragraph an error: what happened, where, who is responsible, what to do."""

from __future__ import annotations


class BudwoodError(Exception):
    """An error a person can act on.

    ``what``: one sentence, the fact.  ``where``: the place in the YAML, the file or the command.
    ``who``: the plugin (``name version``) that asked for it, if any.  ``do``: the next step to take.
    ``problems``: every finding, one line each, when there are several.  ``exit_code`` is what the command line returns.
    """

    exit_code = 1

    def __init__(
        self, what: str, *, where: str = "", who: str = "", do: str = "", problems: tuple[str, ...] = ()
    ) -> None:
        self.what, self.where, self.who, self.do = map(_printable, (what, where, who, do))
        self.problems = tuple(map(_printable, problems))
        super().__init__(self.what, self.where, self.who, self.do)

    def __str__(self) -> str:
        parts = [f"{self.where}: {self.what}" if self.where else self.what]
        if self.who:
            parts.append(f"Asked for by {self.who}.")
        if self.do:
            parts.append(self.do)
        paragraph = " ".join(part if part.endswith((".", "?", "!", ":")) else f"{part}." for part in parts)
        lines = [paragraph, *(f"  - {problem}" for problem in self.problems)]
        return "\n".join(" ".join(line.splitlines()) for line in lines)


def _printable(text: str) -> str:
    """What a terminal would obey, and halves of characters that no file can hold, as escapes."""
    return "".join(
        sign if sign.isprintable() or sign.isspace() else sign.encode("unicode_escape").decode() for sign in text
    )


class ConfigError(BudwoodError):
    """The configuration cannot be used; ``problems`` lists every finding, one line each."""

    exit_code = 2


class PluginError(BudwoodError):
    """A plugin is missing, too old or new, broken, or collides with another one."""

    exit_code = 3


class BindingError(BudwoodError):
    """A contribution that the chosen trainer cannot bind, with the reason."""

    exit_code = 3


class ContributionError(BudwoodError):
    """A contribution misbehaved during training: wrong shape, NaN, missing info key, ..."""

    exit_code = 4


class CheckpointError(BudwoodError):
    """A checkpoint is missing, altered, or belongs to another configuration."""

    exit_code = 5


class DiskFullError(BudwoodError):
    """No space left while writing; what was written before stays loadable."""

    exit_code = 6
