"""One export: fold, write, check in a fresh process, move into place.

Usage:

    print(export(network, export_dir="served/b3", options=ExportOptions()))
"""

import dataclasses
import difflib
import os
import sys
from typing import Any, Optional, Sequence, Union

import tensorflow as tf

from efficientnet_advprop.config.experiment import ConfigError
from efficientnet_advprop.data import preprocessing
from efficientnet_advprop.inference.trained_network import RestoredNetwork
from efficientnet_advprop.models import KerasNetwork
from efficientnet_advprop.models.network import Network
from efficientnet_advprop.models.variable_names import weights_digest
from efficientnet_advprop.serving import onnx_conversion, tflite, verification
from efficientnet_advprop.serving.export_directory import ExportError, new_version
from efficientnet_advprop.serving.keras_inference import InferenceKerasNetwork
from efficientnet_advprop.serving.network import InferenceNetwork
from efficientnet_advprop.serving.saved_model import METADATA, write_metadata, write_saved_model
from efficientnet_advprop.serving.signatures import ServedNetwork

_FILE_NAMES = {"tflite": "model.tflite", "onnx": "model.onnx", "keras": "model.keras"}
_WEIGHTS_FILE = "model.weights.h5"  # beside model.keras
_MAX_CALIBRATION_IMAGES = 500
InferenceFunction = Union[InferenceNetwork, InferenceKerasNetwork]
_MAX_PROTO_BYTES = 2**31 - 1  # a SavedModel's graph and an ONNX file are one protocol buffer each
# Rounding weights to 11 bits moves probabilities by more than float32's noise; beyond
# this, something is wrong.
_FLOAT16_TOLERANCE = 2e-2
_FEATURE_TOLERANCES = {"none": 1e-3, "float16": 2e-2}  # of a feature map's largest value


@dataclasses.dataclass(frozen=True)
class ExportOptions:
    """What is written, and what it is checked with."""

    format: str = "saved_model"  # one of `tables.EXPORT_FORMATS`
    quantization: str = "none"  # of TFLite: one of `tables.QUANTIZATIONS`
    class_names: Optional[Sequence[str]] = None  # None: the network's own, if it knows them
    num_top: int = 5  # classes that `serving_default` names
    calibration_dir: Optional[str] = (
        None  # images for full-integer ranges and for the check; None: two photographs
    )
    onnx_python: str = sys.executable  # interpreter with tf2onnx and onnxruntime
    resize: Optional[str] = None  # of encoded images; None: as the network is officially served
    end_point: Optional[str] = None  # makes a feature extractor: a name of `Network.features`


@dataclasses.dataclass(frozen=True)
class Export:
    """What was written."""

    path: str  # of the new version
    num_bytes: int
    agreement: Union[verification.Agreement, verification.FeatureAgreement]

    def __str__(self):
        return (
            f"{self.path}: {self.num_bytes / 1e6:.1f} MB\n  checked in a fresh process:"
            f" {self.agreement}"
        )


def export(network: RestoredNetwork, export_dir: str, options: ExportOptions) -> Export:
    """Writes the next version of a network into `export_dir`.

    Args:
        network: without auxiliary branches.
        export_dir: local or remote; `<export_dir>/<next version>/` is made.
        options: see there.

    Raises:
        ConfigError: options that do not go together.
        ExportError: it cannot be written or converted, or did not pass its check. No
            version is left behind.
        DataError, PredictionError: the calibration images are not there.
    """
    _check_options(options)
    resize_method = options.resize or network.serving_resize
    model = _in_float32(network.model)
    if isinstance(model, KerasNetwork):
        if options.end_point is not None:
            raise ConfigError(
                f"`--end_point` is {options.end_point!r}, but a Keras model has no end points by "
                "name; make a Model that ends there, and export that."
            )
        folded = InferenceKerasNetwork(model, network.image_size)
    else:
        folded = InferenceNetwork(model, network.image_size)
    if options.end_point is not None:
        _check_end_point(folded, options.end_point)
    num_bytes = 4 * folded.num_weights
    if num_bytes >= _MAX_PROTO_BYTES and options.format in ("saved_model", "onnx"):
        raise ExportError(
            f"the network has {num_bytes / 1e9:.1f} GB of weights, more than this format's 2 GB;"
            " use --format=keras."
        )
    if options.format == "onnx":
        onnx_conversion.check_environment(options.onnx_python)  # at once, not after a minute's work
    if options.calibration_dir:
        examples = verification.read_examples(
            options.calibration_dir,
            network.image_size,
            network.crop,
            model.num_classes,
            _MAX_CALIBRATION_IMAGES,
            network.class_names,
            resize_method,
        )
    else:
        examples = verification.default_examples(network.image_size, network.crop, resize_method)
    class_names = options.class_names or network.class_names
    metadata = describe(network, folded, options)
    with new_version(
        export_dir, int(2.2 * num_bytes) if options.format == "keras" else int(1.1 * num_bytes)
    ) as version:
        if options.format == "saved_model":
            served = ServedNetwork(
                folded,
                network.crop,
                class_names,
                options.num_top,
                resize_method,
                options.end_point,
            )
            write_saved_model(served, version.staging, metadata, min(examples.files, key=len))
            checked, metadata_path = (
                version.staging,
                os.path.join(version.staging, "assets", METADATA),
            )
        else:
            checked = os.path.join(version.staging, _FILE_NAMES[options.format])
            metadata_path = os.path.join(version.staging, METADATA)
            _write_file(model, folded, options, examples, checked)
        agreement = _verify(model, options, checked, examples)
        metadata["self_check"] = dataclasses.asdict(agreement)
        write_metadata(metadata_path, metadata)
        written = [
            os.path.join(folder, name)
            for folder, _, names in os.walk(version.staging)
            for name in names
        ]
        num_bytes = sum(map(os.path.getsize, written))
    return Export(version.path, num_bytes, agreement)


