"""The released TensorFlow 1 checkpoints into a model, and a model back into their
format.

    # A name, a directory, a prefix or a .tar.gz; local, gs:// or https://
    report = load_released_checkpoint(model, "b3-advprop")
    # Averages or plain weights, how far apart they are, what was left out.
    print(report)
    save_released_checkpoint(model, "out/efficientnet-b3/model.ckpt", averages=ema_values)

A file is read and checked whole before the first variable of the model changes. The
input's normalisation is not in the files; `published_checkpoints` knows it.
"""

import dataclasses
import math
import os
from typing import Mapping, Optional

import numpy as np
import tensorflow as tf
from absl import logging

from efficientnet_advprop.keras2 import keras
from efficientnet_advprop.models.checkpoints.architecture import recognize
from efficientnet_advprop.models.checkpoints.checkpoint_contents import (
    AVERAGE_SUFFIX,
    STEP,
    CheckpointContents,
    main_name,
    read_contents,
)
from efficientnet_advprop.models.checkpoints.checkpoint_sources import (
    READ_ERRORS,
    CheckpointError,
    find_checkpoint,
    require_no_problems,
)
from efficientnet_advprop.models.checkpoints.model_settings import (
    check_activation,
    write_settings,
)
from efficientnet_advprop.models.checkpoints.published_checkpoints import (
    KINDS,
    find_published,
    guess_kind,
    prefers_averages,
)
from efficientnet_advprop.models.variable_names import official_name
from efficientnet_advprop.runtime.errors import list_names
from tpu_utils.errors import brief_message

CLASSIFIER = ("head/dense/kernel", "head/dense/bias")


@dataclasses.dataclass
class Difference:
    """How far the averages are from the plain weights, over all tensors of which the
    file has both.
    """

    num_tensors: int = 0
    num_different: int = 0
    max_absolute: float = 0.0
    where: str = ""  # the tensor of `max_absolute`
    squares: float = 0.0  # Σ (average − plain)²
    plain_squares: float = 0.0  # Σ plain²

    @property
    def relative(self) -> float:
        """‖average − plain‖ / ‖plain‖."""
        return (
            math.sqrt(self.squares / self.plain_squares)
            if self.plain_squares
            else math.inf
            if self.squares
            else 0.0
        )

    def __str__(self):
        share = f"by {100 * self.relative:.3g} % of the plain weights' norm"
        most = f", at most {self.max_absolute:.3g} (in {self.where})" if self.where else ""
        return f"in {self.num_different} of {self.num_tensors} tensors, {share}{most}"

    def add(self, name: str, average: np.ndarray, plain: np.ndarray) -> None:
        difference = np.abs(average - plain)
        largest = float(difference.max(initial=0.0))
        self.num_tensors += 1
        self.num_different += largest != 0
        if not largest <= self.max_absolute:  # also when it is not a number
            self.max_absolute, self.where = largest, name
        self.squares += float(np.vdot(difference, difference))
        self.plain_squares += float(np.vdot(plain, plain))


@dataclasses.dataclass
class LoadReport:
    """What `load_released_checkpoint` did; its text is for people."""

    source: str
    prefix: str  # of the files that were read
    network: str  # what the file looks like, such as "efficientnet-b3"
    num_averages: int  # variables loaded from averages
    num_plain: int  # variables loaded from plain weights
    num_aux: int  # auxiliary variables that got the main ones' values
    difference: Optional[Difference]  # None: the file does not have both
    skipped: list[str]  # variables of the model that keep their values: the classifier
    ignored: list[
        str
    ]  # tensors of the file that were not needed: slots, the step, auxiliary batch norms
    step: Optional[int]
    mixed: list[
        str
    ]  # variables of which there is no average, although there is of others; they got plain values

    @property
    def weights(self) -> str:
        """ "averaged", "plain" or "mixed"."""
        return "plain" if not self.num_averages else "mixed" if self.num_plain else "averaged"

    def __str__(self):
        step = "" if self.step is None else f", step {self.step}"
        num_loaded = self.num_averages + self.num_plain
        lines = [
            f"{self.source}: {self.network}{step}; {num_loaded} variables loaded, {self.weights}"
            " weights"
        ]
        if self.difference is not None:
            lines.append(f"  averages and plain weights differ {self.difference}")
        else:
            lines.append(
                "  the file holds only "
                + ("plain weights" if self.weights == "plain" else "averages")
            )
        if self.mixed:
            lines.append(f"  without average, hence plain: {list_names(self.mixed)}")
        if self.skipped:
            lines.append(f"  not loaded, as they were: {', '.join(self.skipped)}")
        if self.num_aux:
            lines.append(
                f"  {self.num_aux} auxiliary batch-norm variables are copies of the main ones"
            )
        if self.ignored:
            lines.append(
                f"  ignored in the file: {len(self.ignored)} tensors (optimizer slots, step,"
                " auxiliary batch norms)"
            )
        return "\n".join(lines)


