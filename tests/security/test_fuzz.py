"""Configurations, studies, checkpoints, run folders and plugin metadata that nobody meant: each ends in a clear error.

A short part runs by default. 10,000 cases, with what was refused and how often, in a few minutes:

    BUDWOOD_FUZZ_CASES=10000 python -m pytest tests/security/test_fuzz.py -s
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from budwood import config, journal, plugins, study_config, tracking
from budwood.api import BudwoodError
from budwood.checkpoint import MANIFEST, STATE, TENSORS, Checkpoints, _digest, _write_file
from budwood.cli import main
from budwood.folder import find_run, list_runs
from budwood.plugins import check_range, find, installed, load

BY_HAND = int(os.environ.get("BUDWOOD_FUZZ_CASES", "0"))
SHARES = {
    "yaml": 0.2,
    "tree": 0.25,
    "override": 0.1,
    "study": 0.15,
    "checkpoint": 0.15,
    "folder": 0.05,
    "metadata": 0.1,
}
CASES = {name: round((BY_HAND or 400) * share) for name, share in SHARES.items()}
ROOT = Path(__file__).parents[2]

told: Counter[tuple[str, str]] = Counter()
"""(target, kind of answer) -> how often; a kind is an error's type and its sentence without what the case put in."""


def fuzzed(name: str) -> Callable[[Any], Any]:
    checks = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]
    return settings(
        max_examples=CASES[name],
        deadline=None,
        derandomize=not BY_HAND,
        suppress_health_check=checks,
        database=None,
        phases=[Phase.explicit, Phase.generate],  # a failing case is small enough, and shrinking it takes minutes
    )


@pytest.fixture(scope="module", autouse=True)
def _counted() -> Iterator[None]:
    yield
    for target in SHARES:
        kinds = {kind: n for (of, kind), n in told.items() if of == target}
        refused = sum(n for kind, n in kinds.items() if kind != "accepted")
        print(
            f"\n{target}: {sum(kinds.values())} cases, {refused} refused in {len(kinds) - ('accepted' in kinds)} ways"
        )


def clear(target: str, work: Callable[[], Any]) -> Any:
    """What ``work`` gives; None if it ends in an error that a person can act on. Any other error fails the test."""
    try:
        answer = work()
    except BudwoodError as error:
        text = str(error)
        assert text.strip()
        assert "Traceback" not in text
        text.encode()  # can be printed and written
        json.dumps([error.what, error.where, error.who, error.do, error.problems]).encode()
        sentence = (error.problems or (error.what,))[0]
        told[target, f"{type(error).__name__}: {re.sub(r'[^ ]*[^a-z ,.;:][^ ]*', '', sentence)}"] += 1
        return None
    told[target, "accepted"] += 1
    return answer


# ---- what goes in --------------------------------------------------------------------------------------------------

VOCABULARY = """trainer kind sb3 algo ppo env id n_envs plugins reward_shaping flow_rl terms weights seed name output tracking
uri evaluation checkpoint budget device args"""
WORDS = st.sampled_from(VOCABULARY.split())
TEXT = st.one_of(
    st.text(max_size=12),
    WORDS,
    st.sampled_from(["", "../..", "\ud800", "\x00", "1e999", "***", "a.b", "${x}", "\u2028"]),
)
NUMBERS = st.one_of(
    st.integers(-3, 3), st.integers(), st.floats(), st.sampled_from([2**63, -(2**64), 10**400, 1e308, -0.0])
)
LEAVES = st.one_of(st.none(), st.booleans(), NUMBERS, TEXT)
PLAIN = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4), max_leaves=12
)
RUN: dict[str, Any] = {
    "name": "small",
    "seed": 1,
    "trainer": {"kind": "sb3", "algo": "ppo", "total_timesteps": 64, "args": {"n_steps": 16, "batch_size": 16}},
    "env": {"id": "HalfCheetah-v5", "n_envs": 2, "args": {}},
    "plugins": {"reward_shaping": {"terms": ["forward", "effort"], "weights": {"scale": None}, "outer": None}},
    "budget": 100,
    "evaluation": {"every": 32, "episodes": 1},
    "checkpoint": {"every": 32, "keep": 2},
    "tracking": {"enabled": False, "tags": {"a": "b"}},
    "device": "cpu",
}
STUDY: dict[str, Any] = {
    "name": "grid",
    "base": {key: value for key, value in RUN.items() if key not in ("name", "seed")},
    "seeds": [0, 1],
    "variants": {"plain": {}, "fast": {"trainer.args.learning_rate": 0.01}},
    "metrics": {"return": {"metric": "eval/return_mean", "take": "last"}},
    "pairs": [["fast", "plain"]],
}


