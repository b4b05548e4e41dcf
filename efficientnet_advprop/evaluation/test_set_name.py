"""What the name of a test set says: its suite, and which of the suite's sets it is.

    parse_name("imagenet_c/fog/3")   # suite "imagenet_c", corruption "fog", severity 3
    parse_name("pgd/8").epsilon      # 8.0, pixels of 255

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


class TestSetName(NamedTuple):
    """The parts of a name; None where a set has no such part.

    Args:
        suite: "imagenet_c" of "imagenet_c/fog/3".
        variant: what follows the suite: "fog/3", or "" of "imagenet".
        corruption, severity: "fog" and 3, of corrupted images.
        epsilon: radius of a PGD attack, pixels of 255: 8.0 of "pgd/8".
        chain: "autoattack/linf_4" of "autoattack/linf_4/apgd_ce": attacks that follow
            each other on the images that are still classified correctly.
    """

    __test__ = False  # not a test of pytest's

    suite: str
    variant: str = ""
    corruption: Optional[str] = None
    severity: Optional[int] = None
    epsilon: Optional[float] = None
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


def attacked_name(epsilon: float, suite: str = "pgd") -> str:
    """Names the images under a white-box PGD attack within `epsilon` pixels of 255."""
    return f"{suite}/{epsilon:g}"


def row_of(name: str) -> str:
    """Returns what a report gives one row: a corrupted set's suite, else the set itself."""
    parts = parse_name(name)
    return name if parts.corruption is None else parts.suite


def is_part_of(name: str, wanted: str) -> bool:
    """Whether `wanted` means this set, as "imagenet_c" and "imagenet_c/fog" both mean
    "imagenet_c/fog/3".
    """
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
