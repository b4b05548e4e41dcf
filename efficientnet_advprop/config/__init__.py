"""The config of an experiment: its fields, their rules, and the table of methods.

Nothing here imports TensorFlow.
"""

from efficientnet_advprop.config.experiment import (
    DENOISERS,
    METHODS,
    AttackConfig,
    ConfigError,
    ExperimentConfig,
    describe_fields,
)

__all__ = [
    "DENOISERS",
    "METHODS",
    "AttackConfig",
    "ConfigError",
    "ExperimentConfig",
    "describe_fields",
]
