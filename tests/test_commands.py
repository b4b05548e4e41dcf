"""Every command of README.md, CONTRIBUTING.md and docs/: run as it stands there, or
said why not.

The commands run in a subprocess, in a scratch folder that has what a reader has at that
place, and outside of the clone. Google's bucket and the hub are servers on this machine, which
commands reach by what a shell behind a company's proxy sets (https_proxy, SSL_CERT_FILE,
HF_ENDPOINT, HF_TOKEN): the programs download small networks and upload as they do elsewhere.
"""

import contextlib
import functools
import importlib.util
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import urllib.parse
import venv

import numpy as np
import pytest
import tensorflow as tf

from efficientnet_advprop.keras import add_auxiliary_batch_norms
from efficientnet_advprop.keras2 import keras
from efficientnet_advprop.models import save_released_checkpoint
from efficientnet_advprop.models.checkpoints import published_checkpoints, timm_weights
from tests.conftest import load_tiny, make_tiny
from tests.servers import make_hub, proxy_of

ROOT = pathlib.Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
STARTS = r"(?:python[\d.]*|make|tensorboard|docker|curl|pip|srun|gcloud|kubectl)\s"

HUB_LIBRARY = importlib.util.find_spec("huggingface_hub")
# Why a command is not run here, by a pattern of it. Its flags are checked nevertheless.
NOT_RUN = {
    r"^make ": "its target is looked at instead: it makes an environment, or is this test suite",
    r"^(gcloud|srun|docker|tensorboard|kubectl|curl) ": "a program of other people",
    r"-m venv ": "makes an environment",
    r"^pip (install|wheel) ": (
        "changes an environment; `test_wheel` installs the package into one of its own"
    ),
    r"gs://|BUCKET|CONFIG\b|SUITES": "needs a bucket",
    r"…": "stands for many commands",
    r"--data_dir=DATA ": "needs a data set and a day",
    r"--imagenet_dir=": "needs ImageNet's archives; `test_conversion` has such of its own",
    r"--tfds=": "needs a data set of TensorFlow Datasets; `test_conversion` has one of its own",
    r"^python benchmarks/(?!preflight\.py$)": "measures: minutes of an idle machine",
    r"--study=configs/studies/": "half an hour, or several",
    r"--autoattack_images=": "trains the demo's networks, and attacks for minutes",
    r"advprop\.preflight": "needs the TPU's compiler",
    r"--format=onnx": "needs an environment with tf2onnx",
    r"localhost:8501|grpc_client": "needs TensorFlow Serving; `test_clients` has a server",
    r"=/data\b": "a folder of the reader's; `test_evaluation_run` has stand-ins",
}
# What is appended so that a command takes seconds, by a pattern of it.
SHORTENED = {
    r"\.train --config=configs/digits": (
        "--config.training.num_epochs=3 --config.training.evaluate_every_epochs=3 "
        "--config.model.width_coefficient=0.25 --config.data.num_train_examples=100"
    ),
    r"\.evaluate --model_dir=runs/digits": "--max_images=8",
    r"\.fine_tune (?!.*--dry_run)": (
        "--config.training.num_epochs=0.5 --corrupted_images=2 --config.data.image_size=32"
    ),
}


def commands() -> list[str]:
    """The commands of all documents in their order, each once."""
    found = []
    for path in DOCUMENTS:
        text = re.sub(r"\s*\\\n\s*", " ", path.read_text())
        for match in re.finditer(rf"^(?: {{4,}})?(?:\$ )?({STARTS}.*)$", text, re.M):
            command = re.sub(r"\s+#\s.*$", "", match[1]).strip()
            found.append(command)
    return list(dict.fromkeys(found))


def reason_not_to_run(command: str):
    if "hf://" in command and HUB_LIBRARY is None:
        return "needs huggingface_hub"
    return next((why for pattern, why in NOT_RUN.items() if re.search(pattern, command)), None)


RUN = [command for command in commands() if reason_not_to_run(command) is None]


def test_every_reason_is_of_a_command():
    stale = [p for p in NOT_RUN if not any(re.search(p, command) for command in commands())]
    stale += [p for p in SHORTENED if not any(re.search(p, command) for command in RUN)]
    assert not stale
    assert len(RUN) >= 10


@functools.cache
def help_of(module: str) -> str:
    command = [sys.executable, "-m", module, "--help"]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT).stdout


PROGRAMS = [
    command
    for command in commands()
    if re.search(r"-m (efficientnet_advprop|tpu_utils)\.", command)
]


