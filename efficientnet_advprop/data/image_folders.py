"""A folder of images by class, as a test set: `<directory>/<class>/<image>`.

    folder = ImageFolder(directory, num_classes=1000)
    for batch in folder.make_eval_dataset(image_size=224, crop="released", global_batch_size=100): ...

The classes are the sub-folders in sorted order, which for ImageNet's (named by WordNet id) is the official order of the labels.
A folder with only some of ImageNet's ids (Imagenette, ImageNet-A, …) keeps the labels of the full set.
"""

import os
import re
from typing import Optional, Union

import tensorflow as tf

from efficientnet_advprop.data import preprocessing
from efficientnet_advprop.data.records import DataError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".gif", ".bmp")
_WORDNET_ID = re.compile(r"n\d{8}")


def imagenet_ids() -> list[str]:
    """The WordNet ids of ImageNet's 1000 classes, in the order of the labels."""
    import tensorflow_datasets as tfds  # takes a second, and only this function needs it

    path = tfds.core.tfds_path("image_classification/imagenet_resized_labels.txt")  # the same classes, in another order
    return sorted(path.read_text().split())


class ImageFolder:
    """The images below a folder with one sub-folder per class.

    Args:
        directory: local or gs://.
        num_classes: of the network.

    Attributes:
        paths, labels: of the images, by class and name.

    Raises:
        DataError: there are no such folders or images, or there is no telling which folder is which class.
    """

    def __init__(self, directory: str, num_classes: int):
        if not tf.io.gfile.isdir(directory):
            raise DataError(f"{directory!r} is no folder.")
        folders = sorted(name.rstrip("/") for name in tf.io.gfile.listdir(directory))
        folders = [name for name in folders if not name.startswith(".") and tf.io.gfile.isdir(os.path.join(directory, name))]
        if len(folders) == num_classes:
            classes = {name: label for label, name in enumerate(folders)}
        elif num_classes == 1000 and folders and all(map(_WORDNET_ID.fullmatch, folders)):
            classes = {name: label for label, name in enumerate(imagenet_ids())}
        else:
            raise DataError(
                f"{directory!r} holds {len(folders)} folders, but the network has {num_classes} classes; there must be one for "
                "each, or for some of ImageNet's, named by their WordNet ids."
            )
        unknown = [name for name in folders if name not in classes]
        if unknown:
            raise DataError(f"{directory!r} holds {', '.join(unknown)}, which are none of ImageNet's 1000 classes.")
        self.directory, self.paths, self.labels = directory, [], []
        for folder in folders:
            names = sorted(tf.io.gfile.listdir(os.path.join(directory, folder)))
            found = [os.path.join(directory, folder, name) for name in names if name.lower().endswith(IMAGE_SUFFIXES)]
            self.paths += found
            self.labels += [classes[folder]] * len(found)
        if not self.paths:
            raise DataError(f"the folders in {directory!r} hold no image ({', '.join(IMAGE_SUFFIXES)}).")

    def make_eval_dataset(
        self,
        *,
        image_size: int,
        crop: Union[str, float] = "released",
        global_batch_size: int,
        input_context: Optional[tf.distribute.InputContext] = None,
    ) -> tf.data.Dataset:
        """One pass over the images: every one once over all input pipelines, and from each of them the same number of batches.

        Returns:
            As `pipeline.make_eval_dataset`: {"images": float32 [replica_batch, size, size, 3], "labels": int32 [replica_batch],
            "mask": float32 [replica_batch]}, the mask 0 where the batch is filled up. Iterating raises
            `tf.errors.InvalidArgumentError` at a file that is no image; `find_unreadable` says which.
        """
        count, index, replicas = 1, 0, 1
        if input_context is not None:
            count, index = input_context.num_input_pipelines, input_context.input_pipeline_id
            replicas = input_context.num_replicas_in_sync
        replica_batch = global_batch_size // replicas
        num_batches = -(-len(self.paths) // (replica_batch * replicas)) * replicas // count
        padding = num_batches * replica_batch * count - len(self.paths)

        def prepare(path, label, mask):
            image = tf.cond(
                mask > 0.0,
                lambda: preprocessing.preprocess_for_eval(tf.io.read_file(path), image_size, crop),
                lambda: tf.zeros([image_size, image_size, 3]),
            )
            return {"images": tf.ensure_shape(image, [image_size, image_size, 3]), "labels": label, "mask": mask}

        rows = (
            tf.constant(self.paths + [""] * padding),
            tf.constant(self.labels + [0] * padding, tf.int32),
            tf.constant([1.0] * len(self.paths) + [0.0] * padding),
        )
        options = tf.data.Options()
        options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF  # done here
        dataset = tf.data.Dataset.from_tensor_slices(rows).shard(count, index).map(prepare, num_parallel_calls=tf.data.AUTOTUNE)
        return dataset.batch(replica_batch, drop_remainder=True).prefetch(tf.data.AUTOTUNE).with_options(options)

    def find_unreadable(self) -> list[str]:
        """The files that cannot be decoded; reads all of them."""
        unreadable = []
        for path in self.paths:
            try:
                preprocessing.decode(tf.io.read_file(path))
            except tf.errors.OpError:
                unreadable.append(path)
        return unreadable
