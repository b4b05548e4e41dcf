"""What all networks have in common: pixels and branches in, logits and feature maps out.

logits = model(images, training=True, branch="aux", seed=seed)
endpoints = model.features(images)       # {"reduction_1": …, …, "features": …}
"""

import functools
import hashlib
from typing import Any, Callable, Iterable, Iterator, Optional, Sequence

import numpy as np
import tensorflow as tf

from efficientnet_advprop.keras2 import keras
from efficientnet_advprop.models.activations import Activation
from efficientnet_advprop.runtime.autograph import call_as_it_is
from efficientnet_advprop.runtime.branches import (
    Branch,
    branch_index,
    branches_in_batch,
    check_branch,
)
from efficientnet_advprop.runtime.errors import require_choice, require_whole
from efficientnet_advprop.runtime.pass_mode import PassMode, current_pass, enter
from tpu_utils import randomness, replica_runtime

# Pixels x in [0, 255], RGB, become (x − mean) / deviation. AdvProp's checkpoints want
# [−1, 1]; those of EfficientNet-Lite, -EdgeTPU and -CondConv nearly that, in numbers
# that suit integers; Keras's ResNets only Caffe's means; all others ImageNet's mean and
# deviation.
NORMALIZATIONS = {
    "advprop": ([127.5] * 3, [127.5] * 3),
    "imagenet": ([0.485 * 255, 0.456 * 255, 0.406 * 255], [0.229 * 255, 0.224 * 255, 0.225 * 255]),
    "lite": ([127.0] * 3, [128.0] * 3),
    "v2": ([128.0] * 3, [128.0] * 3),  # EfficientNetV2 S to XL
    "caffe": ([123.68, 116.779, 103.939], [1.0] * 3),
    "none": ([0.0] * 3, [1.0] * 3),
    "unit": ([0.0] * 3, [255.0] * 3),  # [0, 1], which many Keras models want
}
COMPUTE_DTYPES = {"float32": "float32", "bfloat16": "mixed_bfloat16", "float16": "mixed_float16"}


class Network(keras.Model):
    """What the trainer, the evaluation and the export know of a network: pixels in, float32
    logits out, through one of the batch-norm branches; called as `BlockNetwork.call` says.

    Attributes:
        variant: a row of a family's table, or the name of a function (`tables.KERAS_VARIANT`).
        num_classes: size of the logits.
        aux_branches: branches beside the main one.
        image_size: pixels of the images' sides that it is meant for.
        fixed_image_size: the only size that it takes; None: any.
        normalization: of pixels, a key of `NORMALIZATIONS`.
        activation_dtype: a key of `COMPUTE_DTYPES`.
        is_multilabel: whether each class has a probability of its own (ImageNet-21k).
    """

    variant: str
    num_classes: int
    aux_branches: int
    image_size: int
    fixed_image_size: Optional[int] = None
    normalization: str
    activation_dtype: str
    is_multilabel: bool = False

    @property
    def probabilities(self) -> Callable[[tf.Tensor], tf.Tensor]:
        """What turns logits into probabilities."""
        return tf.sigmoid if self.is_multilabel else tf.nn.softmax


