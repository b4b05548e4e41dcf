"""AdvProp for models of Keras 3, on TensorFlow, JAX and PyTorch.

    dual = add_auxiliary_batch_norms(model)  # weights and outputs stay as they are
    trainer = AdvPropModel(dual, PGD(epsilon=1.0, num_classes=10))
    trainer.compile(optimizer, loss, metrics=["accuracy"])
    trainer.fit(dataset, validation_data=validation)
    plain = remove_auxiliary_batch_norms(dual)

The same nouns as `efficientnet_advprop.keras`, which is for Keras 2. Nothing here needs
TensorFlow.
"""

from efficientnet_advprop.keras3 import keras_internals  # first: checks for Keras 3
from efficientnet_advprop.keras3.auxiliary_norms import BranchModelOfKeras3 as BranchModel
from efficientnet_advprop.keras3.auxiliary_norms import (
    add_auxiliary_batch_norms,
    remove_auxiliary_batch_norms,
)
from efficientnet_advprop.keras3.image_attack import PGDOfKeras3 as PGD
from efficientnet_advprop.keras3.trainer import AdvPropModelOfKeras3 as AdvPropModel
from efficientnet_advprop.runtime.errors import ModelError
from efficientnet_advprop.runtime.pass_mode import use_branch

del keras_internals

__all__ = [
    "AdvPropModel",
    "BranchModel",
    "ModelError",
    "PGD",
    "add_auxiliary_batch_norms",
    "remove_auxiliary_batch_norms",
    "use_branch",
]
