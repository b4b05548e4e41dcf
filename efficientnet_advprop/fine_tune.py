r"""Trains on your own photographs, with and without AdvProp, and reports on both.

    python -m efficientnet_advprop.fine_tune Photos --model_dir=runs/photos
    python -m efficientnet_advprop.fine_tune Photos --model_dir=runs/photos --dry_run
    python -m efficientnet_advprop.fine_tune Photos --model_dir=runs/photos \
        --checkpoint=none --config.training.global_batch_size=64

Photos holds a folder of images per class, which is divided by the files' contents; or
train/, validation/ and perhaps test/ with such folders. The program says what it will do,
writes the images as TFRecords, trains each of --methods from the same start, measures the
test images (as they are, corrupted, attacked) and writes MODEL_DIR/report.html, .json and
tables. What it chooses for the size of the data stands in docs/own_images.md; any field can
be overridden, as in --config.training.num_epochs=20.

Ctrl-C and SIGTERM save at any moment; the same command goes on. Configs are written to
MODEL_DIR/configs, with which `train` alone does the same. Exit codes as of `train`.
"""

import os
import pathlib
import shlex
import subprocess
import sys
import time

from absl import flags, logging

from efficientnet_advprop.command_line import program, strategy_flags
from efficientnet_advprop.config import experiment
from efficientnet_advprop.config.methods import METHODS
from efficientnet_advprop.runtime import process
from efficientnet_advprop.runtime.errors import CheckpointError, DataError, UsageError
from efficientnet_advprop.runtime.files import require_free, write_atomically
from efficientnet_advprop.runtime.stack import installed_version

_MODEL_DIR = flags.DEFINE_string(
    "model_dir", None, "folder for records, checkpoints and the report; created if need be"
)
_METHODS = flags.DEFINE_list("methods", ["vanilla", "advprop"], f"of {', '.join(METHODS)}")
_CHECKPOINT = flags.DEFINE_string(
    "checkpoint",
    "b0-advprop",
    "weights to start from: a name of docs/released_weights.md or a file; none: from scratch",
)
_NO_SCRATCH = flags.DEFINE_bool(
    "no_scratch",
    False,
    "ends where the checkpoint cannot be had, in place of training from scratch",
)
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "only says what would be done")
_CORRUPTED_IMAGES = flags.DEFINE_integer(
    "corrupted_images",
    200,
    "test images, evenly spaced, that each of 15 corruptions changes at 5 severities; 0: none",
    lower_bound=0,
)
_AUTOATTACK = flags.DEFINE_bool("autoattack", False, "measures under AutoAttack, too: slow")
_STRATEGY = strategy_flags.define()
_SEED = 0


def _check_arguments(argv) -> str:
    if len(argv) != 2:
        raise UsageError(
            "give one folder of photographs: advprop fine_tune Photos --model_dir=runs/photos."
        )
    if not _MODEL_DIR.value:
        raise UsageError("`--model_dir` is missing; give a folder for everything that is made.")
    if _NO_SCRATCH.value and _CHECKPOINT.value == "none":
        raise UsageError("`--no_scratch` does not go with `--checkpoint=none`; leave one out.")
    unknown = [name for name in _METHODS.value if name not in METHODS]
    if unknown or len(set(_METHODS.value)) < len(_METHODS.value) or not _METHODS.value:
        raise UsageError(
            f"`--methods` is {','.join(_METHODS.value)!r}, but must be some of"
            f" {', '.join(METHODS)}, each once."
        )
    folder, model_dir = map(os.path.realpath, (argv[1], _MODEL_DIR.value))
    if os.path.commonpath([folder, model_dir]) == folder:
        raise UsageError(
            f"`--model_dir` is {_MODEL_DIR.value!r}, which lies in the folder of the photographs,"
            " where the next call would take it for a class; give another one."
        )
    return argv[1].rstrip("/")


