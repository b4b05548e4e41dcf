"""A function that returns a Keras model, named where the variant of a network stands.

Only the syntax of the name is known here; `models.converted` imports the module.
"""

import re

FORM = "keras:PACKAGE.MODULE:FUNCTION"
_NAME = r"[^\W\d]\w*"
_PATTERN = re.compile(rf"keras:({_NAME}(?:\.{_NAME})*):({_NAME})")


def is_keras_variant(variant: str) -> bool:
    """Returns whether `variant` has the form of such a name."""
    return _PATTERN.fullmatch(variant) is not None


def split(variant: str) -> tuple[str, str]:
    """Returns the module and the function; raises a ValueError for another form."""
    match = _PATTERN.fullmatch(variant)
    if match is None:
        raise ValueError(f"`variant` is {variant!r}, but must have the form {FORM}.")
    return match[1], match[2]
