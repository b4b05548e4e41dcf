"""The errors that a user can solve; every program reports them as one message.

`command_line.program` prints the message of a `UserError` and exits with its `exit_code`;
any other exception is a bug of this package and keeps its traceback. Messages name the
argument, its value, the rule and the way out, in at most ten lines.
"""

import difflib
import re
from typing import Any, Iterable, Mapping, Optional, Sequence

# What stands on this package takes these from here, too.
from tpu_utils.platforms import PlatformError as PlatformError
from tpu_utils.platforms import brief_message as brief_message

MAX_LINES = 10  # of a message
_MAX_CHARACTERS = 2000  # of a line; messages of libraries may be longer
NUM_NAMES = 3  # how many names of a long list are shown


def list_names(names: Sequence[str], num_shown: int = NUM_NAMES) -> str:
    """Returns the first names: "a, b", or "a, b, c and 193 more"."""
    more = f" and {len(names) - num_shown} more" if len(names) > num_shown else ""
    return ", ".join(names[:num_shown]) + more


def list_lines(lines: Sequence[str], num_shown: int = 6) -> str:
    """Returns the first lines, indented, each after a line break, and how many more there are.

    The default leaves room for a sentence before and after them.
    """
    more = [f"… and {len(lines) - num_shown} more"] if len(lines) > num_shown else []
    return "".join(f"\n  {line}" for line in [*lines[:num_shown], *more])


def misspelled(name: str, known: Iterable[str], shown: str = "") -> str:
    """Returns "; did you mean …" with the known name of which `name` is a misspelling, or "".

    Other words mean other things: batch_size is neither eval_batch_size nor batch_sizes_2.
    `shown` is `name` as it would be shown among the `known` names.
    """

    def parts(text: str) -> list[str]:
        return re.findall(r"[^\W_]+", text)

    def is_close(word: str, other: str) -> bool:
        if any(character.isdigit() for character in word + other):
            return word == other  # b3 is not a misspelling of b2
        return difflib.SequenceMatcher(None, word, other).ratio() >= 0.6

    given = parts(shown or name)
    candidates = []
    for other in known:
        words = parts(other)
        if len(words) == len(given) and all(map(is_close, given, words)):
            candidates.append(other)
    found = difflib.get_close_matches(shown or name, candidates, n=1, cutoff=0.8)
    return f"; did you mean {found[0]}" if found else ""


def require_choice(name: str, value: Any, choices: Iterable[Any]) -> None:
    """Raises a ValueError that names the argument, unless `value` is one of `choices`."""
    if value not in choices:
        raise ValueError(
            f"`{name}` is {value!r}, but must be one of {', '.join(map(repr, choices))}."
        )


def require_whole(name: str, value: Any, least: int, remark: str = "") -> None:
    """Raises a ValueError unless `value` is a whole number ≥ `least`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"`{name}` is {value!r}, but must be a whole number ≥ {least}{remark}.")


def shorten(message: str) -> str:
    """Shortens a message to `MAX_LINES` lines, and says how many lines are missing."""
    lines = [
        line if len(line) <= _MAX_CHARACTERS else f"{line[:_MAX_CHARACTERS]} …"
        for line in message.splitlines()
    ]
    if len(lines) > MAX_LINES:
        num_left_out = len(lines) - MAX_LINES + 1
        lines = [*lines[: MAX_LINES - 1], f"… and {num_left_out} more lines"]
    return "\n".join(lines)


class UserError(Exception):
    """Data, files or circumstances that cannot be used.

    `exit_code` is the exit code of a program that this error ends.
    """

    exit_code = 1
    # Subclasses that also derive from `ValueError` would inherit its constructor. A
    # traced `tf.function` raises an error again, and keeps its class only with this
    # constructor.
    __init__ = Exception.__init__


class UsageError(UserError, ValueError):
    """Wrong flags, configuration or arguments: repeating the same call cannot succeed."""

    exit_code = 2


class RunError(UserError, RuntimeError):
    """A run cannot go on: its directory is in use, or holds another run's state."""


class CheckpointError(UserError, ValueError):
    """A checkpoint that cannot be found, read or written, or does not fit.

    Attributes:
        problems: of a checkpoint that does not fit, all names by what is wrong with
            them; the message shows only the first few.
    """

    problems: Mapping[str, Sequence[str]] = {}


class ModelError(UserError, ValueError):
    """A network cannot be built, loaded or used for what it is given to."""


class AttackError(UserError, ValueError):
    """Images, labels or a network that cannot be attacked as asked."""


class DataError(UserError, ValueError):
    """Data that cannot be used.

    The message is one line: file, index of the record in it (from 0), reason, way out.
    """

    def __init__(self, reason: str, path: Optional[str] = None, record: Optional[int] = None):
        where = (
            "" if path is None else f"{path}: " if record is None else f"{path}, record {record}: "
        )
        super().__init__(" ".join((where + reason).split()))
        self.path, self.record, self.reason = path, record, reason
