"""Runs the main function of a program: reads the config from flags, and reports errors.

Usage:

    _CONFIG = program.define_config_flag()
    if __name__ == "__main__":
        program.run(main)

A mistake of the user ends with one message on stderr and exit code 2 (flags, config) or
1 (anything later), Ctrl-C with 130; without a word and with 141, if nobody reads the
output any more. A traceback always means a bug of this package.
"""

import atexit
import logging
import os
import re
import sys
from typing import Callable, Optional, Sequence

# TensorFlow 2.15 logs three meaningless "errors" about CUDA factories when it starts;
# real errors reach Python as exceptions.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
logging.getLogger("tensorflow").setLevel(logging.WARNING)

from absl import app, flags  # noqa: E402
from ml_collections import config_flags  # noqa: E402

from efficientnet_advprop.command_line import recipes  # noqa: E402
from efficientnet_advprop.config import experiment as config_lib  # noqa: E402
from efficientnet_advprop.runtime.errors import UsageError, UserError, shorten  # noqa: E402
from efficientnet_advprop.runtime.files import printable  # noqa: E402
from tpu_utils.errors import PlatformError, brief_message  # noqa: E402

BAD_USAGE = UsageError.exit_code
FAILED = UserError.exit_code
INTERRUPTED = 130  # the convention of shells: 128 + SIGINT
UNREAD = 141  # likewise, SIGPIPE: who reads the output, such as `head`, has ended
flags.disclaim_key_flags()  # the flags belong to the program that defines them and its --help


_exit_code: Optional[int] = None  # of the program that has run; None: none has


def _end_failed_program() -> None:
    """Ends a program that has failed here, before the interpreter is taken down.

    The last resort.

    An error leaves input pipelines open, whose threads read ahead. `data.python_calls`
    keeps them out of Python; but a call that TensorFlow has queued for seconds, on a
    busy machine, still comes too late, and the process would hang or abort instead of
    giving its exit code. By now threads are joined, and what others have asked to be
    called at the end has been called: this was asked for first, when this module was
    imported, and so comes last.
    """
    if _exit_code:
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(_exit_code)


atexit.register(_end_failed_program)


def define_config_flag() -> flags.FlagHolder:
    """Defines `--config=configs/….py[:variant]` and a flag for every config field.

    A field's flag looks like `--config.section.field=value`. The name of a recipe may
    replace its path: see `recipes`.
    """
    return config_flags.DEFINE_config_file(
        "config",
        help_string=(
            "config file with an optional variant, such as configs/advprop.py:b0, or the name of"
            f" one that comes with the package ({', '.join(recipes.names())}): advprop:b0."
            " --config.attack.epsilon=2 overrides a field. The fields, with their defaults before"
            f" the file's changes:\n{config_lib.describe_fields()}"
        ),
    )


def read_config(flag: flags.FlagHolder) -> config_lib.ExperimentConfig:
    """The validated config from the flag.

    Raises:
        ConfigError: no file was given, the file does not return an `ExperimentConfig`,
            or a field breaks a rule.
    """
    config = flag.value
    if config is None:
        raise config_lib.ConfigError(
            "`--config` is missing; give a config file, such as --config=configs/advprop.py:b0, "
            "or a name, such as --config=advprop:b0."
        )
    if not isinstance(config, config_lib.ExperimentConfig):
        raise config_lib.ConfigError(
            f"`--config`: its get_config() returned {type(config).__name__}, "
            "but must return an ExperimentConfig."
        )
    for name, value, _ in config_lib.flatten(config):  # a path in the file, such as init.checkpoint
        if isinstance(value, str) and value.startswith("~"):
            section, field = name.split(".")
            setattr(getattr(config, section), field, expand_home(value))
    config.validate()
    return config


