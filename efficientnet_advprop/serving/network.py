"""The network as it is served: constants only, batch norms inside the convolutions, main branch, float32.

    network = InferenceNetwork(model, image_size=224)
    endpoints = network(images)                 # inside a tf.function: {"logits": …, "pooled_features": …, "reduction_1": …, …}

Why constants: a constant kernel lets oneDNN keep its reordered copy from call to call, and Grappler join convolution,
bias and activation into one kernel; behind a variable, both happen anew at every call or not at all.
"""

import dataclasses
from typing import Optional

import numpy as np
import tensorflow as tf

from efficientnet_advprop.models import EfficientNet
from efficientnet_advprop.models.efficientnet import NORMALIZATIONS
from efficientnet_advprop.models.scaling import Block


@dataclasses.dataclass(frozen=True)
class Affine:
    """A linear operation's weights: a kernel and what is added afterwards, per output channel."""

    kernel: np.ndarray
    bias: np.ndarray


@dataclasses.dataclass(frozen=True)
class FoldedBlock:
    """An MBConv block with its batch norms folded."""

    block: Block
    expand: Optional[Affine]
    depthwise: Affine
    squeeze: Affine
    excite: Affine
    project: Affine


def _fold(convolution, norm) -> Affine:
    scale, offset = (tensor.numpy() for tensor in norm.affine())
    return Affine(convolution.kernel.numpy() * scale, offset)


def _fold_depthwise(convolution, norm) -> Affine:
    scale, offset = (tensor.numpy() for tensor in norm.affine())
    return Affine(convolution.depthwise_kernel.numpy() * scale[:, None], offset)


def _matrix(layer) -> Affine:
    return Affine(layer.kernel.numpy().reshape(layer.kernel.shape[-2:]), layer.bias.numpy())


def _swish(x: tf.Tensor) -> tf.Tensor:
    # The plain product: `tf.nn.silu` brings a custom gradient, whose IdentityN hides the pattern from some graph compilers.
    return x * tf.sigmoid(x)


def _convolve(x: tf.Tensor, weights: Affine, strides: int = 1) -> tf.Tensor:
    return tf.nn.bias_add(tf.nn.conv2d(x, weights.kernel, strides, "SAME"), weights.bias)


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

    def __init__(self, model: EfficientNet, image_size: int):
        self.num_classes, self.image_size = model.num_classes, image_size
        self._mean, deviation = (np.float32(values) for values in NORMALIZATIONS[model.normalization])
        stem = _fold(model.stem.convolution, model.stem.norm)
        # Only the deviation: the mean, in a bias, would be wrong at the image's edges, where the padding is zero.
        self._stem = Affine(stem.kernel / deviation[:, None], stem.bias)
        self._blocks = [
            FoldedBlock(
                block=part.block,
                expand=None if part.expand is None else _fold(part.expand, part.expand_norm),
                depthwise=_fold_depthwise(part.depthwise, part.depthwise_norm),
                squeeze=_matrix(part.gated_swish.reduce),
                excite=_matrix(part.gated_swish.expand),
                project=_fold(part.project, part.project_norm),
            )
            for part in model.blocks
        ]
        self._head = _fold(model.head.convolution, model.head.norm)
        self._classifier = _matrix(model.head.classifier)
        of_blocks = [getattr(block, field.name) for block in self._blocks for field in dataclasses.fields(block)]
        weights = [part for part in [self._stem, self._head, self._classifier, *of_blocks] if isinstance(part, Affine)]
        self.num_weights = sum(part.kernel.size + part.bias.size for part in weights)

    def __call__(self, images: tf.Tensor) -> dict[str, tf.Tensor]:
        """Runs the network.

        Args:
            images: float32 [batch, image_size, image_size, 3], pixels in [0, 255], RGB.

        Returns:
            "logits" [batch, num_classes], "pooled_features" [batch, channels] and the feature maps "reduction_1" …
            "reduction_5" [batch, h, w, channels] at 1/2 … 1/32 of the resolution; all float32.
        """
        x = _swish(_convolve(images - self._mean, self._stem, strides=2))
        endpoints = {}
        for index, folded in enumerate(self._blocks):
            x = self._run_block(x, folded)
            if index + 1 == len(self._blocks) or self._blocks[index + 1].block.strides > 1:
                endpoints[f"reduction_{len(endpoints) + 1}"] = x
        endpoints["pooled_features"] = tf.reduce_mean(_swish(_convolve(x, self._head)), [1, 2])
        endpoints["logits"] = _multiply(endpoints["pooled_features"], self._classifier)
        return endpoints

    def _run_block(self, inputs: tf.Tensor, folded: FoldedBlock) -> tf.Tensor:
        x = inputs
        if folded.expand is not None:
            x = _swish(_convolve(x, folded.expand))
        strides = [1, folded.block.strides, folded.block.strides, 1]
        x = _swish(tf.nn.bias_add(tf.nn.depthwise_conv2d(x, folded.depthwise.kernel, strides, "SAME"), folded.depthwise.bias))
        gates = tf.sigmoid(_multiply(_swish(_multiply(tf.reduce_mean(x, [1, 2]), folded.squeeze)), folded.excite))
        x = _convolve(x * gates[:, None, None, :], folded.project)
        return x + inputs if folded.block.residual else x
