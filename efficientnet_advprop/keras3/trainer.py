"""AdvProp through `fit` of Keras 3, on every backend.

    trainer = AdvPropModel(dual, attack=PGD(epsilon=1.0, num_classes=10))
    trainer.compile("sgd", loss, metrics=["accuracy"])
    trainer.fit(dataset, validation_data=validation)  # loss, clean_loss, adversarial_loss, …

Keras's train step of each backend stays as it is. The passes that it does not make are
made inside `compute_loss`, which every backend calls where it differentiates.
"""

import contextlib
import threading

import keras
from keras import ops

from efficientnet_advprop.config.methods import ADVERSARIAL, AUGMENTED, CLEAN, Pass
from efficientnet_advprop.keras3 import auxiliary_norms, data_checks
from efficientnet_advprop.keras3.image_attack import PGDOfKeras3
from efficientnet_advprop.keras3.keras_internals import (
    compiled_loss,
    compiled_metrics,
    creation_scope,
    whole_loss,
    without_updates,
)
from efficientnet_advprop.keras_common.fit_model import (
    AdvPropModel,
    join_inputs,
    split_inputs,
)
from efficientnet_advprop.runtime.errors import ModelError
from efficientnet_advprop.runtime.pass_mode import use_branch

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


class ViewMetric(keras.metrics.Metric):
    """Loss and compiled metrics of a kind of images ("adversarial", "augmented").

    Metrics are not copied, which not every class allows: their state is swapped.
    """

    def __init__(self, view: str, model: keras.Model):
        super().__init__(name=view)
        self.shared = lambda: compiled_metrics(model)
        self.loss = keras.metrics.Mean(name=f"{view}_loss")
        self.state: list = []
        self.build()

    def build(self) -> None:
        """Creates the state as soon as the metrics have theirs."""
        shared = self.shared()
        if shared is None or not shared.built or self.state:
            return
        self.state = [
            self.add_variable(variable.shape, "zeros", dtype=variable.dtype, name=f"state_{index}")
            for index, variable in enumerate(shared.variables)
        ]
        self.reset_state()

    def update_state(self, loss, labels, outputs, sample_weight=None) -> None:
        count = ops.shape(keras.tree.flatten(outputs)[0])[0]
        self.loss.update_state(whole_loss(loss), sample_weight=count)
        shared = self.shared()
        if shared is None:
            return
        if not shared.built:  # Keras builds it by the first update, whose count is dropped
            shared.update_state(labels, outputs, sample_weight)
            shared.reset_state()
        self.build()
        values = [variable.value for variable in self.state]
        new = shared.stateless_update_state(values, labels, outputs, sample_weight)
        for variable, value in zip(self.state, new):
            variable.assign(value)

    def result(self) -> dict:
        results = {self.loss.name: self.loss.result()}
        if self.state:
            values = [variable.value for variable in self.state]
            for name, value in self.shared().stateless_result(values).items():
                results[f"{self.name}_{name}"] = value
        return results

    def reset_state(self) -> None:
        self.loss.reset_state()
        if self.state:
            for variable, value in zip(self.state, self.shared().stateless_reset_state()):
                variable.assign(value)


@keras.saving.register_keras_serializable(auxiliary_norms.PACKAGE, name="AdvPropModel")
class AdvPropModelOfKeras3(AdvPropModel, keras.Model):
    __doc__ = AdvPropModel.__doc__

    keras, keras_package, attacks = keras, "keras", {"PGD": PGDOfKeras3}
    num_aux_branches = staticmethod(auxiliary_norms.aux_branches_of)

    def __init__(self, network, *args, **kwargs):
        super().__init__(network, *args, **kwargs)
        self.attack_seed = keras.random.SeedGenerator(self.seed)
        self._view_metrics, self._clean_loss = dict, lambda: None  # made with the step
        self._shows_views = True

    def check_method(self, name, row, attack, statistics):
        if row.adversarial_share is not None:
            raise ModelError(
                f"`method` is {name!r}, whose attack is a part of the training pass itself;"
                " Keras 3's own step leaves no room for that. Take 'advprop', or the Keras 2 door."
            )
        if attack is not None and not isinstance(attack, PGDOfKeras3):
            raise ModelError(f"`attack` is {attack!r}, but must be a keras3.PGD.")

    def layer_arguments(self, network):
        # Images keep their dtype here; the network casts them.
        return {"dtype": network.dtype_policy, "autocast": False}

    def make_counter(self, name):
        once = dict(trainable=False, initializer="zeros", aggregation="only_first_replica")
        return self.add_weight(shape=(), dtype="int32", name=name, **once)

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

    def look_at_first_batch(self, x, y, sample_weight, batch_size):
        x, parts = data_checks.look(x, y, sample_weight, batch_size)
        data_checks.check(self, parts)
        return x

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
        images, others = split_inputs(x, self.attacked_input)
        views = {CLEAN: images}
        if AUGMENTED in self.row.views:
            views[AUGMENTED] = ops.stop_gradient(self.augmentation(images))
        if ADVERSARIAL in self.row.views:
            views[ADVERSARIAL] = self._adversarial_images(images, others, y, sample_weight)
        for part in passes:
            loss = self._run(part, views, others, y, sample_weight, adds_own=total is None)
            total = loss if total is None else total + loss
        self.step_counter.assign(self.step_counter + 1)
        return total

    def _run(self, part: Pass, views, others, labels, sample_weight, adds_own: bool):
        """The weighted loss of one pass, in which statistics move."""
        images = [ops.cast(views[view], "float32") for view in part.views]
        others = keras.tree.map_structure(
            lambda tensor: ops.concatenate([tensor] * len(images)), others
        )
        joined = ops.concatenate(images) if len(images) > 1 else images[0]
        joined = join_inputs(joined, others, self.attacked_input)
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
        total = sum(map(self._aggregate_additional_loss, own)) if adds_own and own else 0.0
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

    def _adversarial_images(self, images, others, labels, sample_weight):
        attack, images = self.attack_of_step(), ops.cast(images, "float32")
        batch_moments = self.attack_statistics == "batch"
        # Keras saves no generator's state; that of a step follows from its number.
        state = self.attack_seed.state
        counters = ops.stack([ops.cast(self.seed, "int32"), 16 * self.step_counter])
        state.assign(ops.cast(counters, state.dtype))
        start = attack.start(images, self.attack_seed)
        if attack.targeted:
            labels = attack.draw_targets(labels, bool(self.labels_are_weights), self.attack_seed)

        def loss_of(values):
            with without_updates(variables), use_branch(branch, batch_moments=batch_moments):
                inputs = join_inputs(values, others, self.attacked_input)
                outputs = self.network(inputs, training=False)
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

    def epsilon_of_step(self):
        return ops.cast(self.epsilon_schedule(self.step_counter.value), "float32")

    @property
    def computes_in_float16(self):
        return self.network.compute_dtype == "float16"
