"""Blocks that denoise feature maps: an average over positions that resemble each other,
a 1×1 convolution with batch norm, and the shortcut around both.

Xie, Wu, van der Maaten, Yuille & He, CVPR 2019, "Feature Denoising for Improving
Adversarial Robustness", sections 4 and 5; where the paper is silent, as in
facebookresearch/ImageNet-Adversarial-Training. The last gamma starts at zero, so that a
new block is the identity and its gradient goes through whole.
"""

import math
from typing import Optional

import tensorflow as tf

from efficientnet_advprop.keras2 import keras
from efficientnet_advprop.models.layers import (
    Convolution,
    build_in_scopes,
    build_steps,
    run_steps,
)
from efficientnet_advprop.models.normalization import DualBatchNormalization
from efficientnet_advprop.runtime.errors import ModelError

# Over which region a position is averaged: "all" positions (non-local means, Buades et al.
# 2005) or the "window" of 3×3 around it; by which weights: "softmax" of x_i·x_j / √channels,
# "dot", x_i·x_j itself over the number of positions, "equal", or "median", the middle value of
# each channel instead; and whether the weights are of two 1×1 convolutions of x, θ and φ, each
# with half the channels, rather than of x.
OPERATIONS = {
    "non_local_softmax": ("all", "softmax", True),
    "non_local_gaussian": ("all", "softmax", False),
    "non_local_dot": ("all", "dot", False),
    "bilateral_softmax": ("window", "softmax", True),
    "bilateral_gaussian": ("window", "softmax", False),
    "bilateral_dot": ("window", "dot", False),
    "mean": ("window", "equal", False),
    "median": ("window", "median", False),
}
# Of the weights of one block for one replica's images. A training step holds about
# three arrays of their size (before the softmax, behind it, and a gradient), so this is
# three quarters of the 16 GiB of a TPU v3 core.
MAX_WEIGHTS_BYTES = 4 * 2**30
_EMBEDDING_DEVIATION = 0.01  # of θ's and φ's first kernels
# Exchanges after which the middle one of nine values has arrived at place 4 (Devillard
# 1998, "Fast median search").
_EXCHANGES = (
    *((1, 2), (4, 5), (7, 8), (0, 1), (3, 4), (6, 7), (1, 2), (4, 5), (7, 8), (0, 3)),
    *((5, 8), (4, 7), (3, 6), (1, 4), (2, 5), (4, 7), (4, 2), (6, 4), (4, 2)),
)


def check_memory(
    operation: str, place: str, num_images: int, height: int, width: int, way_out: str
) -> None:
    """Raises a `ModelError` if the weights of non-local means take more than
    `MAX_WEIGHTS_BYTES` for the images of one replica; `place` and `way_out` are for the message.
    """
    region, weights, _ = OPERATIONS[operation]
    if region != "all" or weights != "softmax":
        return  # x·(xᵀx) needs no weight per pair of positions
    positions = height * width
    needed = 4 * num_images * positions**2
    if needed > MAX_WEIGHTS_BYTES:
        raise ModelError(
            f"The denoising block {operation!r} of {place} compares all {positions:,} positions of"
            f" a map of {height} × {width} with each other: for {num_images} images"
            f" {needed / 2**30:,.1f} GiB of weights, but at most {MAX_WEIGHTS_BYTES / 2**30:g} GiB"
            f" are possible; {way_out}."
        )


def denoise(
    operation: str,
    x: tf.Tensor,
    theta: Optional[tf.Tensor] = None,
    phi: Optional[tf.Tensor] = None,
) -> tf.Tensor:
    """Averages each position of x [batch, height, width, channels] with others, by weights of θ
    and φ, if there are these.

    At the edges a window has fewer positions; the median repeats those at the edge.
    """
    region, weights, _ = OPERATIONS[operation]
    if weights == "median":
        return _median(*_window(_repeat_edges(x)))
    if weights == "equal":
        return tf.cast(tf.nn.avg_pool2d(tf.cast(x, tf.float32), 3, 1, "SAME"), x.dtype)
    theta = x if theta is None else theta
    phi = x if phi is None else phi
    average = _average_over_all if region == "all" else _average_over_window
    return average(x, theta, phi, weights)


def _average_over_all(x, theta, phi, weights: str) -> tf.Tensor:
    x_rows, theta_rows, phi_rows = (_as_rows(part) for part in (x, theta, phi))
    if weights == "softmax":
        products = tf.linalg.matmul(theta_rows, phi_rows, transpose_b=True)
        # In float32: over thousands of positions bfloat16 keeps no sum of 1.
        shares = tf.nn.softmax(tf.cast(products, tf.float32) / math.sqrt(theta.shape[-1]))
        averaged = tf.linalg.matmul(tf.cast(shares, x.dtype), x_rows)
    else:
        # θ(φᵀx) instead of (θφᵀ)x: channels² numbers instead of positions².
        mixed = tf.linalg.matmul(phi_rows, x_rows, transpose_a=True)
        count = tf.cast(tf.shape(x_rows)[1], tf.float32)
        mixed = tf.cast(tf.cast(mixed, tf.float32) / count, x.dtype)
        averaged = tf.linalg.matmul(theta_rows, mixed)
    shape = tf.shape(x) if None in x.shape[1:] else [-1, *x.shape[1:]]
    return tf.reshape(averaged, shape)


