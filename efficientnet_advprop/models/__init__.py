"""Networks: EfficientNet and ResNet with dual batch norms, and the checkpoints that
they read and write.
"""

from efficientnet_advprop.config.tables import is_keras_variant
from efficientnet_advprop.models import resnet, scaling
from efficientnet_advprop.models.checkpoints.checkpoint_sources import CheckpointError
from efficientnet_advprop.models.checkpoints.keras_weights import KERAS_ARGUMENTS
from efficientnet_advprop.models.checkpoints.released_checkpoints import save_released_checkpoint
from efficientnet_advprop.models.checkpoints.weight_loading import load_weights
from efficientnet_advprop.models.converted.keras_network import KerasNetwork, make_keras_network
from efficientnet_advprop.models.efficientnet import EfficientNet
from efficientnet_advprop.models.network import Network
from efficientnet_advprop.models.normalization import DualBatchNormalization
from efficientnet_advprop.models.resnet import ResNet
from efficientnet_advprop.runtime.errors import require_choice

# One function reads every format; these are its names by format.
load_released_checkpoint = load_timm_weights = load_keras_weights = load_weights

__all__ = [
    "CheckpointError",
    "DualBatchNormalization",
    "EfficientNet",
    "KERAS_ARGUMENTS",
    "KerasNetwork",
    "Network",
    "ResNet",
    "load_keras_weights",
    "load_released_checkpoint",
    "load_timm_weights",
    "load_weights",
    "make_network",
    "save_released_checkpoint",
]

FAMILIES = {
    **dict.fromkeys(scaling.VARIANTS, EfficientNet),
    **dict.fromkeys(resnet.VARIANTS, ResNet),
}


def make_network(variant: str, **arguments) -> Network:
    """Returns the network of a variant.

    Args:
        variant: a key of `FAMILIES`, or the name of a function that returns a Keras
            model (`tables.KERAS_VARIANT`).
        **arguments: of its family's constructor, or of `make_keras_network`.

    Raises:
        ValueError: there is no such variant, or the family refuses an argument.
        UserError: see `make_keras_network`.
    """
    if is_keras_variant(variant):
        return make_keras_network(variant, **arguments)
    require_choice("variant", variant, FAMILIES)
    return FAMILIES[variant](variant, **arguments)
