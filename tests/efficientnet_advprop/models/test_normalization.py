import numpy as np
import pytest
import tensorflow as tf

from efficientnet_advprop.keras2 import keras
from efficientnet_advprop.models import DualBatchNormalization
from efficientnet_advprop.models.normalization import moving_statistics, official_group_size
from tpu_utils import replica_runtime

MOMENTUM, EPSILON = 0.9, 1e-3


def batch(seed=0, shape=(4, 5, 6, 3)):
    noise = np.random.RandomState(seed).standard_normal(shape)
    return (noise * [1.0, 2.0, 0.5] + [0.0, 1.0, -3.0]).astype(np.float32)


def make(**overrides):
    layer = DualBatchNormalization(
        **{**dict(aux_branches=2, momentum=MOMENTUM, epsilon=EPSILON), **overrides}
    )
    with tf.name_scope(layer.name):  # as Keras does at a first call
        layer.build([None, None, None, 3])
    return layer


def values(layer):
    return {variable.name: variable.numpy() for variable in layer.variables}


@pytest.mark.parametrize("mode", ["eager", "function", "xla"])
@pytest.mark.parametrize(
    "branch, scope", [("main", ""), ("aux", "aux/"), ("aux_1", "aux/"), ("aux_2", "aux_2/")]
)
def test_training_normalises_with_the_batch_and_moves_its_branch_alone(mode, branch, scope):
    layer, x = make(), batch()
    before = values(layer)

    def call():
        return layer(x, training=True, branch=branch)

    run = call if mode == "eager" else tf.function(call, jit_compile=mode == "xla")
    y = run()
    mean, variance = x.mean((0, 1, 2)), x.var((0, 1, 2))  # NumPy's variance divides by N
    np.testing.assert_allclose(y, (x - mean) / np.sqrt(variance + EPSILON), rtol=0, atol=2e-5)
    after = values(layer)
    moved = {name for name in after if not np.array_equal(before[name], after[name])}
    prefix = layer.name + "/" + scope
    assert moved == {prefix + "moving_mean:0", prefix + "moving_variance:0"}
    np.testing.assert_allclose(after[prefix + "moving_mean:0"], 0.1 * mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(after[prefix + "moving_variance:0"], 0.9 + 0.1 * variance, rtol=1e-5)


def test_moments_without_an_update_move_nothing():
    layer, x = make(), batch()
    before = values(layer)
    wanted = layer(x, training=True, branch="aux", update_statistics=False)
    for name, value in values(layer).items():
        np.testing.assert_array_equal(value, before[name])
    np.testing.assert_array_equal(layer(x, training=True, branch="aux"), wanted)


def test_inference_uses_the_branchs_own_statistics_and_moves_nothing():
    layer, x = make(), batch()
    for offset, branch in enumerate(["main", "aux", "aux_2"]):
        held = layer.variables_of(branch)
        held.gamma.assign([1.0 + offset, -2.0, 3.0])
        held.beta.assign([0.5, 0.0, 1.0 + offset])
        held.moving_mean.assign([0.1, 0.2, 0.3 * offset])
        held.moving_variance.assign([1.0, 2.0 + offset, 3.0])
    before = values(layer)
    for branch in ["main", "aux", "aux_2"]:
        held = layer.variables_of(branch)
        scale = held.gamma / np.sqrt(held.moving_variance + EPSILON)
        wanted = (x - held.moving_mean) * scale + held.beta
        np.testing.assert_allclose(layer(x, branch=branch), wanted, rtol=1e-5, atol=1e-5)
        frozen = make()
        frozen.set_weights(layer.get_weights())
        frozen.trainable = False
        found = frozen(x, training=True, branch=branch)
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)
    for name, value in values(layer).items():
        np.testing.assert_array_equal(value, before[name])


def test_only_auxiliary_variables_carry_aux_in_their_names():
    layer = make()
    names = [variable.name.removeprefix(layer.name + "/") for variable in layer.variables]
    leaves = ["gamma:0", "beta:0", "moving_mean:0", "moving_variance:0"]
    assert set(names) == {scope + leaf for scope in ("", "aux/", "aux_2/") for leaf in leaves}
    assert len(names) == 12


