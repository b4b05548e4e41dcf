"""What a test set is called, and what its name says of it.

    name = TestSetName.corrupted("imagenet_c", "fog", 3)          # "imagenet_c/fog/3"
    name.suite, name.corruption, name.severity                    # "imagenet_c", "fog", 3
    TestSetName.attacked(8.0).epsilon                             # 8.0, of "pgd/8"

A name is a string, so that it is a key of `Results.test_sets` and of results.json as it
stands.
"""

import re
from typing import Iterable, Optional

from efficientnet_advprop.config.tables import BUILTIN

_PGD = "pgd"
_STAGE = re.compile(r"[^/]+/(?:linf|l2)_[^/]+/(?!square_alone$)[a-z_]+")
CLEAN = "clean"  # the first stage of a chain of attacks
CLEAN_SUITES = ("imagenet", *BUILTIN)  # whose images attacks and mixtures are compared with


class TestSetName(str):
    """The name of a test set: its suite, and where a suite has several sets, which of
    them.

    "imagenet" is a suite of one set, "imagenet_v2/topimages" one of several,
    "imagenet_c/fog/3" one corruption at one severity, "pgd/8" an attack within 8 levels
    of 255.
    """

    __test__ = False  # not a test of pytest's
    __slots__ = ()

    @classmethod
    def corrupted(cls, suite: str, corruption: str, severity: int) -> "TestSetName":
        """The images of one corruption at one severity, 1 (the mildest) to 5."""
        return cls(f"{suite}/{corruption}/{severity}")

    @classmethod
    def attacked(cls, epsilon: float) -> "TestSetName":
        """The images under a white-box PGD attack within `epsilon`, in pixels of 255."""
        return cls(f"{_PGD}/{epsilon:g}")

    @classmethod
    def stage(cls, suite: str, norm: str, epsilon: float, attack: str) -> "TestSetName":
        """The images after one of several attacks in a chain:
        "autoattack/linf_4/apgd_ce".
        """
        return cls(f"{suite}/{norm}_{epsilon:g}/{attack}")

    @property
    def suite(self) -> str:
        """The name of the whole: "imagenet_c" of "imagenet_c/fog/3"."""
        return self.split("/")[0]

    @property
    def variant(self) -> str:
        """What follows the suite: "fog/3" of "imagenet_c/fog/3", "" of "imagenet"."""
        return self.partition("/")[2]

    @property
    def is_corrupted(self) -> bool:
        return self.count("/") == 2 and self.rpartition("/")[2].isdigit()

    @property
    def corruption(self) -> Optional[str]:
        """ "fog" of "imagenet_c/fog/3"; None if the set is not one of corrupted images."""
        return self.split("/")[1] if self.is_corrupted else None

    @property
    def severity(self) -> Optional[int]:
        """3 of "imagenet_c/fog/3"; None if the set is not one of corrupted images."""
        return int(self.split("/")[2]) if self.is_corrupted else None

    @property
    def epsilon(self) -> Optional[float]:
        """The attack's radius in pixels of 255; None if the set is not one of attacked
        images.
        """
        return float(self.variant) if self.suite == _PGD else None

    @property
    def chain(self) -> Optional[str]:
        """ "autoattack/linf_4" of "autoattack/linf_4/apgd_ce": the attacks that follow
        each other; None if the set is not one of a chain.
        """
        return self.rpartition("/")[0] if _STAGE.fullmatch(self) else None

    @property
    def whole(self) -> str:
        """What a report gives one row: the suite of a corrupted set, any other set
        itself.
        """
        return self.suite if self.is_corrupted else str(self)

    def is_part_of(self, wanted: str) -> bool:
        """Whether `wanted` means this set: "imagenet_c" and "imagenet_c/fog" both mean
        "imagenet_c/fog/3".
        """
        return f"{self}/".startswith(f"{wanted}/")


def is_passed(name: TestSetName, names: Iterable[TestSetName]) -> bool:
    """Whether an attack in a chain is followed by others in `names`, so that their last
    one says all.
    """
    chains = {other.chain: other for other in names}  # the last stays
    return name.chain is not None and chains[name.chain] != name


def by_severity(
    names: Iterable[TestSetName], suite: str, corruption: Optional[str] = None
) -> list[TestSetName]:
    """Those of `names` that are a suite's corrupted sets, or one corruption's, the
    mildest first.
    """
    chosen = [
        name
        for name in names
        if name.is_corrupted and name.suite == suite and corruption in (None, name.corruption)
    ]
    return sorted(chosen, key=lambda name: name.severity)
