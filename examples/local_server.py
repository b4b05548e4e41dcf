"""Serves an export on this machine, to try clients without TensorFlow Serving.

    python examples/local_server.py served/efficientnet
    python examples/rest_client.py panda.jpg

It answers the predict calls of TensorFlow Serving over REST and gRPC, and needs this
package and tensorflow-serving-api. It handles one request at a time without batching,
so use it only for trials.
"""

import argparse
import base64
import concurrent.futures
import http.server
import json
import os
import threading

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import grpc
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

from efficientnet_advprop.runtime.files import without_pattern


class ServedModel:
    """The highest version in an export folder."""

    def __init__(self, export_dir: str):
        names = os.listdir(export_dir) if os.path.isdir(export_dir) else []
        versions = [int(name) for name in names if name.isdigit()]
        if not versions:
            raise SystemExit(f"error: {export_dir} holds no version such as {export_dir}/1")
        self.version = max(versions)
        path = os.path.join(export_dir, str(self.version))
        self._loaded = tf.saved_model.load(without_pattern(path))
        self._lock = threading.Lock()

    def predict(self, signature_name: str, inputs: dict) -> dict[str, tf.Tensor]:
        """Runs a signature.

        Raises a `ValueError` with a message for the client if the inputs do not fit the
        signature.
        """
        signatures = self._loaded.signatures
        function = signatures.get(signature_name or "serving_default")
        if function is None:
            raise ValueError(
                f"there is no signature {signature_name!r}, only {', '.join(signatures)}"
            )
        (spec,) = function.structured_input_signature[1].values()
        if list(inputs) not in ([spec.name], [None]):
            raise ValueError(
                f"the inputs are {list(inputs)}, but {signature_name!r} wants {spec.name!r}"
            )
        try:
            (value,) = inputs.values()
            with self._lock:
                return function(**{spec.name: tf.convert_to_tensor(value, spec.dtype)})
        except (tf.errors.InvalidArgumentError, TypeError, ValueError) as error:
            raise ValueError(" ".join(str(error).split())[:500]) from error


def predict_rest(model: ServedModel, body: bytes) -> dict:
    """Answers the body of a REST request in row format, {"instances": [...]}."""
    try:
        request = json.loads(body)
    except ValueError as error:
        raise ValueError(f"the body must be JSON: {error}") from error
    if isinstance(request, dict) and "inputs" in request and "instances" not in request:
        raise ValueError(
            'this server takes the row format only, {"instances": [...]}, not the column format '
            '{"inputs": ...}, which TensorFlow Serving takes too'
        )
    if not isinstance(request, dict) or not isinstance(request.get("instances"), list):
        raise ValueError('the body must be {"signature_name": …, "instances": [{"b64": …}, …]}')
    instances = [_decode(instance) for instance in request["instances"]]
    names = {
        tuple(instance) if isinstance(instance, dict) else (None,) for instance in instances
    } or {(None,)}
    if len(names) > 1 or len(next(iter(names))) != 1:
        raise ValueError("the instances must all have one and the same input, or no name at all")
    ((name,),) = names
    values = [instance[name] if isinstance(instance, dict) else instance for instance in instances]
    outputs = model.predict(request.get("signature_name", ""), {name: values})
    columns = {key: _encode(value.numpy().tolist()) for key, value in outputs.items()}
    return {
        "predictions": [
            {key: column[row] for key, column in columns.items()} for row in range(len(values))
        ]
    }


def _decode(value):
    """Returns a JSON value with its {"b64": …} as bytes."""
    if not isinstance(value, dict):
        return value
    if set(value) != {"b64"}:
        return {key: _decode(part) for key, part in value.items()}
    try:
        return base64.b64decode(value["b64"], validate=True)
    except (ValueError, TypeError) as error:
        reason = str(error)
        if isinstance(value["b64"], str) and set("-_") & set(value["b64"]):
            reason = "it has - or _, as the URL-safe alphabet; use the standard one, with + and /"
        raise ValueError(f'the text after "b64" is not base64: {reason}') from error


def _encode(value):
    if isinstance(value, list):
        return [_encode(part) for part in value]
    return value.decode() if isinstance(value, bytes) else value


def make_rest_server(model: ServedModel, port: int) -> http.server.ThreadingHTTPServer:
    """Makes an HTTP server on this machine's loopback address; port 0 chooses a free port."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            try:
                status, answer = (
                    (200, predict_rest(model, body))
                    if self.path.endswith(":predict")
                    else (404, {"error": "not found"})
                )
            except ValueError as error:
                status = 400
                answer = {"error": str(error)}
            data = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    return http.server.ThreadingHTTPServer(("localhost", port), Handler)


class PredictionService(prediction_service_pb2_grpc.PredictionServiceServicer):
    """Answers predict calls over gRPC."""

    def __init__(self, model: ServedModel):
        self._model = model

    def Predict(self, request, context):
        try:
            inputs = {name: tf.make_ndarray(tensor) for name, tensor in request.inputs.items()}
            outputs = self._model.predict(request.model_spec.signature_name, inputs)
        except ValueError as error:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        response = predict_pb2.PredictResponse(model_spec=request.model_spec)
        for name, value in outputs.items():
            response.outputs[name].CopyFrom(tf.make_tensor_proto(value))
        return response


def make_grpc_server(model: ServedModel, port: int) -> tuple[grpc.Server, int]:
    """Makes a gRPC server on the loopback address, and its port; port 0 chooses a free port."""
    server = grpc.server(
        concurrent.futures.ThreadPoolExecutor(4),
        options=[("grpc.max_receive_message_length", 64 * 2**20)],
    )
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(
        PredictionService(model), server
    )
    return server, server.add_insecure_port(f"localhost:{port}")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("export_dir", help="the folder with the versions")
    parser.add_argument("--rest_port", type=int, default=8501)
    parser.add_argument("--grpc_port", type=int, default=8500)
    arguments = parser.parse_args()
    model = ServedModel(arguments.export_dir)
    grpc_server, grpc_port = make_grpc_server(model, arguments.grpc_port)
    grpc_server.start()
    rest_server = make_rest_server(model, arguments.rest_port)
    print(
        f"version {model.version}: REST on port {rest_server.server_port}, "
        f"gRPC on port {grpc_port}; Ctrl-C stops",
        flush=True,
    )
    try:
        rest_server.serve_forever()
    except KeyboardInterrupt:
        grpc_server.stop(None)


if __name__ == "__main__":
    main()
