"""Networks: EfficientNet with dual batch norms."""

from efficientnet_advprop.models.efficientnet import EfficientNet
from efficientnet_advprop.models.normalization import DualBatchNormalization

__all__ = ["DualBatchNormalization", "EfficientNet"]
