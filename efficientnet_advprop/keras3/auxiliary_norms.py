"""Auxiliary batch norms in a finished model of Keras 3, added and taken away in place.

    dual = add_auxiliary_batch_norms(model)
    aux = BranchModel(dual, "aux")            # predicts and evaluates through aux
    plain = remove_auxiliary_batch_norms(dual)

A layer changes its class and keeps its variables, and with them its place in the model,
in weight files and in the optimizer. Its class keeps the plain one's name, by which
weight files call layers.
"""

import contextlib
import functools
from typing import Optional

import keras

from efficientnet_advprop.keras3.keras_internals import (
    all_layers,
    creation_scope,
    drop_functions,
    unlocked,
)
from efficientnet_advprop.runtime.branches import branch_index, branch_names
from efficientnet_advprop.runtime.errors import ModelError, list_names
from efficientnet_advprop.runtime.pass_mode import current_pass, use_branch

PACKAGE = "efficientnet_advprop.keras3"


class AuxiliaryBatchNormalization(keras.layers.BatchNormalization):
    """A branch beside a main one, with whose values it starts, also from a file that
    knows no branches.
    """

    def __init__(self, main: keras.layers.BatchNormalization, name: str):
        config = keras.layers.BatchNormalization.get_config(main)
        super().__init__(**{**config, "name": name, "dtype": main.dtype_policy})
        self.trainable = main.trainable
        self.main = lambda: main  # no attribute of its own, which would be a sublayer

    def copy_main(self) -> None:
        """Takes over the main branch's values."""
        main = self.main()
        own = ("gamma", "beta", "moving_mean", "moving_variance")
        for variable, value in ((getattr(self, name), getattr(main, name)) for name in own):
            if variable is not None:  # by NumPy: JAX must not see one buffer twice
                variable.assign(keras.ops.convert_to_numpy(value))

    def load_own_variables(self, store):
        if len(store.keys()):
            super().load_own_variables(store)
        else:
            self.copy_main()


@keras.saving.register_keras_serializable(PACKAGE)
class BatchNormalization(keras.layers.BatchNormalization):
    """`keras.layers.BatchNormalization` with auxiliary branches, which takes the branch
    from the context of the pass.
    """

    was_training = True  # in the last pass that was not an attack on batch statistics
    passed: frozenset = frozenset()  # branches through which it was called

    def __init__(self, aux_branches: int = 1, **kwargs):
        super().__init__(**kwargs)
        self.aux_branches = aux_branches

    def build(self, input_shape):
        super().build(input_shape)
        self.grow(input_shape)

    def grow(self, input_shape) -> None:
        """Creates the auxiliary branches."""
        with contextlib.ExitStack() as scopes:
            for part in self.path.split("/"):
                scopes.enter_context(keras.name_scope(part))
            scopes.enter_context(unlocked(self))
            for name in branch_names(self.aux_branches)[1:]:
                child = AuxiliaryBatchNormalization(self, name)
                child.build(input_shape)
                setattr(self, name, child)

    def branch(self, name: str) -> keras.layers.BatchNormalization:
        """Returns this layer for "main", else the child."""
        index = branch_index(name, self.aux_branches)
        return self if index == 0 else getattr(self, branch_names(index)[index])

    def call(self, inputs, training=None, mask=None):
        mode = current_pass()
        if mode.batch_moments:  # a norm that is told to stay in inference mode stays there
            training = self.was_training
        else:
            object.__setattr__(self, "was_training", bool(training))
        object.__setattr__(self, "passed", self.passed | {mode.branch})
        norm = self.branch(mode.branch)
        if norm is self:
            return super().call(inputs, training=training, mask=mask)
        return norm(inputs, training=training, mask=mask)

    def get_config(self):
        return {**super().get_config(), "aux_branches": self.aux_branches}


