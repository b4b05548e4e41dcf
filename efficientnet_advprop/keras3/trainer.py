"""AdvProp through `fit` of Keras 3, on every backend.

    trainer = AdvPropModel(dual, attack=PGD(epsilon=1.0, num_classes=10))
    trainer.compile("sgd", loss, metrics=["accuracy"])
    trainer.fit(dataset, validation_data=validation)  # loss, clean_loss, adversarial_loss, …

Keras's train step of each backend stays as it is. The passes that it does not make are
made inside `compute_loss`, which every backend calls where it differentiates.
"""

import contextlib
import dataclasses
import threading
import warnings
from typing import Any, Callable, Optional, Union

import keras
from keras import ops

from efficientnet_advprop.config import keras_training as rules
from efficientnet_advprop.config.methods import ADVERSARIAL, AUGMENTED, CLEAN, Method, Pass
from efficientnet_advprop.keras3 import auxiliary_norms, data_checks
from efficientnet_advprop.keras3.image_attack import PGD
from efficientnet_advprop.keras3.keras_internals import (
    compiled_loss,
    compiled_metrics,
    creation_scope,
    whole_loss,
    without_updates,
)
from efficientnet_advprop.keras3.view_metric import ViewMetric
from efficientnet_advprop.runtime.errors import ModelError
from efficientnet_advprop.runtime.pass_mode import use_branch

_FLOAT16_LOSS_SCALE = 128.0
_KERAS_PASS = Pass("main", (CLEAN,))  # the pass that Keras's own step makes
# Whether Keras's train step is being traced, and outside of the passes made here. Each
# replica of a MirroredStrategy has a thread of its own.
_thread = threading.local()


def _trains() -> bool:
    return getattr(_thread, "trains", False)


@contextlib.contextmanager
def _training(trains: bool):
    before, _thread.trains = _trains(), trains
    try:
        yield
    finally:
        _thread.trains = before


