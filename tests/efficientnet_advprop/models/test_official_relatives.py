"""Variables of all EfficientNets, and Lite, EdgeTPU, CondConv and V2 in all else, against the
official code's numbers.
"""

import numpy as np
import pytest
import tensorflow as tf

from efficientnet_advprop.models import EfficientNet
from efficientnet_advprop.models.condconv import (
    RoutedDepthwiseConvolution,
    RoutedPointwiseConvolution,
)
from tests.conftest import golden
from tests.relatives import TINY, make_tiny_relative, official_name
from tests.released_format import (
    full_images,
    network_of,
    official_logits,
    official_models,
    synthetic_values,
    variant_of,
)

# Of logits around one. Two TensorFlows differ by 7e-5 here; a batch norm inside its
# convolution rounds once more.
LOGITS_TOLERANCE = {"v2_s": 1e-4, "v2_b0": 1e-4}
QUICK = ("b0", "b3", "lite0", "edgetpu-S", "condconv-b0-4e", "v2-b3", "v2-s")


def slow_but(quick, names):
    return [name if name in quick else pytest.param(name, marks=pytest.mark.slow) for name in names]


@pytest.fixture(params=TINY)
def tiny_relative(request):
    """(name in the golden data, the network, the golden numbers); see `make_tiny_relative`."""
    return request.param, *make_tiny_relative(request.param)


def keep_values(variables):
    return [(variable, variable.numpy()) for variable in variables]


@pytest.mark.parametrize("variant", slow_but(QUICK, map(variant_of, official_models())))
def test_variables_have_official_names_shapes_and_number(variant):
    facts = official_models()[network_of(variant)]
    model = EfficientNet(variant, aux_branches=0)
    trainable = {official_name(variable) for variable in model.trainable_variables}
    found = {
        official_name(v): (v.shape.as_list(), official_name(v) in trainable)
        for v in model.variables
    }
    official = facts["variables"]
    assert found == {name.split(":")[0]: (shape, is_it) for name, shape, _, is_it in official}
    sizes = {name: int(np.prod(shape)) for name, (shape, is_trained) in found.items() if is_trained}
    assert sum(sizes.values()) == facts["num_trainable_parameters"]
    # EfficientNetV2's code decays no biases either.
    spared = ("batch_normalization", "/bias") if variant.startswith("v2") else ("batch_norm",)
    decayed = [name for name in sizes if not any(word in name for word in spared)]
    assert len(decayed) == facts["weight_decay_variables"]
    assert sum(sizes[name] for name in decayed) == facts["weight_decay_parameters"]


@pytest.mark.parametrize(
    "key",
    slow_but(
        (
            "efficientnet-lite0/96/ema/21",
            "efficientnet-edgetpu-S/96/ema/21",
            "efficientnet-condconv-b0-4e/96/ema/21",
            "efficientnetv2-b3/96/ema/45",
            "efficientnetv2-s/96/ema/46",
        ),
        [*golden("full_logits_more.npz").files, *golden("full_logits_v2.npz").files],
    ),
)
def test_full_size_gives_the_official_logits(key):
    name, pixels, salt, seed = key.split("/")
    variant = variant_of(name)
    model = EfficientNet(variant, aux_branches=0)
    values = synthetic_values(variant, salt)
    for variable in model.variables:
        variable.assign(values[official_name(variable)])
    wanted = official_logits()[key]
    logits = model(full_images(int(pixels), int(seed)))
    np.testing.assert_allclose(logits, wanted, rtol=0, atol=2e-3 * np.abs(wanted).max())


def test_own_normalization_and_classes_unless_told():
    model = EfficientNet("edgetpu-S", aux_branches=0, width_coefficient=0.25)
    assert (model.normalization, model.num_classes) == ("lite", 1001)
    assert model.get_config()["normalization"] == "lite"
    assert model.get_config()["num_classes"] == 1001
    small = dict(aux_branches=0, width_coefficient=0.25)
    model = EfficientNet("lite0", 10, normalization="imagenet", **small)
    assert (model.normalization, model.num_classes) == ("imagenet", 10)


@pytest.mark.parametrize("branch", ["main", "aux"])
def test_inference_is_the_official_one(tiny_relative, branch):
    family, model, numbers = tiny_relative
    logits = model(numbers["images"], branch=branch)
    tolerance = LOGITS_TOLERANCE.get(family, 2e-4)
    np.testing.assert_allclose(logits, numbers["eval_logits"], rtol=0, atol=tolerance)


