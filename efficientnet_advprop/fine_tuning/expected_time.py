"""Guesses how long trainings and their report take, by one batch that is tried here.

training, report = expected_minutes(configs, num_train=300, num_test=60, max_corrupted=60)
"""

import time
from typing import Mapping

import tensorflow as tf

from efficientnet_advprop.config.experiment import ExperimentConfig
from efficientnet_advprop.config.methods import METHODS
from efficientnet_advprop.fine_tuning import photo_report
from efficientnet_advprop.training import build

_MAX_TRIED = 32  # images: the time of one no longer depends on their number
_NUM_CORRUPTED_SETS = 75
_CORRUPTION_SECONDS = 0.02  # of one image, the mean over all kinds
_SET_SECONDS = 0.5  # of each set of corrupted images, however few these are


def expected_minutes(
    configs: Mapping[str, ExperimentConfig], num_train: int, num_test: int, max_corrupted: int
) -> tuple[float, float]:
    """Returns the minutes of all trainings and of the report, right within a factor of two or
    three: tracing and reading are not in it.
    """
    per_image = _seconds_per_image(next(iter(configs.values())))
    training = 0.0
    for method, config in configs.items():
        num_passes = len(METHODS[method].views)
        if METHODS[method].has_attack:
            num_passes += config.attack.num_steps
        training += config.training.num_epochs * num_train * num_passes * per_image
    report = num_test * (photo_report.PGD_STEPS + 1) * per_image
    if max_corrupted:
        of_set = min(num_test, max_corrupted) * (per_image / 3 + _CORRUPTION_SECONDS)
        report += _NUM_CORRUPTED_SETS * (of_set + _SET_SECONDS)
    return training / 60, len(configs) * report / 60


def _seconds_per_image(config: ExperimentConfig) -> float:
    """Measures the forward and backward pass, without a trace."""
    model = build.make_model(config, aux_branches=0)
    num_images = min(config.training.global_batch_size, _MAX_TRIED)
    images = tf.zeros([num_images, config.data.image_size, config.data.image_size, 3])

    def measure() -> float:
        start = time.perf_counter()
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(model(images, training=True))
        for gradient in tape.gradient(loss, model.trainable_variables):
            gradient.numpy()  # waits for it
        return time.perf_counter() - start

    measure()  # makes the variables
    return measure() / num_images