def _as_rows(x: tf.Tensor) -> tf.Tensor:
    """[batch, height, width, channels] → [batch, height · width, channels]."""
    height, width, channels = x.shape[1:]
    if height is None or width is None:
        shape = tf.shape(x)
        return tf.reshape(x, [shape[0], shape[1] * shape[2], channels])
    return tf.reshape(x, [-1, height * width, channels])


def _average_over_window(x, theta, phi, weights: str) -> tf.Tensor:
    is_inside = _window(_pad(tf.ones_like(x[:1, :, :, :1], tf.float32)))
    neighbours = _window(_pad(phi))
    products = [
        tf.reduce_sum(tf.cast(theta, tf.float32) * tf.cast(other, tf.float32), -1, keepdims=True)
        for other in neighbours
    ]
    if weights == "softmax":
        scale = math.sqrt(theta.shape[-1])
        logits = [
            tf.where(inside > 0, product / scale, -math.inf)
            for product, inside in zip(products, is_inside)
        ]
        shares = tf.unstack(tf.nn.softmax(tf.stack(logits, -1)), axis=-1)
    else:
        count = tf.add_n(is_inside)
        shares = [product / count for product in products]  # a neighbour outside is zero
    averaged = tf.add_n(
        [share * tf.cast(other, tf.float32) for share, other in zip(shares, _window(_pad(x)))]
    )
    return tf.cast(averaged, x.dtype)


def _pad(x: tf.Tensor) -> tf.Tensor:
    return tf.pad(x, [[0, 0], [1, 1], [1, 1], [0, 0]])


def _repeat_edges(x: tf.Tensor) -> tf.Tensor:
    x = tf.concat([x[:, :1], x, x[:, -1:]], 1)
    return tf.concat([x[:, :, :1], x, x[:, :, -1:]], 2)


def _window(padded: tf.Tensor) -> list[tf.Tensor]:
    """Returns the nine neighbours of every position, each of x's shape."""
    ends = [-2, -1, None]
    return [padded[:, y : ends[y], x : ends[x]] for y in range(3) for x in range(3)]


@tf.custom_gradient
def _median(*values: tf.Tensor) -> tf.Tensor:
    """Returns the middle one of nine, elementwise."""
    places = list(values)
    for low, high in _EXCHANGES:
        pair = places[low], places[high]
        places[low], places[high] = tf.minimum(*pair), tf.maximum(*pair)
    median = places[4]

    def gradient(upstream):
        # In equal parts to those that are the median: behind a relu many are, zero.
        is_median = [tf.cast(tf.equal(value, median), tf.float32) for value in values]
        part = tf.cast(upstream, tf.float32) / tf.add_n(is_median)
        return [tf.cast(part * share, median.dtype) for share in is_median]

    return median, gradient


class DenoisingBlock(keras.layers.Layer):
    """x + norm(1×1(denoised x)), of x with `filters` channels."""

    def __init__(self, operation: str, filters: int, norms: dict, name: str, **kwargs):
        super().__init__(name=name, **kwargs)
        dtype = kwargs.get("dtype")
        self.operation = operation
        self.theta = self.phi = None
        if OPERATIONS[operation][-1]:
            self.theta, self.phi = (
                Convolution(
                    max(1, filters // 2),
                    1,
                    initializer=keras.initializers.RandomNormal(stddev=_EMBEDDING_DEVIATION),
                    name=embedding,
                    dtype=dtype,
                )
                for embedding in ("embedding_theta", "embedding_phi")
            )
        self.convolution = Convolution(filters, 1, name="conv2d", dtype=dtype)
        self.norm = DualBatchNormalization(
            name="batch_normalization", dtype=dtype, gamma_initializer="zeros", **norms
        )

    def build(self, input_shape):
        build_in_scopes([(self.theta, input_shape), (self.phi, input_shape)])
        build_steps([(self.convolution, self.norm, None)], input_shape)
        self.built = True

    def call(self, inputs, training=False):
        if None not in inputs.shape[:3]:
            num_images, height, width = inputs.shape[:3]
            way_out = "take fewer images at once, smaller ones, or 'non_local_dot'"
            check_memory(self.operation, self.name, num_images, height, width, way_out)
        embeddings = [] if self.theta is None else [self.theta(inputs), self.phi(inputs)]
        denoised = denoise(self.operation, inputs, *embeddings)
        outputs, _ = run_steps([(self.convolution, self.norm, None)], denoised, training)
        return inputs + outputs
