"""Which kind binds where, the configuration's sections, and messages for what does not fit."""

from __future__ import annotations

import dataclasses
import logging
import re
import sys
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
from httpx import ConnectError
from packaging.requirements import Requirement
from pydantic import ValidationError
from robots import ACT, DIFFUSION, nod_policy, planned

from budwood.api import Capabilities, ConfigError, PluginError, Run, hookimpl
from budwood.compose import KINDS
from budwood_lerobot import blocks, devices, native, online, versions
from budwood_lerobot.config import OfflineConfig
from budwood_lerobot.graft import graft_capabilities
from budwood_lerobot.offline import build, capabilities
from budwood_lerobot.plugin import LeRobot
from budwood_lerobot.sections import Sections

ROOT = Path(__file__).parents[3]
PAGES = ROOT / "docs" / "seams"


@pytest.fixture(scope="module")
def columns() -> dict[str, Capabilities]:
    """The columns of the table, from left to right."""
    grafted = graft_capabilities(nod_policy())
    assert grafted is not None
    return {"offline": capabilities(), "graft": grafted}


ONLINE = {"online": online.capabilities()}


def test_every_kind_is_bound_or_refused_with_a_reason(columns: dict[str, Capabilities]) -> None:
    for name, found in {**columns, **ONLINE}.items():
        for kind in KINDS:
            assert (kind in found.seams) != (kind in found.refused), f"{name}: {kind}"
            assert found.refused.get(kind, "a reason"), f"{name}: {kind}"


def table(page: str) -> dict[str, list[str]]:
    """Contribution -> its cells, of the first table of a page."""
    text = (PAGES / page).read_text()
    first = text[text.index("| contribution |") :].partition("\n\n")[0]
    rows = re.findall(r"^\| `(\w+)` \|(.*)\|$", first, re.MULTILINE)
    return {kind: [part.strip() for part in cells.split("|")] for kind, cells in rows}


def grades(columns: dict[str, Capabilities]) -> dict[str, list[str]]:
    return {
        kind: [found.seams[kind].grade if kind in found.seams else "-" for found in columns.values()] for kind in KINDS
    }


def test_the_matrices_of_the_docs_are_those_of_the_code(columns: dict[str, Capabilities]) -> None:
    assert table("lerobot.md") == grades(columns)
    assert table("lerobot_online.md") == grades(ONLINE)
    told = (PAGES / "lerobot_online.md").read_text().partition("A loss may need")[2].partition("\n\n")[0]
    assert set(re.findall(r"`(\w+)`", told)) == online.LOSS_INPUTS | online.CRITIC_INPUTS


def test_nothing_else_can_be_grafted() -> None:
    from lerobot.processor import PolicyProcessorPipeline

    assert graft_capabilities(PolicyProcessorPipeline(steps=[])) is None
    before = set(sys.modules)
    for target in (torch.nn.Linear(1, 1), torch.nn.Linear):
        assert LeRobot().capabilities(None, target) is None  # type: ignore[arg-type]
    assert set(sys.modules) == before


