"""A trained network and how its images are to be prepared: from a training run, from a
checkpoint in the released format, or from a Keras file.

    network = restore_network(checkpoint="b3-advprop")   # or "model.keras", "gs://…", …
    network = restore_network(model_dir="runs/b3")       # the averaged weights of a run of ours
    network.model, network.image_size, network.crop, network.description
"""

import dataclasses
import json
import os
import zipfile
from typing import Any, Optional

import tensorflow as tf

from efficientnet_advprop.config.experiment import ConfigError
from efficientnet_advprop.config.tables import background_offset
from efficientnet_advprop.data import preprocessing
from efficientnet_advprop.data.class_names import LABELS_MAP, read_class_names
from efficientnet_advprop.evaluation.classifiers import (
    DEFAULT_CROP,
    Classifier,
    as_classifier,
    probe,
)
from efficientnet_advprop.keras import AdvPropModel
from efficientnet_advprop.keras2 import keras
from efficientnet_advprop.models import (
    CheckpointError,
    EfficientNet,
    KerasNetwork,
    Network,
)
from efficientnet_advprop.models.checkpoints.checkpoint_contents import CheckpointContents
from efficientnet_advprop.models.checkpoints.model_settings import (
    PREPROCESSING,
    known_kind,
    known_settings,
)
from efficientnet_advprop.models.checkpoints.published_checkpoints import (
    KINDS,
    PUBLISHED,
    PublishedCheckpoint,
    find_published,
    kinds_of,
    prefers_averages,
)
from efficientnet_advprop.models.checkpoints.weight_loading import load_contents, read_checkpoint
from efficientnet_advprop.models.network import normalize_pixels
from efficientnet_advprop.models.scaling import VARIANTS
from efficientnet_advprop.runtime.branches import Branch, num_aux_branches, parse_branch
from efficientnet_advprop.runtime.errors import brief_message
from efficientnet_advprop.training import checkpoints

_KERAS_SUFFIX = ".keras"
# What an `AdvPropModel` knows of its images, in our words.
_NORMALIZATIONS = {(0.0, 255.0): "none", (0.0, 1.0): "unit", (-1.0, 1.0): "advprop"}


@dataclasses.dataclass(frozen=True)
class RestoredNetwork:
    """A network, and the pre-processing that its accuracy was measured with."""

    name: str
    model: Network
    image_size: int  # pixels
    crop: str  # see `preprocessing.crop_fraction`
    serving_resize: str = "bicubic"  # or "bilinear": how an export resizes; here: "bicubic"
    published: Optional[PublishedCheckpoint] = None  # whose figure to compare with
    description: str = ""  # where everything comes from, for people; several lines
    class_names: Optional[tuple[str, ...]] = None  # by label; None: not known

    def classifier(self, branch: Branch = "main") -> Classifier:
        """Returns a model for `evaluation.run`, through the batch norms of `branch`."""
        classifier = as_classifier(
            self.model, name=self.name, image_size=self.image_size, crop=self.crop, branch=branch
        )
        published = None if self.published is None else self.published.name
        config = {
            **classifier.config,
            "description": self.description.splitlines(),
            "published": published,
        }
        # The background's name is of no class of a data set.
        offset = background_offset(self.model.num_classes)
        names = self.class_names and self.class_names[offset:]
        return dataclasses.replace(classifier, config=config, class_names=names)


