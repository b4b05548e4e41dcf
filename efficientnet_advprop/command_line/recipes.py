"""The config files that come with the package, by name: `--config=advprop:b3` is
configs/advprop.py:b3 from any directory.

In the repository they are in its folder configs/, in an installed package in a folder
of that name inside it.
"""

import ast
import importlib.util
import inspect
import os
import pathlib
import sys
from types import ModuleType
from typing import Any, Optional

from efficientnet_advprop.config.fields import ConfigError
from efficientnet_advprop.runtime.errors import misspelled

_PACKAGE = pathlib.Path(__file__).parents[1]
_SHARED = ("__init__", "base")  # what recipes have in common is none


def folder() -> pathlib.Path:
    """Returns where the config files are."""
    installed = _PACKAGE / "configs"
    return installed if installed.is_dir() else _PACKAGE.parent / "configs"


def names() -> list[str]:
    """Returns the names of all: "advprop", …, "studies/digits"."""
    files = [file for file in sorted(folder().rglob("*.py")) if file.stem not in _SHARED]
    return [file.relative_to(folder()).with_suffix("").as_posix() for file in files]


def find(name: str) -> Optional[str]:
    """Returns the path of a recipe "advprop" or "advprop:b3", with what follows the colon."""
    name, colon, variant = name.partition(":")
    return f"{folder() / name}.py{colon}{variant}" if name in names() else None


def load(name: str) -> Any:
    """Returns the config of a file or recipe; what follows a colon goes to its get_config()."""
    if not os.path.isfile(name.partition(":")[0]):
        found = find(name)
        if found is None:
            advice = misspelled(name.partition(":")[0], names())
            raise ConfigError(
                f"`--config` is {name!r}, but there is no such file{advice}; try "
                f"configs/advprop.py:b0, or the name of a recipe: {', '.join(names())}."
            )
        name = found
    path, _, variant = name.partition(":")
    try:
        return _execute(path).get_config(*([variant] if variant else []))
    except ConfigError:
        raise
    except Exception as error:  # the code of a config file may raise anything
        raise ConfigError(
            f"the config file cannot be used: {type(error).__name__}: {error}"
        ) from error


def _execute(path: str) -> ModuleType:
    name = f"recipe_{pathlib.Path(path).stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"`--config` is {path!r}, but must be a Python file: NAME.py.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where dataclasses look for their module
    spec.loader.exec_module(module)
    return module


def describe() -> list[str]:
    """Returns a line on each recipe, and one on what may follow its colon."""
    lines = []
    for name in names():
        path = folder() / f"{name}.py"
        code = ast.parse(path.read_text(encoding="utf-8"))
        summary = " ".join((ast.get_docstring(code) or "").partition("\n\n")[0].split())
        lines += ["", f"{name}: {summary}"]
        if any(getattr(node, "name", "") == "get_config" for node in code.body):  # else a study
            get_config = _execute(str(path)).get_config
            try:
                inspect.signature(get_config).bind("?")
                get_config("?")
            except TypeError:
                continue  # it takes nothing
            except ValueError as error:  # the recipe's own words for what it takes
                lines.append(f"    :{str(error).partition('must be ')[2]}")
    return lines
