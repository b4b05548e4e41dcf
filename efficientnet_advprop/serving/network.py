"""The network as it is served: constants only, batch norms inside the convolutions,
main branch, float32.

    network = InferenceNetwork(model, image_size=224)
    # inside a tf.function: {"logits": …, "pooled_features": …, "reduction_1": …, …}
    endpoints = network(images)

Why constants: a constant kernel lets oneDNN keep its reordered copy from call to call,
and Grappler join convolution, bias and activation into one kernel; behind a variable,
both happen anew at every call or not at all.
"""

import dataclasses
import re
from typing import Optional, Sequence, Union

import numpy as np
import tensorflow as tf

from efficientnet_advprop.models.activations import plain_value
from efficientnet_advprop.models.denoising import denoise
from efficientnet_advprop.models.end_points import names_of_blocks
from efficientnet_advprop.models.layers import (
    FusedMBConvBlock,
    GatedActivation,
    MBConvBlock,
)
from efficientnet_advprop.models.network import NORMALIZATIONS, BlockNetwork
from efficientnet_advprop.models.resnet import BottleneckBlock
from efficientnet_advprop.models.routed_layers import (
    RoutedDepthwiseConvolution,
    convolve_depthwise,
    convolve_pointwise,
)


@dataclasses.dataclass(frozen=True)
class Affine:
    """A linear operation's weights, a kernel and what is added afterwards per output
    channel; and a convolution's geometry.
    """

    kernel: np.ndarray
    bias: np.ndarray
    strides: int = 1
    padding: Union[str, list] = "SAME"


class FoldedMBConv:
    """An MBConv block with its batch norms folded; a routed one mixes its folded
    experts.
    """

    def __init__(self, layer: MBConvBlock):
        self.residual = layer.block.residual
        self.routing = None if layer.routing is None else _matrix(layer.routing)
        fold, fold_depthwise = (
            (_fold, _fold_depthwise) if self.routing is None else (_fold_experts,) * 2
        )
        self.expand = None
        if layer.expand is not None:
            self.expand = fold(layer.expand, layer.expand_norm)
            self.expand_activation = plain_value(layer.expand_activation)
        self.depthwise = fold_depthwise(layer.depthwise, layer.depthwise_norm)
        self.squeeze = self.excite = None
        depthwise_activation = layer.depthwise_activation
        if isinstance(depthwise_activation, GatedActivation):
            self.squeeze = _matrix(depthwise_activation.reduce)
            self.excite = _matrix(depthwise_activation.expand)
            self.squeezed_activation = plain_value(depthwise_activation.squeezed_activation)
            depthwise_activation = depthwise_activation.activation
        self.depthwise_activation = plain_value(depthwise_activation)
        self.project = fold(layer.project, layer.project_norm)

    def __call__(self, inputs: tf.Tensor) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        """The block's output, and the end points inside of it by their names."""
        routing = None
        if self.routing is not None:
            routing = tf.sigmoid(_multiply(tf.reduce_mean(inputs, [1, 2]), self.routing))
        x = inputs
        if self.expand is not None:
            x = self.expand_activation(_convolve_pointwise(x, self.expand, routing))
        x = self.depthwise_activation(_convolve_depthwise(x, self.depthwise, routing))
        if self.squeeze is not None:
            squeezed = self.squeezed_activation(_multiply(tf.reduce_mean(x, [1, 2]), self.squeeze))
            x = x * tf.sigmoid(_multiply(squeezed, self.excite))[:, None, None, :]
        output = _convolve_pointwise(x, self.project, routing)
        return output + inputs if self.residual else output, {"expansion_output": x}


class FoldedFusedMBConv:
    """A block with one full convolution in place of expansion and depthwise one, its
    batch norms folded.
    """

    def __init__(self, layer: FusedMBConvBlock):
        self.residual = layer.block.residual
        self.expand = None
        if layer.expand is not None:
            self.expand = _fold(layer.expand, layer.expand_norm)
        self.activation = plain_value(layer.expand_activation or layer.project_activation)
        self.project = _fold(layer.project, layer.project_norm)

    def __call__(self, inputs: tf.Tensor) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        """As `FoldedMBConv`."""
        if self.expand is None:
            x, output = inputs, self.activation(_convolve(inputs, self.project))
        else:
            x = self.activation(_convolve(inputs, self.expand))
            output = _convolve(x, self.project)
        return output + inputs if self.residual else output, {"expansion_output": x}


