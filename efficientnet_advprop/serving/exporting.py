"""One export: fold, write, check in a fresh process, move into place.

Versions are directories as TensorFlow Serving wants them, `<export_dir>/1`, `/2`, …, each
there as a whole or not at all.
"""

import contextlib
import dataclasses
import difflib
import os
import re
import shutil
import sys
import tempfile
from typing import Any, Iterator, Optional, Sequence

import tensorflow as tf

from efficientnet_advprop.data import preprocessing
from efficientnet_advprop.models import KerasNetwork
from efficientnet_advprop.models.network import Network, weights_digest
from efficientnet_advprop.runtime import files
from efficientnet_advprop.runtime.errors import RunError, UsageError, brief_message
from efficientnet_advprop.serving import converters, verification
from efficientnet_advprop.serving.calibration_images import (
    Examples,
    default_examples,
    read_examples,
)
from efficientnet_advprop.serving.inference_network import InferenceNetwork
from efficientnet_advprop.serving.saved_model import (
    METADATA,
    ServedNetwork,
    write_metadata,
    write_saved_model,
)
from efficientnet_advprop.serving.trained_network import RestoredNetwork

_FILE_NAMES = {"tflite": "model.tflite", "onnx": "model.onnx", "keras": "model.keras"}
_WEIGHTS_FILE = "model.weights.h5"  # beside model.keras
_MAX_CALIBRATION_IMAGES = 500
_MAX_PROTO_BYTES = 2**31 - 1  # a SavedModel's graph and an ONNX file are one protocol buffer each
_STAGING_PREFIX = "unfinished-"  # no number, so TensorFlow Serving does not look at it


@dataclasses.dataclass(frozen=True)
class ExportOptions:
    """What is written, and what it is checked with.

    Raises:
        UsageError: options that do not go together.
    """

    format: str = "saved_model"  # one of `tables.EXPORT_FORMATS`
    quantization: str = "none"  # of TFLite: one of `tables.QUANTIZATIONS`
    class_names: Optional[Sequence[str]] = None  # None: the network's own, if it knows them
    num_top: int = 5  # classes that `serving_default` names
    # Images for full-integer ranges and for the check; None: two photographs.
    calibration_dir: Optional[str] = None
    onnx_python: str = sys.executable  # interpreter with tf2onnx and onnxruntime
    resize: Optional[str] = None  # of encoded images; None: as the network is officially served
    end_point: Optional[str] = None  # makes a feature extractor: a name of `Network.features`

    def __post_init__(self):
        if self.quantization != "none" and self.format != "tflite":
            raise UsageError(
                f"`--quantization` is {self.quantization!r}, which goes with --format=tflite only."
            )
        if self.end_point is not None and self.format == "keras":
            raise UsageError(
                f"`--end_point` is {self.end_point!r}, but a Keras file is the model, which has"
                " every end point by `model.features(images)`; leave the flag out, or choose"
                " another --format."
            )
        if self.quantization == "full_integer" and not self.calibration_dir:
            raise UsageError(
                "`--quantization` is 'full_integer', whose ranges are measured: give some hundred"
                " images by --calibration_dir."
            )

    @property
    def tolerance(self) -> Optional[float]:
        """The largest difference that the check allows; None: any."""
        if self.quantization == "float16":
            return verification.FLOAT16_TOLERANCE
        if self.quantization != "none":
            return None
        is_probability = self.end_point is None
        return verification.FLOAT32_TOLERANCE if is_probability else verification.FEATURE_TOLERANCE


