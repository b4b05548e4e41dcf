"""Everything that is checked before the first step, in this order:

    1. the config by itself
    2. the config against the replicas                  (`check_replicas`)
    3. the data: whole, as many classes as the network  (`open_data`)
    4. all workers mean the same run                    (`check_workers`)
    5. nobody else is in the run's folder               (`hold_run_dir`)
    6. the folder is empty, or this run's               (`check_run_dir`, `require_same_data`)
    7. all workers have read the same checkpoint        (`check_start`)

A worker that computed something else would not fail: the workers would wait forever in
different reductions, or train on noise. So all of them end with the same message.
"""

import contextlib
import dataclasses
import hashlib
import os
import pathlib
from typing import Callable, Iterator, Optional

import tensorflow as tf

from efficientnet_advprop.config import experiment as config_lib
from efficientnet_advprop.config.experiment import ConfigError, ExperimentConfig
from efficientnet_advprop.config.methods import METHODS
from efficientnet_advprop.config.tables import is_keras_variant
from efficientnet_advprop.data import records, sources
from efficientnet_advprop.models import CheckpointError
from efficientnet_advprop.models.denoising import check_memory
from efficientnet_advprop.models.normalization import official_group_size
from efficientnet_advprop.models.resnet import map_size
from efficientnet_advprop.runtime.directory_lock import DirectoryLock
from efficientnet_advprop.runtime.errors import DataError, RunError, UserError
from efficientnet_advprop.training import run_directory
from efficientnet_advprop.training.build import batch_norm_group_size
from efficientnet_advprop.training.run_directory import RunMetadata
from tpu_utils.cluster import Workers

_CODE = (pathlib.Path(__file__).parents[1], pathlib.Path(__file__).parents[2] / "tpu_utils")


@contextlib.contextmanager
def checked_run(
    config: ExperimentConfig,
    data_dir: str,
    model_dir: str,
    strategy: tf.distribute.Strategy,
    workers: Workers,
    log: Callable[[str], None],
) -> Iterator[tuple[records.Split, records.Split]]:
    """Makes checks 1 to 6, holds the run's folder during the body, and yields the splits."""
    config.validate()
    check_replicas(config, strategy.num_replicas_in_sync)
    train, validation, class_names = open_data(config, data_dir)
    metadata = RunMetadata.of(train, validation, strategy.num_replicas_in_sync)
    check_workers(workers, config, model_dir, metadata)
    with hold_run_dir(workers, model_dir):
        if run_directory.check_run_dir(model_dir, config, class_names):
            before = RunMetadata.read(model_dir) or metadata
            used = metadata
            if not config.training.evaluate_every_epochs:
                used = dataclasses.replace(used, num_validation_images=0, validation_digest="")
            used.require_same_data(before, data_dir, model_dir)
            if before.num_replicas not in (0, metadata.num_replicas):
                log(
                    f"warning: the run began on {before.num_replicas} replicas and goes on with"
                    f" {metadata.num_replicas}: batch moments are of other groups of images, and"
                    " random numbers are others"
                )
        if workers.is_chief:
            run_directory.initialize_run_dir(model_dir, config, class_names, metadata)
        yield train, validation


def check_replicas(config: ExperimentConfig, num_replicas: int) -> None:
    """Raises a `ConfigError` if batches, batch norms or denoising do not fit the replicas."""
    training = config.training
    parts = num_replicas * training.accumulation_steps
    if training.global_batch_size % parts:
        raise ConfigError(
            f"`config.training.global_batch_size` is {training.global_batch_size}, but must divide"
            f" by the {num_replicas} replicas times `config.training.accumulation_steps` ="
            f" {training.accumulation_steps}; take a multiple of {parts}."
        )
    if training.eval_batch_size % num_replicas:
        raise ConfigError(
            f"`config.training.eval_batch_size` is {training.eval_batch_size}, but must divide by"
            f" the {num_replicas} replicas; take a multiple of {num_replicas}."
        )
    share = METHODS[training.method].adversarial_share
    size = training.global_batch_size // parts
    if share is not None and not 0 < round(share * size) < size:
        raise ConfigError(
            f"`config.training.global_batch_size` is {training.global_batch_size}, but"
            f" {training.method!r} makes {share:g} of the {size} images adversarial that a replica"
            f" takes at once; take at least {3 * parts}."
        )
    check_denoising(config, num_replicas)
    check_batch_norm_groups(config, num_replicas)


