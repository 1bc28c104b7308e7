"""A secret that is in the environment or in a configuration is in nothing that budwood writes, prints or sends.

The canaries go through every path at once: configuration, journal, checkpoints, report, MLflow's database and artifacts, what
is printed for people and for programs, and the errors and notes of a plugin that repeats what it knows.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from html import escape
from pathlib import Path
from typing import Any

import pytest

from budwood import redact, tracking
from budwood.api import CheckpointError
from budwood.checkpoint import Checkpoints
from budwood.folder import list_runs
from budwood.redact import MASK, remember, without_secrets

PLAIN, NASTY, TYPED, NAMED = (
    "sk-canary-3f9a77c1e5d2",
    "sk-c\"a&n<a>r\\y'é=9c1",
    "typed-canary-81d7f2",
    "named-canary-5b0c93",
)
"""In the environment, the second with everything that JSON, HTML and URLs write otherwise; in the configuration, by type
and by the name of a key."""
CANARIES = (PLAIN, NASTY, TYPED, NAMED)

LEAKY = '''
import os

from pydantic import SecretStr

from budwood.api import Config, ReportSection, RunCallback, hookimpl


class Section(Config):
    """``login`` is secret by its type, ``service_token`` by its name, ``how`` the plugin repeats them."""

    login: SecretStr
    service_token: str
    how: str = "note"
    headers: dict[str, str] = {}


class Leak(RunCallback):
    def __init__(self, section):
        self.section = section
        known = (os.environ["CANARY_API_KEY"], os.environ["CANARY_PASSWORD"], section.login.get_secret_value())
        self.text = " and ".join((*known, section.service_token))

    def on_run_start(self, control):
        print("says the plugin itself: nothing")
        control.note(f"logged in as {self.text}")
        control.log({"leaky/calls": 1.0})
        if self.section.how == "raise":
            raise RuntimeError(f"401: the service refuses {self.text}")

    def state_dict(self):
        return {"text": self.text} if self.section.how == "keep" else {}

    def load_state_dict(self, state): ...


class Plugin:
    @hookimpl
    def config_model(self):
        return Section

    @hookimpl
    def callbacks(self, run):
        return Leak(run.section)

    @hookimpl
    def report_sections(self, run, history):
        text = Leak(run.section).text
        return ReportSection("Calls of " + text, [f"made with {text}"], [], [{"key": text}])
'''


@pytest.fixture(autouse=True)
def _forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redact, "_known", set())


@pytest.fixture
def leaky(small: Path, offer: Any, monkeypatch: pytest.MonkeyPatch) -> Path:
    """``small.yaml`` with a plugin that repeats the secrets it was given, tracked in a file."""
    offer("leaky", LEAKY)
    monkeypatch.setenv("CANARY_API_KEY", PLAIN)
    monkeypatch.setenv("CANARY_PASSWORD", NASTY)
    section = {
        "login": TYPED,
        "service_token": NAMED,
        "headers": {"Authorization": f"Bearer {NAMED}", "note": f"by {PLAIN}"},
    }
    text = small.read_text().replace("tracking: {enabled: false}", "")
    tags = {"note": f"made with {PLAIN}", "db-password": NAMED, "where": f"https://me:{NAMED}@host/x?api_key={NAMED}"}
    small.write_text(
        f"{text}\nplugins: {{leaky: {json.dumps(section)}}}\n"
        f"tracking: {{tags: {json.dumps(tags)}, experiment: {json.dumps('x ' + PLAIN)}}}\n"
    )
    return small


def written(output: Path) -> Iterator[tuple[str, str, Path]]:
    """(canary, form, file) for each that is found in a file below ``output``, MLflow's database among them."""
    for path in output.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            for canary in CANARIES:
                forms = {canary, json.dumps(canary)[1:-1], json.dumps(canary, ensure_ascii=False)[1:-1], escape(canary)}
                yield from ((canary, form, path) for form in forms if form.encode() in content)


def printed(said: Any) -> list[str]:
    text = said.out + said.err
    forms = [
        (canary, (canary, json.dumps(canary)[1:-1], json.dumps(canary, ensure_ascii=False)[1:-1]))
        for canary in CANARIES
    ]
    return [canary for canary, ways in forms if any(way in text for way in ways)]


def test_in_no_file_of_a_run_and_on_no_screen(leaky: Path, output: Path, budwood: Callable[..., Any]) -> None:
    said = budwood("run", leaky, "--json")
    assert said.code == 0, said.err
    assert printed(said) == []
    assert any(MASK in note for note in said.json["notes"]), "the plugin's note came through, without the secret"
    (run,) = list_runs(output)
    assert tracking.finish(run.folder, timeout=120).complete
    assert (output / "mlflow.db").stat().st_size > 0
    assert list(written(output)) == []
    page = (run.folder / "report.html").read_text()
    assert f"made with {MASK} and {MASK}" in page
    for words in (
        ("runs",),
        ("runs", "--json"),
        ("explain", leaky),
        ("explain", leaky, "--json"),
        ("compare", run.folder, run.folder, "--json"),
        ("resume", run.folder, "trainer.total_timesteps=640"),
        ("export", run.folder, "--json"),
    ):
        assert printed(budwood(*words)) == [], words
    again = ("plugins.leaky.login=" + TYPED, "plugins.leaky.service_token=" + NAMED, "tracking.enabled=false")
    again += (f"plugins.leaky.headers={{Authorization: {NAMED}}}", "tracking.tags={}", "tracking.experiment=x")
    said = budwood("resume", run.folder, *again, "trainer.total_timesteps=640", "--json")
    assert said.code in (0, 5), said.err
    assert printed(said) == []
    assert list(written(output)) == []


