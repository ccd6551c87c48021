"""A recipe: YAML and ``key=value`` overrides become one validated, frozen object that is dumped with every run."""

from eggroll_rl.config.answers import (
    EvaluationConfig,
    Half,
    RetentionConfig,
    RewardConfig,
    SamplingConfig,
    ScoringConfig,
)
from eggroll_rl.config.data import DataConfig
from eggroll_rl.config.engine import EngineConfig, PoolConfig, VLLMConfig
from eggroll_rl.config.grpo import GRPOSection
from eggroll_rl.config.loading import build_recipe, dump_recipe, load_recipe
from eggroll_rl.config.population import FitnessConfig, OptimizerConfig, ParametersConfig, PopulationConfig
from eggroll_rl.config.recipe import Exported, Recipe, SnapshotsConfig, TrackerConfig, Weights
from eggroll_rl.config.text import TextConfig
from eggroll_rl.config.values import Section

__all__ = [
    "DataConfig",
    "EngineConfig",
    "EvaluationConfig",
    "Exported",
    "FitnessConfig",
    "GRPOSection",
    "Half",
    "OptimizerConfig",
    "ParametersConfig",
    "PoolConfig",
    "PopulationConfig",
    "Recipe",
    "RetentionConfig",
    "RewardConfig",
    "SamplingConfig",
    "ScoringConfig",
    "Section",
    "SnapshotsConfig",
    "TextConfig",
    "TrackerConfig",
    "VLLMConfig",
    "Weights",
    "build_recipe",
    "dump_recipe",
    "load_recipe",
]
