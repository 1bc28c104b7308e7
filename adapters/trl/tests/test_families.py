"""Which trainer binds what, the configuration's fields, and messages for what does not fit."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from budwood.api import Capabilities, ConfigError, Contributions
from budwood.compose import KINDS
from budwood_trl.config import DatasetConfig, TrainerConfig
from budwood_trl.data import datasets_of, read
from budwood_trl.families import FAMILIES, OWNED, capabilities

TABLE = Path(__file__).parents[3] / "docs" / "seams" / "trl.md"


def cell(found: Capabilities, kind: str) -> str:
    return found.seams[kind].grade if kind in found.seams else "-"


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_bound_or_refused_with_a_reason(kind: str) -> None:
    for family in FAMILIES.values():
        found = capabilities(family)
        assert (kind in found.seams) != (kind in found.refused), f"{family.trainer}: {kind}"
        assert found.refused.get(kind, "a reason"), f"{family.trainer}: {kind}"


def test_the_matrix_of_the_docs_is_the_one_of_the_code() -> None:
    rows = re.findall(r"^\| `(\w+)` \|(.*)\|$", TABLE.read_text(), re.MULTILINE)
    written = {kind: [part.strip() for part in cells.split("|")] for kind, cells in rows if cells.count("|") == 5}
    expected = {kind: [cell(capabilities(family), kind) for family in FAMILIES.values()] for kind in KINDS}
    assert written == expected


@pytest.mark.parametrize("algo", FAMILIES)
def test_what_a_run_owns_are_fields_of_trl_and_the_classes_exist(algo: str) -> None:
    family = FAMILIES[algo]
    fields = {item.name for item in dataclasses.fields(family.load_config())}
    assert family.load().__name__ == family.trainer
    assert {
        "output_dir",
        "max_steps",
        "seed",
        "use_cpu",
        "report_to",
        "save_strategy",
        "disable_tqdm",
    } <= fields
    if family.generates:
        assert set(OWNED) - fields <= {"log_completions_hub_repo"}, "OWNED names something that TRL does not have"


def trainer_config(**changes: Any) -> TrainerConfig:
    return TrainerConfig.model_validate({"kind": "trl", "algo": "grpo", "model": "m", "total_steps": 3, **changes})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"args": {"num_generation": 4}}, "GRPOConfig has no field 'num_generation' (did you mean 'num_generations'?)"),
        ({"args": {"max_steps": 4}}, "'max_steps' cannot be set here: write it beside algo, as trainer.total_steps"),
        ({"args": {"report_to": "wandb"}}, "'report_to' cannot be set here: metrics go to the journal and to MLflow"),
        ({"algo": "dpo", "args": {"num_generations": 4}}, "DPOConfig has no field 'num_generations'"),
        (
            {"args": {"fp16": True}},
            "'fp16' cannot be set here: its loss scaler is no part of a checkpoint here: use bf16",
        ),
        ({"algo": "sft", "rewards": {"think_format_reward": 1.0}}, "rewards are for grpo and rloo"),
        (
            {"rewards": {"think_reward": 1.0}},
            "TRL has no reward without settings called 'think_reward' (did you mean 'think_",
        ),
        ({"algo": "ppo"}, "Input should be 'grpo', 'rloo', 'dpo', 'sft', 'reward' or 'kto'"),
    ],
)
def test_a_wrong_trainer_section(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError) as caught:
        trainer_config(**changes)
    assert said in str(caught.value)


def test_two_wrong_fields_are_said_at_once() -> None:
    with pytest.raises(ValidationError, match=r"(?s)num_generation'.*'seed' cannot be set"):
        trainer_config(args={"num_generation": 4, "seed": 1})


# ---- rows ------------------------------------------------------------------------------------------------------------


def write(path: Path, *lines: str) -> Path:
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path


def test_rows_are_read_from_lines_parquet_and_folders(tmp_path: Path) -> None:
    rows = [{"prompt": "é 🌱", "n": 1}, {"prompt": [{"role": "user", "content": "b"}][0]["content"], "n": 2}]
    lines = read(write(tmp_path / "rows.jsonl", *(json.dumps(row) for row in rows)), "dataset.train")
    lines.to_parquet(str(tmp_path / "rows.parquet"))
    lines.save_to_disk(str(tmp_path / "saved"))
    for name in ("rows.parquet", "saved"):
        assert read(tmp_path / name, "dataset.train").to_list() == lines.to_list() == rows


@pytest.mark.parametrize(
    ("name", "lines", "said"),
    [
        ("bad.jsonl", ['{"prompt": "a"}', '{"prompt": "b"'], "line 2 is no JSON: Expecting ',' delimiter"),
        ("list.jsonl", ['{"prompt": "a"}', "[1]"], "line 2 is no JSON object"),
        ("empty.jsonl", [], "holds no rows"),
        ("rows.csv", ["prompt"], "is no .jsonl, .json, .parquet file and no folder"),
        (
            "columns.jsonl",
            ['{"question": "a"}'],
            "GRPOTrainer reads the columns prompt, and the train rows have question",
        ),
    ],
)
def test_rows_that_cannot_be_read(tmp_path: Path, name: str, lines: list[str], said: str) -> None:
    path = write(tmp_path / name, *lines)
    with pytest.raises(ConfigError, match=re.escape(said)):
        datasets_of(DatasetConfig(train=str(path)), FAMILIES["grpo"], Contributions())  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("latin.jsonl", b'{"prompt": "a"}\n{"prompt": "\xff"}\n', "line 2 is no UTF-8"),
        (
            "half.jsonl",
            b'{"prompt": "\\ud83d\\ude00"}\n{"prompt": "\\ud83d"}\n',
            "line 2 holds half a character, '\\ud83d'",
        ),
        ("latin.json", b'[{"prompt": "\xff"}]', "cannot be read"),
        ("broken.parquet", b"PAR1 broken", "cannot be read"),
    ],
)
def test_files_that_are_broken(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=re.escape(said)):
        read(tmp_path / name, "dataset.train")


def test_no_rows_at_all_and_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="GRPOTrainer has no rows to train on"):
        datasets_of(DatasetConfig(), FAMILIES["grpo"], Contributions())  # type: ignore[call-arg]
    with pytest.raises(ConfigError, match="there is no file or folder"):
        read(tmp_path / "none.jsonl", "dataset.train")
    (tmp_path / "folder").mkdir()
    with pytest.raises(ConfigError, match="is no folder that datasets has saved"):
        read(tmp_path / "folder", "dataset.train")


def test_a_plugins_dataset_wins_and_must_be_one(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", '{"prompt": "a"}', '{"prompt": "b"}')
    config = DatasetConfig(train=str(path), limit=1)  # type: ignore[call-arg]

    def repeated(given: Any, role: str) -> Any:
        return given and given.map(lambda row: {"prompt": row["prompt"] * 2})

    train, held_out = datasets_of(config, FAMILIES["grpo"], Contributions(wrap_dataset=repeated))
    assert (train.to_list(), held_out) == ([{"prompt": "aa"}], None)
    with pytest.raises(ConfigError, match=r"gave a value of type list, expected a datasets\.Dataset"):
        datasets_of(config, FAMILIES["grpo"], Contributions(wrap_dataset=lambda given, role: []))
