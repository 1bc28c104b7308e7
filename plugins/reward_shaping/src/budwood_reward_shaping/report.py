"""The plugin's part of the report: what was tried, what came of it, and what was decided then."""

from __future__ import annotations

from collections.abc import Sequence

from budwood.api import Figure, History, ReportSection, Series
from budwood_reward_shaping.combination import PLUGIN
from budwood_reward_shaping.config import ShapingConfig

Points = tuple[Sequence[int], Sequence[float]]


def sections(config: ShapingConfig, history: History) -> list[ReportSection]:
    """One section if the plugin logged any performance, else none."""
    shown = {key.removeprefix(f"{PLUGIN}/"): value for key, value in history.items() if key.startswith(f"{PLUGIN}/")}
    if "P" not in shown:
        return []
    figures = [_performance(shown), _criteria(shown)]
    if config.searches is None:
        return [ReportSection("Reward shaping", (_fixed_summary(config, shown),), figures)]
    figures += [_weights(config, shown), _tried(config, shown), _gradient(shown)]
    return [ReportSection("Reward shaping", (_summary(config, shown),), figures, _table(config, shown))]


def _line(label: str, points: Points, style: str = "line") -> Series:
    return Series(label, points[0], points[1], style)


def _performance(shown: History) -> Figure:
    series = [_line("P, all criteria met", shown["P"]), _line("mean part of criteria met", shown["P_soft"])]
    if "best_P" in shown:
        series.append(_line("best P so far", shown["best_P"], "step"))
    steps, values = shown["P"]
    for label, key in (("then a jump", "explored"), ("then a gradient step", "stepped")):
        chosen = [i for i, flag in enumerate(shown.get(key, ((), ()))[1]) if flag]
        if chosen:
            series.append(Series(label, [steps[i] for i in chosen], [values[i] for i in chosen], "points"))
    return Figure("Task performance", "environment steps", "part of episodes", series)


def _criteria(shown: History) -> Figure:
    series = [_line(key.removeprefix("criterion/"), v) for key, v in shown.items() if key.startswith("criterion/")]
    return Figure("Each criterion", "environment steps", "part of episodes that met it", series)


def _weights(config: ShapingConfig, shown: History) -> Figure:
    series = [_line(name, shown[f"w/{name}"], "step") for name in config.names]
    return Figure("Weights", "environment steps", "weight", series, y_log=True)


def _tried(config: ShapingConfig, shown: History) -> Figure:
    """Two terms or more: performance against the ratio of the first two weights."""
    performance, first = shown["P"][1], shown[f"w/{config.names[0]}"][1]
    if len(config.names) == 1:
        return Figure("Weights tried", config.names[0], "P", [Series("tried", first, performance, "points")])
    second = shown[f"w/{config.names[1]}"][1]
    ratio = [a / b for a, b in zip(first, second, strict=True)]
    label = f"weight of {config.names[0]} / weight of {config.names[1]}"
    return Figure("Weights tried", label, "P", [Series("tried", ratio, performance, "points")])


def _gradient(shown: History) -> Figure:
    series = [_line("norm", shown["grad_norm"]), _line("rollouts without one", shown["zero_grad"], "step")]
    return Figure("Hypergradient", "environment steps", "norm, or rollouts", series)


def _table(config: ShapingConfig, shown: History) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for i, step in enumerate(shown["P"][0]):
        weights = {name: f"{shown[f'w/{name}'][1][i]:.3g}" for name in config.names}
        rows.append(
            {
                "outer step": i + 1,
                "environment steps": step,
                **weights,
                "P": f"{shown['P'][1][i]:.2f} ± {shown['P_se'][1][i]:.2f}",
                "then": _decision(shown, i),
            }
        )
    return rows


def _decision(shown: History, i: int) -> str:
    if shown["explored"][1][i]:
        return f"jump, novelty {shown['novelty'][1][i]:.2g}"
    return "gradient step" if shown["stepped"][1][i] else "weights kept"


def _summary(config: ShapingConfig, shown: History) -> str:
    performance = shown["P"][1]
    best = max(range(len(performance)), key=lambda i: performance[i])
    weights = ", ".join(f"{name} {shown[f'w/{name}'][1][best]:.3g}" for name in config.names)
    jumps, steps = (int(sum(shown[key][1])) for key in ("explored", "stepped"))
    name = f" (baseline: {config.baseline})" if config.baseline else ""
    target = config.explore.p_target
    reached = next((i for i, p in enumerate(performance) if p >= target), None)
    outcome = (
        f"P reached {target:g} in outer step {reached + 1}" if reached is not None else f"P never reached {target:g}"
    )
    return (
        f"{len(performance)} weight vectors were trained under and evaluated{name}, with {jumps} jumps and {steps} gradient "
        f"steps. {outcome}. The best P was {performance[best]:.2f}, with the weights {weights}."
    )


def _fixed_summary(config: ShapingConfig, shown: History) -> str:
    weights = config.weights.initial or dict.fromkeys(config.names, 1.0)
    shares = ", ".join(f"{name} {weight:.3g}" for name, weight in weights.items())
    return f"The weights were fixed: {shares}. The last P was {shown['P'][1][-1]:.2f}."