def restore_network(
    checkpoint: Optional[str] = None,
    model_dir: Optional[str] = None,
    *,
    kind: Optional[str] = None,
    normalization: Optional[str] = None,
    image_size: Optional[int] = None,
    crop: Optional[str] = None,
    use_ema: Optional[bool] = None,
    cache_dir: Optional[str] = None,
    branch: Branch = "main",
    labels_map_file: Optional[str] = None,
    which: Optional[str] = None,
) -> RestoredNetwork:
    """Builds the network that a file holds, and loads it.

    Args:
        checkpoint: in any format of `checkpoint_sources.find_checkpoint`; or a .keras file of
            a plain, converted or `AdvPropModel`, whose own classes must be importable.
        model_dir: of a training run of ours, instead.
        kind: of a released checkpoint, a key of `KINDS`; None: as its official name, its
            settings file or its network says, and an error where nothing does.
        normalization, image_size, crop: None: what the kind and the variant (or the
            run's config, or the settings beside a checkpoint of ours) say.
        use_ema: averages rather than plain weights, of a released checkpoint; None: as
            its published figure was measured.
        cache_dir: for downloaded archives.
        branch: "main" builds a network without auxiliary branches; another one ("aux",
            "aux_2"), or all those of a mixture ("main:0.7,aux:0.3"), must be in the
            file too.
        labels_map_file: the names of the classes; None: those in `labels_map.txt` of
            the run, or beside the checkpoint.
        which: checkpoint of a run: "best" (validation accuracy) or "last"; None: see
            `checkpoints.default_checkpoint`.

    Raises:
        UsageError: the labels map cannot be read, or names more or fewer classes.
        ConfigError: not exactly one of `checkpoint` and `model_dir`, an argument that
            does not go with it, or no such branch.
        CheckpointError: the file cannot be had or used.
    """
    if bool(checkpoint) == bool(model_dir):
        raise ConfigError(
            "Give one of `--checkpoint` (a name, an address or a file) and `--model_dir` (a "
            "training run), which says what network to use."
        )
    if kind is not None and kind not in KINDS:
        raise ConfigError(f"`--kind` is {kind!r}, but must be one of {', '.join(KINDS)}.")
    try:
        branch = parse_branch(branch)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if model_dir:
        _require_none("`--checkpoint`", kind=kind, normalization=normalization, use_ema=use_ema)
        network = _restore_run(model_dir, which, image_size, crop, branch)
        return _with_class_names(network, labels_map_file, model_dir)
    _require_none("`--model_dir`", which=which)
    if checkpoint.endswith(_KERAS_SUFFIX):
        _require_none("checkpoints in the released format", kind=kind, use_ema=use_ema)
        network = _restore_keras(checkpoint, normalization, image_size, crop)
        return _with_class_names(network, labels_map_file, os.path.dirname(checkpoint))
    contents = read_checkpoint(checkpoint, cache_dir)
    network = _restore_released(
        checkpoint, contents, kind, normalization, image_size, crop, use_ema, branch
    )
    return _with_class_names(network, labels_map_file, os.path.dirname(contents.prefix))


def _require_none(goes_with: str, **arguments: Any) -> None:
    for name, value in arguments.items():
        if value is not None:
            raise ConfigError(f"`--{name}` is {value!r}, but goes with {goes_with}; leave it out.")


def _restore_keras(
    path: str, normalization: Optional[str], image_size: Optional[int], crop: Optional[str]
) -> RestoredNetwork:
    model, told = _load_keras(path, image_size, normalization)
    name = os.path.basename(path).removesuffix(_KERAS_SUFFIX)
    network = RestoredNetwork(name, model, model.image_size, crop or DEFAULT_CROP)
    return _describe(network, f"{path}: {told}", "Keras model")


def _keras_version(path: str) -> str:
    """Returns what the file says of the Keras that wrote it; "" where it says nothing."""
    try:
        with tf.io.gfile.GFile(path, "rb") as file, zipfile.ZipFile(file) as archive:
            return str(json.loads(archive.read("metadata.json")).get("keras_version", ""))
    except (zipfile.BadZipFile, tf.errors.OpError, KeyError, ValueError, AttributeError):
        return ""  # Keras says what is wrong with it


