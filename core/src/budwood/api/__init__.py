"""Everything a plugin or an adapter may import from budwood. Nothing here imports the rest of budwood."""

from pydantic import BaseModel, ConfigDict

from budwood.api.blame import blamed, misfit
from budwood.api.completions import CompletionReward, Completions
from budwood.api.control import EvalReport, Evaluation, Evaluator, RunCallback, RunControl
from budwood.api.errors import (
    BindingError,
    BudwoodError,
    CheckpointError,
    ConfigError,
    ContributionError,
    DiskFullError,
    PluginError,
)
from budwood.api.generation import (
    CompletionAdvantageFn,
    Decoder,
    Generated,
    GenerationRequest,
    RolloutFn,
    ScoredCompletions,
)
from budwood.api.hooks import Hooks, hookimpl
from budwood.api.linear import LinearCombination, WeightVector
from budwood.api.report import Figure, History, ReportSection, Series
from budwood.api.reward import NATIVE, RewardCombination, RewardTerm, StepBatch, TermColumn
from budwood.api.state import Array, Stateful, StateTree, storable
from budwood.api.trainer import (
    Capabilities,
    Contributed,
    Contributions,
    Graft,
    Measured,
    Run,
    Seam,
    Trainer,
    TrainerEvents,
)
from budwood.api.training import (
    AdvantageFn,
    AdvantageInputs,
    ChunkPolicy,
    LossInputs,
    LossTerm,
    NativePolicyFactory,
    Objective,
    Observations,
    ParamGroup,
    Policy,
    PolicyFactory,
    Rollout,
)


class Config(BaseModel):
    """Base of every configuration section: strict types, no unknown keys, immutable."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")


__all__ = [
    "NATIVE",
    "AdvantageFn",
    "AdvantageInputs",
    "Array",
    "BindingError",
    "BudwoodError",
    "Capabilities",
    "CheckpointError",
    "ChunkPolicy",
    "CompletionAdvantageFn",
    "CompletionReward",
    "Completions",
    "Config",
    "ConfigError",
    "Contributed",
    "ContributionError",
    "Contributions",
    "Decoder",
    "DiskFullError",
    "EvalReport",
    "Evaluation",
    "Evaluator",
    "Figure",
    "Generated",
    "GenerationRequest",
    "Graft",
    "History",
    "Hooks",
    "LinearCombination",
    "LossInputs",
    "LossTerm",
    "Measured",
    "NativePolicyFactory",
    "Objective",
    "Observations",
    "ParamGroup",
    "PluginError",
    "Policy",
    "PolicyFactory",
    "ReportSection",
    "RewardCombination",
    "RewardTerm",
    "Rollout",
    "RolloutFn",
    "Run",
    "RunCallback",
    "RunControl",
    "ScoredCompletions",
    "Seam",
    "Series",
    "StateTree",
    "Stateful",
    "StepBatch",
    "TermColumn",
    "Trainer",
    "TrainerEvents",
    "WeightVector",
    "blamed",
    "hookimpl",
    "misfit",
    "storable",
]