@pytest.mark.parametrize(
    "training, mode",
    [(True, "function")]
    + [
        pytest.param(training, mode, marks=pytest.mark.slow)
        for training, mode in ((False, "function"), (True, "xla"), (False, "xla"))
    ],
)
def test_gradients_are_the_official_ones(tiny_relative, mode, training):
    family, model, numbers = tiny_relative
    tolerance = LOGITS_TOLERANCE.get(family, 2e-4)
    images, labels = tf.constant(numbers["images"], tf.float32), numbers["labels"]
    phase = "train" if training else "eval"
    keys = [key for key in numbers if key.startswith("gradw__")]
    wanted = {key.removeprefix("gradw__"): numbers[key] for key in keys}
    of_main = [v for v in model.trainable_variables if "/aux/" not in v.name]
    chosen = [v for v in of_main if official_name(v) in wanted]
    assert len(chosen) == len(wanted)

    @tf.function(jit_compile=mode == "xla")
    def differentiate():
        with tf.GradientTape() as tape:
            tape.watch(images)
            logits = model(images, training=training, update_statistics=False)
            loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits))
        return logits, loss, *tape.gradient(loss, [images, *(chosen if training else [])])

    logits, loss, *gradients = differentiate()
    np.testing.assert_allclose(logits, numbers[f"{phase}_logits"], rtol=0, atol=tolerance)
    np.testing.assert_allclose(loss, numbers[f"{phase}_loss"], rtol=0, atol=1e-4)
    targets = [numbers[f"{phase}_grad_image"]] + (
        [wanted[official_name(v)] for v in chosen] if training else []
    )
    for gradient, target in zip(gradients, targets, strict=True):
        # One unit on the other side of a kink changes a gradient by percents: hence the
        # norm.
        assert np.linalg.norm(gradient - target) < 1e-2 * np.linalg.norm(target)


@pytest.mark.parametrize("branch", ["main", "aux"])
def test_training_moves_the_statistics_of_its_branch_as_officially(tiny_relative, branch):
    _, model, numbers = tiny_relative
    before = keep_values(model.non_trainable_variables)
    for variable, value in before:
        variable.assign(np.full(value.shape, 0.0 if "moving_mean" in variable.name else 1.0))
    model(numbers["images"], training=True, branch=branch)
    moved = {v.name.split(":")[0]: v.numpy() for v, _ in before}
    for variable, value in before:
        variable.assign(value)
    for name, value in moved.items():
        if ("/aux/" in name) == (branch == "aux"):
            target = numbers[f"moving__{name.replace('/aux/', '/')}"]
            atol = 5e-5 * np.abs(target).max()
            np.testing.assert_allclose(value, target, rtol=0, atol=atol, err_msg=name)
        else:
            assert np.all(value == (0.0 if "moving_mean" in name else 1.0)), name


def test_end_points_are_named_in_every_kind_of_block(tiny_relative):
    _, model, numbers = tiny_relative
    end_points = model.features(numbers["images"])
    for index, layer in enumerate(model.blocks):
        block, output = layer.block, end_points[f"block_{index}"]
        assert output.shape[-1] == block.output_filters
        expanded = end_points[f"block_{index}/expansion_output"]
        assert expanded.shape[-1] == block.expanded_filters
    assert end_points["reduction_5"] is end_points["features"]
    np.testing.assert_allclose(end_points["head"], numbers["eval_logits"], rtol=0, atol=2e-4)


@pytest.mark.parametrize("strides", [1, 2])
def test_routed_convolutions_are_one_convolution_per_image(strides):
    """What the official layers do: each image on its own, with its own mix of the experts' kernels."""
    random = np.random.RandomState(0)
    images = random.normal(size=[3, 7, 6, 4]).astype(np.float32)
    routing = random.uniform(size=[3, 5]).astype(np.float32)
    scale = random.uniform(0.5, 2.0, size=[4]).astype(np.float32)
    offset = random.normal(size=[4]).astype(np.float32)
    with tf.name_scope("net/blocks_7/own"):
        depthwise = RoutedDepthwiseConvolution(3, strides, 5)
        depthwise.build([None, None, None, 4])
        pointwise = RoutedPointwiseConvolution(4, 5)
        pointwise.build([None, None, None, 4])
    assert depthwise.experts.name == "net/model/blocks_7/own/depthwise_condconv_kernel:0"
    kernels = depthwise.experts.numpy().reshape(5, 3, 3, 4, 1)
    # Each expert starts at its own draw.
    assert len({float(kernel[0, 0, 0, 0]) for kernel in kernels}) == 5
    wanted = []
    for image, shares in zip(images, routing):
        kernel = np.tensordot(shares, kernels, 1) * scale[:, None]
        steps = [1, strides, strides, 1]
        wanted.append(tf.nn.depthwise_conv2d(image[None], kernel, steps, "SAME")[0] + offset)
    run = tf.function(
        lambda x, shares: depthwise(x, scale, offset, routing=shares),
        input_signature=[tf.TensorSpec([None, 7, 6, 4]), tf.TensorSpec([None, 5])],
    )
    np.testing.assert_allclose(run(images, routing), wanted, rtol=0, atol=1e-5)
    kernels = pointwise.experts.numpy().reshape(5, 4, 4)
    mixed = [np.tensordot(shares, kernels, 1) * scale for shares in routing]
    wanted = [image @ kernel + offset for image, kernel in zip(images, mixed)]
    found = pointwise(images, scale, offset, routing=routing)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5)
