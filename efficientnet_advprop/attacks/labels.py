"""Labels of images: the class of each, or the weights of all classes, by type and shape.

Values are checked where they are known, outside of a traced function. Inside, where nothing
can be raised on every device, losses and attacks make NaN of those that are no `is_class`.
"""

from typing import Optional

import numpy as np
import tensorflow as tf

from efficientnet_advprop.runtime.errors import AttackError

_SUM_TOLERANCE = 1e-2  # of weights that were rounded to bfloat16 or float16


def check_labels(
    labels, num_classes: Optional[int] = None, num_images: Optional[int] = None
) -> tf.Tensor:
    """Returns labels in one of two forms; None for a number is one that is not known.

    Args:
        labels: the class of each image, any integer type, [batch] or [batch, 1], in [0,
            `num_classes`); or class weights (one-hot, smoothed or mixed), [batch,
            `num_classes`], any numeric type or bool, none negative and each row's sum
            1.

    Returns:
        int32 [batch], where a number that int32 cannot hold has become −1; or float32
        [batch, classes].

    Raises:
        AttackError: another type or shape; or a known value that is no class or weight.
    """
    labels = tf.convert_to_tensor(labels)
    dtype, shape = labels.dtype, labels.shape
    if not (dtype.is_integer or dtype.is_floating or dtype.is_bool):
        raise _refusal(labels, num_classes, "they are no numbers")
    if shape.rank not in (1, 2):
        raise _refusal(labels, num_classes, "that is neither")
    if None not in (shape[0], num_images) and shape[0] != num_images:
        raise AttackError(
            f"`labels` have shape {shape}, but there are {num_images} images: each needs one label."
        )
    # Keras's own data sets (CIFAR-10) have a second dimension of 1: taken for class
    # weights, it would aim every attack at class 0.
    if shape.rank == 1 or (shape[1] == 1 and dtype.is_integer):
        if not dtype.is_integer:
            raise _refusal(labels, num_classes, "classes must be of an integer type; cast them")
        flat = tf.reshape(labels, [-1]) if shape.rank == 2 else labels
        return _checked_classes(flat, num_classes)
    if shape[1] is None and not dtype.is_floating:
        raise _refusal(labels, num_classes, "give the second dimension when tracing")
    if None not in (shape[1], num_classes) and shape[1] != num_classes:
        raise _refusal(labels, num_classes, "the second dimension is another")
    return _checked_weights(labels, num_classes)


def check_classes(
    labels, num_classes: Optional[int] = None, num_images: Optional[int] = None
) -> tf.Tensor:
    """Returns labels as `check_labels` does; refuses class weights."""
    checked = check_labels(labels, num_classes, num_images)
    if not are_classes(checked):
        raise AttackError(
            f"`labels` have shape {checked.shape} and are class weights, but here each image must "
            "have one class: integers [batch]. Of one-hot labels, that is `tf.argmax(labels, -1)`."
        )
    return checked


def are_classes(labels: tf.Tensor) -> bool:
    """Returns whether checked labels are classes; otherwise they are weights."""
    return labels.dtype.is_integer


def is_class(labels: tf.Tensor, num_classes: int) -> tf.Tensor:
    """Returns which of int32 labels are in [0, `num_classes`)."""
    return (labels >= 0) & (labels < num_classes)


def _refusal(labels, num_classes, reason) -> AttackError:
    classes = "classes" if num_classes is None else num_classes
    return AttackError(
        f"`labels` are {labels.dtype.name} of shape {labels.shape}, but must be classes, integers "
        f"[batch] or [batch, 1], or class weights [batch, {classes}]: {reason}."
    )


def _checked_classes(labels: tf.Tensor, num_classes: Optional[int]) -> tf.Tensor:
    values = tf.get_static_value(labels)
    if values is not None:
        limit = np.iinfo(np.int32).max if num_classes is None else num_classes
        wrong = values[(values < 0) | (values >= limit)]
        if len(wrong):
            allowed = f"in [0, {num_classes})" if num_classes is not None else "≥ 0"
            raise AttackError(
                f"`labels` hold {wrong[0]}{' and others' if len(wrong) > 1 else ''}, but classes "
                f"must be {allowed}. Do they count from 1, or is `num_classes` too small?"
            )
    if labels.dtype == tf.int32:
        return labels
    wide = tf.cast(labels, tf.int64)  # uint64 above its range becomes negative
    fits = (wide >= 0) & (wide <= np.iinfo(np.int32).max)
    return tf.cast(tf.where(fits, wide, -1), tf.int32)


def _checked_weights(labels: tf.Tensor, num_classes: Optional[int]) -> tf.Tensor:
    weights = tf.cast(labels, tf.float32)
    if num_classes is not None:
        weights = tf.ensure_shape(weights, [None, num_classes])
    values = tf.get_static_value(weights)
    if values is None or not values.size:
        return weights
    if not np.isfinite(values).all() or values.min() < 0.0:
        wrong = values[~np.isfinite(values) | (values < 0.0)][0]
        raise AttackError(f"`labels` hold {wrong:g}, but class weights must be finite and ≥ 0.")
    sums = values.sum(1)
    furthest = sums[np.abs(sums - 1.0).argmax()]
    if abs(furthest - 1.0) > _SUM_TOLERANCE:
        raise AttackError(
            f"`labels` have a row whose sum is {furthest:g}, but the class weights of an image must"
            " sum to 1."
        )
    return weights
