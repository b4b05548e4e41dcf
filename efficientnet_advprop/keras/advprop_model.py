"""AdvProp through `fit` of Keras 2: a model's step shows it clean and adversarial images.

    trainer = AdvPropModel(dual, attack=PGD(epsilon=1.0, num_classes=10))
    trainer.compile("sgd", loss, metrics=["accuracy"])
    trainer.fit(dataset, validation_data=validation)  # loss, adversarial_loss, accuracy, …

The code that makes the gradients is that of this project's trainer: one pass after the
other, so that the activations of one are in memory, and Fast AdvProp is among the methods.
Validation, prediction and export go through the main branch.
"""

import dataclasses
from typing import Any, Optional

import tensorflow as tf

from efficientnet_advprop.attacks import PGD, UniformNoise
from efficientnet_advprop.config.methods import AUGMENTED, CLEAN
from efficientnet_advprop.keras.first_batch import PACKAGE as PACKAGE_OF_KERAS
from efficientnet_advprop.keras.first_batch import FirstBatch, readable_errors, spec_of
from efficientnet_advprop.keras.model_passes import LABELS, OTHER_INPUTS, WEIGHTS, ModelPassRunner
from efficientnet_advprop.keras.view_scores import ViewScores, results_of
from efficientnet_advprop.keras2 import keras
from efficientnet_advprop.keras_common.fit_model import AdvPropModel, split_inputs
from efficientnet_advprop.models.converted import conversion
from efficientnet_advprop.models.converted.branched_layers import PACKAGE
from efficientnet_advprop.models.normalization import DualBatchNormalization
from efficientnet_advprop.runtime.errors import ModelError
from efficientnet_advprop.training.passes import fast_advprop_gradients, gradients_by_pass
from efficientnet_advprop.training.steps import check_attack
from tpu_utils import randomness, replica_runtime
from tpu_utils.batch_iterator import keep_freed_blocks


