"""Compiles steps for TPUs: keeps the results as JSON files, describes them as text, and searches
the largest batch that fits.
"""

import copy
import dataclasses
import datetime
import hashlib
import json
import os
import pathlib
import sys
from typing import Any, Callable, Optional

import tensorflow as tf

from advprop_preflight import tpu_compiler
from efficientnet_advprop.config.experiment import ConfigError, ExperimentConfig
from efficientnet_advprop.config.methods import AUGMENTED, METHODS
from efficientnet_advprop.training import build
from efficientnet_advprop.training.checks import check_batch_norm_groups

Record = dict[str, Any]
Trial = tuple[bool, Optional[int]]  # whether the batch fits; the bytes it needs, if known
Settings = dict[str, dict[str, Any]]  # section → field → value
# The fields of these sections that a step depends on. Of all other sections, it depends
# on every field.
IN_THE_PROGRAM = {
    "training": ("method", "accumulation_steps"),
    "data": ("image_size", "mixup_alpha", "cutmix_alpha"),
}
WAYS_OUT = (
    "Not even the smallest batch fits into a core's memory. Let the first blocks compute their "
    "activations again (--config.model.recomputed_blocks=99: all of them), or take smaller images "
    "(--config.data.image_size)."
)


def batch_specs(config: ExperimentConfig, replica_batch_size: int) -> list[tf.TensorSpec]:
    """Returns specs of a replica's images, labels and, if used, augmented images, in the last
    stage of several.
    """
    data = config.data.stages()[-1]
    images = tf.TensorSpec([replica_batch_size, data.image_size, data.image_size, 3], tf.uint8)
    labels = tf.TensorSpec([replica_batch_size], tf.int32)
    if data.mixup_alpha or data.cutmix_alpha:
        labels = tf.TensorSpec([replica_batch_size, config.model.num_classes], tf.float32)
    return (
        [images, labels, images]
        if AUGMENTED in METHODS[config.training.method].views
        else [images, labels]
    )


def training_step(
    config: ExperimentConfig, replica_batch_size: int, num_replicas: int
) -> tuple[Callable, list[tf.TensorSpec]]:
    """Returns the whole update on new variables: attack, passes, reduction, optimizer and
    averages.

    Raises:
        ConfigError: the accumulation steps do not divide `replica_batch_size`, or the
            groups of the batch norms do not divide the replicas.
    """
    parts = config.training.accumulation_steps
    if replica_batch_size < 1 or replica_batch_size % parts:
        raise ConfigError(
            f"`replica_batch_size` is {replica_batch_size}, but must be ≥ 1 and a multiple of "
            f"`config.training.accumulation_steps` = {parts}."
        )
    check_batch_norm_groups(config, num_replicas)
    config = copy.deepcopy(config)
    config.training.global_batch_size = replica_batch_size * num_replicas
    state = build.make_state(config)
    # The length of an epoch changes numbers only, not the computation.
    step = build.make_step(
        config, state, build.make_learning_rate(config, steps_per_epoch=1000.0, total_steps=100_000)
    )
    keys = ("images", "labels", "augmented_images")
    return lambda *tensors: step(dict(zip(keys, tensors))), batch_specs(config, replica_batch_size)


