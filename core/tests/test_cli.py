"""The command line: what it lists, what it imports, how it fails, and what scripts get from it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import numpy as np
import pytest

from budwood import plugins, runs
from budwood.api import ConfigError, Evaluation
from budwood.cli import COMMANDS, cli, main
from budwood.cli.training import _report
from budwood.training import Result

HEAVY = ("torch", "numpy", "pydantic", "mlflow", "trl", "lerobot", "transformers", "stable_baselines3", "rich", "yaml")

HELLO = """
import click

@click.command()
@click.option("--times", default=1)
def command(times):
    "Say hello."
    click.echo("hello " * times)
    return {"times": times}

@click.command()
def failing():
    raise RuntimeError("no luck")

number = 7
"""

PLUGIN = """
from budwood.api import hookimpl

class Plugin:
    @hookimpl
    def evaluators(self, run):
        return []

    @hookimpl
    def callbacks(self, run):
        return []
"""


@pytest.fixture
def offer(site: Any) -> Any:
    """Add a distribution with commands: ``offer("budwood-hello", {"hello": "hello_x:command"})``."""

    def add(distribution: str, commands: dict[str, str], source: dict[str, str] | None = None) -> None:
        site.add(distribution, "1.0", {}, source)
        info = next(site.folder.glob(f"{distribution.replace('-', '_')}-*"))
        with (info / "entry_points.txt").open("a") as handle:
            handle.write(
                f"[{plugins.COMMAND_GROUP}]\n"
                + "\n".join(f"{name} = {value}" for name, value in commands.items())
                + "\n"
            )
        plugins._scan.cache_clear()

    return add


def as_json(capsys: pytest.CaptureFixture[str]) -> Any:
    """The one line on standard output."""
    (line,) = capsys.readouterr().out.splitlines()
    return json.loads(line)


def test_every_command_explains_itself_with_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    for words in [[name] for name in COMMANDS] + [["plugin", "new"], ["plugin", "check"]]:
        assert main([*words, "--help"]) == 0
        text = capsys.readouterr().out
        assert f"    budwood {' '.join(words)}" in text, words
        assert "--json" in text
        assert "--debug" in text


def test_the_list_is_true(capsys: pytest.CaptureFixture[str]) -> None:
    context = click.Context(cli)
    for name, command in COMMANDS.items():
        loaded = cli.get_command(context, name)
        assert loaded is not None
        assert loaded.name == name
        assert command.help
    assert main([]) == main(["-h"]) == 0
    first, second = capsys.readouterr().out.split("Usage:")[1:]
    assert first == second


@pytest.mark.parametrize("words", [["--help"], ["plugins"]])
def test_listing_imports_nothing_heavy(words: list[str]) -> None:
    code = (
        f"import sys; from budwood.cli import main; code = main({words!r}); "
        f"print(); print([name for name in {HEAVY!r} if name in sys.modules]); sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=20, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


# ---- bad command lines ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["rn"], "error: no command 'rn'; did you mean 'run'? Try: budwood --help"),
        (["run"], "error: Missing argument 'FILE'. Try: budwood run --help"),
        (
            ["run", "x.yaml", "--seed", "3"],
            "error: no option --seed; a setting of the run is written without dashes: seed=3. Try: budwood run --help",
        ),
        (
            ["run", "x.yaml", "--total-timesteps=9"],
            "error: no option --total-timesteps; a setting of the run is written without dashes: total_timesteps=9. "
            "Try: budwood run --help",
        ),
        (
            ["resume", "last", "--seed"],
            "error: no option --seed; a setting of the run is written without dashes: seed=VALUE. "
            "Try: budwood resume --help",
        ),
        (
            ["explain", "x.yaml", "seed", "3"],
            "error: 'seed' is no setting; a setting is written seed=3. Try: budwood explain --help",
        ),
        (
            ["run", "seed=3"],
            "error: 'seed=3' is a setting; the configuration file comes first. Try: budwood run --help",
        ),
        (["plugin"], "error: Missing command. Try: budwood plugin --help"),
        (["plugin", "nev"], "error: no command 'nev'; did you mean 'new'? Try: budwood plugin --help"),
    ],
)
def test_a_bad_command_line_says_what_to_write(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    captured = capsys.readouterr()
    assert captured.err.strip() == message
    assert captured.out == ""
    assert main([*words, "--json"]) == 2
    assert as_json(capsys)["error"]["what"] in message


# ---- run, resume, eval ------------------------------------------------------------------------------------------------


def result(status: str) -> Result:
    metrics = {"eval/return_mean": 12.5, "eval/return_se": 0.25, "train/kl": float("nan")}
    return Result(
        "x-s0", status, metrics, {"folder": "runs/x-s0", "report": "runs/x-s0/report.html"}, "abc", ["a note"]
    )


def test_run_ends_with_one_line_of_strict_json(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[Any] = []

    def train(source: str, overrides: Any, *, progress: Any) -> Result:
        asked.append((source, overrides))
        print("a trainer that prints")
        progress.message("progress")
        return result("finished")

    monkeypatch.setattr(runs, "run", train)
    assert main(["--json", "run", "x.yaml", "seed=3", "a.b=-1"]) == 0
    captured = capsys.readouterr()
    assert asked == [("x.yaml", ("seed=3", "a.b=-1"))]
    assert json.loads(captured.out) == {
        "run_id": "x-s0",
        "status": "finished",
        "metrics": {"eval/return_mean": 12.5, "eval/return_se": 0.25, "train/kl": None},
        "paths": {"folder": "runs/x-s0", "report": "runs/x-s0/report.html"},
        "mlflow_run_id": "abc",
        "notes": ["a note"],
    }
    for text in ("a trainer that prints", "progress", "12.50 ± 0.25"):
        assert text in captured.err


def test_an_interrupted_run_says_how_to_go_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(runs, "resume", lambda *_, **__: result("interrupted"))
    assert main(["resume", "last"]) == 130
    assert "Continue with: budwood resume runs/x-s0" in capsys.readouterr().out


def test_eval_reports_episodes(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    evaluation = Evaluation(np.array([1.0, 3.0]), np.array([10, 20]), 30, 5, {"success_rate": 0.5})
    monkeypatch.setattr(runs, "evaluate", lambda *_, **__: (evaluation, Path("step_1")))
    assert main(["eval", "last", "--episodes", "2", "--seed", "5", "--json"]) == 0
    answer = as_json(capsys)
    assert answer["returns"] == [1.0, 3.0]
    assert answer["metrics"] == {"success_rate": 0.5}
    assert (answer["mean"], answer["checkpoint"], answer["seed"]) == (2.0, "step_1", 5)
    assert answer["std"] == pytest.approx(2**0.5)


def test_eval_prints_what_a_trainer_measures_itself(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[Any] = []

    def measure(*given: Any, progress: Any) -> Any:
        asked.append(given)
        return {"eval/loss": 1.25, "eval/rewards/accuracies": 0.75}, Path("step_1")

    monkeypatch.setattr(runs, "evaluate", measure)
    assert main(["eval", "last", "dataset.eval=held-out.jsonl"]) == 0
    assert capsys.readouterr().out == (
        "eval/loss                1.25\neval/rewards/accuracies  0.75\ncheckpoint               step_1\n"
    )
    assert main(["eval", "last", "--json"]) == 0
    assert as_json(capsys)["metrics"] == {"eval/loss": 1.25, "eval/rewards/accuracies": 0.75}
    assert asked[0] == ("last", None, 20_000, ("dataset.eval=held-out.jsonl",))
    assert main(["eval", "last", "--seed", "5"]) == 0
    assert "--seed was not used: these are numbers of held-out rows" in capsys.readouterr().out


# ---- failures ---------------------------------------------------------------------------------------------------------


def failing(error: BaseException) -> Any:
    def train(*_: Any, **__: Any) -> Result:
        raise error

    return train


def test_our_errors_are_one_paragraph_with_their_exit_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    error = ConfigError("wrong", where="x.yaml", who="budwood-x 1.0", do="Mend it", problems=("one", "two"))
    monkeypatch.setattr(runs, "run", failing(error))
    assert main(["run", "x.yaml"]) == 2
    assert capsys.readouterr().err == ("error: x.yaml: wrong. Asked for by budwood-x 1.0. Mend it.\n  - one\n  - two\n")
    assert main(["run", "x.yaml", "--json"]) == 2
    assert as_json(capsys) == {
        "error": {
            "type": "ConfigError",
            "what": "wrong",
            "where": "x.yaml",
            "who": "budwood-x 1.0",
            "do": "Mend it",
            "problems": ["one", "two"],
        }
    }


def test_an_unexpected_error_shows_its_traceback_only_on_request(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(runs, "run", failing(KeyError("lost")))
    assert main(["run", "x.yaml"]) == 1
    assert capsys.readouterr().err == (
        "error: unexpected KeyError: 'lost'. Run the same command with --debug to see where.\n"
    )
    assert main(["run", "x.yaml", "--debug"]) == 1
    text = capsys.readouterr().err
    assert "Traceback" in text
    assert text.endswith("error: unexpected KeyError: 'lost'.\n")


def test_ctrl_c_is_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(runs, "run", failing(KeyboardInterrupt()))
    assert main(["run", "x.yaml", "--json"]) == 130
    assert as_json(capsys) == {"error": {"what": "interrupted"}}


# ---- commands of plugins ----------------------------------------------------------------------------------------------


def test_a_plugin_adds_a_command(offer: Any, capsys: pytest.CaptureFixture[str]) -> None:
    offer("budwood-hello", {"hello": "hello_a:command"}, {"hello_a": HELLO})
    assert main(["--help"]) == 0
    assert "hello  from budwood-hello 1.0" in capsys.readouterr().out
    assert "hello_a" not in sys.modules
    assert main(["hello", "--times", "2"]) == 0
    assert capsys.readouterr().out == "hello hello \n"
    assert main(["hello", "--json"]) == 0
    assert as_json(capsys) == {"times": 1}


def test_a_command_that_clashes_is_named_and_left_out(offer: Any, capsys: pytest.CaptureFixture[str]) -> None:
    offer("budwood-greedy", {"run": "hello_b:command"}, {"hello_b": HELLO})
    for name in ("one", "two"):
        offer(f"budwood-{name}", {"twice": "hello_b:command"})
    assert main(["--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "budwood-greedy 1.0 offers a command 'run', which is budwood's own" in text
    assert main(["run", "--help"]) == 0
    assert "Train one run" in capsys.readouterr().out
    assert main(["twice"]) == 2
    assert "budwood-one 1.0 and budwood-two 1.0 both offer a command 'twice'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("broken_x:command", "importing broken_x:command failed: ZeroDivisionError: division by zero"),
        ("absent_x:command", "importing absent_x:command failed: ModuleNotFoundError: No module named 'absent_x'"),
        ("hello_c:number", "hello_c:number is no click command"),
    ],
)
def test_a_broken_command_names_its_plugin_and_stops_no_other(
    offer: Any, value: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    offer("budwood-broken", {"broken": value}, {"broken_x": "1 / 0", "hello_c": HELLO})
    assert main(["broken"]) == 3
    text = capsys.readouterr().err
    assert text.startswith(f"error: command 'broken': {message}. Asked for by budwood-broken 1.0.")
    assert main(["plugins", "--json"]) == 0


def test_an_unexpected_error_in_a_plugins_command_names_the_plugin(
    offer: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    offer("budwood-hello", {"fail": "hello_d:failing"}, {"hello_d": HELLO})
    assert main(["fail"]) == 1
    assert "unexpected RuntimeError: no luck. Asked for by budwood-hello 1.0." in capsys.readouterr().err


def test_demo_runs_the_first_installed_or_the_named_one(offer: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo"]) == 3
    assert "no installed plugin ships a demo" in capsys.readouterr().err
    offer("budwood-zeal", {"demo.two-words": "hello_e:command"}, {"hello_e": HELLO})
    assert main(["demo", "--json"]) == 0
    assert as_json(capsys) == {"times": 1}
    assert main(["demo", "two_words", "--times", "3", "--json"]) == 0
    assert as_json(capsys) == {"times": 3}
    assert main(["demo", "--help"]) == 0
    assert "two_words  from budwood-zeal 1.0" in capsys.readouterr().out
    assert "demo.two-words" not in COMMANDS


# ---- plugins, plugin --------------------------------------------------------------------------------------------------


def test_plugins_lists_from_metadata_and_imports_only_for_hooks(site: Any, capsys: pytest.CaptureFixture[str]) -> None:
    site.add("budwood-good", "0.3", {"good": "good_x:Plugin"}, {"good_x": PLUGIN}, "budwood>=0.1,<0.2")
    site.add("budwood-bad", "0.4", {"bad": "bad_x:Plugin"}, {"bad_x": "1 / 0"})
    assert main(["plugins", "--json"]) == 0
    assert as_json(capsys) == [
        {"name": "bad", "version": "0.4", "distribution": "budwood-bad", "requires": "", "summary": "A budwood-bad"},
        {
            "name": "good",
            "version": "0.3",
            "distribution": "budwood-good",
            "requires": ">=0.1,<0.2",
            "summary": "A budwood-good",
        },
    ]
    assert not {"good_x", "bad_x"} & sys.modules.keys()
    assert main(["plugins", "--hooks", "--json"]) == 0
    bad, good = as_json(capsys)
    assert good["hooks"] == ["callbacks", "evaluators"]
    assert bad["hooks"] == []
    assert "ZeroDivisionError" in bad["error"]


def test_without_plugins_the_list_says_so(site: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plugins"]) == 0
    assert (
        capsys.readouterr().out == "No plugin is installed. Plugins are ordinary packages: pip install budwood-NAME\n"
    )


def test_plugins_tells_of_names_wanted_twice(site: Any, capsys: pytest.CaptureFixture[str]) -> None:
    site.add("budwood-one", "1", {"same": "x:X"})
    site.add("budwood-two", "1", {"same": "x:X"})
    assert main(["plugins"]) == 0
    assert "budwood-one 1 and budwood-two 1 both provide 'same'" in capsys.readouterr().out


def test_the_end_of_a_run_tells_how_often_it_succeeded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    measured = {"eval/return_mean": 0.5, "eval/return_se": 0.1, "eval/success_rate": 0.125}
    for metrics, rates in ((measured, ["12.5%"]), ({"eval/return_mean": 0.5}, [])):
        _report(Result("some-run", "finished", metrics, {}, None, []))
        lines = capsys.readouterr().out.splitlines()
        assert [line.removeprefix("success rate").strip() for line in lines if line.startswith("success")] == rates


# ---- runs, doctor, ui -------------------------------------------------------------------------------------------------


def test_runs_lists_what_each_run_last_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs", "--output", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"no runs under {tmp_path}\n"
    folder = tmp_path / "x-s0"
    folder.mkdir()
    status = {"name": "x", "status": "finished", "steps": 2048, "started": 1e9, "latest": {"eval/return_mean": 3.5}}
    (folder / "status.json").write_text(json.dumps(status))
    assert main(["runs", "--output", str(tmp_path)]) == 0
    header, line = capsys.readouterr().out.splitlines()
    assert header.split() == ["name", "status", "steps", "result", "started", "id"]
    assert line.split()[:5] == ["x", "finished", "2,048", "return", "3.50"]
    assert line.split()[-1] == "x-s0"
    assert main(["runs", "--output", str(tmp_path), "--json"]) == 0
    assert as_json(capsys)[0]["return"] == 3.5


@pytest.mark.parametrize(
    ("latest", "said"),
    [
        ({"train/loss": 0.5, "train/reward": 1.0, "eval/loss": 0.25, "eval/reward": -2.0}, "eval/reward -2"),
        ({"train/loss": 0.5, "eval/loss": 0.123456}, "eval/loss 0.1235"),
        ({"train/loss": 0.5, "train/reward": 1.0}, "train/reward 1"),
        ({"eval/return_mean": 12345.67}, "return 12345.67"),
        ({}, ""),
    ],
)
def test_a_run_without_episodes_is_told_by_the_number_that_it_has(
    latest: dict[str, float], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "x-s0").mkdir()
    status = {"name": "x", "status": "finished", "steps": 2, "started": 1e9, "latest": latest}
    (tmp_path / "x-s0" / "status.json").write_text(json.dumps(status))
    assert main(["runs", "--output", str(tmp_path)]) == 0
    line = capsys.readouterr().out.splitlines()[1]
    assert " ".join(line.split()).startswith(f"x finished 2 {said}")


def test_runs_sync_replays_and_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from budwood import tracking
    from budwood.api import BudwoodError

    torn = BudwoodError("its journal is damaged", where="y-s0")
    monkeypatch.setattr(tracking, "pending", lambda output: tracking.Pending([output / "x-s0"], [torn]))
    monkeypatch.setattr(tracking, "replay", lambda output: [])
    monkeypatch.setattr(tracking, "finish", lambda folder, **_: f"all of {folder.name} sent")
    assert main(["runs", "--sync", "--output", str(tmp_path)]) == 1
    said = capsys.readouterr().out
    assert "x-s0: all of x-s0 sent" in said
    assert "not sent: y-s0: its journal is damaged." in said


def test_ui_of_a_server_is_its_address(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5999")
    assert main(["ui", "--json"]) == 0
    assert as_json(capsys) == {"url": "http://127.0.0.1:5999"}


@pytest.mark.parametrize(("level", "code"), [("ok", 0), ("warn", 0), ("error", 1)])
def test_doctor_fails_on_errors_only(
    level: str, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from budwood import machine

    monkeypatch.setattr(machine, "doctor", lambda: [machine.Finding(level, "disk", "full", "Tidy up")])  # type: ignore[arg-type]
    assert main(["doctor"]) == code
    assert capsys.readouterr().out.split() == [level, "disk", "full", "->", "Tidy", "up"]
    assert main(["doctor", "--json"]) == code
    assert as_json(capsys) == [{"level": level, "topic": "disk", "what": "full", "do": "Tidy up"}]


def test_a_pipe_that_closes_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def closed(*_: Any) -> None:
        raise BrokenPipeError

    monkeypatch.setattr(sys, "stdout", SimpleNamespace(write=closed, flush=closed, isatty=lambda: False))
    assert main(["--help"]) == 0
    print("goes nowhere")
