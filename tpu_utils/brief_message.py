"""What a library says of an error, in few enough words to stand in a sentence of ours.

    raise CheckpointError(f"{path} cannot be read: {brief_message(error)}.") from error
"""

import re
from typing import Union

# TensorFlow's names of the operation that failed, before the message and behind it.
_OPERATIONS = re.compile(r"\{\{.*?\}\} ?| ?\[(Op:|\[\{\{).*")
# What it puts on lines of their own before the message: where in the program, or on which machine, the operation stands.
_WHEREABOUTS = re.compile(r"\s|Graph execution error:|Detected at node|<stack traces|From /job:|Node: |\d+ root error|$")
_FIRST_ROOT = re.compile(r"\s+\(0\) [A-Z_]+: +")  # of several errors at once


def brief_message(error: Union[BaseException, str]) -> str:
    """The line of an error's message that says what happened, without TensorFlow's names of operations and a full stop.

    Args:
        error: an exception, or the text of one.

    Returns:
        One line; the name of the exception's class if it says nothing.
    """
    text = error if isinstance(error, str) else getattr(error, "message", None) or str(error)
    lines = [_FIRST_ROOT.sub("", line) for line in text.strip().splitlines()]
    told = next((line for line in lines if not _WHEREABOUTS.match(line)), lines[0] if lines else "")
    said = _OPERATIONS.sub("", told).strip().rstrip(".")
    return said or ("no message" if isinstance(error, str) else type(error).__name__)
