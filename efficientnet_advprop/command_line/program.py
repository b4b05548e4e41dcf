"""Runs the main function of a program: reads its flags and config, reports errors.

    _CONFIG = program.define_config_flag()
    if __name__ == "__main__":
        program.run(main)

A mistake of the user ends with one message on stderr and exit code 2 (flags, config) or
1 (anything later), Ctrl-C with one line and 130; without a word and with 141, if nobody
reads the output any more. A traceback always means a bug of this package.
"""

from efficientnet_advprop.runtime import process  # isort: skip  # first: see there

import functools
import importlib.util
import logging
import os
import re
import sys
import textwrap
from typing import Callable, Optional, Sequence

# TensorFlow 2.15 logs three meaningless "errors" about CUDA factories when it starts;
# real errors reach Python as exceptions.
os.environ["TF_CPP_MIN_LOG_LEVEL"] = os.environ.get("TF_CPP_MIN_LOG_LEVEL") or "3"
logging.getLogger("tensorflow").setLevel(logging.WARNING)
process.greet_in_silence("tensorflow")

from absl import app, flags  # noqa: E402

from efficientnet_advprop.command_line import arguments, recipes  # noqa: E402
from efficientnet_advprop.config import experiment  # noqa: E402
from efficientnet_advprop.config.fields import ConfigError  # noqa: E402
from efficientnet_advprop.runtime.errors import (  # noqa: E402
    PlatformError,
    UsageError,
    UserError,
    brief_message,
    misspelled,
    shorten,
)
from efficientnet_advprop.runtime.stack import StackError  # noqa: E402

# TensorFlow notes each file that it writes, by absl's logger, at the level of this project's notes.
logging.getLogger("absl").addFilter(
    lambda note: note.levelno >= logging.WARNING or "/tensorflow/" not in note.pathname
)
BAD_USAGE = UsageError.exit_code
FAILED = UserError.exit_code
_HELP_WIDTH = 100
flags.disclaim_key_flags()  # the flags belong to the program that defines them and its --help

_overrides: list[tuple[str, str]] = []  # of the config's fields: (name, value as text)


def define_config_flag() -> flags.FlagHolder:
    """Defines `--config`; the flags of its fields, `--config.section.field`, go with it."""
    return flags.DEFINE_string(
        "config",
        None,
        "config file with an optional variant, such as configs/advprop.py:b0, or the name of a "
        f"recipe ({', '.join(recipes.names())}): advprop:b0; `advprop recipes` says what may "
        "follow the colon. --config.attack.epsilon=2 overrides a field.",
    )


def read_config(flag: flags.FlagHolder) -> experiment.ExperimentConfig:
    """Returns the validated config of the flag, with the fields that were overridden."""
    if flag.value is None:
        raise ConfigError(
            "`--config` is missing; give a config file, such as --config=configs/advprop.py:b0, "
            "or a name, such as --config=advprop:b0."
        )
    config = recipes.load(flag.value)
    if not isinstance(config, experiment.ExperimentConfig):
        raise ConfigError(
            f"`--config`: its get_config() returned {type(config).__name__}, "
            "but must return an ExperimentConfig."
        )
    for name, value, _ in experiment.flatten(config):  # a path in the file: init.checkpoint
        if isinstance(value, str) and value.startswith("~"):
            experiment.override(config, name, arguments.expand_home(value))
    apply_overrides(config)
    config.validate()
    return config


def apply_overrides(config: experiment.ExperimentConfig) -> None:
    """Sets the fields that the command line gives, as in `--config.attack.epsilon=2`."""
    for name, text in _overrides:
        experiment.override(config, name, text)


def run(
    main: Callable[[Sequence[str]], Optional[int]],
    takes_arguments: bool = False,
    takes_overrides: bool = False,
    sigterm_exit_code: Optional[int] = None,
) -> None:
    """Parses the flags, runs `main(argv)` and exits with its result, None standing for 0.

    A `UserError` or `PlatformError` ends with its message and its own exit code, an error
    of a file system with its message and 1. At the beginning of a path in any flag or
    argument, `~` means the home folder. With `takes_arguments`, `main` receives those that
    are no flags after the program's name; others are refused. With `takes_overrides`, or with
    `--config`, fields of the config may be overridden. `sigterm_exit_code` None leaves SIGTERM
    to end the process at once.
    """
    process.handle_interrupt()
    if sigterm_exit_code is not None:
        process.handle_sigterm(sigterm_exit_code)

    def guarded(argv):
        process.stop.is_running = True
        try:
            if not takes_arguments:
                refuse_arguments(argv)
            code = main(argv)
            sys.stdout.flush()
            return code
        except BaseException as error:
            return _report(error)

    try:
        has_config = takes_overrides or "config" in flags.FLAGS
        app.run(guarded, flags_parser=functools.partial(_parse_flags, has_config))
    except SystemExit as end:
        process.ends_with(end.code if isinstance(end.code, int) else int(end.code is not None))
        raise
    except BaseException:
        process.ends_with(FAILED)
        raise


