"""From what was typed to what absl parses: flag files, home folders, config overrides."""

import os
import re
from typing import Sequence

from efficientnet_advprop.config import experiment
from efficientnet_advprop.config.fields import ConfigError, is_switch
from efficientnet_advprop.runtime.files import printable

_FLAG_FILE = re.compile(r"--?flagfile(?:=(.*))?", re.DOTALL)
_OVERRIDE = re.compile(r"--?(no)?config\.([^=]*)(?:=(.*))?", re.DOTALL)


def prepare(arguments: Sequence[str]) -> list[str]:
    """Returns the arguments as absl takes them; raises a `ConfigError` for what is no path."""
    prepared = []
    for argument in _with_flag_files(arguments):
        if printable(argument) != argument:
            raise ConfigError(
                f"`{printable(argument)}` is no text in UTF-8, and TensorFlow opens no such path; "
                "rename the file or folder."
            )
        prepared.append(expand_home(argument))
    return prepared


def _with_flag_files(arguments: Sequence[str], within: tuple[str, ...] = ()) -> list[str]:
    """Replaces every --flagfile=PATH by the lines of the file, as if they had been typed."""
    expanded, waiting = [], list(arguments)
    while waiting:
        argument = waiting.pop(0)
        match = _FLAG_FILE.fullmatch(argument)
        if argument == "--":
            return [*expanded, argument, *waiting]
        if match is None:
            expanded.append(argument)
            continue
        path = os.path.expanduser(match[1] if match[1] is not None else "".join(waiting[:1]))
        if match[1] is None:
            waiting = waiting[1:]
        expanded += _with_flag_files(_read_flag_file(path, within), (*within, path))
    return expanded


def _read_flag_file(path: str, within: tuple[str, ...]) -> list[str]:
    if path in within:
        raise ConfigError(f"`--flagfile` is {path!r}, which includes itself; leave it out there.")
    try:
        with open(path, encoding="utf-8-sig") as file:
            lines = [line.strip() for line in file]
    except OSError as error:
        raise ConfigError(
            f"`--flagfile` is {path!r}, which cannot be read: {error.strerror}; give a file with a "
            "flag in each line."
        ) from error
    except UnicodeError as error:
        raise ConfigError(
            f"`--flagfile` is {path!r}, which is no text in UTF-8; save it as UTF-8."
        ) from error
    flags: list[str] = []
    for line in lines:
        if line and not line.startswith(("#", "//")):
            is_pair = re.match(r"--?[\w.]+\s", line)  # "--name value" is typed as two arguments
            flags += line.split(maxsplit=1) if is_pair else [line]
    return flags


def expand_home(argument: str) -> str:
    """Expands `~` and `~user` wherever a path may begin: at the start of an argument, or after
    "=", "," or ":", as in `--suite=folder:~/pets`. Shells expand only the first of these.
    """

    def home(match: re.Match) -> str:
        found = os.path.expanduser(match[0])
        if found == match[0]:
            raise ConfigError(
                f"`{argument}` begins a path with {match[0]!r}, but there is no such user here; "
                f"write the whole path, or ./{match[0]} for a folder of that name."
            )
        return found

    return re.sub(r"(?:(?<=[=,:])|^)~[\w.-]*(?=/|,|$)", home, argument)


def take_out_overrides(arguments: Sequence[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """Returns the arguments without `--config.section.field=value`, and those as (name, value)."""
    kept, overrides, waiting = [], [], list(arguments)
    while waiting:
        argument = waiting.pop(0)
        match = _OVERRIDE.fullmatch(argument)
        if argument == "--":  # what follows are no flags, whatever it looks like
            return [*kept, argument, *waiting], overrides
        if match is None:
            kept.append(argument)
            continue
        no, name, value = match.groups()
        switches = is_switch(experiment.type_of(name))
        if no and (not switches or value is not None):
            raise ConfigError(f"`{argument}`: only a field that is true or false has a --noconfig.")
        if value is None and switches:
            value = "false" if no else "true"
        elif value is None:
            if not waiting:
                raise ConfigError(f"`{argument}` has no value; write {argument}=VALUE.")
            value = waiting.pop(0)
        overrides.append((name, value))
    return kept, overrides
