"""Any Keras 2 model with batch norms, made ready for AdvProp, and made plain again.

    # the same object, weights and outputs
    dual = add_auxiliary_batch_norms(model, aux_branches=1)
    print(dual.summary_of_branches())
    # predicts and evaluates through aux
    aux = BranchModelOfKeras2(dual, "aux")
    plain = remove_auxiliary_batch_norms(dual)               # the model's own class again

In place, because a subclassed model cannot be copied: each layer changes its class and
keeps its variables, and with them its place in the model, its weights, its optimizer's
slots and its neighbours. A converted model is saved and loaded like any other (`.keras`,
SavedModel, weights); to load it as a Keras model, import this package first.
"""

import inspect
from typing import Any, NamedTuple, Optional

import tensorflow as tf

from efficientnet_advprop.keras2 import keras
from efficientnet_advprop.keras_common import converted_models as common
from efficientnet_advprop.models.converted.branched_layers import BRANCHED_CLASSES, PACKAGE
from efficientnet_advprop.models.converted.inner_functions import join_traces, separate_traces
from efficientnet_advprop.models.normalization import DualBatchNormalization
from efficientnet_advprop.runtime.errors import ModelError, list_names

_OPTIONS_OF_OLD = ("renorm", "virtual_batch_size", "adjustment")
register = keras.saving.register_keras_serializable


class BatchNorms(NamedTuple):
    """The batch norms of a model: those with auxiliary branches, those that can be
    converted, and those with a behaviour of their own, which cannot.
    """

    branched: list
    plain: list
    foreign: list


def find_batch_norms(model: tf.Module) -> BatchNorms:
    """Looks through what the model and its layers hold as attributes, in lists, in
    dictionaries.
    """
    modules = _with_submodules(model)
    children = {id(child) for norm in modules for child in getattr(norm, "aux", None) or ()}
    branched, plain, foreign = [], [], []
    for module in modules:
        kind = type(module)
        if id(module) in children:
            continue
        if kind in BRANCHED_CLASSES.values() or (
            kind is DualBatchNormalization and module.aux_branches
        ):
            branched.append(module)
        elif (kind in BRANCHED_CLASSES or kind is DualBatchNormalization) and not any(
            getattr(module, option, None) for option in _OPTIONS_OF_OLD
        ):
            plain.append(module)
        elif hasattr(module, "moving_mean") and hasattr(module, "moving_variance"):
            foreign.append(module)
        elif isinstance(module, tuple(BRANCHED_CLASSES)):
            foreign.append(module)
    return BatchNorms(branched, plain, foreign)


def find_hidden_batch_norms(model: tf.Module) -> list:
    """Returns batch norms that only the function of a Lambda layer holds."""
    known, hidden = set(map(id, model.submodules)), []
    for layer in model.submodules:
        function = getattr(layer, "function", None)
        if not isinstance(layer, keras.layers.Lambda) or not inspect.isfunction(function):
            continue
        names = inspect.getclosurevars(function)
        for value in [*names.nonlocals.values(), *names.globals.values(), *_defaults(function)]:
            for part in tf.nest.flatten(value):
                parts = _with_submodules(part) if isinstance(part, tf.Module) else ()
                hidden += [
                    norm for norm in parts if hasattr(norm, "moving_mean") and id(norm) not in known
                ]
    return hidden


def _defaults(function) -> list:
    return [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]


def convert_batch_norms(model: keras.Model, aux_branches: int) -> None:
    """Gives plain batch norms auxiliary branches, copies of the main one.

    Raises:
        ModelError: one of them has a behaviour of its own, or another number of
            branches; then nothing has changed.
    """
    found = find_batch_norms(model)
    common.check_no_foreign(found.foreign)
    hidden = find_hidden_batch_norms(model)
    if hidden:
        raise ModelError(
            f"`model` has batch norms that only the function of a Lambda layer holds "
            f"({list_names([norm.name for norm in hidden])}): no branch can be made of them, and"
            " adversarial images would move them. Make a layer of that function."
        )
    for layer in [*found.branched, *found.plain]:
        has = getattr(layer, "aux_branches", 0)
        if has not in (0, aux_branches):
            raise ModelError(
                f"`aux_branches` is {aux_branches}, but {layer.name!r} of `model` has {has}; "
                f"ask for {has}, or remove them first."
            )
    for layer in found.plain:
        change_class(layer, BRANCHED_CLASSES.get(type(layer), type(layer)))
        layer.add_branches(aux_branches)
    for module in _with_submodules(model):
        separate_traces(module)


def restore_batch_norms(model: keras.Model) -> None:
    """Makes the batch norms plain again, with the main branch's variables."""
    for layer in find_batch_norms(model).branched:
        layer.remove_branches()
        change_class(layer, getattr(layer, "plain_class", type(layer)))
    for module in _with_submodules(model):
        join_traces(module)


def change_class(layer: keras.layers.Layer, new: type) -> None:
    """Gives a layer another class, and that class's `call`.

    After saving to a SavedModel, Keras leaves the old class's in the layer itself.
    """
    left = vars(layer).get("call")
    if left is not None and getattr(left, "__func__", None) is getattr(type(layer), "call", None):
        del vars(layer)["call"]
    object.__setattr__(layer, "__class__", new)


def _with_submodules(model: tf.Module) -> list[tf.Module]:
    return [model, *model.submodules]


