"""Provides Keras 2 for every supported TensorFlow; all Keras code of this package uses
it.

Usage:

    from efficientnet_advprop.keras2 import keras

In TensorFlow 2.15, `tf.keras` is Keras 2. From 2.16 on, `tf.keras` is Keras 3, unless
TF_USE_LEGACY_KERAS was set in time; Keras 2 is then the package tf-keras. Importing it
directly also works in a process that has loaded Keras 3 before, and the two can be used
side by side.
"""

import tensorflow as tf

from efficientnet_advprop.runtime import stack

if stack.is_at_least(tf.__version__, stack.FIRST_WITH_KERAS_3):
    import tf_keras as keras
else:
    keras = tf.keras

__all__ = ["keras"]
