"""The predictions for each image of a test set, kept so that two models can be compared
image by image.

    predictions = ImagePredictions.read("runs/evaluation/b3-advprop/predictions/imagenet.npz")
    predictions.image_ids, predictions.is_top1                    # str [n], bool [n]
    predictions.score(), predictions.calibration()
"""

import dataclasses
import io
import os
from typing import Sequence

import numpy as np
import tensorflow as tf

from efficientnet_advprop.evaluation.calibration import CalibrationBins
from efficientnet_advprop.evaluation.metrics import Score
from efficientnet_advprop.runtime.files import write_atomically

NO_CLASS = -1  # where the logits were undefined


@dataclasses.dataclass(frozen=True)
class ImagePredictions:
    """Predictions for n images, in the order of the test set.

    Args:
        image_ids: str [n]: the path below the test set's folder, or file and number of
            a record.
        labels: int32 [n].
        classes: int32 [n, 5] (fewer, if there are fewer classes), the most probable
            first; labels of the full set, also where only a subset of classes was kept.
            `NO_CLASS` where the logits were undefined.
        probabilities: float32 [n, 5], of `classes`.
        losses: float32 [n], cross-entropy in nats.

    Under attack these are the predictions for the adversarial image with the lowest
    rank of the true class; for an image that is wrong without attack, its own if they
    are worse.
    """

    image_ids: np.ndarray
    labels: np.ndarray
    classes: np.ndarray
    probabilities: np.ndarray
    losses: np.ndarray

    @property
    def is_top1(self) -> np.ndarray:
        """bool [n]: the most probable class is the label."""
        return self.classes[:, 0] == self.labels

    def score(self) -> Score:
        is_top5 = (self.classes == self.labels[:, None]).any(axis=1)
        total_loss = float(self.losses.sum(dtype=np.float64))
        return Score(len(self.labels), int(self.is_top1.sum()), int(is_top5.sum()), total_loss)

    def calibration(self) -> CalibrationBins:
        """Counts the confidences in the most probable class."""
        return CalibrationBins.count(self.probabilities[:, 0], self.is_top1)

    def updated(self, others: "ImagePredictions", rows: np.ndarray) -> "ImagePredictions":
        """Returns a copy whose rows `rows` are replaced by `others`."""
        if (self.image_ids[rows] != others.image_ids).any():
            raise ValueError("`others` are of other images than those in `rows`.")
        values = {name: value.copy() for name, value in vars(self).items()}
        for name in ("classes", "probabilities", "losses"):
            values[name][rows] = getattr(others, name)
        return ImagePredictions(**values)

    def with_label_variants(self, variants: Sequence[Sequence[int]]) -> "ImagePredictions":
        """Returns a copy in which each image's label is that of its classes that ranks
        highest here.

        Args:
            variants: the classes that count as right for each image, at least one.
        """
        labels = self.labels.copy()
        for row, own in enumerate(variants):
            labels[row] = next((label for label in self.classes[row] if label in own), own[0])
        return dataclasses.replace(self, labels=labels)

    def write(self, path: str) -> None:
        """Writes a compressed .npz, atomically."""
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **vars(self))
        tf.io.gfile.makedirs(os.path.dirname(path))
        write_atomically(path, buffer.getvalue())

    @classmethod
    def read(cls, path: str) -> "ImagePredictions":
        """Reads what `write` wrote.

        Raises:
            ValueError: the file is missing or another one.
        """
        try:
            with tf.io.gfile.GFile(path, "rb") as file:
                arrays = np.load(io.BytesIO(file.read()), allow_pickle=False)
            return cls(**{field.name: arrays[field.name] for field in dataclasses.fields(cls)})
        except Exception as error:  # of the zip file, of NumPy, of the file system
            raise ValueError(f"{path!r} cannot be read as predictions: {error}") from error
