"""Published results on the test suites, each with its source, and the lines from which
effective robustness is measured.

Top-1 on ImageNet is in `models.checkpoints.published_checkpoints`.
"""

import dataclasses
import math
from typing import Optional

from efficientnet_advprop.evaluation.results import Results
from efficientnet_advprop.models.checkpoints import published_checkpoints

NUM_SEVERITIES = 5

# Source: D. Hendrycks, T. Dietterich, ICLR 2019: AlexNet's top-1 error under each
# corruption, as the mean over the five severities. Only the means are published. mCE
# needs only the sum over the severities, so each severity is given the mean.
ALEXNET_ERRORS = {
    corruption: (error,) * NUM_SEVERITIES
    for corruption, error in {
        "gaussian_noise": 0.886428,
        "shot_noise": 0.894468,
        "impulse_noise": 0.922640,
        "defocus_blur": 0.819880,
        "glass_blur": 0.826268,
        "motion_blur": 0.785948,
        "zoom_blur": 0.798360,
        "snow": 0.866816,
        "frost": 0.826572,
        "fog": 0.819324,
        "brightness": 0.564592,
        "contrast": 0.853204,
        "elastic_transform": 0.646056,
        "pixelate": 0.717840,
        "jpeg_compression": 0.606500,
    }.items()
}
# The error of the same network on the clean validation images. The script of the
# benchmark uses torchvision's AlexNet, whose top-1 accuracy is 56.522 % according to
# torchvision.
ALEXNET_CLEAN_ERROR = 0.43478


@dataclasses.dataclass(frozen=True)
class PublishedFigure:
    """One published value."""

    value: float  # per cent
    evidence: str  # "read" in its source, or "recalled" from the paper without access to it
    source: str
    note: str = ""  # what a reader must know to compare
    # Measured by code and pre-processing like ours; if not, no difference is printed.
    is_of_same_code: bool = True


_PAPER = "Xie et al., CVPR 2020"
_VARIANTS = ("b0", "b1", "b2", "b3", "b4", "b5", "b6", "b7")
# Test suite → (vanilla, AdvProp) by variant.
_PAPER_FIGURES = {
    "imagenet_c": (
        (70.7, 65.1, 64.1, 62.9, 60.7, 62.3, 60.6, 59.4),
        (66.2, 60.2, 61.4, 57.8, 58.6, 56.2, 53.6, 52.9),
    ),
    "imagenet_a": (
        (6.7, 9.0, 10.8, 17.9, 26.4, 29.4, 34.5, 37.7),
        (7.1, 10.1, 11.8, 18.0, 27.9, 34.4, 40.6, 44.7),
    ),
    "stylized": (
        (13.1, 15.0, 16.8, 17.8, 20.2, 20.8, 20.9, 21.8),
        (14.6, 16.7, 17.8, 21.4, 22.5, 24.4, 25.9, 26.6),
    ),
}
# Taori et al., NeurIPS 2020: rows of the table of results of their testbed
# (imagenet-testbed), of the same weights converted to PyTorch. Only rows that were
# read.
TAORI = "Taori et al., NeurIPS 2020"
_TESTBED_FIGURES = {
    "b0-autoaugment": {
        "imagenet_v2/matched-frequency": 64.42,
        "imagenet_v2/threshold-0.7": 73.34,
        "imagenet_v2/topimages": 79.04,
        "imagenet_sketch": 26.49,
        "imagenet_r": 38.61,
        "imagenet_a_classes": 92.26,
        "imagenet_r_classes": 92.39,
        "objectnet": 34.31,
    },
    "b1-advprop": {
        "imagenet_v2/matched-frequency": 66.61,
        "imagenet_v2/threshold-0.7": 75.48,
        "imagenet_v2/topimages": 80.35,
        "imagenet_sketch": 30.85,
        "imagenet_r": 43.19,
        "imagenet_a_classes": 93.14,
        "imagenet_r_classes": 93.39,
        "objectnet": 38.21,
    },
}
_KINDS = {"autoaugment": 0, "advprop": 1}
_NOTES = {
    "autoaugment": "of the paper’s own vanilla network; "
    "the released AutoAugment weights were trained again later",
    "advprop": "",
}


def find_published(checkpoint: Optional[str], suite: str) -> Optional[PublishedFigure]:
    """Returns the published value of a checkpoint on a test suite, or None.

    Args:
        checkpoint: a name in `PUBLISHED`, such as "b3-advprop"; None: an unpublished network.
        suite: "imagenet", "imagenet_c" (its mCE), "imagenet_a", …
    """
    row = published_checkpoints.PUBLISHED.get(checkpoint)
    if row is None:
        return None
    if suite == "imagenet" and row.top1 is not None:
        table = "official README" if row.kind.startswith("v2") else "official table of March 2020"
        return PublishedFigure(row.top1, "read", f"the {table}")
    if suite in _PAPER_FIGURES and row.kind in _KINDS and row.variant in _VARIANTS:
        value = _PAPER_FIGURES[suite][_KINDS[row.kind]][_VARIANTS.index(row.variant)]
        return PublishedFigure(value, "recalled", _PAPER, _NOTES[row.kind])
    value = _TESTBED_FIGURES.get(row.name, {}).get(suite)
    if value is not None:
        note = "the same weights converted to PyTorch"
        return PublishedFigure(value, "read", f"{TAORI}, testbed", note, is_of_same_code=False)
    return None


# Lines between logits of accuracies, fitted to networks that were trained on ImageNet alone and
# without means against such shifts.
# Of ImageNet-A and -R the base is ImageNet's accuracy among the same 200 classes, as in
# the testbed. ImageNet-A was selected against a ResNet-50, whose accuracy there, 91.86
# %, divides the two lines. The constants are those that its plotting code prints for
# its published table of results, as public code quotes them; docs/robustness.md says
# how they were checked. None was found for ImageNet-C.
_RESNET50 = 0.9186
# (test set, base, slope, intercept, accuracies on the base for which it holds, half open)
# of logit(accuracy on the test set) = slope · logit(accuracy on the base) + intercept,
# for top-1 accuracies as fractions of 1.
_ALL = (0.0, 1.0)
_FITS = (
    ("imagenet_v2/matched-frequency", "imagenet", 0.9113725552359271, -0.4813069457734013, _ALL),
    ("imagenet_sketch", "imagenet", 1.0709154135668684, -2.370072912552283, _ALL),
    ("imagenet_r", "imagenet_r_classes", 0.636843984281646, -2.1077156197680713, _ALL),
    ("imagenet_r", "imagenet", 0.9115905266235703, -1.5999151525728197, _ALL),
    ("imagenet_a", "imagenet_a_classes", 0.6894464990989362, -5.14004617225444, (0.0, _RESNET50)),
    ("imagenet_a", "imagenet_a_classes", 2.9559595169134285, -10.27739708860645, (_RESNET50, 1.0)),
)


def expected_accuracy(results: Results, test_set: str) -> Optional[tuple[float, str]]:
    """Returns the accuracy expected of a network of its accuracy on ImageNet (Taori et al.), and
    the test set of the latter: by the first line whose base was measured, if there is one.
    """
    for name, base, slope, intercept, (lowest, highest) in _FITS:
        if name != test_set or base not in results.test_sets:
            continue
        accuracy = results.test_sets[base].score.top1
        if 0.0 < accuracy < 1.0 and lowest <= accuracy < highest:
            logit = slope * math.log(accuracy / (1.0 - accuracy)) + intercept
            return 1.0 / (1.0 + math.exp(-logit)), base
    return None
