"""The package as pip installs it: a wheel in an environment of its own, used from
another directory.
"""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import venv
import zipfile

import pytest

ROOT = pathlib.Path(__file__).parents[2]
SHIPPED = (
    "efficientnet_advprop",
    "tpu_utils",
    "configs",
    "pyproject.toml",
    "setup.py",
    "README.md",
    "advprop_experiments",
    "advprop_preflight",
)


def run(command, folder):
    """Runs a command as a user of the installed package would: without the repository
    on Python's path.
    """
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True)


@pytest.fixture(scope="module")
def wheels(tmp_path_factory):
    """The package and its outbuildings by name, built from a copy: nothing is left behind in
    the repository.
    """
    folder = tmp_path_factory.mktemp("wheel")
    for name in SHIPPED:
        source = ROOT / name
        if source.is_dir():
            ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
            shutil.copytree(source, folder / "source" / name, ignore=ignored)
        else:
            shutil.copy(source, folder / "source" / name)
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--quiet"]
    sources = [".", "./advprop_experiments", "./advprop_preflight"]
    built = run([*build, "--wheel-dir", str(folder), *sources], folder / "source")
    assert built.returncode == 0, built.stderr
    return {path.name.split("-")[0]: path for path in folder.glob("*.whl")}


@pytest.fixture(scope="module")
def wheel(wheels):
    return wheels["efficientnet_advprop"]


def install(wheel, folder):
    python = folder / "venv/bin/python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet"]
    installed = run([*pip, "--no-deps", "--no-index", str(wheel)], folder)
    assert installed.returncode == 0, installed.stderr


@pytest.fixture(scope="module")
def environment(wheel, tmp_path_factory):
    """Nothing but the wheel, and TensorFlow with its company from this environment:
    another copy would be 2 GB.
    """
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder / "venv", with_pip=False)
    install(wheel, folder)
    (site_packages,) = (folder / "venv/lib").glob("python*/site-packages")
    company = [path for path in sys.path if path.endswith("site-packages")]
    (site_packages / "company.pth").write_text("\n".join(company))
    return folder


def test_the_wheel_has_every_file_that_is_read_at_run_time(wheel):
    contents = set(zipfile.ZipFile(wheel).namelist())
    for folder in ("efficientnet_advprop", "tpu_utils", "configs"):
        for path in (ROOT / folder).rglob("*"):
            name = path.relative_to(ROOT).as_posix()
            if folder == "configs":
                name = f"efficientnet_advprop/{name}"
            if path.is_file() and "__pycache__" not in name:
                assert name in contents, name


def test_the_command_lists_the_programs(environment):
    told = run([environment / "venv/bin/advprop"], environment)
    assert told.returncode == 0, told.stderr
    programs = [path.stem for path in (ROOT / "efficientnet_advprop").glob("*.py")]
    listed = {line.split()[0] for line in told.stdout.splitlines() if line.startswith("  ")}
    assert {"train", "evaluate", "export", "classify", "study", "demo", "recipes"} <= listed
    assert listed - {"recipes"} < set(programs)
    wrong = run([environment / "venv/bin/advprop", "trian"], environment)
    assert wrong.returncode == 2
    assert wrong.stderr == "error: `trian` is no program; did you mean train.\n"
    recipes = run([environment / "venv/bin/advprop", "recipes"], environment)
    assert recipes.returncode == 0 and "\nadvprop: " in recipes.stdout, recipes.stderr


def test_a_trainer_carries_demo_studies_and_preflight_only_if_asked(wheels, environment):
    names = {
        name.split("/")[0] for name in zipfile.ZipFile(wheels["efficientnet_advprop"]).namelist()
    }
    assert not any(name.startswith("advprop_") for name in names)
    advprop = environment / "venv/bin/advprop"
    commands = {
        "experiments": ["study", "--study=studies/digits", "--list"],
        "preflight": ["preflight", "--config=advprop:b0", "--compiler_python=none"],
    }
    for extra, command in commands.items():
        without = run([advprop, *command], environment)
        assert without.returncode == 1 and len(without.stderr.splitlines()) == 1, without.stderr
        assert f"efficientnet-advprop[{extra}]" in without.stderr
        install(wheels[f"efficientnet_advprop_{extra}"], environment)
        python = environment / "venv/bin/python"
        assert run([python, "-c", f"import advprop_{extra}"], environment).returncode == 0
    told = run([advprop, *commands["experiments"]], environment)
    assert told.returncode == 0 and "to do" in told.stdout, told.stderr
    metadata = zipfile.ZipFile(wheels["efficientnet_advprop"])
    (described,) = [name for name in metadata.namelist() if name.endswith("/METADATA")]
    for extra in commands:
        line = f'Requires-Dist: efficientnet-advprop-{extra}==0.1.0; extra == "{extra}"'
        assert line in metadata.read(described).decode()
    for name in ("advprop_experiments", "advprop_preflight"):
        contents = set(zipfile.ZipFile(wheels[f"efficientnet_{name}"]).namelist())
        for path in (ROOT / name).iterdir():
            if path.suffix in (".py", ".jinja"):
                assert f"{name}/{path.name}" in contents


@pytest.mark.slow
def test_the_digits_are_trained_from_another_directory(environment):
    """Two steps of a tiny network, by a recipe's name."""
    command = [
        environment / "venv/bin/advprop",
        "train",
        "--config=digits:vanilla",
        "--data_dir=data",
        "--model_dir=run",
        "--config.model.width_coefficient=0.1",
        "--config.model.depth_coefficient=0.1",
        "--config.training.num_epochs=0.2",
        "--config.data.image_size=32",
        "--config.training.global_batch_size=16",
        "--config.optimizer.warmup_epochs=0",
        "--config.training.eval_batch_size=500",
    ]
    trained = run(command, environment)
    assert trained.returncode == 0, trained.stderr
    saved = json.loads((environment / "run/config.json").read_text())
    assert saved["data"]["source"] == "digits" and saved["training"]["global_batch_size"] == 16
    reports = (environment / "run/metrics.jsonl").read_text().splitlines()
    # A fifth of 300 images in batches of 16 is 3.75 steps; the last one is not begun.
    assert json.loads(reports[-1])["step"] == 3 and "eval_top1" in json.loads(reports[-1])
