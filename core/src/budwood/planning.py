"""From a configuration to everything that can be known before training: plugins, capabilities, contributions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from budwood import across, compose, config
from budwood.api import ALONE, BindingError, Capabilities, Contributions, PluginError, Processes, Run, Trainer
from budwood.plugins import Activation, Active, PerPlugin, activate


@dataclass(frozen=True)
class Plan:
    """A configuration with its plugins imported and every contribution checked; nothing is built yet."""

    data: dict[str, Any]
    model: Any
    activation: Activation
    capabilities: Capabilities
    contributions: Contributions
    run_for: Callable[[Active], Run]
    processes: Processes = ALONE
    begun_with: int = 1

    @property
    def bindings(self) -> list[compose.Binding]:
        return compose.bindings(self.contributions, self.capabilities)

    def preflight(self) -> None:
        """:raises BudwoodError: a plugin knows that the run would stop, though its configuration is sound."""
        self.activation.collect("preflight", run=PerPlugin(self.run_for))

    def build_trainer(self) -> Trainer:
        adapter = self.activation.adapter
        assert adapter is not None
        arguments = {"run": PerPlugin(self.run_for), "contributions": self.contributions}
        trainer: Trainer = self.activation.build(
            "build_trainer", lambda: _answer(self.activation, adapter, "build_trainer", **arguments), **arguments
        )
        return trainer


def plan(
    loaded: config.Loaded,
    folder: Path | None,
    *,
    recorded: bool = False,
    processes: Processes = ALONE,
    begun_with: int | None = None,
) -> Plan:
    """Activate, resolve and compose. Every problem that can be known before training is raised here.

    ``recorded``: only what was trained is looked at again, so secrets that were not kept on disk are not needed.
    ``begun_with``: how many processes the run began with; None: these.
    """
    begun_with = begun_with or processes.count
    adapter_name, plugin_names = config.names(loaded)
    activation = activate(plugin_names, adapter_name)
    resolved = config.resolve(loaded, activation, recorded=recorded)
    model, data = resolved.model, resolved.data

    def components(kind: str) -> Sequence[Any]:
        return activation.collect("components", run=PerPlugin(run_for), kind=kind)

    def run_for(active: Active) -> Run:
        return Run(
            name=data["name"],
            seed=data["seed"],
            config=data,
            section=None if active is activation.adapter else resolved.section(active.name),
            trainer=model.trainer,
            env_id=data["env"].get("id") if data.get("env") else None,
            folder=folder,
            device=data["device"],
            components=components,
            processes=processes,
            begun_with=begun_with,
        )

    adapter = activation.adapter
    assert adapter is not None
    capabilities = _answer(activation, adapter, "capabilities", run=run_for(adapter), target=None)
    contributions = compose.contributions(activation, run_for, capabilities)
    if processes.several or (data["processes"] or 1) > 1:
        _check_shared(capabilities, contributions, adapter)
    return Plan(data, model, activation, capabilities, contributions, run_for, processes, begun_with)


def _check_shared(capabilities: Capabilities, contributions: Contributions, adapter: Active) -> None:
    """Refuse what several processes cannot train together: the trainer, or a contribution whose memory would differ."""
    if capabilities.one_process:
        raise BindingError(
            f"trainer {capabilities.trainer} trains in one process only: {capabilities.one_process}",
            where="processes",
            who=adapter.who,
            do="Start it without a launcher",
        )
    across.check(contributions)


def _answer(activation: Activation, adapter: Active, hook: str, **arguments: Any) -> Any:
    """What an adapter must give for a run of its own."""
    answer = activation.ask(hook, adapter, **arguments)
    if answer is None:
        raise PluginError(
            f"its hook {hook} gave nothing for this run",
            where="trainer.kind",
            who=adapter.who,
            do="Report this to its author",
        )
    return answer


def explain(source: str | Path | Mapping[str, Any], overrides: Sequence[str] = ()) -> Plan:
    """What a run would do: its resolved configuration and which contribution binds to which seam, in order."""
    return plan(config.load(source, overrides), None)
