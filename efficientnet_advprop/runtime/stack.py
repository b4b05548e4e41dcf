"""Checks which TensorFlow this environment has, and whether the packages beside it fit.

    stack.check_installed()      # `keras2` and the programs do so before TensorFlow is imported

It reads what pip has recorded and imports neither TensorFlow nor numpy: where they do
not fit, their import ends in a traceback from deep inside, or ends the process.
docs/stacks.md has the table of what runs where.
"""

import importlib.util
import os
import sys
from importlib import metadata
from typing import Dict, List, NamedTuple, Optional, Tuple

from efficientnet_advprop.runtime.errors import UserError

Version = Tuple[int, ...]


class StackError(UserError, ImportError):
    """The installed packages do not fit together.

    The message is one line: the versions found, the stack wanted, the command that
    installs it.
    """


class Stack(NamedTuple):
    """Versions that are tested together, pinned in `requirements`, transitive packages
    included.

    `extra` is its name in pyproject.toml and in `make STACK=…`.
    """

    extra: str
    title: str
    pythons: Tuple[Version, Version]  # the first and the last that it takes
    requirements: str


TF215 = Stack("tf215", "TensorFlow 2.15.1", ((3, 10), (3, 11)), "requirements.txt")
TF221 = Stack(
    "tf221", "TensorFlow 2.21 with tf-keras 2.21", ((3, 10), (3, 13)), "requirements-tf221.txt"
)
TPU = Stack(
    "tpu", "tensorflow-tpu 2.20.0 with tf-keras 2.20.1", ((3, 10), (3, 13)), "requirements-tpu.txt"
)
STACKS = (TF215, TF221, TPU)

OLDEST_TENSORFLOW = (2, 15)
FIRST_WITH_KERAS_3 = (2, 16)  # whose `tf.keras` is Keras 3, unless tf-keras is asked for
# Distributions that bring the module `tensorflow`, as PyPI and the images of machines
# name them.
_TPU_BUILDS = ("tensorflow-tpu", "tf-nightly-tpu")
_BUILDS = (
    "tensorflow",
    "tensorflow-cpu",
    "tensorflow-cpu-aws",
    "tensorflow-gpu",
    "tensorflow-intel",
    "tensorflow-macos",
    "tensorflow-rocm",
    "tf-nightly",
    "tf-nightly-cpu",
    *_TPU_BUILDS,
)
# Of what TensorFlow requires, the packages whose wrong version ends its import.
_DECISIVE = ("numpy", "protobuf", "ml-dtypes")
# tensorflow-tpu 2.20.0 allows any libtpu from 0.0.14 on. With a newer one than this the
# process ends at TensorFlow's import, because libtpu lacks a function that TensorFlow
# looks up.
NEWEST_LIBTPU = (0, 0, 31)


class Environment(NamedTuple):
    """What is installed, by the names of distributions.

    `requirements` holds, of a TensorFlow and of tf-keras, the lines of their metadata.
    """

    python: Version
    versions: Dict[str, str]
    requirements: Dict[str, List[str]]

    @classmethod
    def installed(cls) -> "Environment":
        """The environment of this interpreter."""
        names = (*_BUILDS, "tf-keras", "libtpu", *_DECISIVE)
        found = {name: version for name in names if (version := installed_version(name))}
        with_requirements = [name for name in found if name in (*_BUILDS, "tf-keras")]
        return cls(
            sys.version_info[:2],
            found,
            {name: metadata.requires(name) or [] for name in with_requirements},
        )

    @property
    def builds(self) -> Dict[str, str]:
        """The distributions of TensorFlow."""
        return {name: self.versions[name] for name in _BUILDS if name in self.versions}


def check_installed() -> None:
    """Checks the environment of this interpreter, and changes nothing in it.

    Raises:
        StackError: see `check`.
    """
    environment = Environment.installed()
    if environment.builds or not importlib.util.find_spec("tensorflow"):
        check(environment)  # otherwise a build that pip knows nothing of


def check(environment: Environment) -> None:
    """Whether what is installed fits together.

    Raises:
        StackError: no TensorFlow, or two of them; one before 2.15; no tf-keras beside
            Keras 3, or another TensorFlow's; a TPU build without a libtpu that it
            loads; a numpy, protobuf or ml-dtypes that TensorFlow does not take.
    """
    problem = (
        _problem_of_tensorflow(environment)
        or _problem_of_keras(environment)
        or _problem_of_libtpu(environment)
        or _problem_of_requirements(environment)
    )
    if problem:
        raise StackError(f"{problem} {_advice(environment)}")