class BlockNetwork(Network):
    """A classifier of a stem, blocks and a head, whose every batch norm has one main
    and `aux_branches` auxiliary branches.

    A family's constructor checks its own arguments, calls this one, sets
    `self.image_size` (pixels), makes `self.stem`, `self.blocks` (layers whose `.block`
    has `strides` and `output_filters`) and `self.head`, and ends with
    `self.build([None, None, None, 3])`: all variables exist when it returns.

    Args:
        given: the `locals()` of the family's constructor, its arguments alone, which
            `get_config` returns. Those that every family has are checked here.
        variants: the rows of the family's table.
        default_name, default_activation: unless `name` and `activation` are given.

    Attributes:
        activation: what the blocks have, an `activations.Activation`.

    Raises:
        ValueError: an argument that is out of its range, with its name.
    """

    # Whether a max-pooling follows the stem, whose output is then "reduction_1".
    stem_is_a_reduction = False

    def __init__(
        self,
        given: dict[str, Any],
        variants: Iterable[str],
        default_name: str,
        default_activation: str,
    ):
        given = {key: given[key] for key in given if key not in ("self", "__class__")}
        require_choice("variant", given["variant"], variants)
        require_choice("normalization", given["normalization"], NORMALIZATIONS)
        require_choice("compute_dtype", given["compute_dtype"], COMPUTE_DTYPES)
        require_whole("num_classes", given["num_classes"], 1)
        require_whole("recomputed_blocks", given["recomputed_blocks"], 0)
        if not 0.0 < given["survival_prob"] <= 1.0:
            raise ValueError(
                f"`survival_prob` is {given['survival_prob']!r}, but must lie in (0, 1]; 1 switches"
                " stochastic depth off."
            )
        activation = Activation(
            given["activation"] or default_activation,
            given["activation_alpha"],
            given["smooth_relu_gradient"],
        )
        # float32 whatever Keras's global policy is: a mixed one would round the pixels
        # on their way in. What the layers compute in is `compute_dtype`.
        super().__init__(name=given["name"] or default_name, dtype=tf.float32)
        self.activation, self.recomputed_blocks = activation, given["recomputed_blocks"]
        self.variant, self.num_classes = given["variant"], given["num_classes"]
        self.aux_branches, self.normalization = given["aux_branches"], given["normalization"]
        self.activation_dtype = given["compute_dtype"]
        self._constructor_arguments = {**given, "name": self.name}

    @property
    def norm_arguments(self) -> dict[str, Any]:
        given = self._constructor_arguments
        return dict(
            aux_branches=given["aux_branches"],
            momentum=given["batch_norm_momentum"],
            epsilon=given["batch_norm_epsilon"],
            group_size=given["batch_norm_group_size"],
            aux_shares=given["aux_shares"],
        )

    @property
    def dtype_policy_of_layers(self) -> keras.mixed_precision.Policy:
        return keras.mixed_precision.Policy(COMPUTE_DTYPES[self.activation_dtype])

    def __call__(self, *args, **kwargs):
        """As `keras.Model.__call__`, which calls `call`, but without AutoGraph."""
        return call_as_it_is(super().__call__, *args, **kwargs)

    def build(self, input_shape):
        if self.built:
            return
        channels = self.stem.convolution.filters
        parts = [(self.stem, 3)]
        for block in self.blocks:
            parts.append((block, channels))
            channels = block.block.output_filters
        parts.append((self.head, channels))
        with tf.name_scope(self.name):
            for layer, filters in parts:
                with tf.name_scope(layer.name):
                    layer.build(tf.TensorShape([None, None, None, filters]))
        self.built = True

    def compile(self, optimizer="rmsprop", *args, **kwargs):
        # Keras scales the loss of models of the policy "mixed_float16", which this is not.
        if self.activation_dtype == "float16":
            optimizer = tf.nest.map_structure(_with_loss_scale, optimizer)
        super().compile(optimizer, *args, **kwargs)

    def call(
        self,
        images,
        training=False,
        branch: Optional[Branch] = None,
        update_statistics: Optional[bool] = None,
        seed=None,
    ):
        """Returns logits.

        Args:
            images: [batch, height, width, 3], any numeric dtype, pixels in [0, 255],
                RGB. Any part of the shape may be unknown when tracing.
            training: Python bool; True uses the batch's moments, dropout and stochastic
                depth.
            branch: whose batch norms: "main", "aux" (= "aux_1"), "aux_2", …; in
                inference also a `BranchMixture`; in training also "main+aux", see
                `DualBatchNormalization`. None: that of a surrounding `use_branch`, else
                "main".
            update_statistics: with `training=True`, whether the branch's running
                statistics move. None: as a surrounding `use_branch` says, else True.
            seed: int32 [2], decides dropout and stochastic depth; None draws one (not
                reproducible after a restart).

        Returns:
            float32 [batch, num_classes].

        Raises:
            ValueError: `images` have another shape, or there is no such branch.
        """
        if training:
            seed = randomness.seed_or_fresh(seed)
        with enter(self._mode(training, branch, update_statistics)):
            return self._forward(images, training, seed)

    def _mode(self, training, branch, update_statistics) -> PassMode:
        mode = current_pass()
        if update_statistics is not None:
            mode = mode._replace(update_statistics=update_statistics)
        if branch is None:
            return mode
        if training:
            for name in branches_in_batch(branch):
                branch_index(name, self.aux_branches)  # no mixture
        else:
            check_branch(branch, self.aux_branches)
        return mode._replace(branch=branch)

    @tf.autograph.experimental.do_not_convert
    def features(self, images, branch: Optional[Branch] = None) -> dict[str, tf.Tensor]:
        """Returns feature maps in inference mode, in the compute dtype, by the names of
        the official end points.

        Returns:
            "stem"; each block's output, "block_0", "block_1", …; those before a
            reduction of resolution also as "reduction_1" … "reduction_5" (at 1/2 … 1/32
            of the resolution), the last as "features"; in an EfficientNet "head_1x1"
            and, of each block, what its projection gets, "block_0/expansion_output",
            "reduction_1/expansion_output", …: all [batch, h, w, channels]. And, float32
            [batch, channels], "pooled_features", "global_pool" (the same behind the
            dropout, which inference has not) and "head", the logits.
        """
        end_points = {}
        with enter(self._mode(False, branch, None)):
            logits = self._forward(images, False, None, end_points)
        return {**end_points, "global_pool": end_points["pooled_features"], "head": logits}

    def _forward(self, images, training, seed, end_points: Optional[dict[str, Any]] = None):
        # `end_points` gets all feature maps; without it none is kept for longer than needed.
        images = check_images(images)
        if current_pass().constant_weights:
            # One operation over the image less. Only the deviation goes into a kernel:
            # the mean, in a bias, would be wrong at the edges, where padding is zero.
            mean, deviation = map(np.float32, NORMALIZATIONS[self.normalization])
            x = self.stem(tf.cast(images, tf.float32) - mean, deviation=deviation)
        else:
            x = tf.cast(normalize_pixels(images, self.normalization), self.stem.compute_dtype)
            x = self.stem(x, training=training)
        record = (lambda found: None) if end_points is None else end_points.update
        record({"stem": x})
        if self.stem_is_a_reduction:
            record({"reduction_1": x})
            x = self.pool(x)
        for index, (block, names) in enumerate(zip(self.blocks, self._names_of_blocks())):
            own_seed = randomness.fold_in(seed, index) if training else None
            run = functools.partial(block, training=training, seed=own_seed)
            if end_points is not None:
                x, inside = run(x, with_end_points=True)
                for name in names:
                    record({name: x, **{f"{name}/{part}": inside[part] for part in inside}})
            elif index < self.recomputed_blocks:
                x = recompute_in_backward(run, x)
            else:
                x = run(x)
        record({"features": x})
        own_seed = randomness.fold_in(seed, len(self.blocks)) if training else None
        logits, of_head = self.head(x, training=training, seed=own_seed)
        record(of_head)
        return logits

    def _names_of_blocks(self) -> Iterator[tuple[str, ...]]:
        # As in the official `efficientnet_model`: by its number, and where the next block has a
        # stride (or there is none) by the number of the reduction.
        reduction = int(self.stem_is_a_reduction)
        strides_above = [block.block.strides for block in self.blocks[1:]] + [2]
        for index, strides in enumerate(strides_above):
            if strides == 1:
                yield (f"block_{index}",)
                continue
            reduction += 1
            yield f"block_{index}", f"reduction_{reduction}"

    def get_config(self):
        return dict(self._constructor_arguments)

    @classmethod
    def from_config(cls, config, custom_objects=None):
        return cls(**config)


