"""Small models of Keras 3 and their data."""

import keras
import numpy as np
from keras import layers

SIZE, CLASSES = 12, 4


def data(count: int = 16):
    random = np.random.default_rng(0)
    images = random.uniform(0.0, 255.0, (count, SIZE, SIZE, 3)).astype("float32")
    return images, random.integers(0, CLASSES, count)


def functional(**dense):
    """A norm before a smooth activation, and one that is shared by two paths."""
    inputs = layers.Input((SIZE, SIZE, 3))
    x = layers.Conv2D(4, 3, strides=2, use_bias=False)(inputs)
    x = layers.Activation("gelu")(layers.BatchNormalization(momentum=0.9)(x))
    shared = layers.BatchNormalization(momentum=0.9)
    x = layers.Add()([shared(x), shared(layers.Conv2D(4, 1)(x))])
    return keras.Model(inputs, layers.Dense(CLASSES, **dense)(layers.GlobalAveragePooling2D()(x)))


@keras.saving.register_keras_serializable("tests")
class Subclassed(keras.Model):
    """Layers without a `training` of their own; a part that is a model; a config of its own."""

    def __init__(self, width=4, **kwargs):
        super().__init__(**kwargs)
        self.width = width
        self.convolution = layers.Conv2D(width, 3, use_bias=False)
        self.norms = [layers.BatchNormalization(), layers.BatchNormalization()]
        self.part = keras.Sequential([layers.Conv2D(width, 3), layers.BatchNormalization()])
        self.head = layers.Dense(CLASSES)

    def call(self, inputs):
        x = self.convolution(inputs)
        for norm in self.norms:
            x = keras.ops.tanh(norm(x))
        return self.head(keras.ops.mean(self.part(x), axis=(1, 2)))

    def get_config(self):
        return {"width": self.width, "name": self.name}


def subclassed():
    model = Subclassed()
    model(np.zeros((1, SIZE, SIZE, 3), "float32"))
    return model


def cross_entropy(**options):
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True, **options)


def norms_of(model):
    """The batch norms in order, at whatever depth, without their branches."""
    found = model._flatten_layers(include_self=False, recursive=True)
    norms = [layer for layer in found if isinstance(layer, layers.BatchNormalization)]
    return [norm for norm in norms if not norm.name.startswith("aux")]


def values(variables):
    return [keras.ops.convert_to_numpy(variable) for variable in variables]
