"""The examples against a server with TensorFlow Serving's protocol, over real sockets."""

import importlib.util
import io
import json
import os
import pathlib
import subprocess
import sys
import threading
import urllib.error
import urllib.request

import grpc
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from tensorflow_serving.apis import prediction_service_pb2_grpc

from efficientnet_advprop.serving import converters, encoded_images
from efficientnet_advprop.serving.inference_network import InferenceNetwork

EXAMPLES = pathlib.Path(__file__).parents[3] / "examples"


def load(name):
    """Returns an example as a module."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


grpc_client, local_server, pixels, rest_client = map(
    load, ("grpc_client", "local_server", "pixels", "rest_client")
)


@pytest.fixture(scope="module")
def model(exported):
    return local_server.ServedModel(os.path.dirname(exported))


@pytest.fixture(scope="module")
def rest_url(model):
    server = local_server.make_rest_server(model, port=0)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://localhost:{server.server_port}/v1/models/tiny:predict"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def grpc_stub(model):
    server, port = local_server.make_grpc_server(model, port=0)
    server.start()
    with grpc.insecure_channel(f"localhost:{port}") as channel:
        yield prediction_service_pb2_grpc.PredictionServiceStub(channel)
    server.stop(None)


@pytest.fixture(scope="module")
def answer(loaded, photographs):
    """What the SavedModel itself says of the photographs."""
    return loaded.signatures["serving_default"](image_bytes=tf.constant(photographs))


def post(url, body):
    with urllib.request.urlopen(urllib.request.Request(url, body), timeout=60) as response:
        return json.load(response)["predictions"]


def test_rest(rest_url, answer, photographs):
    predictions = post(rest_url, rest_client.make_request([*photographs, b"no image"]))
    assert len(predictions) == 3 and set(predictions[0]) == {
        "classes",
        "probabilities",
        "labels",
        "error",
    }
    for row in range(2):
        assert predictions[row]["classes"] == answer["classes"][row].numpy().tolist()
        np.testing.assert_allclose(
            predictions[row]["probabilities"], answer["probabilities"][row], atol=1e-6
        )
        assert rest_client.describe(predictions[row]).startswith(
            f"name {predictions[row]['classes'][0]} "
        )
    assert predictions[2]["error"] in rest_client.describe(predictions[2])
    assert predictions[2]["classes"] == [-1, -1, -1]


def test_rest_pixels_of_a_named_signature(rest_url, loaded):
    images = np.random.RandomState(0).randint(0, 256, [2, 64, 64, 3])
    body = {
        "signature_name": "predict_images",
        "instances": [{"images": image.tolist()} for image in images],
    }
    predictions = post(rest_url, json.dumps(body).encode())
    expected = loaded.signatures["predict_images"](images=tf.constant(images, tf.float32))["logits"]
    np.testing.assert_allclose(
        [prediction["logits"] for prediction in predictions], expected, atol=1e-4
    )


@pytest.mark.parametrize(
    "body, message",
    [
        (b"{", "the body must be"),
        (b'{"instances": [{"b64": "%"}]}', 'the text after "b64" is not base64'),
        (b'{"instances": [{"b64": "_-8="}]}', "as the URL-safe alphabet; use the standard one"),
        (b'{"instances": [{"b64": 7}]}', 'the text after "b64" is not base64'),
        (b'{"inputs": [{"b64": "AAAA"}]}', "takes the row format only"),
        (b'{"instances": {"b64": "AAAA"}}', "the body must be"),
        (b'["AAAA"]', "the body must be"),
        (b'{"instances": ["a", {"images": "b"}]}', "must all have one and the same input"),
        (b'{"signature_name": "nothing", "instances": []}', "there is no signature"),
        (b'{"signature_name": "predict_images", "instances": [[[[1, 2, 3]]]]}', "[1,1,1,3]"),
    ],
)
def test_bad_rest_requests_are_refused_with_the_reason(rest_url, body, message):
    with pytest.raises(urllib.error.HTTPError) as raised:
        post(rest_url, body)
    assert raised.value.code == 400
    assert message in json.loads(raised.value.read())["error"]


def test_grpc(grpc_stub, answer, photographs):
    response = grpc_stub.Predict(
        grpc_client.make_request([*photographs, b"no image"], "tiny"), timeout=60
    )
    np.testing.assert_array_equal(
        tf.make_ndarray(response.outputs["classes"])[:2], answer["classes"]
    )
    np.testing.assert_allclose(
        tf.make_ndarray(response.outputs["probabilities"])[:2], answer["probabilities"], atol=1e-6
    )
    texts = grpc_client.describe(response)
    assert texts[0].startswith(f"name {int(answer['classes'][0, 0])} ")
    assert "unknown format" in texts[2]


def test_a_grpc_request_for_nothing_is_refused(grpc_stub, photographs):
    request = grpc_client.make_request(photographs, "tiny")
    request.model_spec.signature_name = "nothing"
    with pytest.raises(grpc.RpcError) as raised:
        grpc_stub.Predict(request, timeout=60)
    assert raised.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert "serving_default" in raised.value.details()


def test_an_empty_batch(rest_url, grpc_stub):
    assert post(rest_url, rest_client.make_request([])) == []
    assert (
        grpc_client.describe(grpc_stub.Predict(grpc_client.make_request([], "tiny"), timeout=60))
        == []
    )


def run_example(name, *arguments, cwd):
    """Runs an example as it is documented, without any path to this package."""
    environment = {key: os.environ[key] for key in os.environ if key != "PYTHONPATH"}
    finished = subprocess.run(
        [sys.executable, EXAMPLES / f"{name}.py", *arguments],
        cwd=cwd, env=environment, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    return finished.returncode, finished.stdout, finished.stderr


def test_the_rest_client_as_a_program(rest_url, answer, photographs, tmp_path):
    (tmp_path / "china.jpg").write_bytes(photographs[0])
    code, output, _ = run_example("rest_client", "china.jpg", f"--url={rest_url}", cwd=tmp_path)
    best = int(answer["classes"][0, 0])
    assert code == 0 and output.startswith(f"china.jpg: name {best} ")


def test_the_tflite_client_as_a_program(network, loaded, photographs, tmp_path):
    (tmp_path / "model.tflite").write_bytes(
        converters.to_tflite(InferenceNetwork(network.model, 64))
    )
    settings = dict(image_size=64, crop="released", crop_fraction=64 / 96, resize="bicubic")
    (tmp_path / "metadata.json").write_text(json.dumps({"input": settings}))
    (tmp_path / "flower.jpg").write_bytes(photographs[1])
    code, output, error = run_example("tflite_client", ".", "flower.jpg", cwd=tmp_path)
    served = loaded.signatures["serving_default"](image_bytes=tf.constant(photographs[1:]))
    best, probability = int(served["classes"][0, 0]), float(served["probabilities"][0, 0])
    assert code == 0, error
    assert output.startswith(f"flower.jpg: class {best} {100 * probability:.1f} %")
    with pytest.raises(SystemExit, match="crop is 'five'"):
        pixels.load_as_told(str(tmp_path / "flower.jpg"), {**settings, "crop": "five"})


@pytest.mark.parametrize("method", ["bicubic", "bilinear"])
def test_other_clients_see_the_pixels_that_the_server_sees(tmp_path, photographs, method):
    """To the level, in JPEGs of every quality and subsampling too."""
    files = list(photographs)
    for index, shape in enumerate([(300, 201, 3), (50, 80, 3), (64, 64, 3), (1, 5, 3)]):
        pixels_of = np.random.RandomState(index).randint(0, 256, shape).astype(np.uint8)
        image, forms = Image.fromarray(pixels_of), [("PNG", {}), ("GIF", {}), ("BMP", {})]
        forms += [("JPEG", dict(quality=q, subsampling=s)) for q in (75, 100) for s in (0, 2)]
        for form, options in forms:
            buffer = io.BytesIO()
            image.save(buffer, form, **options)
            files.append(buffer.getvalue())
    for crop, fraction in (("released", 64 / 96), ("none", None)):
        decode = tf.function(encoded_images.decode_batch, autograph=False)
        served, errors = decode(tf.constant(files), 64, crop, method)
        assert not any(errors.numpy())
        for file, wanted in zip(files, served):
            (tmp_path / "image").write_bytes(file)
            found = pixels.load_pixels(str(tmp_path / "image"), 64, fraction, method)
            np.testing.assert_allclose(found, wanted, rtol=0, atol=0.05)
