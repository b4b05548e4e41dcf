"""The network, the images and the answers of the reference implementation of AutoAttack
(tests/data/autoattack.npz, pixels / 255 there)."""

import tensorflow as tf

from tests.conftest import golden

GOLDEN = golden("autoattack.npz")
EPSILONS = {"linf": 48.0, "l2": 576.0}
IMAGES = GOLDEN["images"]
LABELS = GOLDEN["labels"]


def robust(norm, attack):
    """Which of the 200 images the reference's attack leaves right, bool [200]."""
    return GOLDEN[f"robust/{'Linf' if norm == 'linf' else 'L2'}/{attack}"]


def network(images):
    """Two convolutions and a dense layer: pixels [batch, 32, 32, 3] → logits [batch, 10]."""
    values = tf.cast(images, tf.float32) / 255.0
    one_zero = [[0, 0], [1, 1], [1, 1], [0, 0]]
    for layer in ("conv1", "conv2"):
        values = tf.nn.conv2d(values, GOLDEN[f"{layer}_kernel"], 2, one_zero)
        values = tf.nn.relu(tf.nn.bias_add(values, GOLDEN[f"{layer}_bias"]))
    return tf.reshape(values, [-1, 1024]) @ GOLDEN["dense_kernel"] + GOLDEN["dense_bias"]
