"""Configuration as people write it: files, overrides, mappings."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from rootstock import MINIMAL, refused, written

from budwood import config
from budwood.plugins import Activation
from budwood.yaml_io import dump, inline, read

# ---- reading ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e5", 100_000),
        ("1E6", 1_000_000),
        ("1_000_000", 1_000_000),
        ("-3", -3),
        ("010", 10),
        ("0x1F", 31),
        ("1e-3", 0.001),
        ("2.5e3", 2500.0),
        (".5", 0.5),
        ("1e16", 1e16),
        ("-.inf", -math.inf),
        ("true", True),
        ("no", False),
        ("~", None),
        ("", None),
        ("1:30", "1:30"),
        ("2026-01-01", "2026-01-01"),
        ("'1e5'", "1e5"),
        ("1__0", "1__0"),
        ("{1: a, on: b, null: c}", {"1": "a", "on": "b", "null": "c"}),
        ("{a: &x {p: 1, q: 2}, b: {<<: *x, q: 3}}", {"a": {"p": 1, "q": 2}, "b": {"p": 1, "q": 3}}),
    ],
)
def test_values_read_as_people_expect(text: str, value: Any) -> None:
    got, _ = read(text, "x")
    assert got == value
    assert type(got) is type(value)
    assert read(dump(value), "x")[0] == value


@pytest.mark.parametrize(
    "text", ["1e5", "yes", "010", "1:30", "0o17", "", "null", "<<", "a: b", "#", "2026-01-01", "é"]
)
def test_text_survives_being_written_and_read(text: str) -> None:
    assert read(dump({"a": [text]}), "x")[0] == {"a": [text]}
    assert read(inline(text), "x")[0] == text


UNREADABLE = {
    "a: [1, 2\nb: 3\n": (
        "run.yaml, line 2, column 2: this is not readable YAML: expected ',' or ']', but got ':'. "
        "Check quotes, brackets and indentation just before this place."
    ),
    "a:\n\tb: 1\n": (
        "run.yaml, line 2, column 1: this is not readable YAML: found character '\\t' that cannot start any token. "
        "Indent with spaces, not with tabs."
    ),
    "a: b: c\n": (
        "run.yaml, line 1, column 5: this is not readable YAML: mapping values are not allowed here. "
        "Check the indentation, and write a text that contains ': ' in quotes."
    ),
    "a: *b\n": (
        "run.yaml, line 1, column 4: this is not readable YAML: found undefined alias 'b'. "
        "A text that starts with * belongs in quotes."
    ),
    "a: 1\nb: \x07\n": (
        "run.yaml, line 2: the character '\\x07' is not allowed in YAML. "
        "Remove it, or write it in double quotes as an escape."
    ),
    "a: 1\n\nb: !!python/object/apply:os.system ['touch owned']\n": (
        "run.yaml, line 3: the tag '!!python/object/apply:os.system' asks for Python code to be run, and a configuration "
        "never runs code. Remove the tag and write the value itself."
    ),
    "a: !!python/name:os.system\n": (
        "run.yaml, line 1: the tag '!!python/name:os.system' asks for Python code to be run, and a configuration "
        "never runs code. Remove the tag and write the value itself."
    ),
    "? !!python/name:os.system\n: 1\n": (
        "run.yaml, line 1: the tag '!!python/name:os.system' asks for Python code to be run, and a configuration "
        "never runs code. Remove the tag and write the value itself."
    ),
    "a: !env HOME\n": (
        "run.yaml, line 1: the tag '!env' is not allowed: a configuration holds plain values only. "
        "Remove the tag and write the value itself."
    ),
    "a:\n  seed: 1\n  b: 2\n  seed: 3\n": (
        "run.yaml, line 4: the key 'a.seed' was already given on line 2. Keep one of them."
    ),
    "a: &a [1, *a]\n": "run.yaml, line 1: an alias contains itself. Write the value out.",
    "a: !!int one\n": (
        "run.yaml, line 1: 'one' cannot be read as a number or truth value. Put it in quotes if it is text."
    ),
    "a: 12e3456\n": (
        "run.yaml, line 1: '12e3456' cannot be read as a number or truth value. Put it in quotes if it is text."
    ),
    "[1, 2]: 3\n": "run.yaml, line 1: a key must be a plain word. Write keys without brackets.",
    "a: {<<: 3}\n": "run.yaml, line 1: << needs a mapping. Write <<: *NAME, NAME being a mapping.",
    "": "run.yaml: the file is empty. A run needs at least trainer and env.",
    "# only a comment\n": "run.yaml: the file is empty. A run needs at least trainer and env.",
    "- a\n": "run.yaml: the file holds a list, not keys and values. A run needs at least trainer and env.",
    "word\n": "run.yaml: the file holds a single value, not keys and values. A run needs at least trainer and env.",
    "[" * 500: "run.yaml: this YAML is nested too deeply. Use fewer levels.",
    "a: 1\nplugins:\n  my-flow: {}\n  My_Flow: {}\n": (
        "run.yaml: plugins.My_Flow (line 4) is the same plugin as plugins.my-flow (line 3). Keep one of them."
    ),
}


@pytest.mark.parametrize("text", UNREADABLE, ids=lambda text: repr(text[:20]))
def test_unreadable_files(tmp_path: Path, text: str) -> None:
    path = written(tmp_path, text)
    assert refused(lambda: config.load(path), tmp_path) == UNREADABLE[text]
    assert [item.name for item in tmp_path.iterdir()] == ["run.yaml"]


def test_exponential_aliases_are_refused_quickly(tmp_path: Path) -> None:
    levels = "\n".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12))
    path = written(tmp_path, f"a0: &a0 1\n{levels}\n")
    assert "the file expands to more than 100,000 values. Use fewer aliases." in refused(lambda: config.load(path))


def test_files_that_cannot_be_opened(tmp_path: Path) -> None:
    assert (
        refused(lambda: config.load(tmp_path / "no.yaml"), tmp_path)
        == "no.yaml: there is no such file. Check the path."
    )
    assert refused(lambda: config.load(tmp_path)).endswith(
        "the file cannot be read: Is a directory. Check the path and its permissions."
    )
    (tmp_path / "latin.yaml").write_bytes(b"name: caf\xe9\n")
    assert refused(lambda: config.load(tmp_path / "latin.yaml"), tmp_path) == (
        "latin.yaml: byte 9 is not UTF-8 text. Save the file as UTF-8."
    )


# ---- overrides --------------------------------------------------------------------------------------------------


def test_overrides_are_yaml_and_reach_any_depth(tmp_path: Path) -> None:
    path = written(tmp_path, f"{MINIMAL}evaluation: {{every: 5}}\nplugins:\n  my-flow:\n")
    overrides = [
        "evaluation.every=null",
        "trainer.total_timesteps=2e3",
        "plugins.my-flow.noise=0.3",
        "env.args.a.b=[1, x]",
    ]
    loaded = config.load(path, [*overrides, "init_from=", "name=a=b"])
    assert loaded.data == {
        "trainer": {"kind": "rootstock", "total_timesteps": 2000},
        "env": {"id": "Reach-v0", "args": {"a": {"b": [1, "x"]}}},
        "evaluation": {"every": None},
        "plugins": {"my_flow": {"noise": 0.3}},
        "name": "a=b",
        "init_from": None,
    }


def test_overrides_that_cannot_be_applied_are_listed_together(tmp_path: Path) -> None:
    path = written(tmp_path, f"{MINIMAL}seed: 3\nplugins: {{flow: {{terms: [1, 2]}}}}\n")
    wrong = ["seed", "a..b=1", "seed.x=1", "plugins.flow.terms.0=3", "env.id=[", "env.id=!!python/name:os.system"]
    assert refused(lambda: config.load(path, ["name=ok", *wrong]), tmp_path) == (
        "run.yaml: 6 overrides cannot be applied.\n"
        "  - seed: an override has the form a.b.c=value. Write one key, = and a value\n"
        "  - a..b=1: an override has the form a.b.c=value. Write one key, = and a value\n"
        "  - seed.x=1: seed is 3, which has no key 'x'. Give seed itself\n"
        "  - plugins.flow.terms.0=3: plugins.flow.terms is a list. Give the whole list: plugins.flow.terms=[...]\n"
        "  - env.id=[: this is not readable YAML: expected the node content, but found '<stream end>'. "
        "Check quotes, brackets and indentation just before this place\n"
        "  - env.id=!!python/name:os.system: the tag '!!python/name:os.system' asks for Python code to be run, "
        "and a configuration never runs code. Remove the tag and write the value itself"
    )


def test_keyword_overrides_say_the_same() -> None:
    values = {"seed": 3, "trainer__total_timesteps": 1_000, "name": "1e5", "env__args": {"a": None}, "x": float("nan")}
    assert config.keyword_overrides(values) == [
        "seed=3",
        "trainer.total_timesteps=1000",
        "name='1e5'",
        "env.args={a: null}",
        "x=.nan",
    ]
    assert refused(lambda: config.keyword_overrides({"env__fn": print})) == (
        "an argument is not plain data.\n  - env__fn: builtin_function_or_method is no configuration value"
    )


def test_a_mapping_is_a_configuration_too(alone: Activation) -> None:
    import numpy as np

    source = {
        "trainer": {"kind": "rootstock", "total_timesteps": np.int64(5), "args": {"pair": (1, np.float32(0.5))}},
        "env": {"id": "Reach-v0"},
        "output": Path("some/where"),
    }
    data = config.resolve(config.load(source), alone).data
    assert data["trainer"] == {"kind": "rootstock", "total_timesteps": 5, "args": {"pair": [1, 0.5]}}
    assert (data["name"], data["output"]) == ("run", "some/where")
    assert refused(lambda: config.load({"env": {"a": [print]}, "b": object()})) == (
        "config: the configuration has 2 problems. Give numbers, text, lists and mappings only:\n"
        "  - env.a[0]: builtin_function_or_method is no configuration value\n"
        "  - b: object is no configuration value"
    )
