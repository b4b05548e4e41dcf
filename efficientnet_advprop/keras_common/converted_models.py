"""Converted models of either Keras: their classes, their table of branches, and what
cannot be converted.
"""

import functools
from typing import Any, Callable, Iterable, Optional

from efficientnet_advprop.runtime.branches import branch_index, branch_names
from efficientnet_advprop.runtime.errors import ModelError, list_names
from efficientnet_advprop.runtime.pass_mode import use_branch

_NO_STATISTICS = "has no statistics over the batch"
# Layers that people take for batch norms, by the names of their classes.
_LEFT_ALONE = {
    "Normalization": "has constants of the data set",
    **dict.fromkeys(
        ("LayerNormalization", "UnitNormalization", "GroupNormalization", "RMSNormalization"),
        _NO_STATISTICS,
    ),
}


def check_model(name: str, model: Any, keras: Any, version: int) -> None:
    """Raises a `ModelError` for what is no model of this Keras."""
    if not isinstance(model, keras.Model):
        origin, other = "", ""
        if version == 2:
            origin = ", from efficientnet_advprop.keras2 (tf_keras since TensorFlow 2.16)"
            other = "3"
        raise ModelError(
            f"`{name}` is a {type(model).__module__}.{type(model).__name__}, but must be a Model of"
            f" Keras {version}{origin}; models of Keras {5 - version} have a door of their own,"
            f" efficientnet_advprop.keras{other}."
        )


def check_can_be_converted(model: Any, aux_branches: int, *, has_branches: bool, has_norms: bool):
    """Raises a `ModelError` where there is nothing to convert."""
    if not isinstance(aux_branches, int) or aux_branches < 1:
        raise ModelError(
            f"`aux_branches` is {aux_branches!r}, but must be a whole number ≥ 1; AdvProp has 1."
        )
    if has_branches:
        raise ModelError(
            f"`model` ({model.name!r}) has auxiliary branches already; train it as it is, or take "
            "them away first by remove_auxiliary_batch_norms (a network of this project: build it "
            "with aux_branches=0)."
        )
    if not has_norms:
        way_out = (
            "build it with keras.layers.BatchNormalization, or train it with method='adversarial',"
            " which needs none"
            if model.built
            else "it is not built yet: call it on a batch first, so that its layers exist"
        )
        raise ModelError(f"`model` ({model.name!r}) has no batch norms; {way_out}.")


def check_no_foreign(norms: Iterable) -> None:
    """Raises a `ModelError` where there are batch norms with a behaviour of their own."""
    names = [f"{norm.name} ({type(norm).__name__})" for norm in norms]
    if names:
        raise ModelError(
            f"`model` has batch norms with a behaviour of their own, {list_names(names)}, of which"
            " no auxiliary branch can be made; replace them by keras.layers.BatchNormalization."
        )


def table_of_branches(branched: Iterable, waiting: Iterable, layers: Iterable) -> str:
    """Returns a table for people.

    Args:
        branched: batch norms that have auxiliary branches.
        waiting: those that will be converted when they are built.
        layers: all layers, among which some need no branches.
    """
    rows = [("layer", "branches", "note")]
    for norm in branched:
        notes = [] if norm.built else ["built at the first call"]
        if not norm.trainable:
            notes.append("frozen: normalises with running statistics, learns nothing")
        names = ", ".join(branch_names(norm.aux_branches))
        rows.append((getattr(norm, "path", norm.name), names, "; ".join(notes)))
    count = len(rows) - 1
    for layer in waiting:
        rows.append((layer.name, "main", "converted at the first step of `fit`"))
    for layer in layers:
        kind = type(layer).__name__
        if kind in _LEFT_ALONE:
            rows.append((layer.name, "–", f"{kind} {_LEFT_ALONE[kind]}"))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    others = len(rows) - 1 - count
    title = f"{count} batch norms with auxiliary branches, {others} layers left alone"
    return "\n".join([title, *lines])


class DualModel:
    """What the class of a converted model has beside the model's own; `dual_class` makes
    them.
    """

    plain_class: type
    summary_of_branches: Callable  # a table: which layers have branches, which not, and why
    # Of each Keras: `serialize_keras_object`, and what makes a class known to files.
    serialize: Callable
    register: Callable

    def get_config(self):
        # The same object under its plain class, whose `get_config` says what it always says.
        plain = object.__new__(self.plain_class)
        object.__setattr__(plain, "__dict__", self.__dict__)
        network = type(self).serialize(plain)
        network.pop("compile_config", None)
        return {"network": network, "aux_branches": self.num_aux_branches, "name": self.name}


@functools.lru_cache(maxsize=None)
def dual_class(kind: type[DualModel], plain_class: type) -> type:
    """Returns the class of converted models for a class of models; saved as a `DualModel`,
    whose `from_config` loads it.
    """
    contents = {"__module__": kind.__module__, "__doc__": kind.__doc__, "plain_class": plain_class}
    return kind.register(type(DualModel.__name__, (kind, plain_class), contents))


class BranchModel:
    """A converted model through one of its branches: `predict`, `evaluate`, `call`; shares
    all variables.

    Args:
        network: a converted model.
        branch: "main", "aux", "aux_2", …

    Raises:
        ValueError: there is no such branch.
    """

    num_aux_branches: Callable  # of a network; a `ModelError` for what is no model

    def __init__(self, network: Any, branch: str, name: Optional[str] = None, **kwargs):
        branch_index(branch, self.num_aux_branches(network))
        super().__init__(name=name or f"{network.name}_{branch}", **kwargs)  # type: ignore
        self.network, self.branch = network, branch

    def call(self, inputs, training=False):
        with use_branch(self.branch):
            return self.network(inputs, training=training)
