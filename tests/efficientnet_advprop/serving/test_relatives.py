"""EfficientNet-Lite, -EdgeTPU and -CondConv, exported."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from efficientnet_advprop.data import preprocessing, records
from efficientnet_advprop.models import EfficientNet
from efficientnet_advprop.runtime.errors import UsageError
from efficientnet_advprop.serving import converters
from efficientnet_advprop.serving.calibration_images import read_examples
from efficientnet_advprop.serving.exporting import ExportOptions, export
from efficientnet_advprop.serving.inference_network import InferenceNetwork
from efficientnet_advprop.serving.trained_network import RestoredNetwork
from tests.conftest import golden
from tests.relatives import TINY, make_tiny_relative


def square_images():
    """The golden images, cut square as exports want them."""
    return make_tiny_relative("lite")[1]["images"][:, :, 4:36].astype(np.float32)


def as_restored(model, image_size=32, serving_resize="bilinear"):
    return RestoredNetwork("small", model, image_size, "0.875", serving_resize, None, "small")


def plain_copy(model):
    """Without auxiliary branches."""
    plain = EfficientNet.from_config({**model.get_config(), "aux_branches": 0})
    values = {variable.name: variable for variable in model.variables}
    for variable in plain.variables:
        variable.assign(values[variable.name])
    return plain


@pytest.mark.parametrize("family", TINY)
def test_folded_networks_are_the_models(family):
    model, _ = make_tiny_relative(family)
    images = tf.constant(square_images())
    folded = InferenceNetwork(model, image_size=32)
    spec = tf.TensorSpec([None, 32, 32, 3])
    end_points = tf.function(folded.end_points, input_signature=[spec])(images)
    features = model.features(images)
    assert set(end_points) == set(features) == set(folded.end_point_names)
    for name, wanted in features.items():
        atol = 1e-4 * float(tf.reduce_max(tf.abs(wanted)))
        np.testing.assert_allclose(end_points[name], wanted, rtol=0, atol=atol, err_msg=name)


@pytest.mark.parametrize("family", ["condconv", "lite"])
def test_batch_norms_leave_one_bias_per_channel_and_experts_stay_experts(family):
    """4 numbers per channel of a batch norm become 1, so a network shrinks by 3 per channel."""
    model, _ = make_tiny_relative(family)
    main = [v for v in model.variables if "/aux/" not in v.name]
    channels = sum(v.shape[0] for v in main if v.name.endswith("gamma:0"))
    before = sum(int(np.prod(v.shape)) for v in main)
    assert InferenceNetwork(model, 32).num_weights == before - 3 * channels


def test_lite_in_whole_numbers_only(tmp_path):
    """Full-integer TFLite: nothing but 8-bit operations between pixels and answers, and close."""
    model, _ = make_tiny_relative("lite")
    images = square_images()
    contents = converters.to_tflite(InferenceNetwork(model, 32), "full_integer", images)
    interpreter = tf.lite.Interpreter(model_content=contents)
    floats = [
        tensor["name"]
        for tensor in interpreter.get_tensor_details()
        if tensor["dtype"] == np.float32
    ]
    assert len(floats) <= 3  # the two answers, and what one of them is made of
    runner = interpreter.get_signature_runner()
    answers = [runner(images=image[None].astype(np.uint8))["probabilities"] for image in images]
    wanted = tf.nn.softmax(model(images)).numpy()
    assert np.abs(np.concatenate(answers) - wanted).max() < 0.15


def test_a_bilinear_export_resizes_as_the_official_one():
    """Of the network's own accord; and evaluation stays bicubic."""
    numbers = golden("preprocess_more.npz")
    for key, size in (("photo", 64), ("photo", 56), ("tall", 64)):
        file = tf.constant(numbers[f"jpeg_{key}"].tobytes())
        for method in ("bicubic", "bilinear"):
            image = preprocessing.preprocess_for_eval(file, size, "0.875", method)
            np.testing.assert_array_equal(image, numbers[f"out_{key}_{size}_{method}"])


@pytest.mark.parametrize("crop", ["v2", "v2-ft"])
def test_crops_of_v2_resize_in_one_way(crop, tmp_path):
    network = dataclasses.replace(as_restored(plain_copy(make_tiny_relative("lite")[0])), crop=crop)
    with pytest.raises(UsageError, match="`--resize` is 'bicubic'"):
        export(network, str(tmp_path), ExportOptions(resize="bicubic"))
    assert not list(tmp_path.iterdir())


def test_a_saved_model_serves_bilinear_and_has_the_end_point(tmp_path):
    model = plain_copy(make_tiny_relative("edgetpu")[0])
    name = "block_1/expansion_output"
    path, _, agreement = export(as_restored(model), str(tmp_path), ExportOptions(end_point=name))
    assert name in str(agreement)
    signatures = tf.saved_model.load(path).signatures
    file = golden("preprocess_more.npz")["jpeg_photo"].tobytes()
    image = preprocessing.preprocess_for_eval(
        tf.constant(file), 32, "0.875", "bilinear", exact_jpeg=True
    )
    of_file = signatures["serving_default"](image_bytes=tf.constant([file]))
    of_image = signatures["predict_images"](images=image[None])
    best = np.sort(of_image["probabilities"][0])[::-1][:5]
    np.testing.assert_allclose(of_file["probabilities"][0], best, rtol=0, atol=1e-6)
    wanted = model.features(image[None])[name]
    found = signatures["features"](images=image[None])[name]
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-4 * np.abs(wanted).max())


def test_a_feature_extractor_as_tflite():
    model = make_tiny_relative("lite")[0]
    contents = converters.to_tflite(InferenceNetwork(model, 32), end_point="reduction_3")
    runner = tf.lite.Interpreter(model_content=contents).get_signature_runner()
    image = square_images()[:1]
    wanted = model.features(image)["reduction_3"]
    found = runner(images=image)["features"]
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-3 * np.abs(wanted).max())


def test_end_points_that_are_not_there(tmp_path):
    network = as_restored(make_tiny_relative("lite")[0])
    with pytest.raises(UsageError, match="`--end_point` is 'block_99'.*to 'block_9'"):
        export(network, str(tmp_path), ExportOptions(end_point="block_99"))


def test_calibration_from_records(tmp_path):
    """The validation shards, evenly drawn, with their labels; with a background class one later."""
    files = [golden("preprocess_more.npz")[f"jpeg_{key}"].tobytes() for key in ("photo", "tall")]
    for shard in range(2):
        with records.ShardWriter(str(tmp_path / f"validation-0000{shard}-of-00002")) as writer:
            for index in range(3):
                writer.write(records.make_example(files[index % 2], label=3 * shard + index))
    examples = read_examples(str(tmp_path), 32, "0.875", 10, max_images=100)
    assert sorted(examples.labels) == [0, 1, 2, 3, 4, 5] and examples.images.shape == (6, 32, 32, 3)
    assert set(examples.files) == set(files)
    examples = read_examples(str(tmp_path), 32, "0.875", 1001, 3, resize_method="bilinear")
    assert len(examples.files) == 3 and set(examples.labels) <= {1, 2, 3, 4, 5, 6}