def _report(error: BaseException) -> int:
    """Prints what ended the program; returns the exit code. Raises `error` if it is a bug."""
    if process.stop.received is not None:  # whatever became of the KeyboardInterrupt
        told = str(error) if isinstance(error, KeyboardInterrupt) else ""
        print(told or process.stop.messages[process.stop.received], file=sys.stderr, flush=True)
        return process.stop.exit_codes[process.stop.received]
    if isinstance(error, KeyboardInterrupt):
        print(str(error) or "stopped by Ctrl-C.", file=sys.stderr, flush=True)
        return process.INTERRUPTED
    if isinstance(error, (UserError, PlatformError)):
        return _print_error(error, error.exit_code)
    if isinstance(error, BrokenPipeError):
        return process.leave_output(error)
    if isinstance(error, OSError):
        return _print_error(error, FAILED)
    if _is_of_a_file_system(error):
        return _print_error(brief_message(error), FAILED)
    raise error


def print_lines(lines: Sequence[str]) -> None:
    """Prints them; ends the program where they cannot be written."""
    try:
        print(*lines, sep="\n", flush=True)
    except OSError as error:
        sys.exit(process.leave_output(error))


def require_extra(name: str) -> None:
    """Raises a `StackError` unless the distribution is installed that the extra `name` brings."""
    if importlib.util.find_spec(f"advprop_{name}") is None:
        raise StackError(
            f"This program needs advprop_{name}, which is not installed: pip install "
            f"'efficientnet-advprop[{name}]', or in the repository ./advprop_{name}."
        )


def refuse_arguments(argv: Sequence[str]) -> None:
    """Raises a `ConfigError` if arguments follow the program's name."""
    if len(argv) > 1:
        raise ConfigError(f"`{argv[1]}` is not a flag; flags look like --name=value.")


def _is_of_a_file_system(error: BaseException) -> bool:
    """Returns whether TensorFlow's access to files raised `error`: a disk is full, say."""
    # Operations of graphs raise the same classes. There they are bugs, and the error names
    # the operation.
    tensorflow = sys.modules.get("tensorflow")  # if it is not loaded, it has accessed no files
    return (
        tensorflow is not None
        and isinstance(error, tensorflow.errors.OpError)
        and error.op is None
        and error.node_def is None
    )


def _print_error(error, code: int) -> int:
    print(f"error: {shorten(str(error))}", file=sys.stderr, flush=True)
    return code


def _parse_flags(has_config: bool, argv: Sequence[str]) -> Sequence[str]:
    try:
        if _wants_help(argv[1:]):
            _show_help(has_config)
            sys.stdout.flush()
            sys.exit(0)
        prepared = arguments.prepare(argv[1:])
        if has_config:
            prepared, _overrides[:] = arguments.take_out_overrides(prepared)
        return flags.FLAGS([argv[0], *prepared])
    except OSError as error:
        sys.exit(process.leave_output(error))
    except flags.UnrecognizedFlagError as error:
        sys.exit(_print_error(_unknown_flag(error.flagname, has_config), BAD_USAGE))
    except (flags.Error, ConfigError) as error:
        sys.exit(_print_error(error, BAD_USAGE))


def _unknown_flag(name: str, has_config: bool) -> str:
    known = [*flags.FLAGS, *(f"no{flag}" for flag in flags.FLAGS if flags.FLAGS[flag].boolean)]
    advice = misspelled(name, [f"--{other}" for other in known], f"--{name}")
    if not advice and has_config and (fields := experiment.suggest(name)):
        advice = f"; of the config {fields.rstrip('.')}"
    return f"`--{name}` is no flag of this program{advice or '; --help lists them'}."


def _wants_help(arguments: Sequence[str]) -> bool:
    """Returns whether the arguments ask for help."""
    return any(
        argument in ("-h", "-?", "--help", "-help", "--helpshort", "--helpfull")
        for argument in (arguments[: arguments.index("--")] if "--" in arguments else arguments)
    )


def _show_help(has_config: bool) -> None:
    """Prints what the program does, its flags, and the config's fields by section."""
    # absl's own help has neither the config's fields nor a layout for terminals.
    lines = [(sys.modules["__main__"].__doc__ or "").strip(), "", "Flags:"]
    for flag in flags.FLAGS.get_key_flags_for_module(sys.argv[0]):
        name = f"--[no]{flag.name}" if flag.boolean else f"--{flag.name}"
        choices = getattr(flag.parser, "enum_values", None)
        choices = f"={{{'|'.join(choices)}}}" if choices else ""
        meaning = flag.help.partition(">: ")[2] if choices else flag.help  # absl puts them there
        default = "" if flag.default in (None, "", False) else f" (default: {flag.default})"
        lines += [*_wrapped(name + choices, 2), *_wrapped(_sentence(meaning + default), 6)]
    if has_config:
        lines += ["", "Fields of the config, with their defaults before the file's changes:"]
        for title, fields in experiment.describe_fields():
            lines += ["", *_wrapped(_sentence(title), 2)]
            for name, default, meaning in fields:
                lines += [f"    --config.{name}={default}", *_wrapped(_sentence(meaning), 8)]
    print("\n".join(lines), flush=True)


def _sentence(text: str) -> str:
    """Returns the text with a capital, unless it starts with a name, and a full stop."""
    text = " ".join(text.split())
    starts_with_name = re.match(r"[\w.]*[_:.\d']", text.partition(" ")[0])
    text = text if starts_with_name else text[:1].upper() + text[1:]
    return text if text.endswith(".") else f"{text}."


def _wrapped(text: str, indent: int) -> list[str]:
    margin = " " * indent
    return textwrap.wrap(text, _HELP_WIDTH, initial_indent=margin, subsequent_indent=margin)
