"""The embedded data sets by name; `config.SOURCES` names them too.

EMBEDDED_SETS["digits"].ensure("/tmp/digits")
of_suite("digits_c")                           # the digits, too; None for other suites
"""

from typing import Optional

from efficientnet_advprop.data.characters import CHARACTERS
from efficientnet_advprop.data.digits import DIGITS
from efficientnet_advprop.data.embedded_set import EmbeddedSet

EMBEDDED_SETS = {embedded.name: embedded for embedded in (DIGITS, CHARACTERS)}


def of_suite(suite: str) -> Optional[EmbeddedSet]:
    """The set whose clean or corrupted test images a suite of this name is."""
    for embedded in EMBEDDED_SETS.values():
        if suite in (embedded.name, embedded.corrupted_name):
            return embedded
    return None
