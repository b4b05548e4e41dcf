"""The network as it is served: constants only, batch norms inside the convolutions, main branch, float32.

    network = InferenceNetwork(model, image_size=224)
    endpoints = network(images)                 # inside a tf.function: {"logits": …, "pooled_features": …, "reduction_1": …, …}

Why constants: a constant kernel lets oneDNN keep its reordered copy from call to call, and Grappler join convolution,
bias and activation into one kernel; behind a variable, both happen anew at every call or not at all.
"""

import dataclasses
from typing import Union

import numpy as np
import tensorflow as tf

from efficientnet_advprop.models.layers import MBConvBlock
from efficientnet_advprop.models.network import NORMALIZATIONS, Network
from efficientnet_advprop.models.resnet import BottleneckBlock


@dataclasses.dataclass(frozen=True)
class Affine:
    """A linear operation's weights, a kernel and what is added afterwards per output channel; and a convolution's geometry."""

    kernel: np.ndarray
    bias: np.ndarray
    strides: int = 1
    padding: Union[str, list] = "SAME"


class FoldedMBConv:
    """An MBConv block with its batch norms folded."""

    def __init__(self, layer: MBConvBlock):
        self.residual = layer.block.residual
        self.expand = None if layer.expand is None else _fold(layer.expand, layer.expand_norm)
        self.depthwise = _fold_depthwise(layer.depthwise, layer.depthwise_norm)
        self.squeeze, self.excite = (
            _matrix(layer.gated_swish.reduce),
            _matrix(layer.gated_swish.expand),
        )
        self.project = _fold(layer.project, layer.project_norm)

    def __call__(self, inputs: tf.Tensor) -> tf.Tensor:
        x = inputs
        if self.expand is not None:
            x = _swish(_convolve(x, self.expand))
        strides = [1, self.depthwise.strides, self.depthwise.strides, 1]
        x = tf.nn.depthwise_conv2d(x, self.depthwise.kernel, strides, self.depthwise.padding)
        x = _swish(tf.nn.bias_add(x, self.depthwise.bias))
        gates = tf.sigmoid(
            _multiply(_swish(_multiply(tf.reduce_mean(x, [1, 2]), self.squeeze)), self.excite)
        )
        x = _convolve(x * gates[:, None, None, :], self.project)
        return x + inputs if self.residual else x


class FoldedBottleneck:
    """A ResNet's block with its batch norms folded."""

    def __init__(self, layer: BottleneckBlock):
        self.shortcut = (
            None if layer.shortcut is None else _fold(layer.shortcut, layer.shortcut_norm)
        )
        self.reduce = _fold(layer.reduce, layer.reduce_norm)
        self.spatial = _fold(layer.spatial, layer.spatial_norm)
        self.expand = _fold(layer.expand, layer.expand_norm)

    def __call__(self, inputs: tf.Tensor) -> tf.Tensor:
        shortcut = inputs if self.shortcut is None else _convolve(inputs, self.shortcut)
        x = tf.nn.relu(_convolve(inputs, self.reduce))
        x = tf.nn.relu(_convolve(x, self.spatial))
        return tf.nn.relu(_convolve(x, self.expand) + shortcut)


_FOLDED = {MBConvBlock: FoldedMBConv, BottleneckBlock: FoldedBottleneck}


def _fold(convolution, norm) -> Affine:
    scale, offset = (tensor.numpy() for tensor in norm.affine())
    return Affine(
        convolution.kernel.numpy() * scale, offset, convolution.strides, convolution.padding
    )


def _fold_depthwise(convolution, norm) -> Affine:
    scale, offset = (tensor.numpy() for tensor in norm.affine())
    return Affine(
        convolution.depthwise_kernel.numpy() * scale[:, None], offset, convolution.strides
    )


def _matrix(layer) -> Affine:
    return Affine(layer.kernel.numpy().reshape(layer.kernel.shape[-2:]), layer.bias.numpy())


def _swish(x: tf.Tensor) -> tf.Tensor:
    # The plain product: `tf.nn.silu` brings a custom gradient, whose IdentityN hides the pattern from some graph compilers.
    return x * tf.sigmoid(x)


def _convolve(x: tf.Tensor, weights: Affine) -> tf.Tensor:
    return tf.nn.bias_add(
        tf.nn.conv2d(x, weights.kernel, weights.strides, weights.padding), weights.bias
    )


def _multiply(x: tf.Tensor, weights: Affine) -> tf.Tensor:
    return tf.nn.bias_add(tf.linalg.matmul(x, weights.kernel), weights.bias)


class InferenceNetwork:
    """A copy of a model's main branch in inference mode, whose calls create constants.

    Args:
        model: the network to copy; later changes of it are not seen.
        image_size: pixels of the sides of its input; fixed, so that every shape but the batch's is known to graph compilers.

    Attributes:
        num_weights: how many numbers its constants hold.
    """

    def __init__(self, model: Network, image_size: int):
        self.num_classes, self.image_size = model.num_classes, image_size
        self._mean, deviation = (
            np.float32(values) for values in NORMALIZATIONS[model.normalization]
        )
        stem = _fold(model.stem.convolution, model.stem.norm)
        # Only the deviation: the mean, in a bias, would be wrong at the image's edges, where the padding is zero.
        self._stem = dataclasses.replace(stem, kernel=stem.kernel / deviation[:, None])
        self._pool = model.pool if model.stem_is_a_reduction else None
        self._activation = tf.nn.relu if model.stem_is_a_reduction else _swish
        self._blocks = [_FOLDED[type(part)](part) for part in model.blocks]
        self._strides = [part.block.strides for part in model.blocks]
        self._head = _fold(*model.head.below_classifier) if model.head.below_classifier else None
        self._classifier = _matrix(model.head.classifier)
        of_blocks = [part for block in self._blocks for part in vars(block).values()]
        weights = [
            part
            for part in [self._stem, self._head, self._classifier, *of_blocks]
            if isinstance(part, Affine)
        ]
        self.num_weights = sum(part.kernel.size + part.bias.size for part in weights)

    def __call__(self, images: tf.Tensor) -> dict[str, tf.Tensor]:
        """Runs the network.

        Args:
            images: float32 [batch, image_size, image_size, 3], pixels in [0, 255], RGB.

        Returns:
            "logits" [batch, num_classes], "pooled_features" [batch, channels] and the feature maps "reduction_1" …
            "reduction_5" [batch, h, w, channels] at 1/2 … 1/32 of the resolution; all float32.
        """
        x = self._activation(_convolve(images - self._mean, self._stem))
        endpoints = {}
        if self._pool is not None:
            endpoints["reduction_1"] = x
            x = self._pool(x)
        for run_block, strides_above in zip(self._blocks, [*self._strides[1:], 2]):
            x = run_block(x)
            if strides_above > 1:
                endpoints[f"reduction_{len(endpoints) + 1}"] = x
        if self._head is not None:
            x = self._activation(_convolve(x, self._head))
        endpoints["pooled_features"] = tf.reduce_mean(x, [1, 2])
        endpoints["logits"] = _multiply(endpoints["pooled_features"], self._classifier)
        return endpoints
