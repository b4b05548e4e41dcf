"""The passes of a training step through any Keras model: what `training.passes` is for
our networks.

The branch is a context, the loss is the compiled one, and labels come with sample
weights and with inputs that are no images.
"""

from typing import Any, NamedTuple, Optional

import tensorflow as tf

from efficientnet_advprop.attacks import PGD, Attack
from efficientnet_advprop.config.methods import Pass
from efficientnet_advprop.keras2 import keras
from efficientnet_advprop.keras_common.fit_model import join_inputs
from efficientnet_advprop.models.converted.conversion import find_batch_norms
from efficientnet_advprop.runtime.pass_mode import use_branch

LABELS, WEIGHTS, OTHER_INPUTS = "labels", "sample_weight", "other_inputs"


class ModelPassResult(NamedTuple):
    """What one pass gives: this replica's share of the gradients."""

    gradients: list[Optional[tf.Tensor]]
    image_gradients: Optional[tf.Tensor]

    def sums_of(self, part: Pass) -> dict[str, tf.Tensor]:
        """None: losses and metrics are counted by Keras's containers."""
        return {}


class ModelPassRunner:
    """Forward and backward through a branch of a compiled `AdvPropModel`, for the losses
    of one step; `batch_size` counts a replica's images for methods that split the batch.
    """

    def __init__(self, model: keras.Model, batch_size: Optional[int]):
        self.model, self.network, self.batch_size = model, model.network, batch_size
        self.adds_regularization, self.labels_are_weights = True, model.labels_are_weights

    def __call__(
        self, part: Pass, images, labels, seed, *, is_attack: bool = False
    ) -> ModelPassResult:
        """The gradient of the views' losses, times the pass's weight, the loss scale
        and their share.

        `is_attack`: with respect to the images, too, and without moving statistics. The
        layers' own losses (weight decay, activity) are added once per step, in its
        first pass.
        """
        views, trained = part.views, self.network.trainable_variables
        optimizer, share = self.model.optimizer, 1.0
        has_scale = isinstance(optimizer, keras.mixed_precision.LossScaleOptimizer)
        if self.batch_size is not None:
            share = images.shape[0] / (len(views) * self.batch_size)
        with use_branch(part.branch, update_statistics=not is_attack):
            with tf.GradientTape() as tape:
                if is_attack:
                    tape.watch(images)
                inputs = join_inputs(images, labels[OTHER_INPUTS], self.model.attacked_input)
                outputs = self.network(inputs, training=True)
                own_losses = self.network.losses if self.adds_regularization else None
                self.adds_regularization = False
                loss = 0.0
                for view, own_labels, own_outputs in zip(
                    views, _split(labels, len(views)), _split(outputs, len(views))
                ):
                    scores = self.model.scores_of(view)
                    counted = own_labels[LABELS], own_outputs, own_labels.get(WEIGHTS)
                    loss += scores.compiled_loss(*counted, regularization_losses=own_losses)
                    own_losses = None
                    scores.update(*counted)
                loss *= part.weight * share
                scaled = optimizer.get_scaled_loss(loss) if has_scale else loss
            gradients = tape.gradient(scaled, [*trained, images] if is_attack else trained)
        of_images = gradients.pop() if is_attack else None
        if has_scale:
            gradients = optimizer.get_unscaled_gradients(gradients)
        return ModelPassResult(gradients, of_images)

    def attacked(
        self, attack: Attack, branch: str, statistics: str, images, labels, seed
    ) -> tf.Tensor:
        """What an attack through a branch makes of the images; layers stand still
        meanwhile.
        """
        if not isinstance(attack, PGD):
            return attack(None, images, None, seed)
        images = tf.cast(images, tf.float32)

        def disturb():
            return self._attack(attack, branch, statistics, images, labels, seed)

        def disturb_alone():
            # A plain norm knows no branch: called with training=True, each look moves it.
            norms = find_batch_norms(self.network)
            moved = [
                variable
                for norm in (*norms.plain, *norms.foreign)
                for variable in norm.non_trainable_variables
            ]
            before = [tf.identity(variable) for variable in moved]
            found = disturb()
            for variable, value in zip(moved, before):
                variable.assign(value)
            return found

        is_warming_up = self.model.is_warming_up()
        if is_warming_up is None or statistics == "batch":
            return disturb_alone()
        return tf.cond(is_warming_up, lambda: images, disturb_alone)

    def _attack(self, attack, branch, statistics, images, labels, seed):
        def outputs_of(images):
            return self.attacked_outputs(images, labels, branch, statistics)

        wanted = labels[LABELS]
        if attack.targeted:
            if self.labels_are_weights is None:  # trained without `fit`
                shape = outputs_of(images).shape
                is_alike = wanted.shape.rank == shape.rank and wanted.shape[-1] == shape[-1]
                self.labels_are_weights = is_alike
            wanted = draw_targets(attack, wanted, self.labels_are_weights, seed)

        def objective(outputs):
            loss = self.model.attack_scores.compiled_loss(wanted, outputs, labels.get(WEIGHTS))
            count = tf.shape(tf.nest.flatten(outputs)[0])[0]
            return tf.cast(loss, tf.float32) * tf.cast(count, tf.float32)  # a sum over the images

        return attack(outputs_of, images, None, seed, objective=objective)

    def attacked_outputs(self, images, labels, branch: str, statistics: str):
        """The outputs that an attack sees."""
        inputs = join_inputs(images, labels[OTHER_INPUTS], self.model.attacked_input)
        # Networks of this project are attacked with their dropout, as by its own trainer.
        trains = statistics == "batch" and self.model.folds_batch_norms
        if statistics == "batch" and not trains:
            self._find_told_norms(inputs, branch)
        # Nothing moves, not even norms that are called with training=True.
        with use_branch(
            branch, update_statistics=False, batch_moments=statistics == "batch" and not trains
        ):
            return self.network(inputs, training=trains)

    def _find_told_norms(self, inputs, branch: str) -> None:
        """Lets batch norms see, in a pass that is traced but never run, which of them are
        called with training=False when the network trains.
        """

        def train(inputs):
            with use_branch(branch, update_statistics=False):
                return self.network(inputs, training=True)

        specs = tf.nest.map_structure(tf.TensorSpec.from_tensor, inputs)
        tf.function(train).get_concrete_function(specs)


def draw_targets(attack: PGD, labels: tf.Tensor, are_weights: bool, seed: tf.Tensor) -> tf.Tensor:
    """Returns wrong labels in the form of the right ones: class numbers [batch, …] of any
    dtype, or class weights [batch, …, classes], of which one-hot ones.
    """
    if are_weights:
        rows = tf.reshape(tf.cast(labels, tf.float32), [-1, attack.num_classes])
        targets = tf.one_hot(attack.draw_targets(rows, seed), attack.num_classes)
    else:
        targets = attack.draw_targets(tf.reshape(tf.cast(labels, tf.int32), [-1]), seed)
    targets = tf.reshape(tf.cast(targets, labels.dtype), tf.shape(labels))
    return tf.ensure_shape(targets, labels.shape)


def _split(structure: Any, count: int) -> list[Any]:
    """`count` structures of equal parts of the tensors."""
    if count == 1:
        return [structure]
    flat = [tf.split(tensor, count) for tensor in tf.nest.flatten(structure)]
    return [
        tf.nest.pack_sequence_as(structure, [parts[index] for parts in flat])
        for index in range(count)
    ]
