"""Losses and metrics of each kind of images that a step trains on.

    scores = ViewScores("adversarial", model)
    loss = scores.compiled_loss(labels, outputs, sample_weight)  # counts it, too
    scores.update(labels, outputs, sample_weight)
    scores.results()                            # {"adversarial_loss": …, "adversarial_accuracy": …}

Metrics are not copied, which not every class allows: they are the compiled ones, whose
state is swapped for another one meanwhile.
"""

import contextlib

import tensorflow as tf

from efficientnet_advprop.keras2 import keras


class ViewScores(keras.Model):
    """The loss that a model's `compile` got, with trackers of its own, and its metrics."""

    def __init__(self, view: str, model: keras.Model, loss, loss_weights):
        super().__init__(name=view)
        self.output_names = model.output_names
        self.compile(loss=loss, loss_weights=loss_weights)
        # In functions, so that no file has them: the state is made in the first step.
        state = keras.metrics.Mean(name="state")
        self.shared = lambda: model
        self.state = lambda: state

    def update(self, labels, outputs, sample_weight=None) -> None:
        """Counts a batch in the metrics."""
        metrics = self.shared().compiled_metrics
        if not metrics.built:
            metrics.build(outputs, labels)
        with self._swapped():
            metrics.update_state(labels, outputs, sample_weight)

    def results(self) -> dict[str, tf.Tensor]:
        """What the metrics say, under their names behind the view's."""
        with self._swapped():
            found = results_of([*self.metrics, *self.shared().compiled_metrics.metrics])
        return {f"{self.name}_{name}": value for name, value in found.items()}

    def reset_metrics(self) -> None:
        """Starts counting anew."""
        super().reset_metrics()
        with self._swapped():
            for metric in self.shared().compiled_metrics.metrics:
                metric.reset_state()

    @contextlib.contextmanager
    def _swapped(self):
        """Gives the shared metrics this view's state while the context lasts."""
        shared = [
            variable
            for metric in self.shared().compiled_metrics.metrics
            for variable in metric.variables
        ]
        own = self.state().weights[2:]  # after those of the mean
        for variable in shared[len(own) :]:
            name = f"state_{len(own)}"
            own.append(
                self.state().add_weight(
                    name, shape=variable.shape, dtype=variable.dtype, initializer="zeros"
                )
            )
        _exchange(shared, own)
        try:
            yield
        finally:
            _exchange(shared, own)


def _exchange(variables: list[tf.Variable], others: list[tf.Variable]) -> None:
    for variable, other in zip(variables, others):
        value, other_value = tf.identity(variable), tf.identity(other)
        variable.assign(other_value)
        other.assign(value)


def results_of(metrics: list[keras.metrics.Metric]) -> dict[str, tf.Tensor]:
    """The metrics' results by name; those of a metric that is a dictionary by its own
    names.
    """
    results = {}
    for metric in metrics:
        result = metric.result()
        results.update(result if isinstance(result, dict) else {metric.name: result})
    return results
