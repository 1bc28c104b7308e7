"""pick: which passages of a file a question needs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from budwood_lcqa_selector.config import SelectorConfig


@click.command()
@click.option("--question", required=True, help="What is asked.")
@click.option(
    "--passages",
    "file",
    required=True,
    type=click.Path(path_type=Path),
    help="JSON lines with text, and perhaps title and id; or plain text, a passage between blank lines.",
)
@click.option(
    "--picker",
    required=True,
    help="Who picks: an endpoint http(s)://host/v1#model, a language model (short name, folder, hub id), or head:FILE.",
)
@click.option(
    "--config",
    "trained",
    type=click.Path(dir_okay=False, path_type=Path),
    help="The YAML that the picker was trained with: it is asked as in its last stage. Default: the plugin's own words.",
)
@click.option("--key-env", help="Environment variable that holds the endpoint's key.")
@click.option("--candidates", default=30, show_default=True, type=click.IntRange(1), help="Passages shown at most.")
@click.option("--budget", default=6_000, show_default=True, type=click.IntRange(1), help="Tokens shown at most.")
@click.option("--max-tokens", default=256, show_default=True, type=click.IntRange(1), help="Length of the answer.")
def command(
    question: str,
    file: Path,
    picker: str,
    trained: Path | None,
    key_env: str | None,
    candidates: int,
    budget: int,
    max_tokens: int,
) -> dict[str, Any]:
    """Print the passages that a question needs, why, and how much shorter the context is.

    \b
      budwood lcqa pick --question "Who founded Ann's employer?" --passages pool.jsonl --picker http://localhost:8000/v1#qwen
      budwood lcqa pick --question "..." --passages pool.jsonl --picker model/ --config picker.yaml
      budwood lcqa pick --question "..." --passages notes.txt --picker head:head.safetensors --json
    """
    from budwood.api import BudwoodError
    from budwood_lcqa_selector.selecting import pick, picker_named

    passages = read_passages(file)
    asked = None if trained is None else read_asking(trained)
    chooser = picker_named(picker, key_env, max_tokens, asked)
    found = pick(question, passages, chooser, candidates=candidates, budget=budget)
    if found.error is not None:
        raise BudwoodError(
            f"the picker's answer is malformed: {found.error}",
            where=picker,
            do="Use a larger model, or more --max-tokens if it was cut off",
        )
    for passage in found.passages:
        click.echo(f"[{passage.id}] {passage.titled}\n")
    click.echo(f"rationale: {found.rationale or 'none'}")
    share = 100 * found.tokens / max(1, found.pool_tokens)
    click.echo(
        f"{len(found.ids)} of {len(passages)} passages, {found.tokens:,} of {found.pool_tokens:,} tokens ({share:.0f} %)"
    )
    return {
        "ids": list(found.ids),
        "rationale": found.rationale,
        "context": found.context,
        "tokens": found.tokens,
        "pool_tokens": found.pool_tokens,
    }


def read_passages(path: Path) -> list[dict[str, Any] | str]:
    """:raises DataError: for a file that is missing, is not UTF-8, or has a line that is no passage, naming it."""
    from budwood_lcqa_selector.records import DataError, bad_line, read_jsonl
    from budwood_lcqa_selector.selecting import is_id

    if path.suffix in (".jsonl", ".ndjson"):
        found: list[dict[str, Any] | str] = []
        for number, values in read_jsonl(path):
            if not isinstance(values.get("text"), str):
                raise bad_line(path, number, 'a passage needs "text", a string')
            if not is_id(values.get("id", "")):
                raise bad_line(path, number, f"a passage's id is a string or an integer, not {values['id']!r}")
            found.append(values)
        return found
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"the passages cannot be read: {error}", where=str(path), do="Give a UTF-8 text file"
        ) from error
    return [block.strip() for block in text.replace("\r\n", "\n").split("\n\n") if block.strip()]


def read_asking(path: Path) -> SelectorConfig:
    """What the section of a run's YAML says of asking, with its last stage only.

    :raises ConfigError: for a file that is missing or no YAML, has no such section, or says something else there.
    """
    import yaml
    from pydantic import ValidationError

    from budwood.api import ConfigError
    from budwood_lcqa_selector.config import SelectorConfig

    try:
        plugins = yaml.safe_load(path.read_text(encoding="utf-8-sig"))["plugins"]
        (section,) = (given or {} for name, given in plugins.items() if name.replace("-", "_") == "lcqa_selector")
        asking = {key: section[key] for key in ("task", "words", "rationale", "think") if key in section}
        if "stages" in section:
            last = section["stages"][-1]
            asking["stages"] = [{key: last[key] for key in ("name", "red", "prompt")}]
        return SelectorConfig.model_validate_json(json.dumps(asking))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, ValidationError) as error:
        reason = str(error)
    except (KeyError, IndexError, TypeError, AttributeError, ValueError):
        reason = "it has no section plugins.lcqa_selector, or one without a last stage"
    raise ConfigError(
        f"how the picker was asked cannot be read: {reason}", where=str(path), do="Give the YAML of its run"
    )
