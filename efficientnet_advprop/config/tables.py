"""The choices of config fields and flags, once.

The modules that act upon them import TensorFlow; --help and the check of a config do
not, so the names stand here, and both sides read them.
"""

import re

VARIANTS = (
    *("b0", "b1", "b2", "b3", "b4", "b5", "b6", "b7", "b8", "l1", "l2"),
    *("lite0", "lite1", "lite2", "lite3", "lite4"),
    *("edgetpu-S", "edgetpu-M", "edgetpu-L"),
    *("condconv-b0-4e", "condconv-b0-8e", "condconv-b0-8e-depth"),
    *("v2-b0", "v2-b1", "v2-b2", "v2-b3", "v2-s", "v2-m", "v2-l", "v2-xl"),
    *("resnet50", "resnet101", "resnet152", "resnet200"),
)
# Or a function that returns a Keras model, which `models.converted` imports.
KERAS_VARIANT = "keras:PACKAGE.MODULE:FUNCTION"
_NAME = r"[^\W\d]\w*"
_KERAS_VARIANT = re.compile(rf"keras:({_NAME}(?:\.{_NAME})*):({_NAME})")
NORMALIZATIONS = ("advprop", "imagenet", "lite", "v2", "caffe", "none", "unit")
COMPUTE_DTYPES = ("float32", "bfloat16", "float16")
ACTIVATIONS = (
    *("relu", "relu6", "elu", "swish", "silu", "gelu"),
    *("softplus", "parametric_softplus", "smooth_relu"),
)
ACTIVATIONS_WITH_ALPHA = ("softplus", "parametric_softplus", "smooth_relu")
SMOOTH_RELU_GRADIENTS = ("none", "attack", "training", "both")  # the passes that have it
DENOISERS = (
    *("none", "non_local_softmax", "non_local_gaussian", "non_local_dot"),
    *("bilateral_softmax", "bilateral_gaussian", "bilateral_dot", "mean", "median"),
)
AUX_SHARES = ("none", "statistics", "moments", "affine")
ATTACKS = ("pgd", "noise")
NORMS = ("linf", "l2")  # of attacks, the keys of `norms.NORMS`
AUTOATTACK_VERSIONS = {  # of the reference implementation: attack by attack
    "standard": ("apgd_ce", "apgd_t", "fab_t", "square"),
    "plus": ("apgd_ce", "apgd_dlr", "fab", "square", "apgd_t", "fab_t"),
    "rand": ("apgd_ce", "apgd_dlr"),
}
STATISTICS = ("running", "batch")  # of the batch norms that an attack goes through

BUILTIN = ("digits", "fashion_mnist")  # written into `data_dir` on first use
SOURCES = ("tfrecord", *BUILTIN)  # or "tfds:" and a name
CROPS = ("inception", "v2", "pad", "none")
AUGMENTATIONS = ("none", "autoaugment", "randaugment")
AUGMENTATION_OPS = ("official", "meant")

OPTIMIZERS = ("rmsprop", "momentum", "sgd", "lars")
SCHEDULES = ("exponential", "cosine", "constant", "piecewise", "poly")

# Kinds of released checkpoints, the keys of `published_checkpoints.KINDS`.
CHECKPOINT_KINDS = (
    *("advprop", "noisystudent", "randaugment", "autoaugment", "baseline"),
    *("lite", "edgetpu", "condconv", "sat"),
    *("v2", "v2-b", "v2-21k", "v2-21k-ft1k"),
)
EXPORT_FORMATS = ("saved_model", "tflite", "onnx", "keras")
QUANTIZATIONS = ("none", "float16", "dynamic_range", "full_integer")  # of TFLite
RESIZE_METHODS = ("bicubic", "bilinear")


def is_keras_variant(variant: str) -> bool:
    """Returns whether `variant` has the form `KERAS_VARIANT`."""
    return _KERAS_VARIANT.fullmatch(variant) is not None


def split_keras_variant(variant: str) -> tuple[str, str]:
    """Returns the module and the function; raises a ValueError for another form."""
    match = _KERAS_VARIANT.fullmatch(variant)
    if match is None:
        raise ValueError(f"`variant` is {variant!r}, but must have the form {KERAS_VARIANT}.")
    return match[1], match[2]


BACKGROUND = "background"  # the name of class 0 where there is one
_WITH_BACKGROUND = 1001  # classes of all checkpoints of EfficientNet-EdgeTPU


def background_offset(num_classes: int) -> int:
    """Returns class index − label: 1 if class 0 is the background, to which no image belongs."""
    return int(num_classes == _WITH_BACKGROUND)
