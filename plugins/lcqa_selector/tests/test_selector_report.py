"""What the report says of a run that switched, of one that did not, and of one that learnt from little."""

from __future__ import annotations

import json
from types import SimpleNamespace

from budwood_lcqa_selector.config import SelectorConfig
from budwood_lcqa_selector.report import sections

STEPS = (10, 20, 30, 40)


def history(switch: int | None = 20, flat: float = 0.1):
    stage = [float(switch is not None and step > switch) for step in STEPS]
    parts = {"coverage": (0.4, 0.8, 0.7, 0.9), "size": (5.0, 4.0, 3.0, 2.0), "kept_tokens": (0.5, 0.4, 0.3, 0.2)}
    made = {f"train/lcqa_selector/{name}": (STEPS, values) for name, values in parts.items()}
    made |= {"train/lcqa_selector/stage": (STEPS, stage), "train/reward": (STEPS, (0.3, 0.7, 0.2, 0.6))}
    made |= {
        "train/frac_reward_zero_std": (STEPS, (flat,) * 4),
        "train/lcqa_selector/invalid/no_json": (STEPS, (0.5, 0, 0, 0)),
    }
    if switch is not None:
        made["lcqa_selector/switched"] = ((switch,), (float(switch),))
    return made


def run(folder=None):
    return SimpleNamespace(section=SelectorConfig(), folder=folder)


def test_reward_by_stage_with_the_switch_marked():
    (section,) = sections(run(), history())
    reward = next(figure for figure in section.figures if figure.title == "Reward")
    lines = {series.label: (list(series.x), list(series.y)) for series in reward.series}
    assert lines == {
        "stage recall": ([10, 20], [0.3, 0.7]),
        "stage precision": ([30, 40], [0.2, 0.6]),
        "switch at 20": ([20, 20], [0.2, 0.7]),
    }


def test_coverage_against_size():
    (section,) = sections(run(), history())
    figure = next(figure for figure in section.figures if figure.title == "Coverage against set size")
    points = {series.label: list(zip(series.x, series.y, strict=True)) for series in figure.series}
    assert points == {"stage recall": [(5.0, 0.4), (4.0, 0.8)], "stage precision": [(3.0, 0.7), (2.0, 0.9)]}


def test_words():
    (section,) = sections(run(), history())
    said = " ".join(section.text)
    assert "covered 90 % of the evidence with 2.0 passages and kept 20 % of the pool's tokens: 80 % were saved" in said
    assert "recall, then precision from step 20. Rewards of different stages cannot be compared." in said
    assert "taught nothing" not in said
    assert [s.label for f in section.figures if f.title == "Malformed answers" for s in f.series] == ["no_json"]


def test_never_switched_and_starved():
    (section,) = sections(run(), history(switch=None, flat=0.7))
    said = " ".join(section.text)
    assert "never left its first stage, recall" in said
    assert "In 70 % of groups all completions had the same reward" in said


def test_samples_of_the_run(tmp_path):
    rows = [{"question": "q1", "chosen": "p1 p3", "evidence": "p1 p2"}]
    (tmp_path / "lcqa_selector_samples.json").write_text(json.dumps(rows))
    _, section = sections(run(tmp_path), history())
    assert list(section.table) == rows


def test_nothing_logged():
    assert sections(run(), {}) == []