def places(tree: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, inner in items:
        yield from places(inner, (*path, key))


def changed(tree: Any, path: tuple[Any, ...], change: Callable[[Any], Any]) -> Any:
    """A copy of ``tree`` with what stands at ``path`` changed."""
    if not path:
        return change(tree)
    inner = changed(tree[path[0]], path[1:], change)
    if isinstance(tree, dict):
        return {key: inner if key == path[0] else value for key, value in tree.items()}
    return [inner if index == path[0] else value for index, value in enumerate(tree)]


@st.composite
def mutated(draw: Any, tree: Any) -> Any:
    """``tree`` with one to three places replaced, dropped, repeated or given something more."""
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(list(places(tree))))
        how, value, key = draw(st.sampled_from(["replace", "drop", "add", "wrap"])), draw(PLAIN), draw(TEXT)

        def change(old: Any, how: str = how, value: Any = value, key: str = key) -> Any:
            if how == "drop" and isinstance(old, dict) and old:
                return dict(list(old.items())[1:])
            if how == "add" and isinstance(old, (dict, list)):
                return {**old, key: value} if isinstance(old, dict) else [*old, value]
            return [old] if how == "wrap" else value

        tree = changed(tree, path, change)
    return tree


@st.composite
def damaged(draw: Any, text: bytes) -> bytes:
    """``text`` cut, overwritten or grown at a few places."""
    for _ in range(draw(st.integers(1, 4))):
        at, size = draw(st.integers(0, len(text))), draw(st.integers(0, 8))
        put = draw(
            st.one_of(
                st.binary(max_size=8), st.sampled_from([b"{", b"]", b": ", b"\n- ", b"&a *a", b"!!", b"\t", b'"'])
            )
        )
        text = text[:at] + put + text[at + size :]
    return text[: draw(st.integers(0, len(text)))] if draw(st.integers(0, 5)) == 0 else text


CONFIGS = [path.read_bytes() for path in sorted((ROOT / "configs").rglob("*.yaml"))[:12]]
BYTES = st.one_of(st.binary(max_size=200), st.text(max_size=200).map(lambda text: text.encode(errors="surrogatepass")))
FILES = st.one_of(
    BYTES, st.sampled_from(CONFIGS).flatmap(damaged), mutated(RUN).map(lambda tree: json.dumps(tree).encode())
)


# ---- the targets ---------------------------------------------------------------------------------------------------


@fuzzed("yaml")
@given(content=FILES)
def test_a_file(content: bytes, tmp_path: Path) -> None:
    """Read, its plugins named; and if that is possible, written out and read back as the same."""
    file = tmp_path / "x.yaml"
    file.write_bytes(content)
    loaded = clear("yaml", lambda: config.load(file))
    if loaded is not None:
        assert repr(config.load(_file(file, config.dump(loaded.data))).data) == repr(loaded.data)
        clear("yaml", lambda: config.names(loaded))


def _file(file: Path, text: str) -> Path:
    file.write_text(text)
    return file