def recompute_in_backward(
    forward: Callable[[tf.Tensor], tf.Tensor], inputs: tf.Tensor
) -> tf.Tensor:
    """Returns `forward(inputs)`, of which nothing but `inputs` is kept for the gradient; the
    rest is computed again (Chen et al. 2016, "Training deep nets with sublinear memory cost").

    `forward` may read variables, to which the gradient flows, and change those that are not
    trained; the same inputs give the same numbers.
    """
    # The backward pass runs outside the network's call, so the second run brings the
    # mode along. Batch norms move their statistics in the first one alone, which
    # `tf.recompute_grad` could not be told.
    mode = current_pass()._replace(update_statistics=False)

    @tf.custom_gradient
    def run(inputs):
        def gradient(upstream, variables=()):
            with enter(mode), tf.GradientTape(watch_accessed_variables=False) as tape:
                # Without this XLA sees the same operations on the same inputs twice,
                # does them once and keeps the results.
                starting_point = replica_runtime.after(upstream, inputs)
                tape.watch([starting_point, *variables])
                outputs = call_as_it_is(forward, starting_point)
            to_inputs, *to_variables = tape.gradient(
                outputs,
                [starting_point, *variables],
                upstream,
                unconnected_gradients=tf.UnconnectedGradients.ZERO,
            )
            return (to_inputs, to_variables) if variables else to_inputs

        return forward(inputs), gradient

    return run(inputs)


