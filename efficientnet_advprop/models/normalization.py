"""Batch normalization with one main and any number of auxiliary branches: AdvProp's separation of clean from adversarial
images.

    norm = DualBatchNormalization(aux_branches=1)
    clean = norm(x, training=True, branch="main")
    adversarial = norm(x_adversarial, training=True, branch="aux")

Every branch has its own gamma, beta, moving mean and moving variance (the paper: the distributions differ, so must the
statistics); inference uses "main" alone, and the auxiliary branches can be thrown away after training.
"""

from typing import Optional

import tensorflow as tf

from tpu_utils import reduction

MAIN = "main"


def branch_names(aux_branches: int) -> tuple[str, ...]:
    """The names of a layer's branches, in order: "main", "aux", "aux_2", … ("aux_1" is accepted as another word for "aux")."""
    return (MAIN,) + tuple("aux" if index == 1 else f"aux_{index}" for index in range(1, aux_branches + 1))


def branch_index(branch: str, aux_branches: int) -> int:
    """The position of `branch`: 0 for main, i for the i-th auxiliary one.

    Raises:
        ValueError: there is no such branch.
    """
    names = branch_names(aux_branches)
    name = "aux" if branch == "aux_1" else branch
    if name not in names:
        raise ValueError(
            f"`branch` is {branch!r}, but with `aux_branches`={aux_branches} there is only {', '.join(map(repr, names))}. "
            "Name one of these, or build with more auxiliary branches."
        )
    return names.index(name)


