"""Checks which TensorFlow this environment has, and whether the packages beside it fit.

It reads what pip has recorded and imports neither TensorFlow nor numpy: where they do
not fit, their import ends in a traceback from deep inside, or ends the process.
docs/stacks.md has the table of what runs where.
"""

import importlib.util
import os
import sys
from importlib import metadata
from typing import Optional

from packaging.requirements import Requirement
from packaging.version import Version

from efficientnet_advprop.runtime.errors import UserError

FIRST_WITH_KERAS_3 = "2.16.dev0"  # from here on `tf.keras` is Keras 3
# tensorflow-tpu 2.20 allows any libtpu from 0.0.14 on, but a newer one than this lacks a
# function that TensorFlow looks up, and ends the process.
NEWEST_LIBTPU = "0.0.31"
# The pins that are tested together, and the first and last Python 3 that take them.
PINS = {
    "requirements.txt": (10, 11),
    "requirements-tf221.txt": (10, 13),
    "requirements-tpu.txt": (10, 13),
}
# Distributions that bring the module `tensorflow`, on PyPI and on the images of machines.
_TPU_BUILDS = ("tensorflow-tpu", "tf-nightly-tpu")
_BUILDS = (
    *("tensorflow", "tensorflow-cpu", "tensorflow-cpu-aws", "tensorflow-gpu", "tensorflow-intel"),
    *("tensorflow-macos", "tensorflow-rocm", "tf-nightly", "tf-nightly-cpu", *_TPU_BUILDS),
)
# Of what TensorFlow and tf-keras require, that whose wrong version ends their import.
_DECISIVE = ("numpy", "protobuf", "ml-dtypes", "tensorflow")


class StackError(UserError, ImportError):
    """The installed packages do not fit together."""


def check_installed() -> None:
    """Raises a `StackError` unless the packages of this environment fit together."""
    names = (*_BUILDS, "tf-keras", "libtpu", *_DECISIVE)
    versions = {name: version for name in names if (version := installed_version(name))}
    if not set(versions) & set(_BUILDS) and importlib.util.find_spec("tensorflow"):
        return  # a build that pip knows nothing of
    stated = {
        name: metadata.requires(name) or [] for name in (*_BUILDS, "tf-keras") if name in versions
    }
    check(versions, stated, sys.version_info.minor)


def check(versions: dict[str, str], requirements: dict[str, list[str]], python_minor: int) -> None:
    """Raises a `StackError` of one line: what was found, and the command that mends it.

    `versions` are those of the installed distributions that count, `requirements` what
    TensorFlow's build and tf-keras state, `python_minor` is 11 for Python 3.11.
    """
    builds = {name: versions[name] for name in _BUILDS if name in versions}
    if not builds:
        problem = f"No TensorFlow is installed for Python 3.{python_minor}."
    else:
        problem = _problem(builds, versions, requirements)
    if problem:
        raise StackError(f"{problem} {_advice(builds, python_minor)}")


def _problem(
    builds: dict[str, str], versions: dict[str, str], requirements: dict[str, list[str]]
) -> str:
    build, version = next(iter(builds.items()))
    listed = " and ".join(f"{name} {number}" for name, number in builds.items())
    # A meta package and the build that it stands for have one version.
    if len(set(builds.values())) > 1 or (len(builds) > 1 and set(builds) & set(_TPU_BUILDS)):
        return f"{listed} are both installed and overwrite each other's files."
    if not is_at_least(version, "2.15.dev0"):
        return f"{listed} is installed, but must be 2.15 or later."
    if is_at_least(version, FIRST_WITH_KERAS_3) and "tf-keras" not in versions:
        return f"{build} {version} has Keras 3, and tf-keras, which has Keras 2, is not installed."
    # The variable names the driver of a machine's image.
    if build in _TPU_BUILDS and not os.environ.get("TPU_LIBRARY_PATH"):
        libtpu = versions.get("libtpu")
        if libtpu is None:
            return f"{build} {version} needs the TPU's driver, libtpu, which is not installed."
        if version.startswith("2.20.") and Version(libtpu) > Version(NEWEST_LIBTPU):
            return (
                f"libtpu is {libtpu}, with which {build} {version} ends the process at its import;"
                f" the newest that loads is {NEWEST_LIBTPU}."
            )
    for name, lines in requirements.items():
        for requirement in map(Requirement, lines):
            needed = requirement.name.lower().replace("_", "-")
            found = version if needed == "tensorflow" else versions.get(needed)
            holds = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
            if needed in _DECISIVE and found and holds:
                if not requirement.specifier.contains(found, prereleases=True):
                    return (
                        f"{name} {versions[name]} takes {needed}{requirement.specifier}, but "
                        f"{build if needed == 'tensorflow' else needed} is {found}."
                    )
    return ""


def _advice(builds: dict[str, str], python_minor: int) -> str:
    wanted = ["requirements.txt", "requirements-tf221.txt"]
    if set(builds) & set(_TPU_BUILDS):
        wanted = ["requirements-tpu.txt"]
    elif any(is_at_least(version, FIRST_WITH_KERAS_3) for version in builds.values()):
        wanted = ["requirements-tf221.txt"]
    for pins in wanted:
        first, last = PINS[pins]
        if first <= python_minor <= last:
            removal = f"pip uninstall -y {' '.join(builds)}, then " if len(builds) > 1 else ""
            return f"Wanted: {removal}pip install --no-deps -r {pins} (docs/stacks.md)."
    return "Wanted: Python 3.10 to 3.13 (docs/stacks.md); make PYTHON_FOR_VENV=python3.13 test."


def installed_version(name: str) -> Optional[str]:
    """Returns the version of an installed distribution, or None."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def is_at_least(version: str, release: str) -> bool:
    """Returns whether a version such as "2.21.0rc1" is of this release or of a later one."""
    return Version(version) >= Version(release)
