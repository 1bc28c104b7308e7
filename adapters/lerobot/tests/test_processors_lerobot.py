"""What a saved processor may name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from budwood.api import ConfigError

pytest.importorskip("lerobot")
from budwood_lerobot.processors import check_saved

FILES = ("policy_preprocessor.json", "policy_postprocessor.json")
FINE = [
    {"registry_name": "device_processor", "config": {"device": "cpu"}},
    {"class": "lerobot.processor.device_processor.DeviceProcessorStep", "config": {"device": "cpu"}},
    {"registry_name": "action_tokenizer_processor", "config": {"trust_remote_code": False}},
    {"registry_name": "of_another_package"},
]


def write(folder: Path, name: str, *steps: Any) -> None:
    (folder / name).write_text(json.dumps({"name": "policy", "steps": list(steps)}))


def test_steps_of_lerobot_pass(tmp_path: Path) -> None:
    check_saved(tmp_path, FILES[0], None)
    write(tmp_path, FILES[0], *FINE)
    check_saved(tmp_path, FILES[0], None)


@pytest.mark.parametrize(
    ("step", "told"),
    [
        ({"class": "subprocess.Popen", "config": {"args": "true"}}, "is no step of LeRobot's own"),
        ({"class": "lerobotics.steps.Step"}, "is no step of LeRobot's own"),
        ({"class": "lerobot.configs.parser.load_plugin", "config": {"plugin_path": "evil"}}, "is no step"),
        ({"class": "lerobot.processor.pipeline.Path"}, "is no step"),
        ({"class": ["subprocess"]}, "is no step"),
        ({"registry_name": "tokenizer_processor", "config": {"trust_remote_code": True}}, "trusts remote code"),
        ({"registry_name": "action_tokenizer_processor"}, "trusts remote code"),
        ("subprocess.Popen", "is no step"),
    ],
)
@pytest.mark.parametrize("name", FILES)
def test_anything_else_is_refused(step: Any, told: str, name: str, tmp_path: Path) -> None:
    write(tmp_path, name, FINE[0], step)
    with pytest.raises(ConfigError, match=told) as caught:
        check_saved(tmp_path, name, None)
    assert "\n" not in str(caught.value)


def test_of_the_hub_the_file_that_lerobot_will_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, FILES[1], {"class": "subprocess.Popen"})

    def download(repo: str, name: str, revision: str | None) -> str:
        assert (repo, revision) == ("some/policy", "abc")
        return str(tmp_path / name)

    monkeypatch.setattr("budwood_lerobot.processors.hf_hub_download", download)
    with pytest.raises(ConfigError, match=r"policy_postprocessor\.json of some/policy"):
        check_saved(Path("some/policy"), FILES[1], "abc")


def test_an_offline_run_does_not_run_it_either(trainer: Callable[..., Any], tmp_path: Path) -> None:
    folder, ran = trainer().export(tmp_path / "export"), tmp_path / "ran"
    saved = json.loads((folder / FILES[1]).read_text())
    saved["steps"].append({"class": "subprocess.Popen", "config": {"args": ["touch", str(ran)]}})
    (folder / FILES[1]).write_text(json.dumps(saved))
    with pytest.raises(ConfigError, match=r"trainer\.policy\.path: policy_postprocessor\.json"):
        trainer({"path": str(folder)})
    assert not ran.exists()