def test_gradients_are_those_of_plain_arithmetic():
    layer, x = make(), tf.constant(batch())
    weights = tf.constant(batch(1))
    with tf.GradientTape() as tape:
        tape.watch(x)
        loss = tf.reduce_sum(layer(x, training=True, branch="aux") * weights)
    held = layer.variables_of("aux")
    gradients = tape.gradient(loss, [x, held.gamma, held.beta, layer.gamma])
    with tf.GradientTape() as tape:
        tape.watch(x)
        mean = tf.reduce_mean(x, [0, 1, 2])
        variance = tf.reduce_mean(tf.square(x - mean), [0, 1, 2])
        outputs = (x - mean) / tf.sqrt(variance + EPSILON) * held.gamma + held.beta
        loss = tf.reduce_sum(outputs * weights)
    wanted = tape.gradient(loss, [x, held.gamma, held.beta])
    for gradient, value in zip(gradients, wanted):
        np.testing.assert_allclose(gradient, value, rtol=1e-4, atol=5e-4)
    assert gradients[3] is None


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_low_precision_keeps_moments_and_variables_in_float32(policy):
    layer = make(dtype=keras.mixed_precision.Policy(policy))
    x = batch()
    y = layer(x, training=True, branch="aux")
    assert y.dtype == keras.mixed_precision.Policy(policy).compute_dtype
    assert {variable.dtype for variable in layer.variables} == {tf.float32}
    rounded = tf.cast(tf.cast(x, y.dtype), tf.float32).numpy()
    # Moments in the activations' eight bits would be off by 4e-3 here.
    np.testing.assert_allclose(
        layer.variables_of("aux").moving_mean, 0.1 * rounded.mean((0, 1, 2)), rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize("shape", [(6, 3), (4, 7, 3), (2, 3, 4, 5, 3)])
def test_any_rank(shape):
    layer = DualBatchNormalization(momentum=MOMENTUM)
    x = batch(shape=shape)
    y = layer(x, training=True, branch="aux")
    axes = tuple(range(len(shape) - 1))
    wanted = (x - x.mean(axes)) / np.sqrt(x.var(axes) + 1e-3)
    np.testing.assert_allclose(y, wanted, rtol=0, atol=2e-5)
    moved = layer.variables_of("aux").moving_variance
    np.testing.assert_allclose(moved, 0.9 + 0.1 * x.var(axes), rtol=1e-5)


def test_config_makes_the_same_layer_again():
    given = dict(
        momentum=MOMENTUM, center=False, group_size=2, aux_shares="affine", trainable=False
    )
    config = make(gamma_initializer="zeros", **given).get_config()
    again = DualBatchNormalization.from_config(config)
    assert again.get_config() == config
    assert {name: getattr(again, name) for name in given} == given and again.aux_branches == 2


@pytest.mark.parametrize(
    "shares, own",
    [
        ("statistics", {"aux/gamma:0", "aux/beta:0"}),
        ("affine", {"aux/moving_mean:0", "aux/moving_variance:0"}),
    ],
)
def test_auxiliary_branches_may_share_statistics_or_parameters_with_main(shares, own):
    layer, x = make(aux_branches=1, aux_shares=shares), batch()
    names = {variable.name.removeprefix(layer.name + "/") for variable in layer.variables}
    assert {name for name in names if name.startswith("aux")} == own and len(names) == 6
    mean, variance = x.mean((0, 1, 2)), x.var((0, 1, 2))
    layer.variables_of("aux").gamma.assign([2.0, 2.0, 2.0])
    y = layer(x, training=True, branch="aux")
    np.testing.assert_allclose(y, 2.0 * (x - mean) / np.sqrt(variance + EPSILON), rtol=0, atol=4e-5)
    # Shared statistics are those that both branches move, and shared parameters those
    # that both multiply by.
    held = layer.variables_of("aux")
    of_main = 0.1 * mean if shares == "statistics" else np.zeros(3)
    np.testing.assert_allclose(held.moving_mean, 0.1 * mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(layer.moving_mean, of_main, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(layer.gamma, np.full(3, 2.0 if shares == "affine" else 1.0))
    wanted = 2.0 * (x - held.moving_mean) / np.sqrt(held.moving_variance + EPSILON)
    np.testing.assert_allclose(layer(x, branch="aux"), wanted, rtol=1e-5, atol=1e-5)
    layer(x, training=True)
    assert len(moving_statistics(keras.Sequential([layer]))) == (2 if shares == "statistics" else 4)


@pytest.mark.parametrize("shape", [(6, 5, 4, 3), (6, 3)])
def test_branches_in_one_batch_have_common_moments_and_their_own_parameters(shape):
    layer = DualBatchNormalization(2, MOMENTUM, EPSILON, aux_shares="moments")
    x = batch(shape=shape)
    layer.build(shape)
    for offset, branch in enumerate(("main", "aux", "aux_2")):
        layer.variables_of(branch).gamma.assign([1.0 + offset, -2.0, 3.0])
        layer.variables_of(branch).beta.assign([0.5, 0.0, 1.0 + offset])
    axes = tuple(range(len(shape) - 1))
    mean, variance = x.mean(axes), x.var(axes)
    normalized = (x - mean) / np.sqrt(variance + EPSILON)
    parts = np.split(normalized, 3)
    wanted = [part * [1.0 + i, -2.0, 3.0] + [0.5, 0.0, 1.0 + i] for i, part in enumerate(parts)]
    wanted = np.concatenate(wanted)
    y = layer(x, training=True, branch="main+aux+aux_2")
    np.testing.assert_allclose(y, wanted, rtol=0, atol=1e-4)
    assert len(moving_statistics(keras.Sequential([layer]))) == 2  # one set, moved once
    np.testing.assert_allclose(layer.moving_mean, 0.1 * mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(layer.moving_variance, 0.9 + 0.1 * variance, rtol=1e-5)
    layer.trainable = False  # frozen, it normalises each part as its branch does in inference
    together = layer(x, training=True, branch="main+aux+aux_2")
    for i, branch in enumerate(("main", "aux", "aux_2")):
        part = slice(2 * i, 2 * i + 2)
        np.testing.assert_allclose(together[part], layer(x[part], branch=branch), atol=1e-5)
    with pytest.raises(ValueError, match="`aux_shares` is 'statistics': branches share a batch"):
        DualBatchNormalization(aux_shares="statistics")(x, training=True, branch="main+aux")


def test_is_a_keras_batch_norm_whose_weights_a_plain_one_takes(tmp_path):
    layer, x = make(), batch()
    layer(x, training=True)
    path = tf.train.Checkpoint(norm=layer).save(str(tmp_path / "dual"))
    plain = keras.layers.BatchNormalization(momentum=MOMENTUM, epsilon=EPSILON)
    plain.build([None, None, None, 3])
    tf.train.Checkpoint(norm=plain).restore(path).assert_existing_objects_matched()
    assert isinstance(layer, keras.layers.BatchNormalization)
    np.testing.assert_allclose(plain(x), layer(x), rtol=1e-5, atol=1e-5)


def test_in_a_functional_model_saved_both_ways(tmp_path):
    inputs = keras.Input([5, 6, 3])
    layer = make()
    model = keras.Model(inputs, layer(inputs, branch="aux"))
    layer.variables_of("aux").beta.assign([1.0, 2.0, 3.0])
    x = batch()
    for path in (str(tmp_path / "m.keras"), str(tmp_path / "saved_model")):
        model.save(path)
        np.testing.assert_allclose(keras.models.load_model(path)(x), model(x), rtol=1e-6)


@pytest.mark.parametrize("group_size, seen_together", [(None, 1), (1, 1), (2, 2), (4, 4)])
def test_groups_of_replicas_are_as_one_device_with_their_batches(
    group_size, seen_together, four_replicas
):
    parts = [batch(seed) + seed for seed in range(4)]
    weights = [batch(seed + 4) for seed in range(4)]
    with four_replicas.scope():
        layer = make(group_size=group_size)

    @tf.function
    def run():
        def replica():
            number = replica_runtime.current().replica_id
            x, weight = (tf.gather(tf.stack(values), number) for values in (parts, weights))
            held = layer.variables_of("aux")
            with tf.GradientTape() as tape:
                tape.watch(x)
                loss = tf.reduce_sum(layer(x, training=True, branch="aux") * weight)
            gradients = tape.gradient(loss, [x, held.gamma, held.beta])
            return [*gradients, held.moving_mean.read_value(), held.moving_variance.read_value()]

        return four_replicas.run(replica)

    found = [np.stack(four_replicas.experimental_local_results(result)) for result in run()]
    for first in range(0, 4, seen_together):
        group = slice(first, first + seen_together)
        x, weight = tf.constant(np.concatenate(parts[group])), np.concatenate(weights[group])
        keras_layer = keras.layers.BatchNormalization(-1, MOMENTUM, EPSILON, fused=False)
        with tf.GradientTape() as tape:
            tape.watch(x)
            loss = tf.reduce_sum(keras_layer(x, training=True) * weight)
        wanted = tape.gradient(loss, [x, keras_layer.gamma, keras_layer.beta])
        np.testing.assert_allclose(np.concatenate(found[0][group]), wanted[0], rtol=0, atol=1e-4)
        for gradient, value in zip(found[1:3], wanted[1:]):  # each replica's is of its own share
            np.testing.assert_allclose(gradient[group].sum(0), value, rtol=1e-4, atol=1e-3)
        mean, variance = keras_layer.moving_mean, keras_layer.moving_variance
        for replica in range(first, first + seen_together):
            np.testing.assert_allclose(found[3][replica], mean, rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(found[4][replica], variance, rtol=1e-4)


@pytest.mark.parametrize(
    "num_replicas, size",
    [(1, 1), (8, 1), (16, 8), (32, 8), (64, 8), (128, 16), (512, 64), (1024, 128), (2048, 256)],
)
def test_official_group_size(num_replicas, size):
    # The official `TpuBatchNormalization`: 1 up to 8 shards, then max(8, num_shards // 8).
    assert official_group_size(num_replicas) == size


def test_refused_calls():
    with pytest.raises(ValueError, match="`axis` is 1"):
        DualBatchNormalization(axis=1).build([None, 3, 4, 5])
    with pytest.raises(ValueError, match="`branch` is 'aux_3'.*only 'main', 'aux', 'aux_2'"):
        make()(batch(), branch="aux_3")
    with pytest.raises(ValueError, match="`group_size` is 2"):
        make(group_size=2)(batch(), training=True)
    for option in ("renorm", "synchronized"):
        with pytest.raises(ValueError, match=f"`{option}` is given"):
            DualBatchNormalization(**{option: True})
    with pytest.raises(ValueError, match="`training` is a tensor"):
        make()(batch(), training=tf.constant(True))
