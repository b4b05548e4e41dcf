import collections

import numpy as np
import pytest
import tensorflow as tf

from efficientnet_advprop.data import augmentation
from tests.conftest import golden

KEY = tf.constant(11, tf.int64)


@pytest.fixture(scope="module")
def official():
    return golden("autoaugment.npz"), golden("autoaugment.json")


def seeds(count):
    return tf.data.Dataset.range(count).map(lambda i: tf.stack([KEY, i]))


def draws(function, count):
    return np.stack(list(seeds(count).map(function).as_numpy_iterator()))


@pytest.mark.parametrize("name", augmentation.OPS)
def test_ops_are_bit_exact(official, name):
    """Every recorded output of the official code; eagerly for one argument, in
    `Dataset.map` for all.
    """
    arrays, facts = official
    keys = [key for key in arrays.files if key.startswith(f"{name}__")]
    assert keys
    op = augmentation.OPS[name]
    for number, key in enumerate(keys):
        _, argument, image = key.split("__")
        arguments = facts["op_args"][name][int(argument)]
        if number == 0:
            np.testing.assert_array_equal(
                op(tf.constant(arrays[f"image_{image}"]), *arguments), arrays[key]
            )
    for shape in {arrays[key].shape for key in keys}:
        chosen = [key for key in keys if arrays[key].shape == shape]
        images = np.stack([arrays[f"image_{key.split('__')[2]}"] for key in chosen])
        arguments = [facts["op_args"][name][int(key.split("__")[1])] for key in chosen]
        dataset = tf.data.Dataset.from_tensor_slices(
            (images, np.asarray(arguments, np.float32).reshape(len(chosen), -1))
        )
        results = dataset.map(lambda image, argument: op(image, *tf.unstack(argument)))
        for key, result in zip(chosen, results.as_numpy_iterator()):
            np.testing.assert_array_equal(result, arrays[key], err_msg=key)


def test_all_ops_are_recorded(official):
    assert sorted(official[1]["ops"]) == sorted([*augmentation.OPS, "Cutout"])


@pytest.mark.parametrize(
    "method, constants",
    [
        ("autoaugment", augmentation.AUTOAUGMENT_PIXELS),
        ("randaugment", augmentation.RANDAUGMENT_PIXELS),
    ],
)
def test_levels_mean_what_they_did(official, method, constants):
    for name, levels in official[1]["levels"][method]["level_to_arg"].items():
        for level, arguments in levels.items():
            if arguments:
                ours = augmentation.level_to_argument(name, float(level), constants)
                assert np.float32(ours) == np.float32(max(arguments)), (name, level)


def test_policies_are_the_official_ones(official):
    ours = [[list(step) for step in sub_policy] for sub_policy in augmentation.AUTOAUGMENT_V0]
    assert ours == official[1]["policy_v0"]
    names = official[1]["randaugment"]["available_ops_in_order"]
    assert list(augmentation.RANDAUGMENT_OPS) == names


def test_geometric_ops_agree_with_tensorflow_addons():
    tfa = pytest.importorskip("tensorflow_addons")
    rng = np.random.RandomState(0)
    image = rng.randint(0, 256, [33, 47, 3]).astype(np.uint8)
    marked = tf.concat([image, np.ones([33, 47, 1], np.uint8)], -1)
    for _ in range(10):
        degrees, level, pixels = (np.float32(rng.uniform(-high, high)) for high in (90, 0.9, 60))
        lower = np.round(pixels) + 0.5
        rotated = tfa.image.rotate(marked, degrees * np.float32(np.pi / 180))
        for name, argument, transform in (
            ("Rotate", degrees, None),
            ("ShearX", level, [1.0, level, 0, 0, 1, 0, 0, 0]),
            ("ShearY", level, [1.0, 0, 0, level, 1, 0, 0, 0]),
            ("TranslateX", pixels, [1.0, 0, pixels, 0, 1, 0, 0, 0]),
            ("TranslateY", lower, [1.0, 0, 0, 0, 1, lower, 0, 0]),
        ):
            ours = augmentation.OPS[name](image, argument)
            theirs = rotated if transform is None else tfa.image.transform(marked, transform)
            expected = np.where(theirs[..., 3:] == 0, 128, theirs[..., :3])
            np.testing.assert_array_equal(ours, expected)


