"""What reports call test sets and suites."""

import re

from efficientnet_advprop.evaluation.test_set_name import parse_name

_TITLES = {
    "imagenet": "ImageNet",
    "imagenet_c": "ImageNet-C",
    "imagenet_c_made": "ImageNet-C, made here",
    "imagenet_a": "ImageNet-A",
    "imagenet_r": "ImageNet-R",
    "imagenet_v2": "ImageNet-V2",
    "imagenet_sketch": "ImageNet-Sketch",
    "stylized": "Stylized-ImageNet",
    "pgd": "Under PGD",
    "digits": "Digits",
    "digits_c": "Digits, corrupted",
    "imagenet_c_extra": "ImageNet-C, the four further corruptions",
    "imagenet_c_bar": "ImageNet-C-bar",
    "imagenet_3dcc": "ImageNet-3DCC",
    "imagenet_w": "ImageNet-W",
    "imagenet_real": "ImageNet ReaL",
    "objectnet": "ObjectNet",
    "cue_conflict": "Cue conflict",
    "autoattack": "AutoAttack",
    "robustbench": "RobustBench",
    "imagenet_a_classes": "ImageNet, the 200 classes of ImageNet-A",
    "imagenet_r_classes": "ImageNet, the 200 classes of ImageNet-R",
}
_NORM_TITLES = {"linf": "L∞", "l2": "L2"}
_STAGE_TITLES = {
    "clean": "clean",
    "apgd_ce": "after APGD-CE",
    "apgd_dlr": "after APGD-DLR",
    "apgd_t": "after APGD-T",
    "fab": "after FAB",
    "fab_t": "after FAB-T",
    "square": "after Square",
    "square_alone": "Square alone",
}
_STAGE = re.compile(f"({'|'.join(_NORM_TITLES)})_([^/]+)(?:/({'|'.join(_STAGE_TITLES)}))?")


def title(suite: str) -> str:
    """Returns a suite's or test set's title: "imagenet_v2/topimages" → "ImageNet-V2, topimages"."""
    name = parse_name(suite)
    stage = _STAGE.fullmatch(name.variant)
    if stage is not None:
        norm, epsilon, attack = stage.groups()
        of = _TITLES.get(name.suite, name.suite)
        which = _STAGE_TITLES[attack] if attack else "all attacks together"
        return f"{of}, {_NORM_TITLES[norm]} ε = {epsilon}, {which}"
    if name.epsilon is not None:
        return f"{_TITLES.get(name.suite, name.suite)}, ε = {name.variant}"
    variant = name.variant.replace("_", " ")
    return ", ".join(filter(None, (_TITLES.get(name.suite, name.suite), variant)))
