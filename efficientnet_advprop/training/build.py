"""Builds the parts of a run from its config: model, attack, learning rate, state, step.

Call `make_model` and `make_state` under the strategy's scope: they create variables.
"""

from typing import Callable, Optional

import tensorflow as tf

from efficientnet_advprop.attacks import PGD, Attack, UniformNoise
from efficientnet_advprop.config.experiment import ConfigError, ExperimentConfig
from efficientnet_advprop.config.methods import METHODS
from efficientnet_advprop.config.tables import is_keras_variant
from efficientnet_advprop.models import Network, make_network
from efficientnet_advprop.training import fine_tuning
from efficientnet_advprop.training.losses import LossScale
from efficientnet_advprop.training.optimizers import make_optimizer
from efficientnet_advprop.training.schedules import LearningRate
from efficientnet_advprop.training.state import (
    ExponentialMovingAverage,
    TrainState,
    averaged_variables,
)
from efficientnet_advprop.training.steps import make_train_step


def make_model(config: ExperimentConfig, *, aux_branches: Optional[int] = None) -> Network:
    """Returns the network, with the parts frozen that `config.init.freeze` names.

    `aux_branches` None means those that the method trains: one for AdvProp, none for
    vanilla training.
    """
    if aux_branches is None:
        aux_branches = METHODS[config.training.method].aux_branches
    if is_keras_variant(config.model.variant):
        network = make_network(
            config.model.variant,
            num_classes=config.model.num_classes,
            image_size=config.data.image_size,
            aux_branches=aux_branches,
            normalization=config.model.normalization,
            compute_dtype=config.model.compute_dtype,
        )
        sizes = {stage.image_size for stage in config.data.stages()}
        if network.fixed_image_size is not None and sizes != {network.fixed_image_size}:
            raise ConfigError(
                f"`config.data.train_image_size` is {config.data.train_image_size} and"
                f" `config.data.num_stages` {config.data.num_stages}, so that training images have"
                f" {', '.join(map(str, sorted(sizes)))} pixels, but {config.model.variant!r} takes"
                f" {network.fixed_image_size} alone; leave both out, or let it take any size."
            )
        return network
    denoising = {}
    if config.model.denoise != "none":
        stages = tuple(map(int, config.model.denoise_stages.split(",")))
        denoising = dict(denoise=config.model.denoise, denoise_stages=stages)
    model = make_network(
        config.model.variant,
        num_classes=config.model.num_classes,
        aux_branches=aux_branches,
        width_coefficient=config.model.width_coefficient,
        depth_coefficient=config.model.depth_coefficient,
        dropout_rate=config.model.dropout_rate,
        survival_prob=config.model.survival_prob,
        normalization=config.model.normalization,
        compute_dtype=config.model.compute_dtype,
        batch_norm_momentum=config.model.batch_norm_momentum,
        batch_norm_epsilon=config.model.batch_norm_epsilon,
        batch_norm_group_size=batch_norm_group_size(
            config, tf.distribute.get_strategy().num_replicas_in_sync
        ),
        recomputed_blocks=config.model.recomputed_blocks,
        aux_shares=config.model.aux_shares,
        activation=config.model.activation,
        activation_alpha=config.model.activation_alpha,
        smooth_relu_gradient=config.model.smooth_relu_gradient,
        **denoising,
    )
    fine_tuning.freeze(model, config.init.freeze)
    return model


def make_attack(config: ExperimentConfig) -> Optional[Attack]:
    """Returns the attack of the training step; None for a method without attack."""
    if not METHODS[config.training.method].has_attack:
        return None
    if config.attack.name == "noise":
        return UniformNoise(config.attack.epsilon)
    return PGD(
        epsilon=config.attack.epsilon,
        step_size=config.attack.step_size,
        num_steps=config.attack.num_steps,
        targeted=config.attack.targeted,
        random_start=config.attack.random_start,
        num_classes=config.model.num_classes,
        project=config.attack.projection,
        # The value for float16 is that of the authors' code for adversarial training.
        loss_scale=128.0 if config.model.compute_dtype == "float16" else 1.0,
    )


def make_state(config: ExperimentConfig) -> TrainState:
    """Returns all variables of a training run, with their initial values."""
    model = make_model(config)
    factors = None
    if not is_keras_variant(config.model.variant):
        factors = fine_tuning.learning_rate_factors(
            model,
            layer_decay=config.init.layer_decay,
            head_factor=config.init.head_learning_rate_factor,
        )
    optimizer = make_optimizer(
        config.optimizer.name,
        model.trainable_variables,
        decay=config.optimizer.decay,
        momentum=config.optimizer.momentum,
        epsilon=config.optimizer.epsilon,
        lars_weight_decay=config.optimizer.lars_weight_decay,
        lars_epsilon=config.optimizer.lars_epsilon,
        learning_rate_factors=factors,
    )
    decay = config.optimizer.ema_decay
    ema = ExponentialMovingAverage(averaged_variables(model), decay) if decay else None
    return TrainState(
        model, optimizer, ema, LossScale() if config.model.compute_dtype == "float16" else None
    )


def count_steps(config: ExperimentConfig, num_examples: int) -> int:
    """Returns the number of updates of a run with `num_examples` training images."""
    steps_per_epoch = num_examples / config.training.global_batch_size
    return max(1, int(config.training.num_epochs * steps_per_epoch))


def make_learning_rate(
    config: ExperimentConfig, steps_per_epoch: float, total_steps: int
) -> LearningRate:
    """Returns the learning rate's schedule; an epoch has `steps_per_epoch` updates."""
    return LearningRate(
        initial=config.optimizer.learning_rate_per_256 * config.training.global_batch_size / 256,
        steps_per_epoch=steps_per_epoch,
        schedule=config.optimizer.schedule,
        decay_factor=config.optimizer.decay_factor,
        decay_epochs=config.optimizer.decay_epochs,
        warmup_epochs=config.optimizer.warmup_epochs,
        total_steps=total_steps,
        end=config.optimizer.poly_end,
        decay_at_epochs=tuple(
            map(float, filter(None, config.optimizer.decay_at_epochs.split(",")))
        ),
    )


def make_step(config: ExperimentConfig, state: TrainState, learning_rate: LearningRate) -> Callable:
    """Returns the function that updates `state`, to run on each replica."""
    return make_train_step(
        config.training.method,
        state,
        learning_rate,
        global_batch_size=config.training.global_batch_size,
        attack=make_attack(config),
        attack_statistics=config.attack.statistics,
        label_smoothing=config.optimizer.label_smoothing,
        weight_decay=config.optimizer.weight_decay,
        decays_biases=config.optimizer.decays_biases,
        accumulation_steps=config.training.accumulation_steps,
        seed=config.training.seed,
    )


def batch_norm_group_size(config: ExperimentConfig, num_replicas: int) -> Optional[int]:
    """Returns the number of replicas that share batch moments; None: the official rule.

    `config.model.batch_norm_batch_size` gives it in images, like the official flag: the
    group is the replicas that process so many images, at least one.
    """
    images = config.model.batch_norm_batch_size
    if images is None:
        return config.model.batch_norm_group_size
    return max(
        1,
        images
        * num_replicas
        * config.training.accumulation_steps
        // config.training.global_batch_size,
    )
