"""The demo as a small study: three training methods, three seeds, on handwritten digits.

Usage:

    study = make_study(config)
    execution.execute_all(study, execution.own_command, "runs/demo", num_parallel=2)
    html = demo_report.render_html(collect(study, "runs/demo"))

The networks differ only in their training method (AdvProp and its two baselines) and in
their seed.
"""

import dataclasses
import os
import platform
from typing import Mapping

import tensorflow as tf

from advprop_experiments import demo_report, execution, report
from advprop_experiments.estimates import Estimate
from advprop_experiments.plan import Arm, Claim, Contrast, Study
from advprop_experiments.run_scores import read_all_scores, run_dir
from efficientnet_advprop.config.experiment import ConfigError, ExperimentConfig
from efficientnet_advprop.data import builtin_datasets, corruptions, sources
from efficientnet_advprop.data.builtin_datasets import BUILTIN_DATASETS
from efficientnet_advprop.evaluation.results import Results
from efficientnet_advprop.training import build, checkpoints, passes, progress

NAMES = {"vanilla": "Vanilla", "advprop": "AdvProp", "adversarial": "Adversarial, no aux BN"}
DESCRIPTIONS = {
    "vanilla": "clean images only",
    "advprop": "adversarial images through auxiliary batch norms of their own",
    "adversarial": "clean and adversarial images through the same batch norms",
}
SEEDS = (91, 92, 93)  # of no study: docs/maintainers/decisions.md
SEVERITY = 3  # of the corruptions
AUTOATTACK_EPSILON = 16.0  # pixels of 255, L∞
# On two cores of a machine without AVX-512; docs/maintainers/measurements.md.
_SECONDS = {"vanilla": 45.0, "advprop": 95.0, "adversarial": 95.0}
NUM_PICTURES = 6
SAMPLE = 7  # the test image that is shown with every corruption


def make_study(config: ExperimentConfig, *, autoattack_images: int) -> Study:
    """The plan of the demo.

    Args:
        config: the config of all runs, except for the method and the seed.
        autoattack_images: so many test images, evenly spaced, are attacked by
            AutoAttack.

    Raises:
        ConfigError: the config uses other data, or is invalid.
    """
    if config.data.source != "digits":
        raise ConfigError(
            f"`config.data.source` is {config.data.source!r}, but the demo is about 'digits'; "
            "use configs/demo.py."
        )
    metrics = ("clean", "corrupted", "autoattack")
    study = Study(
        title="AdvProp on handwritten digits",
        introduction="AdvProp’s claim (Xie et al., CVPR 2020) is that adversarial images make a "
        "network more accurate on clean and on corrupted images if they go through batch norms of "
        "their own, which are left out afterwards, and that without these they do harm.",
        arms={
            method: Arm(_with_method(config, method), seconds)
            for method, seconds in _SECONDS.items()
        },
        seeds=SEEDS,
        claims=[
            Claim(
                "demo",
                "AdvProp’s claims",
                "More accurate by adversarial images, and only with batch norms of their own.",
                [
                    Contrast(
                        f"{NAMES[first]} − {NAMES[second]}",
                        {first: 1.0, second: -1.0},
                        expected,
                        metrics,
                    )
                    for first, second, expected in (
                        ("advprop", "vanilla", 1),
                        ("adversarial", "vanilla", -1),
                        ("advprop", "adversarial", 1),
                    )
                ],
            )
        ],
        severities=(SEVERITY,),
        autoattack_epsilon=AUTOATTACK_EPSILON,
        autoattack_images=autoattack_images,
        # It takes as long as all else; for those of one seed.
        autoattack_seeds=SEEDS[:1],
    )
    study.validate()
    return study


def _with_method(config: ExperimentConfig, method: str) -> ExperimentConfig:
    training = config.training
    # The test images are looked at once, at the end: those before would take time.
    training = dataclasses.replace(
        training, method=method, evaluate_every_epochs=training.num_epochs
    )
    return dataclasses.replace(config, training=training)


def collect(study: Study, output_dir: str) -> demo_report.DemoReport:
    """The contents of the page, from the runs of `output_dir`, which must be done."""
    first_runs = {arm: study.find_run(f"{arm}/seed_{study.seeds[0]}") for arm in study.arms}
    folders = {arm: run_dir(output_dir, run.name) for arm, run in first_runs.items()}
    config = first_runs["advprop"].config
    data_dir = os.path.join(output_dir, "data")
    results = {
        run.name: Results.read(os.path.join(run_dir(output_dir, run.name), "evaluation"))
        for run in study.runs()
    }
    # The last attack of the chain tells what withstood all.
    chain = execution.choose_test_sets(first_runs["advprop"], study, data_dir)["autoattack"]
    images, _ = builtin_datasets.load_digits("validation")
    return demo_report.DemoReport(
        summary=report.summarize(study, read_all_scores(study, output_dir)),
        names=NAMES,
        descriptions=DESCRIPTIONS,
        by_corruption=_by_corruption(study, results),
        autoattack={
            arm: results[run.name].test_sets[chain[-1].name].score
            for arm, run in first_runs.items()
        },
        samples={
            corruption: corruptions.corrupt(images[SAMPLE], corruption, SEVERITY, seed=SAMPLE)
            for corruption in corruptions.CORRUPTIONS
        },
        histories={arm: progress.read_metrics(folder) for arm, folder in folders.items()},
        pictures=_make_pictures(config, folders),
        picture_note="AdvProp’s own attack on test images, through the auxiliary batch norms: "
        f"{_describe(config.attack)}.",
        facts=_list_facts(study, config, data_dir),
        configs={arm: run.config.to_json() for arm, run in first_runs.items()},
    )


