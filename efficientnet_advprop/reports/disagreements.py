"""Finds the images that only one of two models classifies correctly, to look at them.

They are found in the predictions that an evaluation keeps; the images themselves are
needed only for the thumbnails.
"""

import dataclasses
from typing import Callable, Optional

import numpy as np

from efficientnet_advprop.images.labeled_images import LabeledImages
from efficientnet_advprop.reports import charts
from efficientnet_advprop.reports.comparison import Measured, order_like
from efficientnet_advprop.runtime.errors import UserError

# Test set → its images; None if they are not available.
OpenImages = Callable[[str], Optional[LabeledImages]]


@dataclasses.dataclass(frozen=True)
class Disagreement:
    """One image that only one of two models classifies correctly."""

    image_id: str  # in the predictions
    label: int
    answers: dict[str, tuple[int, float]]  # model → (predicted class, its probability)
    right: str  # the name of the model that is right
    thumbnail: Optional[str] = None  # a `data:` URI; None: the image is not available


def find_disagreements(
    first: Measured, second: Measured, test_set: str, open_images: OpenImages, num_each: int = 12
) -> list[Disagreement]:
    """Returns the images that only the first model gets right, then those of the second.

    In each group, which has at most `num_each` images, the errors with the highest
    confidence come first. There are none if predictions were not kept, or are of
    different images.
    """
    predictions = [measured.predictions(test_set) for measured in (first, second)]
    order = None if None in predictions else order_like(*predictions)
    if order is None:
        return []
    classes = [predictions[0].classes[:, 0], predictions[1].classes[order, 0]]
    probabilities = [predictions[0].probabilities[:, 0], predictions[1].probabilities[order, 0]]
    is_right = [answers == predictions[0].labels for answers in classes]
    disagreements = []
    for right, wrong, model in ((0, 1, first), (1, 0, second)):
        only = np.flatnonzero(is_right[right] & ~is_right[wrong])
        for index in only[np.argsort(-probabilities[wrong][only], kind="stable")][:num_each]:
            answers = {
                measured.name: (int(classes[i][index]), float(probabilities[i][index]))
                for i, measured in enumerate((first, second))
            }
            image_id = str(predictions[0].image_ids[index])
            label = int(predictions[0].labels[index])
            disagreements.append(Disagreement(image_id, label, answers, model.name))
    return _with_thumbnails(disagreements, open_images(test_set))


def _with_thumbnails(
    disagreements: list[Disagreement], images: Optional[LabeledImages]
) -> list[Disagreement]:
    if images is None:
        return disagreements
    positions = {images.image_id(position): position for position in range(images.num_images)}

    def thumbnail(image_id):
        try:
            return charts.thumbnail_uri(images.encoded(positions[image_id]))
        except (KeyError, UserError, OSError):
            return None

    return [dataclasses.replace(one, thumbnail=thumbnail(one.image_id)) for one in disagreements]
