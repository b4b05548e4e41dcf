"""The SavedModel: its signatures, metadata as an asset, and requests that warm a server up
before it says it is ready.

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
import os
import tempfile
from typing import Any, Optional, Sequence, Union

import tensorflow as tf
from tensorflow_serving.apis import model_pb2, predict_pb2, prediction_log_pb2

from efficientnet_advprop.runtime.files import to_json
from efficientnet_advprop.serving import encoded_images
from efficientnet_advprop.serving.inference_network import InferenceNetwork

METADATA = "metadata.json"
# Where TensorFlow Serving looks for them.
WARMUP_FILE = os.path.join("assets.extra", "tf_serving_warmup_requests")
NO_CLASS = -1


class ServedNetwork(tf.Module):
    """A network with its signatures, all of which call one function that holds the
    constants once.

    `crop` and `resize_method` are those of `preprocessing.preprocess_for_eval`; without
    `class_names` there is no output `labels`; `serving_default` names at most `num_top`
    classes; `end_point`, a name of `Network.features`, is one more output of `features`.
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
        """Returns the network's end points, also of an empty batch, which oneDNN refuses."""
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


def write_saved_model(
    served: ServedNetwork, directory: str, metadata: dict[str, Any], image_file: bytes
) -> None:
    """Writes the SavedModel, `assets/metadata.json` with what can be told before the
    check, and the warm-up requests, one of them with `image_file`.
    """
    signatures = served.signatures()
    with tempfile.TemporaryDirectory() as folder:
        write_metadata(os.path.join(folder, METADATA), metadata)
        served.metadata = tf.saved_model.Asset(os.path.join(folder, METADATA))
        tf.saved_model.save(served, directory, signatures)
    os.makedirs(os.path.join(directory, os.path.dirname(WARMUP_FILE)), exist_ok=True)
    with tf.io.TFRecordWriter(os.path.join(directory, WARMUP_FILE)) as writer:
        for request in warmup_requests(signatures, image_file):
            log = prediction_log_pb2.PredictionLog(
                predict_log=prediction_log_pb2.PredictLog(request=request)
            )
            writer.write(log.SerializeToString())


def write_metadata(path: str, metadata: dict[str, Any]) -> None:
    """Writes metadata as JSON, for people and programs."""
    with open(path, "w", encoding="utf-8") as file:
        file.write(to_json(metadata, indent=2) + "\n")


def warmup_requests(signatures, image_file: bytes) -> list[predict_pb2.PredictRequest]:
    """Returns one request per signature: a photograph, or gray pixels."""
    requests = []
    for name, function in signatures.items():
        (spec,) = (
            function.structured_input_signature[0]
            or function.structured_input_signature[1].values()
        )
        if spec.dtype == tf.string:
            tensor = tf.make_tensor_proto([image_file])
        else:
            # One number for all: a few bytes.
            tensor = tf.make_tensor_proto(128, spec.dtype, [1, *spec.shape[1:]])
        request = predict_pb2.PredictRequest(model_spec=model_pb2.ModelSpec(signature_name=name))
        request.inputs[spec.name].CopyFrom(tensor)
        requests.append(request)
    return requests