@keras.saving.register_keras_serializable(auxiliary_norms.PACKAGE)
class AdvPropModel(keras.Model):
    """Trains a Keras model by a method of this project; in all else it is that model.

    `fit` reports the sum of the losses as `loss`, the clean images' as `clean_loss`,
    their metrics under their own names, other images' as `adversarial_loss`,
    `adversarial_accuracy`, `augmented_loss` and so on. Losses of layers count once.

    Args:
        network: with as many auxiliary branches as the method trains
            (`add_auxiliary_batch_norms`); plain for "vanilla", "adversarial" and
            "adversarial_only".
        attack: makes the adversarial images, from the compiled loss; None for a method
            without them.
        method: a key of `METHODS` but "fast_advprop", or a `Method` of your own.
        pixel_range: the values of black and white in the images. The attack's ε and
            steps are counted in 255ths of the distance between them.
        attacked_input: the name (or place) of the images among several inputs.
        attack_statistics: what attacked batch norms normalise with: "running"
            statistics (the paper) or those of the "batch".
        augmentation: images → other views of them, for "augmented" images.
        clean_epochs: so many epochs the adversarial images are the clean ones.
        epsilon_schedule: step → the attack's ε, instead of the attack's own.
        seed: of the attack's random numbers.

    Raises:
        ModelError: the arguments do not fit each other.
    """

    def __init__(
        self,
        network: keras.Model,
        attack: Optional[PGD] = None,
        method: Union[str, Method] = "advprop",
        *,
        pixel_range: tuple[float, float] = (0.0, 255.0),
        attacked_input: Union[str, int, None] = None,
        attack_statistics: str = "running",
        augmentation: Optional[Callable] = None,
        clean_epochs: int = 0,
        epsilon_schedule: Optional[Callable] = None,
        seed: int = 0,
        name: Optional[str] = None,
        **kwargs,
    ):
        auxiliary_norms.check_model("network", network)
        method_name, row = rules.checked_method(method)
        if row.adversarial_share is not None:
            raise ModelError(
                f"`method` is {method_name!r}, whose attack is a part of the training pass itself;"
                " Keras 3's own step leaves no room for that. Take 'advprop', or the Keras 2 door."
            )
        if attack is not None and not isinstance(attack, PGD):
            raise ModelError(f"`attack` is {attack!r}, but must be a keras3.PGD.")
        aux_branches = auxiliary_norms.aux_branches_of(network)
        rules.check_arguments(
            method_name,
            row,
            aux_branches=aux_branches,
            attack=attack,
            augmentation=augmentation,
            clean_epochs=clean_epochs,
            pixel_range=pixel_range,
            attack_statistics=attack_statistics,
        )
        # Images keep their dtype here; the network casts them.
        kwargs.setdefault("dtype", network.dtype_policy)
        super().__init__(name=name or f"advprop_{network.name}", autocast=False, **kwargs)
        self.network, self.method, self.row, self.attack = network, method, row, attack
        self.aux_branches = aux_branches
        self.pixel_range = tuple(map(float, pixel_range))
        self.attacked_input, self.attack_statistics = attacked_input, attack_statistics
        self.augmentation, self.clean_epochs = augmentation, clean_epochs
        self.epsilon_schedule, self.seed = epsilon_schedule, seed
        if hasattr(network, "output_names"):
            self.output_names = network.output_names
        self.attack_seed = keras.random.SeedGenerator(seed)
        once = dict(trainable=False, initializer="zeros", aggregation="only_first_replica")
        self.step_counter = self.add_weight(shape=(), dtype="int32", name="step", **once)
        self.epoch_counter = self.add_weight(shape=(), dtype="int32", name="epoch", **once)
        self.labels_are_weights: Optional[bool] = None  # known from the first batch
        self._view_metrics, self._clean_loss = dict, lambda: None  # made with the step
        self._shows_views = True
        for text in rules.left_out(network, "keras"):
            warnings.warn(text, stacklevel=2)

    def build(self, input_shape=None):
        if not self.network.built:
            self.network.build(input_shape)
        self.built = True

    def call(self, inputs, training=None):
        if training and _trains() and not self._keras_makes_a_pass:
            # Keras's step cannot be told not to make a pass. Nothing comes of this one,
            # and a compiler takes it out.
            with without_updates(self.variables):
                return self.network(inputs, training=True)
        return self.network(inputs, training=training)

    @property
    def _keras_makes_a_pass(self) -> bool:
        return self.row.passes[0] == _KERAS_PASS

    # What `fit` calls.

    def fit(self, x=None, y=None, batch_size=None, epochs=1, verbose="auto", callbacks=None,
            **kwargs):  # fmt: skip
        """As `keras.Model.fit`, after a look at the first batch.

        Raises:
            ModelError: the batch, the loss and the attack do not fit each other.
        """
        x, parts = data_checks.look(x, y, kwargs.get("sample_weight"), batch_size)
        data_checks.check(self, parts)
        begin = keras.callbacks.LambdaCallback(
            on_epoch_begin=lambda epoch, logs: self.epoch_counter.assign(epoch)
        )
        if isinstance(callbacks, keras.callbacks.CallbackList):
            callbacks.append(begin)
        else:
            callbacks = [*keras.tree.flatten(callbacks or []), begin]
        return super().fit(x, y, batch_size, epochs, verbose, callbacks, **kwargs)

    def make_train_function(self, force=False):
        if self.train_function is None:
            self._make_metrics()
        return super().make_train_function(force)

    def _make_metrics(self) -> None:
        # In functions, which Keras does not track: they are no part of the model.
        with creation_scope(self):
            metrics = {view: ViewMetric(view, self) for view in self.row.views if view != CLEAN}
            self._view_metrics = lambda: metrics
            clean = keras.metrics.Mean(name="clean_loss") if CLEAN in self.row.views else None
            self._clean_loss = lambda: clean

    def train_step(self, *args, **kwargs):
        """As Keras's, of each backend."""
        with _training(True):
            return super().train_step(*args, **kwargs)

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        """The losses of all passes; those that Keras has not made are made here."""
        if not (training and _trains()):
            return super().compute_loss(x, y, y_pred, sample_weight, training)
        total, passes = None, list(self.row.passes)
        if self._keras_makes_a_pass:
            total = super().compute_loss(x, y, y_pred, sample_weight, training)
            self._count(CLEAN, total, y, y_pred, sample_weight)
            passes.pop(0)
        images = self.images_of(x)
        views = {CLEAN: images}
        if AUGMENTED in self.row.views:
            views[AUGMENTED] = ops.stop_gradient(self.augmentation(images))
        if ADVERSARIAL in self.row.views:
            views[ADVERSARIAL] = self._adversarial_images(x, y, sample_weight)
        for part in passes:
            loss = self._run(part, views, x, y, sample_weight, with_own_losses=total is None)
            total = loss if total is None else total + loss
        self.step_counter.assign(self.step_counter + 1)
        return total

    def _run(self, part: Pass, views, x, labels, sample_weight, with_own_losses: bool):
        """The weighted loss of one pass, in which statistics move."""
        images = [ops.cast(views[view], "float32") for view in part.views]
        others = keras.tree.map_structure(
            lambda tensor: ops.concatenate([tensor] * len(images)), self._without_images(x)
        )
        joined = self._inputs(ops.concatenate(images) if len(images) > 1 else images[0], others)
        # TensorFlow's tape has to see that variables are read.
        trained = [ops.convert_to_tensor(v.value) for v in self.trainable_variables]
        rest = self.non_trainable_variables
        old = [ops.convert_to_tensor(v.value) for v in rest]
        with _training(False), use_branch(part.branch):
            outputs, new, own = self.stateless_call(
                trained, old, joined, training=True, return_losses=True
            )
        for variable, before, after in zip(rest, old, new):
            if after is not before:
                variable.assign(after)
        self._check_passed(part.branch)
        total = sum(map(self._aggregate_additional_loss, own)) if with_own_losses and own else 0.0
        count = len(part.views)
        for index, view in enumerate(part.views):
            share = outputs
            if count > 1:
                share = keras.tree.map_structure(lambda t: ops.split(t, count)[index], outputs)  # noqa: B023
            loss = self._loss_of(labels, share, sample_weight)
            self._count(view, loss, labels, share, sample_weight)
            total = total + part.weight * loss
        return total

    def _check_passed(self, branch: str) -> None:
        norms = auxiliary_norms.branched_norms(self.network)
        idle = [norm for norm in norms if "main" in norm.passed and branch not in norm.passed]
        if idle:
            raise ModelError(
                f"The batch norm {idle[0].name!r} keeps its main branch in a pass through {branch}:"
                " a compiled function inside the model (tf.function, jax.jit) goes on with its"
                " first trace. Remove the decorator; Keras compiles the whole step."
            )

    def _loss_of(self, labels, outputs, sample_weight):
        """The compiled loss alone; nothing that Keras reports of it is counted."""
        loss = compiled_loss(self)
        with keras.StatelessScope([(v, v.value) for v in loss.variables]):
            return loss(labels, outputs, sample_weight)

    def _count(self, view: str, loss, labels, outputs, sample_weight) -> None:
        if view != CLEAN:
            self._view_metrics()[view].update_state(loss, labels, outputs, sample_weight)
            return
        count = ops.shape(keras.tree.flatten(outputs)[0])[0]
        self._clean_loss().update_state(whole_loss(loss), sample_weight=count)
        metrics = compiled_metrics(self)
        if not self._keras_makes_a_pass and metrics is not None:
            metrics.update_state(labels, outputs, sample_weight)

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        """As `keras.Model.compute_metrics`, of the clean images."""
        if _trains() and not self._keras_makes_a_pass:
            return self.get_metrics_result()  # counted by `compute_loss`
        return super().compute_metrics(x, y, y_pred, sample_weight)

    @property
    def metrics(self):
        """Keras's own and those of each kind of images."""
        clean = self._clean_loss()
        more = [] if clean is None else [clean]
        return [*super().metrics, *more, *self._view_metrics().values()]

    def get_metrics_result(self):
        """As `keras.Model.get_metrics_result`; validation has main's alone."""
        results, shared = super().get_metrics_result(), compiled_metrics(self)
        hidden = set()
        if not self._shows_views:
            hidden = {name for metric in self._view_metrics().values() for name in metric.result()}
            hidden.add("clean_loss")
        elif CLEAN not in self.row.views and shared is not None:
            hidden = set(shared.result())  # no clean image was seen
        return {name: value for name, value in results.items() if name not in hidden}

    @contextlib.contextmanager
    def _main_alone(self):
        before, self._shows_views = self._shows_views, False
        try:
            yield
        finally:
            self._shows_views = before

    def evaluate(self, *args, **kwargs):
        """As `keras.Model.evaluate`, through the main branch."""
        with self._main_alone():
            return super().evaluate(*args, **kwargs)

    def test_on_batch(self, *args, **kwargs):
        """As `keras.Model.test_on_batch`, through the main branch."""
        with self._main_alone():
            return super().test_on_batch(*args, **kwargs)

    # The attack.

    def _adversarial_images(self, x, labels, sample_weight):
        attack, images = self._attack_of_step(), ops.cast(self.images_of(x), "float32")
        others, batch_moments = self._without_images(x), self.attack_statistics == "batch"
        # Keras saves no generator's state; that of a step follows from its number.
        state = self.attack_seed.state
        counters = ops.stack([ops.cast(self.seed, "int32"), 16 * self.step_counter])
        state.assign(ops.cast(counters, state.dtype))
        start = attack.start(images, self.attack_seed)
        if attack.targeted:
            labels = attack.draw_targets(labels, bool(self.labels_are_weights), self.attack_seed)

        def loss_of(values):
            with without_updates(variables), use_branch(branch, batch_moments=batch_moments):
                outputs = self.network(self._inputs(values, others), training=False)
                loss = self._loss_of(labels, outputs, sample_weight)
            count = ops.shape(keras.tree.flatten(outputs)[0])[0]
            # A sum over the images, so that small gradients are not lost.
            return ops.cast(loss, "float32") * ops.cast(count, "float32")

        branch = self.row.attacked_branch
        variables = [*self.variables, *compiled_loss(self).variables]
        if not self.clean_epochs:
            return attack.climb(loss_of, images, start)
        return ops.cond(
            self.epoch_counter < self.clean_epochs,
            lambda: images,
            lambda: attack.climb(loss_of, images, start),
        )

    def _attack_of_step(self) -> PGD:
        changes: dict[str, Any] = {"pixel_range": self.pixel_range}
        if "float16" in self.network.compute_dtype and self.network.compute_dtype[0] != "b":
            changes["loss_scale"] = max(self.attack.loss_scale, _FLOAT16_LOSS_SCALE)
        if self.epsilon_schedule is not None:
            epsilon = self.epsilon_schedule(self.step_counter.value)
            changes["epsilon"] = ops.cast(epsilon, "float32")
        return dataclasses.replace(self.attack, **changes)

    def images_of(self, x):
        return x if self.attacked_input is None else x[self.attacked_input]

    def _without_images(self, x):
        """The other inputs, by name or place."""
        if self.attacked_input is None:
            return {}
        pairs = dict(x) if isinstance(x, dict) else dict(enumerate(x))
        del pairs[self.attacked_input]
        return pairs

    def _inputs(self, images, others):
        """The network's inputs: `images` in their place among the other ones."""
        if self.attacked_input is None:
            return images
        pairs = {**others, self.attacked_input: images}
        if isinstance(self.attacked_input, str):
            return pairs
        return [pairs[place] for place in range(len(pairs))]

    # Saving.

    def get_config(self):
        def serialized(part):
            return None if part is None else keras.saving.serialize_keras_object(part)

        method = self.method
        return {
            "network": serialized(self.network),
            "attack": None if self.attack is None else dataclasses.asdict(self.attack),
            "method": method if isinstance(method, str) else dataclasses.asdict(method),
            "pixel_range": list(self.pixel_range),
            "attacked_input": self.attacked_input,
            "attack_statistics": self.attack_statistics,
            "augmentation": serialized(self.augmentation),
            "clean_epochs": self.clean_epochs,
            "epsilon_schedule": serialized(self.epsilon_schedule),
            "seed": self.seed,
            "name": self.name,
        }

    @classmethod
    def from_config(cls, config, custom_objects=None):
        config = dict(config)
        for name in ("network", "augmentation", "epsilon_schedule"):
            if config[name] is not None:
                config[name] = keras.saving.deserialize_keras_object(config[name], custom_objects)
        if config["attack"] is not None:
            attack = dict(config["attack"])
            config["attack"] = PGD(**{**attack, "pixel_range": tuple(attack["pixel_range"])})
        if isinstance(config["method"], dict):
            config["method"] = rules.method_from_dict(config["method"])
        return cls(**config)
