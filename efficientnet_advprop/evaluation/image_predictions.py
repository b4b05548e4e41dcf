"""What a model said of each image of a test set: kept so that two models can be
compared image by image.

Usage:

    predictions = ImagePredictions.read("runs/evaluation/b3-advprop/predictions/imagenet.npz")
    predictions.image_ids, predictions.is_top1                    # str [n], bool [n]
    predictions.score(), predictions.calibration()
"""

import dataclasses
import io
from typing import Sequence

import numpy as np
import tensorflow as tf

from efficientnet_advprop.evaluation.calibration import CalibrationBins
from efficientnet_advprop.evaluation.metrics import Score
from efficientnet_advprop.runtime.files import write_atomically

NO_CLASS = -1  # where the logits were not finite


@dataclasses.dataclass(frozen=True)
class ImagePredictions:
    """Of n images, in the order of the test set.

    Args:
        image_ids: str [n]: the path below the test set's folder, or file and number of
            a record.
        labels: int32 [n].
        classes: int32 [n, 5] (fewer, if there are fewer classes), the most probable
            first; labels of the full set, also where only some classes were kept.
            `NO_CLASS` where the logits were not finite.
        probabilities: float32 [n, 5], theirs.
        losses: float32 [n], cross-entropy in nats.

    Under attack: those of the adversarial image, of several the one whose true class
    ranks lowest; of an image that is wrong without any attack, its own if they are
    worse.
    """

    image_ids: np.ndarray
    labels: np.ndarray
    classes: np.ndarray
    probabilities: np.ndarray
    losses: np.ndarray

    @classmethod
    def joined(cls, parts: "Sequence[ImagePredictions]") -> "ImagePredictions":
        fields = [field.name for field in dataclasses.fields(cls)]
        return cls(
            **{name: np.concatenate([getattr(part, name) for part in parts]) for name in fields}
        )

    @property
    def is_top1(self) -> np.ndarray:
        """bool [n]: the most probable class is the label."""
        return self.classes[:, 0] == self.labels

    @property
    def is_top5(self) -> np.ndarray:
        """bool [n]: the label is among the five most probable classes."""
        return (self.classes == self.labels[:, None]).any(axis=1)

    def score(self) -> Score:
        num_top1, num_top5 = int(self.is_top1.sum()), int(self.is_top5.sum())
        return Score(len(self.labels), num_top1, num_top5, float(self.losses.sum(dtype=np.float64)))

    def calibration(self) -> CalibrationBins:
        """Of the confidence in the most probable class."""
        return CalibrationBins.count(self.probabilities[:, 0], self.is_top1)

    def updated(self, others: "ImagePredictions", rows: np.ndarray) -> "ImagePredictions":
        """With what `others` say of the images in `rows` in place of what is said here."""
        if (self.image_ids[rows] != others.image_ids).any():
            raise ValueError("`others` are of other images than those in `rows`.")
        values = {
            field.name: getattr(self, field.name).copy() for field in dataclasses.fields(self)
        }
        for name in ("classes", "probabilities", "losses"):
            values[name][rows] = getattr(others, name)
        return ImagePredictions(**values)

    def with_right_answers(self, answers: "Sequence[Sequence[int]]") -> "ImagePredictions":
        """With that one of several right answers as an image's label which ranks
        highest here.

        Args:
            answers: of each image, at least one.
        """
        labels = self.labels.copy()
        for row, own_answers in enumerate(answers):
            ranked = [label for label in self.classes[row] if label in own_answers]
            labels[row] = ranked[0] if ranked else own_answers[0]
        return dataclasses.replace(self, labels=labels)

    def write(self, path: str) -> None:
        """As a compressed .npz that is there whole or not at all."""
        buffer = io.BytesIO()
        np.savez_compressed(
            buffer, **{field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        )
        tf.io.gfile.makedirs(path.rsplit("/", 1)[0])
        write_atomically(path, buffer.getvalue())

    @classmethod
    def read(cls, path: str) -> "ImagePredictions":
        """What `write` wrote.

        Raises:
            ValueError: the file is missing or another one.
        """
        try:
            with tf.io.gfile.GFile(path, "rb") as file:
                arrays = np.load(io.BytesIO(file.read()), allow_pickle=False)
            return cls(**{field.name: arrays[field.name] for field in dataclasses.fields(cls)})
        except Exception as error:  # of the zip file, of NumPy, of the file system
            raise ValueError(f"{path!r} cannot be read as predictions: {error}") from error