def export(
    network: RestoredNetwork, export_dir: str, options: ExportOptions
) -> tuple[str, int, verification.Agreement]:
    """Writes the next version of a network into `export_dir`.

    Returns the path of the version, its size in bytes, and what its check has found.

    Args:
        network: without auxiliary branches.
        export_dir: local or remote; `<export_dir>/<next version>/` is made.
        options: see there.

    Raises:
        UsageError: the network has no such end point, or its crop resizes in one way only.
        RunError: it cannot be written or converted, or did not pass its check. No
            version is left behind.
        DataError: the calibration images are not there.
    """
    model = _in_float32(network.model)
    folded = InferenceNetwork(model, network.image_size)
    _check_end_point(folded, options.end_point)
    crops = (preprocessing.V2, preprocessing.V2_FT, preprocessing.TORCHVISION)
    if network.crop in crops and options.resize not in (None, "bilinear"):
        raise UsageError(
            f"`--resize` is {options.resize!r}, but the network's crop {network.crop!r} resizes"
            " bilinearly; leave the flag out, or give another --crop."
        )
    num_bytes = 4 * folded.num_weights
    if num_bytes >= _MAX_PROTO_BYTES and options.format in ("saved_model", "onnx"):
        raise RunError(
            f"the network has {num_bytes / 1e9:.1f} GB of weights, more than this format's 2 GB;"
            " use --format=keras."
        )
    if options.format == "onnx":
        converters.check_onnx_environment(options.onnx_python)  # at once, not after a minute's work
    examples = _read_examples(network, options)
    metadata = describe(network, folded, options)
    room = 2.2 if options.format == "keras" else 1.1  # a Keras export holds its weights twice
    with new_version(export_dir, int(room * num_bytes)) as version:
        checked = version.staging
        metadata_path = os.path.join(version.staging, METADATA)
        if options.format == "saved_model":
            served = ServedNetwork(
                folded,
                network.crop,
                options.class_names or network.class_names,
                options.num_top,
                options.resize or network.serving_resize,
                options.end_point,
            )
            write_saved_model(served, version.staging, metadata, min(examples.files, key=len))
            metadata_path = os.path.join(version.staging, "assets", METADATA)
        else:
            checked = os.path.join(version.staging, _FILE_NAMES[options.format])
            _write_file(model, folded, options, examples, checked)
        python = options.onnx_python if options.format == "onnx" else sys.executable
        agreement = verification.verify(
            model, options.format, checked, examples, options.tolerance, python, options.end_point
        )
        # Once more, now that the check has passed; of a SavedModel this is its asset's file.
        write_metadata(metadata_path, {**metadata, "self_check": agreement.as_json()})
        num_bytes = sum(map(os.path.getsize, _files_below(version.staging)))
    return version.path, num_bytes, agreement


def _read_examples(network: RestoredNetwork, options: ExportOptions) -> Examples:
    resize_method = options.resize or network.serving_resize
    if not options.calibration_dir:
        return default_examples(network.image_size, network.crop, resize_method)
    return read_examples(
        options.calibration_dir,
        network.image_size,
        network.crop,
        network.model.num_classes,
        _MAX_CALIBRATION_IMAGES,
        network.class_names,
        resize_method,
    )


def describe(
    network: RestoredNetwork, folded: InferenceNetwork, options: ExportOptions
) -> dict[str, Any]:
    """Returns what a user of the export may want to know about it, as JSON types."""
    settings = network.model.get_config()
    kept = ("variant", "num_classes", "width_coefficient", "depth_coefficient")
    kept += ("batch_norm_epsilon", "activation_alpha")
    model = {name: settings[name] for name in kept if name in settings}
    if not isinstance(network.model, KerasNetwork):  # whose activations are its layers'
        model["activation"] = network.model.activation.name
    fraction = None
    if network.crop != "none":
        fraction = preprocessing.crop_fraction(network.image_size, network.crop)
    return {
        "model": {**model, "num_weights": folded.num_weights},
        "input": {
            "image_size": network.image_size,
            "crop": network.crop,
            "crop_fraction": fraction,
            "resize": options.resize or network.serving_resize,
            "pixels": "RGB, 0 to 255; normalized inside",
            "normalization": settings["normalization"],
        },
        "source": {
            "name": network.name,
            "description": network.description.splitlines(),
            "weights_sha256": weights_digest(network.model.variables),
            "published_top1_percent": network.published.top1 if network.published else None,
        },
        "class_names": list(options.class_names or network.class_names or []) or None,
        "format": options.format,
        "end_point": options.end_point,
        "quantization": options.quantization,
        "tensorflow": tf.__version__,
    }


def _check_end_point(folded: InferenceNetwork, name: Optional[str]) -> None:
    if name is None or name in folded.end_point_names:
        return
    names = folded.end_point_names
    if names == ["head"]:
        raise UsageError(
            f"`--end_point` is {name!r}, but a Keras model has no end points by name; make a Model"
            " that ends there, and export that."
        )
    close = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {close[0]!r}?" if close else "see `Network.features`."
    last = max(int(other[6:]) for other in names if other[6:].isdigit())
    raise UsageError(
        f"`--end_point` is {name!r}, but must be one of the network's, from 'stem' and 'block_0' to"
        f" 'block_{last}', 'features', 'pooled_features' and 'head'; {hint}"
    )