def _load_keras(
    path: str, image_size: Optional[int], normalization: Optional[str]
) -> tuple[KerasNetwork, str]:
    """Returns the model as a network, and a line for people that describes it."""
    if not tf.io.gfile.exists(path):
        raise CheckpointError(f"`--checkpoint` is {path!r}, but there is no such file.")
    version = _keras_version(path)
    if version.startswith("3"):
        raise CheckpointError(
            f"`--checkpoint` is {path!r}, a file of Keras {version}, but the programs take models"
            " of Keras 2. In Keras 3 the model is trained by `fit` of efficientnet_advprop.keras3,"
            " measured by `evaluate` (of a `BranchModel` for another branch) and served by"
            " `export`; its weights go to Keras 2 by `save_weights` (docs/keras.md)."
        )
    try:
        model = keras.models.load_model(path, compile=False)
    except Exception as error:  # of Keras or of a class of the model's author
        raise CheckpointError(
            f"`--checkpoint` is {path!r}, which Keras cannot load: {type(error).__name__}: "
            f"{brief_message(error)}. Classes of your own must be importable; start the program in "
            "their folder, or name it in PYTHONPATH."
        ) from error
    origin = "pixels as given" if normalization else "pixels assumed in 0 to 255"
    if isinstance(model, AdvPropModel):
        if normalization is None:
            normalization = _NORMALIZATIONS.get(tuple(model.pixel_range))
            origin = f"its pixel_range is {model.pixel_range}"
        if normalization is None:
            raise ConfigError(
                f"`--normalization` is missing: {path!r} was trained with pixel_range="
                f"{model.pixel_range}, which none of them makes."
            )
        model = model.network
    normalization = normalization or "none"
    fixed = None if model.inputs is None else model.inputs[0].shape[1]
    if image_size is None and fixed is None:
        raise ConfigError(f"`--image_size` is missing; {path!r} takes images of any size.")
    if image_size is not None and fixed not in (None, image_size):
        raise ConfigError(
            f"`--image_size` is {image_size}, but {path!r} takes {fixed} pixels only; leave it out."
        )
    size = image_size or fixed

    def answer(images):
        return model(normalize_pixels(images, normalization), training=False)

    num_classes, _, output = probe(answer, path, size, tf.float32)
    network = KerasNetwork(
        model, image_size=size, num_classes=num_classes, normalization=normalization, output=output
    )
    branches = f"{network.aux_branches} auxiliary branches" if network.aux_branches else "plain"
    return network, f"{type(model).__name__} {model.name!r}, {branches}; {origin}; {output}"


def _restore_released(
    checkpoint: str,
    contents: CheckpointContents,
    kind: Optional[str],
    normalization: Optional[str],
    image_size: Optional[int],
    crop: Optional[str],
    use_ema: Optional[bool],
    branch: Branch,
) -> RestoredNetwork:
    architecture = contents.architecture
    if architecture is None or architecture.num_classes is None:
        what = f"{architecture} without a classifier" if architecture else contents.description()
        raise CheckpointError(
            f"{checkpoint!r} holds no network that can be built from it alone: it looks like"
            f" {what}."
        )
    variant = architecture.variant
    settings = known_settings(checkpoint, contents, kind)
    told = contents.settings.get("normalization")
    if told and normalization and told != normalization:
        raise ConfigError(
            f"`--normalization` is {normalization!r}, but {checkpoint!r} says that its pixels are"
            f" normalised as {told!r}; leave the flag out."
        )
    if normalization:
        settings["normalization"] = normalization
    prepared = {name: settings.pop(name, None) for name in PREPROCESSING}
    kind, origin = _find_kind(checkpoint, contents, kind, settings)
    if use_ema is None:
        use_ema = prefers_averages(checkpoint, kind) or not contents.plain
    published = find_published(checkpoint)
    if kind and (published is None or published.kind != kind):
        column = f"{variant}_enhanced" if kind == "sat" and use_ema else variant
        # A published figure is of the table's own networks, with their own classes.
        is_table_row = architecture.width_coefficient is None and architecture.num_classes == (
            KINDS[kind].num_classes or VARIANTS[variant].design.num_classes
        )
        name = KINDS[kind].name.format(variant=column, kind=kind)
        published = PUBLISHED.get(name) if is_table_row else None
    model = EfficientNet(
        variant,
        num_classes=architecture.num_classes,
        aux_branches=num_aux_branches(branch),
        width_coefficient=architecture.width_coefficient,
        depth_coefficient=architecture.depth_coefficient,
        **settings,
    )
    # ImageNet-21k's, of whatever format: no other network has as many classes.
    model.is_multilabel = architecture.num_classes in {row.num_classes for row in KINDS.values()}
    report = load_contents(model, checkpoint, contents, use_ema=use_ema)
    if report.num_aux:  # auxiliary norms that were filled with copies of the main ones
        raise CheckpointError(
            f"`--branch` is '{branch}', but {checkpoint!r} holds no such auxiliary batch norms."
        )
    network = RestoredNetwork(
        name=checkpoint,
        model=model,
        image_size=image_size
        or prepared["image_size"]
        or (published or VARIANTS[variant]).image_size,
        crop=crop or prepared["crop"] or "released",
        serving_resize=VARIANTS[variant].design.serving_resize,
        published=published,
    )
    return _describe(network, str(report), f"{kind} ({origin})" if kind else origin)


