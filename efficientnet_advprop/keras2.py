"""Keras 2, whichever TensorFlow there is: everything of this package that is Keras comes from here.

    from efficientnet_advprop.keras2 import keras

TensorFlow 2.15 has it as `tf.keras`; from 2.16 on `tf.keras` is Keras 3 unless TF_USE_LEGACY_KERAS was
set in time, and Keras 2 goes on as the package tf-keras. Taken from there it is the right one even in
a process that has loaded Keras 3 before, and the two do not disturb each other.
"""

import tensorflow as tf

from efficientnet_advprop import stack

if stack.is_at_least(tf.__version__, stack.FIRST_WITH_KERAS_3):
    import tf_keras as keras
else:
    keras = tf.keras

__all__ = ["keras"]
