"""Classifies image files with TensorFlow Serving over gRPC.

    python examples/grpc_client.py --server=localhost:8500 --model=efficientnet panda.jpg cat.png

It needs tensorflow and tensorflow-serving-api.
"""

import argparse
import os
import pathlib
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import grpc
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc


def make_request(files: list[bytes], model: str) -> predict_pb2.PredictRequest:
    """Returns a request to `serving_default`: the unchanged contents of image files of any size."""
    request = predict_pb2.PredictRequest()
    request.model_spec.name = model
    request.model_spec.signature_name = "serving_default"
    request.inputs["image_bytes"].CopyFrom(tf.make_tensor_proto(files, tf.string, [len(files)]))
    return request


def describe(response: predict_pb2.PredictResponse) -> list[str]:
    """Returns the answer in words, one text per image."""
    outputs = {name: tf.make_ndarray(tensor) for name, tensor in response.outputs.items()}
    texts = []
    for index, error in enumerate(outputs["error"]):
        if error:
            texts.append(f"not classified: {error.decode()}")
            continue
        classes = outputs["classes"][index]
        names = (
            [name.decode() for name in outputs["labels"][index]]
            if "labels" in outputs
            else [f"class {c}" for c in classes]
        )
        probabilities = outputs["probabilities"][index]
        texts.append(
            ", ".join(
                f"{name} {100 * probability:.1f} %"
                for name, probability in zip(names, probabilities)
            )
        )
    return texts


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--server", default="localhost:8500")
    parser.add_argument("--model", default="efficientnet")
    parser.add_argument("images", nargs="+")
    arguments = parser.parse_args()
    try:
        files = [pathlib.Path(path).read_bytes() for path in arguments.images]
    except OSError as error:
        sys.exit(f"error: {error}")
    with grpc.insecure_channel(arguments.server) as channel:
        try:
            response = prediction_service_pb2_grpc.PredictionServiceStub(channel).Predict(
                make_request(files, arguments.model), timeout=60
            )
        except grpc.RpcError as error:
            sys.exit(f"error: {arguments.server} answers {error.code().name}: {error.details()}")
    for path, text in zip(arguments.images, describe(response)):
        print(f"{path}: {text}")


if __name__ == "__main__":
    main()
