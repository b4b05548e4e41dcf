"""Images that one of two models gets right and the other wrong: the ones worth looking at.

    for disagreement in find_disagreements(first, second, "imagenet", open_images):
        disagreement.image_id, disagreement.label, disagreement.answers, disagreement.thumbnail

They are found among the predictions that an evaluation keeps; the data are needed for the thumbnails alone.
"""

import dataclasses
from typing import Callable, Optional

import numpy as np

from efficientnet_advprop.data.labeled_images import LabeledImages
from efficientnet_advprop.data.records import DataError
from efficientnet_advprop.reports import charts
from efficientnet_advprop.reports.comparison import Measured, order_like

OpenImages = Callable[
    [str], Optional[LabeledImages]
]  # test set → its images, None where they are not at hand


@dataclasses.dataclass(frozen=True)
class Disagreement:
    """One image.

    Args:
        image_id: as in the predictions.
        label: the true class.
        answers: model → (class, probability that it gives it).
        right: the model that is right.
        thumbnail: a `data:` URI; None where the image is not at hand.
    """

    image_id: str
    label: int
    answers: dict[str, tuple[int, float]]
    right: str
    thumbnail: Optional[str] = None


def find_disagreements(
    first: Measured, second: Measured, test_set: str, open_images: OpenImages, num_each: int = 12
) -> list[Disagreement]:
    """The images that only the first gets right, then those that only the second does; the surest errors first.

    Args:
        first, second: whose predictions were kept; otherwise, or if they are of different images, there is nothing to find.
        test_set: the name.
        open_images: for the thumbnails.
        num_each: how many of either kind, at most.
    """
    predictions = [measured.predictions(test_set) for measured in (first, second)]
    order = None if None in predictions else order_like(*predictions)
    if order is None:
        return []
    classes = [predictions[0].classes[:, 0], predictions[1].classes[order, 0]]
    probabilities = [predictions[0].probabilities[:, 0], predictions[1].probabilities[order, 0]]
    is_right = [answers == predictions[0].labels for answers in classes]
    found = []
    for right, wrong, model in ((0, 1, first), (1, 0, second)):
        only = np.flatnonzero(is_right[right] & ~is_right[wrong])
        for index in only[np.argsort(-probabilities[wrong][only], kind="stable")][:num_each]:
            answers = {
                measured.name: (int(classes[i][index]), float(probabilities[i][index]))
                for i, measured in enumerate((first, second))
            }
            image_id, label = (
                str(predictions[0].image_ids[index]),
                int(predictions[0].labels[index]),
            )
            found.append(Disagreement(image_id, label, answers, model.name))
    return _with_thumbnails(found, open_images(test_set))


def _with_thumbnails(
    found: list[Disagreement], images: Optional[LabeledImages]
) -> list[Disagreement]:
    if images is None:
        return found
    positions = {images.image_id(position): position for position in range(images.num_images)}

    def thumbnail(image_id):
        try:
            return charts.thumbnail_uri(images.encoded(positions[image_id]))
        except (KeyError, DataError, OSError):
            return None

    return [dataclasses.replace(one, thumbnail=thumbnail(one.image_id)) for one in found]