def official_group_size(num_replicas: int) -> int:
    """How many replicas share their batch moments in the official code: none up to 8, then max(8, num_replicas / 8)."""
    return 1 if num_replicas <= 8 else max(8, num_replicas // 8)


@tf.keras.utils.register_keras_serializable("efficientnet_advprop")
class DualBatchNormalization(tf.keras.layers.BatchNormalization):
    """Batch normalization over the last axis, with a main and `aux_branches` auxiliary sets of parameters and statistics.

    It is a `tf.keras.layers.BatchNormalization` whose own variables are the main branch, so that a checkpoint of it restores
    into a plain one; the auxiliary branches are children named "aux", "aux_2", …, and only their variables carry "aux" in
    their names.

    The moving variance follows the batch's biased variance (division by N), as in the official TPU code and unlike Keras's
    fused batch norm. A layer with `trainable=False` normalises with running statistics whatever `training` says, like Keras's.

    Args:
        aux_branches: number of auxiliary branches, ≥ 0; 0 is a plain batch norm.
        momentum: of the moving statistics, in [0, 1): moving ← momentum·moving + (1 − momentum)·batch.
        epsilon: added to the variance, > 0.
        group_size: replicas that share the batch moments in training: those with consecutive numbers; must divide their number.
            1: each has its own; None: `official_group_size`.
        **kwargs: `center`, `scale`, initializers, regularizers, constraints, `trainable`, `dtype` and `name`, as in
            `tf.keras.layers.BatchNormalization`; every branch gets the same.

    Raises:
        ValueError: an argument is out of its range, or `axis` is not the last one.
    """

    def __init__(
        self, aux_branches: int = 1, momentum: float = 0.99, epsilon: float = 1e-3, group_size: Optional[int] = None, **kwargs
    ):
        if not isinstance(aux_branches, int) or aux_branches < 0:
            raise ValueError(f"`aux_branches` is {aux_branches!r}, but must be a whole number ≥ 0; 0 is a plain batch norm.")
        if not 0.0 <= momentum < 1.0:
            raise ValueError(f"`momentum` is {momentum!r}, but must lie in [0, 1); 0.99 is the official value.")
        if epsilon <= 0.0:
            raise ValueError(f"`epsilon` is {epsilon!r}, but must be positive; 1e-3 is the official value.")
        if group_size is not None and (not isinstance(group_size, int) or group_size < 1):
            raise ValueError(f"`group_size` is {group_size!r}, but must be a whole number ≥ 1, or None for the official rule.")
        for option in ("renorm", "virtual_batch_size", "adjustment", "fused", "synchronized"):
            if option in kwargs:
                raise ValueError(f"`{option}` is given, but this layer has no such option; leave it out.")
        super().__init__(momentum=momentum, epsilon=epsilon, **kwargs)
        self.aux_branches, self.group_size = aux_branches, group_size
        shared = super().get_config()
        self.aux = [tf.keras.layers.BatchNormalization(**{**shared, "name": name}) for name in branch_names(aux_branches)[1:]]

    def get_config(self):
        return {**super().get_config(), "aux_branches": self.aux_branches, "group_size": self.group_size}

    def build(self, input_shape):
        rank = len(input_shape)
        axis = list(self.axis) if isinstance(self.axis, (list, tuple)) else [self.axis]
        if axis not in ([-1], [rank - 1]):
            raise ValueError(f"`axis` is {self.axis!r}, but only the last axis can be normalised; put the channels last.")
        super().build(input_shape)
        for child in self.aux:  # all of them now: a branch first used inside a traced step could not create its variables there
            with tf.name_scope(child.name):
                child.build(input_shape)

    def variables_of(self, branch: str) -> tf.keras.layers.BatchNormalization:
        """The layer that holds `gamma`, `beta`, `moving_mean` and `moving_variance` of a branch: this one for "main"."""
        index = branch_index(branch, self.aux_branches)
        return self if index == 0 else self.aux[index - 1]

    def affine(self, branch: str = MAIN) -> tuple[tf.Tensor, tf.Tensor]:
        """The inference-mode batch norm as y = scale·x + offset, from the running statistics.

        Returns:
            scale and offset, float32 [channels].
        """
        held = self.variables_of(branch)
        scale = tf.math.rsqrt(held.moving_variance + self.epsilon)
        if held.gamma is not None:
            scale *= held.gamma
        offset = -held.moving_mean * scale
        if held.beta is not None:
            offset += held.beta
        return scale, offset

    def call(self, inputs, training=False, branch: str = MAIN, update_statistics: bool = True):
        """Normalises.

        Args:
            inputs: float tensor [batch, …, channels].
            training: Python bool; True normalises with the batch's moments, False with the branch's running statistics.
            branch: "main", "aux" (= "aux_1"), "aux_2", …
            update_statistics: with `training=True`, whether the batch's moments move the branch's running statistics.

        Returns:
            A tensor of the inputs' shape, in the layer's compute dtype.

        Raises:
            ValueError: there is no such branch, or `training` is a tensor.
        """
        if tf.is_tensor(training):
            raise ValueError(
                "`training` is a tensor, but which statistics are used must be known when tracing; pass a Python bool."
            )
        inputs = tf.cast(inputs, self.compute_dtype)
        held = self.variables_of(branch)
        if not (training and self.trainable):
            scale, offset = self.affine(branch)
            return inputs * tf.cast(scale, inputs.dtype) + tf.cast(offset, inputs.dtype)
        group_size = official_group_size(reduction.num_replicas()) if self.group_size is None else self.group_size
        if group_size > 1:
            outputs, mean, variance = self._normalize_in_group(inputs, held, group_size)
        else:
            outputs, mean, variance = self._normalize_fused(inputs, held)
        if update_statistics:
            held.moving_mean.assign_sub((held.moving_mean - mean) * (1.0 - self.momentum))
            held.moving_variance.assign_sub((held.moving_variance - variance) * (1.0 - self.momentum))
        return outputs

    def _parameters(self, held):
        """Gamma and beta, float32 [channels]; ones and zeros where the layer has none."""
        gamma = tf.ones_like(held.moving_variance) if held.gamma is None else tf.convert_to_tensor(held.gamma)
        beta = tf.zeros_like(held.moving_mean) if held.beta is None else tf.convert_to_tensor(held.beta)
        return gamma, beta

    def _normalize_fused(self, inputs, held):
        """This replica's own moments, by TensorFlow's fused operation; its N/(N − 1) variance is put right afterwards."""
        gamma, beta = self._parameters(held)
        channels = inputs.shape[-1]
        images = inputs if inputs.shape.rank == 4 else tf.reshape(inputs, [-1, 1, 1, channels])
        outputs, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
            x=images, scale=gamma, offset=beta, mean=tf.zeros([channels]), variance=tf.ones([channels]), epsilon=self.epsilon
        )
        count = tf.cast(tf.size(inputs) // channels, tf.float32)
        if inputs.shape.rank != 4:
            outputs = tf.reshape(outputs, tf.shape(inputs))
        return outputs, mean, variance * (tf.maximum(count - 1.0, 1.0) / count)

    def _normalize_in_group(self, inputs, held, group_size):
        """Moments over a group of replicas, from the means of x and x² in float32: official `TpuBatchNormalization`, one
        reduction."""
        gamma, beta = self._parameters(held)
        values = tf.cast(inputs, tf.float32)
        axes = list(range(inputs.shape.rank - 1))
        own_mean, own_variance = tf.nn.moments(values, axes)
        moments = reduction.mean_over_replicas(
            tf.stack([own_mean, own_variance + tf.square(own_mean)]), group_size
        )
        mean = moments[0]
        variance = tf.nn.relu(moments[1] - tf.square(mean))  # rounding can leave it below zero where a channel is constant
        scale = tf.math.rsqrt(variance + self.epsilon) * gamma
        outputs = values * scale + (beta - mean * scale)
        return tf.cast(outputs, inputs.dtype), mean, variance