@keras.saving.register_keras_serializable(PACKAGE)
class DualModel:
    """What the class of a converted model has beside the model's own."""

    plain_class: type

    def summary_of_branches(self) -> str:
        """A table of the batch norms and their branches."""
        rows = [("layer", "branches", "note")]
        for layer in all_layers(self):
            if isinstance(layer, BatchNormalization):
                note = "" if layer.trainable else "frozen: learns nothing"
                names = ", ".join(branch_names(layer.aux_branches))
                rows.append((layer.path, names, note))
            elif _is_norm(layer):
                rows.append((layer.name, "main", "converted at the first step, when it is built"))
        widths = [max(len(row[column]) for row in rows) for column in range(3)]
        return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)

    def get_config(self):
        # The same object under its plain class, whose `get_config` says what it always says.
        plain = object.__new__(self.plain_class)
        object.__setattr__(plain, "__dict__", self.__dict__)
        network = keras.saving.serialize_keras_object(plain)
        network.pop("compile_config", None)
        return {"network": network, "aux_branches": self.aux_branches, "name": self.name}

    @classmethod
    def from_config(cls, config, custom_objects=None):
        network = keras.saving.deserialize_keras_object(config["network"], custom_objects)
        return convert(network, config["aux_branches"])

    def build_from_config(self, config):
        super().build_from_config(config)
        convert(self, self.aux_branches)  # those that were built only now


@functools.cache
def _dual_class(plain_class: type) -> type:
    made = type("DualModel", (DualModel, plain_class), {"plain_class": plain_class})
    made.__module__ = __name__
    return keras.saving.register_keras_serializable(PACKAGE)(made)


def branched_norms(model: keras.Model) -> list[BatchNormalization]:
    """Returns the batch norms that have auxiliary branches."""
    return [layer for layer in all_layers(model) if isinstance(layer, BatchNormalization)]


def aux_branches_of(model: keras.Model) -> int:
    """Returns how many auxiliary branches a model has."""
    parts = [layer for layer in all_layers(model) if isinstance(layer, DualModel)]
    return max((part.aux_branches for part in [*parts, *branched_norms(model)]), default=0)


def _is_norm(layer: keras.Layer) -> bool:
    if isinstance(layer, (BatchNormalization, AuxiliaryBatchNormalization)):
        return False
    has_moments = hasattr(layer, "moving_mean") and hasattr(layer, "moving_variance")
    return has_moments or isinstance(layer, keras.layers.BatchNormalization)


def add_auxiliary_batch_norms(model: keras.Model, aux_branches: int = 1) -> keras.Model:
    """Gives every batch norm auxiliary branches beside its own variables, which are
    main's.

    The model itself changes, since a subclassed one cannot be copied, and is returned.
    Weights and outputs stay as they were; auxiliary branches start as copies of main.

    Args:
        model: Sequential, functional or subclassed, with
            `keras.layers.BatchNormalization` anywhere inside.
        aux_branches: auxiliary branches of each, ≥ 1; AdvProp has one, its fine-grained
            form more.

    Returns:
        `model`, of a class that derives from its own and has `summary_of_branches()`.

    Raises:
        ModelError: no batch norms, some with a behaviour of their own, or some that
            have branches already; then nothing has changed.
    """
    check_model("model", model)
    if not isinstance(aux_branches, int) or aux_branches < 1:
        raise ModelError(f"`aux_branches` is {aux_branches!r}, but must be a whole number ≥ 1.")
    if isinstance(model, DualModel) or branched_norms(model):
        raise ModelError(
            f"`model` ({model.name!r}) has auxiliary branches already; train it as it is, or take "
            "them away first by remove_auxiliary_batch_norms."
        )
    norms = [layer for layer in all_layers(model) if _is_norm(layer)]
    if not norms:
        way_out = (
            "train it with method='adversarial', which needs none"
            if model.built
            else "call it on a batch first, so that its layers exist"
        )
        raise ModelError(f"`model` ({model.name!r}) has no batch norms; {way_out}.")
    return convert(model, aux_branches)


