"""Networks: EfficientNet and ResNet with dual batch norms, and the checkpoints that
they read and write.
"""

from efficientnet_advprop.models.checkpoints.checkpoint_sources import CheckpointError
from efficientnet_advprop.models.checkpoints.keras_weights import KERAS_ARGUMENTS
from efficientnet_advprop.models.checkpoints.released_checkpoints import save_released_checkpoint
from efficientnet_advprop.models.checkpoints.weight_loading import load_weights
from efficientnet_advprop.models.converted.keras_network import KerasNetwork
from efficientnet_advprop.models.efficientnet import EfficientNet
from efficientnet_advprop.models.families import make_network
from efficientnet_advprop.models.network import Network
from efficientnet_advprop.models.normalization import DualBatchNormalization
from efficientnet_advprop.models.resnet import ResNet

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
