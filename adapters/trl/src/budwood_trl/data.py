"""The rows that a run trains on and is evaluated on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict, load_dataset, load_from_disk
from datasets.exceptions import DataFilesNotFoundError, DatasetGenerationError

from budwood.api import ConfigError, Contributions
from budwood_trl.config import DatasetConfig
from budwood_trl.families import Family

FORMATS = {".jsonl": "json", ".json": "json", ".parquet": "parquet"}


def datasets_of(config: DatasetConfig, family: Family, contributions: Contributions) -> tuple[Dataset, Dataset | None]:
    """Training and evaluation rows: the plugins' own, or those of the configuration, inside every plugin's wrapper.

    :raises ConfigError: nothing to train on, an unreadable file, or rows without the columns that the trainer reads.
    """
    train = _made("train", config.train, config.limit, contributions)
    if train is None:
        raise ConfigError(
            f"{family.trainer} has no rows to train on",
            where="dataset.train",
            do="Name a .jsonl or .parquet file, or a folder saved by datasets, or activate a plugin with build_dataset",
        )
    held_out = _made("eval", config.eval, None, contributions)
    for role, rows in (("train", train), ("eval", held_out)):
        if rows is not None:
            check_columns(rows, family, role)
    return train, held_out


def _made(role: str, path: str | None, limit: int | None, contributions: Contributions) -> Dataset | None:
    given = None if path is None else read(Path(path).expanduser(), f"dataset.{role}")
    if given is not None and limit is not None:
        given = given.select(range(min(limit, len(given))))
    if contributions.wrap_dataset is None:
        return given
    made = contributions.wrap_dataset(given, role)
    if made is not None and not isinstance(made, Dataset):
        raise ConfigError(
            f"build_dataset for {role} gave a value of type {type(made).__name__}, expected a datasets.Dataset",
            where="plugins",
            do="Rows that stream have no order to resume in: give a Dataset",
        )
    return made


def read(path: Path, where: str) -> Dataset:
    """One split, from a file by its suffix or from a folder of ``Dataset.save_to_disk``."""
    if path.is_dir():
        try:
            rows = load_from_disk(str(path))
        except (FileNotFoundError, ValueError) as error:
            raise ConfigError(
                f"{path} is no folder that datasets has saved: {' '.join(str(error).split())}",
                where=where,
                do="Save it with Dataset.save_to_disk, or name a file",
            ) from error
        if isinstance(rows, DatasetDict):
            raise ConfigError(
                f"{path} holds the splits {', '.join(rows)}",
                where=where,
                do=f"Name one of them, e.g. {path / next(iter(rows))}",
            )
        return rows
    kind = FORMATS.get(path.suffix.lower())
    if kind is None or not path.is_file():
        raise ConfigError(
            f"there is no file or folder {path}" if kind else f"{path} is no {', '.join(FORMATS)} file and no folder",
            where=where,
            do="Check the path",
        )
    if path.suffix.lower() == ".jsonl" and _checked_lines(path, where) == 0:
        raise ConfigError(f"{path} holds no rows", where=where, do="Check the file")
    try:
        rows = load_dataset(kind, data_files=str(path), split="train")
    except (DatasetGenerationError, DataFilesNotFoundError, OSError, ValueError) as error:  # pyarrow's are ValueErrors
        cause = error.__cause__ or error
        raise ConfigError(f"{path} cannot be read: {' '.join(str(cause).split())}", where=where) from error
    if len(rows) == 0:
        raise ConfigError(f"{path} holds no rows", where=where, do="Check the file")
    return rows


def _checked_lines(path: Path, where: str) -> int:
    """How many rows there are. datasets reads in blocks and cannot say which line is wrong."""
    found = 0
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                text = line.decode()
                row: Any = json.loads(text) if text.strip() else {}
                if "\\ud" in text.lower():
                    json.dumps(row, ensure_ascii=False).encode()
            except json.JSONDecodeError as error:
                raise ConfigError(f"line {number} is no JSON: {error.msg}", where=f"{where}, {path}") from error
            except UnicodeDecodeError as error:
                raise ConfigError(
                    f"line {number} is no UTF-8", where=f"{where}, {path}", do="Save the file as UTF-8"
                ) from error
            except UnicodeEncodeError as error:
                raise ConfigError(
                    f"line {number} holds half a character, {error.object[error.start]!a}",
                    where=f"{where}, {path}",
                    do="Write the character whole, or leave it out",
                ) from error
            if not isinstance(row, dict):
                raise ConfigError(f"line {number} is no JSON object", where=f"{where}, {path}")
            found += bool(row)
    return found


def check_columns(rows: Dataset, family: Family, role: str) -> None:
    """SFT reads one of several columns, the others read all of theirs."""
    wanted, there = family.columns, set(rows.column_names)
    fits = bool(there & set(wanted)) if family.algo == "sft" else there >= set(wanted)
    if not fits:
        joined = " or ".join(wanted) if family.algo == "sft" else " and ".join(wanted)
        raise ConfigError(
            f"{family.trainer} reads the columns {joined}, and the {role} rows have {', '.join(rows.column_names)}",
            where=f"dataset.{role}",
            do="Rename the columns, or choose the trainer that fits the rows",
        )
