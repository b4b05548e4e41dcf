"""The errors of this package, and what a library says of an error in few words.

Usage:

    raise StrategyError("`--strategy` is 'tpu', but this machine has no TPU.")
    raise CompilerError(f"{path} cannot be read: {brief_message(error)}.") from error
"""

import re
from typing import Union


class PlatformError(Exception):
    """Something about devices, machines or compilers that a user can act upon.

    Every public error of this package derives from it. `exit_code` is what a program that
    ends by this error returns: 2 for a wrong argument, 1 for everything else.
    """

    exit_code = 1


class StrategyError(PlatformError, ValueError):
    """The devices asked for are not available.

    The message says what was asked for and what to do.
    """

    exit_code = 2


# TensorFlow's names of the operation that failed, before the message and behind it.
_OPERATIONS = re.compile(r"\{\{.*?\}\} ?| ?\[(Op:|\[\{\{).*")
# TensorFlow 2.16 and later also name the stage of an input pipeline, on the message's own line.
_STAGE = re.compile(
    r"Error in user-defined function passed to \S+ transformation with iterator: \S+: "
)
# What it puts on lines of their own before the message: where in the program, or on which machine, the operation stands.
_WHEREABOUTS = re.compile(
    r"\s|Graph execution error:|Detected at node|<stack traces|From /job:|Node: |\d+ root error|$"
)
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
    said = _OPERATIONS.sub("", _STAGE.sub("", told)).strip().rstrip(".")
    return said or ("no message" if isinstance(error, str) else type(error).__name__)
