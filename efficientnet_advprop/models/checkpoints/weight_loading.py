"""The weights of a file into a model: released checkpoints, timm's files, Keras's.

    # a name, a directory, a prefix or a .tar.gz; a .safetensors, .npz or .h5
    report = load_weights(model, "b3-advprop")
    print(report)    # averages or plain weights, how far apart they are, what was left out

A file is read and checked whole before the first variable of the model changes.
"""

import dataclasses
import os
from typing import Optional

import numpy as np
from absl import logging

from efficientnet_advprop.keras2 import keras
from efficientnet_advprop.models.checkpoints import (
    keras_weights,
    released_checkpoints,
    timm_weights,
)
from efficientnet_advprop.models.checkpoints.checkpoint_sources import (
    CheckpointError,
    format_of,
    require_no_problems,
)
from efficientnet_advprop.models.checkpoints.file_weights import (
    CLASSIFIER,
    Difference,
    FileWeights,
    main_name,
    variable_name,
)
from efficientnet_advprop.runtime.errors import list_names

# Of these another value than the file's network had only changes the logits; another
# activation makes the weights meaningless.
_DOUBTFUL = ("normalization", "batch_norm_epsilon")


@dataclasses.dataclass
class LoadReport:
    """What `load_weights` did; its text is for people."""

    source: str
    network: str  # what the file looks like, such as "efficientnet-b3"
    normalization: Optional[str]  # of pixels, that belongs to the file; None: not known
    num_averages: int  # variables loaded from averages
    num_plain: int  # variables loaded from plain weights
    num_aux: int  # auxiliary variables that got the main ones' values
    difference: Optional[Difference]  # None: the file does not have both
    skipped: list[str]  # variables of the model that keep their values: the classifier
    ignored: list[str]  # tensors of the file that were not needed
    step: Optional[int]
    mixed: list[str]  # variables that got plain values, since they alone have no average
    warnings: list[str]

    @property
    def weights(self) -> str:
        """ "averaged", "plain" or "mixed"."""
        return "plain" if not self.num_averages else "mixed" if self.num_plain else "averaged"

    def __str__(self):
        step = "" if self.step is None else f", step {self.step}"
        num_loaded = self.num_averages + self.num_plain
        only = "plain weights" if self.weights == "plain" else "averages"
        lines = {
            f"{self.source}: {self.network}{step}; {num_loaded} variables loaded, {self.weights}"
            " weights": True,
            f"pixels normalised as {self.normalization!r}": self.normalization,
            f"averages and plain weights differ {self.difference}": self.difference,
            f"the file holds only {only}": self.difference is None,
            f"without average, hence plain: {list_names(self.mixed)}": self.mixed,
            f"not loaded, as they were: {', '.join(self.skipped)}": self.skipped,
            f"{self.num_aux} auxiliary batch-norm variables are copies of the main ones": (
                self.num_aux
            ),
            f"ignored in the file: {len(self.ignored)} tensors (optimizer slots, step, auxiliary"
            " batch norms)": self.ignored,
            **{f"warning: {text}": True for text in self.warnings},
        }
        return "\n  ".join(line for line, is_said in lines.items() if is_said)