def test_gray_is_tensorflows_for_every_color():
    """A sample of the 2²⁴ colours: all of red and green at eight blues."""
    red, green = np.meshgrid(np.arange(256), np.arange(256))
    for blue in range(0, 256, 36):
        image = np.stack([red, green, np.full_like(red, blue)], -1).astype(np.uint8)
        # Color with factor 0 is the gray image.
        np.testing.assert_array_equal(
            augmentation.OPS["Color"](image, 0.0)[..., 0], tf.image.rgb_to_grayscale(image)[..., 0]
        )


def test_meant_ops():
    image = np.arange(256, dtype=np.uint8).reshape(8, 32, 1).repeat(3, -1)
    for ops, name, argument, expected in (
        (augmentation.MEANT_OPS, "Solarize", 256, image),  # above every value: nothing
        (augmentation.MEANT_OPS, "Solarize", 100, np.where(image < 100, image, 255 - image)),
        (augmentation.MEANT_OPS, "Posterize", 0, np.zeros_like(image)),
        (augmentation.MEANT_OPS, "Posterize", 10, image),
        (augmentation.MEANT_OPS, "Contrast", 0.0, np.full_like(image, 128)),  # 127.5, rounded
        (augmentation.OPS, "Posterize", 10, image & 0x80),
        (augmentation.OPS, "Solarize", 307, augmentation.OPS["Solarize"](image, 307 - 256)),
    ):
        np.testing.assert_array_equal(ops[name](image, argument), expected)


@pytest.mark.parametrize("half_size", [0, 4, 10, 40])
def test_cutout_has_the_official_statistics(official, half_size):
    facts = official[1]["cutout"]["by_pad_size"][str(half_size)]
    image = tf.zeros([40, 56, 3], tf.uint8)
    hits = draws(lambda seed: augmentation.cutout(image, half_size, seed), 1500)
    assert set(np.unique(hits)) <= {0, 128}
    fraction = (hits[..., 0] == 128).mean(axis=(1, 2))
    error = abs(fraction.mean() - facts["expected_masked_fraction"])
    assert error <= 5 * fraction.std() / np.sqrt(1500)
    assert (hits[..., 0] == 128).any(axis=2).sum(axis=1).max() == facts["max_height"]
    assert (hits[..., 0] == 128).any(axis=1).sum(axis=1).max() == facts["max_width"]


def test_autoaugment_chooses_as_the_policy_says():
    names = list(augmentation.OPS)

    def op(number):
        def run(image, argument=0.0):
            mark = number + 1 + 100 * tf.cast(tf.cast(argument, tf.float32) < 0, tf.int32)
            return tf.concat([image[1:], tf.fill([1, 1, 3], tf.cast(mark, tf.uint8))], axis=0)

        return run

    spies = {name: op(number) for number, name in enumerate(names)}
    image = tf.zeros([2, 1, 3], tf.uint8)
    count = 20000

    def augment(batch):
        return tf.map_fn(
            lambda seed: augmentation.autoaugment(image, seed, ops=spies),
            batch,
            fn_output_signature=tf.uint8,
        )

    batches = seeds(count).batch(500).map(augment)
    marks = np.concatenate(list(batches.as_numpy_iterator()))
    seen = collections.Counter(
        tuple(names[m % 100 - 1] for m in row[:, 0, 0] if m) for row in marks
    )
    expected = collections.Counter()
    for (first, p, _), (second, q, _) in augmentation.AUTOAUGMENT_V0:
        for names_run, probability in (
            ((first, second), p * q),
            ((first,), p * (1 - q)),
            ((second,), (1 - p) * q),
            ((), (1 - p) * (1 - q)),
        ):
            expected[names_run] += probability / 25
    assert all(expected[pair] > 0 for pair in seen)
    for pair, probability in expected.items():
        deviation = np.sqrt(probability * (1 - probability) / count)
        assert abs(seen[pair] / count - probability) < 5 * deviation + 1e-9, pair
    rotations = [m for m in marks[:, :, 0, 0].ravel() if m % 100 == names.index("Rotate") + 1]
    # Half of them to the left; but one of the policy's rotations, 0.6 of 4.6 in all, is
    # by level 0.
    assert abs(np.mean(np.asarray(rotations) > 100) - 0.5 * 4.0 / 4.6) < 0.04


