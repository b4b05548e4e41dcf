import numpy as np
import pytest
import tensorflow as tf

from efficientnet_advprop.keras2 import keras
from tests.conftest import golden, load_tiny, make_tiny


def names(variables):
    return [variable.name.split(":")[0] for variable in variables]


@pytest.mark.parametrize("weights, suffix", [("ema", "/ExponentialMovingAverage"), ("raw", "")])
@pytest.mark.parametrize("ours, official", [("advprop", "advprop"), ("imagenet", "standard")])
def test_logits_are_the_official_ones(weights, suffix, ours, official):
    model, numbers = make_tiny(normalization=ours), golden("logits.npz")
    load_tiny(model.variables, suffix)
    for images in "abc":
        wanted = numbers[f"logits_{images}_{weights}_{official}"]
        for branch in ("main", "aux", "aux_1"):
            logits = model(numbers[f"images_{images}"], branch=branch)
            np.testing.assert_allclose(logits, wanted, rtol=0, atol=2e-5)


def test_endpoints_are_the_official_ones(tiny):
    numbers = golden("logits.npz")
    load_tiny(tiny.variables, "/ExponentialMovingAverage")
    endpoints = tiny.features(numbers["images_b"])
    load_tiny(tiny.variables)
    wanted = {
        key.split("__")[1]: numbers[key] for key in numbers.files if key.startswith("endpoint__")
    }
    wanted["global_pool"] = wanted["pooled_features"]
    wanted["head"] = numbers["logits_b_ema_advprop"]
    wanted[f"block_{len(tiny.blocks) - 1}"] = wanted["features"]
    for name, value in wanted.items():
        np.testing.assert_allclose(endpoints[name], value, rtol=0, atol=2e-5, err_msg=name)


def test_every_block_has_its_end_points(tiny):
    """The official names, and what a block's projection gets: its output is that,
    projected, normalised and added.
    """
    end_points = tiny.features(golden("logits.npz")["images_b"])
    num_blocks = len(tiny.blocks)
    wanted = {"stem", "features", "head_1x1", "pooled_features", "global_pool", "head"}
    names = [f"block_{index}" for index in range(num_blocks)]
    names += [f"reduction_{index}" for index in range(1, 6)]
    assert set(end_points) == wanted | set(names) | {f"{name}/expansion_output" for name in names}
    for index, block in enumerate(tiny.blocks):
        scale, offset = block.project_norm.affine()
        expanded = end_points[f"block_{index}/expansion_output"]
        output = tf.einsum("bhwc,cd->bhwd", expanded, block.project.kernel[0, 0]) * scale + offset
        if block.block.residual:
            output += end_points[f"block_{index - 1}" if index else "stem"]
        np.testing.assert_allclose(end_points[f"block_{index}"], output, rtol=0, atol=2e-5)


def test_any_numeric_dtype_goes_in(tiny):
    images = np.random.RandomState(0).randint(0, 256, [2, 40, 40, 3])
    logits = [tiny(images.astype(dtype)) for dtype in (np.uint8, np.int64, np.float32, np.float64)]
    for other in logits[1:]:
        np.testing.assert_array_equal(logits[0], other)


def test_bfloat16_computes_in_it_and_keeps_variables_and_logits_in_float32(tiny):
    model = make_tiny(compute_dtype="bfloat16")
    load_tiny(model.variables)
    assert {variable.dtype for variable in model.variables} == {tf.float32}
    images = golden("train.npz")["images"]
    logits = model(images)
    assert logits.dtype == tf.float32 and model.features(images)["reduction_3"].dtype == tf.bfloat16
    exact = tiny(images).numpy()
    error = np.abs(logits - exact).max() / np.abs(exact).max()
    assert 1e-5 < error < 0.05  # eight bits of mantissa: neither exact nor far off
    trained = model(images, training=True, branch="aux")
    assert np.isfinite(trained).all()


# What XLA's compilation takes; the golden gradients of other families go there too.
@pytest.mark.parametrize("mode", ["eager", "function", pytest.param("xla", marks=pytest.mark.slow)])
@pytest.mark.parametrize("training", [True, False])
def test_gradients_are_the_official_ones(tiny, mode, training):
    numbers = golden("train.npz")
    prefix = ("train" if training else "eval") + "_advprop_ls0_"
    images, labels = tf.constant(numbers["images"]), numbers["labels"]
    wanted = {
        key.split("__")[1].replace("|", "/"): numbers[key]
        for key in numbers.files
        if key.startswith(prefix + "gradw")
    }
    chosen = [v for v in tiny.trainable_variables if v.name.split(":")[0] in wanted]
    assert len(chosen) == len(wanted) == 8

    def differentiate():
        with tf.GradientTape() as tape:
            tape.watch(images)
            logits = tiny(images, training=training)
            loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits))
        return logits, loss, *tape.gradient(loss, [images] + chosen)

    traced = tf.function(differentiate, jit_compile=mode == "xla")
    logits, loss, image_gradient, *gradients = (differentiate if mode == "eager" else traced)()
    by_name = dict(zip(names(chosen), gradients))
    load_tiny(tiny.variables)
    np.testing.assert_allclose(logits, numbers[prefix + "logits"], rtol=0, atol=4e-5)
    np.testing.assert_allclose(loss, numbers[prefix + "loss"], rtol=0, atol=2e-5)
    checked = [("image", numbers[prefix + "grad_image"], image_gradient)]
    checked += zip(wanted, wanted.values(), (by_name[name] for name in wanted))
    for name, value, gradient in checked:
        scale = np.abs(value).max()
        np.testing.assert_allclose(gradient, value, rtol=0, atol=4e-5 * scale, err_msg=name)


def test_stochastic_depth_and_dropout_follow_the_seed():
    model = make_tiny(survival_prob=0.5, dropout_rate=0.5)
    images = golden("train.npz")["images"]
    run = tf.function(lambda seed: model(images, training=True, update_statistics=False, seed=seed))
    first, again, other = (run(tf.constant(seed)) for seed in ([1, 2], [1, 2], [1, 3]))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-3


def test_a_dual_checkpoint_restores_into_a_plain_model(tmp_path):
    dual, plain = make_tiny(), make_tiny(aux_branches=0)
    path = tf.train.Checkpoint(model=dual).save(str(tmp_path / "dual"))
    status = tf.train.Checkpoint(model=plain).restore(path)
    status.assert_existing_objects_matched().expect_partial()
    values = dict(zip(names(dual.variables), dual.variables))
    assert plain.variables
    for variable in plain.variables:
        np.testing.assert_array_equal(variable, values[variable.name.split(":")[0]])


def test_saved_and_loaded(tiny, tmp_path):
    images = golden("train.npz")["images"]
    tiny.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(loaded(images), tiny(images), rtol=0, atol=1e-5)
