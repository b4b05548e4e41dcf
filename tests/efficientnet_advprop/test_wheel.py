"""The package as pip installs it: a wheel in an environment of its own, used from
another directory.
"""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import sysconfig
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
)


def run(command, folder):
    """Runs a command as a user of the installed package would: without the repository
    on Python's path.
    """
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy, so that nothing is left behind in the repository."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in SHIPPED:
        source = ROOT / name
        if source.is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(source, folder / "source" / name, ignore=ignored)
        else:
            shutil.copy(source, folder / "source" / name)
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--quiet"]
    built = run([*build, "--wheel-dir", str(folder), str(folder / "source")], folder)
    assert built.returncode == 0, built.stderr
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def environment(wheel, tmp_path_factory):
    """Nothing but the wheel, and TensorFlow with its company from this environment:
    another copy would be 2 GB.
    """
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder / "venv", with_pip=False)
    python = folder / "venv/bin/python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet"]
    installed = run([*pip, "--no-deps", "--no-index", str(wheel)], folder)
    assert installed.returncode == 0, installed.stderr
    (site_packages,) = (folder / "venv/lib").glob("python*/site-packages")
    (site_packages / "company.pth").write_text(sysconfig.get_path("purelib") + "\n")
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
    assert {"train", "evaluate", "export", "classify", "study", "demo"} <= listed < set(programs)
    wrong = run([environment / "venv/bin/advprop", "trian"], environment)
    assert wrong.returncode == 2 and wrong.stderr.startswith("error: `trian` is no program; ")


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