def test_randaugment_draws_every_op_equally():
    names = list(augmentation.RANDAUGMENT_OPS)

    def spy(number):
        return lambda image, argument=0.0: tf.fill(tf.shape(image), tf.cast(number + 1, tf.uint8))

    spies = {name: spy(number) for number, name in enumerate(names)}
    image = tf.zeros([1, 1, 3], tf.uint8)
    marks = draws(lambda seed: augmentation.randaugment(image, seed, 1, 10, ops=spies), 8000)
    marks = marks[:, 0, 0, 0]
    # Cutout has no entry among the operations: at one pixel it fills it with gray.
    counts = np.bincount(np.where(marks == 128, names.index("Cutout") + 1, marks), minlength=17)[1:]
    assert counts.sum() == 8000 and np.abs(counts - 500).max() < 5 * np.sqrt(500)


@pytest.mark.parametrize("method", ["autoaugment", "randaugment"])
def test_policies_are_functions_of_the_seed_and_keep_shape(official, method):
    image = tf.constant(official[0]["image_nonsquare"])
    run = (
        augmentation.autoaugment
        if method == "autoaugment"
        else lambda image, seed: augmentation.randaugment(image, seed, 2, 10)
    )
    # One dataset, run twice: tracing is what takes long.
    augmented = seeds(60).map(lambda seed: run(image, seed))
    first, again = (np.stack(list(augmented.as_numpy_iterator())) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert first.dtype == np.uint8 and first.shape[1:] == image.shape
    assert len({image.tobytes() for image in first}) > 20


def test_mixup():
    images = np.stack([np.full([2, 2, 3], value) for value in (0.0, 100.0, 200.0, 50.0)])
    labels = np.eye(4)
    mixed, soft = augmentation.mixup(images, labels, tf.constant([1, 2]), alpha=0.2)
    share = np.diag(soft)
    assert (share >= 0.5).all() and (share <= 1).all()
    np.testing.assert_allclose(np.sum(soft, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(
        mixed[:, 0, 0, 0], share * [0, 100, 200, 50] + (1 - share) * [50, 200, 100, 0], rtol=1e-5
    )
    labels = np.eye(2)[np.arange(5000) % 2]
    mix_many = tf.function(augmentation.mixup)
    _, soft = mix_many(np.zeros([5000, 1, 1, 3]), labels, tf.constant([1, 2]), alpha=1.0)
    assert abs(soft.numpy().max(axis=1).mean() - 0.75) < 0.01  # of max(u, 1 − u), u uniform


def test_cutmix_labels_are_areas():
    images = np.stack([np.full([16, 16, 3], value, np.uint8) for value in (0, 10, 20, 30)])
    mixed, soft = augmentation.cutmix(images, np.eye(4), tf.constant([1, 2]), alpha=1.0)
    for i in range(4):
        own = (mixed[i, :, :, 0].numpy() == 10 * i).mean()
        np.testing.assert_allclose(soft[i, i], own, atol=1e-6)
        np.testing.assert_allclose(soft[i, 3 - i], 1 - own, atol=1e-6)
    assert mixed.dtype == tf.uint8


def test_mixup_and_cutmix_share_a_batch():
    """As the official code does with both: the halves do not meet."""
    images = np.stack(
        [np.full([16, 16, 3], value, np.uint8) for value in (0, 100, 200, 10, 90, 250)]
    )
    mixed, soft = augmentation.mix(
        images, np.eye(6), tf.constant([1, 2]), mixup_alpha=1.0, cutmix_alpha=1.0
    )
    assert not soft.numpy()[:3, 3:].any() and not soft.numpy()[3:, :3].any()
    own = np.diag(soft)
    np.testing.assert_allclose(mixed[0, 0, 0, 0], 200 * (1 - own[0]), atol=0.5)
    assert {len(np.unique(image)) for image in mixed.numpy()[:3]} == {1}
    np.testing.assert_allclose((mixed.numpy()[3] == 10).mean(), own[3], atol=1e-6)
    # So small an α that Gamma draws vanish in float32: still shares.
    for function in (augmentation.mixup, augmentation.cutmix):
        soft = function(
            np.zeros([200, 2, 2, 3], np.uint8), np.eye(200), tf.constant([1, 2]), alpha=0.001
        )[1]
        np.testing.assert_allclose(np.sum(soft, axis=1), 1, atol=1e-6)