def _by_corruption(study: Study, results: Mapping[str, Results]) -> dict[str, dict[str, Estimate]]:
    """Corruption → arm → accuracy over the seeds."""
    suite = BUILTIN_DATASETS[study.source].corrupted_name
    return {
        corruption: {
            arm: Estimate.of(
                [
                    results[f"{arm}/seed_{seed}"].mean_corrupted_accuracy(suite, corruption)
                    for seed in study.seeds
                ]
            )
            for arm in study.arms
        }
        for corruption in corruptions.CORRUPTIONS
    }


def _list_facts(study: Study, config: ExperimentConfig, data_dir: str) -> dict[str, str]:
    """What a reader needs to reproduce the results, in words."""
    model = config.model
    training = config.training
    size = config.data.image_size
    num_train = sources.open_split(config.data, data_dir, "train").num_records
    num_parameters = build.make_model(config, aux_branches=0).count_params()
    return {
        "data": f"scikit-learn’s handwritten digits, 8×8 enlarged to {size}×{size}: "
        f"{num_train} for training, {builtin_datasets.NUM_VALIDATION:,} others for all tests",
        "network": f"EfficientNet-{model.variant.upper()} at width "
        f"{model.width_coefficient:g} and depth {model.depth_coefficient:g}, "
        f"{num_parameters:,} parameters",
        "training": f"{training.num_epochs:g} epochs in batches of "
        f"{training.global_batch_size}, {config.optimizer.name}, weights averaged with decay "
        f"{config.optimizer.ema_decay:g}; the same for all three methods",
        "training attack": f"{_describe(config.attack)}; on AdvProp’s auxiliary branch, "
        "or on the only branch",
        "scores": "of the averaged weights after the last step, through the main batch norms",
        "corruptions": f"{len(corruptions.CORRUPTIONS)} of ImageNet-C’s types at severity "
        f"{SEVERITY} of 5, made here with the parameters for small images and fixed seeds",
        "AutoAttack": f"version standard, L∞, ε = {study.autoattack_epsilon:g} of 255, on "
        f"{study.autoattack_images} of the test images, evenly spaced; the networks of seed "
        f"{study.autoattack_seeds[0]}",
        "seeds": ", ".join(map(str, study.seeds)),
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs, {platform.system()}; "
        f"TensorFlow {tf.__version__}, Python {platform.python_version()}",
    }


def _describe(attack) -> str:
    return (
        f"PGD with ε = {attack.epsilon:g} of 255, "
        f"{attack.num_steps} steps of {attack.step_size:g}, "
        f"{'targeted at a random wrong class' if attack.targeted else 'untargeted'}"
    )


def _make_pictures(config: ExperimentConfig, folders: dict[str, str]) -> list[demo_report.Picture]:
    """Test images of the first classes, their adversarial versions, and all
    predictions.
    """
    images, labels = builtin_datasets.load_digits("validation")
    chosen = [int((labels == label).argmax()) for label in range(NUM_PICTURES)]
    images = tf.constant(images[chosen], tf.float32)
    labels = tf.constant(labels[chosen], tf.int32)
    state = build.make_state(config)
    checkpoints.Checkpoints(folders["advprop"], state, config.training.keep_last).restore()
    seed = tf.constant([config.training.seed, 0])
    network = passes.attacked_network(state.model, "aux", config.attack.statistics, seed)
    adversarial_images = build.make_attack(config)(network, images, labels, seed)

    def answers(folder):
        model = checkpoints.load_averaged_model(folder, which="last")
        return [
            [str(int(label)) for label in tf.argmax(model(x), -1)]
            for x in (images, adversarial_images)
        ]

    by_arm = {arm: answers(folder) for arm, folder in folders.items()}
    return [
        demo_report.Picture(
            image=images[i].numpy(),
            adversarial_image=adversarial_images[i].numpy(),
            label=str(int(labels[i])),
            answers={
                arm: (clean[i], adversarial[i]) for arm, (clean, adversarial) in by_arm.items()
            },
        )
        for i in range(len(chosen))
    ]
