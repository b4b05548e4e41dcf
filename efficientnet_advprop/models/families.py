"""Which family a variant belongs to.

Usage:

    model = make_network("resnet50", num_classes=1000, aux_branches=1)   # a `ResNet`; "b0" an `EfficientNet`
"""

from efficientnet_advprop.models import resnet_scaling, scaling
from efficientnet_advprop.models.efficientnet import EfficientNet
from efficientnet_advprop.models.network import Network, check_choice
from efficientnet_advprop.models.resnet import ResNet

FAMILIES = {
    **dict.fromkeys(scaling.VARIANTS, EfficientNet),
    **dict.fromkeys(resnet_scaling.VARIANTS, ResNet),
}


def make_network(variant: str, **arguments) -> Network:
    """The network of a variant.

    Args:
        variant: a key of `FAMILIES`.
        **arguments: of its family's constructor.

    Raises:
        ValueError: there is no such variant, or the family refuses an argument.
    """
    check_choice("variant", variant, FAMILIES)
    return FAMILIES[variant](variant, **arguments)
