"""A linear network, of which it is known by hand which images withstand any attack."""

import numpy as np
import tensorflow as tf

NUM_CLASSES = 5
SHAPE = (4, 4, 3)
WEIGHTS = np.random.RandomState(0).standard_normal([48, NUM_CLASSES]).astype(np.float32)


def linear(images):
    """Logits [batch, 5] of images [batch, 4, 4, 3]."""
    return tf.reshape(tf.cast(images, tf.float32), [-1, 48]) @ WEIGHTS / 255.0


def batch(size, seed=1):
    """Grey images, far from the ends of the pixel range, with the classes that they have."""
    images = np.random.RandomState(seed).randint(100, 156, [size, *SHAPE]).astype(np.uint8)
    return images, linear(images).numpy().argmax(-1).astype(np.int32)


def boundary_distances(images, labels, norm):
    """How far the nearest misclassified point is: the lead over another class divided by the
    dual length of its gradient; float64 [batch]."""
    logits = images.reshape(-1, 48).astype(np.float64) @ WEIGHTS / 255.0
    leads = logits[np.arange(len(labels)), labels][:, None] - logits
    gradients = (WEIGHTS[:, labels].T[:, :, None] - WEIGHTS[None]) / 255.0
    order = 1 if norm == "linf" else 2
    lengths = np.linalg.norm(gradients.astype(np.float64), order, axis=1)
    lengths[np.arange(len(labels)), labels] = np.inf
    distances = leads / lengths
    distances[np.arange(len(labels)), labels] = np.inf
    return distances.min(-1)
