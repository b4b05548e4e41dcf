"""AdvProp through Keras's `fit`: a model's step shows it clean and adversarial images.

    trainer = AdvPropModel(dual, attack=PGD(epsilon=1.0, num_classes=10))
    trainer.compile("sgd", loss, metrics=["accuracy"])
    trainer.fit(dataset, validation_data=validation)  # loss, adversarial_loss, accuracy, …

The methods are those of this project's trainer (`methods.METHODS`), and so is the code
that makes their gradients. Validation, prediction and export go through the main
branch.
"""

import dataclasses
import warnings
from typing import Any, Callable, Optional, Union

import tensorflow as tf

from efficientnet_advprop.attacks import PGD, Attack, UniformNoise
from efficientnet_advprop.config import keras_training as rules
from efficientnet_advprop.config.methods import AUGMENTED, CLEAN, Method
from efficientnet_advprop.keras.first_batch import PACKAGE as PACKAGE_OF_KERAS
from efficientnet_advprop.keras.first_batch import FirstBatch
from efficientnet_advprop.keras.model_passes import (
    LABELS,
    OTHER_INPUTS,
    WEIGHTS,
    ModelPassRunner,
    without_images,
)
from efficientnet_advprop.keras.view_scores import ViewScores, results_of
from efficientnet_advprop.keras2 import keras
from efficientnet_advprop.models.converted.branched_layers import PACKAGE
from efficientnet_advprop.models.converted.conversion import convert_batch_norms, find_batch_norms
from efficientnet_advprop.models.converted.dual_model import check_model, deserialize
from efficientnet_advprop.models.normalization import DualBatchNormalization
from efficientnet_advprop.runtime.errors import ModelError
from efficientnet_advprop.training.fast_advprop import fast_advprop_gradients
from efficientnet_advprop.training.steps import check_attack, gradients_by_pass
from tpu_utils import randomness, replica_runtime
from tpu_utils.batch_iterator import keep_freed_blocks

Schedule = keras.optimizers.schedules.LearningRateSchedule
_ATTACKS = {kind.__name__: kind for kind in (PGD, UniformNoise)}
_FLOAT16_LOSS_SCALE = 128.0  # the authors' adversarial-training code


