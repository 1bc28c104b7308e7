"""Settings of a LeRobot policy under which a chain could not be replayed, each refused with what to change."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from packaging.version import Version

from budwood.api import BindingError, Run

if TYPE_CHECKING:
    from lerobot.policies.pretrained import PreTrainedPolicy

TRANSFORMERS = Version("5.4"), Version("5.6")


def refuse_settings(policy: PreTrainedPolicy) -> None:
    """Refuses, for one policy, all settings that break replay at once.

    Gradient checkpointing drops the cached prefix in training; a compiled model and real-time chunking run a sampler of their
    own; transformers outside [5.4, 5.6) has other signatures than LeRobot calls.
    """
    config = policy.config
    found = list(_settings(config))
    if getattr(getattr(policy, "model", None), "gradient_checkpointing_enabled", False):
        found.append("gradient checkpointing is on in the model: call model.gradient_checkpointing_disable()")
    installed = Version(version("transformers"))
    if not TRANSFORMERS[0] <= installed < TRANSFORMERS[1]:
        found.append(f"transformers {installed} is installed: install one >= {TRANSFORMERS[0]}, < {TRANSFORMERS[1]}")
    if found:
        raise BindingError(
            f"chains of this {config.type} policy could not be replayed: " + "; ".join(found),
            where="flow policy",
            do="Change the policy's configuration as said, in the trainer's section or before it is loaded",
        )


def refuse_trainer(run: Run) -> None:
    """:raises BindingError: for a trainer that has no policy of LeRobot to make a chain policy of."""
    trainer = run.config.get("trainer")
    kind = trainer.get("kind", "lerobot") if isinstance(trainer, Mapping) else "lerobot"
    if kind != "lerobot":
        raise BindingError(
            f"flow_vla trains the flow policies of LeRobot, and trainer.kind is {kind}",
            where="trainer.kind",
            do="Use trainer: {kind: lerobot, algo: online}, or flow_rl, which brings a flow policy of its own to sb3",
        )


def unknown_kind(kind: str, known: Iterable[str]) -> BindingError:
    return BindingError(
        f"a LeRobot policy of type {kind} is no flow-matching policy that flow_rl knows",
        where="flow policy",
        do=f"Use one of {', '.join(known)}, or train this one without the plugin",
    )


def _settings(config: Any) -> Iterable[str]:
    if getattr(config, "gradient_checkpointing", False):
        yield "gradient_checkpointing drops the cached prefix: set it to false"
    if getattr(config, "compile_model", False):
        yield "compile_model compiles a sampler that is not used here: set it to false"
    if getattr(config, "rtc_config", None) is not None:
        yield "rtc_config guides the sampler by the last chunk, which no density knows: leave it out"
    if getattr(config, "adapt_to_pi_aloha", False):
        yield "adapt_to_pi_aloha converts actions after the flow, inside LeRobot's sampler: set it to false"
    if config.type == "smolvla" and not config.use_cache:
        yield "use_cache: false leaves no prefix for the steps to read: set it to true"
    if config.type == "multi_task_dit":
        if not config.is_flow_matching:
            yield f"its objective is {config.objective}, not a flow: set objective to flow_matching and train it so"
        elif config.integration_method != "euler":
            yield f"it integrates by {config.integration_method}, chains by Euler steps: set integration_method to euler"
        if config.n_obs_steps != 1:
            yield (
                f"it reads {config.n_obs_steps} observations and executes its horizon from step {config.n_obs_steps - 1}, "
                "a chunk is decided on one and executed from its start: set n_obs_steps to 1"
            )
