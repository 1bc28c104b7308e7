"""The page of a run: self-contained, escaped, the same bytes for the same run."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from budwood.api import Contributed, Evaluation, Figure, Picture, ReportSection, Seam, Series
from budwood.charts import Charts, sparkline
from budwood.compose import Binding
from budwood.report import interval, write

VOID = {"meta", "br", "img", "link", "input", "hr"}
HOSTILE = "<script>alert('x')</script> & \"$\\frac{1}{2}$\""


class Page(HTMLParser):
    """Checks nesting, and collects text, identifiers and whatever refers to somewhere."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.text: list[str] = []
        self.ids: list[str] = []
        self.references: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            if name in ("src", "href", "xlink:href", "action", "data"):
                self.references.append(value or "")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def written(folder: Path, **changes: Any) -> Path:
    steps = list(range(0, 100_000, 5000))
    run: dict[str, Any] = {
        "title": "hopper-s3",
        "status": "finished",
        "config": {"name": "hopper", "seed": 3},
        "versions": {"budwood": "0.1.0"},
        "history": {
            "rollout/ep_rew_mean": (steps, [float(step) for step in steps]),
            "train/loss": (steps, [1.0 / (1 + step) for step in steps]),
            "odd/nan": ([1], [float("nan")]),
        },
        "sections": [],
        "evaluations": [
            (step, Evaluation(np.arange(8.0) + step, np.full(8, 10), 80, 10_000)) for step in (50_000, 100_000)
        ],
        "timing": {"total": 200.0, "evaluation": 50.0, "checkpoint": 10.0},
        "bindings": [],
    }
    return write(folder, **{**run, **changes})


def section(**parts: Any) -> Contributed[ReportSection]:
    return Contributed(ReportSection(**parts), "flow", "budwood-flow 0.2.0")


def test_the_page_is_whole_and_refers_to_nothing_outside(tmp_path: Path) -> None:
    lines = [Series("a", [0, 1, 2], [1, 2, 3]), Series("b", [0, 1], [3, 1], "step"), Series("c", [1], [1], "points")]
    figures = [Figure("linear", "x", "y", lines), Figure("log", "x", "y", lines, y_log=True)]
    path = written(tmp_path, sections=[section(title="Flow", figures=figures)])
    assert path == tmp_path / "report.html"
    text = path.read_text()
    page = Page(text)
    assert page.tags.count("svg") == 1 + 2 + 2, "learning curve, two figures, two sparklines"
    assert "script" not in page.tags
    assert "link" not in page.tags
    assert all(reference.startswith("#") for reference in page.references)
    assert not re.search(r"https?://|@import|url\((?!#)", text)
    assert len(page.ids) == len(set(page.ids))
    assert {reference[1:] for reference in page.references} <= set(page.ids)
    assert set(re.findall(r"url\(#([^)]+)\)", text)) <= set(page.ids)


@pytest.mark.parametrize(
    ("values", "expected", "absent"),
    [
        ([0.5, 3.0], {"0.5", "0.6", "1", "2", "3"}, {"5"}),
        ([0.2, 5.0], {"0.2", "0.5", "1", "2", "5"}, {"3", "4"}),
        ([1e-3, 1e3], {"0.001", "1", "1000"}, {"0.02", "50"}),
    ],
)
@pytest.mark.parametrize("axis", ["x", "y"])
def test_logarithmic_axes_have_numbers_to_read(
    values: list[float], expected: set[str], absent: set[str], axis: str
) -> None:
    other = [-7.5, -7.5]
    drawn = Series("a", values, other) if axis == "x" else Series("a", other, values)
    shown = set(Page(Charts().figure(Figure("f", "", "", [drawn], x_log=axis == "x", y_log=axis == "y"))).text)
    assert expected <= shown
    assert not absent & shown


def test_what_the_summary_says(tmp_path: Path) -> None:
    words = " ".join(Page(written(tmp_path).read_text()).text)
    for expected in ("hopper-s3", "finished", "100,000", "3:20", "500 steps/s", "8 episodes of this one run"):
        assert expected in words
    assert "70.0 %" in words, "training is what no other activity claims"


def test_colours_follow_the_page(tmp_path: Path) -> None:
    text = written(tmp_path).read_text()
    assert not re.search(r"#0[1-8]0[1-8]0[1-8]", text)
    assert "currentColor" in text
    assert "prefers-color-scheme: dark" in text


def test_the_same_run_gives_the_same_bytes(tmp_path: Path) -> None:
    (tmp_path / "again").mkdir()
    assert written(tmp_path).read_bytes() == written(tmp_path / "again").read_bytes()


def test_everything_from_outside_is_escaped(tmp_path: Path) -> None:
    figure = Figure(HOSTILE, HOSTILE, HOSTILE, [Series(HOSTILE, [0, 1], [0, 1]), Series("b", [0, 1], [1, 0])])
    page = Page(
        written(
            tmp_path,
            title=HOSTILE,
            status=HOSTILE,
            config={"name": HOSTILE, "seed": HOSTILE},
            versions={HOSTILE: HOSTILE},
            history={HOSTILE: ([1], [1.0])},
            sections=[
                Contributed(ReportSection(HOSTILE, [HOSTILE], [figure], [{HOSTILE: HOSTILE}]), "x", HOSTILE),
            ],
            bindings=[Binding(1, "x", HOSTILE, "callbacks", HOSTILE, Seam(HOSTILE, HOSTILE))],
        ).read_text()
    )
    assert "script" not in page.tags
    assert sum(HOSTILE in text for text in page.text) == 21