def run(
    main: Callable[[Sequence[str]], Optional[int]],
    takes_arguments: bool = False,
) -> None:
    """Parses the flags, runs `main(argv)` and exits with its result.

    A `UserError` or `PlatformError` ends with its message and its own exit code, an
    error of a file system with its message and 1, and Ctrl-C with 130. Any other
    exception is a bug of this package; its traceback is shown. At the beginning of a
    path in any flag or argument, `~` means the home folder.

    Args:
        main: receives the remaining argv; returns an exit code, or None for 0.
        takes_arguments: whether arguments that are not flags are allowed; `main`
            receives them after the program's name.
    """

    def guarded(argv):
        try:
            if not takes_arguments:
                refuse_arguments(argv)
            code = main(argv)
            sys.stdout.flush()
            return code
        except (UserError, PlatformError) as error:
            return _print_error(error, error.exit_code)
        except BrokenPipeError:
            return _leave_output()
        except OSError as error:
            return _print_error(error, FAILED)
        except Exception as error:
            if not _is_of_a_file_system(error):
                raise
            return _print_error(brief_message(error), FAILED)
        except KeyboardInterrupt:
            return _print_error(
                "stopped by Ctrl-C; the same command goes on from the last checkpoint.", INTERRUPTED
            )

    global _exit_code
    try:
        app.run(guarded, flags_parser=_parse_flags)
    except SystemExit as stop:
        _exit_code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        raise
    except BaseException:
        _exit_code = FAILED
        raise


def _leave_output() -> int:
    """Writes no more to an output that nobody reads; returns the exit code."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())  # what is still in a buffer goes there at the end
    os.close(nowhere)
    return UNREAD


def refuse_arguments(argv: Sequence[str]) -> None:
    """Raises a `ConfigError` if arguments follow the program's name."""
    if len(argv) > 1:
        raise config_lib.ConfigError(f"`{argv[1]}` is not a flag; flags look like --name=value.")


def _is_of_a_file_system(error: Exception) -> bool:
    """Whether TensorFlow's access to files raised `error`, for example because a disk
    is full.

    Operations of graphs raise the same classes. There they are bugs, and the error
    names the operation.
    """
    tensorflow = sys.modules.get("tensorflow")  # if it is not loaded, it has accessed no files
    return (
        tensorflow is not None
        and isinstance(error, tensorflow.errors.OpError)
        and error.op is None
        and error.node_def is None
    )


def expand_home(argument: str) -> str:
    """Expands `~` and `~user` in an argument, wherever a path may begin.

    A path begins at the start of an argument, or after "=", "," or ":", as in
    `--suite=folder:~/pets`. Shells expand only the first of these.

    Raises:
        ConfigError: there is no such user.
    """

    def home(match: re.Match) -> str:
        found = os.path.expanduser(match[0])
        if found == match[0]:
            raise config_lib.ConfigError(
                f"`{argument}` begins a path with {match[0]!r}, but there is no such user here; "
                f"write the whole path, or ./{match[0]} for a folder of that name."
            )
        return found

    return re.sub(r"(?:(?<=[=,:])|^)~[\w.-]*(?=/|,|$)", home, argument)


def _print_error(error, code: int) -> int:
    print(f"error: {shorten(str(error))}", file=sys.stderr, flush=True)
    return code


def _parse_flags(argv: Sequence[str]) -> Sequence[str]:
    try:
        _require_text(argv)
        # config_flags looks for overrides in sys.argv by itself.
        arguments = _with_recipes_found([expand_home(argument) for argument in argv[1:]])
        _check_config_arguments(arguments)
        arguments, left_out = _take_out_none(arguments)
        argv = sys.argv = [argv[0], *arguments]
        rest = flags.FLAGS(argv)
        if left_out:
            config = flags.FLAGS["config"].value
            for name in left_out:
                section, field = name.split(".")
                setattr(getattr(config, section), field, None)
        return rest
    except BrokenPipeError:
        sys.exit(_leave_output())
    except SystemExit:  # absl exits with 1 after --help
        try:
            sys.stdout.flush()
        except BrokenPipeError:
            sys.exit(_leave_output())
        sys.exit(0)
    except flags.IllegalFlagValueError as error:
        override = re.match(r"flag --config\.([\w.]+)=(.*?): ", str(error))
        message = (
            f"{config_lib.type_rule(override[1], override[2])}." if override else _reason(error)
        )
        sys.exit(_print_error(message, BAD_USAGE))
    except (flags.Error, config_lib.ConfigError) as error:
        sys.exit(_print_error(error, BAD_USAGE))
    # The code of a config file may raise anything; config_flags puts the text of some
    # tracebacks into its own exceptions.
    except Exception as error:
        sys.exit(
            _print_error(
                f"the config file cannot be used: {type(error).__name__}: {_reason(error)}",
                BAD_USAGE,
            )
        )


