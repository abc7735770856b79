"""The configuration of a run: one frozen, validated tree, read from YAML and ``key=value``."""

from labn.config.reading import dump_config, load_config
from labn.config.schema import (
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
]
