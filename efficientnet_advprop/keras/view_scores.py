"""Losses and metrics of each kind of images that a step trains on, by Keras's own
containers.

Usage:

    scores = ViewScores(compile_arguments, output_names)
    loss = scores.loss(labels, outputs, sample_weight)
    # {"adversarial_loss": …, "adversarial_accuracy": …}
    scores.results("adversarial")
"""

from typing import Any, Optional

import tensorflow as tf

from efficientnet_advprop.keras2 import keras


class ViewScores(keras.Model):
    """The loss and the metrics of a compiled model, with states of their own.

    Args:
        output_names: of the model that is compiled; None where it has none.
        loss, loss_weights, metrics, weighted_metrics: what its `compile` got; metric
            objects are copied.
    """

    def __init__(self, output_names, loss, loss_weights, metrics, weighted_metrics):
        super().__init__()
        self.output_names = output_names
        self.compile(
            loss=loss,
            loss_weights=loss_weights,
            metrics=_copies(metrics),
            weighted_metrics=_copies(weighted_metrics),
        )

    def loss_of(self, labels, outputs, sample_weight=None, regularization_losses=None) -> tf.Tensor:
        """The total loss, a scalar; counted by the metric "loss"."""
        return self.compiled_loss(
            labels, outputs, sample_weight, regularization_losses=regularization_losses
        )

    def update(self, labels, outputs, sample_weight=None) -> None:
        """Counts a batch in the metrics."""
        self.compiled_metrics.update_state(labels, outputs, sample_weight)

    def results(self, view: str) -> dict[str, tf.Tensor]:
        """What the metrics say, under their names behind the view's."""
        return {f"{view}_{name}": value for name, value in results_of(self.metrics).items()}


def results_of(metrics: list[keras.metrics.Metric]) -> dict[str, tf.Tensor]:
    """The metrics' results by name; those of a metric that is a dictionary by its own
    names.
    """
    results = {}
    for metric in metrics:
        result = metric.result()
        results.update(result if isinstance(result, dict) else {metric.name: result})
    return results


def _copies(metrics: Optional[Any]) -> Optional[Any]:
    """The same metrics with states of their own; strings and functions as they are."""
    if isinstance(metrics, dict):
        return {name: _copies(metric) for name, metric in metrics.items()}
    if isinstance(metrics, (list, tuple)):
        return [_copies(metric) for metric in metrics]
    if isinstance(metrics, keras.metrics.Metric):
        return type(metrics).from_config(metrics.get_config())
    return metrics
