r"""Evaluates a model on test suites: accuracy, robustness and calibration.

Usage:

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
report are written to --out_dir. After an interruption, the same command continues where
it stopped. The program searches for the following data below --data_dir
(docs/evaluation.md has the details):
"""

from efficientnet_advprop.command_line import program  # isort: skip  # before TensorFlow

import dataclasses

from absl import flags

from efficientnet_advprop.attacks import PGD, AutoAttack
from efficientnet_advprop.attacks.autoattack import VERSIONS
from efficientnet_advprop.attacks.norms import NORMS
from efficientnet_advprop.command_line import network_flags, strategy_flags
from efficientnet_advprop.config.experiment import ConfigError
from efficientnet_advprop.data.class_names import read_class_names
from efficientnet_advprop.evaluation import evaluation_run, saved_models
from efficientnet_advprop.evaluation.suites import imagenet_suites, other_answers, registry
from efficientnet_advprop.evaluation.suites.test_sets import SuiteSettings
from efficientnet_advprop.reports import report_files
from efficientnet_advprop.training import continuous_evaluation

__doc__ += "\n" + "\n".join([imagenet_suites.describe_layouts(), other_answers.describe_layouts()])

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
_SUITE = flags.DEFINE_list(
    "suite",
    ["imagenet"],
    f"separated by commas: {', '.join(registry.SUITES)}; folder:PATH; also imagenet_c/fog",
)
_DATA_DIR = flags.DEFINE_string(
    "data_dir", None, "folder that holds the data sets by the names above"
)
_OUT_DIR = flags.DEFINE_string(
    "out_dir",
    None,
    "for results.json and predictions/; default: runs/evaluation/<name of the model>",
)
_COMPARE = flags.DEFINE_list(
    "compare",
    [],
    "compares the results (folders or results.json) of several models in --out_dir, instead of "
    "evaluating",
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
    "stored_size", 224, "pixels at which images stored at 224 (imagenet_c, stylized) are fed", 1
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
    "pgd_epsilon", SuiteSettings.attack.epsilon, "of the suite pgd: radius, pixels of 255", 0.0
)
_STEPS = flags.DEFINE_integer(
    "pgd_steps", SuiteSettings.attack.num_steps, "of the suite pgd: iterations", 1
)
_STEP_SIZE = flags.DEFINE_float(
    "pgd_step_size", SuiteSettings.attack.step_size, "of the suite pgd: pixels of 255"
)
_RESTARTS = flags.DEFINE_integer(
    "pgd_restarts", 1, "of the suite pgd: random starts, of which an image must withstand all", 1
)
_ATTACK_NORM = flags.DEFINE_enum(
    "attack_norm", SuiteSettings.autoattack.norm, list(NORMS), "of the suite autoattack"
)
_ATTACK_EPSILON = flags.DEFINE_float(
    "attack_epsilon",
    None,
    "of the suite autoattack: radius, pixels of 255 (under l2 the Euclidean length over all pixel "
    f"values); default: {SuiteSettings.autoattack.epsilon:g} under linf, none under l2",
)
_ATTACK_VERSION = flags.DEFINE_enum(
    "attack_version",
    SuiteSettings.autoattack.version,
    list(VERSIONS),
    "of the suite autoattack: which attacks, as in the reference implementation",
)
_ATTACK_TARGETS = flags.DEFINE_integer(
    "attack_targets",
    SuiteSettings.autoattack.num_targets,
    "of the suite autoattack: wrong classes that its targeted attacks aim at",
    1,
)
_SEED = flags.DEFINE_integer("seed", 0, "of the attack and of corruptions made here")
_BATCH_SIZE = flags.DEFINE_integer(
    "batch_size", 64, "images per batch, over all replicas", lower_bound=1
)
_STRATEGY = strategy_flags.define()


def _open_classifier():
    if not _SAVED_MODEL.value:
        network = _NETWORK.restore(branch=_BRANCH.value)
        print(network.description, flush=True)
        return network.classifier(_BRANCH.value)
    _NETWORK.require_unused("saved_model", besides=("image_size", "crop", "labels_map_file"))
    if _BRANCH.value != "main":
        raise ConfigError(
            f"`--branch` is {_BRANCH.value!r}, but a SavedModel holds one branch only; "
            "use --model_dir."
        )
    classifier = saved_models.load(
        _SAVED_MODEL.value, image_size=_NETWORK.image_size.value, crop=_NETWORK.crop.value
    )
    path = _NETWORK.labels_map_file.value
    if path is None:
        return classifier
    return dataclasses.replace(
        classifier, class_names=read_class_names(path, classifier.num_classes)
    )


def _make_autoattack():
    epsilon = _ATTACK_EPSILON.value
    if epsilon is None:
        if _ATTACK_NORM.value != SuiteSettings.autoattack.norm:
            raise ConfigError(
                f"`--attack_epsilon` is missing; under `--attack_norm={_ATTACK_NORM.value}` no "
                "radius is usual. 0.5 of papers that count pixels in [0, 1] is 127.5 here."
            )
        epsilon = SuiteSettings.autoattack.epsilon
    try:
        return AutoAttack(
            epsilon,
            _ATTACK_NORM.value,
            version=_ATTACK_VERSION.value,
            num_targets=_ATTACK_TARGETS.value,
        )
    except ValueError as error:
        raise ConfigError(str(error).replace("`", "`--attack_", 1)) from error


def _watch():
    _NETWORK.require_unused("watch", besides=("model_dir",))
    for flag, what in ((_NETWORK.model_dir, "the folder of the run"), (_DATA_DIR, "its records")):
        if not flag.value:
            raise ConfigError(f"`--{flag.name}` is missing; give {what}.")
    if _SUITE.present:
        raise ConfigError(
            "`--suite` does not go with `--watch`, which takes the run's own validation images; "
            "evaluate the best checkpoint on suites afterwards."
        )
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
        print(
            report_files.write_report(
                [*_COMPARE.value, *argv[1:]], _OUT_DIR.value, data_dir=_DATA_DIR.value
            ),
            flush=True,
        )
        return
    program.refuse_arguments(argv)
    if _WATCH.value:
        _watch()
        return
    strategy = _STRATEGY.make()
    try:
        attack = PGD(
            _EPSILON.value, _STEP_SIZE.value, _STEPS.value, targeted=False, random_start=1.0
        )
    except ValueError as error:
        raise ConfigError(str(error).replace("`", "`--pgd_", 1)) from error
    autoattack = _make_autoattack()
    with strategy.scope():
        classifier = _open_classifier()
    print(
        f"  classes: {classifier.num_classes}; branch {classifier.branch}; "
        f"images stored at 224 are fed at {_STORED_SIZE.value}"
    )
    out_dir = _OUT_DIR.value or evaluation_run.default_directory(classifier)
    evaluation_run.run(
        classifier,
        _SUITE.value,
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
    print(report_files.write_report([out_dir]), flush=True)


if __name__ == "__main__":
    program.run(main, takes_arguments=True)
