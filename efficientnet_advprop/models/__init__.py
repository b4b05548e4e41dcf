"""Networks: EfficientNet with dual batch norms, and the checkpoints that they read and write."""

from efficientnet_advprop.models.checkpoint_sources import CheckpointError
from efficientnet_advprop.models.efficientnet import EfficientNet
from efficientnet_advprop.models.normalization import DualBatchNormalization
from efficientnet_advprop.models.released_checkpoints import load_released_checkpoint, save_released_checkpoint
from efficientnet_advprop.models.timm_weights import load_timm_weights

__all__ = [
    "CheckpointError",
    "DualBatchNormalization",
    "EfficientNet",
    "load_released_checkpoint",
    "load_timm_weights",
    "save_released_checkpoint",
]
