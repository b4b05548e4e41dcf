"""Checks that all workers of a run do the same: same config, code, data and
`model_dir`.

A worker that computes something else would not fail: the workers would wait forever in
different reductions, or train on noise. Therefore they compare what determines a run
before its first step. If they differ, every worker ends with the same message.
"""

import contextlib
import hashlib
import os
import pathlib
from typing import Iterator, Optional

import tensorflow as tf

from efficientnet_advprop.config import experiment as config_lib
from efficientnet_advprop.config.experiment import ConfigError, ExperimentConfig
from efficientnet_advprop.runtime.directory_lock import DirectoryLock
from efficientnet_advprop.runtime.errors import RunError, UserError
from efficientnet_advprop.training import checkpoints
from efficientnet_advprop.training.checkpoints import CheckpointError
from tpu_utils.devices.workers import Workers

_CODE = (pathlib.Path(__file__).parents[1], pathlib.Path(__file__).parents[2] / "tpu_utils")


def check_same_run(
    workers: Workers, config: ExperimentConfig, *, model_dir: str, num_images: str
) -> None:
    """Raises a `ConfigError` on all workers if they do not belong to the same run.

    Args:
        workers: all workers must call this function.
        config, model_dir: of this worker.
        num_images: the contents of its `data_dir`, in words.
    """
    if workers.count == 1:
        return
    differing = workers.compare(
        {
            "config": config.to_json(),
            "the code": code_digest(),
            "TensorFlow": tf.__version__,
            "`model_dir`": model_dir,
            "images in `data_dir`": num_images,
        }
    )
    if not differing:
        return
    if "config" in differing:
        configs = list(map(ExperimentConfig.from_json, differing.pop("config")))
        names = sorted(
            {name for other in configs[1:] for name in config_lib.differences(configs[0], other)}
        )
        differing |= {
            f"`config.{name}`": [str(config_lib.get(one, name)) for one in configs]
            for name in names
        }
    listed = "; ".join(
        f"{name}: {', '.join(map(_shorten, values))}" for name, values in differing.items()
    )
    raise ConfigError(
        f"the {workers.count} workers do not mean the same run (in their order, {listed}). "
        "Start the same command on all of them, from the same copy of the code."
    )


@contextlib.contextmanager
def hold_model_dir(workers: Workers, model_dir: str) -> Iterator[None]:
    """Keeps every other run out of `model_dir` during the body; the chief holds it for
    all workers.

    Raises:
        RunError: another run is at work there; the same on all workers.
        CheckpointError: the directory cannot be written.
    """
    own_error: Optional[UserError] = None
    with contextlib.ExitStack() as stack:
        if workers.is_chief:
            try:
                stack.enter_context(DirectoryLock(model_dir, "model_dir"))
            except RunError as error:
                own_error = error
            except (tf.errors.OpError, OSError) as error:
                own_error = checkpoints.cannot_be_written(model_dir, error)
        messages = workers.compare({"error": str(own_error or "")})
        if own_error is not None:
            raise own_error
        if messages:
            raise RunError(max(messages["error"], key=len))
        yield


def check_same_start(workers: Workers, model_dir: str, restored: str) -> None:
    """Raises a `CheckpointError` on all workers if they do not see the same
    `model_dir`.

    Args:
        workers: all workers must call this function, after the chief has claimed the
            directory.
        model_dir: of the run.
        restored: the checkpoint that this worker has read; "" for none.
    """
    workers.any(False)  # waits for the chief, which has then written its config
    facts = {
        "config.json": str(checkpoints.is_claimed(model_dir)),
        "the checkpoint read": os.path.basename(restored) or "none",
    }
    differing = workers.compare(facts)
    if differing:
        listed = "; ".join(f"{name}: {', '.join(values)}" for name, values in differing.items())
        raise CheckpointError(
            f"`model_dir` is {model_dir!r}, which the {workers.count} workers do not see alike "
            f"(in their order, {listed}); it must be one folder for all of them: "
            "a shared file system, or gs://."
        )


def code_digest() -> str:
    """SHA-256 digest of the source files of both packages."""
    digest = hashlib.sha256()
    for package in _CODE:
        for path in sorted(package.rglob("*.py")):
            digest.update(str(path.relative_to(package)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def _shorten(value: str) -> str:
    return value if len(value) <= 60 else f"{value[:12]}…"