def _with_loss_scale(optimizer) -> keras.mixed_precision.LossScaleOptimizer:
    optimizer = keras.optimizers.get(optimizer)
    if isinstance(optimizer, keras.mixed_precision.LossScaleOptimizer):
        return optimizer
    return keras.mixed_precision.LossScaleOptimizer(optimizer)


def normalize_pixels(images: tf.Tensor, normalization: str) -> tf.Tensor:
    """Returns float32 images from pixels in [0, 255]."""
    mean, deviation = NORMALIZATIONS[normalization]
    return (tf.cast(images, tf.float32) - tf.constant(mean)) / tf.constant(deviation)


def check_images(images) -> tf.Tensor:
    """Returns the images as a tensor [batch, height, width, 3]; refuses another shape."""
    images = tf.convert_to_tensor(images)
    if not images.shape.is_compatible_with([None, None, None, 3]):
        raise ValueError(
            f"`images` have shape {images.shape}, but must be [batch, height, width, 3], pixels in "
            "[0, 255]."
        )
    if not (images.dtype.is_floating or images.dtype.is_integer):
        raise ValueError(
            f"`images` are {images.dtype.name}, but must be numbers, pixels in [0, 255]."
        )
    if images.shape.rank == 4 and images.shape[-1] == 3:
        return images
    # What decoders leave open (how many channels an image has) must be 3 when it comes.
    return tf.ensure_shape(images, [None, None, None, 3])


def given_scaling(given: dict[str, Any], *defaults: float) -> list[float]:
    """Returns width, depth and dropout rate as given, or else the variant's."""
    names = ("width_coefficient", "depth_coefficient", "dropout_rate")
    values = [
        default if given[name] is None else given[name] for name, default in zip(names, defaults)
    ]
    rules = [(lambda value: value > 0, "must be positive")] * 2
    rules.append((lambda value: 0.0 <= value < 1.0, "must lie in [0, 1)"))
    for name, value, (is_right, rule) in zip(names, values, rules):
        if not is_right(value):
            raise ValueError(f"`{name}` is {value!r}, but {rule}.")
    return values


def official_name(name: str) -> str:
    """Returns a `tf.Variable.name` as in a released checkpoint: without its ":0"."""
    return name.partition(":")[0]


def weights_digest(variables: Sequence[tf.Variable]) -> str:
    """Returns a SHA-256 over names, shapes and values: equal weights have equal digests,
    whatever file or order they came from.
    """
    digest = hashlib.sha256()
    for variable in sorted(variables, key=lambda variable: variable.name):
        value = variable.numpy()
        digest.update(f"{variable.name} {value.dtype} {value.shape};".encode())
        digest.update(value.tobytes())
    return digest.hexdigest()
