"""The network as it is served: main branch, inference mode, float32.

network = InferenceNetwork(model, image_size=224)
# inside a tf.function: {"logits": …, "pooled_features": …, "reduction_1": …, …}
endpoints = network(images)
"""

import re
from typing import Optional, Sequence

import tensorflow as tf

from efficientnet_advprop.models.network import BlockNetwork, Network
from efficientnet_advprop.models.normalization import batch_norms
from efficientnet_advprop.runtime.pass_mode import MAIN_PASS, enter


class InferenceNetwork(tf.Module):
    """A model's main branch in inference mode, as exported graphs hold it.

    Calls of this project's networks create constants, with the batch norms inside the
    convolutions. A Keras model keeps its layers, of which nothing is known, and its
    variables. `image_size` is fixed, so that graph compilers know every shape but the
    batch's. `num_weights` counts the numbers it holds, auxiliary branches left out.
    """

    def __init__(self, model: Network, image_size: int):
        super().__init__()
        self.num_classes, self.image_size = model.num_classes, image_size
        self.probabilities = model.probabilities
        if isinstance(model, BlockNetwork):
            # Why constants: a constant kernel lets oneDNN keep its reordered copy from
            # call to call, and Grappler join convolution, bias and activation into one
            # kernel; behind a variable, both happen anew at every call or not at all.
            self._run = lambda images: _constant_features(model, images)
            norms = batch_norms(model)
            auxiliary = {id(v) for norm in norms for child in norm.aux for v in child.variables}
            held = [variable for variable in model.variables if id(variable) not in auxiliary]
            folded = 3 * sum(norm.moving_mean.shape[0] for norm in norms)  # 4 become an offset
        else:
            self._run = lambda images: {"head": model(images, training=False)}
            # The variables alone, as an attribute that is saved: with the model itself
            # TensorFlow would save every layer's functions, and its auxiliary branches.
            held, folded = list(self._traced().variables), 0
            self._variables = held
        self.num_weights = sum(variable.shape.num_elements() for variable in held) - folded

    def _traced(self):
        spec = tf.TensorSpec([1, self.image_size, self.image_size, 3], tf.float32)
        return tf.function(self.end_points, autograph=False).get_concrete_function(spec)

    @property
    def end_point_names(self) -> list[str]:
        """The names of `end_points`."""
        return list(self._traced().structured_outputs)

    def end_points(self, images: tf.Tensor) -> dict[str, tf.Tensor]:
        """Returns all that `Network.features` has; of a Keras model "head" alone.

        Args:
            images: float32 [batch, image_size, image_size, 3], pixels in [0, 255], RGB.
        """
        return self._run(images)

    def __call__(self, images: tf.Tensor, more: Sequence[str] = ()) -> dict[str, tf.Tensor]:
        """Returns "logits" [batch, num_classes], and of this project's networks
        "pooled_features" [batch, channels], the feature maps "reduction_1" …
        "reduction_5" [batch, h, w, channels] at 1/2 … 1/32 of the resolution, and the
        end points `more`; all float32.
        """
        found = self.end_points(images)
        kept = [name for name in found if re.fullmatch(r"reduction_\d|pooled_features", name)]
        return {**{name: found[name] for name in [*kept, *more]}, "logits": found["head"]}

    def answers(self, images: tf.Tensor, end_point: Optional[str] = None) -> dict[str, tf.Tensor]:
        """Returns a file's answers: "logits" and "probabilities", or an end point's "features"."""
        found = self.end_points(images)
        if end_point is not None:
            return {"features": found[end_point]}
        return {"logits": found["head"], "probabilities": self.probabilities(found["head"])}


def _constant_features(model: BlockNetwork, images: tf.Tensor) -> dict[str, tf.Tensor]:
    with enter(MAIN_PASS._replace(constant_weights=True)):
        return model.features(images)