def variable_name(model: keras.Model, variable: tf.Variable) -> str:
    """A variable's name within its network, such as "stem/conv2d/kernel"."""
    return official_name(variable.name).split(f"{model.name}/", 1)[-1]


def load_released_checkpoint(
    model: keras.Model,
    source: str,
    use_ema: Optional[bool] = None,
    include_head: bool = True,
    cache_dir: Optional[str] = None,
) -> LoadReport:
    """Gives a model the weights of a checkpoint in the released format.

    Auxiliary batch norms get the file's own, where it has them, and copies of the main
    ones otherwise. Optimizer slots and the step are ignored. A file of another number
    of classes fills all but the classifier, and the report and a warning say so.

    Args:
        model: an `EfficientNet`. Under a distribution strategy, call this outside of
            its steps.
        source: see `checkpoint_sources.find_checkpoint`: a published name
            ("b3-advprop"), a directory, a prefix or a `.tar.gz`.
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
        CheckpointError: the source cannot be had, is damaged, is of another network
            (which one it looks like is said), lacks variables, has others, has wrong
            shapes or values that are not finite, or is known to have another activation
            than the model; the message counts them and names the first, the error's
            `problems` name all, and the model is as it was.
    """
    prefix = find_checkpoint(source, cache_dir)
    contents = read_contents(prefix)
    check_activation(source, model, contents)
    if use_ema is None:
        variant = contents.architecture and contents.architecture.variant
        kind = guess_kind(source, variant, contents.has_grouped_norms)
        use_ema = prefers_averages(source, kind) or not contents.plain
    variables = {variable_name(model, variable): variable for variable in model.variables}
    names = _choose(contents, variables, source, use_ema)
    skipped = _skipped_classifier(contents, variables, include_head)
    _check_structure(contents, model.name, variables, names, skipped, source, use_ema)
    report = LoadReport(
        source=source,
        prefix=prefix,
        network=contents.description(),
        num_averages=0,
        num_plain=0,
        num_aux=0,
        difference=None,
        skipped=skipped,
        ignored=contents.slots + ([STEP] if contents.step is not None else []),
        step=contents.step,
        mixed=[],
    )
    report.ignored += [
        contents.plain.get(name) or contents.averages[name]
        for name in _unused_aux(contents, variables)
    ]
    wanted = {variable: name for variable, name in names.items() if variable not in skipped}
    values = _read(contents, wanted, report)
    used = set()
    for name, variable in variables.items():
        if name in skipped:
            continue
        key = wanted[name]
        variable.assign(values[key])
        used.add(key)
        if main_name(name) != name and _is_copy(name, contents):
            report.num_aux += 1
        elif key.endswith(AVERAGE_SUFFIX):
            report.num_averages += 1
        else:
            report.num_plain += 1
            if use_ema and contents.averages:
                report.mixed.append(name)
    _tell(report, contents, model, include_head)
    return report


def _is_copy(name: str, contents: CheckpointContents) -> bool:
    return name not in contents.plain and name not in contents.averages


def _unused_aux(contents: CheckpointContents, variables) -> list[str]:
    """The auxiliary variables of the file that the model has no branch for."""
    held = sorted(contents.plain.keys() | contents.averages.keys())
    return [
        name
        for name in held
        if main_name(name) != name and name not in variables and main_name(name) in variables
    ]


def _choose(contents: CheckpointContents, variables, source: str, use_ema: bool) -> dict[str, str]:
    """For each variable of the model, the tensor of the file that it gets; those
    without one are left out.
    """
    if not use_ema and contents.averages and not contents.plain:
        raise CheckpointError(
            f"`use_ema` is False, but {source!r} holds only averages; load it with use_ema=True."
        )
    first, second = (contents.averages, contents.plain) if use_ema else (contents.plain, {})
    result = {}
    for variable in variables:
        for name in (variable, main_name(variable)):
            if name in first or name in second:
                result[variable] = first.get(name) or second[name]
                break
    return result