class PreflightResults:
    """A folder with the results of compilations for one topology, whose first `num_replicas`
    cores run a step together; what is missing is compiled.
    """

    def __init__(self, folder: str, compiler: tpu_compiler.TPUCompiler, num_replicas: int):
        self.folder, self.compiler, self.num_replicas = folder, compiler, num_replicas

    def _path(self, settings: Settings, defaults: Settings, batch: int) -> pathlib.Path:
        """Returns the file of a result.

        Its name depends only on the fields that differ from the defaults, so that it is
        still found when the config has a new field.
        """
        own = {
            f"{section}.{name}": value
            for section, fields in settings.items()
            for name, value in fields.items()
            if value != defaults[section][name]
        }
        digest = hashlib.sha256(json.dumps(own, sort_keys=True).encode()).hexdigest()[:8]
        topology = self.compiler.topology.replace(":", "_")
        variant = settings["model"]["variant"].replace(":", "_")
        what = f"{settings['training']['method']}_{variant}"
        return (
            pathlib.Path(self.folder)
            / f"{what}_{topology}_{self.num_replicas}x{batch}_{digest}.json"
        )

    def compile_step(self, config, replica_batch_size: int) -> Record:
        """Returns the result of compiling a step, from the folder if it is there for the
        same config.

        Returns:
            {"config", "topology", "num_replicas", "replica_batch_size", "date"}, and what
            `TPUCompiler.compile` answers.

        Raises:
            PlatformError: the step cannot be compiled for another reason than memory.
        """
        settings = _settings(config)
        defaults = _settings(type(config)())
        path = self._path(settings, defaults, replica_batch_size)
        if path.exists():
            record = json.loads(path.read_text())
            if {
                section: {**defaults[section], **record["config"].get(section, {})}
                for section in settings
            } == settings:
                _tell(f"{path}: answered on {record['date']}")
                return record
        function, specs = training_step(config, replica_batch_size, self.num_replicas)
        _tell(f"{path}: compiling; minutes for a small network, much longer for a large one …")
        record = {
            "config": settings,
            "topology": self.compiler.topology,
            "num_replicas": self.num_replicas,
            "replica_batch_size": replica_batch_size,
            "date": datetime.date.today().isoformat(),
        }
        hlo = tpu_compiler.lower(function, specs, self.num_replicas)
        del function  # and its variables, some gigabytes that the compiler can use
        record |= self.compiler.compile(hlo, self.num_replicas)
        path.parent.mkdir(parents=True, exist_ok=True)
        # Atomically: a search that is interrupted goes on with what is whole.
        unfinished = path.with_suffix(".unfinished")
        unfinished.write_text(json.dumps(record, indent=1) + "\n")
        os.replace(unfinished, path)
        return record

    def try_step(self, config, replica_batch_size: int) -> Trial:
        """Compiles a step and returns what `find_largest_batch` needs."""
        record = self.compile_step(config, replica_batch_size)
        needed = (
            tpu_compiler.program_of(record).memory_bytes
            if record["fits"]
            else record["needed_bytes"]
        )
        needed_text = f"{needed / tpu_compiler.GIB:.2f} GiB" if needed else "more than there is"
        fits = "fits" if record["fits"] else "does not fit"
        _tell(f"  {replica_batch_size} images per core: {needed_text}, {fits}")
        return record["fits"], needed


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _settings(config) -> Settings:
    """Returns the part of a config that a step depends on."""
    settings = dataclasses.asdict(config)
    for section, fields in IN_THE_PROGRAM.items():
        settings[section] = {name: settings[section][name] for name in fields}
    return settings


def describe(record: Record, vanilla: Optional[Record], compiler: tpu_compiler.TPUCompiler) -> str:
    """Returns a record as lines of text, compared with `vanilla` if that is given."""
    lines = _describe_step(record, compiler)
    capacity = f"GiB of {compiler.chip.memory_bytes / tpu_compiler.GIB:.0f}"
    if not record["fits"]:
        needed = record["needed_bytes"]
        told = f"{needed / tpu_compiler.GIB:.2f} {capacity}" if needed else record["message"]
        lines += [
            _row("compiles", "yes, but does not fit"),
            _row("memory per core", told),
            "Take a smaller --replica_batch_size, or let --find_batch_size search it; "
            "with fewer activations kept",
            "(--config.model.recomputed_blocks=…) a larger one fits.",
        ]
        return "\n".join(lines)
    program = tpu_compiler.program_of(record)
    versions = ", ".join(f"{name} {version}" for name, version in program.versions.items())
    split = f"arguments {program.argument_bytes / tpu_compiler.GIB:.2f}"
    split += f", activations {program.temporary_bytes / tpu_compiler.GIB:.2f}"
    split += f", program {program.code_bytes / tpu_compiler.GIB:.2f}"
    in_loops = f", of which {program.loop_flops / program.flops:.0%} in loops"
    lines += [
        _row("compiles", f"yes, in {program.compile_seconds:.0f} s ({versions})"),
        _row(
            "memory per core", f"{program.memory_bytes / tpu_compiler.GIB:.2f} {capacity} ({split})"
        ),
        _row(
            "arithmetic per step",
            f"{program.flops / 1e9:,.0f} GFLOP per core{in_loops if program.loop_flops else ''}",
        ),
        _row(
            "memory traffic",
            f"{program.bytes_accessed / 1e9:,.1f} GB per core and step, a loop counted once",
        ),
        *_describe_time(program, record, compiler.chip),
    ]
    if vanilla is not None and vanilla["fits"]:
        lines.append(_row("cost", _compare(program, vanilla, record, compiler.chip)))
    return "\n".join(lines)


def _row(name: str, text: str) -> str:
    return f"{name:22s} {text}"


