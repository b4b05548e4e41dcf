"""Denoising blocks against NumPy, finite differences, and what they may cost."""

import itertools

import numpy as np
import pytest
import tensorflow as tf

from efficientnet_advprop.config.experiment import ExperimentConfig
from efficientnet_advprop.models import ResNet
from efficientnet_advprop.models.denoising import OPERATIONS, DenoisingBlock, denoise
from efficientnet_advprop.runtime.errors import ModelError
from efficientnet_advprop.runtime.pass_mode import use_branch
from efficientnet_advprop.serving.inference_network import InferenceNetwork
from efficientnet_advprop.training import checks
from tests.efficientnet_advprop.models.test_resnet import randomize

CHANNELS = 6
# Of every region and every kind of weights one; the others are combinations of these.
QUICK = ("non_local_softmax", "bilateral_dot", "mean", "median")
SLOW_BUT_QUICK = [
    name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in OPERATIONS
]


def features(seed=0, shape=(2, 5, 4, CHANNELS)):
    return np.random.RandomState(seed).standard_normal(shape).astype(np.float32)


def embeddings(name):
    return [features(7)[..., :3], features(8)[..., :3]] if OPERATIONS[name][-1] else []


def reference(name, x, theta=None, phi=None):
    """The definitions, position by position, in float64."""
    kind, average, _ = OPERATIONS[name]
    x = np.float64(x)
    theta, phi = (x if part is None else np.float64(part) for part in (theta, phi))
    batch, height, width, channels = x.shape
    result = np.zeros_like(x)
    for n, i, j in itertools.product(range(batch), range(height), range(width)):
        region = list(itertools.product(range(height), range(width)))
        if kind == "window":
            region = [(a, b) for a, b in region if abs(a - i) <= 1 and abs(b - j) <= 1]
        if average == "median":
            near = [(np.clip(i + a, 0, height - 1), np.clip(j + b, 0, width - 1))
                    for a in (-1, 0, 1) for b in (-1, 0, 1)]  # fmt: skip
            result[n, i, j] = np.median([x[n, a, b] for a, b in near], axis=0)
            continue
        products = np.array([theta[n, i, j] @ phi[n, a, b] for a, b in region])
        if average == "softmax":
            weights = np.exp(products / np.sqrt(theta.shape[-1]))
            weights /= weights.sum()
        elif average == "dot":
            weights = products / len(region)
        else:
            weights = np.full(len(region), 1 / len(region))
        result[n, i, j] = sum(w * x[n, a, b] for w, (a, b) in zip(weights, region))
    return result


@pytest.mark.parametrize("name", SLOW_BUT_QUICK)
def test_averages_are_those_of_the_definition(name):
    x = features()
    parts = embeddings(name)
    wanted = reference(name, x, *parts)
    function = tf.function(lambda *parts: denoise(name, *parts))
    np.testing.assert_allclose(function(*map(tf.constant, [x, *parts])), wanted, atol=2e-5)
    # Height and width that nobody knows when tracing; and compiled by XLA.
    parts = [x, *parts]
    unknown = [tf.TensorSpec([None, None, None, part.shape[-1]], tf.float32) for part in parts]
    traced = tf.function(function).get_concrete_function(*unknown)
    np.testing.assert_allclose(traced(*map(tf.constant, parts)), wanted, atol=2e-5)
    short = denoise(name, *(tf.cast(part, tf.bfloat16) for part in parts))
    short = tf.cast(short, tf.float32)
    np.testing.assert_allclose(short, wanted, atol=0.05 * np.abs(wanted).max())


@pytest.mark.parametrize("name", SLOW_BUT_QUICK)
def test_slopes_are_those_of_finite_differences_and_of_xla(name):
    x = features(1)
    parts = [x, *embeddings(name)]
    upstream = features(2)
    direction = [features(3 + i)[..., : part.shape[-1]] for i, part in enumerate(parts)]

    def slopes(*parts):
        with tf.GradientTape() as tape:
            tape.watch(parts)
            y = denoise(name, *parts)
        return tape.gradient(y, parts, upstream)

    found = slopes(*map(tf.constant, parts))
    step = 1e-5

    def along(sign):
        moved = [part + sign * step * np.float64(way) for part, way in zip(parts, direction)]
        return np.sum(np.float64(upstream) * reference(name, *moved))

    wanted = (along(1) - along(-1)) / (2 * step)
    total = sum(np.sum(gradient * way) for gradient, way in zip(found, direction))
    np.testing.assert_allclose(total, wanted, rtol=1e-3, atol=1e-3)
    compiled = tf.function(slopes, jit_compile=True)(*map(tf.constant, parts))
    for one, other in zip(found, compiled):
        np.testing.assert_allclose(one, other, atol=1e-4)


def test_the_gradient_of_a_median_is_shared_by_equals():
    """Nothing of it is lost: each output's gradient arrives whole, in equal parts."""
    x = tf.zeros([1, 3, 3, 1])
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = denoise("median", x)
    gradient = tape.gradient(y, x)
    assert float(tf.reduce_sum(gradient)) == pytest.approx(9.0, abs=1e-5)
    # In nine windows, a ninth each.
    assert float(gradient[0, 1, 1, 0]) == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("name", ["non_local_softmax", "median"])