def sections(**changes: Any) -> Sections:
    trainer = {"kind": "lerobot", "algo": "offline", "policy": ACT, "total_steps": 3, **changes.pop("trainer", {})}
    return Sections.model_validate({"trainer": trainer, **changes})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"trainer": {"policy": {**ACT, "chunk_siz": 4}}}, "ACTConfig has no field 'chunk_siz' (did you mean 'chunk_"),
        ({"trainer": {"policy": {"type": "actt"}}}, "LeRobot has no policy 'actt' (did you mean 'act'?)"),
        ({"trainer": {"policy": {}}}, "give a type for a new policy, or a path to a trained one"),
        ({"trainer": {"policy": {"path": "/nowhere"}}}, "there is no folder /nowhere ["),
        (
            {"trainer": {"policy": {"path": "policies/nothere"}}},
            "there is no folder policies/nothere; as an id on the hub it is not in the cache either [",
        ),
        ({"trainer": {"policy": {"path": str(PAGES)}}}, "seams holds no policy of LeRobot: config.json not found in"),
        ({"trainer": {"policy": {**ACT, "device": "cpu"}}}, "'device' cannot be set here: the run has one device"),
        ({"trainer": {"policy": {**ACT, "push_to_hub": True}}}, "'push_to_hub' cannot be set here: a run publishes"),
        ({"trainer": {"policy": {**ACT, "chunk_size": 2}}}, "Got 4 for `n_action_steps` and 2 for `chunk_size`."),
        ({"trainer": {"policy": {**ACT, "dim_model": "wide"}}}, "Couldn't parse 'wide' into an int"),
        ({"trainer": {"args": {"batch": 2}}}, "TrainPipelineConfig has no field 'batch' (did you mean 'batch_size'?)"),
        (
            {"trainer": {"args": {"steps": 2}}},
            "'steps' cannot be set here: write it beside algo, as trainer.total_steps",
        ),
        ({"trainer": {"args": {"wandb": {"enable": True}}}}, "'wandb' cannot be set here: metrics go to the journal"),
        ({"trainer": {"args": {"optimizer": {"type": "sgd"}}}}, "set use_policy_training_preset: false and give both"),
        ({"trainer": {"args": {"use_policy_training_preset": False}}}, "false needs optimizer and scheduler"),
        ({"dataset": {"repo_id": "a/b", "rot": "x"}}, "DatasetConfig has no field 'rot' (did you mean 'root'?)"),
        ({"dataset": {"repo_id": "a/b", "streaming": True}}, "'streaming' cannot be set here: rows that stream"),
        ({"dataset": {"repo_id": "a/b", "episodes": [-1]}}, "Episode indices must be non-negative, got: [-1]"),
        ({"env": {"type": "push"}}, "LeRobot has no environment 'push' (did you mean 'pusht'?)"),
        ({"env": {"type": "pusht", "episode_lenth": 5}}, "PushtEnv has no field 'episode_lenth' (did you mean 'epis"),
    ],
)
def test_a_wrong_section(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError) as caught:
        sections(**changes)
    assert said in str(caught.value)


def test_a_hub_that_is_away_is_told_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    from huggingface_hub import utils
    from huggingface_hub.errors import LocalEntryNotFoundError
    from lerobot.configs.policies import PreTrainedConfig

    def away(*_: Any, **__: Any) -> None:
        logging.getLogger(utils._http.__name__).warning("Retrying in 1s [Retry 1/5].")
        raise LocalEntryNotFoundError("nothing there")

    monkeypatch.setattr(PreTrainedConfig, "from_pretrained", away)
    with pytest.raises(ValidationError, match="there is no folder policies/nothere; as an id on the hub"):
        sections(trainer={"policy": {"path": "policies/nothere"}})
    assert caplog.records == []


def test_every_wrong_section_is_said_at_once() -> None:
    with pytest.raises(ValidationError, match=r"(?s)chunk_siz'.*'batch'.*'rot'.*'episode_lenth'"):
        sections(
            trainer={"policy": {**ACT, "chunk_siz": 4}, "args": {"batch": 2}},
            dataset={"repo_id": "a/b", "rot": "x"},
            env={"type": "pusht", "episode_lenth": 5},
        )


def test_what_a_run_owns_are_fields_of_lerobot() -> None:
    from lerobot.configs.default import DatasetConfig
    from lerobot.configs.policies import PreTrainedConfig
    from lerobot.configs.train import TrainPipelineConfig

    owned = (
        (PreTrainedConfig, native.POLICY_OWNED),
        (TrainPipelineConfig, native.TRAIN_OWNED),
        (DatasetConfig, native.DATASET_OWNED),
    )
    for cls, names in owned:
        assert set(names) <= {item.name for item in dataclasses.fields(cls)}, cls.__name__


def config(**changes: Any) -> OfflineConfig:
    return OfflineConfig.model_validate(
        {"kind": "lerobot", "algo": "offline", "policy": ACT, "total_steps": 1, **changes}
    )


def test_no_dataset_one_that_is_not_there_and_one_that_is_none(
    trainer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match="an offline run has no dataset to learn from"):
        build(*planned(config(), {}, tmp_path, {}))
    with pytest.raises(ConfigError, match=r"the dataset local/middle cannot be read \(.*nowhere\)"):
        trainer(rows={"root": str(tmp_path / "nowhere")})

    def away(config: Any) -> Any:
        raise ConnectError("Name or service not known")

    with monkeypatch.context() as patched:
        patched.setattr(blocks, "make_train_eval_datasets", away)
        with pytest.raises(ConfigError, match=r"cannot be read .*: Name or service not known"):
            trainer()

    class Brings:
        @hookimpl
        def build_dataset(self, run: Run, role: str) -> Any:
            return [1, 2] if role == "train" else None

    with pytest.raises(ConfigError, match="build_dataset for train gave a list without meta, episodes"):
        build(*planned(config(), {"brings": Brings()}, tmp_path, {}))


