"""Batch norms of a finished model get auxiliary branches, in place, and are made plain
again.

    report = convert_batch_norms(model, aux_branches=1)
    restore_batch_norms(model)

In place, because a subclassed model cannot be copied: each layer changes its class and
keeps its variables, and with them its place in the model, its weights, its optimizer's
slots and its neighbours.
"""

import inspect
from typing import NamedTuple, Optional

import tensorflow as tf

from efficientnet_advprop.keras2 import keras
from efficientnet_advprop.models.converted.branched_layers import BRANCHED_CLASSES
from efficientnet_advprop.models.converted.inner_functions import join_traces, separate_traces
from efficientnet_advprop.models.normalization import DualBatchNormalization
from efficientnet_advprop.runtime.errors import ModelError, list_names

_OPTIONS_OF_OLD = ("renorm", "virtual_batch_size", "adjustment")


class BatchNorms(NamedTuple):
    """The batch norms of a model.

    Args:
        branched: those with auxiliary branches.
        plain: those that can be converted.
        foreign: those with a behaviour of their own, which cannot.
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


def convert_batch_norms(model: keras.Model, aux_branches: int) -> int:
    """Gives plain batch norms auxiliary branches, copies of the main one; how many
    there were.

    Raises:
        ModelError: one of them has a behaviour of its own, or another number
            of branches; then nothing has changed.
    """
    found = find_batch_norms(model)
    if found.foreign:
        kinds = sorted({type(layer).__name__ for layer in found.foreign})
        names = [layer.name for layer in found.foreign]
        raise ModelError(
            "`model` has batch norms with a behaviour of their own, of which no auxiliary branch "
            f"can be made: {', '.join(kinds)} ({list_names(names)}). "
            "Replace them by keras.layers.BatchNormalization."
        )
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
    return len(found.plain)


def restore_batch_norms(model: keras.Model) -> int:
    """Makes the batch norms plain again, with the main branch's variables; how many
    there were.
    """
    branched = find_batch_norms(model).branched
    for layer in branched:
        layer.remove_branches()
        change_class(layer, getattr(layer, "plain_class", type(layer)))
    for module in _with_submodules(model):
        join_traces(module)
    return len(branched)


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


def describe_branches(model: keras.Model) -> str:
    """A table for people: which layers have auxiliary branches, which have none, and
    why.
    """
    found = find_batch_norms(model)
    rows = [("layer", "became", "branches", "note")]
    for layer in found.branched:
        names = ", ".join(["main", *(child.name for child in layer.aux)])
        notes = [] if layer.built else ["built at the first call"]
        notes += (
            []
            if layer.trainable
            else ["frozen: normalises with running statistics, learns nothing"]
        )
        rows.append((layer.name, type(layer).__name__, names, "; ".join(notes)))
    for layer in found.plain:
        rows.append(
            (
                layer.name,
                "left alone",
                "main",
                "made after the conversion; converted at the first step of `fit`",
            )
        )
    for layer in model.submodules:
        reason = _reason_to_leave(layer)
        if reason:
            rows.append((layer.name, "left alone", "–", f"{type(layer).__name__} {reason}"))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows
    ]
    others = len(rows) - 1 - len(found.branched)
    return "\n".join(
        [
            (
                f"{len(found.branched)} batch norms with auxiliary branches, {others} layers left"
                " alone"
            ),
            *lines,
        ]
    )


def _reason_to_leave(layer: tf.Module) -> Optional[str]:
    """Why a normalization that is no batch norm needs no branches; None for all other
    layers.
    """
    if isinstance(layer, keras.layers.Normalization):
        return "has constants of the data set"
    if isinstance(layer, (keras.layers.LayerNormalization, keras.layers.UnitNormalization)):
        return "has no statistics over the batch"
    if isinstance(layer, keras.layers.GroupNormalization):
        return "has no statistics over the batch"
    return None
