"""Auxiliary batch norms in a finished model of Keras 3, added and taken away in place.

    dual = add_auxiliary_batch_norms(model)
    aux = BranchModel(dual, "aux")            # predicts and evaluates through aux
    plain = remove_auxiliary_batch_norms(dual)

A layer changes its class and keeps its variables, and with them its place in the model,
in weight files and in the optimizer. Its class keeps the plain one's name, by which
weight files call layers.
"""

import contextlib

import keras

from efficientnet_advprop.keras3.keras_internals import (
    all_layers,
    creation_scope,
    drop_functions,
    unlocked,
)
from efficientnet_advprop.keras_common import converted_models
from efficientnet_advprop.runtime.branches import branch_index, branch_names
from efficientnet_advprop.runtime.errors import ModelError
from efficientnet_advprop.runtime.pass_mode import current_pass

PACKAGE = "efficientnet_advprop.keras3"
register = keras.saving.register_keras_serializable


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


@register(PACKAGE, name="BatchNormalization")
class BranchedNormOfKeras3(keras.layers.BatchNormalization):
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
            children = []
            for name in branch_names(self.aux_branches)[1:]:
                child = AuxiliaryBatchNormalization(self, name)
                child.build(input_shape)
                children.append(child)
            self.aux = children  # a list, as with Keras 2, so that weight files are alike

    def branch(self, name: str) -> keras.layers.BatchNormalization:
        """Returns this layer for "main", else the child."""
        index = branch_index(name, self.aux_branches)
        return self if index == 0 else self.aux[index - 1]

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


# Weight files call a layer by its class, of which plain models have one and Keras 2 another.
BranchedNormOfKeras3.__name__ = AuxiliaryBatchNormalization.__name__ = "BatchNormalization"


@register(PACKAGE, name="DualModel")
class DualModelOfKeras3(converted_models.DualModel):
    __doc__ = converted_models.DualModel.__doc__

    serialize = staticmethod(keras.saving.serialize_keras_object)
    register = staticmethod(register(PACKAGE))

    def summary_of_branches(self):
        layers = all_layers(self)
        waiting = [layer for layer in layers if _is_norm(layer)]
        return converted_models.table_of_branches(branched_norms(self), waiting, layers)

    @classmethod
    def from_config(cls, config, custom_objects=None):
        network = keras.saving.deserialize_keras_object(config["network"], custom_objects)
        return convert(network, config["aux_branches"])

    def build_from_config(self, config):
        super().build_from_config(config)
        convert(self, self.num_aux_branches)  # those that were built only now


def branched_norms(model: keras.Model) -> list[BranchedNormOfKeras3]:
    """Returns the batch norms that have auxiliary branches."""
    return [layer for layer in all_layers(model) if isinstance(layer, BranchedNormOfKeras3)]


def aux_branches_of(model: keras.Model) -> int:
    """Returns how many auxiliary branches a model has; refuses what is none."""
    check_model("network", model)
    counts = [norm.aux_branches for norm in branched_norms(model)]
    counts += [part.num_aux_branches for part in _dual_models(model)]
    return max(counts, default=0)


def _dual_models(model: keras.Model) -> list:
    return [layer for layer in all_layers(model) if isinstance(layer, converted_models.DualModel)]


def _is_norm(layer: keras.Layer) -> bool:
    if isinstance(layer, (BranchedNormOfKeras3, AuxiliaryBatchNormalization)):
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
    converted_models.check_can_be_converted(
        model,
        aux_branches,
        has_branches=isinstance(model, converted_models.DualModel) or bool(branched_norms(model)),
        has_norms=any(map(_is_norm, all_layers(model))),
    )
    return convert(model, aux_branches)


def check_model(name: str, model) -> None:
    """Refuses what is no model of Keras 3."""
    converted_models.check_model(name, model, keras, 3)


def convert(model: keras.Model, aux_branches: int) -> keras.Model:
    """Converts the batch norms that are plain and built, or none of them."""
    norms = [layer for layer in all_layers(model) if _is_norm(layer)]
    converted_models.check_no_foreign(
        norm
        for norm in norms
        if type(norm) is not keras.layers.BatchNormalization or getattr(norm, "renorm", False)
    )
    with creation_scope(model):
        # Each layer keeps the `build` of its first class, so the others have to wait.
        for norm in [norm for norm in norms if norm.built]:
            norm.__class__ = BranchedNormOfKeras3
            norm.aux_branches = aux_branches
            rank, axes = norm.input_spec.ndim, norm.input_spec.axes
            norm.grow(tuple(axes.get(axis, axes.get(axis - rank)) for axis in range(rank)))
            for child in norm.aux:
                child.copy_main()
    drop_functions(model)
    if not isinstance(model, converted_models.DualModel):
        model.__class__ = converted_models.dual_class(DualModelOfKeras3, type(model))
    object.__setattr__(model, "num_aux_branches", aux_branches)
    return model


def remove_auxiliary_batch_norms(dual: keras.Model) -> keras.Model:
    """Makes a converted model plain again, and converted models inside it: their own
    classes, main's variables, nothing of this package.

    Raises:
        ModelError: it has no auxiliary branches.
    """
    check_model("dual", dual)
    duals, norms = _dual_models(dual), branched_norms(dual)
    if not duals and not norms:
        raise ModelError(f"`dual` ({dual.name!r}) has no auxiliary branches; nothing to remove.")
    for norm in norms:
        with unlocked(norm) as tracker:
            if norm.built:
                for child in norm.aux:
                    tracker.untrack(child)
                del norm.aux
        for name in ("aux_branches", "was_training", "passed"):
            norm.__dict__.pop(name, None)
        norm.__class__ = keras.layers.BatchNormalization
    for model in duals:
        model.__dict__.pop("num_aux_branches")
        model.__class__ = model.plain_class
    for model in [dual, *duals]:
        drop_functions(model)
    return dual


@register(PACKAGE, name="BranchModel")
class BranchModelOfKeras3(converted_models.BranchModel, keras.Model):
    __doc__ = converted_models.BranchModel.__doc__

    num_aux_branches = staticmethod(aux_branches_of)

    def __init__(self, network, branch, name=None, **kwargs):
        super().__init__(network, branch, name, **{"dtype": network.dtype_policy, **kwargs})
        self.built = network.built

    def get_config(self):
        network = keras.saving.serialize_keras_object(self.network)
        return {"network": network, "branch": self.branch, "name": self.name}

    @classmethod
    def from_config(cls, config, custom_objects=None):
        network = keras.saving.deserialize_keras_object(config["network"], custom_objects)
        return cls(network, config["branch"], config["name"])
