"""Who may import whom: doors → training, evaluation → models, attacks, data; and two rooms that know nobody."""

import ast
import pathlib

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = "efficientnet_advprop"
# A room → the rooms of the package it must not know. `config` is the schema, a room of its own here.
FORBIDDEN = {
    "models": {"training", "evaluation", "attacks", "config", "serving"},
    "attacks": {"models", "training", "evaluation", "data", "config", "serving"},
    "data": {"models", "training", "evaluation", "attacks", "serving"},
    "evaluation": {"training"},
}


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def python_files():
    return [path for folder in (PACKAGE, "tpu_utils") for path in (ROOT / folder).rglob("*.py")]


def test_rooms_keep_to_the_direction():
    broken = []
    for room, forbidden in FORBIDDEN.items():
        files = list((ROOT / PACKAGE / room).rglob("*.py"))
        assert files, room
        for path in files:
            for name in imports(path):
                parts = name.split(".")
                if parts[0] == PACKAGE and len(parts) > 1 and parts[1] in forbidden:
                    broken.append(f"{path.relative_to(ROOT)} imports {name}")
                if parts[:2] == ["absl", "flags"]:
                    broken.append(f"{path.relative_to(ROOT)} reads flags")
                is_door = len(parts) > 1 and (ROOT / PACKAGE / f"{parts[1]}.py").exists() and parts[1] != "config"
                if parts[0] == PACKAGE and is_door:
                    broken.append(f"{path.relative_to(ROOT)} imports the door {name}")
    assert not broken


def test_tpu_utils_knows_nothing_of_ours():
    """But for its door, `python -m tpu_utils.preflight`, which like every door ties a config to one call."""
    files = [path for path in (ROOT / "tpu_utils").rglob("*.py") if path != ROOT / "tpu_utils/preflight.py"]
    assert not [f"{path}: {name}" for path in files for name in imports(path) if name.startswith(PACKAGE)]


def test_at_most_one_module_has_tensorflow_addons_and_none_has_private_interfaces():
    users = {path.name for path in python_files() if any(name.startswith("tensorflow_addons") for name in imports(path))}
    assert users <= {"augmentation.py"}
    private = [
        f"{path}: {name}"
        for path in python_files()
        for name in imports(path)
        if name.startswith(("tensorflow.python", "keras.", "tensorflow.core", "tensorflow.compiler"))
    ]
    assert not private