def test_a_plugins_section_is_attributed(tmp_path: Path) -> None:
    rows = [{"term": "speed", "weight": 0.71239}, {"term": "effort", "weight": None}]
    text = written(tmp_path, sections=[section(title="Weights", text=["A paragraph."], table=rows)]).read_text()
    words = Page(text).text
    for expected in ("Weights", "budwood-flow 0.2.0", "A paragraph.", "term", "speed", "0.712"):
        assert any(expected in word for word in words)


@pytest.mark.parametrize("series", [Series("a", [1, 2], [1]), Series("a", [1], [1], "dotted")])
def test_a_figure_that_cannot_be_drawn_says_so(tmp_path: Path, series: Series) -> None:
    figures = [Figure("Broken", "x", "y", [series]), Figure("Whole", "x", "y", [Series("a", [1, 2], [1, 2])])]
    words = Page(written(tmp_path, sections=[section(title="Flow", figures=figures)]).read_text()).text
    assert any(word.startswith("Broken could not be drawn: ") for word in words)
    assert "Whole" in words


def test_bindings_are_listed_in_order(tmp_path: Path) -> None:
    bindings = [
        Binding(1, "flow", "budwood-flow 0.2.0", "reward_terms", "flow.speed", Seam("TermVecEnv")),
        Binding(2, "flow", "budwood-flow 0.2.0", "callbacks", "Search", Seam("callback", "B")),
    ]
    words = [word for word in Page(written(tmp_path, bindings=bindings).read_text()).text if word.strip()]
    start = words.index("reward term flow.speed")
    assert words[start - 2 : start + 3] == ["1", "budwood-flow 0.2.0", "reward term flow.speed", "TermVecEnv", "A"]
    assert words.index("callback Search") > start


def test_a_run_that_logged_nothing_has_a_page(tmp_path: Path) -> None:
    words = " ".join(Page(written(tmp_path, history={}, evaluations=[], timing={"total": 0.0}).read_text()).text)
    assert "it is the bare trainer" in words
    assert "Learning curve" not in words


def test_a_run_without_episodes_shows_what_it_is_trained_on(tmp_path: Path) -> None:
    numbers = {
        "train/loss": ([1, 2, 3], [2.0, 1.5, 1.0]),
        "eval/loss": ([3], [1.2]),
        "train/reward": ([1, 2], [0.0, 1.0]),
    }
    text = " ".join(Page(written(tmp_path, history=numbers, evaluations=[], sections=[]).read_text()).text)
    assert "Learning curve" in text
    for word in ("steps", "training", "evaluation", "loss", "reward"):
        assert word in text


def test_few_episodes_get_no_interval(tmp_path: Path) -> None:
    evaluation = Evaluation(np.array([1.0, 3.0]), np.array([1, 1]), 2, 0)
    words = " ".join(Page(written(tmp_path, evaluations=[(10, evaluation)]).read_text()).text)
    assert "mean of 2 episodes, too few for an interval" in words


def test_equal_episodes_get_no_interval_of_width_zero(tmp_path: Path) -> None:
    evaluation = Evaluation(np.full(20, 3.0), np.ones(20), 20, 0)
    words = " ".join(Page(written(tmp_path, evaluations=[(10, evaluation)]).read_text()).text)
    assert "the same in all 20 episodes of this one run" in words
    assert "interval" not in words


def test_the_interval_covers_the_mean_as_often_as_it_says() -> None:
    rng = np.random.default_rng(5)
    hits = 0
    for _ in range(200):
        low, high = interval(rng.normal(size=30))
        hits += low <= 0.0 <= high
    assert 0.90 <= hits / 200 <= 0.98
    assert interval([2.0, 2.0, 2.0]) == (2.0, 2.0)


def test_a_sparkline_spans_its_box() -> None:
    svg = sparkline(np.array([0.0, np.nan, 10.0, 5.0]), width=100, height=20)
    assert re.findall(r'points="([^"]+)"', svg) == ["1.0,18.0 50.0,2.0 99.0,10.0"]
    assert sparkline(np.array([1.0])) == ""
    assert sparkline(np.full(4, np.inf)) == ""


def test_the_learning_curve_says_what_a_step_is(tmp_path: Path) -> None:
    for name in "01":
        (tmp_path / name).mkdir()
    plain, decisions = (
        written(tmp_path / str(i), **given).read_text() for i, given in enumerate(({}, {"unit": "decisions"}))
    )
    assert ">environment steps<" in plain
    assert ">decisions<" in decisions
    assert ">environment steps<" not in decisions


def test_pictures_are_part_of_the_page(tmp_path: Path) -> None:
    picture = Picture("a <film>", b"GIF89a", "image/gif")
    page = written(tmp_path, sections=[section(title="Flow", pictures=[picture])]).read_text()
    assert '<h3>a &lt;film&gt;</h3><img alt="a &lt;film&gt;" src="data:image/gif;base64,R0lGODlh">' in page