def _find_kind(
    checkpoint: str, contents: CheckpointContents, kind: Optional[str], settings: dict
) -> tuple[Optional[str], str]:
    """Returns the kind of a released checkpoint and who says so; None where its settings are
    known without it.
    """
    architecture = contents.architecture
    possible = kinds_of(architecture.variant, architecture.num_classes)
    known = known_kind(checkpoint, contents)
    if kind is None and known is not None:
        return known, "by its name, address, network or form"
    if kind is None and "normalization" in settings:
        return None, "by its settings"
    if kind is None:
        raise ConfigError(
            f"`--kind` is missing: {checkpoint!r} is no official name, and no settings file beside"
            f" it says how the pixels of {architecture} are normalised. Give --kind="
            f"{'|'.join(possible)}, or --normalization."
        )
    if kind not in possible:
        raise ConfigError(
            f"`--kind` is {kind!r}, but {checkpoint!r} holds {architecture}, which is of"
            f" kind {' or '.join(possible)}; leave the flag out, and say by --normalization if its"
            " pixels were normalised in another way."
        )
    if contents.has_grouped_norms and kind != "sat":
        raise ConfigError(
            f"`--kind` is {kind!r}, but the batch norms of {checkpoint!r} have the shape [1, 1, 1,"
            " 1, C], as only the code of Smooth Adversarial Training writes them; leave the flag"
            " out, or take --kind=sat."
        )
    return kind, "given"


def _with_class_names(
    network: RestoredNetwork, labels_map_file: Optional[str], directory: str
) -> RestoredNetwork:
    path = labels_map_file or os.path.join(directory, LABELS_MAP)
    if not labels_map_file and not tf.io.gfile.exists(path):
        return network
    names = tuple(read_class_names(path, network.model.num_classes))
    description = f"{network.description}\n  class names: {path}"
    return dataclasses.replace(network, class_names=names, description=description)


def _restore_run(
    model_dir: str,
    which: Optional[str],
    image_size: Optional[int],
    crop: Optional[str],
    branch: Branch,
) -> RestoredNetwork:
    config = checkpoints.read_config(model_dir)
    model = checkpoints.load_averaged_model(
        model_dir, which=which, aux_branches=None if num_aux_branches(branch) else 0
    )
    if num_aux_branches(branch) > model.aux_branches:
        raise ConfigError(
            f"`--branch` is '{branch}', but {model_dir} was trained with {model.aux_branches}"
            " auxiliary branches."
        )
    if image_size is not None and model.fixed_image_size not in (None, image_size):
        raise ConfigError(
            f"`--image_size` is {image_size}, but the Keras model of {model_dir} takes "
            f"{model.fixed_image_size} pixels only; leave it out."
        )
    default = checkpoints.default_checkpoint(config)
    reason = ", the best one being chosen on the validation images" if default == "last" else ""
    reason = "" if which else reason
    name = os.path.basename(os.path.normpath(model_dir))
    variant = VARIANTS.get(config.model.variant)  # None: a ResNet, or a Keras model
    network = RestoredNetwork(
        name=name,
        model=model,
        image_size=image_size or config.data.image_size,
        crop=crop or config.data.eval_crop,
        serving_resize=variant.design.serving_resize if variant else "bicubic",
    )
    return _describe(
        network,
        f"{model_dir}: {model.name}, {which or default} checkpoint{reason}",
        f"{config.training.method} training",
    )


def _describe(network: RestoredNetwork, loaded: str, kind: str) -> RestoredNetwork:
    try:
        if network.crop != "none":
            preprocessing.crop_fraction(network.image_size, network.crop)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    side = f"{network.image_size} x {network.image_size} pixels"
    resize = "bicubic" if network.serving_resize == "bicubic" else "bicubic (exports: bilinear)"
    if network.crop in (preprocessing.V2, preprocessing.V2_FT):  # which say the method, too
        resize = "bilinear"
        network = dataclasses.replace(network, serving_resize=resize)
    text = (
        f"{loaded}\n  kind: {kind}\n  input: {side}, crop {network.crop}, {resize}, "
        f"normalization {network.model.normalization}"
    )
    if network.model.is_multilabel:
        text += (
            f"\n  classes: {network.model.num_classes:,} of ImageNet-21k, each with a probability"
            " of its own (sigmoid)"
        )
    return dataclasses.replace(network, description=text)
