"""The config of an experiment: fields, rules, methods, choices. No TensorFlow in here."""

from efficientnet_advprop.config.experiment import (
    METHODS,
    AttackConfig,
    ConfigError,
    ExperimentConfig,
    describe_fields,
)
from efficientnet_advprop.config.tables import DENOISERS

__all__ = [
    "DENOISERS",
    "METHODS",
    "AttackConfig",
    "ConfigError",
    "ExperimentConfig",
    "describe_fields",
]
