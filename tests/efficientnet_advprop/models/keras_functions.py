"""Functions that return Keras models, good ones and bad ones, for
`--config.model.variant=keras:…`.
"""

import tensorflow as tf

from efficientnet_advprop.keras import add_auxiliary_batch_norms
from efficientnet_advprop.keras2 import keras

layers = keras.layers


def _layers(num_classes, activation=None, regularizer=None):
    return [
        layers.Normalization(),  # not adapted, so it changes nothing; it counts in whole numbers
        layers.Conv2D(8, 3, 2, use_bias=False),
        layers.BatchNormalization(momentum=0.9, name="first"),
        layers.ReLU(),
        layers.SeparableConv2D(16, 3, 2),
        layers.BatchNormalization(momentum=0.9),
        layers.ReLU(),
        layers.GlobalAveragePooling2D(),
        layers.Dense(num_classes, activation, kernel_regularizer=regularizer),
    ]


def small(num_classes=4, image_size=32):
    return keras.Sequential([layers.Input([image_size, image_size, 3]), *_layers(num_classes)])


def any_size(num_classes):
    return keras.Sequential([layers.Input([None, None, 3]), *_layers(num_classes)])


def synchronized(num_classes):
    parts = _layers(num_classes)
    for index in (2, 5):
        parts[index] = layers.BatchNormalization(momentum=0.9, synchronized=True)
    return keras.Sequential([layers.Input([32, 32, 3]), *parts])


class Subclassed(keras.Model):
    """Not built when it is made, and without a call of its own that says its shapes."""

    def __init__(self, num_classes):
        super().__init__()
        self.parts = _layers(num_classes)[1:]

    def call(self, inputs, training=None):
        for part in self.parts:
            if isinstance(part, layers.BatchNormalization):
                inputs = part(inputs, training=training)
            else:
                inputs = part(inputs)
        return inputs


def subclassed(num_classes):
    return Subclassed(num_classes)


class BrightOrDark(layers.Layer):
    """Asks a tensor in plain Python, which AutoGraph rewrites."""

    def call(self, images):
        if tf.reduce_mean(images) > 127.0:
            return 255.0 - images
        return images


def asks_a_tensor(num_classes):
    parts = [layers.Input([32, 32, 3]), BrightOrDark(), *_layers(num_classes)]
    return keras.Sequential(parts)


def recomputing(num_classes, image_size):
    """Calls its middle again in the backward pass."""

    class Middle(layers.Layer):
        def __init__(self):
            super().__init__(name="middle")
            self.convolution, self.norm = layers.Conv2D(8, 3), layers.BatchNormalization()

        def build(self, shape):
            self.convolution.build(shape)
            self.norm.build([None, None, None, 8])
            super().build(shape)

        def call(self, inputs, training=None):
            @tf.recompute_grad
            def run(x):
                return tf.nn.swish(self.norm(self.convolution(x), training=training))

            return run(inputs)

    return keras.Sequential(
        [
            layers.Input([image_size, image_size, 3]),
            layers.Rescaling(1 / 255),
            Middle(),
            layers.GlobalAveragePooling2D(),
            layers.Dense(num_classes),
        ]
    )


def no_model():
    return 3


def probabilities(num_classes):
    return keras.Sequential([layers.Input([32, 32, 3]), *_layers(num_classes, "softmax")])


def decayed(num_classes):
    own = _layers(num_classes, regularizer=keras.regularizers.L2(0.1))
    return keras.Sequential([layers.Input([32, 32, 3]), *own])


def of_64_pixels():
    return small(4, 64)


def of_seven_classes():
    return small(7)


def of_flat_vectors(num_classes):
    return keras.Sequential([layers.BatchNormalization(), layers.Dense(num_classes)])


def without_norms(num_classes):
    return keras.Sequential(
        [layers.Input([32, 32, 3]), layers.Flatten(), layers.Dense(num_classes)]
    )


def needs_more(num_classes, width):
    raise AssertionError("is never called")


def fails():
    raise RuntimeError("of its own")


ONE = []


def the_same_again(num_classes):
    if not ONE:
        ONE.append(small(num_classes))
    return ONE[0]


def converted(num_classes):
    return add_auxiliary_batch_norms(small(num_classes))


def twice_the_same_name(num_classes):
    model = keras.Sequential(
        [layers.Conv2D(4, 3, name="part"), layers.BatchNormalization(), layers.Flatten()]
    )

    class Two(keras.Model):
        def __init__(self):
            super().__init__()
            self.one = model
            self.classifier = layers.Dense(num_classes, name="part")
            self.other = layers.Dense(num_classes, name="part")

        def call(self, inputs, training=None):
            x = self.one(inputs, training=training)
            return self.classifier(x) + self.other(x)

    return Two()


of_keras_3 = None  # no function