@pytest.mark.parametrize("flags", [(), ("--json",), ("--debug",), ("--json", "--debug")])
def test_in_no_error(flags: tuple[str, ...], leaky: Path, output: Path, budwood: Callable[..., Any]) -> None:
    said = budwood("run", leaky, "plugins.leaky.how=raise", "tracking.enabled=false", *flags)
    assert said.code == 4, said.err
    assert f"401: the service refuses {MASK}" in said.err
    assert printed(said) == []
    (run,) = list_runs(output)
    assert MASK in run.status["error"]
    assert list(written(output)) == []


def test_in_no_checkpoint(leaky: Path, output: Path, budwood: Callable[..., Any]) -> None:
    """A state cannot be masked, so it is refused: the run would not go on the same."""
    said = budwood("run", leaky, "plugins.leaky.how=keep", "tracking.enabled=false")
    assert said.code == 5
    assert "holds the value of a secret, which no checkpoint keeps" in said.error
    assert list(written(output)) == []


@pytest.mark.parametrize(
    "setting",
    [
        f"plugins.leaky.service_token=[{NAMED}",
        f"plugins.leaky.service_tokem={NAMED}",
        f"plugins.leaky.service_token={{a: {NAMED}}}",
        f"trainer.args.hub_token={NAMED}",
        f"trainer.total_timesteps={PLAIN}",
        f"env.id={PLAIN}",
        f"evaluation={PLAIN}",
        f"tracking.tags=[{PLAIN}]",
        f"name={PLAIN}/x",
        f"trainer.kind={PLAIN}",
        f"{PLAIN}",
    ],
)
def test_in_no_finding_about_a_configuration(setting: str, leaky: Path, budwood: Callable[..., Any]) -> None:
    for flags in ((), ("--json",), ("--debug",)):
        said = budwood("run", leaky, setting, *flags)
        assert said.code == 2
        assert printed(said) == []


def test_in_no_study(leaky: Path, output: Path, budwood: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Its runs are processes of their own, which are given the configuration through a pipe."""
    monkeypatch.setenv("PYTHONPATH", str(output.parent / "site"))
    variants = {"noted": {}, "raised": {"plugins.leaky.how": "raise"}}
    file = output.with_name("study.yaml")
    file.write_text(json.dumps({"base": str(leaky), "seeds": 1, "variants": variants}))
    said = budwood("study", file, "tracking.enabled=false", "--json")
    assert printed(said) == []
    assert list(written(output)) == []
    states = {run.run_id: run.status["status"] for run in list_runs(output)}
    assert states == {"study-noted-s0": "finished", "study-raised-s0": "failed"}


# ---- the parts -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("secret", [PLAIN, NASTY])
def test_every_way_of_writing_it_is_masked(secret: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_TOKEN", secret)
    for written_as in (
        secret,
        json.dumps(secret),
        json.dumps([secret], ensure_ascii=False),
        escape(secret),
        repr(secret),
    ):
        assert MASK in without_secrets(f"<{written_as}>")
        assert secret not in without_secrets(written_as)


def test_short_values_and_other_variables_are_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_TOKEN", "short")
    monkeypatch.setenv("SOME_WORD", "a sentence")
    assert without_secrets("a short sentence is a sentence") == "a short sentence is a sentence"


def test_one_that_is_part_of_another_leaves_no_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_TOKEN", "0123456789")
    monkeypatch.setenv("B_TOKEN", "0123456789abcdef")
    assert without_secrets("0123456789abcdef") == MASK


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("https://me:hunter2@host/x", "https://me:***@host/x"),
        ("https://t0ken@host/x", "https://***@host/x"),
        ("postgresql://me:a%40b@host:5/x", "postgresql://me:***@host:5/x"),
        ("https://host/x", "https://host/x"),
        ("sqlite:///runs/mlflow.db", "sqlite:///runs/mlflow.db"),
    ],
)
def test_addresses_are_journaled_without_what_opens_them(address: str, shown: str, monkeypatch: Any) -> None:
    assert tracking.without_password(address) == shown
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    assert tracking.full_address(shown) == address


def test_the_page_of_mlflow_is_started_without_a_password_in_its_command(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql://me:hunter2hunter2@host/x")
    page = tracking.ui_command(tmp_path)
    assert not any("hunter2" in word for word in page.command)
    assert page.variables["MLFLOW_BACKEND_STORE_URI"] == os.environ["MLFLOW_TRACKING_URI"]


def test_a_checkpoint_names_no_secret_and_refuses_one(tmp_path: Path) -> None:
    remember({"login_token": NAMED})
    store = Checkpoints(tmp_path, 1)
    with pytest.raises(CheckpointError) as refused:
        store.save(1, {"deep": [{"inside": f"Bearer {NAMED}"}]}, {})
    assert NAMED not in str(refused.value)
    assert not list(tmp_path.rglob("*.json"))
