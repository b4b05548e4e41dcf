"""AdvProp for any Keras model: auxiliary batch norms in other people's layers, trained
by `fit`.
"""

from efficientnet_advprop.keras.advprop_model import AdvPropModelOfKeras2 as AdvPropModel
from efficientnet_advprop.models.converted.conversion import BranchModelOfKeras2 as BranchModel
from efficientnet_advprop.models.converted.conversion import (
    add_auxiliary_batch_norms,
    remove_auxiliary_batch_norms,
)
from efficientnet_advprop.runtime.errors import ModelError
from efficientnet_advprop.runtime.pass_mode import use_branch

# What the two kinds of `ModelError` that there were are still called by.
TrainingError = UnsupportedModelError = ModelError

__all__ = [
    "AdvPropModel",
    "BranchModel",
    "ModelError",
    "TrainingError",
    "UnsupportedModelError",
    "add_auxiliary_batch_norms",
    "remove_auxiliary_batch_norms",
    "use_branch",
]
