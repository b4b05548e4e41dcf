"""The platforms that a program can compute on, without TensorFlow, since --help reads them
too; the error of one that is not available; and what other libraries say, shortened.
"""

import contextlib
import os
import re
import tempfile
from typing import Iterator, Union

# The strategies of `make_strategy`, and what each computes on.
STRATEGIES = {
    "one_device": "the first GPU, else the CPU",
    "mirrored": "all GPUs of this machine",
    "tpu": "a TPU or a pod of them",
    "multi_worker": "several machines, each running this same command",
}
RESOLVERS = ("tf_config", "slurm", "kubernetes")  # where the list of machines comes from


class PlatformError(ValueError, RuntimeError):
    """Devices, machines or a compiler that are not available as requested.

    `exit_code` is that of a program which this error ends: 2, a wrong argument.
    """

    exit_code = 2


# The name of the failed operation, which TensorFlow adds before and after the message.
_OPERATIONS = re.compile(r"\{\{.*?\}\} ?| ?\[(Op:|\[\{\{).*")
# TensorFlow 2.16 and later also name the stage of an input pipeline, on the message's
# own line.
_STAGE = re.compile(
    r"Error in user-defined function passed to \S+ transformation with iterator: \S+: "
)
# Lines before the message that say where in the program, or on which machine, the
# operation is.
_WHEREABOUTS = re.compile(
    r"\s|Graph execution error:|Detected at node|<stack traces|From /job:|Node: |\d+ root error|$"
)
_FIRST_ROOT = re.compile(r"\s+\(0\) [A-Z_]+: +")  # of several errors at once


def brief_message(error: Union[BaseException, str]) -> str:
    """Returns the one line of an error's message that says what happened.

    The names of TensorFlow's operations and a final full stop are removed. Without a
    message it is the name of the exception's class.
    """
    text = error if isinstance(error, str) else getattr(error, "message", None) or str(error)
    lines = [_FIRST_ROOT.sub("", line) for line in text.strip().splitlines()]
    informative_line = next(
        (line for line in lines if not _WHEREABOUTS.match(line)), lines[0] if lines else ""
    )
    message = _OPERATIONS.sub("", _STAGE.sub("", informative_line)).strip().rstrip(".")
    return message or ("no message" if isinstance(error, str) else type(error).__name__)


@contextlib.contextmanager
def without_noise(noise: bytes) -> Iterator[None]:
    """Keeps lines with the pattern `noise` from this process's stderr, to which libraries in C++
    write whatever Python says. The others are shown at the end, and all if the body fails.
    """
    shown = os.dup(2)
    with tempfile.TemporaryFile() as written:
        os.dup2(written.fileno(), 2)
        hidden = re.compile(noise)
        try:
            yield
        except BaseException:
            hidden = re.compile(b"(?!)")  # nothing
            raise
        finally:
            os.dup2(shown, 2)
            written.seek(0)
            with contextlib.suppress(OSError):  # nobody may be reading
                os.write(shown, b"".join(line for line in written if not hidden.search(line)))
            os.close(shown)
