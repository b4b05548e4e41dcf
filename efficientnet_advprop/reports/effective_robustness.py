"""Effective robustness: how far an accuracy under natural distribution shift lies above
what is expected of a network of that accuracy on ImageNet (Taori et al., NeurIPS 2020).

The expectation is a line between logits of accuracies, fitted to networks that were
trained on ImageNet alone and without means against such shifts.
"""

import math
from typing import Optional

from efficientnet_advprop.evaluation.results import Results

SOURCE = "Taori et al., NeurIPS 2020"


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
    """Returns the expected accuracy on a test set, and the test set that it follows from.

    By the first fit whose base was measured; None if there is none, or if that accuracy
    is 0 or 1.
    """
    for name, base, slope, intercept, (lowest, highest) in _FITS:
        if name != test_set or base not in results.test_sets:
            continue
        accuracy = results.test_sets[base].score.top1
        if 0.0 < accuracy < 1.0 and lowest <= accuracy < highest:
            logit = slope * math.log(accuracy / (1.0 - accuracy)) + intercept
            return 1.0 / (1.0 + math.exp(-logit)), base
    return None