def _skipped_classifier(contents: CheckpointContents, variables, include_head: bool) -> list[str]:
    shape = contents.shape(CLASSIFIER[0])
    own = tuple(variables[CLASSIFIER[0]].shape)
    other_classes = (
        shape is not None and len(shape) == 2 and shape[0] == own[0] and shape[1] != own[1]
    )
    return list(CLASSIFIER) if other_classes or not include_head else []


def _check_structure(contents, scope, variables, names, skipped, source, use_ema) -> None:
    """Every variable of the model and every tensor of the file must be accounted for."""
    needed = [
        name
        for name in variables
        if name not in skipped and (main_name(name) == name or not _is_copy(name, contents))
    ]
    missing = [f"{scope}/{name}" for name in needed if name not in names]
    misshapen = [
        f"{names[name]} {list(contents.shapes[names[name]])} instead of"
        f" {variables[name].shape.as_list()}"
        for name in needed
        if name in names and contents.shapes[names[name]] != tuple(variables[name].shape)
    ]
    unused_aux = set(_unused_aux(contents, variables))
    known = variables.keys() | set(CLASSIFIER) | unused_aux
    left_over = [
        tensor
        for kind in (contents.plain, contents.averages)
        for name, tensor in kind.items()
        if name not in known
    ] + contents.unknown
    # A plain twin that is not loaded must fit nevertheless: it will be compared.
    twins = [
        f"{contents.plain[name]} {list(contents.shapes[contents.plain[name]])} beside"
        f" {contents.averages[name]} {list(contents.shapes[contents.averages[name]])}"
        for name in contents.plain.keys() & contents.averages.keys()
        if contents.shapes[contents.plain[name]] != contents.shapes[contents.averages[name]]
    ]
    require_no_problems(
        f"{source!r} does not fit the model ({scope}), which is unchanged.\n  "
        + _describe_misfit(contents, variables),
        {
            (
                "missing in the file" if use_ema else "missing in the file among the plain weights"
            ): missing,
            "of another shape in the file": misshapen,
            "in the file but not in the model": left_over,
            "whose average has another shape than itself": sorted(twins),
        },
        source,
    )


def _describe_misfit(contents: CheckpointContents, variables) -> str:
    """The kind of it in words: what the file is, what the model is, and the way out."""
    looks = f"The file looks like {contents.description()}"
    shapes = {name: tuple(variable.shape) for name, variable in variables.items()}
    own = recognize(shapes, shapes.get)
    found = contents.architecture
    if found is None and "object-based" in looks:
        return f"{looks}: a run of this project is taken by `--model_dir`."
    if found is None:
        return f"{looks}."
    if found.is_sized_like(own):
        return f"{looks}, as the model is, but not all of its tensors are the model's."
    model = "no EfficientNet" if own is None else str(own)
    return f"{looks}, but the model is {model}: build it with {found.constructor()}."


def _read(
    contents: CheckpointContents, wanted: Mapping[str, str], report: LoadReport
) -> dict[str, np.ndarray]:
    """The tensors by their names in the file, float32 and finite; compares averages
    with plain weights on the way.
    """
    twins = {
        contents.averages[name]: contents.plain[name]
        for name in contents.averages.keys() & contents.plain.keys()
    }
    partners = {**twins, **{plain: average for average, plain in twins.items()}}
    values, damaged, not_finite, not_float = {}, [], [], []

    def read(name):
        try:
            value = contents.value(name)
        except READ_ERRORS as error:
            damaged.append(f"{name} ({brief_message(error)})")
            return None
        if not np.issubdtype(value.dtype, np.floating):
            not_float.append(f"{name} ({value.dtype})")
            return None
        return value.astype(np.float32, copy=False)

    for name in dict.fromkeys(wanted.values()):
        value = read(name)
        if value is None:
            continue
        if not np.isfinite(value).all():
            not_finite.append(name)
        values[name] = value
        partner = read(partners[name]) if name in partners else None
        if partner is not None:
            report.difference = report.difference or Difference()
            average, plain = (value, partner) if name in twins else (partner, value)
            report.difference.add(twins.get(name, name), average, plain)
    require_no_problems(
        f"{report.source!r} cannot be used; the model is unchanged.",
        {
            "cannot be read, the file is damaged": damaged,
            "hold values that are not finite": not_finite,
            "are no floating-point tensors": not_float,
        },
        report.source,
    )
    return values


