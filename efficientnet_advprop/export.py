r"""Exports a trained network to SavedModel (TensorFlow Serving), TFLite, ONNX or Keras.

    python -m efficientnet_advprop.export --checkpoint=b3-advprop --export_dir=served/b3 \
        --labels_map_file=labels_map.txt
    python -m efficientnet_advprop.export --model_dir=runs/b3 --export_dir=served/b3 \
        --format=tflite
    python -m efficientnet_advprop.export --checkpoint=b3-advprop --export_dir=served/b3 \
        --format=tflite --quantization=full_integer --calibration_dir=photos/
    python -m efficientnet_advprop.export --checkpoint=b3-advprop --export_dir=served/b3 \
        --format=onnx --onnx_python=…/python

The export has the averaged weights and only the main batch norms, folded into the
convolutions. Each call writes the next version, <export_dir>/1, /2, …. A new process
loads it and compares its outputs with those of the network; if they differ, nothing is
left. docs/serving.md describes the next steps.
"""

import sys

from absl import flags

from efficientnet_advprop.command_line import network_flags, program
from efficientnet_advprop.config.tables import EXPORT_FORMATS, QUANTIZATIONS, RESIZE_METHODS
from efficientnet_advprop.runtime.errors import UsageError

_NETWORK = network_flags.define()
_EXPORT_DIR = flags.DEFINE_string(
    "export_dir", None, "folder for the versions, local or gs://; made if it does not exist"
)
_FORMAT = flags.DEFINE_enum("format", "saved_model", EXPORT_FORMATS, "what to write")
_QUANTIZATION = flags.DEFINE_enum("quantization", "none", QUANTIZATIONS, "of --format=tflite")
_NUM_TOP = flags.DEFINE_integer(
    "num_top", 5, "how many classes serving_default answers with", lower_bound=1
)
_CALIBRATION_DIR = flags.DEFINE_string(
    "calibration_dir",
    None,
    "folder of images, of TFRecords, or with one sub-folder per class, for full-integer ranges "
    "and for the check; default of the check: two photographs",
)
_RESIZE = flags.DEFINE_enum(
    "resize",
    None,
    RESIZE_METHODS,
    "how encoded images are resized; default: as the network is officially served, Lite and "
    "EdgeTPU bilinear, all others bicubic",
)
_END_POINT = flags.DEFINE_string(
    "end_point",
    None,
    "exports a feature extractor: block_5, block_5/expansion_output, reduction_3, features, "
    "pooled_features, …",
)
_ONNX_PYTHON = flags.DEFINE_string(
    "onnx_python", sys.executable, "python of an environment with tf2onnx and onnxruntime"
)


def main(argv):
    del argv
    if not _EXPORT_DIR.value:
        raise UsageError("`--export_dir` is missing; give a folder for the versions.")
    # Here, so that --help and a missing flag do not wait for TensorFlow.
    from efficientnet_advprop.serving.exporting import ExportOptions, export

    options = ExportOptions(
        format=_FORMAT.value,
        quantization=_QUANTIZATION.value,
        num_top=_NUM_TOP.value,
        calibration_dir=_CALIBRATION_DIR.value,
        onnx_python=_ONNX_PYTHON.value,
        resize=_RESIZE.value,
        end_point=_END_POINT.value,
    )
    network = _NETWORK.restore()
    print(network.description, flush=True)
    path, num_bytes, agreement = export(network, _EXPORT_DIR.value, options)
    print(
        f"{path}: {num_bytes / 1e6:.1f} MB\n  checked in a fresh process: {agreement}", flush=True
    )


if __name__ == "__main__":
    program.run(main)