class FoldedBottleneck:
    """A ResNet's block with its batch norms folded."""

    def __init__(self, layer: BottleneckBlock):
        self.reduce_activation = plain_value(layer.reduce_activation)
        self.spatial_activation = plain_value(layer.spatial_activation)
        self.output_activation = plain_value(layer.output_activation)
        self.shortcut = (
            None if layer.shortcut is None else _fold(layer.shortcut, layer.shortcut_norm)
        )
        self.reduce = _fold(layer.reduce, layer.reduce_norm)
        self.spatial = _fold(layer.spatial, layer.spatial_norm)
        self.expand = _fold(layer.expand, layer.expand_norm)
        self.denoising = self.theta = self.phi = self.denoised = None
        if layer.denoising is not None:
            self.denoising = layer.denoising.operation
            self.denoised = _fold(layer.denoising.convolution, layer.denoising.norm)
            if self.denoising.embedded:
                self.theta = _without_norm(layer.denoising.theta)
                self.phi = _without_norm(layer.denoising.phi)

    def __call__(self, inputs: tf.Tensor) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        """As `FoldedMBConv`; nothing inside has a name."""
        shortcut = inputs if self.shortcut is None else _convolve(inputs, self.shortcut)
        x = self.reduce_activation(_convolve(inputs, self.reduce))
        x = self.spatial_activation(_convolve(x, self.spatial))
        x = self.output_activation(_convolve(x, self.expand) + shortcut)
        if self.denoising is not None:
            embeddings = []
            if self.theta is not None:
                embeddings = [_convolve(x, self.theta), _convolve(x, self.phi)]
            x = x + _convolve(denoise(self.denoising, x, *embeddings), self.denoised)
        return x, {}


_FOLDED = {
    MBConvBlock: FoldedMBConv,
    FusedMBConvBlock: FoldedFusedMBConv,
    BottleneckBlock: FoldedBottleneck,
}


def _fold(convolution, norm) -> Affine:
    scale, offset = (tensor.numpy() for tensor in norm.affine())
    return Affine(
        convolution.kernel.numpy() * scale, offset, convolution.strides, convolution.padding
    )


def _without_norm(convolution) -> Affine:
    kernel = convolution.kernel.numpy()
    bias = np.zeros(kernel.shape[-1], np.float32)
    return Affine(kernel, bias, convolution.strides, convolution.padding)


def _fold_depthwise(convolution, norm) -> Affine:
    scale, offset = (tensor.numpy() for tensor in norm.affine())
    return Affine(
        convolution.depthwise_kernel.numpy() * scale[:, None], offset, convolution.strides
    )


def _fold_experts(convolution, norm) -> Affine:
    """Kernels [experts, …, filters]: [experts, in, out] pointwise, [experts, size,
    size, channels] depthwise.
    """
    scale, offset = (tensor.numpy() for tensor in norm.affine())
    if isinstance(convolution, RoutedDepthwiseConvolution):
        shape = [convolution.kernel_size] * 2 + [len(scale)]
        strides = convolution.strides
    else:
        shape, strides = [-1, len(scale)], 1
    experts = convolution.experts.numpy().reshape(convolution.num_experts, *shape)
    return Affine(experts * scale, offset, strides)


def _matrix(layer) -> Affine:
    return Affine(layer.kernel.numpy().reshape(layer.kernel.shape[-2:]), layer.bias.numpy())


def _convolve(x: tf.Tensor, weights: Affine) -> tf.Tensor:
    return tf.nn.bias_add(
        tf.nn.conv2d(x, weights.kernel, weights.strides, weights.padding), weights.bias
    )


def _convolve_pointwise(x: tf.Tensor, weights: Affine, routing: Optional[tf.Tensor]) -> tf.Tensor:
    if routing is None:
        return _convolve(x, weights)
    return tf.nn.bias_add(convolve_pointwise(x, _mix(weights, routing)), weights.bias)


def _convolve_depthwise(x: tf.Tensor, weights: Affine, routing: Optional[tf.Tensor]) -> tf.Tensor:
    if routing is None:
        strides = [1, weights.strides, weights.strides, 1]
        outputs = tf.nn.depthwise_conv2d(x, weights.kernel, strides, weights.padding)
    else:
        outputs = convolve_depthwise(x, _mix(weights, routing), weights.strides)
    return tf.nn.bias_add(outputs, weights.bias)


