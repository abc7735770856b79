"""The keys of a run, a search and an ablation study: frozen, validated, read from YAML."""

from labn.config.reading import dump_config, load_config, load_search, load_study
from labn.config.run import (
    AugmentConfig,
    Config,
    DataConfig,
    LossConfig,
    ModelConfig,
    SyntheticConfig,
    TrackingConfig,
    TrainConfig,
    ValidationConfig,
    known_keys,
)
from labn.config.section import flatten

__all__ = [
    "AugmentConfig",
    "Config",
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