@pytest.mark.parametrize("command", PROGRAMS)
def test_the_flags_of_a_command_exist(command):
    module = re.search(r"-m ([\w.]+)", command)[1]
    text = help_of(module)
    arguments = command.partition(f"-m {module}")[2]
    for flag in re.findall(r" --([a-z]\w*)", arguments):
        assert re.search(rf"^ +--(?:\[no\])?{flag}\b", text, re.M), flag


def make_targets():
    return sorted(
        {
            word
            for command in commands()
            if command.startswith("make ")
            for word in shlex.split(command, comments=True)[1:]
            if "=" not in word
        }
    )


@pytest.mark.parametrize("target", make_targets())
def test_the_targets_of_make_exist(target):
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.M)


# Modules, and scripts of other environments or without flags.
NOT_A_PROGRAM = ("harness.py", "pixels.py", "keras3_advprop.py", "onnx_client.py")
SCRIPTS = [
    f"{path.parent.name}/{path.name}"
    for path in sorted([*ROOT.glob("benchmarks/*.py"), *ROOT.glob("examples/*.py")])
    if path.name not in NOT_A_PROGRAM
]


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_have_help(script, tmp_path):
    command = [sys.executable, str(ROOT / script), "--help"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and "usage:" in done.stdout and "Traceback" not in done.stderr


# --- running them
# ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    """A reader's folder: the clone's own folders, some photographs, and names that resolve."""
    root = tmp_path_factory.mktemp("a reader's folder (ü)")
    for name in ("configs", "examples", "docs", "tests", "benchmarks"):
        os.symlink(ROOT / name, root / name)
    model = make_tiny(aux_branches=0)
    load_tiny(model.variables)
    save_released_checkpoint(model, str(root / "SOURCE" / "model.ckpt"))
    random = np.random.default_rng(0)

    def write_image(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = random.integers(0, 256, [40, 50, 3], np.uint8)
        path.write_bytes(tf.io.encode_jpeg(pixels).numpy())

    for path in ("panda.jpg", "photos/a.jpg", "photos/b.jpg", "calibration/a.jpg"):
        write_image(root / path)
    for index in range(20):
        write_image(root / "IMAGES" / f"class{index % 2}" / f"{index}.jpg")
    for index in range(10):
        write_image(root / "pictures" / str(index) / "a.jpg")
        write_image(root / "Photos" / f"class{index % 2}" / f"{index}.jpg")
    for page, name in (("keras.md", "my_models.py"), ("own_images.md", "sort_cells.py")):
        text = (ROOT / "docs" / page).read_text()
        (program,) = re.findall(rf"`{name}`[^`]*\n\n```python\n(.*?)```", text, re.S)
        (root / name).write_text(program)
    save_keras_model(root / "model.keras")
    names = ", ".join(f'"{index}": "thing {index}"' for index in range(10))
    (root / "labels_map.txt").write_text(f"{{{names}}}")
    site_packages = install_as_make_does(root / "venv")
    labels = []  # a package that looks like elpv-dataset
    for index in range(40):
        write_image(site_packages / f"elpv_dataset/data/images/cell{index + 1:04d}.png")
        labels.append(f"images/cell{index + 1:04d}.png  {(index + 1) % 2}.0 mono")
    (site_packages / "elpv_dataset/__init__.py").touch()
    (site_packages / "elpv_dataset/data/labels.csv").write_text("\n".join(labels))
    with stand_ins(model, root, tmp_path_factory.mktemp("servers")) as variables:
        yield root, variables


@contextlib.contextmanager
def stand_ins(model, root: pathlib.Path, served: pathlib.Path):
    """Google's bucket and the hub, both with a small network; yields a shell's variables."""
    for name in ("b0-advprop", "b3-advprop"):
        address = urllib.parse.urlsplit(published_checkpoints.PUBLISHED[name].address)
        archive = served / address.path.lstrip("/")
        archive.parent.mkdir(parents=True, exist_ok=True)
        with tarfile.open(archive, "w:gz") as opened:  # as Google's: without a settings file
            for file in (root / "SOURCE").iterdir():
                if file.suffix != ".json":
                    opened.add(file, f"{archive.name.partition('.')[0]}/{file.name}")
    file = served / "hub" / "timm" / "tf_efficientnet_b3.ap_in1k" / "model.safetensors"
    file.parent.mkdir(parents=True)
    prepared = dict(image_size=64, crop="released", crop_fraction=2 / 3, resize="bicubic")
    timm_weights.write_timm_files(model, str(file), **prepared)
    hub = make_hub(served / "hub")
    with proxy_of(served, "storage.googleapis.com") as variables:
        try:
            yield {
                **variables,
                "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}",
                "HF_HOME": str(root / "cache" / "huggingface"),
                "HF_TOKEN": "hf_of_hf_auth_login",
            }
        finally:
            hub.shutdown()
            hub.server_close()


def install_as_make_does(folder: pathlib.Path) -> pathlib.Path:
    """Makes an environment with the package editable, beside what this environment has."""
    venv.create(folder, with_pip=False)
    (site_packages,) = folder.glob("lib/python*/site-packages")
    company = [path for path in sys.path if path.endswith("site-packages")]
    if HUB_LIBRARY:
        company.append(str(pathlib.Path(HUB_LIBRARY.origin).parents[1]))
    (site_packages / "company.pth").write_text("\n".join(company))
    (line,) = re.findall(r"^OUTBUILDINGS := (.*)$", (ROOT / "Makefile").read_text(), re.M)
    editables = [word for package in (".", *line.split()) for word in ("-e", package)]
    command = [sys.executable, "-m", "pip", "--python", str(folder / "bin" / "python"), "install"]
    options = ["--quiet", "--no-deps", "--no-index", "--no-build-isolation"]
    subprocess.run([*command, *options, *editables], cwd=ROOT, check=True)
    return site_packages


def save_keras_model(path: pathlib.Path) -> None:
    """A small model of Keras with an auxiliary branch, as `AdvPropModel` trains."""
    inputs = keras.Input([32, 32, 3])
    outputs = keras.layers.BatchNormalization()(keras.layers.Conv2D(4, 3)(inputs))
    outputs = keras.layers.Dense(10)(keras.layers.GlobalAveragePooling2D()(outputs))
    add_auxiliary_batch_norms(keras.Model(inputs, outputs)).save(str(path))


def environment_of(root: pathlib.Path, variables: dict[str, str]) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in ("HOME", "PYTHONPATH")}
    return {
        **kept,
        "PATH": f"{root / 'venv/bin'}{os.pathsep}{os.environ['PATH']}",
        "XDG_CACHE_HOME": str(root / "cache"),
        "CUDA_VISIBLE_DEVICES": "",
        **variables,
    }


def execute(command: str, root: pathlib.Path, variables: dict[str, str]) -> str:
    """What the command says; it must end well, within ten minutes.

    Raises:
        AssertionError: it ends in another way.
    """
    for pattern, more in SHORTENED.items():
        if re.search(pattern, command):
            command = f"{command} {more}"
    finished = subprocess.run(
        ["bash", "-c", command],
        cwd=root,
        env=environment_of(root, variables),
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert finished.returncode == 0, (
        f"{command}\n{finished.stdout[-2000:]}\n{finished.stderr[-4000:]}"
    )
    return finished.stdout


def start_server(command: str, root: pathlib.Path, variables: dict[str, str]) -> subprocess.Popen:
    """A command that ends with "&", when it says that it is ready."""
    server = subprocess.Popen(
        ["bash", "-c", f"exec {command.removesuffix('&')}"],
        cwd=root,
        env={**environment_of(root, variables), "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        text=True,
    )
    for line in server.stdout:
        if "version 1" in line:
            return server
    raise AssertionError(f"{command} ended with {server.wait()}")


@pytest.mark.slow
def test_the_commands_do_what_they_say(scratch):
    """In the documents' order, since one goes on with what another has made."""
    (root, variables), servers, said, failures = scratch, [], {}, []
    try:
        for command in RUN:
            if "--model_dir=runs/b3" in command and not (root / "runs" / "b3").exists():
                shutil.copytree(root / "runs" / "digits", root / "runs" / "b3")
            try:
                if command.endswith("&"):
                    for server in servers:  # all take the same port
                        server.terminate()
                        server.wait()
                    servers.append(start_server(command, root, variables))
                else:
                    said[command] = execute(command, root, variables)
            except (AssertionError, subprocess.TimeoutExpired) as error:
                failures.append(str(error))
    finally:
        for server in servers:
            server.terminate()
            server.wait()
    assert not failures, "\n".join(failures)
    # What they are for is there, in the folder that they were started in.
    wanted = ["runs/digits/config.json", "runs/served/1/saved_model.pb", "grid.png"]
    wanted += ["served/efficientnet/1/saved_model.pb", "served/lite/1/model.tflite"]
    wanted += ["out/b3.weights.h5", "out/timm-b3/model.safetensors", "out/timm-b3/config.json"]
    wanted += ["out/efficientnet-b3/model.ckpt.index", "RECORDS/train-00000-of-00001"]
    assert not [path for path in wanted if not (root / path).exists()]
    summary = said["python -m efficientnet_advprop.inspect_checkpoint SOURCE"]
    assert "an EfficientNet of width 0.25 and depth 0.3" in summary