def test_a_new_block_is_the_identity_and_loses_no_gradient(name):
    block = DenoisingBlock(name, CHANNELS, dict(aux_branches=1), "denoise")
    x, upstream = tf.constant(features()), tf.constant(features(1))
    block.build(x.shape)
    for training in (True, False):
        with use_branch("aux"), tf.GradientTape(persistent=True) as tape:
            tape.watch(x)
            y = block(x, training=training)
        np.testing.assert_allclose(y, x, atol=1e-6)
        np.testing.assert_allclose(tape.gradient(y, x, upstream), upstream, atol=1e-6)
    with tf.GradientTape() as tape:
        y = block(x, training=True)
    gradients = tape.gradient(y, [block.norm.gamma, block.convolution.kernel], upstream)
    assert float(tf.norm(gradients[0])) > 0.1 and not np.any(gradients[1])


def make_small(**overrides):
    arguments = dict(num_classes=10, width_coefficient=0.125, depth_coefficient=0.5, aux_branches=1)
    return ResNet("resnet50", **{**arguments, **overrides})


@pytest.fixture(scope="module")
def denoised():
    """Two blocks in stages 2 and 3, three in 4, two in 5, each stage with a denoising block."""
    model = make_small(denoise="non_local_softmax")
    randomize(model)
    return model


def test_blocks_stand_behind_the_last_block_of_each_stage(denoised):
    names = [block.name for block in denoised.blocks if block.denoising is not None]
    assert names == ["blocks_1", "blocks_3", "blocks_6", "blocks_8"]
    some = make_small(denoise="mean", denoise_stages=[3, 5])
    assert [b.name for b in some.blocks if b.denoising is not None] == ["blocks_3", "blocks_8"]
    again = ResNet.from_config(some.get_config())
    assert [v.name for v in again.variables] == [v.name for v in some.variables]
    with pytest.raises(ValueError, match="`denoise_stages` is 6"):
        make_small(denoise="mean", denoise_stages=[6])


def test_a_new_network_is_the_one_without_blocks():
    plain, model = make_small(), make_small(denoise="bilateral_dot")
    values = {variable.name: variable for variable in plain.variables}
    for variable in model.variables:
        assert (variable.name in values) is not ("/denoise/" in variable.name)
        variable.assign(values.get(variable.name, variable))
    images = features(5, (2, 64, 64, 3)) * 60 + 120
    np.testing.assert_allclose(model(images), plain(images), atol=1e-5)


def test_as_it_is_served_it_gives_the_same_logits(denoised):
    images = tf.constant(features(6, (2, 64, 64, 3)) * 60 + 120)
    folded = InferenceNetwork(denoised, image_size=64)
    wanted = denoised(images)
    np.testing.assert_allclose(folded(images)["logits"], wanted, atol=1e-4 * np.abs(wanted).max())


def test_a_map_that_is_too_large_is_named_with_its_size_before_anything_runs():
    config = ExperimentConfig()
    config.model.variant, config.model.denoise = "resnet152", "non_local_softmax"
    config.data.image_size, config.training.global_batch_size = 224, 4096
    config.training.eval_batch_size = 256
    config.validate()
    checks.check_denoising(config, num_replicas=128)  # 32 images each: 4·32·56⁴ bytes, 1.2 GiB
    with pytest.raises(ModelError) as error:
        checks.check_denoising(config, num_replicas=32)
    for words in ("stage 2", "56 × 56", "128 images 4.7 GiB", "global_batch_size", "at most 4 GiB"):
        assert words in str(error.value), words
    config.model.denoise_stages = "3,4,5"
    checks.check_denoising(config, num_replicas=32)
    config.training.eval_batch_size = 100_000
    with pytest.raises(ModelError, match="stage 3 .*28 × 28.*eval_batch_size"):
        checks.check_denoising(config, num_replicas=32)
    config.model.denoise, config.model.denoise_stages = "non_local_dot", "2,3,4,5"
    checks.check_denoising(config, num_replicas=1)
    block = DenoisingBlock("non_local_gaussian", CHANNELS, {}, "denoise")
    block.build([None, None, None, CHANNELS])
    with pytest.raises(ModelError, match="56 × 56 .* 200 images 7.3 GiB"):
        tf.function(block, autograph=False).get_concrete_function(
            tf.TensorSpec([200, 56, 56, CHANNELS])
        )


@pytest.mark.slow
def test_resnet152_with_four_blocks_has_the_papers_size():
    """A stage with C channels adds θ, φ (C·C/2 each), a 1×1 convolution (C·C), γ and β."""
    model = ResNet("resnet152", aux_branches=0, denoise="non_local_softmax")
    added = sum(2 * channels * (channels + 1) for channels in (256, 512, 1024, 2048))
    count = sum(int(np.prod(variable.shape)) for variable in model.trainable_variables)
    assert count == 60_192_808 + added == 71_341_608
