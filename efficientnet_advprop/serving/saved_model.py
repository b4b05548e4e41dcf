"""The SavedModel: signatures, metadata as an asset, and requests that warm a server up
before it says it is ready.
"""

import os
import tempfile
from typing import Any

import tensorflow as tf
from tensorflow_serving.apis import model_pb2, predict_pb2, prediction_log_pb2

from efficientnet_advprop.runtime.files import to_json
from efficientnet_advprop.serving.signatures import ServedNetwork

METADATA = "metadata.json"
# Where TensorFlow Serving looks for them.
WARMUP_FILE = os.path.join("assets.extra", "tf_serving_warmup_requests")


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