def _find_start(model_dir: str) -> tuple:
    """Returns the checkpoint to start from (None: scratch), the config's fields of its network,
    and a line on it.
    """
    from efficientnet_advprop.models.checkpoints.model_settings import known_settings
    from efficientnet_advprop.models.checkpoints.weight_loading import read_checkpoint

    told = os.path.join(model_dir, "start.txt")  # of an earlier call: every method has the same
    wanted = _CHECKPOINT.value
    if os.path.exists(told):
        with open(told, encoding="utf-8") as file:
            earlier = file.read().strip()
        if wanted != earlier and flags.FLAGS["checkpoint"].present:
            raise UsageError(
                f"`--checkpoint` is {wanted!r}, but the runs in {model_dir!r} started from"
                f" {earlier!r}; take another `--model_dir`."
            )
        wanted = earlier
    if wanted == "none":
        return None, {}, "from scratch"
    try:
        contents = read_checkpoint(wanted)
    except CheckpointError as error:
        if _NO_SCRATCH.value or flags.FLAGS["checkpoint"].present or os.path.exists(told):
            raise
        first_line = str(error).partition("\n")[0]
        return None, {}, f"from scratch, since {wanted} cannot be had: {first_line}"
    architecture = contents.architecture
    if architecture is None:
        raise CheckpointError(f"{wanted!r} holds no network that this program can train.")
    settings = known_settings(wanted, contents)
    if "normalization" not in settings:
        raise CheckpointError(
            f"{wanted!r} is no official name, and no settings file beside it says how its pixels"
            " are normalised; use `train` with --config.init.checkpoint and"
            " --config.model.normalization."
        )
    network = {
        "variant": architecture.variant,
        "width_coefficient": architecture.width_coefficient,
        "depth_coefficient": architecture.depth_coefficient,
        **{
            name: settings[name]
            for name in ("normalization", "batch_norm_epsilon", "activation")
            if name in settings
        },
    }
    return wanted, network, f"{wanted} ({architecture})"


def _choose_configs(photographs, checkpoint, network) -> dict:
    from efficientnet_advprop.fine_tuning import choices

    configs = {}
    for method in _METHODS.value:
        config = choices.choose(
            method,
            num_train=len(photographs.parts["train"]),
            num_classes=len(photographs.class_names),
            checkpoint=checkpoint,
            variant=network.get("variant", "b0"),
        )
        for name, value in network.items():
            setattr(config.model, name, value)
        config.training.seed = _SEED
        program.apply_overrides(config)
        choices.follow(config)
        program.apply_overrides(config)
        config.validate()
        configs[method] = config
    return configs


def _describe(folder: str, photographs, configs, start: str) -> list[str]:
    """Returns at most twelve lines on what will be done."""
    from efficientnet_advprop.fine_tuning.expected_time import expected_minutes
    from efficientnet_advprop.training.build import count_steps

    config = next(iter(configs.values()))
    model, data, training = config.model, config.data, config.training
    counts = {part: len(images) for part, images in photographs.parts.items()}
    size = f"{data.image_size} px"
    lines = [
        f"{folder}: {len(photographs.class_names)} classes; "
        + ", ".join(f"{count} images for {part}" for part, count in counts.items()),
        f"start: {start}",
        f"network: {model.variant}, width {model.width_coefficient or 1:g}, whole images at {size}",
        f"training of {', '.join(configs)}: {count_steps(config, counts['train'])} updates of"
        f" {training.global_batch_size} images, {training.num_epochs:.1f} epochs"
        f" (AdvProp: ε {config.attack.epsilon:g}, {config.attack.num_steps} step)",
    ]
    if _STRATEGY.strategy.value != "tpu":  # a batch on the host would say nothing
        training_minutes, report_minutes = expected_minutes(
            configs, counts["train"], counts["test"], _CORRUPTED_IMAGES.value
        )
        lines.append(
            f"time: about {_minutes(training_minutes)} of training and"
            f" {_minutes(report_minutes)} for the report, by one batch tried here; each training"
            " says it again"
        )
    if photographs.smallest < data.image_size:
        lines.append(
            f"note: the smallest image has a side of {photographs.smallest} px, enlarged to {size}"
        )
    notes = [f"note: {note}" for note in photographs.notes]
    room = 12 - len(lines)
    if len(notes) > room:
        notes[room - 1 :] = [f"note: and {len(notes) - room + 1} more kinds of odd files"]
    return lines + notes


def _minutes(number: float) -> str:
    return f"{number:.0f} min" if number < 120 else f"{number / 60:.0f} h"


def _write_config(model_dir: str, method: str, config) -> str:
    """Writes a config file from which `train` alone does the same; returns its path."""
    default = experiment.ExperimentConfig()
    lines = [
        f"    config.{name} = {value!r}"
        for name, (value, _) in experiment.differences(config, default).items()
    ]
    text = (
        f'"""{method} on photographs, as `fine_tune` chose it."""\n\n'
        "from efficientnet_advprop.config import ExperimentConfig\n\n\n"
        "def get_config() -> ExperimentConfig:\n    config = ExperimentConfig()\n"
        + "\n".join(lines)
        + "\n    return config\n"
    )
    folder = os.path.join(model_dir, "configs")
    os.makedirs(folder, exist_ok=True)
    path = os.path.join(folder, f"{method}.py")
    write_atomically(path, text.encode())
    return path