def _mix(weights: Affine, routing: tf.Tensor) -> tf.Tensor:
    """A kernel per image, from experts and [batch, experts] shares."""
    num_experts, *shape = weights.kernel.shape
    mixed = tf.linalg.matmul(routing, weights.kernel.reshape(num_experts, -1))
    return tf.reshape(mixed, [-1, *shape])


def _multiply(x: tf.Tensor, weights: Affine) -> tf.Tensor:
    return tf.nn.bias_add(tf.linalg.matmul(x, weights.kernel), weights.bias)


class InferenceNetwork:
    """A copy of a model's main branch in inference mode, whose calls create constants.

    Args:
        model: the network to copy; later changes of it are not seen.
        image_size: pixels of the sides of its input; fixed, so that every shape but the
            batch's is known to graph compilers.

    Attributes:
        num_weights: how many numbers its constants hold.
    """

    def __init__(self, model: BlockNetwork, image_size: int):
        self.num_classes, self.image_size = model.num_classes, image_size
        self.probabilities = model.probabilities
        self._mean, deviation = (
            np.float32(values) for values in NORMALIZATIONS[model.normalization]
        )
        stem = _fold(model.stem.convolution, model.stem.norm)
        # Only the deviation: the mean, in a bias, would be wrong at the image's edges,
        # where the padding is zero.
        self._stem = dataclasses.replace(stem, kernel=stem.kernel / deviation[:, None])
        self._pool = model.pool if model.stem_is_a_reduction else None
        self._stem_activation = plain_value(model.stem.activation)
        self._blocks = [_FOLDED[type(part)](part) for part in model.blocks]
        strides = [part.block.strides for part in model.blocks]
        self._names_of_blocks = names_of_blocks(strides, int(model.stem_is_a_reduction))
        self._head = None
        if model.head.below_classifier:
            self._head = _fold(model.head.convolution, model.head.norm)
            self._head_activation = plain_value(model.head.activation)
        self._classifier = _matrix(model.head.classifier)
        of_blocks = [part for block in self._blocks for part in vars(block).values()]
        weights = [
            part
            for part in [self._stem, self._head, self._classifier, *of_blocks]
            if isinstance(part, Affine)
        ]
        self.num_weights = sum(part.kernel.size + part.bias.size for part in weights)

    def __call__(self, images: tf.Tensor, more: Sequence[str] = ()) -> dict[str, tf.Tensor]:
        """Runs the network.

        Args:
            images: float32 [batch, image_size, image_size, 3], pixels in [0, 255], RGB.
            more: names of end points that are wanted too.

        Returns:
            "logits" [batch, num_classes], "pooled_features" [batch, channels] and the
            feature maps "reduction_1" … "reduction_5" [batch, h, w, channels] at 1/2 …
            1/32 of the resolution, and `more`; all float32.
        """
        end_points = self.end_points(images)
        kept = [name for name in end_points if re.fullmatch(r"reduction_\d", name)]
        kept += ["pooled_features", *more]
        return {**{name: end_points[name] for name in kept}, "logits": end_points["head"]}

    def answers(self, images: tf.Tensor, end_point: Optional[str] = None) -> dict[str, tf.Tensor]:
        """What a file for inference answers: "logits" and "probabilities", or one end
        point as "features".
        """
        if end_point is not None:
            return {"features": self.end_points(images)[end_point]}
        logits = self(images)["logits"]
        return {"logits": logits, "probabilities": self.probabilities(logits)}

    @property
    def end_point_names(self) -> list[str]:
        """The names of `end_points`."""
        spec = tf.TensorSpec([1, self.image_size, self.image_size, 3], tf.float32)
        return list(
            tf.function(self.end_points, autograph=False)
            .get_concrete_function(spec)
            .structured_outputs
        )

    def end_points(self, images: tf.Tensor) -> dict[str, tf.Tensor]:
        """All that `Network.features` has, by the same names."""
        x = self._stem_activation(_convolve(images - self._mean, self._stem))
        found = {"stem": x}
        if self._pool is not None:
            found["reduction_1"] = x
            x = self._pool(x)
        for run_block, names in zip(self._blocks, self._names_of_blocks):
            x, inside = run_block(x)
            for name in names:
                found[name] = x
                found.update({f"{name}/{part}": value for part, value in inside.items()})
        found["features"] = x
        if self._head is not None:
            found["head_1x1"] = x = self._head_activation(_convolve(x, self._head))
        found["pooled_features"] = found["global_pool"] = tf.reduce_mean(x, [1, 2])
        found["head"] = _multiply(found["pooled_features"], self._classifier)
        return found
