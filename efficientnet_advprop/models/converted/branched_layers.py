"""Keras's batch norms with auxiliary branches, which take the branch from the context
of the pass.

    # in all else `keras.layers.BatchNormalization`
    norm = BatchNormalization(aux_branches=1)
    with use_branch("aux"):
        outputs = norm(inputs, training=True)

They have their plain namesakes' class names, so that the weights of a converted model
are found under the same paths by a plain one. The main branch is the plain layer's own
arithmetic; auxiliary branches are plain layers, children in the list `aux`.
"""

import tensorflow as tf

from efficientnet_advprop.keras2 import keras
from efficientnet_advprop.models.normalization import BranchedNorm, build_copy
from efficientnet_advprop.runtime.branches import branch_index, branch_names
from efficientnet_advprop.runtime.pass_mode import current_pass
from tpu_utils import reduction, replica_runtime

PACKAGE = "efficientnet_advprop"


class _Branched(BranchedNorm):
    """Auxiliary branches for one of Keras's batch norms; `plain_class` is that one."""

    plain_class: type
    is_told = False  # called with training=False in a training pass: stays in inference mode

    def __init__(self, aux_branches: int = 1, **kwargs):
        super().__init__(**kwargs)
        self.aux = self.make_children(aux_branches)

    @property
    def num_replicas_together(self) -> int:
        """How many of the replicas that run the current step share their moments."""
        return replica_runtime.current().num_replicas if self.synchronized else 1

    def make_children(self, aux_branches):
        config = self.plain_config()
        children = []
        for name in branch_names(aux_branches)[1:]:
            child = self.plain_class.from_config({**config, "name": name})
            child.trainable = self.trainable
            children.append(child)
        return children

    def add_branches(self, aux_branches):
        super().add_branches(aux_branches)
        for child in self.aux:
            # The plain layer may have been told otherwise than its configuration says.
            child.fused = self.fused

    def plain_config(self) -> dict:
        """The configuration of the plain layer."""
        return super().get_config()

    def get_config(self):
        return {**self.plain_config(), "aux_branches": self.aux_branches}

    def build(self, input_shape):
        super().build(input_shape)
        for child in self.aux:
            build_copy(child, self)
            child.fused = self.fused

    def call(self, inputs, training=None, mask=None):
        mode = current_pass()
        index = branch_index(mode.branch, self.aux_branches)
        norm = self if index == 0 else self.aux[index - 1]
        norm.momentum = self.momentum  # also where it was set after the conversion
        if not mode.update_statistics and not mode.batch_moments:
            object.__setattr__(self, "is_told", training is not None and not training)
        of_batch = mode.batch_moments and not self.is_told
        if self.trainable and (of_batch or (training and not mode.update_statistics)):
            return self._normalize_with_batch_moments(norm, inputs, mask)
        if index == 0:
            return super().call(inputs, training=training, mask=mask)
        return norm(inputs, training=training, mask=mask)

    def _normalize_with_batch_moments(self, norm, inputs, mask):
        """What the plain layer does in training mode, but that nothing moves."""
        values = tf.cast(inputs, tf.float32)
        rank = values.shape.rank
        axes = [axis for axis in range(rank) if axis not in norm.axis]
        if mask is None:
            mean, variance = tf.nn.moments(values, axes, keepdims=True)
        else:
            weights = tf.cast(mask, tf.float32)
            weights = tf.reshape(
                weights, tf.concat([tf.shape(mask), tf.ones([rank - mask.shape.rank], tf.int32)], 0)
            )
            mean, variance = tf.nn.weighted_moments(values, axes, weights, keepdims=True)
        if self.synchronized and replica_runtime.current().num_replicas > 1:
            moments = reduction.mean_over_replicas(tf.stack([mean, variance + tf.square(mean)]))
            mean, variance = moments[0], tf.nn.relu(moments[1] - tf.square(moments[0]))
        broadcast = [size if axis in norm.axis else 1 for axis, size in enumerate(values.shape)]
        gamma, beta = (
            None if variable is None else tf.reshape(tf.cast(variable, tf.float32), broadcast)
            for variable in (norm.gamma, norm.beta)
        )
        outputs = tf.nn.batch_normalization(values, mean, variance, beta, gamma, norm.epsilon)
        return tf.cast(outputs, self.compute_dtype)


@keras.utils.register_keras_serializable(PACKAGE)
class BatchNormalization(_Branched, keras.layers.BatchNormalization):
    """`keras.layers.BatchNormalization` with `aux_branches` auxiliary branches, ≥ 0."""

    plain_class = keras.layers.BatchNormalization


@keras.utils.register_keras_serializable(PACKAGE)
class SyncBatchNormalization(_Branched, keras.layers.experimental.SyncBatchNormalization):
    """`keras.layers.experimental.SyncBatchNormalization`, likewise."""

    plain_class = keras.layers.experimental.SyncBatchNormalization


BRANCHED_CLASSES = {
    branched.plain_class: branched for branched in (BatchNormalization, SyncBatchNormalization)
}