def _problem_of_tensorflow(environment: Environment) -> str:
    builds = environment.builds
    if not builds:
        return f"No TensorFlow is installed for Python {_dotted(environment.python)}."
    listed = " and ".join(f"{name} {version}" for name, version in builds.items())
    if len(set(builds.values())) > 1 or (len(builds) > 1 and set(builds) & set(_TPU_BUILDS)):
        return f"{listed} are both installed and overwrite each other's files."
    if not all(is_at_least(version, OLDEST_TENSORFLOW) for version in builds.values()):
        return f"{listed} is installed, but must be {_dotted(OLDEST_TENSORFLOW)} or later."
    return ""


def _problem_of_keras(environment: Environment) -> str:
    build, version = next(iter(environment.builds.items()))
    if not is_at_least(version, FIRST_WITH_KERAS_3):
        return ""
    keras = environment.versions.get("tf-keras")
    if keras is None:
        return f"{build} {version} has Keras 3, and tf-keras, which has Keras 2, is not installed."
    accepted = _accepted(environment.requirements["tf-keras"]).get("tensorflow")
    if accepted is not None and not accepted.contains(version, prereleases=True):
        return f"tf-keras {keras} takes tensorflow{accepted}, but {build} {version} is installed."
    return ""


def _problem_of_libtpu(environment: Environment) -> str:
    build, version = next(iter(environment.builds.items()))
    # The variable names the driver of a machine's image.
    if build not in _TPU_BUILDS or os.environ.get("TPU_LIBRARY_PATH"):
        return ""
    libtpu = environment.versions.get("libtpu")
    if libtpu is None:
        return f"{build} {version} needs the TPU's driver, libtpu, which is not installed."
    if version.startswith("2.20.") and _numbers(libtpu) > NEWEST_LIBTPU:
        return (
            f"libtpu is {libtpu}, with which {build} {version} ends the process at its import; the "
            f"newest that loads is {_dotted(NEWEST_LIBTPU)}."
        )
    return ""


def _problem_of_requirements(environment: Environment) -> str:
    for build, version in environment.builds.items():
        accepted = _accepted(environment.requirements[build])
        for name in _DECISIVE:
            found = environment.versions.get(name)
            if found and name in accepted and not accepted[name].contains(found, prereleases=True):
                return f"{build} {version} takes {name}{accepted[name]}, but {name} is {found}."
    return ""


def _advice(environment: Environment) -> str:
    """The stack that the environment is meant to be, and the command that makes it so."""
    builds = environment.builds
    if set(builds) & set(_TPU_BUILDS):
        candidates = [TPU]
    elif any(is_at_least(version, FIRST_WITH_KERAS_3) for version in builds.values()):
        candidates = [TF221]
    else:
        candidates = [TF215, TF221]
    for stack in candidates:
        if stack.pythons[0] <= environment.python <= stack.pythons[1]:
            command = f"pip install --no-deps -r {stack.requirements}"
            if len(builds) > 1:
                command = f"pip uninstall -y {' '.join(builds)}, then {command}"
            return f"Wanted: {stack.title}; {command} (docs/stacks.md)."
    pythons = ", ".join(
        f"{stack.title} Python {_dotted(stack.pythons[0])} to {_dotted(stack.pythons[1])}"
        for stack in STACKS
    )
    return (
        f"Wanted: another Python than {_dotted(environment.python)}. {pythons}; "
        "make PYTHON_FOR_VENV=python3.13 test (docs/stacks.md)."
    )


def installed_version(name: str) -> Optional[str]:
    """The version of an installed distribution, or None."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def is_at_least(version: str, release: Version) -> bool:
    """Whether a version such as "2.21.0rc1" is of the release (2, 16) or of a later
    one.
    """
    return _numbers(version) >= release


def _accepted(requirements: List[str]) -> dict:
    """Of the requirements that hold without extras: a distribution's name → range of
    versions.
    """
    from packaging.requirements import Requirement  # TensorFlow brings it, so not before it

    parsed = [Requirement(line) for line in requirements]
    return {
        requirement.name.lower().replace("_", "-"): requirement.specifier
        for requirement in parsed
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""})
    }


def _numbers(version: str) -> Version:
    """The leading numbers of a version: "2.21.0rc1" → (2, 21, 0)."""
    numbers = []
    for part in version.split("."):
        digits = part[: len(part) - len(part.lstrip("0123456789"))]
        if not digits:
            break
        numbers.append(int(digits))
    return tuple(numbers)


def _dotted(version: Version) -> str:
    return ".".join(map(str, version))
