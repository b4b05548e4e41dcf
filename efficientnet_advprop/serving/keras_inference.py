"""A Keras model as it is served: main branch, float32, its variables beside the graph.

    network = InferenceKerasNetwork(model, image_size=32)
    network(images)                             # inside a tf.function: {"logits": …}

`serving.network` folds batch norms into constants; of the layers of other people's
models nothing is known, so they stay as they are.
"""

from typing import Optional, Sequence

import tensorflow as tf

from efficientnet_advprop.models import KerasNetwork


class InferenceKerasNetwork(tf.Module):
    """A Keras model's main branch in inference mode, with the calls of an
    `InferenceNetwork`.

    Args:
        model: the network to serve.
        image_size: pixels of the sides of its input.

    Attributes:
        num_weights: how many numbers its variables hold, auxiliary ones left out.
    """

    def __init__(self, model: KerasNetwork, image_size: int):
        super().__init__(name=model.name)
        self.num_classes, self.image_size = model.num_classes, image_size
        self.probabilities = model.probabilities
        self._run = lambda images: model(images, training=False)
        spec = tf.TensorSpec([1, image_size, image_size, 3], tf.float32)
        function = tf.function(self._run, autograph=False).get_concrete_function(spec)
        # The variables alone: with the model itself TensorFlow would save every layer's
        # functions, and its auxiliary branches.
        self._variables = list(function.variables)
        self.num_weights = sum(variable.shape.num_elements() for variable in self._variables)

    def __call__(self, images: tf.Tensor, more: Sequence[str] = ()) -> dict[str, tf.Tensor]:
        """Runs the network; `more` is empty, since a Keras model's layers are no end
        points of ours.
        """
        return {"logits": self._run(images)}

    def answers(self, images: tf.Tensor, end_point: Optional[str] = None) -> dict[str, tf.Tensor]:
        """As `InferenceNetwork.answers`, without end points."""
        logits = self._run(images)
        return {"logits": logits, "probabilities": self.probabilities(logits)}
