"""Small models of every kind that Keras knows, for the tests of conversion and
training.
"""

import numpy as np
import tensorflow as tf

from efficientnet_advprop.keras2 import keras
from efficientnet_advprop.models.converted.conversion import find_batch_norms

layers = keras.layers
IMAGES = np.random.default_rng(0).uniform(0, 255, (4, 8, 8, 3)).astype("float32")


@keras.utils.register_keras_serializable("tests")
class Block(layers.Layer):
    """A layer of one's own whose call is a `tf.function`."""

    def __init__(self, filters, **kwargs):
        super().__init__(**kwargs)
        self.filters = filters
        self.convolution = layers.Conv2D(filters, 3, padding="same")
        self.norm = layers.BatchNormalization()

    @tf.function
    def call(self, inputs, training=None):
        return tf.nn.relu(self.norm(self.convolution(inputs), training=training))

    def get_config(self):
        return {**super().get_config(), "filters": self.filters}


@keras.utils.register_keras_serializable("tests")
class Subclassed(keras.Model):
    """Nested models, lists of layers, batch norms of both kinds and axes, one made by
    `build`.
    """

    def __init__(self, classes=3, **kwargs):
        super().__init__(**kwargs)
        self.classes = classes
        self.inner = keras.Sequential(
            [Block(4), layers.experimental.SyncBatchNormalization(), layers.MaxPool2D()]
        )
        self.blocks = [Block(5), Block(6)]
        self.rows_norm = layers.BatchNormalization(axis=1)
        self.head = layers.Dense(classes)

    def build(self, input_shape):
        self.late_norm = layers.BatchNormalization(scale=False)
        super().build(input_shape)

    def call(self, inputs, training=None):
        x = self.inner(inputs, training=training)
        for block in self.blocks:
            x = block(x, training=training)
        x = self.late_norm(self.rows_norm(x, training=training), training=training)
        return self.head(tf.reduce_mean(x, [1, 2]))

    def get_config(self):
        return {**super().get_config(), "classes": self.classes}


def sequential():
    return keras.Sequential(
        [
            layers.Input((8, 8, 3)),
            layers.Conv2D(4, 3, use_bias=False),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.LayerNormalization(),
            layers.GlobalAveragePooling2D(),
            layers.Dense(3),
        ]
    )


def functional():
    """Two outputs, a second input that is no image, a shared block, a nested model."""
    images, context = layers.Input((8, 8, 3), name="images"), layers.Input((2,), name="context")
    shared = keras.Sequential([layers.Conv2D(4, 3, padding="same"), layers.BatchNormalization()])
    x = layers.add([shared(images), shared(layers.AveragePooling2D(1)(images))])
    x = layers.BatchNormalization(synchronized=True)(layers.Conv2D(3, 1)(x))
    pooled = layers.Concatenate()([layers.GlobalAveragePooling2D()(x), context])
    classes, value = layers.Dense(3, name="classes")(pooled), layers.Dense(1, name="value")(pooled)
    return keras.Model({"images": images, "context": context}, {"classes": classes, "value": value})


def subclassed():
    model = Subclassed()
    model(IMAGES)
    return model


def inputs_of(model):
    if isinstance(getattr(model, "input", None), dict):
        return {"images": IMAGES, "context": np.ones((4, 2), "float32")}
    return IMAGES


def outputs_of(model):
    return [np.array(output) for output in tf.nest.flatten(model(inputs_of(model)))]


def separate(model, seed=1):
    """Gives every branch parameters and statistics of its own."""
    random = np.random.default_rng(seed)
    for norm in find_batch_norms(model).branched:
        for layer in (norm, *norm.aux):
            for variable in (layer.gamma, layer.beta, layer.moving_mean, layer.moving_variance):
                if variable is not None:
                    variable.assign(random.uniform(0.5, 1.5, variable.shape))