@keras.saving.register_keras_serializable(PACKAGE, name="AdvPropModel")
class AdvPropModelOfKeras2(AdvPropModel, keras.Model):
    __doc__ = AdvPropModel.__doc__

    keras, keras_package = keras, PACKAGE_OF_KERAS
    attacks = {kind.__name__: kind for kind in (PGD, UniformNoise)}
    deserialize = staticmethod(conversion.deserialize)

    def __init__(self, network, *args, **kwargs):
        super().__init__(network, *args, **kwargs)
        if network.distribute_strategy is not self.distribute_strategy:
            raise ModelError(
                "`network` was made under another distribution strategy; make the AdvPropModel"
                " under `strategy.scope()`, too."
            )
        object.__setattr__(self, "_view_scores", {})

    @staticmethod
    def num_aux_branches(network):
        count = conversion.aux_branches_of(network)
        if getattr(network, "aux_branches", 0) and not hasattr(network, "num_aux_branches"):
            raise ModelError(
                f"`network` has `aux_branches`={network.aux_branches} of its own, which it takes as"
                " an argument of its call; build it with aux_branches=0 and give it to"
                " add_auxiliary_batch_norms."
            )
        return count

    def check_method(self, name, row, attack, statistics):
        try:
            check_attack(name, row, attack, statistics)
        except ValueError as error:
            raise ModelError(str(error)) from None

    def make_counter(self, name):
        return self.add_weight(
            name=name,
            shape=(),
            dtype=tf.int64,
            initializer="zeros",
            trainable=False,
            aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA,
        )

    def call(self, inputs, training=None):
        return self.network(inputs, training=training)

    # What `fit` calls.

    def compile(self, optimizer="rmsprop", loss=None, metrics=None, loss_weights=None,
                weighted_metrics=None, **kwargs):  # fmt: skip
        """As `keras.Model.compile`; metrics are kept for each kind of images apart."""
        for name, part in dict(optimizer=optimizer, loss=loss, metrics=metrics,
                               weighted_metrics=weighted_metrics).items():  # fmt: skip
            _check_parts(name, part)
        super().compile(optimizer, loss, metrics, loss_weights, weighted_metrics, **kwargs)
        views = [view for view in self.row.views if view != CLEAN]
        with self.distribute_strategy.scope():
            scores = {view: ViewScores(view, self, loss, loss_weights) for view in views}
            attack_scores = ViewScores("attack", self, loss, loss_weights)
        # Not as attributes of the model, whose checkpoints they are no part of.
        object.__setattr__(self, "_view_scores", scores)
        object.__setattr__(self, "attack_scores", attack_scores)

    def compile_from_config(self, config):
        self.compile(**keras.saving.deserialize_keras_object(config))
        if self.network.built:
            self.optimizer.build(self.trainable_variables)

    def fit(self, x=None, y=None, batch_size=None, epochs=1, verbose="auto", callbacks=None,
            **kwargs):  # fmt: skip
        _check_parts("callbacks", callbacks)
        return super().fit(x, y, batch_size, epochs, verbose, callbacks, **kwargs)

    def look_at_first_batch(self, x, y, sample_weight, batch_size):
        first = FirstBatch(x, y, sample_weight, batch_size)
        first.check(self)
        return first.data

    def readable_errors(self):
        return readable_errors()

    def begin_epoch(self, epoch, logs=None):
        super().begin_epoch(epoch, logs)
        keep_freed_blocks()  # the epoch's iterator is there; the first one may have ended that

    def train_step(self, data):
        """One update, on every replica; the passes are the method's."""
        inputs, labels, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        images, others = split_inputs(inputs, self.attacked_input)
        given = {LABELS: labels, OTHER_INPUTS: others}
        if sample_weight is not None:
            given[WEIGHTS] = sample_weight
        batch = {"images": images, "labels": given}
        if AUGMENTED in self.row.views:
            batch["augmented_images"] = tf.cast(self.augmentation(images), tf.float32)
        seed = tf.constant([self.seed, 0])
        for part in (tf.cast(self.step_counter, tf.int32), replica_runtime.current().replica_id):
            seed = randomness.fold_in(seed, part)
        attack = None if self.attack is None else self.attack_of_step()
        if self.row.adversarial_share is None:
            run = ModelPassRunner(self, None)
            gradients_of = gradients_by_pass(self.row, run, attack, self.attack_statistics)
        else:
            run = ModelPassRunner(self, images.shape[0])
            gradients_of = fast_advprop_gradients(self.row, run, attack)
        gradients, _ = gradients_of(batch, seed)
        trained = self.network.trainable_variables
        self._check_gradients(trained, gradients)
        self.optimizer.apply_gradients(zip(gradients, trained))
        self.step_counter.assign_add(1)
        results = results_of(self.metrics)
        for scores in self._view_scores.values():
            results.update(scores.results())
        return results

    def reset_metrics(self):
        super().reset_metrics()
        for scores in self._view_scores.values():
            scores.reset_metrics()

    # What the passes ask for.

    def attack_of_step(self):
        attack = super().attack_of_step()
        if self.clean_epochs:
            epsilon = tf.where(self.is_warming_up(), 0.0, attack.epsilon)
            attack = dataclasses.replace(attack, epsilon=epsilon)
        return attack

    def epsilon_of_step(self):
        return tf.convert_to_tensor(tf.cast(self.epsilon_schedule(self.step_counter), tf.float32))

    def is_warming_up(self) -> Optional[tf.Tensor]:
        """Whether this is one of the clean epochs, bool scalar; None where there are
        none.
        """
        return self.epoch_counter < self.clean_epochs if self.clean_epochs else None

    def scores_of(self, view: str) -> Any:
        """Counts the losses and metrics of a kind of images."""
        return self if view == CLEAN else self._view_scores[view]

    def update(self, labels, outputs, sample_weight=None) -> None:
        """As `ViewScores.update`, for the clean images."""
        self.compiled_metrics.update_state(labels, outputs, sample_weight)

    @property
    def folds_batch_norms(self) -> bool:
        """Whether the network folds batch norms in inference mode, as those of this
        project do.
        """
        norms = conversion.find_batch_norms(self.network).branched
        return any(isinstance(norm, DualBatchNormalization) for norm in norms)

    @property
    def computes_in_float16(self):
        layers = [self.network, *self.network.submodules]
        return any(getattr(layer, "compute_dtype", None) == "float16" for layer in layers)

    def _check_gradients(self, variables, gradients) -> None:
        """Refuses to go on where a branch would never learn."""
        auxiliary = {
            id(variable)
            for norm in conversion.find_batch_norms(self.network).branched
            for child in norm.aux
            for variable in child.trainable_variables
        }
        idle = [
            variable.name
            for variable, gradient in zip(variables, gradients)
            if gradient is None and id(variable) in auxiliary
        ]
        if idle:
            raise ModelError(
                f"No gradient reaches {idle[0]!r} and {len(idle) - 1} more variables of auxiliary"
                " batch norms: either the outputs do not depend on them, or a tf.function that is"
                " no attribute of a layer keeps their main branch. Remove its decorator; Keras"
                " compiles the whole step."
            )

    def build_network(self, inputs) -> None:
        """Makes all variables of a network that has none yet, and the branches of late
        layers; `inputs` are a batch, or tensor specs like one.
        """
        if not self.network.built:
            specs = tf.nest.map_structure(spec_of, inputs)
            tf.function(self.network).get_concrete_function(specs)
        self.built = True
        found = conversion.find_batch_norms(self.network)
        if found.plain and found.branched:
            with self.distribute_strategy.scope():
                conversion.convert_batch_norms(self.network, found.branched[0].aux_branches)


def _check_parts(name: str, parts: Any) -> None:
    """Refuses parts of Keras 3, which cannot work with a model of Keras 2."""
    for part in tf.nest.flatten(parts):
        kinds = {kind.__module__.split(".")[0] for kind in type(part).__mro__}
        if PACKAGE_OF_KERAS == "tf_keras" and "keras" in kinds:
            raise ModelError(
                f"`{name}` has a {type(part).__name__} of Keras 3, but the model is one of Keras 2;"
                " take it from efficientnet_advprop.keras2, or the whole model to"
                " efficientnet_advprop.keras3."
            )
