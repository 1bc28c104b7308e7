"""Pages that budwood writes show what models, plugins, files and trackers say; none of it becomes markup."""

from __future__ import annotations

import json
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from budwood.folder import list_runs

SCRIPT = "<script>alert(1)</script>"
BREAKS_OUT = "\"'><img src=x onerror=alert(1)></svg></style></pre><!-- ]]>"
HOSTILE = SCRIPT + BREAKS_OUT

TALKS = f"""
from budwood.api import Figure, ReportSection, RunCallback, Series, hookimpl

HOSTILE = {HOSTILE!r}


class Talks(RunCallback):
    def on_run_start(self, control):
        control.note(HOSTILE)
        control.log({{HOSTILE: 1.0}})


class Plugin:
    @hookimpl
    def callbacks(self, run):
        return Talks()

    @hookimpl
    def report_sections(self, run, history):
        lines = [Series(HOSTILE, [0, 1], [0, 1]), Series("$\\\\frac{{{{$", [0, 1], [1, 0])]
        figure = Figure(HOSTILE, HOSTILE, HOSTILE, lines)
        return ReportSection(HOSTILE, [HOSTILE], [figure], [{{HOSTILE: HOSTILE, "file": "../" + HOSTILE + ".png"}}])
"""


class Page(HTMLParser):
    """Tags and attributes of a page, as a browser finds them."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.addresses: set[str] = set()
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        self.addresses |= {value or "" for name, value in attrs if name in ("href", "src", "xlink:href")}

    handle_startendtag = handle_starttag

    def handle_data(self, data: str) -> None:
        self.text += data


def assert_harmless(path: Path) -> Page:
    page = Page(path.read_text())
    assert not page.tags & {"script", "img", "iframe", "object", "embed", "link", "base", "form", "foreignobject"}
    assert not [name for name in page.attributes if name.startswith("on")]
    assert all(address.startswith("#") for address in page.addresses), "nothing is fetched and nothing is opened"
    return page


def test_the_pages_of_a_run_and_of_a_comparison(
    small: Path, output: Path, offer: Any, budwood: Callable[..., Any]
) -> None:
    offer("talks", TALKS)
    words = ("trainer.total_timesteps=128", "plugins.talks={}", f"tracking.tags={json.dumps({HOSTILE: HOSTILE})}")
    for seed in (0, 1):
        said = budwood("run", small, *words, f"seed={seed}")
        assert said.code == 0, said.err
    one, other = (run.folder for run in list_runs(output))
    page = assert_harmless(one / "report.html")
    assert page.text.count(SCRIPT) >= 8, "it is all there, as text"
    told = budwood("compare", one, other, "--metric", HOSTILE, "--to", output / "compare.html")
    assert told.code == 0, told.err
    assert SCRIPT in assert_harmless(output / "compare.html").text


def test_the_page_of_a_study(
    small: Path, output: Path, offer: Any, budwood: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(output.parent / "site"))
    offer("talks", TALKS)
    metrics = {HOSTILE: {"metric": "eval/return_mean"}, "odd": {"metric": HOSTILE}}
    small.write_text(small.read_text() + "plugins: {talks: {}}\n")
    file = output.with_name("study.yaml")
    file.write_text(json.dumps({"base": str(small), "seeds": 1, "variants": {"a": {}}, "metrics": metrics}))
    said = budwood("study", file, "trainer.total_timesteps=128", "--json")
    assert said.code == 0, said.err
    assert SCRIPT in assert_harmless(output / "study" / "study.html").text
    drawn = list((output / "study").glob("*.svg"))
    assert drawn
    for figure in drawn:
        assert_harmless(figure)


@pytest.mark.parametrize("answer", [HOSTILE, {"ids": [HOSTILE]}, "\u202eevil", "\x00\x1b[31m", "&lt;b&gt;"])
def test_the_answers_of_a_language_model(answer: Any) -> None:
    """Text of a model, as a plugin's table shows it."""
    from budwood.page import block, page, table

    made = Page(page("answers", [block("Answers", table([{"question": answer, "answer": answer}]), str(answer))]))
    assert made.tags <= {
        "html",
        "head",
        "meta",
        "title",
        "style",
        "body",
        "main",
        "section",
        "h2",
        "span",
        "div",
        "table",
        "tr",
        "th",
        "td",
    }
    assert str(answer) in made.text or "\x00" in str(answer)
