"""The plugin's part of the report: what was tried, what came of it, and what was decided then.

A number of an outer step is logged at its end, so its level is drawn over the steps before. The first weights that were
tried, equal ones unless the configuration says otherwise, are the line to compare with.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence

from budwood.api import NATIVE, Figure, History, ReportSection, Series
from budwood_reward_shaping.combination import PLUGIN, TASK
from budwood_reward_shaping.config import Baseline, ShapingConfig

Points = tuple[Sequence[int], Sequence[float]]
STEPS = "environment steps"

BASELINES: Mapping[Baseline, str] = {
    "oracle": "the weights given by hand, kept",
    "uniform": "equal weights, kept",
    "constant_reset": "equal weights, kept, the policy started afresh after every outer step",
    "gradient": "gradient steps alone, on one policy",
    "gradient_reset": "gradient steps alone, the policy started afresh after each",
    "random": "weights drawn at random, the policy started afresh under each",
    "sweep": "weights spread evenly by a Sobol sequence, the policy started afresh under each",
}


def sections(config: ShapingConfig, history: History) -> list[ReportSection]:
    """One section if the plugin logged any performance, else none."""
    shown = {key.removeprefix(f"{PLUGIN}/"): value for key, value in history.items() if key.startswith(f"{PLUGIN}/")}
    if "P" not in shown:
        return []
    if config.searches is None:
        figures = [_fixed_performance(shown), _fixed_criteria(shown), *_terms(config, shown, history)]
        return [ReportSection("Reward shaping", (_fixed_summary(config, shown),), figures)]
    figures = [_performance(config, shown), _criteria(shown)]
    if _weighed(config, shown):
        figures += [_weights(config, shown), *_spread(config, shown), *_tried(config, shown)]
    figures += [*_gradient(shown), *_terms(config, shown, history)]
    return [ReportSection("Reward shaping", _summary(config, shown), figures, _table(config, shown))]


def _line(label: str, points: Points) -> Series:
    return Series(label, *points)


def _levels(label: str, points: Points) -> Series:
    """Each value from the end of the outer step before to the end of its own."""
    steps, values = points
    return Series(label, [0, *steps], [*values, values[-1]], "step")


def _weighed(config: ShapingConfig, shown: History) -> bool:
    return all(f"w/{name}" in shown for name in config.names)


# ---- what came of it -------------------------------------------------------------------------------------------------


def _performance(config: ShapingConfig, shown: History) -> Figure:
    """Every evaluation, marked by what was decided then, over the best so far and the first."""
    steps, values = shown["P"]
    first = Series(f"{_start(config)}, tried first", [0, steps[-1]], [values[0]] * 2)
    series = [*_by_decision(shown, steps, values), first, Series("best so far", *shown["best_P"], "step")]
    return Figure("Task performance P", STEPS, "part of episodes, all criteria met", series)


def _fixed_performance(shown: History) -> Figure:
    series = [_line("P, all criteria met", shown["P"]), _line("mean part of criteria met", shown["P_soft"])]
    return Figure("Task performance", STEPS, "part of episodes", series)


JUMP, STEP, OTHER, KEPT = "then a jump", "then a gradient step", "then other weights", "weights kept"


def _decisions(shown: History) -> list[str]:
    """What followed each evaluation; other weights are those of the next probe, or of noise without a gradient."""
    weights = list(zip(*(values for key, (_, values) in shown.items() if key.startswith("w/")), strict=True))
    made = []
    for i in range(len(shown["P"][1])):
        if shown["explored"][1][i]:
            made.append(JUMP)
        elif shown["stepped"][1][i]:
            made.append(STEP)
        else:
            made.append(KEPT if weights[i + 1 : i + 2] in ([], weights[i : i + 1]) else OTHER)
    return made


def _by_decision(shown: History, steps: Sequence[int], values: Sequence[float]) -> list[Series]:
    """Always in one order, so that a decision has the same colour in every figure."""
    made = _decisions(shown)
    kinds = [kind for kind in (JUMP, STEP, KEPT, OTHER) if kind != OTHER or OTHER in made]
    rows = {kind: [i for i, decision in enumerate(made) if decision == kind] for kind in kinds}
    return [
        Series(kind, [steps[i] for i in chosen], [values[i] for i in chosen], "points") for kind, chosen in rows.items()
    ]


def _criteria(shown: History) -> Figure:
    """Points of one outer step side by side, since criteria are so often met by all episodes or by none."""
    each = {key.removeprefix("criterion/"): value for key, value in shown.items() if key.startswith("criterion/")}
    series = []
    for number, (name, (steps, values)) in enumerate(each.items()):
        began = [0, *steps[:-1]]
        place = (number + 0.5) / len(each)
        x = [start + place * (end - start) for start, end in zip(began, steps, strict=True)]
        series.append(Series(name, x, values, "points"))
    label = f"{STEPS}; criteria side by side within an outer step"
    return Figure("Each criterion", label, "part of episodes that met it", series)


def _fixed_criteria(shown: History) -> Figure:
    series = [_line(key.removeprefix("criterion/"), v) for key, v in shown.items() if key.startswith("criterion/")]
    return Figure("Each criterion", STEPS, "part of episodes that met it", series)


# ---- what was tried --------------------------------------------------------------------------------------------------


def _weights(config: ShapingConfig, shown: History) -> Figure:
    series = [_levels(name, shown[f"w/{name}"]) for name in config.names]
    return Figure("Weights", STEPS, "weight", series, y_log=True)


def _spread(config: ShapingConfig, shown: History) -> list[Figure]:
    """How far weights that depend on the state differ between states."""
    if f"w_spread/{config.names[0]}" not in shown:
        return []
    series = [_levels(name, shown[f"w_spread/{name}"]) for name in config.names]
    return [Figure("Spread of the weights", STEPS, "standard deviation over states", series)]


def _tried(config: ShapingConfig, shown: History) -> list[Figure]:
    """P against the ratio of two weights, or against each of them where there are more or fewer."""
    weights = {name: shown[f"w/{name}"][1] for name in config.names}
    if len(weights) == 2:
        (one, first), (other, second) = weights.items()
        ratio = [a / b for a, b in zip(first, second, strict=True)]
        return [_tried_against(config, shown, f"weight of {one} / weight of {other}", ratio, "Weights tried")]
    return [
        _tried_against(config, shown, f"weight of {name}", values, f"Weights tried: {name}")
        for name, values in weights.items()
    ]


def _tried_against(config: ShapingConfig, shown: History, label: str, x: Sequence[float], title: str) -> Figure:
    performance = shown["P"][1]
    best = _best(shown)
    others = [i for i in range(1, len(x)) if i != best]
    series = [Series(f"{_start(config)}, tried first", x[:1], performance[:1], "points")]
    if others:
        series.append(Series("tried", [x[i] for i in others], [performance[i] for i in others], "points"))
    if best > 0:
        series.append(Series("the best", [x[best]], [performance[best]], "points"))
    return Figure(title, label, "P", series, x_log=True)


def _gradient(shown: History) -> list[Figure]:
    steps, norms = shown["grad_norm"]
    if not any(norms):
        return []
    return [Figure("Hypergradient", STEPS, "norm", _by_decision(shown, steps, norms))]


# ---- what was rewarded -----------------------------------------------------------------------------------------------


def _terms(config: ShapingConfig, shown: History, history: History) -> list[Figure]:
    """The terms as the policy earned them, and what each then added to the reward."""
    columns = {name: NATIVE if name == "native" else f"{PLUGIN}.{name}" for name in config.names}
    columns = {name: f"terms/{column}" for name, column in columns.items() if f"terms/{column}" in history}
    if not columns:
        return []
    raw = [_line(name, history[column]) for name, column in columns.items()]
    added = [_added(config, shown, name, history[column]) for name, column in columns.items()]
    task = f"terms/{PLUGIN}.{TASK}"
    if config.weights.w_task > 0 and task in history:
        steps, values = history[task]
        added.append(Series(TASK, steps, [config.weights.w_task * value for value in values]))
    unweighted = Figure("Terms", STEPS, "mean a step, unweighted", raw)
    if any(key.startswith("w_spread/") for key in shown):
        return [unweighted]  # weights that vary with the state do not multiply means
    return [
        unweighted,
        Figure("What each term adds", STEPS, "reward a step, weighted", added),
    ]


def _added(config: ShapingConfig, shown: History, name: str, points: Points) -> Series:
    """``points`` times scale and weight, up to the last evaluation, after which no weights are logged."""
    steps, values = points
    scale = _scale(config, shown, name)
    ends, weights = shown.get(f"w/{name}", ((), ()))
    if not weights:
        weight = _fixed_weights(config)[name]
        return Series(name, steps, [weight * scale * value for value in values])
    rows = [
        (step, weights[bisect_left(ends, step)] * scale * v)
        for step, v in zip(steps, values, strict=True)
        if step <= ends[-1]
    ]
    return Series(name, [step for step, _ in rows], [value for _, value in rows])


def _fixed_weights(config: ShapingConfig) -> dict[str, float]:
    given = config.weights.initial or dict.fromkeys(config.names, 1.0)
    if config.weights.param == "static":
        return given
    return {name: len(given) * weight / sum(given.values()) for name, weight in given.items()}


def _scale(config: ShapingConfig, shown: History, name: str) -> float:
    if f"scale/{name}" in shown:
        return shown[f"scale/{name}"][1][-1]
    given = config.weights.scale
    scale = given[name] if isinstance(given, dict) else given
    return float(scale) if isinstance(scale, float | int) else 1.0


# ---- words -----------------------------------------------------------------------------------------------------------


def _table(config: ShapingConfig, shown: History) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    followed = not _by_score(config) and (any(shown["zero_grad"][1]) or any(shown["grad_norm"][1]))
    names = [name for name in config.names if f"w/{name}" in shown]
    for i, (step, decision) in enumerate(zip(shown["P"][0], _decisions(shown), strict=True)):
        weights = {name: f"{shown[f'w/{name}'][1][i]:.3g}" for name in names}
        rows.append(
            {
                "outer step": i + 1,
                STEPS: f"{step:,}",
                **weights,
                "P": f"{shown['P'][1][i]:.2f}\u00a0±\u00a0{shown['P_se'][1][i]:.2f}",
                **({"rollouts without a gradient": int(shown["zero_grad"][1][i])} if followed else {}),
                "then": _decision(config, shown, i, decision),
            }
        )
    return rows


def _decision(config: ShapingConfig, shown: History, i: int, decision: str) -> str:
    assert config.searches is not None
    if i + 1 == config.searches.steps and shown["P"][1][i] < config.explore.p_target and i != _best(shown):
        return f"the weights of outer step {_best(shown) + 1} again, the best"
    said = decision.removeprefix("then ").removeprefix("a ")
    if decision == JUMP:
        said += f", novelty {shown['novelty'][1][i]:.2g}"
    noise = shown["noise"][1][i] if "noise" in shown else 0.0
    return f"{said}, noise {noise:.2g}" if noise else said


def _start(config: ShapingConfig) -> str:
    """What was tried first: a search by score begins beside its start."""
    start = "given" if config.weights.initial else "equal"
    return f"{start} weights, moved by a probe" if _by_score(config) else f"{start} weights"


def _by_score(config: ShapingConfig) -> bool:
    return config.searches is not None and config.searches.estimator == "score" and config.baseline is None


def _best(shown: History) -> int:
    """The outer step of the highest P, then of the highest mean part of criteria met; the first of equals."""
    performance, soft = shown["P"][1], shown["P_soft"][1]
    return max(range(len(performance)), key=lambda i: (performance[i], soft[i]))


def _summary(config: ShapingConfig, shown: History) -> tuple[str, ...]:
    performance = shown["P"][1]
    best = _best(shown)
    jumps, steps = (int(sum(shown[key][1])) for key in ("explored", "stepped"))
    target = config.explore.p_target
    reached = next((i for i, p in enumerate(performance) if p >= target), None)
    outcome = (
        f"P reached {target:g} in outer step {reached + 1}" if reached is not None else f"P never reached {target:g}"
    )
    said = [
        f"Policies were trained and evaluated {len(performance)} times, with {jumps} jumps and {steps} gradient steps. "
        f"{outcome}. {_start(config).capitalize()}, tried first, had P = {performance[0]:.2f}; the best P was "
        f"{performance[best]:.2f}{_with_weights(config, shown, best)}."
    ]
    if not any(shown["grad_norm"][1]) and any(shown["zero_grad"][1]):
        said.append(
            "No estimate by score had a slope: all probes of a round did equally well."
            if _by_score(config)
            else "No rollout had a hypergradient: the task's reward did not vary within any of them."
        )
    if "final/P" in shown:
        said.append(_afresh(shown))
    if config.baseline:
        said.insert(0, f"This run is the baseline {config.baseline}: {BASELINES[config.baseline]}.")
    return tuple(said)


def _afresh(shown: History) -> str:
    """What the best of several noisy evaluations cannot say: how good policies under those weights are."""
    count = sum(key.startswith("final/P_") and key[8:].isdigit() for key in shown)
    said = f"{count} policies trained afresh under the best weights had P = {shown['final/P'][1][-1]:.2f}"
    if "final/P_low" not in shown:
        return f"{said}."
    low, high = (shown[f"final/P_{end}"][1][-1] for end in ("low", "high"))
    return f"{said}, 95 % interval {low:.2f} to {high:.2f}."


def _with_weights(config: ShapingConfig, shown: History, i: int) -> str:
    if not _weighed(config, shown):
        return ""
    return ", with the weights " + ", ".join(f"{name} {shown[f'w/{name}'][1][i]:.3g}" for name in config.names)


def _fixed_summary(config: ShapingConfig, shown: History) -> str:
    shares = ", ".join(f"{name} {weight:.3g}" for name, weight in _fixed_weights(config).items())
    return f"The weights were fixed: {shares}. The last P was {shown['P'][1][-1]:.2f}."
