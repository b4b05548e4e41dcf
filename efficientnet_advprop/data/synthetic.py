"""Images from nowhere, for timing the device alone: `--data_dir=synthetic`, as the
official programs' fake ImageNet.

    dataset = synthetic.make_train_dataset(224, 32, num_classes=1000)

One batch of noise is made, and given again and again: reading, decoding and cropping
cost nothing. An epoch is as long as ImageNet's.
"""

from typing import Optional

import tensorflow as tf

from efficientnet_advprop.data.records import Split

NAME = "synthetic"
NUM_EXAMPLES = {"train": 1_281_167, "validation": 50_000}
_SEED = (0, 0)


def open_split(split: str) -> Split:
    """Returns a split without files, as long as ImageNet's."""
    return Split((), [NUM_EXAMPLES[split]])


def make_train_dataset(
    image_size: int,
    replica_batch: int,
    num_classes: Optional[int],
    *,
    has_shares: bool = False,
    paired_views: bool = False,
) -> tf.data.Dataset:
    """Does as `pipeline.make_train_dataset`, of noise, without end; with `has_shares` the
    labels are those of mixed images.
    """
    images = tf.random.stateless_uniform(
        [replica_batch, image_size, image_size, 3], _SEED, 0, 256, tf.int32
    )
    batch = {"images": tf.cast(images, tf.uint8), "labels": _labels(replica_batch, num_classes)}
    if has_shares:
        batch["labels"] = tf.one_hot(batch["labels"], num_classes)
    if paired_views:
        batch["augmented_images"] = batch["images"]
    return tf.data.Dataset.from_tensors(batch).repeat()


def make_eval_dataset(
    image_size: int, replica_batch: int, num_batches: int, num_classes: Optional[int]
) -> tf.data.Dataset:
    """Does as `labeled_images.make_eval_dataset`, of noise: `num_batches` batches without
    padding.
    """
    images = tf.random.stateless_uniform(
        [replica_batch, image_size, image_size, 3], _SEED, 0.0, 255.0
    )
    batch = {
        "images": images,
        "labels": _labels(replica_batch, num_classes),
        "mask": tf.ones([replica_batch]),
    }
    return tf.data.Dataset.from_tensors(batch).repeat(num_batches)


def _labels(number: int, num_classes: Optional[int]) -> tf.Tensor:
    return tf.random.stateless_uniform([number], _SEED, 0, num_classes or 1, tf.int32)
