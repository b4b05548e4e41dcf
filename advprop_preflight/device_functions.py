"""The functions that a device runs during training, to be compiled without a device."""

import copy
from typing import Callable

import tensorflow as tf

from efficientnet_advprop.config.experiment import ConfigError, ExperimentConfig
from efficientnet_advprop.config.methods import AUGMENTED, METHODS
from efficientnet_advprop.training import build
from efficientnet_advprop.training.checks import check_batch_norm_groups

Program = tuple[Callable, list[tf.TensorSpec]]  # the function of a replica, specs of its arguments


def batch_specs(config: ExperimentConfig, replica_batch_size: int) -> list[tf.TensorSpec]:
    """Returns specs of a replica's images, labels and, if used, augmented images, in the last
    stage of several.
    """
    data = config.data.stages()[-1]
    images = tf.TensorSpec([replica_batch_size, data.image_size, data.image_size, 3], tf.uint8)
    labels = tf.TensorSpec([replica_batch_size], tf.int32)
    if data.mixup_alpha or data.cutmix_alpha:
        labels = tf.TensorSpec([replica_batch_size, config.model.num_classes], tf.float32)
    return (
        [images, labels, images]
        if AUGMENTED in METHODS[config.training.method].views
        else [images, labels]
    )


def training_step(config: ExperimentConfig, replica_batch_size: int, num_replicas: int) -> Program:
    """Returns the whole update on new variables: attack, passes, reduction, optimizer and
    averages.

    Raises:
        ConfigError: the accumulation steps do not divide `replica_batch_size`, or the
            groups of the batch norms do not divide the replicas.
    """
    parts = config.training.accumulation_steps
    if replica_batch_size < 1 or replica_batch_size % parts:
        raise ConfigError(
            f"`replica_batch_size` is {replica_batch_size}, but must be ≥ 1 and a multiple of "
            f"`config.training.accumulation_steps` = {parts}."
        )
    check_batch_norm_groups(config, num_replicas)
    config = copy.deepcopy(config)
    config.training.global_batch_size = replica_batch_size * num_replicas
    state = build.make_state(config)
    # The length of an epoch changes numbers only, not the computation.
    step = build.make_step(
        config, state, build.make_learning_rate(config, steps_per_epoch=1000.0, total_steps=100_000)
    )
    keys = ("images", "labels", "augmented_images")
    return lambda *tensors: step(dict(zip(keys, tensors))), batch_specs(config, replica_batch_size)
