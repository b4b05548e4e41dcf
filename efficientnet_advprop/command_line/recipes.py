"""The config files that come with the package, by name: `--config=advprop:b3` is
configs/advprop.py:b3 from any directory.

In the repository they are in its folder configs/, in an installed package in a folder
of that name inside it.
"""

import pathlib
from typing import Optional

_PACKAGE = pathlib.Path(__file__).parents[1]
_SHARED = ("__init__", "base")  # what recipes have in common is none


def folder() -> pathlib.Path:
    """Where the config files are."""
    installed = _PACKAGE / "configs"
    return installed if installed.is_dir() else _PACKAGE.parent / "configs"


def names() -> list[str]:
    """The names of all: "advprop", …, "studies/digits"."""
    files = [file for file in sorted(folder().rglob("*.py")) if file.stem not in _SHARED]
    return [file.relative_to(folder()).with_suffix("").as_posix() for file in files]


def find(name: str) -> Optional[str]:
    """The path of a config file by its name, or None.

    Args:
        name: such as "advprop", "advprop:b3" or "studies/digits"; what follows a colon
            is kept.
    """
    name, colon, variant = name.partition(":")
    return f"{folder() / name}.py{colon}{variant}" if name in names() else None