def test_a_plugin_brings_the_dataset_and_wraps_the_policy(dataset: Path, tmp_path: Path) -> None:
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    class Brings:
        @hookimpl
        def build_dataset(self, run: Run, role: str) -> Any:
            steps = {"action": [i / 10 for i in range(4)]}
            return LeRobotDataset("local/middle", root=dataset, delta_timestamps=steps) if role == "train" else None

        @hookimpl(wrapper=True)
        def build_model(self, run: Run) -> Any:
            policy = yield
            policy.requires_grad_(False)
            policy.model.action_head.requires_grad_(True)
            return policy

    made = build(*planned(config(args={"batch_size": 2, "num_workers": 0}), {"brings": Brings()}, tmp_path, {}))
    assert sum(p.requires_grad for p in made.native.parameters()) == 2
    assert made.blocks.dataset.num_frames == 24

    class Breaks:
        @hookimpl(wrapper=True)
        def build_model(self, run: Run) -> Any:
            yield
            return torch.nn.Linear(1, 1)

    with pytest.raises(ConfigError, match="gave a Linear, expected a PreTrainedPolicy"):
        build(*planned(config(), {"breaks": Breaks(), "brings": Brings()}, tmp_path, {}))


def test_a_policy_that_does_not_fit_the_data(trainer: Any) -> None:
    with pytest.raises(ConfigError, match="LeRobot cannot make the policy diffusion for this dataset: "):
        trainer({**DIFFUSION, "crop_shape": [500, 500]})


# ---- machine ---------------------------------------------------------------------------------------------------------


def test_arguments_of_the_command_line_never_reach_lerobot(trainer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    given = ["budwood", "--policy.path=/nowhere", "--policy.type=pi0", "run.yaml"]
    monkeypatch.setattr(sys, "argv", given)
    made = trainer()
    assert made.blocks.config.policy.type == "act"
    assert made.blocks.config.policy.pretrained_path is None
    assert sys.argv is given


def test_nor_when_it_reads_a_policy_that_was_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The LeRobot that is installed would not look; what it could see is asked."""
    from lerobot.configs.policies import PreTrainedConfig

    nod_policy().config.save_pretrained(tmp_path)
    given, seen, read = ["budwood", "--policy.type=pi0", "run.yaml"], [], PreTrainedConfig.from_pretrained

    def reading(*args: Any, **kwargs: Any) -> Any:
        seen.append(list(sys.argv))
        return read(*args, **kwargs)

    monkeypatch.setattr(sys, "argv", given)
    monkeypatch.setattr(PreTrainedConfig, "from_pretrained", reading)
    assert config(policy={"path": str(tmp_path)}).policy.native("cpu").type == "nod"
    assert seen
    assert all(arguments == ["budwood"] for arguments in seen)
    assert sys.argv is given


def test_several_processes_and_devices_that_are_not_there(trainer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="several processes do not work yet"):
        trainer()
    with pytest.raises(ConfigError, match="cuda:1 is one by number"):
        devices.device_of("cuda:1")
    missing = "mps" if torch.cuda.is_available() else "cuda"
    with pytest.raises(ConfigError, match=f"PyTorch sees no {missing} device here"):
        devices.device_of(missing)


def ranges(lines: list[str]) -> dict[str, str]:
    return {item.name: str(item.specifier) for item in map(Requirement, lines) if not item.marker}


def test_the_range_of_transformers_is_one_in_the_workspace() -> None:
    workspace = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["uv"]["constraint-dependencies"]
    declared = tomllib.loads((ROOT / "adapters" / "lerobot" / "pyproject.toml").read_text())["project"]["dependencies"]
    installed = ranges(metadata.requires("budwood-lerobot") or [])
    assert ranges(workspace)["transformers"] == ranges(declared)["transformers"] == installed["transformers"]
    assert metadata.version("transformers") in Requirement(f"transformers{installed['transformers']}").specifier
    versions.check_versions()


@pytest.mark.parametrize(("name", "version"), [("transformers", "5.23.0"), ("lerobot", "0.7.0")])
def test_a_version_that_breaks_policies_is_refused_in_one_paragraph(
    name: str, version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = metadata.version
    monkeypatch.setattr(versions.metadata, "version", lambda asked: version if asked == name else real(asked))
    with pytest.raises(PluginError) as caught:
        versions.check_versions()
    text = str(caught.value)
    assert "\n" not in text
    assert text.startswith(f"trainer.kind: {name} {version} is installed, and budwood-lerobot works with {name}")
    assert f'pip install "{name}' in text
