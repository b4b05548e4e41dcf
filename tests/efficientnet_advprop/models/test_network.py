"""What both families have of `Network`: shapes that are not known, Keras's policies and files."""

import numpy as np
import pytest
import tensorflow as tf

from efficientnet_advprop.attacks import PGD
from efficientnet_advprop.keras2 import keras
from efficientnet_advprop.models import DualBatchNormalization, EfficientNet, ResNet
from efficientnet_advprop.models.activations import Activation
from efficientnet_advprop.models.network import weights_digest

SEED = tf.constant([3, 4])


def make_network(family: str, **overrides):
    """A network of few layers that has everything: drop-outs, residuals, every kind of block."""
    arguments = dict(
        num_classes=5,
        width_coefficient=0.25,
        depth_coefficient=0.1,
        survival_prob=0.5,
        dropout_rate=0.2,
        aux_branches=1,
    )
    arguments.update(overrides)
    return EfficientNet("b0", **arguments) if family == "b0" else ResNet("resnet50", **arguments)


# Slow with ResNet: most of this is code that both families share.
@pytest.fixture(scope="module", params=["b0", pytest.param("resnet50", marks=pytest.mark.slow)])
def network(request):
    keras.utils.set_random_seed(1)
    return make_network(request.param)


def pixels(dtype=np.uint8, size=(32, 40)):
    return np.random.RandomState(1).randint(0, 256, [4, *size, 3]).astype(dtype)


def clear(network):
    """Forgets what `compile` left, so that the next test finds the network as it was made."""
    for name in ("optimizer", "compiled_loss", "compiled_metrics"):
        if getattr(network, name, None) is not None:
            setattr(network, name, None)


def test_logits_and_gradients_need_no_static_shape(network):
    images = tf.constant(pixels(np.float32))

    def differentiate(images):
        with tf.GradientTape() as tape:
            mode = dict(training=True, branch="aux", update_statistics=False)
            logits = network(images, seed=SEED, **mode)
            loss = tf.reduce_sum(tf.square(logits))
        kernels = [v for v in network.trainable_variables if v.name.endswith("kernel:0")]
        return [logits, *tape.gradient(loss, kernels[:3])]

    wanted = tf.function(differentiate)(images)
    # Not even a rank; the attack below knows that.
    found = tf.function(differentiate, input_signature=[tf.TensorSpec(None)])(images)
    for one, other in zip(found, wanted):
        atol = 1e-5 * np.abs(other).max() + 1e-12
        np.testing.assert_allclose(one, other, rtol=0, atol=atol)


def test_an_attack_needs_no_static_shape(network):
    images = tf.constant(pixels(np.float32))
    labels = tf.constant([0, 1, 2, 3])
    attack = PGD(4.0, 2.0, 2, num_classes=5, random_start=1.0)

    def run(images, labels):
        return attack(lambda x: network(x, branch="aux"), images, labels, SEED)

    open_shapes = [tf.TensorSpec([None, None, None, 3]), tf.TensorSpec([None], tf.int32)]
    found = tf.function(run, input_signature=open_shapes)(images, labels)
    wanted = tf.function(run)(images, labels)
    # A sign of a gradient that is all rounding may differ.
    assert np.mean(np.abs(found - wanted) > 1e-3) < 2e-3
    assert 3.9 < np.abs(found - images).max() <= 4.0 + 1e-4


def test_an_image_that_is_not_rgb_is_refused_also_when_tracing_did_not_know(network):
    run = tf.function(network, input_signature=[tf.TensorSpec([None, None, None, None])])
    with pytest.raises(tf.errors.InvalidArgumentError, match="Shape of tensor"):
        run(tf.zeros([1, 32, 32, 1]))
    with pytest.raises(ValueError, match=r"`images` have shape \(1, 32, 32, 1\)"):
        network(tf.zeros([1, 32, 32, 1]))
    with pytest.raises(ValueError, match="`images` are bool"):
        network(tf.zeros([1, 32, 32, 3], tf.bool))
    with pytest.raises(ValueError, match=r"`images` have shape \(32, 32, 3\)"):
        network(tf.zeros([32, 32, 3]))
    with pytest.raises(ValueError, match="`branch` is 'aux_2'.*only 'main', 'aux'"):
        network(tf.zeros([1, 32, 32, 3]), branch="aux_2")


@pytest.mark.slow
def test_decoded_images_of_any_size_train(network):
    """`tf.io.decode_jpeg` tells neither the size nor, by itself, the channels."""
    files = [tf.io.encode_jpeg(image).numpy() for image in pixels()]
    images = tf.data.Dataset.from_tensor_slices((files, [0, 1, 2, 3]))
    images = images.map(lambda file, label: (tf.io.decode_jpeg(file), label)).batch(2)
    assert images.element_spec[0].shape.as_list() == [None, None, None, None]
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    network.compile("sgd", loss)
    before = network.trainable_variables[0].numpy()
    history = network.fit(images, verbose=0).history
    # The first step of a network of 5 classes: about ln 5.
    assert 0.5 < history["loss"][0] < 5.0
    assert not np.array_equal(before, network.trainable_variables[0])
    clear(network)


@pytest.fixture
def mixed_policy():
    keras.mixed_precision.set_global_policy("mixed_bfloat16")
    yield
    keras.mixed_precision.set_global_policy("float32")