def _in_float32(model: Network) -> Network:
    """Returns the main branch with float32 activations."""
    if isinstance(model, KerasNetwork):
        return model.for_inference()
    if model.activation_dtype == "float32" and not model.aux_branches:
        return model
    # The check compares with this network: bfloat16's own rounding would hide any mistake.
    settings = {**model.get_config(), "compute_dtype": "float32", "aux_branches": 0}
    plain = type(model).from_config(settings)
    plain.is_multilabel = model.is_multilabel
    values = {variable.name: variable for variable in model.variables}
    for variable in plain.variables:
        variable.assign(values[variable.name])
    return plain


def _write_file(
    model: Network, folded: InferenceNetwork, options: ExportOptions, examples: Examples, path: str
) -> None:
    if options.format == "tflite":
        contents = converters.to_tflite(
            folded, options.quantization, examples.images, options.end_point
        )
        with open(path, "wb") as file:
            file.write(contents)
    elif options.format == "onnx":
        converters.to_onnx(folded, path, options.onnx_python, options.end_point)
    else:
        # A converted model's own classes would need this package where the file is read.
        saved = model.plain_model() if isinstance(model, KerasNetwork) else model
        saved.save(path)
        saved.save_weights(os.path.join(os.path.dirname(path), _WEIGHTS_FILE))


class Version:
    """A version in the making: `staging` is a local folder to write into, `path` where
    its contents have gone; set in the end, since another export may have been faster.
    """

    def __init__(self, staging: str):
        self.staging, self.path = staging, ""


def next_version(export_dir: str) -> int:
    """Returns one more than the highest version in `export_dir`; 1 if there is none."""
    names = files.list_folder(export_dir) if tf.io.gfile.isdir(export_dir) else []
    return max((int(name) for name in names if re.fullmatch("[0-9]+", name)), default=0) + 1


@contextlib.contextmanager
def new_version(export_dir: str, num_bytes: int) -> Iterator[Version]:
    """Makes room for the next free version of some `num_bytes` in `export_dir`, local or
    remote, and moves it into place if the block ends without an exception.

    Raises a `RunError` if `export_dir` is a file or cannot be written, or there is no space.
    """
    is_remote = files.is_remote(export_dir)
    try:
        if tf.io.gfile.exists(export_dir) and not tf.io.gfile.isdir(export_dir):
            raise RunError(
                f"`export_dir` is {export_dir!r}, which is a file; give a directory, which may"
                " exist."
            )
        is_new = not tf.io.gfile.exists(export_dir)
        tf.io.gfile.makedirs(export_dir)
        staging = tempfile.mkdtemp(prefix=_STAGING_PREFIX, dir=None if is_remote else export_dir)
    except (OSError, tf.errors.OpError) as error:
        raise _cannot_write(export_dir, error) from error
    version = Version(staging)
    try:
        free = shutil.disk_usage(staging).free
        if free < num_bytes:
            raise RunError(
                f"`export_dir` is {export_dir!r}, where {free / 1e6:.0f} MB are free, but"
                f" {num_bytes / 1e6:.0f} MB are needed; make room or give another directory."
            )
        yield version
        os.chmod(staging, 0o755)  # mkdtemp lets only its owner in; the server may be another user
        version.path = _publish(staging, export_dir, is_remote)
    except (OSError, tf.errors.OpError) as error:
        raise _cannot_write(export_dir, error) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        if is_new and not is_remote and not version.path:
            with contextlib.suppress(OSError):
                os.rmdir(export_dir)  # only if empty


def _publish(staging: str, export_dir: str, is_remote: bool) -> str:
    while True:
        path = os.path.join(export_dir, str(next_version(export_dir)))
        if is_remote:
            _upload(staging, path)
            return path
        try:
            os.rename(staging, path)
            return path
        except OSError:
            if not os.path.exists(path):
                raise  # otherwise another export has just taken this number


def _upload(staging: str, path: str) -> None:
    """Copies a tree; `saved_model.pb`, by which a server knows a version, comes last."""

    def order(file):
        return file.endswith("saved_model.pb"), file

    for file in sorted(_files_below(staging), key=order):
        target = os.path.join(path, os.path.relpath(file, staging))
        tf.io.gfile.makedirs(os.path.dirname(target))
        tf.io.gfile.copy(file, target)


def _cannot_write(export_dir: str, error: BaseException) -> RunError:
    return RunError(
        f"`export_dir` is {export_dir!r}, where the export cannot be written:"
        f" {brief_message(error)}. Nothing was left behind."
    )


def _files_below(folder: str) -> list[str]:
    tree = os.walk(folder)
    return [os.path.join(inner, name) for inner, _, names in tree for name in names]