def _facts(photographs, configs, start: str, folder: str) -> dict[str, str]:
    """Returns what the page says of what was done, and with what."""
    import platform

    import tensorflow as tf

    config = next(iter(configs.values()))
    return {
        "command": shlex.join(["advprop", "fine_tune", *sys.argv[1:]]),
        "date": time.strftime("%Y-%m-%d"),
        "photographs": f"{folder} (SHA-256 {photographs.digest[:16]})",
        "start": start,
        "seeds": f"training {config.training.seed}, attacks and corruptions {_SEED}",
        "versions": f"{_own_version()}, TensorFlow {tf.__version__}, Python"
        f" {platform.python_version()}",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores,"
        f" {len(tf.config.list_physical_devices('GPU'))} GPUs",
    }


def _own_version() -> str:
    """Returns the version of this package, and the commit where it runs from a repository."""
    version = installed_version("efficientnet-advprop") or "of no installed version"
    root = pathlib.Path(__file__).parents[1]
    if (root / ".git").exists():
        git = ["git", "-C", str(root), "rev-parse", "--short", "HEAD"]
        commit = subprocess.run(git, capture_output=True, text=True).stdout.strip()
        version += f" ({commit})" if commit else ""
    return f"efficientnet-advprop {version}"


def _next_steps(model_dir: str, photographs) -> str:
    model_dir = shlex.quote(model_dir)
    best = f"{model_dir}/{_METHODS.value[-1]}"
    example = photographs.parts["test"][0].path
    return "\n".join(
        [
            "What comes next:",
            f"  python -m efficientnet_advprop.classify --model_dir={best} --which=last"
            f" {shlex.quote(example)}",
            f"  python -m efficientnet_advprop.export --model_dir={best} --which=last"
            f" --export_dir={model_dir}/served",
            f"  python examples/local_server.py {model_dir}/served   (more: docs/serving.md)",
        ]
    )


def main(argv):
    folder = _check_arguments(argv)
    model_dir = _MODEL_DIR.value.rstrip("/")
    print(f"looking through {folder} …", flush=True)
    logging.set_verbosity(logging.WARNING)  # matplotlib tells of its fonts when imported
    # Here, so that --help and a wrong flag do not wait for TensorFlow.
    from efficientnet_advprop.fine_tuning import photo_report
    from efficientnet_advprop.fine_tuning import photographs as photographs_lib
    from efficientnet_advprop.images.record_conversion import convert_splits
    from efficientnet_advprop.training.loop import train
    from tpu_utils.preemption import CTRL_C

    photographs = photographs_lib.look(folder)
    checkpoint, network, start = _find_start(model_dir)
    configs = _choose_configs(photographs, checkpoint, network)
    strategy = _STRATEGY.make()  # before anything computes, as the guess of the time does
    print("\n".join(_describe(folder, photographs, configs, start)), flush=True)
    if _DRY_RUN.value:
        return 0
    records = os.path.join(model_dir, photo_report.RECORDS)
    start_file = os.path.join(model_dir, "start.txt")
    if not os.path.exists(start_file):
        names = (photo_report.RECORDS, photo_report.EVALUATION, "configs", "report.json")
        require_free("--model_dir", model_dir, [*names, *configs])
    write_atomically(start_file, f"{checkpoint or 'none'}\n".encode())
    try:
        convert_splits(photographs.parts, photographs.class_names, records)
    except DataError as error:  # other photographs than those of an earlier call, for instance
        raise DataError(f"`--model_dir` is {model_dir!r}: {error}") from error
    for method, config in configs.items():
        path = _write_config(model_dir, method, config)
        print(f"{method}: {path}", flush=True)
        result = train(
            config,
            data_dir=records,
            model_dir=os.path.join(model_dir, method),
            strategy=strategy,
        )
        if result.step < result.total_steps:
            return process.INTERRUPTED if result.stopped_by == CTRL_C else 0
    print("measuring the test images …", flush=True)
    told = photo_report.report(
        model_dir,
        _METHODS.value,
        photographs.class_names,
        _facts(photographs, configs, start, folder),
        seed=_SEED,
        max_corrupted=_CORRUPTED_IMAGES.value,
        autoattack=_AUTOATTACK.value,
        strategy=strategy,
    )
    print(told)
    print(_next_steps(model_dir, photographs), flush=True)
    return 0


if __name__ == "__main__":
    code = process.SIGTERM_EXIT_CODES["fine_tune"]
    program.run(main, takes_arguments=True, takes_overrides=True, sigterm_exit_code=code)