def describe(
    network: RestoredNetwork, folded: InferenceFunction, options: ExportOptions
) -> dict[str, Any]:
    """What a user of the export may want to know about it, as JSON types."""
    settings = network.model.get_config()
    is_keras = isinstance(network.model, KerasNetwork)  # its activations are its layers'
    kept = (
        "variant",
        "num_classes",
        "width_coefficient",
        "depth_coefficient",
        "batch_norm_epsilon",
        "activation_alpha",
    )
    fraction = (
        None
        if network.crop == "none"
        else preprocessing.crop_fraction(network.image_size, network.crop)
    )
    return {
        "model": {
            **{name: settings[name] for name in kept if name in settings},
            **({} if is_keras else {"activation": network.model.activation.name}),
            "num_weights": folded.num_weights,
        },
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


def _check_options(options: ExportOptions) -> None:
    if options.quantization != "none" and options.format != "tflite":
        raise ConfigError(
            f"`--quantization` is {options.quantization!r}, which goes with --format=tflite only."
        )
    if options.end_point is not None and options.format == "keras":
        raise ConfigError(
            f"`--end_point` is {options.end_point!r}, but a Keras file is the model, which has"
            " every end point by `model.features(images)`; leave the flag out, or choose another"
            " --format."
        )
    if options.quantization == "full_integer" and not options.calibration_dir:
        raise ConfigError(
            "`--quantization` is 'full_integer', whose ranges are measured: give some hundred"
            " images by --calibration_dir."
        )


def _check_end_point(folded: InferenceNetwork, name: str) -> None:
    if name not in folded.end_point_names:
        close = difflib.get_close_matches(name, folded.end_point_names, n=1)
        hint = f"did you mean {close[0]!r}?" if close else "see `Network.features`."
        last = max(int(other[6:]) for other in folded.end_point_names if other[6:].isdigit())
        raise ConfigError(
            f"`--end_point` is {name!r}, but must be one of the network's, from 'stem' and"
            f" 'block_0' to 'block_{last}', 'features', 'pooled_features' and 'head'; {hint}"
        )


def _in_float32(model: Network) -> Network:
    if isinstance(model, KerasNetwork):
        return model.for_inference()
    if model.activation_dtype == "float32" and not model.aux_branches:
        return model
    plain = type(model).from_config(
        {**model.get_config(), "compute_dtype": "float32", "aux_branches": 0}
    )
    plain.is_multilabel = model.is_multilabel
    values = {variable.name: variable for variable in model.variables}
    for variable in plain.variables:
        variable.assign(values[variable.name])
    return plain


def _write_file(
    model,
    folded: InferenceFunction,
    options: ExportOptions,
    examples: verification.Examples,
    path: str,
) -> None:
    if options.format == "tflite":
        contents = tflite.convert(folded, options.quantization, examples.images, options.end_point)
        with open(path, "wb") as file:
            file.write(contents)
    elif options.format == "onnx":
        onnx_conversion.convert(folded, path, options.onnx_python, options.end_point)
    else:
        saved = model.plain_model() if isinstance(model, KerasNetwork) else model
        saved.save(path)
        saved.save_weights(os.path.join(os.path.dirname(path), _WEIGHTS_FILE))


def _verify(
    model, options: ExportOptions, path: str, examples: verification.Examples
) -> Union[verification.Agreement, verification.FeatureAgreement]:
    tolerance = verification.FLOAT32_TOLERANCE
    if options.quantization != "none":
        tolerance = _FLOAT16_TOLERANCE if options.quantization == "float16" else None
    python = options.onnx_python if options.format == "onnx" else sys.executable
    if options.end_point is not None:
        relative = None if tolerance is None else _FEATURE_TOLERANCES[options.quantization]
        return verification.verify_features(
            model, options.end_point, options.format, path, examples, relative, python
        )
    return verification.verify(model, options.format, path, examples, tolerance, python)
