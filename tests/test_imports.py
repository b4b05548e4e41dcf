"""Who may import whom: a house of floors, in which no arrow runs up and rooms form no
circle.

The floors stand in `FLOORS`; a room may import from lower floors and from itself. A
picture of the imports is drawn by any tool that reads them; this test is what holds
them.
"""

import ast
import pathlib
import subprocess
import sys
from typing import Optional

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = "efficientnet_advprop"
# From the ground up: rooms (folders or single modules) of one floor do not import each
# other.
FLOORS = [
    {"tpu_utils"},
    {"efficientnet_advprop.runtime"},
    {"efficientnet_advprop.keras2", "efficientnet_advprop.config"},
    {"efficientnet_advprop.keras_common"},
    {"efficientnet_advprop.models", "efficientnet_advprop.attacks"},
    {"efficientnet_advprop.data"},
    {"efficientnet_advprop.images"},
    {"efficientnet_advprop.evaluation"},
    {"efficientnet_advprop.training", "efficientnet_advprop.reports"},
    {"efficientnet_advprop.keras", "efficientnet_advprop.keras3"},
    {"efficientnet_advprop.serving"},
    {"efficientnet_advprop.command_line", "efficientnet_advprop.fine_tuning"},
    {"advprop_experiments", "advprop_preflight"},  # they use the package; nothing in it uses them
]
# These start without TensorFlow, so that --help, --list and a look at a config take no
# seconds.
WITHOUT_TENSORFLOW = [
    "tpu_utils.platforms",
    "efficientnet_advprop.runtime.errors",
    "efficientnet_advprop.runtime.files",
    "efficientnet_advprop.runtime.directory_lock",
    "efficientnet_advprop.runtime.process",
    "efficientnet_advprop.runtime.stack",
    "efficientnet_advprop.config.experiment",
    "efficientnet_advprop.config.fields",
    "efficientnet_advprop.config.methods",
    "efficientnet_advprop.config.suites",
    "efficientnet_advprop.config.rules",
    "efficientnet_advprop.config.tables",
    "efficientnet_advprop.config.pgd_settings",
    "efficientnet_advprop.runtime.branches",
    "efficientnet_advprop.runtime.pass_mode",
    *(
        f"efficientnet_advprop.{room}.{path.stem}"
        for room in ("keras3", "keras_common")
        for path in sorted((ROOT / PACKAGE / room).glob("*.py"))
    ),
]


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def python_files():
    folders = (PACKAGE, "tpu_utils", "advprop_experiments", "advprop_preflight")
    return [path for folder in folders for path in (ROOT / folder).rglob("*.py")]


def room_of(name: str) -> Optional[str]:
    """The room of a module or of a name in it; None for a program, and for other packages."""
    return next(
        (room for floor in FLOORS for room in floor if f"{name}.".startswith(f"{room}.")), None
    )


def module_name(path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def is_program(name: str) -> bool:
    """Whether `name` is a module at the top of a package that no room of a floor is."""
    parts = name.split(".")
    if len(parts) < 2 or parts[0] not in (PACKAGE, "tpu_utils"):
        return False
    return (ROOT / parts[0] / f"{parts[1]}.py").exists() and room_of(name) is None


def test_no_import_runs_up():
    floor_of = {room: index for index, floor in enumerate(FLOORS) for room in floor}
    broken = []
    for path in python_files():
        own = room_of(module_name(path))
        if own is None:
            continue
        for name in imports(path):
            other = room_of(name)
            if other not in (None, own) and floor_of[other] >= floor_of[own]:
                broken.append(f"{path.relative_to(ROOT)} imports {name}")
            if is_program(name):
                broken.append(f"{path.relative_to(ROOT)} imports the program {name}")
            if name.startswith("absl.flags") and own != "efficientnet_advprop.command_line":
                broken.append(f"{path.relative_to(ROOT)} reads flags")
    assert not broken, "\n".join(broken)


def test_every_import_of_ours_exists():
    """Covers tests, examples and benchmarks, whose imports inside of functions run late."""
    folders = (PACKAGE, "tpu_utils", "advprop_experiments", "advprop_preflight")
    own = tuple(f"{folder}." for folder in folders)
    files = [
        *python_files(),
        *(
            path
            for room in ("tests", "examples", "benchmarks")
            for path in (ROOT / room).rglob("*.py")
        ),
    ]
    missing = []
    for path in files:
        for name in filter(lambda name: name.startswith(own), imports(path)):
            module = ROOT / name.rpartition(".")[0].replace(".", "/")
            if not (module.is_dir() or module.with_suffix(".py").exists()):
                missing.append(f"{path.relative_to(ROOT)} imports {name}")
    assert not missing, "\n".join(missing)


def test_networks_and_attacks_read_only_tables_of_the_config():
    """They are a library: a field or a flag is none of their business."""
    allowed = tuple(f"{PACKAGE}.config.{name}." for name in ("tables", "pgd_settings"))
    broken = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in python_files()
        if room_of(module_name(path)) in (f"{PACKAGE}.models", f"{PACKAGE}.attacks")
        for name in imports(path)
        if room_of(name) == f"{PACKAGE}.config" and not name.startswith(allowed)
    ]
    assert not broken, "\n".join(broken)


def test_every_folder_is_a_room():
    folders = {module_name(path).rsplit(".", 1)[0] for path in python_files()} - {
        PACKAGE,
        "tpu_utils",
    }
    assert not [folder for folder in folders if room_of(folder) is None]
    assert not [
        room
        for floor in FLOORS
        for room in floor
        if not list((ROOT / room.replace(".", "/")).parent.glob(f"{room.split('.')[-1]}*"))
    ]


def test_tpu_utils_imports_nothing_of_the_package():
    files = (ROOT / "tpu_utils").rglob("*.py")
    assert not [
        f"{path}: {name}" for path in files for name in imports(path) if name.startswith(PACKAGE)
    ]


@pytest.mark.parametrize("module", WITHOUT_TENSORFLOW)
def test_the_ground_imports_no_tensorflow(module):
    path = ROOT / f"{module.replace('.', '/')}.py"
    at_import = [
        node
        for node in ast.parse(path.read_text()).body
        if isinstance(node, (ast.Import, ast.ImportFrom))
    ]
    names = [getattr(node, "module", None) or node.names[0].name for node in at_import]
    assert not [name for name in names if name.startswith("tensorflow")]


def test_programs_define_their_flags_without_tensorflow():
    """So that --help and a wrong flag take no seconds."""
    programs = sorted(
        path.stem for path in (ROOT / PACKAGE).glob("*.py") if "program.run(" in path.read_text()
    )
    assert len(programs) >= 10
    # One process for all, each with flags of its own.
    look = (
        "import importlib, sys\n"
        "from absl import flags\n"
        "for name in sys.argv[1:]:\n"
        f"    importlib.import_module('{PACKAGE}.' + name)\n"
        "    if 'tensorflow' in sys.modules: sys.exit(name)\n"
        "    for flag in list(flags.FLAGS): delattr(flags.FLAGS, flag)\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", look, *programs], cwd=ROOT, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr


def test_at_most_one_module_has_tensorflow_addons_and_none_has_private_interfaces():
    users = {
        path.name
        for path in python_files()
        if any(name.startswith("tensorflow_addons") for name in imports(path))
    }
    assert users <= {"augmentation.py"}
    private = [
        f"{path}: {name}"
        for path in python_files()
        for name in imports(path)
        if name.startswith(
            (
                "tensorflow.python",
                "keras.src",
                "tf_keras.src",
                "tensorflow.core",
                "tensorflow.compiler",
            )
        )
    ]
    assert not private
