"""The weights of a file into a model: released checkpoints, timm's files, Keras's.

    # a name, an address, hf://owner/name, a directory, a prefix, a .tar.gz or a file
    report = load_weights(model, "b3-advprop")
    print(report)    # averages or plain weights, how far apart they are, what was left out

A file is read and checked whole before the first variable of the model changes.
"""

import dataclasses
import os
from typing import Any, Mapping, Optional

import numpy as np
import tensorflow as tf
from absl import logging

from efficientnet_advprop.keras2 import keras
from efficientnet_advprop.models.checkpoints import keras_weights, timm_weights
from efficientnet_advprop.models.checkpoints.architecture import recognize
from efficientnet_advprop.models.checkpoints.checkpoint_contents import (
    STEP,
    CheckpointContents,
    Difference,
    read_contents,
)
from efficientnet_advprop.models.checkpoints.checkpoint_sources import (
    READ_ERRORS,
    CheckpointError,
    find_checkpoint,
    format_of,
    require_no_problems,
)
from efficientnet_advprop.models.checkpoints.model_settings import known_kind, known_settings
from efficientnet_advprop.models.checkpoints.published_checkpoints import prefers_averages
from efficientnet_advprop.models.checkpoints.variable_names import (
    CLASSIFIER,
    main_name,
    variable_name,
)
from efficientnet_advprop.runtime.errors import brief_message, list_names

# Of these another value than the file's network had only changes the logits; with another
# one of those the weights mean nothing.
_DOUBTFUL = ("normalization", "batch_norm_epsilon")
_DECISIVE = ("activation",)
_DECISIVE_OF_RESNETS = ("activation", "stride_in", "pool_padding", "denoise", *_DOUBTFUL)


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
            " batch norms, counters)": self.ignored,
            **{f"warning: {text}": True for text in self.warnings},
        }
        return "\n  ".join(line for line, is_said in lines.items() if is_said)


def read_checkpoint(source: str, cache_dir: Optional[str] = None) -> CheckpointContents:
    """Returns what a checkpoint or file holds, of whatever format its first bytes tell.

    Args:
        source, cache_dir: as in `checkpoint_sources.find_checkpoint`.

    Raises:
        CheckpointError: it cannot be had or read.
    """
    path = find_checkpoint(source, cache_dir)
    readers = {"timm": timm_weights.read_timm_file, "keras": keras_weights.read_keras_file}
    return readers.get(format_of(path) or "", read_contents)(path)


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
        model: an `EfficientNet`; for Keras's ResNet files a `ResNet` built with
            `KERAS_ARGUMENTS`. Under a distribution strategy, call this outside of its
            steps.
        source: see `checkpoint_sources.find_checkpoint`: a published name
            ("b3-advprop"), an address, a repository ("hf://timm/…"), a directory, a
            prefix, a `.tar.gz`, timm's `.safetensors` or `.npz`, or Keras's `.h5`. The
            contents decide, not the name.
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
    return load_contents(model, source, read_checkpoint(source, cache_dir), use_ema, include_head)


def load_contents(
    model: keras.Model,
    source: str,
    contents: CheckpointContents,
    use_ema: Optional[bool] = None,
    include_head: bool = True,
) -> LoadReport:
    """Gives a model the weights of what `read_checkpoint` has found; see `load_weights`."""
    variables = {variable_name(model, variable): variable for variable in model.variables}
    if use_ema is None:
        kind = known_kind(source, contents)
        use_ema = prefers_averages(source, kind) or not contents.plain
    if not use_ema and contents.averages and not contents.plain:
        raise CheckpointError(
            f"`use_ema` is False, but {source!r} holds only averages; load it with use_ema=True."
        )
    reading = _Reading(contents, variables, use_ema, default_scope=model.name)
    settings = known_settings(source, contents)
    skipped = _skipped_classifier(reading.shapes, variables, include_head)
    _require_fit(reading, model, skipped, settings, source)
    loaded = [name for name in variables if name not in skipped]
    own = [name for name in loaded if name in reading.shapes]
    for name in loaded:  # read once more: all values at once would double the memory
        variables[name].assign(reading.value(name if name in reading.shapes else main_name(name)))
    plain = [name for name in own if not use_ema or name not in contents.averages]
    report = LoadReport(
        source=source,
        network=contents.description(),
        normalization=settings.get("normalization"),
        num_averages=len(own) - len(plain),
        num_plain=len(plain),
        num_aux=len(loaded) - len(own),
        difference=reading.difference if reading.difference.num_tensors else None,
        skipped=skipped,
        ignored=contents.slots + ([STEP] if contents.step is not None else []) + reading.unused_aux,
        step=contents.step,
        mixed=plain if use_ema and contents.averages else [],
        warnings=_warnings(settings, model, reading.shapes, skipped if include_head else []),
    )
    for warning in report.warnings:
        logging.warning("%s: %s", source, warning)
    return report


