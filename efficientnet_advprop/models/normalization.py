"""Batch normalization with one main and any number of auxiliary branches: AdvProp's
separation of clean from adversarial images.

Every branch has its own gamma, beta, moving mean and moving variance (the paper: the
distributions differ, so must the statistics); inference uses "main" alone, and the
auxiliary branches can be thrown away after training.
"""

import functools
from typing import NamedTuple, Optional

import tensorflow as tf

from efficientnet_advprop.config.tables import AUX_SHARES
from efficientnet_advprop.keras2 import keras
from efficientnet_advprop.runtime.branches import (
    Branch,
    BranchMixture,
    branch_index,
    branch_names,
    branches_in_batch,
)
from efficientnet_advprop.runtime.errors import require_choice, require_whole
from efficientnet_advprop.runtime.pass_mode import current_pass, weights
from tpu_utils import reduction, replica_runtime


def official_group_size(num_replicas: int) -> int:
    """Returns how many replicas share their batch moments in the official code: none up
    to 8, then max(8, num_replicas / 8).
    """
    return 1 if num_replicas <= 8 else max(8, num_replicas // 8)


class BranchVariables(NamedTuple):
    """What a branch normalises with, float32 [channels] each; gamma and beta None where
    the layer has none.
    """

    gamma: Optional[tf.Variable]
    beta: Optional[tf.Variable]
    moving_mean: tf.Variable
    moving_variance: tf.Variable


class _AffineOnly(keras.layers.BatchNormalization):
    """Gamma and beta of an auxiliary branch that has no statistics of its own."""

    def add_weight(self, name=None, **kwargs):
        if name in ("moving_mean", "moving_variance"):
            return None
        return super().add_weight(name=name, **kwargs)


class BranchedNorm:
    """A batch norm whose own variables are the main branch: this project's, or one of
    Keras that was converted.

    Its `aux` are the auxiliary branches, which share with main what `aux_shares` says;
    `num_replicas_together` replicas share their moments in training.
    """

    aux_shares = "none"

    @property
    def aux_branches(self) -> int:
        return len(self.aux)

    @property
    def trainable(self) -> bool:
        return super().trainable

    @trainable.setter
    def trainable(self, value: bool):  # reaches all branches
        keras.layers.BatchNormalization.trainable.fset(self, value)
        for child in getattr(self, "aux", None) or ():
            child.trainable = value

    def make_children(self, aux_branches: int) -> list[keras.layers.Layer]:
        """Returns new auxiliary branches, not built."""
        raise NotImplementedError

    def add_branches(self, aux_branches: int) -> None:
        """Adds auxiliary branches, copies of the main one, to a layer that has none."""
        self.aux = self.make_children(aux_branches)
        for child in self.aux if self.built else ():
            build_copy(child, self)

    def remove_branches(self) -> None:
        """Takes the auxiliary branches out of the sublayers and of checkpoints."""
        # Keras's deletion does only the first, TensorFlow's only the second.
        delattr(self, "aux")
        object.__setattr__(self, "aux", None)
        tf.Module.__delattr__(self, "aux")


@keras.utils.register_keras_serializable("efficientnet_advprop")
class DualBatchNormalization(BranchedNorm, keras.layers.BatchNormalization):
    """Batch normalization over the last axis, with `aux_branches` auxiliary branches.

    It is a `tf.keras.layers.BatchNormalization` whose own variables are the main
    branch, so that a checkpoint of it restores into a plain one; the auxiliary branches
    are children named "aux", "aux_2", …, and only their variables carry "aux" in their
    names.

    The moving variance follows the batch's biased variance (division by N), as in the
    official TPU code and unlike Keras's fused batch norm. A layer with
    `trainable=False` normalises with running statistics whatever `training` says, like
    Keras's.

    Args:
        aux_branches: number of auxiliary branches, ≥ 0; 0 is a plain batch norm.
        momentum: of the moving statistics, in [0, 1): moving ← momentum·moving + (1 −
            momentum)·batch.
        epsilon: added to the variance, > 0.
        group_size: replicas that share the batch moments in training: those with
            consecutive numbers; must divide their number. 1: each has its own; None:
            `official_group_size`.
        aux_shares: what auxiliary branches have in common with the main one: "none"
            (the paper); "statistics", so that only gamma and beta tell branches apart:
            each batch is still normalised with its own moments in training, but all
            branches move, and infer with, one set of running statistics; "moments", the
            same where a training step shows all branches in one batch ("main+aux"),
            whose common moments normalise them all; or "affine", so that only
            statistics do.
        **kwargs: `center`, `scale`, initializers, regularizers, constraints,
            `trainable`, `dtype` and `name`, as in `tf.keras.layers.BatchNormalization`;
            every branch gets the same.

    Raises:
        ValueError: an argument is out of its range, or `axis` is not the last one.
    """

    def __init__(
        self,
        aux_branches: int = 1,
        momentum: float = 0.99,
        epsilon: float = 1e-3,
        group_size: Optional[int] = None,
        aux_shares: str = "none",
        **kwargs,
    ):
        require_whole("aux_branches", aux_branches, 0, "; 0 is a plain batch norm")
        if group_size is not None:
            require_whole("group_size", group_size, 1, ", or None for the official rule")
        require_choice("aux_shares", aux_shares, AUX_SHARES)
        if not 0.0 <= momentum < 1.0:
            raise ValueError(
                f"`momentum` is {momentum!r}, but must lie in [0, 1); 0.99 is the official value."
            )
        if epsilon <= 0.0:
            raise ValueError(
                f"`epsilon` is {epsilon!r}, but must be positive; 1e-3 is the official value."
            )
        for option in ("renorm", "virtual_batch_size", "adjustment", "fused", "synchronized"):
            if option in kwargs:
                raise ValueError(
                    f"`{option}` is given, but this layer has no such option; leave it out."
                )
        super().__init__(momentum=momentum, epsilon=epsilon, **kwargs)
        self.group_size, self.aux_shares = group_size, aux_shares
        self.aux = self.make_children(aux_branches)

    def make_children(self, aux_branches):
        config = super().get_config()
        if self.aux_shares == "affine":
            config.update(center=False, scale=False)
        kind = _AffineOnly if self._has_one_set else keras.layers.BatchNormalization
        return [kind(**{**config, "name": name}) for name in branch_names(aux_branches)[1:]]

    def remove_branches(self):
        super().remove_branches()
        self.aux = []

    @property
    def _has_one_set(self) -> bool:  # of running statistics, for all branches
        return self.aux_shares in ("statistics", "moments")

    def get_config(self):
        own = ("aux_branches", "group_size", "aux_shares")
        return {**super().get_config(), **{name: getattr(self, name) for name in own}}

    def build(self, input_shape):
        rank = len(input_shape)
        axis = list(self.axis) if isinstance(self.axis, (list, tuple)) else [self.axis]
        if axis not in ([-1], [rank - 1]):
            raise ValueError(
                f"`axis` is {self.axis!r}, but only the last axis can be normalised; put the"
                " channels last."
            )
        super().build(input_shape)
        # All of them now: a branch that is first used inside of a traced step could not
        # create its variables there.
        for child in self.aux:
            with tf.name_scope(child.name):
                child.build(input_shape)

    @property
    def num_replicas_together(self) -> int:
        """How many of the replicas that run the current step share their moments."""
        if self.group_size is not None:
            return self.group_size
        return official_group_size(replica_runtime.current().num_replicas)

    def variables_of(self, branch: str) -> BranchVariables:
        """Returns the variables that a branch normalises with."""
        index = branch_index(branch, self.aux_branches)
        own = self if index == 0 else self.aux[index - 1]
        affine = self if self.aux_shares == "affine" else own
        statistics = self if self._has_one_set else own
        return BranchVariables(
            affine.gamma, affine.beta, statistics.moving_mean, statistics.moving_variance
        )

    def affine(self, branch: Optional[Branch] = None) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the inference-mode batch norm as scale and offset of y = scale·x +
        offset, float32 [channels]; of the pass's branch unless told.
        """
        return weights(lambda: self._affine(current_pass().branch if branch is None else branch))

    def _affine(self, branch):
        if isinstance(branch, BranchMixture):
            variables = self._mixed(branch)
        else:
            variables = self.variables_of(branch)
        scale = tf.math.rsqrt(variables.moving_variance + self.epsilon)
        if variables.gamma is not None:
            scale *= variables.gamma
        offset = -variables.moving_mean * scale
        if variables.beta is not None:
            offset += variables.beta
        return scale, offset

    def _mixed(self, mixture: BranchMixture) -> BranchVariables:
        parts = [(self.variables_of(name), share) for name, share in mixture.shares]

        def mean(which):
            if getattr(parts[0][0], which) is None:
                return None
            return tf.add_n([share * getattr(variables, which) for variables, share in parts])

        statistics = self.variables_of(mixture.statistics)
        return statistics._replace(gamma=mean("gamma"), beta=mean("beta"))

    def uses_batch_moments(self, training: bool) -> bool:
        """Whether this pass normalises with the batch's moments."""
        return bool(self.trainable and (training or current_pass().batch_moments))

    def call(
        self,
        inputs,
        training=False,
        branch: Optional[Branch] = None,
        update_statistics: Optional[bool] = None,
    ):
        """Normalises.

        Args:
            inputs: float tensor [batch, …, channels].
            training: Python bool; True normalises with the batch's moments, False with
                the branch's running statistics.
            branch: "main", "aux" (= "aux_1"), "aux_2", …; in inference also a mixture.
                In training with `aux_shares="moments"` also several of them, such as
                "main+aux": equal parts of the batch, in this order, which have their
                own gamma and beta and common moments. None: what the pass is told
                (`use_branch`), else "main".
            update_statistics: with `training=True`, whether the batch's moments move
                the branch's running statistics. None: what the pass is told, else True.

        Returns:
            A tensor of the inputs' shape, in the layer's compute dtype.

        Raises:
            ValueError: there is no such branch, a mixture is to be trained, several are
                given where they do not share their moments, or `training` is a tensor.
        """
        if tf.is_tensor(training):
            raise ValueError(
                "`training` is a tensor, but which statistics are used must be known when tracing;"
                " pass a Python bool."
            )
        mode = current_pass()
        branch = mode.branch if branch is None else branch
        moves = mode.update_statistics if update_statistics is None else update_statistics
        moves = moves and training and not mode.batch_moments
        inputs = tf.cast(inputs, self.compute_dtype)
        branches = branches_in_batch(branch)
        if len(branches) > 1 and (training or mode.batch_moments):
            return self._call_jointly(inputs, branches, moves)
        if self.uses_batch_moments(training):
            return self._normalize(inputs, self.variables_of(branch), moves)
        scale, offset = self.affine(branch)
        return inputs * tf.cast(scale, inputs.dtype) + tf.cast(offset, inputs.dtype)

    def _call_jointly(self, inputs, branches, moves):
        """As `call` in training, of a batch whose equal parts go through several branches."""
        if self.aux_shares != "moments":
            raise ValueError(
                f"`branch` is {'+'.join(branches)!r}, but `aux_shares` is {self.aux_shares!r}:"
                " branches share a batch only if they share its moments; build the layer with"
                " aux_shares='moments'."
            )
        of_branches = [self.variables_of(branch) for branch in branches]
        if self.trainable:
            own = of_branches[0]._replace(gamma=None, beta=None)
            inputs = self._normalize(inputs, own, moves)
            scales, offsets = zip(*(self._parameters(variables) for variables in of_branches))
        else:
            scales, offsets = zip(*(self.affine(branch) for branch in branches))
        count = tf.shape(inputs)[0] // len(branches)
        shape = [-1] + [1] * (inputs.shape.rank - 2) + [inputs.shape[-1]]

        def of_each_image(values):
            return tf.cast(tf.reshape(tf.repeat(tf.stack(values), count, 0), shape), inputs.dtype)

        return inputs * of_each_image(scales) + of_each_image(offsets)

    def _normalize(self, inputs, variables, moves):
        if self.num_replicas_together > 1:
            outputs, mean, variance = self._normalize_in_group(inputs, variables)
        else:
            outputs, mean, variance = self._normalize_fused(inputs, variables)
        if moves:
            variables.moving_mean.assign_sub((variables.moving_mean - mean) * (1.0 - self.momentum))
            variables.moving_variance.assign_sub(
                (variables.moving_variance - variance) * (1.0 - self.momentum)
            )
        return outputs

    def _parameters(self, variables):
        """Returns gamma and beta; ones and zeros where the layer has none."""
        gamma, beta = variables.gamma, variables.beta
        gamma = tf.ones_like(variables.moving_variance) if gamma is None else gamma
        beta = tf.zeros_like(variables.moving_mean) if beta is None else beta
        return tf.convert_to_tensor(gamma), tf.convert_to_tensor(beta)

    def _normalize_fused(self, inputs, variables):
        """Takes this replica's own moments, by TensorFlow's fused operation."""
        gamma, beta = self._parameters(variables)
        channels = inputs.shape[-1]
        images = inputs if inputs.shape.rank == 4 else tf.reshape(inputs, [-1, 1, 1, channels])
        outputs, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
            x=images,
            scale=gamma,
            offset=beta,
            mean=tf.zeros([channels]),
            variance=tf.ones([channels]),
            epsilon=self.epsilon,
        )
        count = tf.cast(tf.size(inputs) // channels, tf.float32)
        if inputs.shape.rank != 4:
            outputs = tf.reshape(outputs, tf.shape(inputs))
        # The operation divides by N − 1.
        return outputs, mean, variance * (tf.maximum(count - 1.0, 1.0) / count)

    def _normalize_in_group(self, inputs, variables):
        """Takes moments over a group of replicas, from the means of x and x² in float32:
        official `TpuBatchNormalization`, one reduction.
        """
        gamma, beta = self._parameters(variables)
        values = tf.cast(inputs, tf.float32)
        axes = list(range(inputs.shape.rank - 1))
        own_mean, own_variance = tf.nn.moments(values, axes)
        moments = reduction.mean_over_replicas(
            tf.stack([own_mean, own_variance + tf.square(own_mean)]), self.num_replicas_together
        )
        mean = moments[0]
        # Rounding can leave it below zero where a channel is constant.
        variance = tf.nn.relu(moments[1] - tf.square(mean))
        scale = tf.math.rsqrt(variance + self.epsilon) * gamma
        outputs = values * scale + (beta - mean * scale)
        return tf.cast(outputs, inputs.dtype), mean, variance


def build_copy(child: keras.layers.Layer, norm: keras.layers.Layer) -> None:
    """Creates a batch norm's variables, with the values of another and under its scope."""
    # The values come through the initializers, so that a checkpoint that waits for the
    # variables goes before.
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
    return tf.cast(tf.convert_to_tensor(variable), dtype or variable.dtype)


def batch_norms(model: tf.Module) -> list[BranchedNorm]:
    """Returns all batch norms of a model that can have branches."""
    return [layer for layer in model.submodules if isinstance(layer, BranchedNorm)]


def moving_statistics(model: tf.Module) -> list[tf.Variable]:
    """Returns the running statistics, of all branches, of batch norms that are not frozen."""
    return [
        variable
        for norm in batch_norms(model)
        if norm.trainable
        for variable in norm.non_trainable_variables
    ]