def test_a_global_policy_rounds_no_pixels(network, mixed_policy):
    images = tf.constant(pixels(np.float32)) + 0.25  # in eight bits these are other pixels
    plain = tf.function(lambda images: network(images))(images)
    again = type(network).from_config(network.get_config())  # made under the policy
    again.set_weights(network.get_weights())
    inputs = keras.Input([None, None, 3])
    around = keras.Model(inputs, again(inputs))
    for model in (around, keras.Sequential([again])):
        found = tf.function(lambda images, model=model: model(images))(images)
        np.testing.assert_array_equal(found, plain)
        assert found.dtype == tf.float32


@pytest.mark.parametrize(
    "optimizer", [pytest.param("sgd", marks=pytest.mark.slow), keras.optimizers.Adam(1e-3)]
)
def test_float16_scales_the_loss(optimizer):
    network = make_network("b0", compute_dtype="float16")
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    network.compile(optimizer, loss)
    assert isinstance(network.optimizer, keras.mixed_precision.LossScaleOptimizer)
    assert float(network.optimizer.loss_scale) == 2.0**15  # Keras's own first scale
    own = keras.mixed_precision.LossScaleOptimizer(keras.optimizers.SGD(), initial_scale=64.0)
    network.compile(own, loss)
    assert network.optimizer is own
    make_network("b0", compute_dtype="bfloat16").compile("sgd", loss)


def test_other_dtypes_scale_no_loss(network):
    network.compile("sgd")
    assert not isinstance(network.optimizer, keras.mixed_precision.LossScaleOptimizer)
    clear(network)


def around(network):
    inputs = keras.Input([None, None, 3])
    return keras.Model(inputs, keras.layers.Softmax()(network(inputs)))


def check(loaded, images, wanted):
    np.testing.assert_allclose(loaded(images), wanted, rtol=0, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("functional", [False, True])
@pytest.mark.parametrize("file", ["folder", "model.keras"])
def test_saves_and_loads_as_a_keras_model(network, tmp_path, file, functional):
    images = tf.constant(pixels(np.float32))
    model = around(network) if functional else network
    wanted = model(images)
    model.save(tmp_path / file)
    check(keras.models.load_model(tmp_path / file), images, wanted)


@pytest.mark.slow
def test_saves_as_a_saved_model(network, tmp_path):
    """Whole, and with a signature alone."""
    images = tf.constant(pixels(np.float32))
    # A new one: Keras saves the arguments of the first call, which others made with a seed.
    network = type(network).from_config(network.get_config())
    network(images)
    spec = tf.TensorSpec([None, 32, 40, 3], tf.float32)
    signature = tf.function(lambda x: {"logits": network(x)}).get_concrete_function(spec)
    tf.saved_model.save(network, str(tmp_path / "m"), signatures=signature)
    loaded = tf.saved_model.load(str(tmp_path / "m"))
    check(loaded, images, network(images))
    serve = loaded.signatures["serving_default"]
    check(lambda images: serve(images)["logits"], images, network(images))


@pytest.mark.slow
def test_a_keras_checkpoint_callback_saves_it(network, tmp_path):
    images = tf.constant(pixels(np.float32))
    network.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    callback = keras.callbacks.ModelCheckpoint(str(tmp_path / "m"))
    network.fit(images, tf.constant([0, 1, 2, 3]), callbacks=[callback], verbose=0)
    check(keras.models.load_model(tmp_path / "m"), images, network(images))
    clear(network)


REFUSED = [
    (EfficientNet, dict(variant="b9"), "variant"),
    (ResNet, dict(variant="resnet51"), "variant"),
    (EfficientNet, dict(normalization="zero_one"), "normalization"),
    (EfficientNet, dict(compute_dtype="int8"), "compute_dtype"),
    (EfficientNet, dict(num_classes=0), "num_classes"),
    (EfficientNet, dict(survival_prob=0.0), "survival_prob"),
    (EfficientNet, dict(dropout_rate=1.0), "dropout_rate"),
    (ResNet, dict(width_coefficient=-1.0), "width_coefficient"),
    (EfficientNet, dict(aux_branches=-1), "aux_branches"),
    (EfficientNet, dict(recomputed_blocks=-1), "recomputed_blocks"),
    (EfficientNet, dict(recomputed_blocks=1.5), "recomputed_blocks"),
    (ResNet, dict(denoise="nothing"), "denoise"),
    (ResNet, dict(stride_in="5x5"), "stride_in"),
    (ResNet, dict(pool_padding="valid"), "pool_padding"),
    (DualBatchNormalization, dict(aux_branches=-1), "aux_branches"),
    (DualBatchNormalization, dict(momentum=1.0), "momentum"),
    (DualBatchNormalization, dict(epsilon=0.0), "epsilon"),
    (DualBatchNormalization, dict(group_size=0), "group_size"),
    (DualBatchNormalization, dict(aux_shares="all"), "aux_shares"),
    (Activation, dict(name="mish"), "name"),
    (Activation, dict(name="softplus", alpha=-1.0), "alpha"),
    (Activation, dict(name="swish", smooth_relu_gradient="both"), "smooth_relu_gradient"),
    (Activation, dict(name="relu", smooth_relu_gradient="backward"), "smooth_relu_gradient"),
]


@pytest.mark.parametrize("kind, arguments, name", REFUSED)
def test_refused_arguments_are_named(kind, arguments, name):
    said = {"name": "activation", "alpha": "activation_alpha"}.get(name, name)  # as a network's
    with pytest.raises(ValueError, match=f"`{said}` is {arguments[name]!r}"):
        kind(**arguments)


def test_digest_sees_values_and_names_and_nothing_else():
    def make(value, name="v"):
        return weights_digest([tf.Variable(np.full([2], value, np.float32), name=name)])

    assert make(1.0) == make(1.0) and len({make(1.0), make(1.5), make(1.0, "w")}) == 3