@fuzzed("tree")
@given(tree=mutated(RUN))
def test_a_configuration_on_the_command_line(tree: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``budwood explain`` builds what a run would be made of, adapter and plugin included."""
    monkeypatch.setenv("BUDWOOD_OUTPUT", str(tmp_path / "runs"))
    file = _file(tmp_path / "x.yaml", json.dumps(tree))
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True) for _ in "oe")
    with redirect_stdout(out), redirect_stderr(err):
        code = main(["explain", str(file), "--json"])
    answer = json.loads(out.buffer.getvalue().decode().splitlines()[-1])  # type: ignore[attr-defined]
    said = err.buffer.getvalue().decode()  # type: ignore[attr-defined]
    if code:
        assert not answer["error"]["what"].startswith("unexpected"), answer
        assert "Traceback" not in said
        sentence = (answer["error"].get("problems") or [answer["error"]["what"]])[0]
        told["tree", f"{answer['error']['type']}: {re.sub(r'[^ ]*[^a-z ,.;:][^ ]*', '', sentence)}"] += 1
    else:
        told["tree", "accepted"] += 1


@fuzzed("override")
@given(
    path=st.lists(TEXT, min_size=1, max_size=4),
    value=st.one_of(TEXT, PLAIN.map(repr)),
    sign=st.sampled_from(["=", "", "=="]),
)
def test_an_override(path: list[str], value: str, sign: str) -> None:
    clear("override", lambda: config.names(config.load(RUN, [f"{'.'.join(path)}{sign}{value}"])))


@fuzzed("study")
@given(tree=mutated(STUDY), overrides=st.lists(TEXT.map(lambda text: f"seeds={text}"), max_size=1))
def test_a_study(tree: Any, overrides: list[str]) -> None:
    clear("study", lambda: study_config.load(tree if isinstance(tree, dict) else {"base": tree}, overrides))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch

    folder = tmp_path_factory.mktemp("saved")
    state = {
        "session": {"steps": 3, 4: (1, 2.5, float("nan")), "x": np.arange(3), "big": 1 << 90, "b": b"abc"},
        "half": torch.ones(2, 3, dtype=torch.complex64), "word": np.str_("w"), "day": np.array(["2026-01-01"], "M8[D]"),
    }  # fmt: skip
    return Checkpoints(folder, 1).save(3, state, {"config": RUN, "journal": 3})


@fuzzed("checkpoint")
@given(data=st.data())
def test_a_checkpoint(data: st.DataObject, checkpoint: Path, tmp_path: Path) -> None:
    """Any of its three files, the digests of the manifest made to fit: what is left is what the format itself refuses."""
    shutil.rmtree(tmp_path / "c", ignore_errors=True)
    path = tmp_path / "c" / checkpoint.name
    shutil.copytree(checkpoint, path)
    name = data.draw(st.sampled_from([STATE, TENSORS, MANIFEST]))
    if name == TENSORS:
        (path / name).write_bytes(data.draw(damaged((path / name).read_bytes())))
    else:
        tree = json.loads((path / name).read_bytes())
        tree.pop("sha256", None) if name == MANIFEST else None
        text = json.dumps(data.draw(mutated(tree))).encode()
        (path / name).write_bytes(data.draw(damaged(text)) if data.draw(st.booleans()) else text)
    if data.draw(st.integers(0, 3)):  # else the digests catch it
        _made_to_fit(path)
    store = Checkpoints(path.parent, 1)
    found = clear("checkpoint", store.latest)
    if found is not None:
        clear("checkpoint", lambda: store.load(found[0]))


def _made_to_fit(path: Path) -> None:
    try:
        manifest = json.loads((path / MANIFEST).read_bytes())
        manifest.pop("sha256", None)
        for name in (STATE, TENSORS):
            content = (path / name).read_bytes()
            (path / name).unlink()
            manifest["files"][name] = _write_file(path / name, [content])
        (path / MANIFEST).write_text(json.dumps({**manifest, "sha256": _digest(manifest)}))
    except (ValueError, AttributeError, KeyError, TypeError):
        pass


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "small-s0-20260101-000000-abcd"
    folder.mkdir()
    events = journal.Journal(folder)
    tracking.start(events, config=RUN, experiment="x", uri=None, tags={}, output=folder.parent, enabled=False)
    events.metrics({"a": 1.0}, 1)
    events.status("finished")
    events.close()
    (folder / "config.yaml").write_text(config.dump(RUN))
    (folder / "status.json").write_text(
        json.dumps({"run_id": folder.name, "status": "finished", "steps": 1, "latest": {"a": 1}})
    )
    (folder / "tracking.json").write_text(json.dumps({"uri": None, "position": 0, "sent": 0}))
    return folder


@fuzzed("folder")
@given(data=st.data())
def test_a_runs_folder(data: st.DataObject, run_folder: Path, tmp_path: Path) -> None:
    """Its status, journal and the tracker's state, as ``budwood runs`` and whoever names the run read them."""
    shutil.rmtree(tmp_path / "runs", ignore_errors=True)
    shutil.copytree(run_folder.parent, tmp_path / "runs")
    (folder,) = (tmp_path / "runs").iterdir()
    name = data.draw(st.sampled_from(["status.json", "events.jsonl", "tracking.json"]))
    content = (folder / name).read_bytes()
    mutation = st.one_of(damaged(content), PLAIN.map(lambda tree: json.dumps(tree).encode() + b"\n"))
    (folder / name).write_bytes(data.draw(mutation))
    clear("folder", lambda: [run.status for run in list_runs(tmp_path / "runs")])
    clear("folder", lambda: find_run(folder.name, tmp_path / "runs"))
    clear("folder", lambda: find_run("0123456789abcdef", tmp_path / "runs"))
    clear("folder", lambda: journal.history(folder))
    clear("folder", lambda: tracking.status(folder))
    with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err:
        code = main(["runs", "--output", str(tmp_path / "runs"), "--json"])
    assert "unexpected" not in err.getvalue() + out.getvalue(), err.getvalue()
    assert code in (0, 1, 2, 5)


METADATA = "Metadata-Version: 2.1\nName: budwood-odd\nVersion: 1.0\nRequires-Dist: budwood>=0.1,<0.2\n"
ENTRIES = "[budwood.plugins]\nodd = odd_module:Plugin\n"


@fuzzed("metadata")
@given(
    about=st.one_of(damaged(METADATA.encode()), BYTES), entries=st.one_of(damaged(ENTRIES.encode()), BYTES),
    folder=st.sampled_from(["odd-1.0.dist-info", "odd.dist-info", "odd-1.0.egg-info"]), both=st.booleans(),
)  # fmt: skip
def test_metadata_of_a_plugin(
    about: bytes, entries: bytes, folder: str, both: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Listing never fails; naming a plugin whose metadata is odd does so clearly."""
    site = tmp_path / "site"
    shutil.rmtree(site, ignore_errors=True)
    info = site / folder
    info.mkdir(parents=True)
    (info / ("PKG-INFO" if folder.endswith("egg-info") else "METADATA")).write_bytes(about)
    (info / "entry_points.txt").write_bytes(entries if both else ENTRIES.encode())
    with monkeypatch.context() as patch:
        patch.syspath_prepend(str(site))
        plugins._scan.cache_clear()
        try:
            names = [item.name for item in installed()]
            assert "sb3" in names, "the healthy ones are still there"
            for note in plugins.unreadable():
                note.encode()
            for name in {"odd", *names} - {
                "sb3",
                "trl",
                "lerobot",
                "isaac",
                "reward_shaping",
                "flow_rl",
                "lcqa_selector",
            }:
                found = clear("metadata", lambda name=name: find(name))
                if found is not None:
                    clear("metadata", lambda found=found: check_range(found, "0.1.0"))
                    clear("metadata", lambda found=found: load(found))
        finally:
            plugins._scan.cache_clear()