class _Reading:
    """What a file's values for a model's variables are like, by their names in the network: their
    shapes, what is wrong with them, and how far averages are from plain weights.
    """

    def __init__(
        self,
        contents: CheckpointContents,
        variables: Mapping[str, tf.Variable],
        use_ema: bool,
        default_scope: str,
    ):
        self.contents, self.variables, self.difference = contents, variables, Difference()
        self.problems: dict[str, list[str]] = {}
        tensors = {**contents.plain, **contents.averages} if use_ema else contents.plain
        held = contents.plain.keys() | contents.averages.keys()
        self.names = {  # what the file calls them, also if it lacks them
            name: tensors.get(name) or contents.expected.get(name, f"{default_scope}/{name}")
            for name in variables
            if main_name(name) == name or name in held
        }
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.not_finite: list[str] = []
        for name in filter(tensors.get, self.names):
            value = self._read(name, self.names[name])
            if value is not None:
                self.shapes[name] = value.shape
                if not np.isfinite(value).all():
                    self.not_finite.append(name)
        # Auxiliary batch norms that the model has no branch for are no misfit.
        unused = {name for name in held if name not in variables and main_name(name) in variables}
        self.unused_aux = [tensors[name] for name in sorted(unused) if name in tensors]
        known = variables.keys() | set(CLASSIFIER) | unused
        self.left_over = [
            tensor
            for part in (contents.plain, contents.averages)
            for name, tensor in part.items()
            if name not in known
        ] + contents.unknown

    def value(self, variable: str) -> Optional[np.ndarray]:
        """Reads the value of one of `shapes`."""
        return self._read_tensor(self.names[variable])

    def _read(self, variable: str, tensor: str) -> Optional[np.ndarray]:
        value = self._read_tensor(tensor)
        average, plain = (
            part.get(variable) for part in (self.contents.averages, self.contents.plain)
        )
        if value is not None and average and plain:
            other = self._read_tensor(plain if tensor == average else average)
            if other is not None and other.shape == value.shape:
                pair = (value, other) if tensor == average else (other, value)
                self.difference.add(plain, *pair)
        return value

    def _read_tensor(self, tensor: str) -> Optional[np.ndarray]:
        try:
            value = self.contents.value(tensor)
        except READ_ERRORS as error:
            self._note("cannot be read, the file is damaged", f"{tensor} ({brief_message(error)})")
            return None
        if not np.issubdtype(value.dtype, np.floating):
            self._note("are no floating-point tensors", f"{tensor} ({value.dtype})")
            return None
        return value.astype(np.float32, copy=False)

    def _note(self, problem: str, text: str) -> None:
        self.problems.setdefault(problem, []).append(text)


def _describe_misfit(contents: CheckpointContents, variables: Mapping[str, Any]) -> str:
    """Returns what the file is, what the model is, and the way out."""
    looks = f"The file looks like {contents.description()}"
    shapes = {name: tuple(variable.shape) for name, variable in variables.items()}
    own, found = recognize(shapes, shapes.get), contents.architecture
    if found is None:
        return f"{looks}."
    if own is not None and own.constructor() == found.constructor():
        return f"{looks}, as the model is, but not all of its tensors are the model's."
    model = "no EfficientNet" if own is None else str(own)
    return f"{looks}, but the model is {model}: build it with {found.constructor()}."


def _skipped_classifier(shapes, variables, include_head: bool) -> list[str]:
    kernel, own = shapes.get(CLASSIFIER[0], ()), tuple(variables[CLASSIFIER[0]].shape)
    has_other_classes = len(kernel) == 2 and kernel[0] == own[0] and kernel[1] != own[1]
    return list(CLASSIFIER) if has_other_classes or not include_head else []


def _require_fit(reading: _Reading, model, skipped, settings, source: str) -> None:
    """Every variable of the model and every tensor of the file must be accounted for."""
    variables = reading.variables
    needed = {name: tensor for name, tensor in reading.names.items() if name not in skipped}
    shapes = {name: reading.shapes[name] for name in needed if name in reading.shapes}
    unreadable = {name for texts in reading.problems.values() for name in texts}
    settings_problem = _settings_problem(settings, model)
    require_no_problems(
        f"{source!r} does not fit the model ({model.name}), which is unchanged.\n "
        f" {_describe_misfit(reading.contents, variables)}{settings_problem}",
        {
            "missing in the file": [
                tensor
                for name, tensor in needed.items()
                if name not in shapes and not any(text.startswith(tensor) for text in unreadable)
            ],
            "of another shape in the file": [
                f"{needed[name]} {list(shape)} instead of {variables[name].shape.as_list()}"
                for name, shape in shapes.items()
                if shape != tuple(variables[name].shape)
            ],
            "in the file but not in the model": reading.left_over,
            "hold values that are not finite": [
                needed[name] for name in reading.not_finite if name in needed
            ],
            **reading.problems,
        },
        source,
    )
    if settings_problem:
        raise CheckpointError(f"{source!r} is not loaded.{settings_problem}")


def _settings_problem(settings: Mapping[str, Any], model) -> str:
    config = {**model.get_config(), "activation": model.activation.name}
    decisive = _DECISIVE_OF_RESNETS if "stride_in" in settings else _DECISIVE
    wrong = [
        f"`{name}` is {config[name]!r}, not {settings[name]!r}"
        for name in decisive
        if settings.get(name) is not None and settings[name] != config.get(name, settings[name])
    ]
    if not wrong:
        return ""
    return (
        f"\n  The model's {', '.join(wrong)}, without which the weights mean nothing; build it with"
        " the latter (in a config: --config.model.…)."
    )


def _warnings(settings: Mapping[str, Any], model, shapes, skipped: list[str]) -> list[str]:
    warnings, config = [], model.get_config()
    if skipped:
        warnings.append(
            f"it has {shapes[CLASSIFIER[0]][1]} classes and the model"
            f" {model.num_classes}: the classifier is not loaded"
        )
    for name in _DOUBTFUL:
        if settings.get(name, config[name]) != config[name]:
            warnings.append(
                f"it was trained with `{name}` {settings[name]!r}, the model has"
                f" {config[name]!r}: other logits"
            )
    return warnings
