"""AdvProp for any Keras model: auxiliary batch norms in other people's layers, trained
by `fit`.
"""

from efficientnet_advprop.keras.advprop_model import AdvPropModel
from efficientnet_advprop.keras.model_passes import TrainingError
from efficientnet_advprop.models.converted.conversion import UnsupportedModelError
from efficientnet_advprop.models.converted.dual_model import (
    BranchModel,
    add_auxiliary_batch_norms,
    remove_auxiliary_batch_norms,
)
from efficientnet_advprop.runtime.pass_mode import use_branch

__all__ = [
    "AdvPropModel",
    "BranchModel",
    "TrainingError",
    "UnsupportedModelError",
    "add_auxiliary_batch_norms",
    "remove_auxiliary_batch_norms",
    "use_branch",
]