def _require_text(arguments: Sequence[str]) -> None:
    """Raises a `ConfigError` for a path that is not UTF-8, which TensorFlow cannot
    open.
    """
    for argument in arguments:
        if printable(argument) != argument:
            raise config_lib.ConfigError(
                f"`{printable(argument)}` is no text in UTF-8, and TensorFlow opens no such path; "
                "rename the file or folder."
            )


def _reason(error: Exception) -> str:
    """The last line of an error's message, without the name of the exception.

    config_flags puts a whole traceback into its message.
    """
    lines = str(error).strip().splitlines() or [""]
    return re.sub(r"^[\w.]*Error: ", "", lines[-1])


def _with_recipes_found(argv: Sequence[str]) -> list[str]:
    """The arguments, with names of recipes replaced by their paths."""
    found = list(argv)
    for index, argument in enumerate(argv):
        if re.match(r"--?config=", argument):
            flag, _, name = argument.partition("=")
            found[index] = f"{flag}={_path_of(name)}"
        elif argument in ("-config", "--config") and index + 1 < len(argv):
            found[index + 1] = _path_of(argv[index + 1])
    return found


def _path_of(name: str) -> str:
    if os.path.isfile(name.split(":")[0]):
        return name
    return recipes.find(name) or name


def _take_out_none(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Without the overrides of optional fields that `--config.section.field=None` ends;
    and those fields' names.

    config_flags knows a field's type by its value, and a number that a config file has
    set could not be left out again.
    """
    values = {}  # (places in `arguments`, value) of each override of an optional field
    for index, argument in enumerate(arguments):
        override = re.fullmatch(r"--?config\.([\w.]+)(?:=(.*))?", argument)
        if override and config_lib.is_optional(override[1]):
            has_own = override[2] is not None
            places = (index,) if has_own else (index, index + 1)
            value = override[2] if has_own else "".join(arguments[index + 1 : index + 2])
            values.setdefault(override[1], []).append((places, value))
    dropped, left_out = set(), []
    for name, given in values.items():
        is_none = [value.lower() == "none" for _, value in given]
        if is_none[-1]:
            left_out.append(name)
        dropped.update(
            place
            for (places, _), none in zip(given, is_none)
            if none or is_none[-1]  # the last one counts
            for place in places
        )
    kept = [argument for index, argument in enumerate(arguments) if index not in dropped]
    return kept, left_out


def _check_config_arguments(arguments: Sequence[str]) -> None:
    """Finds wrong arguments that config_flags would ignore, or report with a traceback."""
    path = None
    for index, argument in enumerate(arguments):
        whole = re.fullmatch(r"--?config(?:=(.*))?", argument)
        override = re.match(r"--?(?:no)?config\.([^=]*)", argument)
        if whole:
            path = whole[1] if whole[1] is not None else "".join(arguments[index + 1 : index + 2])
            if not os.path.isfile(path.split(":")[0]):
                raise config_lib.ConfigError(
                    f"`--config` is {path!r}, but there is no such file; try configs/advprop.py:b0,"
                    f" or the name of a recipe: {', '.join(recipes.names())}."
                )
        elif override:
            if path is None:
                raise config_lib.ConfigError(
                    f"`{argument}` comes before --config=…, the file whose field it overrides; "
                    "put it after."
                )
            config_lib.check_override_name(override[1])
