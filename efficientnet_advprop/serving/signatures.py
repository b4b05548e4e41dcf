"""What a served network answers: the signatures of the SavedModel.

* `serving_default`: `image_bytes` string [batch] → `classes`, `probabilities`, `labels`
  [batch, k] and `error` [batch];
* `predict_images`: `images` float32 [batch, size, size, 3] → `logits` and
  `probabilities` [batch, num_classes];
* `predict_images_uint8`: `images` uint8 [batch, size, size, 3] → the same;
* `features`: `images` float32 [batch, size, size, 3] → `pooled_features` [batch, c],
  `reduction_1` … `reduction_5` and the end point that the export was asked for.

Of a Keras model there are no `features`. Pixels are RGB in 0…255; the normalisation is
inside. In `serving_default`, which has the whole pre-processing inside, `error` [batch]
is "" for a good image; for a bad one it says why, and that row's classes are −1, its
probabilities 0, its labels "". An empty batch has an empty answer.
"""

import functools
from typing import Optional, Sequence, Union

import tensorflow as tf

from efficientnet_advprop.serving import encoded_images
from efficientnet_advprop.serving.inference_network import InferenceNetwork

NO_CLASS = -1


class ServedNetwork(tf.Module):
    """A network with its signatures, all of which call one function that holds the
    constants once.

    Args:
        network: whose answers to serve.
        crop, resize_method: see `preprocessing.preprocess_for_eval`.
        class_names: for `labels`; None leaves that output out.
        num_top: k, how many classes `serving_default` names, at most.
        end_point: one more output of `features`, by its name in `Network.features`.
    """

    def __init__(
        self,
        network: InferenceNetwork,
        crop: Union[str, float],
        class_names: Optional[Sequence[str]] = None,
        num_top: int = 5,
        resize_method: str = "bicubic",
        end_point: Optional[str] = None,
    ):
        super().__init__()
        self.network = network  # with its variables, which are saved beside the graph
        self._crop, self._class_names = crop, class_names
        self._probabilities = network.probabilities
        self._resize_method = resize_method
        self._num_top, self._image_size = min(num_top, network.num_classes), network.image_size
        shape = [None, network.image_size, network.image_size, 3]
        self._float_images = tf.TensorSpec(shape, tf.float32, "images")
        self._uint8_images = tf.TensorSpec(shape, tf.uint8, "images")
        # A concrete function: a `tf.function` would be traced, and its constants
        # stored, once more when saved.
        self._network = tf.function(
            lambda images: network(images, () if end_point is None else (end_point,)),
            autograph=False,
        ).get_concrete_function(self._float_images)

    def signatures(self) -> dict[str, tf.types.experimental.ConcreteFunction]:
        """Returns the concrete functions, by name; see the module's table."""
        files = tf.TensorSpec([None], tf.string, "image_bytes")
        traced = functools.partial(tf.function, autograph=False)
        signatures = {
            "serving_default": traced(self._classify).get_concrete_function(files),
            "predict_images": traced(self._predict).get_concrete_function(self._float_images),
            "predict_images_uint8": traced(self._predict).get_concrete_function(self._uint8_images),
        }
        if len(self._network.structured_outputs) > 1:
            features = traced(self._features)
            signatures["features"] = features.get_concrete_function(self._float_images)
        return signatures

    def _run(self, images):
        """Returns the network's endpoints, also of an empty batch, which TensorFlow's
        fused convolutions refuse.
        """
        # A signature's shape is only a promise; this refuses images of another size, by
        # their shape.
        images = tf.ensure_shape(
            images, self._float_images.shape, name="images_of_the_exported_size"
        )
        batch = tf.shape(images)[0]
        images = tf.cond(batch > 0, lambda: images, lambda: tf.zeros([1, *images.shape[1:]]))
        return {name: value[:batch] for name, value in self._network(images).items()}

    def _predict(self, images):
        logits = self._run(tf.cast(images, tf.float32))["logits"]
        return {"logits": logits, "probabilities": self._probabilities(logits)}

    def _features(self, images):
        return {name: value for name, value in self._run(images).items() if name != "logits"}

    def _classify(self, image_bytes):
        images, errors = encoded_images.decode_batch(
            image_bytes, self._image_size, self._crop, self._resize_method
        )
        is_good = tf.equal(errors, "")[:, None]
        top = tf.math.top_k(self._predict(images)["probabilities"], self._num_top)
        outputs = {
            "classes": tf.where(is_good, top.indices, NO_CLASS),
            "probabilities": tf.where(is_good, top.values, 0.0),
            "error": errors,
        }
        if self._class_names is not None:
            outputs["labels"] = tf.where(
                is_good, tf.gather(tf.constant(list(self._class_names)), top.indices), ""
            )
        return outputs