def _describe_step(record: Record, compiler: tpu_compiler.TPUCompiler) -> list[str]:
    """Returns what was compiled, and for which cores."""
    config, cores = record["config"], record["num_replicas"]
    model, method = config["model"], config["training"]["method"]
    num_steps, blocks = config["attack"]["num_steps"], model["recomputed_blocks"]
    attack = "" if method == "vanilla" else f" with {num_steps} attack step{'s'[: num_steps > 1]}"
    return [
        f"{method} training of {model['variant']}{attack}, {config['data']['image_size']} px, "
        f"{model['compute_dtype']}{f', {blocks} blocks recomputed' if blocks else ''}",
        f"{compiler.topology}: {cores} core{'s'[: cores > 1]} with "
        f"{record['replica_batch_size']} images each",
    ]


def _describe_time(
    program: tpu_compiler.CompiledProgram, record: Record, chip: tpu_compiler.Chip
) -> list[str]:
    """Returns the estimated time of a step, and the exchanges between cores in it."""
    seconds, batch = program.scheduled_seconds, record["replica_batch_size"]
    found = ", ".join(f"{count} {kind}" for kind, count in program.collectives.items()) or "none"
    if not tpu_compiler.is_credible(program, chip):
        told = f"not credible ({seconds:g} s by the compiler's schedule)"
        return [_row("time per step", told), _row("collectives", found)]
    speeds = f"{batch / seconds:,.0f} per core, {record['num_replicas'] * batch / seconds:,.0f}"
    return [
        _row("time per step", f"{seconds * 1e3:,.0f} ms, estimated from the compiler's schedule"),
        _row("images per second", f"{speeds} on all"),
        _row("collectives", found),
    ]


def _compare(
    program: tpu_compiler.CompiledProgram, vanilla: Record, record: Record, chip: tpu_compiler.Chip
) -> str:
    """Returns how many times vanilla training's cost a step has."""
    plain = tpu_compiler.program_of(vanilla)
    ratio = f"{program.flops / plain.flops:.2f} times vanilla training's arithmetic"
    if all(tpu_compiler.is_credible(one, chip) for one in (program, plain)):
        ratio += f", {program.scheduled_seconds / plain.scheduled_seconds:.2f} times its time"
    return f"{ratio}; (2K + 6)/3 = {(2 * record['config']['attack']['num_steps'] + 6) / 3:.2f}"


def grid(batch: int) -> int:
    """Returns the distance between the batches that are tried: an eighth of the next smaller
    power of two, and at least 1.
    """
    return max(1, 2 ** (max(batch, 1).bit_length() - 1) // 8)


def find_largest_batch(
    try_batch: Callable[[int], Trial], *, capacity_bytes: int, first: int, multiple: int = 1
) -> Optional[int]:
    """Returns the largest batch on the grid that fits, if memory grows linearly with the batch;
    None if not even `multiple` fits. All batches are multiples of it.

    A call of `try_batch` is a compilation, which can take many minutes. Two, the first of
    `first` images, determine the line; the following ones are close to its end. The result
    has been tried itself. That the next batch on the grid does not fit has been tried, or
    follows from the line.
    """
    trials: dict[int, Trial] = {}
    batch = max(multiple, first // multiple * multiple)
    while True:
        trials[batch] = try_batch(batch)
        fitting = [tried for tried, (fits, _) in trials.items() if fits]
        failing = [tried for tried, (fits, _) in trials.items() if not fits]
        low = max(fitting, default=0)
        high = min(failing, default=None)
        step = max(multiple, grid(low) // multiple * multiple)
        if high is not None and high - low <= step:
            return low or None
        guess = _end_of_line(trials, capacity_bytes)
        if guess is None:  # no trial has said how many bytes it needs
            guess = 2 * low if high is None else (low + high) // 2
        elif high is None and low and guess - low < step and len(trials) > 1:
            return low
        unit = max(multiple, grid(guess) // multiple * multiple)
        guess = guess // unit * unit
        upper = guess if high is None else min(guess, high - multiple)
        batch = max(upper // multiple * multiple, low + step)
        if high is not None and batch >= high:
            batch = max(low + multiple, (low + high) // 2 // multiple * multiple)


def _end_of_line(trials: dict[int, Trial], capacity_bytes: int) -> Optional[int]:
    """Returns the batch at which a line through the two largest measured ones meets capacity."""
    known = sorted((batch, needed) for batch, (_, needed) in trials.items() if needed)
    if not known:
        return None
    batch, needed = known[-1]
    offset = 0.0
    slope = needed / batch
    if len(known) > 1:
        slope = (needed - known[-2][1]) / (batch - known[-2][0])
        if slope <= 0:
            return None
        offset = needed - slope * batch
    return int((capacity_bytes - offset) / slope)
