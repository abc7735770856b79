"""Every key of a run, a search and an ablation study: frozen, validated, read from YAML."""

from labn.config.ablation import load_study
from labn.config.reading import dump_config, load_config
from labn.config.run import (
    AugmentConfig,
    Config,
    ConfigProblem,
    DataConfig,
    LossConfig,
    ModelConfig,
    SyntheticConfig,
    TrackingConfig,
    TrainConfig,
    ValidationConfig,
    flatten,
    known_keys,
)
from labn.config.search import load_search

__all__ = [
    "AugmentConfig",
    "Config",
    "ConfigProblem",
    "DataConfig",
    "LossConfig",
    "ModelConfig",
    "SyntheticConfig",
    "TrackingConfig",
    "TrainConfig",
    "ValidationConfig",
    "dump_config",
    "flatten",
    "known_keys",
    "load_config",
    "load_search",
    "load_study",
]
