"""The errors that a user can act upon: one family, which every program ends with one message.

    class DataError(UserError, ValueError):
        ...

Every public error of this package derives from `UserError`, so that a program need not list
them: `command_line.program` prints the message and ends with `exit_code`. Any other exception is
a fault of ours and keeps its traceback. Messages name the argument, its value, the rule and the
way out, in ten lines at most: of many names the first few stand for all (`list_names`).
"""

from typing import Sequence

MAX_LINES = 10  # of a message
_MAX_CHARACTERS = 2000  # of a line: what a library says may be longer
NUM_NAMES = 3  # that stand for a longer list


def list_names(names: Sequence[str], num_shown: int = NUM_NAMES) -> str:
    """The first names in a sentence, and how many more there are.

    Args:
        names: in the order to show them in.
        num_shown: ≥ 1.

    Returns:
        "a, b", or "a, b, c and 193 more".
    """
    more = f" and {len(names) - num_shown} more" if len(names) > num_shown else ""
    return ", ".join(names[:num_shown]) + more


def list_lines(lines: Sequence[str], num_shown: int = 6) -> str:
    """The first lines below a sentence, each indented, and how many more there are.

    Args:
        lines: in the order to show them in.
        num_shown: ≥ 1; the default leaves room for a sentence before and behind.

    Returns:
        "\\n  a\\n  b", or with "\\n  … and 14 more" behind them.
    """
    more = [f"… and {len(lines) - num_shown} more"] if len(lines) > num_shown else []
    return "".join(f"\n  {line}" for line in [*lines[:num_shown], *more])


def shorten(message: str) -> str:
    """A message of at most `MAX_LINES` lines, whoever wrote it; says so where lines are left out."""
    lines = [
        line if len(line) <= _MAX_CHARACTERS else f"{line[:_MAX_CHARACTERS]} …"
        for line in message.splitlines()
    ]
    if len(lines) > MAX_LINES:
        num_left_out = len(lines) - MAX_LINES + 1
        lines = [*lines[: MAX_LINES - 1], f"… and {num_left_out} more lines"]
    return "\n".join(lines)


class UserError(Exception):
    """Data, files or circumstances that cannot be used as they are.

    `exit_code` is what a program that ends by this error returns.
    """

    exit_code = 1
    # Said openly, for subclasses that are also a `ValueError` or the like, which has its own: a
    # traced `tf.function` raises an error anew, and only with this constructor as the same class.
    __init__ = Exception.__init__


class UsageError(UserError):
    """Wrong flags, configuration or arguments: the same call can never work."""

    exit_code = 2
