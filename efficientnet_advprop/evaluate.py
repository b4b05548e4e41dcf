r"""Evaluates a model on test suites: accuracy, robustness and calibration.

    python -m efficientnet_advprop.evaluate --checkpoint=b3-advprop --data_dir=/data \
        --suite=imagenet,imagenet_c,imagenet_a
    python -m efficientnet_advprop.evaluate --model_dir=runs/b3 --data_dir=/data \
        --suite=imagenet_r,imagenet_v2,pgd
    python -m efficientnet_advprop.evaluate --checkpoint=model.keras --branch=aux \
        --data_dir=/data --suite=imagenet
    python -m efficientnet_advprop.evaluate --saved_model=served/efficientnet/1 \
        --suite=folder:/data/pets/val
    python -m efficientnet_advprop.evaluate --watch --model_dir=runs/b3 --data_dir=/data/imagenet
    python -m efficientnet_advprop.evaluate --compare runs/evaluation/b3-advprop \
        runs/evaluation/b3-baseline --data_dir=/data

Every image is evaluated exactly once. Results, the prediction for each image and a
report are written to --out_dir; the same command continues after an interruption. Data
are searched for below --data_dir (docs/evaluation.md has the details):
"""

import os
from typing import Callable

from absl import flags

from efficientnet_advprop.command_line import network_flags, program, strategy_flags
from efficientnet_advprop.config import suites
from efficientnet_advprop.config.tables import AUTOATTACK_VERSIONS, NORMS
from efficientnet_advprop.runtime.errors import UsageError

__doc__ += "\n" + suites.describe_layouts()

_NETWORK = network_flags.define()
_SAVED_MODEL = flags.DEFINE_string(
    "saved_model", None, "instead of --checkpoint: a SavedModel from images to logits, ours or not"
)
_BRANCH = flags.DEFINE_string(
    "branch",
    "main",
    "the branch of batch norms that is evaluated and attacked: main, or aux, aux_2 of --model_dir"
    " or of a .keras file; or a mixture, main:0.7,aux:0.3, with the statistics of the branch that"
    " is named first (not of a Keras model)",
)
_SUITE = flags.DEFINE_string(
    "suite",
    "imagenet",
    f"separated by commas: {', '.join(suites.SUITES)}; folder:PATH; also imagenet_c/fog",
)
_DATA_DIR = flags.DEFINE_string(
    "data_dir", None, "folder that holds the data sets by the names above"
)
_OUT_DIR = flags.DEFINE_string(
    "out_dir",
    None,
    "for results.json and predictions/; default: runs/evaluation/<name of the model>",
)
_COMPARE = flags.DEFINE_string(
    "compare",
    None,
    "compares the results (folders or results.json) of several models in --out_dir, instead of "
    "evaluating",
)
_PER_CLASS = flags.DEFINE_bool(
    "per_class", False, "the report has precision, recall and F1 of each class, and confusions"
)
_WATCH = flags.DEFINE_bool(
    "watch",
    False,
    "evaluates every new checkpoint of the run in --model_dir on its validation images, and keeps "
    "the best; the run itself needs --config.training.evaluate_every_epochs=0",
)
_WATCH_TIMEOUT = flags.DEFINE_float(
    "watch_timeout_seconds",
    None,
    "seconds without a new checkpoint after which --watch ends; default: no limit",
    0.0,
)
_STORED_SIZE = flags.DEFINE_integer(
    "stored_size",
    suites.STORED_SIZE,
    "pixels at which images stored at 224 (imagenet_c, stylized) are fed",
    1,
)
_MAX_IMAGES = flags.DEFINE_integer(
    "max_images",
    None,
    "evaluate only this many images of each test set, evenly spaced, marked as incomplete; "
    "default: all",
    1,
)
_INCOMPLETE = flags.DEFINE_bool(
    "allow_incomplete", False, "score what there is of incomplete data, marked as incomplete"
)
_EPSILON = flags.DEFINE_float(
    "pgd_epsilon", suites.PGD_EPSILON, "of the suite pgd: radius, pixels of 255", 0.0
)
_STEPS = flags.DEFINE_integer("pgd_steps", suites.PGD_STEPS, "of the suite pgd: iterations", 1)
_STEP_SIZE = flags.DEFINE_float(
    "pgd_step_size", suites.PGD_STEP_SIZE, "of the suite pgd: pixels of 255"
)
_RESTARTS = flags.DEFINE_integer(
    "pgd_restarts", 1, "of the suite pgd: random starts, of which an image must withstand all", 1
)
_ATTACK_NORM = flags.DEFINE_enum(
    "attack_norm", suites.AUTOATTACK_NORM, NORMS, "of the suite autoattack"
)
_ATTACK_EPSILON = flags.DEFINE_float(
    "attack_epsilon",
    None,
    "of the suite autoattack: radius, pixels of 255 (under l2 the Euclidean length over all pixel "
    f"values); default: {suites.AUTOATTACK_EPSILON:g} under linf, none under l2",
)
_ATTACK_VERSION = flags.DEFINE_enum(
    "attack_version",
    suites.AUTOATTACK_VERSION,
    list(AUTOATTACK_VERSIONS),
    "of the suite autoattack: which attacks, as in the reference implementation",
)
_ATTACK_TARGETS = flags.DEFINE_integer(
    "attack_targets",
    suites.AUTOATTACK_TARGETS,
    "of the suite autoattack: wrong classes that its targeted attacks aim at",
    1,
)
_SEED = flags.DEFINE_integer("seed", 0, "of the attack and of corruptions made here")
_BATCH_SIZE = flags.DEFINE_integer(
    "batch_size", 64, "images per batch, over all replicas", lower_bound=1
)
_STRATEGY = strategy_flags.define()


