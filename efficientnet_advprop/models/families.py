"""Which family a variant belongs to.

# a `ResNet`; "b0" an `EfficientNet`
model = make_network("resnet50", num_classes=1000, aux_branches=1)
model = make_network("keras:my_models:small", num_classes=10, image_size=32, aux_branches=1)
"""

from efficientnet_advprop.config.tables import is_keras_variant
from efficientnet_advprop.models import resnet_scaling, scaling
from efficientnet_advprop.models.converted.keras_network import make_keras_network
from efficientnet_advprop.models.efficientnet import EfficientNet
from efficientnet_advprop.models.network import Network
from efficientnet_advprop.models.resnet import ResNet
from efficientnet_advprop.runtime.errors import require_choice

FAMILIES = {
    **dict.fromkeys(scaling.VARIANTS, EfficientNet),
    **dict.fromkeys(resnet_scaling.VARIANTS, ResNet),
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
