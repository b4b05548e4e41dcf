import numpy as np
import pytest
import tensorflow as tf

from efficientnet_advprop.keras2 import keras
from efficientnet_advprop.models import EfficientNet
from tests.conftest import golden, load_tiny, make_tiny


def names(variables):
    return [variable.name.split(":")[0] for variable in variables]


@pytest.mark.parametrize(
    "variant",
    ["b0", "b3", *(pytest.param(f"b{i}", marks=pytest.mark.slow) for i in (1, 2, 4, 5, 6, 7, 8))],
)
def test_variables_have_official_names_shapes_and_number(variant):
    facts = golden("variables.json.gz")["models"][f"efficientnet-{variant}"]
    model = EfficientNet(variant, aux_branches=0)
    trainable = set(names(model.trainable_variables))
    found = {
        name: (list(variable.shape), name in trainable)
        for name, variable in zip(names(model.variables), model.variables)
    }
    assert found == {name: (shape, is_trained) for name, shape, _, is_trained in facts["variables"]}
    assert (
        sum(int(np.prod(v.shape)) for v in model.trainable_variables)
        == facts["num_trainable_parameters"]
    )


def test_l2_is_the_published_size():
    # Xie et al., "Self-training with Noisy Student", table 7: 480M parameters.
    from efficientnet_advprop.models import scaling

    row = scaling.VARIANTS["l2"]
    total = 0
    for block in scaling.scaled_blocks(row.width_coefficient, row.depth_coefficient, 0.8):
        wide = block.input_filters * block.expand_ratio
        total += (
            block.input_filters * wide * (block.expand_ratio != 1) + block.kernel_size**2 * wide
        )
        total += 2 * wide * block.squeeze_filters + wide * block.output_filters
    total += 1280 * 4.3 * (block.output_filters + 1000)
    assert 478e6 < total < 482e6


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
    names = [f"block_{index}" for index in range(num_blocks)] + [
        f"reduction_{index}" for index in range(1, 6)
    ]
    assert set(end_points) == wanted | set(names) | {f"{name}/expansion_output" for name in names}
    for index, block in enumerate(tiny.blocks):
        scale, offset = block.project_norm.affine()
        projected = tf.einsum(
            "bhwc,cd->bhwd",
            end_points[f"block_{index}/expansion_output"],
            block.project.kernel[0, 0],
        )
        output = projected * scale + offset
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
    chosen = [
        variable for variable in tiny.trainable_variables if variable.name.split(":")[0] in wanted
    ]
    assert len(chosen) == len(wanted) == 8

    def differentiate():
        with tf.GradientTape() as tape:
            tape.watch(images)
            logits = tiny(images, training=training)
            loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits))
        return logits, loss, *tape.gradient(loss, [images] + chosen)

    run = (
        differentiate if mode == "eager" else tf.function(differentiate, jit_compile=mode == "xla")
    )
    logits, loss, image_gradient, *gradients = run()
    load_tiny(tiny.variables)
    np.testing.assert_allclose(logits, numbers[prefix + "logits"], rtol=0, atol=4e-5)
    np.testing.assert_allclose(loss, numbers[prefix + "loss"], rtol=0, atol=2e-5)
    for name, value, gradient in [("image", numbers[prefix + "grad_image"], image_gradient)] + [
        (variable.name, wanted[variable.name.split(":")[0]], gradient)
        for variable, gradient in zip(chosen, gradients)
    ]:
        np.testing.assert_allclose(
            gradient, value, rtol=0, atol=4e-5 * np.abs(value).max(), err_msg=name
        )


def test_stochastic_depth_and_dropout_follow_the_seed():
    model = make_tiny(survival_prob=0.5, dropout_rate=0.5)
    images = golden("train.npz")["images"]
    run = tf.function(lambda seed: model(images, training=True, update_statistics=False, seed=seed))
    first, again, other = (
        run(tf.constant([1, 2])),
        run(tf.constant([1, 2])),
        run(tf.constant([1, 3])),
    )
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-3


def test_a_dual_checkpoint_restores_into_a_plain_model(tmp_path):
    dual, plain = make_tiny(), make_tiny(aux_branches=0)
    path = tf.train.Checkpoint(model=dual).save(str(tmp_path / "dual"))
    tf.train.Checkpoint(model=plain).restore(
        path
    ).assert_existing_objects_matched().expect_partial()
    values = dict(zip(names(dual.variables), dual.variables))
    assert plain.variables
    for variable in plain.variables:
        np.testing.assert_array_equal(variable, values[variable.name.split(":")[0]])


@pytest.mark.parametrize("form", [pytest.param("saved_model", marks=pytest.mark.slow), "keras"])
def test_saved_and_loaded(tiny, tmp_path, form):
    images = golden("train.npz")["images"]
    path = str(tmp_path / ("model" if form == "saved_model" else "model.keras"))
    wanted = tiny(images)
    if form == "saved_model":
        tf.saved_model.save(
            tiny,
            path,
            signatures=tf.function(lambda x: {"logits": tiny(x)}).get_concrete_function(
                tf.TensorSpec([None, 64, 64, 3], tf.float32)
            ),
        )
        logits = tf.saved_model.load(path).signatures["serving_default"](tf.constant(images))[
            "logits"
        ]
    else:
        tiny.save(path)
        logits = keras.models.load_model(path)(images)
    np.testing.assert_allclose(logits, wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "arguments, said",
    [
        (dict(variant="b9"), "`variant` is 'b9'"),
        (dict(normalization="zero_one"), "`normalization` is 'zero_one'"),
        (dict(compute_dtype="int8"), "`compute_dtype` is 'int8'"),
        (dict(num_classes=0), "`num_classes` is 0"),
        (dict(survival_prob=0.0), "`survival_prob` is 0.0"),
        (dict(dropout_rate=1.0), "`dropout_rate` is 1.0"),
        (dict(width_coefficient=-1.0), "`width_coefficient` is -1.0"),
        (dict(aux_branches=-1), "`aux_branches` is -1"),
    ],
)
def test_refused_arguments_are_named(arguments, said):
    with pytest.raises(ValueError, match=said):
        EfficientNet(**arguments)


def test_refused_calls_say_what_there_is(tiny):
    with pytest.raises(ValueError, match="`branch` is 'aux_2'.*only 'main', 'aux'"):
        tiny(np.zeros([1, 32, 32, 3]), branch="aux_2")
    with pytest.raises(ValueError, match=r"`images` have shape \(32, 32, 3\)"):
        tiny(np.zeros([32, 32, 3]))