def check_denoising(config: ExperimentConfig, num_replicas: int) -> None:
    """Raises an error if a denoising block, in training or evaluation, compares more
    positions with each other than memory holds.
    """
    if config.model.denoise == "none":
        return
    training = config.training
    image_sizes = (config.data.stages()[-1].image_size, config.data.image_size)
    parts = training.accumulation_steps
    fields = {
        "training.global_batch_size": (training.global_batch_size // parts, image_sizes[0]),
        "training.eval_batch_size": (training.eval_batch_size, image_sizes[1]),
    }
    for stage in sorted(map(int, config.model.denoise_stages.split(","))):
        for name, (num_images, image_size) in fields.items():
            size = map_size(image_size, stage)
            also = " or raise `config.training.accumulation_steps`" if "global" in name else ""
            check_memory(
                config.model.denoise,
                f"stage {stage} (`config.model.denoise`)",
                -(-num_images // num_replicas),
                size,
                size,
                f"lower `config.{name}`{also}, take smaller images or 'non_local_dot', or leave"
                f" stage {stage} out of `config.model.denoise_stages`",
            )


def check_batch_norm_groups(config: ExperimentConfig, num_replicas: int) -> None:
    """Raises a `ConfigError` if the groups of the batch norms do not fit the replicas."""
    if is_keras_variant(config.model.variant):
        return  # its layers say themselves whether they are synchronised
    images = config.model.batch_norm_batch_size
    field = "batch_norm_group_size" if images is None else "batch_norm_batch_size"
    group_size = batch_norm_group_size(config, num_replicas) or official_group_size(num_replicas)
    if num_replicas % group_size:
        raise ConfigError(
            f"`config.model.{field}` is {getattr(config.model, field)} (replicas per group: "
            f"{group_size}), but must divide the {num_replicas} replicas; take 1 (each alone), "
            f"{num_replicas} (all together) or a divisor"
            + ("." if images is None else ", times the images of a replica.")
        )


def open_data(
    config: ExperimentConfig, data_dir: str
) -> tuple[records.Split, records.Split, Optional[list[str]]]:
    """Opens the splits for training and validation; returns them and the names of the classes."""
    # Without evaluation the validation images need not be there; if they are, whoever
    # evaluates the run elsewhere can compare his with them.
    train = sources.open_split(config.data, data_dir, "train")
    try:
        validation = sources.open_split(config.data, data_dir, "validation")
    except DataError:
        if config.training.evaluate_every_epochs:
            raise
        validation = records.Split((), ())
    class_names = sources.find_class_names(config.data, data_dir, config.model.num_classes)
    return train, validation, class_names


def check_workers(
    workers: Workers, config: ExperimentConfig, model_dir: str, metadata: RunMetadata
) -> None:
    """Raises a `ConfigError` on all workers if they do not mean the same run."""
    if workers.count == 1:
        return
    differing = workers.compare(
        {
            "config": config.to_json(),
            "the code": code_digest(),
            "TensorFlow": tf.__version__,
            "`model_dir`": model_dir,
            "images in `data_dir`": str(dataclasses.astuple(metadata)),
        }
    )
    if not differing:
        return
    if "config" in differing:
        configs = list(map(ExperimentConfig.from_json, differing.pop("config")))
        names = {name for one in configs[1:] for name in config_lib.differences(configs[0], one)}
        differing |= {
            f"`config.{name}`": [str(config_lib.get(one, name)) for one in configs]
            for name in sorted(names)
        }
    raise ConfigError(
        f"the {workers.count} workers do not mean the same run (in their order,"
        f" {_listed(differing)}). Start the same command on all of them, from the same copy of the"
        " code."
    )


def code_digest() -> str:
    """Returns a SHA-256 of the source files of both packages."""
    digest = hashlib.sha256()
    for package in _CODE:
        for path in sorted(package.rglob("*.py")):
            digest.update(str(path.relative_to(package)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


@contextlib.contextmanager
def hold_run_dir(workers: Workers, model_dir: str) -> Iterator[None]:
    """Keeps every other run out of `model_dir` during the body; the chief holds it for all."""
    own_error: Optional[UserError] = None
    with contextlib.ExitStack() as stack:
        if workers.is_chief:
            try:
                stack.enter_context(DirectoryLock(model_dir, "model_dir"))
            except UserError as error:
                own_error = error
            except (tf.errors.OpError, OSError) as error:
                own_error = run_directory.cannot_be_written(model_dir, error)
        messages = workers.compare({"error": str(own_error or "")})
        if own_error is not None:
            raise own_error
        if messages:
            raise RunError(max(messages["error"], key=len))
        yield


def check_start(workers: Workers, model_dir: str, restored: str) -> None:
    """Raises a `CheckpointError` on all workers if they do not see the same `model_dir`, of
    which this one has read the checkpoint `restored`.
    """
    workers.any(False)  # waits for the chief, which has then written its config
    differing = workers.compare(
        {
            "config.json": str(run_directory.is_initialized(model_dir)),
            "the checkpoint read": os.path.basename(restored) or "none",
        }
    )
    if differing:
        raise CheckpointError(
            f"`model_dir` is {model_dir!r}, which the {workers.count} workers do not see alike "
            f"(in their order, {_listed(differing)}); it must be one folder for all of them: "
            "a shared file system, or gs://."
        )


def _listed(differing: dict[str, list[str]]) -> str:
    def shorten(value: str) -> str:
        return value if len(value) <= 60 else f"{value[:12]}…"

    return "; ".join(f"{name}: {', '.join(map(shorten, v))}" for name, v in differing.items())
