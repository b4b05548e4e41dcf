"""Lists and mappings of the newer test sets, as their authors publish them; the file
robustness_sets.json says whose they are.

    robustness_sets.robustbench_numbers()                         # 5,000 of 1 … 50,000
    robustness_sets.cue_conflict_categories()["bear"]             # (294, 295, 296, 297)
"""

import functools
import json
import pathlib
from typing import Any, Mapping, Optional, Sequence

from efficientnet_advprop.data import corruptions

_FILE = pathlib.Path(__file__).with_name("robustness_sets.json")
# The four further corruptions of ImageNet-C's authors (Hendrycks and Dietterich, ICLR
# 2019), which their benchmark leaves for the choice of hyperparameters.
C_EXTRA = ("speckle_noise", "gaussian_blur", "spatter", "saturate")


@functools.cache
def _read() -> Mapping[str, Any]:
    return json.loads(_FILE.read_text())


@functools.cache
def robustbench_numbers() -> frozenset[int]:
    """Returns the numbers of RobustBench's validation images, ILSVRC2012_val_<number>.JPEG."""
    return frozenset(_read()["robustbench"]["validation_numbers"])


@functools.cache
def cue_conflict_categories() -> Mapping[str, tuple[int, ...]]:
    """Returns the 16 categories in alphabetical order → their ImageNet classes."""
    folders = _read()["cue_conflict"]["classes_of_category"]
    return {category: tuple(folders[category]) for category in sorted(folders)}


@functools.cache
def objectnet_classes() -> Mapping[int, tuple[int, ...]]:
    """Returns the number of an ObjectNet category, in the alphabetical order of its folders → the
    ImageNet classes that it holds; only the 113 categories that have any.
    """
    classes: dict[int, list[int]] = {}
    for label, category in _read()["objectnet"]["category_of_class"].items():
        classes.setdefault(category, []).append(int(label))
    return {category: tuple(sorted(classes[category])) for category in sorted(classes)}


def parameters_of(suite: str, corruption: Optional[str]) -> Optional[Sequence[float]]:
    """Returns the parameter of a corruption at each severity, where its authors name
    folders by it (ImageNet-C-bar).
    """
    return _read().get(suite, {}).get("severities_of_corruption", {}).get(corruption)


@functools.cache
def corruptions_of(suite: str) -> tuple[str, ...]:
    """Returns the corruptions of a suite of corrupted images; of one that is not listed here,
    such as "imagenet_c" or "digits_c", the fifteen of ImageNet-C.
    """
    if suite == "imagenet_c_extra":
        return C_EXTRA
    if suite == "imagenet_c_bar":
        return tuple(_read()["imagenet_c_bar"]["severities_of_corruption"])
    if suite == "imagenet_3dcc":
        return tuple(_read()["imagenet_3dcc"]["corruptions"])
    return tuple(corruptions.CORRUPTIONS)
