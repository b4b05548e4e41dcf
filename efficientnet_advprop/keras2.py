"""Provides Keras 2 for every supported TensorFlow; all Keras 2 code of this package uses it.

    from efficientnet_advprop.keras2 import keras

In TensorFlow 2.15, Keras is Keras 2. With later ones Keras 2 is the package tf-keras,
which works beside Keras 3 in one process. Which of them `tf.keras` is belongs to the
program: nothing here asks for it or changes it.
"""

from efficientnet_advprop.runtime import stack

stack.check_installed()  # before TensorFlow's import ends in a traceback from deep inside

import tensorflow as tf  # noqa: E402

if stack.is_at_least(tf.__version__, stack.FIRST_WITH_KERAS_3):
    import tf_keras as keras
else:
    import keras  # `tf.keras` fails where TF_USE_LEGACY_KERAS asks for tf-keras

__all__ = ["keras"]