def _tell(report: LoadReport, contents: CheckpointContents, model, include_head: bool) -> None:
    if report.skipped and include_head:
        shape = contents.shape(CLASSIFIER[0])
        logging.warning(
            "%s has %d classes and the model %d: the classifier (%s) is not loaded.",
            report.source, shape[1], model.num_classes, ", ".join(CLASSIFIER),
        )  # fmt: skip
    published = find_published(report.source)
    if published is not None:
        epsilon = KINDS[published.kind].batch_norm_epsilon
        own = model.get_config()["batch_norm_epsilon"]
        if epsilon != own:
            logging.warning(
                "%s was trained with `batch_norm_epsilon` %g, the model has %g: other logits.",
                report.source, epsilon, own,
            )  # fmt: skip
    if report.mixed:
        logging.warning(
            "%s has no average of %d variables; they got plain values.",
            report.source,
            len(report.mixed),
        )
    if report.difference is not None and report.difference.num_different:
        logging.warning(
            "%s holds averages and plain weights, which differ by %.3g %%; the %s were taken.",
            report.source,
            100 * report.difference.relative,
            "averages" if report.num_averages else "plain weights",
        )


def save_released_checkpoint(
    model: keras.Model,
    prefix: str,
    averages: Optional[Mapping[str, np.ndarray]] = None,
    global_step: Optional[int] = None,
    include_aux: bool = False,
) -> str:
    """Writes a model in the official names and format: `<prefix>.index`,
    `<prefix>.data-00000-of-00001` and a `checkpoint` file; and, for this project alone,
    `<prefix>.settings.json`, with what tensors do not tell (see `model_settings`).

    Args:
        model: an `EfficientNet`; its values become the plain weights.
        prefix: "…/efficientnet-b3/model.ckpt", local or gs://; directories are made.
        averages: of every variable, by its name in the model
            ("efficientnet-b3/stem/conv2d/kernel"); None writes the model's own values
            under the averages' names too, since the official programs read those.
        global_step: the number of updates done, if it is to be in the file.
        include_aux: write the auxiliary batch norms too (`…/aux/gamma`), for going on
            with AdvProp; other programs do not know them.

    Returns:
        `prefix`.

    Raises:
        CheckpointError: an average is missing, or a value is not finite. Nothing is
            written.
    """
    names, tensors, missing, not_finite = [], [], [], []
    for variable in model.variables:
        own_name, name = (
            official_name(variable.name),
            f"efficientnet-{model.variant}/{variable_name(model, variable)}",
        )
        if main_name(name) != name and not include_aux:
            continue
        if averages is not None and own_name not in averages:
            missing.append(own_name)
            continue
        for key, value in (
            (name, variable),
            (name + AVERAGE_SUFFIX, variable if averages is None else averages[own_name]),
        ):
            tensor = tf.convert_to_tensor(value)
            if not np.isfinite(tensor.numpy()).all():
                not_finite.append(key)
            names.append(key)
            tensors.append(tensor)
    if missing or not_finite:
        wrong = (
            f"`averages` lacks {list_names(missing)}"
            if missing
            else f"the values of {list_names(not_finite)} are not finite"
        )
        raise CheckpointError(f"{prefix!r} is not written: {wrong}.")
    if global_step is not None:
        names.append(STEP)
        tensors.append(tf.constant(global_step, tf.int64))
    directory = os.path.dirname(prefix) or "."
    tf.io.gfile.makedirs(directory)
    tf.raw_ops.SaveV2(
        prefix=prefix, tensor_names=names, shape_and_slices=[""] * len(names), tensors=tensors
    )
    write_settings(prefix, model)
    base = os.path.basename(prefix)
    with tf.io.gfile.GFile(os.path.join(directory, "checkpoint"), "w") as file:
        file.write(f'model_checkpoint_path: "{base}"\nall_model_checkpoint_paths: "{base}"\n')
    return prefix
