"""Names of test sets: what they say, and what reports call them.

    parse_name("imagenet_c/fog/3")   # suite "imagenet_c", corruption "fog", severity 3
    parse_name("pgd/8").epsilon      # 8.0, pixels of 255
    title("imagenet_v2/topimages")   # "ImageNet-V2, topimages"

Names are plain strings: the keys of `Results.test_sets` and of results.json.
"""

import re
from typing import Iterable, NamedTuple, Optional

from efficientnet_advprop.config.tables import BUILTIN

CLEAN = "clean"  # the first stage of a chain of attacks
CLEAN_SUITES = ("imagenet", *BUILTIN)  # whose images attacks and mixtures are compared with
SQUARE_ALONE = "square_alone"  # runs on all images, hence in no chain
_PGD = re.compile(r"pgd|.*_pgd")
_STAGE = re.compile(rf"[^/]+/(?:linf|l2)_[^/]+/(?!{SQUARE_ALONE}$)[a-z_]+")

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
    CLEAN: "clean",
    "apgd_ce": "after APGD-CE",
    "apgd_dlr": "after APGD-DLR",
    "apgd_t": "after APGD-T",
    "fab": "after FAB",
    "fab_t": "after FAB-T",
    "square": "after Square",
    SQUARE_ALONE: "Square alone",
}
_ATTACK = re.compile(f"({'|'.join(_NORM_TITLES)})_([^/]+)(?:/({'|'.join(_STAGE_TITLES)}))?")


class TestSetName(NamedTuple):
    """The parts of a name; None where a set has no such part."""

    __test__ = False  # not a test of pytest's

    suite: str  # "imagenet_c" of "imagenet_c/fog/3"
    variant: str = ""  # what follows the suite: "fog/3", or "" of "imagenet"
    corruption: Optional[str] = None  # of corrupted images, as is `severity`
    severity: Optional[int] = None
    epsilon: Optional[float] = None  # radius of a PGD attack, pixels of 255
    # "autoattack/linf_4" of "autoattack/linf_4/apgd_ce": attacks that follow each other on the
    # images that are still classified correctly.
    chain: Optional[str] = None


def parse_name(name: str) -> TestSetName:
    """Returns the parts of a test set's name."""
    suite, _, variant = name.partition("/")
    corruption, _, severity = variant.partition("/")
    if severity.isdigit():
        return TestSetName(suite, variant, corruption, int(severity))
    if variant and _PGD.fullmatch(suite):
        return TestSetName(suite, variant, epsilon=float(variant))
    chain = name.rpartition("/")[0] if _STAGE.fullmatch(name) else None
    return TestSetName(suite, variant, chain=chain)


def corrupted_name(suite: str, corruption: str, severity: int) -> str:
    """Names the images of one corruption at one severity, 1 (the mildest) to 5."""
    return f"{suite}/{corruption}/{severity}"


def row_of(name: str) -> str:
    """Returns what a report gives one row: a corrupted set's suite, else the set itself."""
    parts = parse_name(name)
    return name if parts.corruption is None else parts.suite


def is_part_of(name: str, wanted: str) -> bool:
    """Whether `wanted`, such as "imagenet_c" or "imagenet_c/fog", means this set."""
    return f"{name}/".startswith(f"{wanted}/")


def is_passed(name: str, names: Iterable[str]) -> bool:
    """Whether a later attack of the same chain is among `names`, whose score says all."""
    last = {parse_name(other).chain: other for other in names}
    chain = parse_name(name).chain
    return chain is not None and last[chain] != name


def by_severity(names: Iterable[str], suite: str, corruption: Optional[str] = None) -> list[str]:
    """Returns a suite's corrupted sets, or one corruption's, the mildest first."""
    parts = {name: parse_name(name) for name in names}
    chosen = [
        name
        for name, own in parts.items()
        if own.corruption is not None
        and own.suite == suite
        and corruption in (None, own.corruption)
    ]
    return sorted(chosen, key=lambda name: parts[name].severity)


def title(name: str) -> str:
    """Returns what reports call a suite or test set."""
    suite, variant, *_ = parts = parse_name(name)
    own = _TITLES.get(suite, suite)
    attack = _ATTACK.fullmatch(variant)
    if attack is not None:
        norm, epsilon, stage = attack.groups()
        which = _STAGE_TITLES[stage] if stage else "all attacks together"
        return f"{own}, {_NORM_TITLES[norm]} ε = {epsilon}, {which}"
    if parts.epsilon is not None:
        return f"{own}, ε = {variant}"
    return ", ".join(filter(None, (own, variant.replace("_", " "))))