@register(PACKAGE, name="DualModel")
class DualModelOfKeras2(common.DualModel):
    __doc__ = common.DualModel.__doc__

    serialize = staticmethod(keras.saving.serialize_keras_object)
    register = staticmethod(register(PACKAGE))

    def summary_of_branches(self):
        found = find_batch_norms(self)
        return common.table_of_branches(found.branched, found.plain, self.submodules)

    @classmethod
    def from_config(cls, config, custom_objects=None):
        network = deserialize(config["network"], custom_objects)
        return _convert(network, config["aux_branches"])

    def load_weights(self, filepath, *args, **kwargs):
        """As the model's own; auxiliary branches get main's values from TensorFlow's
        checkpoint of a plain model.
        """
        status = super().load_weights(filepath, *args, **kwargs)
        if tf.io.gfile.exists(f"{filepath}.index"):
            names = [name for name, _ in tf.train.list_variables(str(filepath))]
            if not any("/aux/" in name for name in names):
                for norm in find_batch_norms(self).branched:
                    for child in norm.aux:
                        for name in ("gamma", "beta", "moving_mean", "moving_variance"):
                            if getattr(norm, name) is not None:
                                getattr(child, name).assign(getattr(norm, name))
        return status

    def build(self, *args, **kwargs):
        super().build(*args, **kwargs)
        convert_batch_norms(self, self.num_aux_branches)  # those that the model makes only now


def deserialize(config: dict, custom_objects: Optional[dict] = None) -> Any:
    """The object of a configuration, in whichever of Keras's formats."""
    # Only the one knows Keras's own models in older formats, only the other a class by
    # its module.
    is_keras_own = config["class_name"] in ("Functional", "Sequential", "Model")
    load = keras.layers.deserialize if is_keras_own else keras.utils.deserialize_keras_object
    return load(config, custom_objects=custom_objects)


def add_auxiliary_batch_norms(model: keras.Model, aux_branches: int = 1) -> keras.Model:
    """Gives every batch norm auxiliary branches beside its own variables, which are
    main's.

    The model itself changes, since a subclassed one cannot be copied, and is returned.
    Weights and outputs stay as they were; auxiliary branches start as copies of the
    main one. Frozen batch norms stay frozen in all branches. Layers whose variables do
    not exist yet get their branches when they are built.

    Args:
        model: Sequential, functional or subclassed, with
            `keras.layers.BatchNormalization` (synchronised or not) or this project's
            `DualBatchNormalization` anywhere inside.
        aux_branches: auxiliary branches of each, ≥ 1; AdvProp has one, its fine-grained
            form more.

    Returns:
        `model`, of a class that derives from its own and has `summary_of_branches()`.

    Raises:
        ModelError: no batch norms, some with a behaviour of their own, or
            some that have branches already.
    """
    check_model("model", model)
    found = find_batch_norms(model)
    common.check_can_be_converted(
        model,
        aux_branches,
        has_branches=is_converted(model) or bool(getattr(model, "aux_branches", 0)),
        has_norms=any(found),
    )
    return _convert(model, aux_branches)


def is_converted(model: keras.Model) -> bool:
    """Whether branches were added to layers of Keras in this model."""
    return isinstance(model, common.DualModel) or any(
        not isinstance(norm, DualBatchNormalization) for norm in find_batch_norms(model).branched
    )


def check_model(name: str, model: Any) -> None:
    """Refuses what is no model of Keras 2."""
    common.check_model(name, model, keras, 2)


def aux_branches_of(model: keras.Model) -> int:
    """Returns how many auxiliary branches a model has; refuses what is none."""
    check_model("network", model)
    return max((norm.aux_branches for norm in find_batch_norms(model).branched), default=0)


def _convert(model: keras.Model, aux_branches: int) -> keras.Model:
    _drop_functions(model)
    with model.distribute_strategy.scope():
        convert_batch_norms(model, aux_branches)
    if not isinstance(model, common.DualModel):
        # HDF5 and JSON call a class by its bare name.
        keras.saving.get_custom_objects().setdefault("DualModel", DualModelOfKeras2)
        change_class(model, common.dual_class(DualModelOfKeras2, type(model)))
    model.num_aux_branches = aux_branches
    return model


def remove_auxiliary_batch_norms(dual: keras.Model) -> keras.Model:
    """Makes a converted model plain again: its own class, main batch norms, nothing of
    this package.

    Args:
        dual: from `add_auxiliary_batch_norms`, or loaded or cloned from such a one; it
            is changed.

    Returns:
        `dual`.

    Raises:
        ModelError: it has no auxiliary branches.
    """
    check_model("dual", dual)
    if not isinstance(dual, common.DualModel) and not find_batch_norms(dual).branched:
        raise ModelError(f"`dual` ({dual.name!r}) has no auxiliary branches; nothing to remove.")
    restore_batch_norms(dual)
    for model in [dual, *dual.submodules]:  # a converted part of another model, too
        if isinstance(model, common.DualModel):
            del model.num_aux_branches
            change_class(model, model.plain_class)
            _drop_functions(model)
    _drop_functions(dual)
    return dual


def _drop_functions(model: keras.Model) -> None:
    """Lets a model trace its step functions anew; those it has were traced with other
    variables.
    """
    model.train_function = model.test_function = model.predict_function = None


@register(PACKAGE, name="BranchModel")
class BranchModelOfKeras2(common.BranchModel, keras.Model):
    __doc__ = common.BranchModel.__doc__

    num_aux_branches = staticmethod(aux_branches_of)
