"""The compiled metrics once more, for another kind of images: the same objects with a
state of their own.
"""

import keras

from efficientnet_advprop.keras3.keras_internals import compiled_metrics, whole_loss


class ViewMetric(keras.metrics.Metric):
    """Loss and metrics of a kind of images ("adversarial", "augmented").

    Metrics are not copied, which not every class allows: their state is swapped.
    """

    def __init__(self, view: str, model: keras.Model):
        super().__init__(name=view)
        self.shared = lambda: compiled_metrics(model)
        self.loss = keras.metrics.Mean(name=f"{view}_loss")
        self.state: list = []
        self.build()

    def build(self) -> None:
        """Creates the state as soon as the metrics have theirs."""
        shared = self.shared()
        if shared is None or not shared.built or self.state:
            return
        self.state = [
            self.add_variable(variable.shape, "zeros", dtype=variable.dtype, name=f"state_{index}")
            for index, variable in enumerate(shared.variables)
        ]
        self.reset_state()

    def update_state(self, loss, labels, outputs, sample_weight=None) -> None:
        count = keras.ops.shape(keras.tree.flatten(outputs)[0])[0]
        self.loss.update_state(whole_loss(loss), sample_weight=count)
        shared = self.shared()
        if shared is None:
            return
        if not shared.built:  # Keras builds it by the first update, whose count is dropped
            shared.update_state(labels, outputs, sample_weight)
            shared.reset_state()
        self.build()
        values = [variable.value for variable in self.state]
        new = shared.stateless_update_state(values, labels, outputs, sample_weight)
        for variable, value in zip(self.state, new):
            variable.assign(value)

    def result(self) -> dict:
        results = {self.loss.name: self.loss.result()}
        if self.state:
            values = [variable.value for variable in self.state]
            for name, value in self.shared().stateless_result(values).items():
                results[f"{self.name}_{name}"] = value
        return results

    def reset_state(self) -> None:
        self.loss.reset_state()
        if self.state:
            for variable, value in zip(self.state, self.shared().stateless_reset_state()):
                variable.assign(value)