@keras.utils.register_keras_serializable(PACKAGE)
class AdvPropModel(keras.Model):
    """Trains a Keras model by a method of this project; in all else it is that model.

    `fit` reports the clean images' loss and metrics under their own names, other
    images' with the name of their view before: `adversarial_loss`, `augmented_loss`,
    `noisy_loss`. The losses are added (L_c + L_a, as in the paper); `loss` includes the
    layers' own losses, such as weight decay, which count once per step. Everything that
    the model has learnt is in `network`.

    Args:
        network: with as many auxiliary branches as the method trains
            (`add_auxiliary_batch_norms`); plain for "vanilla", "adversarial" and
            "adversarial_only".
        attack: makes the adversarial images, from the compiled loss; None for a method
            without them.
        method: a key of `METHODS`, or a `Method` of your own.
        pixel_range: the values of black and white in the images. The attack's ε and
            steps are counted in 255ths of the distance between them.
        attacked_input: the name (or place) of the images among several inputs; None
            where there is one input.
        attack_statistics: what attacked batch norms normalise with: "running"
            statistics (the paper) or those of the "batch"; None: what the method wants.
        augmentation: images → other views of them, for methods that see "augmented"
            images.
        clean_epochs: so many epochs the adversarial images are the clean ones.
        epsilon_schedule: step → the attack's ε, instead of the attack's own.
        seed: of the attack's random numbers.

    Raises:
        ModelError: the arguments do not fit each other.
    """

    def __init__(
        self,
        network: keras.Model,
        attack: Optional[Attack] = None,
        method: Union[str, Method] = "advprop",
        *,
        pixel_range: tuple[float, float] = (0.0, 255.0),
        attacked_input: Union[str, int, None] = None,
        attack_statistics: Optional[str] = None,
        augmentation: Optional[Callable] = None,
        clean_epochs: int = 0,
        epsilon_schedule: Optional[Schedule] = None,
        seed: int = 0,
        name: Optional[str] = None,
        **kwargs,
    ):
        check_model("network", network)
        super().__init__(name=name or f"advprop_{network.name}", **kwargs)
        method_name, row = rules.checked_method(method)
        statistics = attack_statistics or ("running" if row.adversarial_share is None else "batch")
        _check_network(network)
        rules.check_arguments(
            method_name,
            row,
            aux_branches=_aux_branches(network),
            attack=attack,
            augmentation=augmentation,
            clean_epochs=clean_epochs,
            pixel_range=pixel_range,
            attack_statistics=statistics,
        )
        try:
            check_attack(method_name, row, attack, statistics)
        except ValueError as error:
            raise ModelError(str(error)) from None
        for text in rules.left_out(network, PACKAGE_OF_KERAS):
            warnings.warn(text, stacklevel=2)
        if network.distribute_strategy is not self.distribute_strategy:
            raise ModelError(
                "`network` was made under another distribution strategy; make the AdvPropModel"
                " under `strategy.scope()`, too."
            )
        self.network, self.method, self.row = network, method, row
        self.attack, self.attack_statistics = attack, statistics
        self.pixel_range = tuple(map(float, pixel_range))
        self.attacked_input, self.augmentation = attacked_input, augmentation
        self.clean_epochs, self.epsilon_schedule, self.seed = clean_epochs, epsilon_schedule, seed
        self.output_names = getattr(network, "output_names", None)
        self.step_counter = self._make_counter("advprop_step")
        self.epoch_counter = self._make_counter("advprop_epoch")
        object.__setattr__(self, "_view_scores", {})

    def _make_counter(self, name: str) -> tf.Variable:
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
        self.compile(**keras.utils.deserialize_keras_object(config))
        if self.network.built:
            self.optimizer.build(self.trainable_variables)

    def fit(self, x=None, y=None, batch_size=None, epochs=1, verbose="auto", callbacks=None,
            **kwargs):  # fmt: skip
        """As `keras.Model.fit`, after a look at the first batch.

        Raises:
            ModelError: the batch, the loss and the attack do not fit each other.
        """
        _check_parts("callbacks", callbacks)
        first = FirstBatch(x, y, kwargs.get("sample_weight"), batch_size)
        first.check(self)
        begin_epoch = keras.callbacks.LambdaCallback(on_epoch_begin=self._begin_epoch)
        if isinstance(callbacks, keras.callbacks.CallbackList):
            callbacks.append(begin_epoch)
        else:
            callbacks = [*tf.nest.flatten(callbacks or []), begin_epoch]
        with first.readable_errors():
            return super().fit(first.data, y, batch_size, epochs, verbose, callbacks, **kwargs)

    def _begin_epoch(self, epoch, logs) -> None:
        del logs
        self.epoch_counter.assign(epoch)
        keep_freed_blocks()  # the epoch's iterator is there; the first one may have ended that

    def train_step(self, data):
        """One update, on every replica; the passes are the method's."""
        inputs, labels, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        images, others = without_images(inputs, self.attacked_input)
        given = {LABELS: labels, OTHER_INPUTS: others}
        if sample_weight is not None:
            given[WEIGHTS] = sample_weight
        batch = {"images": images, "labels": given}
        if AUGMENTED in self.row.views:
            batch["augmented_images"] = tf.cast(self.augmentation(images), tf.float32)
        seed = tf.constant([self.seed, 0])
        for part in (tf.cast(self.step_counter, tf.int32), replica_runtime.current().replica_id):
            seed = randomness.fold_in(seed, part)
        attack = self.attack_of_step()
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

    def attack_of_step(self) -> Optional[Attack]:
        """The attack in this model's pixels, with the ε of the present step."""
        if self.attack is None:
            return None
        changes: dict[str, Any] = {"pixel_range": self.pixel_range}
        if isinstance(self.attack, PGD) and self._computes_in_float16:
            changes["loss_scale"] = max(self.attack.loss_scale, _FLOAT16_LOSS_SCALE)
        if self.epsilon_schedule is not None:
            epsilon = tf.cast(self.epsilon_schedule(self.step_counter), tf.float32)
            changes["epsilon"] = tf.convert_to_tensor(epsilon)
        if self.clean_epochs:
            epsilon = changes.get("epsilon", self.attack.epsilon)
            changes["epsilon"] = tf.where(self.is_warming_up(), 0.0, epsilon)
        return dataclasses.replace(self.attack, **changes)

    def is_warming_up(self) -> Optional[tf.Tensor]:
        """Whether this is one of the clean epochs, bool scalar; None where there are
        none.
        """
        return self.epoch_counter < self.clean_epochs if self.clean_epochs else None

    def scores_of(self, view: str) -> Any:
        """Counts the losses and metrics of a kind of images."""
        return self if view == CLEAN else self._view_scores[view]

    def loss_of(self, labels, outputs, sample_weight=None, regularization_losses=None):
        """As `ViewScores.loss_of`, for the clean images."""
        return self.compiled_loss(
            labels, outputs, sample_weight, regularization_losses=regularization_losses
        )

    def update(self, labels, outputs, sample_weight=None) -> None:
        """As `ViewScores.update`, for the clean images."""
        self.compiled_metrics.update_state(labels, outputs, sample_weight)

    def scale_loss(self, loss: tf.Tensor) -> tf.Tensor:
        """The loss times the optimizer's loss scale, if it has one (float16)."""
        if isinstance(self.optimizer, keras.mixed_precision.LossScaleOptimizer):
            return self.optimizer.get_scaled_loss(loss)
        return loss

    def unscale_gradients(self, gradients: list) -> list:
        """The gradients of the loss, from those of the scaled one."""
        if isinstance(self.optimizer, keras.mixed_precision.LossScaleOptimizer):
            return self.optimizer.get_unscaled_gradients(gradients)
        return gradients

    @property
    def labels_are_weights(self) -> Optional[bool]:
        """Whether labels are class weights, not class numbers, by what `fit` has seen;
        else None.
        """
        return getattr(self, "_labels_are_weights", None)

    @property
    def folds_batch_norms(self) -> bool:
        """Whether the network folds batch norms in inference mode, as those of this
        project do.
        """
        norms = find_batch_norms(self.network).branched
        return any(isinstance(norm, DualBatchNormalization) for norm in norms)

    @property
    def _computes_in_float16(self) -> bool:
        layers = [self.network, *self.network.submodules]
        return any(getattr(layer, "compute_dtype", None) == "float16" for layer in layers)

    def _check_gradients(self, variables, gradients) -> None:
        """Refuses to go on where a branch would never learn."""
        auxiliary = {
            id(variable)
            for norm in find_batch_norms(self.network).branched
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
        layers.

        Args:
            inputs: a batch, or tensor specs like one.
        """
        if not self.network.built:
            specs = tf.nest.map_structure(_spec_of, inputs)
            tf.function(self.network).get_concrete_function(specs)
        self.built = True
        found = find_batch_norms(self.network)
        if found.plain and found.branched:
            with self.distribute_strategy.scope():
                convert_batch_norms(self.network, found.branched[0].aux_branches)

    # Saving.

    def get_config(self):
        method = self.method
        if isinstance(method, Method):
            method = dataclasses.asdict(method)
        attack = self.attack
        if attack is not None:
            attack = {"kind": type(attack).__name__, **dataclasses.asdict(attack)}
        network = keras.utils.serialize_keras_object(self.network)
        network.pop("compile_config", None)
        return {
            "network": network,
            "attack": attack,
            "method": method,
            "pixel_range": list(self.pixel_range),
            "attacked_input": self.attacked_input,
            "attack_statistics": self.attack_statistics,
            "augmentation": _serialized(self.augmentation),
            "clean_epochs": self.clean_epochs,
            "epsilon_schedule": _serialized(self.epsilon_schedule),
            "seed": self.seed,
            "name": self.name,
        }

    @classmethod
    def from_config(cls, config, custom_objects=None):
        config = dict(config)
        for name in ("network", "augmentation", "epsilon_schedule"):
            if config[name] is not None:
                config[name] = deserialize(config[name], custom_objects)
        if config["attack"] is not None:
            attack = dict(config["attack"])
            attack["pixel_range"] = tuple(attack["pixel_range"])
            config["attack"] = _ATTACKS[attack.pop("kind")](**attack)
        if isinstance(config["method"], dict):
            config["method"] = rules.method_from_dict(config["method"])
        return cls(**config)


def _spec_of(tensor) -> tf.TensorSpec:
    if isinstance(tensor, tf.TypeSpec):
        return tensor
    tensor = tf.convert_to_tensor(tensor)
    return tf.TensorSpec([None, *tensor.shape[1:]], tensor.dtype)


def _serialized(part: Any) -> Optional[dict]:
    return None if part is None else keras.utils.serialize_keras_object(part)


def _aux_branches(network: keras.Model) -> int:
    branched = find_batch_norms(network).branched
    return branched[0].aux_branches if branched else 0


def _check_network(network: keras.Model) -> None:
    """Refuses a network of this project with branches of its own."""
    if getattr(network, "aux_branches", 0) and not hasattr(network, "num_aux_branches"):
        raise ModelError(
            f"`network` has `aux_branches`={network.aux_branches} of its own, which it takes as an "
            "argument of its call; build it with aux_branches=0 and give it to "
            "add_auxiliary_batch_norms."
        )


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