def load_weights(
    model: keras.Model,
    source: str,
    use_ema: Optional[bool] = None,
    include_head: bool = True,
    cache_dir: Optional[str] = None,
) -> LoadReport:
    """Gives a model the weights of a checkpoint or file.

    Auxiliary batch norms get the file's own, where it has them, and copies of the main
    ones otherwise. Optimizer slots and the step are ignored. A file of another number
    of classes fills all but the classifier, and the report and a warning say so.

    Args:
        model: an `EfficientNet`; for Keras's files a `ResNet` built with
            `KERAS_ARGUMENTS`. Under a distribution strategy, call this outside of its
            steps.
        source: a checkpoint in the released format, see
            `checkpoint_sources.find_checkpoint`: a published name ("b3-advprop"), a
            directory, a prefix or a `.tar.gz`; or timm's `.safetensors`, or `.npz` of
            such a state dict; or `.h5` of `tf.keras.applications`. The contents decide,
            not the name.
        use_ema: take the averages where there are any; otherwise, and with False, the
            plain weights. None: as the published figure was measured, hence as True but
            for those of Smooth Adversarial Training, of which only L1-Enhanced is read
            by its averages.
        include_head: False leaves the model's classifier (`head/dense`) as it is.
        cache_dir: a local folder, for what archives hold; default
            `checkpoint_sources.default_cache_dir()`.

    Returns:
        What was loaded, what was not, and how much averages and plain weights differ.

    Raises:
        CheckpointError: the source cannot be had or does not fit: variables are
            missing, left over, of another shape or not finite, or the activation is
            another. The error's `problems` name all, and the model is as it was.
    """
    source = os.fspath(source)
    variables = {variable_name(model, variable): variable for variable in model.variables}
    file_format = format_of(source)
    if file_format == "timm":
        found = timm_weights.read_timm_file(model, source, variables)
    elif file_format == "keras":
        found = keras_weights.read_keras_file(model, source)
    else:
        found = released_checkpoints.read_released(model, source, variables, use_ema, cache_dir)
    skipped = _skipped_classifier(found, variables, include_head)
    _require_fit(found, model, variables, skipped, source, is_released=file_format is None)
    if activation_problem := _activation_problem(found, model):
        raise CheckpointError(f"{source!r} is not loaded.{activation_problem}")
    loaded = [name for name in variables if name not in skipped]
    own = [name for name in loaded if name in found.values]
    for name in loaded:
        key = name if name in found.values else main_name(name)
        variables[name].assign(found.values[key])
    plain = [name for name in own if name not in found.averaged]
    report = LoadReport(
        source=source,
        network=found.network,
        normalization=found.settings.get("normalization"),
        num_averages=len(own) - len(plain),
        num_plain=len(plain),
        num_aux=len(loaded) - len(own),
        difference=found.difference,
        skipped=skipped,
        ignored=found.ignored,
        step=found.step,
        mixed=plain if found.averaged else [],
        warnings=_warnings(found, model, skipped if include_head else []),
    )
    for warning in report.warnings:
        logging.warning("%s: %s", source, warning)
    return report


def _skipped_classifier(found: FileWeights, variables, include_head: bool) -> list[str]:
    kernel, own = found.values.get(CLASSIFIER[0]), tuple(variables[CLASSIFIER[0]].shape)
    has_other_classes = (
        kernel is not None
        and kernel.ndim == 2
        and kernel.shape[0] == own[0]
        and kernel.shape[1] != own[1]
    )
    return list(CLASSIFIER) if has_other_classes or not include_head else []


def _require_fit(found, model, variables, skipped, source, is_released) -> None:
    """Every variable of the model and every tensor of the file must be accounted for."""
    needed = {name: tensor for name, tensor in found.names.items() if name not in skipped}
    values = {name: found.values[name] for name in needed if name in found.values}
    unreadable = {name for names in found.problems.values() for name in names}
    require_no_problems(
        f"{source!r} does not fit the model ({model.name}), which is unchanged.{found.misfit}"
        + _activation_problem(found, model),
        {
            "missing in the file": [
                tensor
                for name, tensor in needed.items()
                if name not in values and not any(text.startswith(tensor) for text in unreadable)
            ],
            "of another shape in the file": [
                f"{needed[name]} {list(value.shape)} instead of {variables[name].shape.as_list()}"
                for name, value in values.items()
                if value.shape != tuple(variables[name].shape)
            ],
            "in the file but not in the model": found.left_over,
            "hold values that are not finite": [
                needed[name] for name, value in values.items() if not np.isfinite(value).all()
            ],
            **found.problems,
        },
        source if is_released else None,
    )


def _activation_problem(found: FileWeights, model) -> str:
    activation = found.settings.get("activation")
    if activation in (None, model.activation.name):
        return ""
    return (
        f"\n  Its network's activation is {activation!r}, but the model's `activation` is"
        f" {model.activation.name!r}, with which the weights mean nothing; build it with"
        f" {activation!r} (in a config: --config.model.activation)."
    )


def _warnings(found: FileWeights, model, skipped: list[str]) -> list[str]:
    warnings, config = [], model.get_config()
    if skipped:
        warnings.append(
            f"it has {found.values[CLASSIFIER[0]].shape[1]} classes and the model"
            f" {model.num_classes}: the classifier is not loaded"
        )
    for name in _DOUBTFUL:
        if found.settings.get(name, config[name]) != config[name]:
            warnings.append(
                f"it was trained with `{name}` {found.settings[name]!r}, the model has"
                f" {config[name]!r}: other logits"
            )
    return warnings
