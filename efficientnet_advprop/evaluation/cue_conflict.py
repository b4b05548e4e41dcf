"""What a network goes by on images with the shape of one category and the texture of
another (Geirhos et al., ICLR 2019).

    decisions = count_decisions(ImagePredictions.read(".../predictions/cue_conflict.npz"))
    decisions["cat"].shape_bias                                   # 0.22; None: it never decided
    total(decisions).shape_bias
"""

import dataclasses
import os
import re
from typing import Mapping, Optional

from efficientnet_advprop.evaluation.image_predictions import ImagePredictions
from efficientnet_advprop.images.robustness_sets import cue_conflict_categories

_TEXTURE = re.compile(r"-([a-z]+)\d*\.[A-Za-z]+$")  # of airplane1-bicycle2.png


@dataclasses.dataclass(frozen=True)
class Decisions:
    """Counts of images with a conflict: all, and those classified by shape and by texture."""

    num_images: int
    num_shape: int
    num_texture: int

    @property
    def shape_bias(self) -> Optional[float]:
        """shape / (shape + texture), in [0, 1]; None without a decision."""
        decided = self.num_shape + self.num_texture
        return self.num_shape / decided if decided else None


def texture_of(image_id: str) -> Optional[str]:
    """Returns the category of an image's texture, by the name of its file."""
    match = _TEXTURE.search(os.path.basename(image_id))
    return match[1] if match else None


def count_decisions(predictions: ImagePredictions) -> dict[str, Decisions]:
    """Returns category of the shape → decisions, over images with a conflict."""
    categories = list(cue_conflict_categories())
    counts = {category: [0, 0, 0] for category in categories}
    for row, image_id in enumerate(predictions.image_ids):
        shape, texture = categories[predictions.labels[row]], texture_of(str(image_id))
        if texture not in counts or texture == shape:
            continue
        top = predictions.classes[row, 0]
        predicted = categories[top] if top >= 0 else None
        counts[shape][0] += 1
        counts[shape][1] += predicted == shape
        counts[shape][2] += predicted == texture
    return {category: Decisions(*own) for category, own in counts.items()}


def total(decisions: Mapping[str, Decisions]) -> Decisions:
    """Sums over all categories."""
    return Decisions(*map(sum, zip(*(dataclasses.astuple(own) for own in decisions.values()))))