def check_model(name: str, model) -> None:
    """Refuses what is no model of Keras 3."""
    if not isinstance(model, keras.Model):
        kind = f"{type(model).__module__}.{type(model).__name__}"
        raise ModelError(
            f"`{name}` is a {kind}, but must be a Model of Keras 3; models of Keras 2 (tf_keras) "
            "have a door of their own, efficientnet_advprop.keras."
        )


def convert(model: keras.Model, aux_branches: int) -> keras.Model:
    """Converts the batch norms that are plain and built, or none of them."""
    norms = [layer for layer in all_layers(model) if _is_norm(layer)]
    foreign = [
        f"{norm.name} ({type(norm).__name__})"
        for norm in norms
        if type(norm) is not keras.layers.BatchNormalization or getattr(norm, "renorm", False)
    ]
    if foreign:
        raise ModelError(
            f"`model` has batch norms with a behaviour of their own, {list_names(foreign)}, of"
            " which no auxiliary branch can be made; replace them by"
            " keras.layers.BatchNormalization."
        )
    with creation_scope(model):
        # Each layer keeps the `build` of its first class, so the others have to wait.
        for norm in [norm for norm in norms if norm.built]:
            norm.__class__ = BatchNormalization
            norm.aux_branches = aux_branches
            rank, axes = norm.input_spec.ndim, norm.input_spec.axes
            norm.grow(tuple(axes.get(axis, axes.get(axis - rank)) for axis in range(rank)))
            for name in branch_names(aux_branches)[1:]:
                norm.branch(name).copy_main()
    drop_functions(model)
    if not isinstance(model, DualModel):
        model.__class__ = _dual_class(type(model))
    object.__setattr__(model, "aux_branches", aux_branches)
    return model


def remove_auxiliary_batch_norms(dual: keras.Model) -> keras.Model:
    """Makes a converted model plain again, and converted models inside it: their own
    classes, main's variables, nothing of this package.

    Raises:
        ModelError: it has no auxiliary branches.
    """
    check_model("dual", dual)
    duals = [layer for layer in all_layers(dual) if isinstance(layer, DualModel)]
    norms = branched_norms(dual)
    if not duals and not norms:
        raise ModelError(f"`dual` ({dual.name!r}) has no auxiliary branches to remove.")
    for norm in norms:
        with unlocked(norm) as tracker:
            for name in branch_names(norm.aux_branches)[1:]:
                if hasattr(norm, name):
                    tracker.untrack(getattr(norm, name))
                    delattr(norm, name)
        for name in ("aux_branches", "was_training", "passed"):
            norm.__dict__.pop(name, None)
        norm.__class__ = keras.layers.BatchNormalization
    for model in duals:
        model.__dict__.pop("aux_branches")
        model.__class__ = model.plain_class
    for model in [dual, *duals]:
        drop_functions(model)
    return dual


@keras.saving.register_keras_serializable(PACKAGE)
class BranchModel(keras.Model):
    """A converted model through one of its branches; shares all variables.

    Args:
        network: a converted model.
        branch: "main", "aux", "aux_2", …

    Raises:
        ValueError: there is no such branch.
    """

    def __init__(self, network: keras.Model, branch: str, name: Optional[str] = None, **kwargs):
        check_model("network", network)
        branch_index(branch, aux_branches_of(network))
        kwargs.setdefault("dtype", network.dtype_policy)
        super().__init__(name=name or f"{network.name}_{branch}", **kwargs)
        self.network, self.branch = network, branch
        self.built = network.built

    def call(self, inputs, training=False):
        with use_branch(self.branch):
            return self.network(inputs, training=training)

    def get_config(self):
        network = keras.saving.serialize_keras_object(self.network)
        return {"network": network, "branch": self.branch, "name": self.name}

    @classmethod
    def from_config(cls, config, custom_objects=None):
        network = keras.saving.deserialize_keras_object(config["network"], custom_objects)
        return cls(network, config["branch"], config["name"])