def _split(text: str, is_path: Callable[[str], bool]) -> list[str]:
    """Splits at commas, but not within the name of an existing file or folder."""
    found, pieces = [], text.split(",")
    while pieces:
        joined = [",".join(pieces[:number]).lstrip() for number in range(len(pieces), 0, -1)]
        chosen = next((name for name in joined if is_path(name)), pieces[0].strip())
        found.append(chosen)
        pieces = pieces[chosen.count(",") + 1 :]
    return [name for name in found if name]


def _is_folder_suite(name: str) -> bool:
    head, colon, path = name.partition(":")
    return bool(colon) and head.startswith("folder") and os.path.isdir(path)


def _open_classifier():
    import dataclasses

    from efficientnet_advprop.data.class_names import read_class_names
    from efficientnet_advprop.evaluation import saved_models

    if not _SAVED_MODEL.value:
        network = _NETWORK.restore(branch=_BRANCH.value)
        print(network.description, flush=True)
        return network.classifier(_BRANCH.value)
    _NETWORK.require_unused("saved_model", besides=("image_size", "crop", "labels_map_file"))
    if _BRANCH.value != "main":
        raise UsageError(
            f"`--branch` is {_BRANCH.value!r}, but a SavedModel holds one branch only; "
            "use --model_dir."
        )
    classifier = saved_models.load(
        _SAVED_MODEL.value, image_size=_NETWORK.image_size.value, crop=_NETWORK.crop.value
    )
    path = _NETWORK.labels_map_file.value
    if path is None:
        return classifier
    names = read_class_names(path, classifier.num_classes)
    return dataclasses.replace(classifier, class_names=names)


def _make_attacks():
    """Returns the attacks of the suites pgd and autoattack."""
    from efficientnet_advprop.attacks import PGD, AutoAttack

    epsilon = _ATTACK_EPSILON.value
    if epsilon is None and _ATTACK_NORM.value == suites.AUTOATTACK_NORM:
        epsilon = suites.AUTOATTACK_EPSILON
    if epsilon is None:
        raise UsageError(
            f"`--attack_epsilon` is missing; under `--attack_norm={_ATTACK_NORM.value}` no "
            "radius is usual. 0.5 of papers that count pixels in [0, 1] is 127.5 here."
        )
    try:
        return (
            PGD(_EPSILON.value, _STEP_SIZE.value, _STEPS.value, targeted=False, random_start=1.0),
            AutoAttack(
                epsilon,
                _ATTACK_NORM.value,
                version=_ATTACK_VERSION.value,
                num_targets=_ATTACK_TARGETS.value,
            ),
        )
    except ValueError as error:
        raise UsageError(f"One of the flags --pgd_* and --attack_* is wrong: {error}") from error


def _watch():
    _NETWORK.require_unused("watch", besides=("model_dir",))
    for flag, what in ((_NETWORK.model_dir, "the folder of the run"), (_DATA_DIR, "its records")):
        if not flag.value:
            raise UsageError(f"`--{flag.name}` is missing; give {what}.")
    if _SUITE.present:
        raise UsageError(
            "`--suite` does not go with `--watch`, which takes the run's own validation images; "
            "evaluate the best checkpoint on suites afterwards."
        )
    from efficientnet_advprop.training import continuous_evaluation

    result = continuous_evaluation.follow(
        model_dir=_NETWORK.model_dir.value,
        data_dir=_DATA_DIR.value,
        strategy=_STRATEGY.make(),
        timeout_seconds=_WATCH_TIMEOUT.value,
    )
    if result.best_accuracy is not None:
        print(
            f"best: step {result.best_step}, top-1 {100 * result.best_accuracy:.2f} %", flush=True
        )


def main(argv):
    if _COMPARE.value:
        from efficientnet_advprop.reports import report_files

        paths = [*_split(_COMPARE.value, os.path.exists), *argv[1:]]
        print(
            report_files.write_report(
                paths, _OUT_DIR.value, data_dir=_DATA_DIR.value, per_class=_PER_CLASS.value
            ),
            flush=True,
        )
        return
    program.refuse_arguments(argv)
    if _WATCH.value:
        _watch()
        return
    names = _split(_SUITE.value, _is_folder_suite)
    suites.check(names)  # before anything is downloaded or loaded
    # Here, so that --help and a wrong flag do not wait for TensorFlow.
    from efficientnet_advprop.evaluation import evaluation_run
    from efficientnet_advprop.reports import report_files

    strategy = _STRATEGY.make()
    attack, autoattack = _make_attacks()
    with strategy.scope():
        classifier = _open_classifier()
    print(
        f"  classes: {classifier.num_classes}; branch {classifier.branch}; "
        f"images stored at 224 are fed at {_STORED_SIZE.value}"
    )
    out_dir = _OUT_DIR.value or evaluation_run.default_directory(classifier)
    evaluation_run.run(
        classifier,
        names,
        data_dir=_DATA_DIR.value,
        out_dir=out_dir,
        stored_size=_STORED_SIZE.value,
        attack=attack,
        num_restarts=_RESTARTS.value,
        autoattack=autoattack,
        max_images=_MAX_IMAGES.value,
        allow_incomplete=_INCOMPLETE.value,
        seed=_SEED.value,
        batch_size=_BATCH_SIZE.value,
        strategy=strategy,
    )
    print(report_files.write_report([out_dir], per_class=_PER_CLASS.value), flush=True)


if __name__ == "__main__":
    program.run(main, takes_arguments=True)
