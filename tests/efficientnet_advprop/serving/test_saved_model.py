import io
import json
import os

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow_serving.apis import prediction_log_pb2

from efficientnet_advprop.data import preprocessing
from efficientnet_advprop.serving import encoded_images
from efficientnet_advprop.serving.saved_model import WARMUP_FILE
from tests.efficientnet_advprop.serving.conftest import CLASS_NAMES, softmax


def encode(image: Image.Image, image_format: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def noise(*shape, dtype=np.uint8):
    return np.random.RandomState(0).randint(0, np.iinfo(dtype).max, shape).astype(dtype)


def classify(loaded, files):
    answer = loaded.signatures["serving_default"](
        image_bytes=tf.constant(files, tf.string, [len(files)])
    )
    return {name: value.numpy() for name, value in answer.items()}


def test_pixels_get_the_official_logits(loaded, expected):
    images, logits = expected
    answer = loaded.signatures["predict_images"](images=tf.constant(images))
    np.testing.assert_allclose(answer["logits"], logits, atol=3e-5)
    np.testing.assert_allclose(answer["probabilities"], softmax(logits), atol=1e-5)


def test_uint8_pixels_are_the_same_as_float_ones(loaded):
    images = noise(3, 64, 64, 3)
    of_uint8 = loaded.signatures["predict_images_uint8"](images=tf.constant(images))["logits"]
    of_float = loaded.signatures["predict_images"](images=tf.constant(images, tf.float32))["logits"]
    np.testing.assert_array_equal(of_uint8, of_float)


def test_files_of_mixed_sizes_get_the_models_top_classes(loaded, network, photographs):
    files = [*photographs, encode(Image.fromarray(noise(40, 70, 3)), "PNG")]
    answer = classify(loaded, files)
    for row, file in enumerate(files):
        image = preprocessing.preprocess_for_eval(
            tf.constant(file), 64, "released", exact_jpeg=True
        )
        probabilities = softmax(network.model(image[None]).numpy())[0]
        best = np.argsort(-probabilities)[:3]
        np.testing.assert_array_equal(answer["classes"][row], best)
        np.testing.assert_allclose(answer["probabilities"][row], probabilities[best], atol=1e-5)
        assert [name.decode() for name in answer["labels"][row]] == [
            CLASS_NAMES[index] for index in best
        ]
    assert list(answer["error"]) == [b""] * 3


def test_bad_files_are_marked_and_their_batch_mates_untouched(loaded, photographs):
    alone = classify(loaded, photographs)
    huge = tf.io.encode_png(tf.zeros([10000, 10000, 3], tf.uint8)).numpy()
    webp = b"RIFF\x24\x00\x00\x00WEBPVP8 "
    bad = {
        b"": encoded_images.EMPTY,
        b"no image": encoded_images.UNKNOWN_FORMAT,
        webp: encoded_images.UNKNOWN_FORMAT,
        huge: encoded_images.TOO_LARGE,
        photographs[0][: len(photographs[0]) // 2]: encoded_images.DAMAGED,
        photographs[0][:3]: encoded_images.DAMAGED,
        encode(Image.fromarray(noise(9, 9, 3)), "PNG")[:60]: encoded_images.DAMAGED,
        b"GIF89a": encoded_images.DAMAGED,
        b"BM": encoded_images.DAMAGED,
        # TensorFlow would read the palette's indices as levels of gray.
        encode(Image.fromarray(noise(9, 9, 3)).convert("P"), "BMP"): encoded_images.UNSUPPORTED_BMP,
        encode(Image.fromarray(noise(9, 9, 3)).convert("1"), "BMP"): encoded_images.UNSUPPORTED_BMP,
    }
    answer = classify(loaded, [photographs[0], *bad, photographs[1]])
    assert [error.decode() for error in answer["error"]] == ["", *bad.values(), ""]
    np.testing.assert_array_equal(answer["classes"][1:-1], -1)
    np.testing.assert_array_equal(answer["probabilities"][1:-1], 0.0)
    assert set(answer["labels"][1:-1].ravel()) == {b""}
    np.testing.assert_array_equal(answer["classes"][[0, -1]], alone["classes"])
    np.testing.assert_allclose(answer["probabilities"][[0, -1]], alone["probabilities"], atol=1e-6)


def test_headers_that_promise_too_much_are_refused_before_decoding(loaded):
    """A few bytes can claim any size; nothing may be allocated for them."""
    size = 2**31 - 1
    claims = {
        "png": b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + size.to_bytes(4, "big") * 2,
        "gif": b"GIF89a" + b"\xff\xff\xff\xff" + b"\0" * 10,
        "bmp": b"BM" + b"\0" * 16 + size.to_bytes(4, "little") * 2,
        "bmp from the top": b"BM"
        + b"\0" * 16
        + (70000).to_bytes(4, "little")
        + (2**32 - 1000).to_bytes(4, "little"),
    }
    assert [error.decode() for error in classify(loaded, list(claims.values()))["error"]] == [
        encoded_images.TOO_LARGE
    ] * 4


def test_unusual_images_are_classified(loaded):
    color = noise(50, 60, 3)
    frames = [Image.fromarray(noise(30, 40, 3) // (index + 1)) for index in range(3)]
    files = {
        "1 x 1": encode(Image.fromarray(color[:1, :1]), "PNG"),
        "1 x 60": encode(Image.fromarray(color[:1]), "JPEG"),
        "cmyk": encode(Image.fromarray(color).convert("CMYK"), "JPEG"),
        "gray": encode(Image.fromarray(color[..., 0]), "JPEG"),
        "progressive": encode(Image.fromarray(color), "JPEG", progressive=True),
        "palette": encode(Image.fromarray(color).convert("P"), "PNG"),
        "16 bits": tf.io.encode_png(tf.constant(noise(50, 60, 3, dtype=np.uint16))).numpy(),
        "alpha": encode(Image.fromarray(noise(50, 60, 4)), "PNG"),
        "animated gif": encode(frames[0], "GIF", save_all=True, append_images=frames[1:]),
        "bmp": encode(Image.fromarray(color), "BMP"),
    }
    answer = classify(loaded, list(files.values()))
    assert dict(zip(files, answer["error"])) == dict.fromkeys(files, b"")
    assert (answer["classes"] >= 0).all()
    still = classify(loaded, [encode(frames[0], "GIF")])  # an animation is its first frame
    row = list(files).index("animated gif")
    np.testing.assert_allclose(answer["probabilities"][row], still["probabilities"][0], atol=1e-6)


def test_an_empty_batch_has_an_empty_answer(loaded):
    answer = classify(loaded, [])
    assert {name: value.shape for name, value in answer.items()} == {
        "classes": (0, 3), "probabilities": (0, 3), "labels": (0, 3), "error": (0,),
    }  # fmt: skip
    nothing = tf.zeros([0, 64, 64, 3])
    assert loaded.signatures["predict_images"](images=nothing)["logits"].shape == (0, 10)
    assert loaded.signatures["features"](images=nothing)["reduction_5"].shape == (0, 2, 2, 80)


def test_pixels_of_another_size_are_refused_by_name(loaded):
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"\[1,65,64,3\].*\[\?,64,64,3\]"):
        loaded.signatures["predict_images"](images=tf.zeros([1, 65, 64, 3]))


def test_the_graph_holds_the_weights_once_and_as_constants(exported):
    with open(os.path.join(exported, "saved_model.pb"), "rb") as file:
        graph = saved_model_pb2.SavedModel.FromString(file.read()).meta_graphs[0].graph_def
    large = [
        function
        for function in graph.library.function
        if any(node.ByteSize() > 50_000 for node in function.node_def)
    ]
    assert len(large) == 1
    ops = {node.op for node in large[0].node_def}
    assert not ops & {"ReadVariableOp", "FusedBatchNormV3", "StatefulPartitionedCall"}
    assert {"Const", "Conv2D"} <= ops


def test_warmup_requests_fit_the_signatures(exported, loaded):
    names = []
    for record in tf.data.TFRecordDataset(os.path.join(exported, WARMUP_FILE)):
        request = prediction_log_pb2.PredictionLog.FromString(record.numpy()).predict_log.request
        ((name, tensor),) = request.inputs.items()
        loaded.signatures[request.model_spec.signature_name](
            **{name: tf.constant(tf.make_ndarray(tensor))}
        )
        names.append(request.model_spec.signature_name)
    assert sorted(names) == sorted(loaded.signatures)


def test_metadata_say_what_the_export_is(exported):
    with open(os.path.join(exported, "assets", "metadata.json"), encoding="utf-8") as file:
        metadata = json.load(file)
    assert metadata["model"]["variant"] == "b0" and metadata["model"]["num_classes"] == 10
    assert metadata["input"]["crop_fraction"] == pytest.approx(64 / 96)
    assert metadata["input"]["normalization"] == "advprop"
    assert metadata["self_check"]["num_images"] == metadata["self_check"]["num_same_top1"] == 10
    assert len(metadata["source"]["weights_sha256"]) == 64


def test_a_thousand_mutated_files_change_no_good_answer(loaded, photographs):
    """Fuzz: bytes flipped, cut out, repeated and truncated in files of every format,
    each batch with good files beside.
    """
    random = np.random.RandomState(0)
    small = Image.open(io.BytesIO(photographs[0])).resize((160, 120))
    seeds = [encode(small, image_format) for image_format in ("JPEG", "PNG", "GIF", "BMP")]
    seeds.append(encode(small.convert("CMYK"), "JPEG", progressive=True))
    good = classify(loaded, photographs)
    num_refused = 0
    for _ in range(50):
        mutated = []
        for _ in range(20):
            file = bytearray(seeds[random.randint(len(seeds))])
            for _ in range(random.randint(1, 20)):
                at, length = random.randint(len(file)), random.randint(1, 64)
                kind = random.randint(4)
                if kind == 0:
                    file[at] = random.randint(256)
                elif kind == 1:
                    file[at : at + length] = random.bytes(length)
                elif kind == 2 and len(file) > 200:
                    del file[at : at + length]
                else:
                    file[at:at] = file[at : at + length]
            mutated.append(
                bytes(file[: random.randint(1, len(file))] if random.rand() < 0.2 else file)
            )
        answer = classify(loaded, [photographs[0], *mutated, photographs[1]])
        num_refused += int(np.sum(answer["error"] != b""))
        assert ((answer["classes"][:, 0] == -1) == (answer["error"] != b"")).all()
        np.testing.assert_array_equal(answer["classes"][[0, -1]], good["classes"])
        np.testing.assert_allclose(
            answer["probabilities"][[0, -1]], good["probabilities"], atol=1e-6
        )
    assert 100 < num_refused < 1000
