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

import functools

import tensorflow as tf

from efficientnet_advprop.keras2 import keras
from efficientnet_advprop.models import normalization
from efficientnet_advprop.models.branches import MAIN, branch_index, branch_names
from efficientnet_advprop.models.converted.branch_context import current_pass
from efficientnet_advprop.models.normalization import BranchedNorm
from tpu_utils.replicas import reduction, replica_runtime

PACKAGE = "efficientnet_advprop"


class _Branched(BranchedNorm):
    """Auxiliary branches for one of Keras's batch norms; `plain_class` is that one."""

    plain_class: type

    def __init__(self, aux_branches: int = 1, **kwargs):
        super().__init__(**kwargs)
        self.aux = []
        self.grow(aux_branches)

    @property
    def aux_branches(self) -> int:
        """How many auxiliary branches there are."""
        return len(self.aux)

    @property
    def num_replicas_together(self) -> int:
        """How many of the replicas that run the current step share their moments."""
        return replica_runtime.current().num_replicas if self.synchronized else 1

    def grow(self, aux_branches: int) -> None:
        """Adds auxiliary branches, copies of the main one, to a layer that has none."""
        config = self.plain_config()
        children = []
        for name in branch_names(aux_branches)[1:]:
            child = self.plain_class.from_config({**config, "name": name})
            child.trainable = self.trainable
            children.append(child)
        self.aux = children
        if self.built:
            self._build_children()

    def shrink(self) -> None:
        """Gives the auxiliary branches up, so that the plain layer's class fits."""
        _forget(self, "aux")

    def plain_config(self) -> dict:
        """The configuration of the plain layer."""
        return super().get_config()

    def get_config(self):
        return {**self.plain_config(), "aux_branches": self.aux_branches}

    def build(self, input_shape):
        super().build(input_shape)
        self._build_children()

    def _build_children(self) -> None:
        """Creates the children's variables beside this layer's, with its values."""
        for child in self.aux:
            build_copy(child, self)
            child.fused = (
                self.fused
            )  # the plain layer may have been told otherwise than its configuration says

    def call(self, inputs, training=None, mask=None):
        mode = current_pass()
        index = branch_index(mode.branch, self.aux_branches)
        norm = self if index == 0 else self.aux[index - 1]
        if self.trainable and (mode.batch_moments or (training and not mode.update_statistics)):
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
    """`keras.layers.BatchNormalization` with auxiliary branches.

    Args:
        aux_branches: their number, ≥ 0.
        **kwargs: as the plain layer's.
    """

    plain_class = keras.layers.BatchNormalization


@keras.utils.register_keras_serializable(PACKAGE)
class SyncBatchNormalization(_Branched, keras.layers.experimental.SyncBatchNormalization):
    """`keras.layers.experimental.SyncBatchNormalization` with auxiliary branches.

    Arguments as those of `BatchNormalization`.
    """

    plain_class = keras.layers.experimental.SyncBatchNormalization


@keras.utils.register_keras_serializable(PACKAGE)
class DualBatchNormalization(normalization.DualBatchNormalization):
    """The batch norm of this project's networks: where its caller says "main", the
    context decides.

    Arguments as those of `models.DualBatchNormalization`.
    """

    plain_class = normalization.DualBatchNormalization

    def grow(self, aux_branches: int) -> None:
        """Adds auxiliary branches, copies of the main one, to a layer that has none."""
        grown = self.plain_class.from_config({**self.plain_config(), "aux_branches": aux_branches})
        self.aux_branches, self.aux = aux_branches, list(grown.aux)
        for child in self.aux if self.built else ():
            build_copy(child, self)

    def shrink(self) -> None:
        """Gives the auxiliary branches up, so that the plain layer's class fits."""
        _forget(self, "aux")
        self.aux_branches, self.aux = 0, []

    def plain_config(self) -> dict:
        """The configuration of the layer without auxiliary branches."""
        return {**self.get_config(), "aux_branches": 0}

    def affine(self, branch: str = MAIN):
        return super().affine(_asked_for(branch))

    def call(self, inputs, training=False, branch: str = MAIN, update_statistics: bool = True):
        update_statistics = update_statistics and current_pass().update_statistics
        return super().call(
            inputs, training, branch=_asked_for(branch), update_statistics=update_statistics
        )


def _asked_for(branch: str) -> str:
    return current_pass().branch if branch == MAIN else branch


def build_copy(child: keras.layers.Layer, norm: keras.layers.Layer) -> None:
    """Creates a batch norm's variables, with the values of another one and under its
    name scope.

    The values come through the initializers, so that a checkpoint that waits for the
    variables goes before.
    """
    leaves = ("gamma", "beta", "moving_mean", "moving_variance")
    initializers = {f"{leaf}_initializer": getattr(child, f"{leaf}_initializer") for leaf in leaves}
    for leaf in leaves:
        value_of = functools.partial(_value_of, getattr(norm, leaf))
        setattr(child, f"{leaf}_initializer", value_of)
    scope, axes = norm.moving_mean.name.rpartition("/")[0], norm.input_spec.axes
    with tf.init_scope(), tf.name_scope(f"{scope}/{child.name}/" if scope else f"{child.name}/"):
        child.build(tf.TensorShape([axes.get(axis) for axis in range(norm.input_spec.ndim)]))
    for name, initializer in initializers.items():
        setattr(child, name, initializer)


def _value_of(variable: tf.Variable, shape, dtype=None, **kwargs) -> tf.Tensor:
    """An initializer."""
    return tf.cast(tf.convert_to_tensor(variable), dtype or variable.dtype)


def _forget(layer: keras.layers.Layer, name: str) -> None:
    """Deletes an attribute from the layer's list of sublayers and from what a
    checkpoint saves.

    Keras's deletion does the first only, and TensorFlow's the second only.
    """
    delattr(layer, name)
    object.__setattr__(layer, name, None)
    tf.Module.__delattr__(layer, name)


BRANCHED_CLASSES = {
    branched.plain_class: branched
    for branched in (BatchNormalization, SyncBatchNormalization, DualBatchNormalization)
}
