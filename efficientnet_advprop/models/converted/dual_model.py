"""Any Keras model with batch norms, made ready for AdvProp, and made plain again.

    # the same object, weights and outputs
    dual = add_auxiliary_batch_norms(model, aux_branches=1)
    print(dual.summary_of_branches())
    # predicts and evaluates through aux
    aux = BranchModel(dual, "aux")
    plain = remove_auxiliary_batch_norms(dual)               # the model's own class again

A converted model is saved and loaded like any other (`.keras`, SavedModel, weights); to
load it as a Keras model, import this package first. Its weights restore into the plain
model: auxiliary variables are children of the batch norms, and the rest has its old
place.
"""

import functools
from typing import Any, Optional

import tensorflow as tf

from efficientnet_advprop.keras2 import keras
from efficientnet_advprop.models.converted.branched_layers import PACKAGE
from efficientnet_advprop.models.converted.conversion import (
    change_class,
    convert_batch_norms,
    describe_branches,
    find_batch_norms,
    restore_batch_norms,
)
from efficientnet_advprop.models.normalization import DualBatchNormalization
from efficientnet_advprop.runtime.branches import branch_index
from efficientnet_advprop.runtime.errors import ModelError
from efficientnet_advprop.runtime.pass_mode import use_branch


@keras.utils.register_keras_serializable(PACKAGE)
class DualModel:
    """What a converted model's class has beside its own; `add_auxiliary_batch_norms`
    makes them.
    """

    plain_class: type

    def summary_of_branches(self) -> str:
        """A table for people: which layers have auxiliary branches, which have none,
        and why.
        """
        return describe_branches(self)

    def get_config(self):
        # The same object under its plain class: its own `get_config` then says what it
        # always says.
        plain = object.__new__(self.plain_class)
        object.__setattr__(plain, "__dict__", self.__dict__)
        network = keras.utils.serialize_keras_object(plain)
        network.pop("compile_config", None)
        return {"network": network, "aux_branches": self.num_aux_branches, "name": self.name}

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


@functools.lru_cache(maxsize=None)
def _dual_class(plain_class: type) -> type:
    """The class of converted models for a class of models; saved as a `DualModel`,
    which can load it.
    """
    contents = {
        "__module__": DualModel.__module__,
        "__doc__": DualModel.__doc__,
        "plain_class": plain_class,
    }
    # HDF5 and JSON call a class by its bare name.
    keras.utils.get_custom_objects().setdefault(DualModel.__name__, DualModel)
    made = type(DualModel.__name__, (DualModel, plain_class), contents)
    return keras.utils.register_keras_serializable(PACKAGE)(made)


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
    if not isinstance(aux_branches, int) or aux_branches < 1:
        raise ModelError(
            f"`aux_branches` is {aux_branches!r}, but must be a whole number ≥ 1; AdvProp has 1."
        )
    found = find_batch_norms(model)
    is_converted = any(not isinstance(norm, DualBatchNormalization) for norm in found.branched)
    if isinstance(model, DualModel) or is_converted or getattr(model, "aux_branches", 0):
        raise ModelError(
            f"`model` ({model.name!r}) has auxiliary branches already; train it as it is, or take "
            "them away first by remove_auxiliary_batch_norms (a network of this project: build it "
            "with aux_branches=0)."
        )
    if not any(found):
        way_out = (
            "Build it with keras.layers.BatchNormalization, or train it with method='adversarial', "
            "which needs none."
            if model.built
            else "It is not built yet: call it on a batch first, so that its layers exist."
        )
        raise ModelError(
            f"`model` ({model.name!r}) has no batch norms, in which AdvProp's branches differ. "
            + way_out
        )
    return _convert(model, aux_branches)


def check_model(name: str, model: Any) -> None:
    """Refuses what is no model of Keras 2."""
    if not isinstance(model, keras.Model):
        raise ModelError(
            f"`{name}` is a {type(model).__module__}.{type(model).__name__}, but must be a Model of"
            " Keras 2, from efficientnet_advprop.keras2 (tf_keras with TensorFlow 2.16 and later);"
            " models of Keras 3 have a door of their own, efficientnet_advprop.keras3."
        )


def _convert(model: keras.Model, aux_branches: int) -> keras.Model:
    _drop_functions(model)
    with model.distribute_strategy.scope():
        convert_batch_norms(model, aux_branches)
    if not isinstance(model, DualModel):
        change_class(model, _dual_class(type(model)))
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
    if not isinstance(dual, keras.Model) or not (
        isinstance(dual, DualModel) or find_batch_norms(dual).branched
    ):
        raise ModelError(
            f"`dual` is a {type(dual).__name__} without auxiliary branches; there is nothing to"
            " remove."
        )
    restore_batch_norms(dual)
    for model in [dual, *dual.submodules]:  # a converted part of another model, too
        if isinstance(model, DualModel):
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


class BranchModel(keras.Model):
    """A converted model through one of its branches: `predict`, `evaluate`, `call`;
    shares all variables.

    Args:
        network: a converted model.
        branch: "main", "aux", "aux_2", …

    Raises:
        ValueError: there is no such branch.
    """

    def __init__(self, network: keras.Model, branch: str, name: Optional[str] = None):
        check_model("network", network)
        super().__init__(name=name or f"{network.name}_{branch}")
        branch_index(
            branch,
            max((norm.aux_branches for norm in find_batch_norms(network).branched), default=0),
        )
        self.network, self.branch = network, branch

    def call(self, inputs, training=False):
        with use_branch(self.branch):
            return self.network(inputs, training=training)
