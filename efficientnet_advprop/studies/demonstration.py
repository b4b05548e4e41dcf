"""The demo: trains three networks on handwritten digits, evaluates and compares them.

Usage:

    demo = run(config, "runs/demo")     # a `DemoReport`; None: SIGTERM stopped a training
    html = demo_report.render_html(demo)

The networks differ only in their training method: AdvProp and its two baselines. After
an interruption, the same call continues where it stopped.
"""

import dataclasses
import os
import platform
from typing import Optional

import tensorflow as tf

from efficientnet_advprop.config import ConfigError, ExperimentConfig
from efficientnet_advprop.data import corruptions, digits, pipeline
from efficientnet_advprop.evaluation import evaluation_run
from efficientnet_advprop.evaluation.classifiers import as_classifier
from efficientnet_advprop.models.variable_names import weights_digest
from efficientnet_advprop.reports import evaluation_report, report_files
from efficientnet_advprop.reports.comparison import Measured, compare
from efficientnet_advprop.studies import demo_report
from efficientnet_advprop.studies.embedded_tests import (
    ATTACK_DESCRIPTION,
    open_test_sets,
)
from efficientnet_advprop.training import assembly, checkpoints, loop, passes, progress
from tpu_utils.devices.strategy import make_strategy

NAMES = {"vanilla": "Vanilla", "advprop": "AdvProp", "adversarial": "Adversarial, no aux BN"}
DESCRIPTIONS = {
    "vanilla": "clean images only",
    "advprop": "adversarial images through auxiliary batch norms of their own",
    "adversarial": "clean and adversarial images through the same batch norms",
}
ATTACK_EPSILONS = (4.0, 8.0, 16.0)  # of the attacks in the evaluation, pixels of 255
AUTOATTACKED = "advprop"
# Batches are filled up: of 1,000 images some 790 withstand the first attack.
_AUTOATTACK_BATCH = 200
NUM_PICTURES = 6
SAMPLE = 7  # the test image that is shown with every corruption


def run(
    config: ExperimentConfig, output_dir: str, *, autoattack_images: int = 0
) -> Optional[demo_report.DemoReport]:
    """Trains a network by each method, measures the averaged weights, and collects the
    results.

    Args:
        config: the config of all three runs, except for the method.
        output_dir: the folder for the runs, `data/` and `evaluation/`.
        autoattack_images: on so many test images, evenly spaced, AutoAttack is tried,
            against AdvProp's network alone; 0: on none.

    Raises:
        ConfigError: the config uses other data.
        and as `loop.train` and `evaluation_run.measure`.
    """
    if config.data.source != "digits":
        raise ConfigError(
            f"`config.data.source` is {config.data.source!r}, but the demo is about 'digits'; "
            "use configs/digits.py."
        )
    configs = {method: _with_method(config, method) for method in NAMES}
    data_dir = os.path.join(output_dir, "data")
    strategy = make_strategy("one_device")
    for number, (method, own_config) in enumerate(configs.items(), 1):
        print(f"\n[{number}/4] {NAMES[method]}: {DESCRIPTIONS[method]}", flush=True)
        result = loop.train(
            own_config,
            data_dir=data_dir,
            model_dir=os.path.join(output_dir, method),
            strategy=strategy,
        )
        if result.step < result.total_steps:
            return None  # SIGTERM stopped the training, which has printed a message
    print("\n[4/4] scores of the averaged weights, through the main batch norms", flush=True)
    measured = _evaluate(configs, data_dir, output_dir, autoattack_images)
    return _make_report(configs, measured, data_dir, output_dir, autoattack_images)


def _with_method(config: ExperimentConfig, method: str) -> ExperimentConfig:
    return dataclasses.replace(config, training=dataclasses.replace(config.training, method=method))


def _evaluate(
    configs: dict[str, ExperimentConfig], data_dir: str, output_dir: str, autoattack_images: int
) -> list[Measured]:
    """The results of each method, saved in <output_dir>/evaluation/ as they are
    measured.

    The same weights are not measured twice.
    """
    config = configs["vanilla"]
    test_sets = open_test_sets(
        config,
        data_dir,
        severities=corruptions.SEVERITIES,
        attack_epsilons=ATTACK_EPSILONS,
        autoattack_images=autoattack_images or None,
    )
    in_order = [*test_sets["clean"], *test_sets["attacked"], *test_sets["corrupted"]]
    # All weights are evaluated in the same network, so that each attack is traced only
    # once.
    shared_network = assembly.make_model(config, aux_branches=0)
    shared_classifier = as_classifier(
        shared_network, image_size=config.data.image_size, crop=config.data.eval_crop
    )
    measured = []
    for method in configs:
        network = checkpoints.load_averaged_model(os.path.join(output_dir, method), which="last")
        for variable, value in zip(shared_network.variables, network.variables):
            variable.assign(value)
        digest = weights_digest(network.variables)
        classifier = dataclasses.replace(
            shared_classifier, name=NAMES[method], weights_digest=digest
        )
        # Other weights get another folder.
        folder = os.path.join(output_dir, "evaluation", f"{method}-{digest[:8]}")
        print(f"{NAMES[method]}:", flush=True)
        results = evaluation_run.measure(
            classifier, in_order, folder, batch_size=config.training.eval_batch_size
        )
        if method == AUTOATTACKED and autoattack_images:
            results = evaluation_run.measure(
                classifier,
                test_sets["autoattack"],
                folder,
                batch_size=min(autoattack_images, _AUTOATTACK_BATCH),
            )
        measured.append(Measured(NAMES[method], results, folder))
    return measured


def _make_report(
    configs: dict[str, ExperimentConfig],
    measured: list[Measured],
    data_dir: str,
    output_dir: str,
    autoattack_images: int,
) -> demo_report.DemoReport:
    config = configs["advprop"]
    images, _ = digits.load_digits("validation")
    num_train = pipeline.count_examples(config.data, data_dir, "train")
    report = evaluation_report.Report(
        title="AdvProp on handwritten digits",
        comparison=compare(measured),
        introduction="Three EfficientNets were trained in different ways on the same "
        f"{num_train} images: on clean images alone; by AdvProp, which sends adversarial images "
        "through auxiliary batch norms that are left out afterwards; and on clean and adversarial "
        "images through the same batch norms. AdvProp’s claim (Xie et al., CVPR 2020) is that "
        "adversarial images then improve the accuracy on clean and on corrupted images, and that "
        "without the auxiliary batch norms they reduce it. This page shows what one run measured.",
        descriptions={NAMES[method]: description for method, description in DESCRIPTIONS.items()},
        featured=NAMES["advprop"],
        samples={
            corruption: [
                corruptions.corrupt(images[SAMPLE], corruption, severity, seed=SAMPLE)
                for severity in corruptions.SEVERITIES
            ]
            for corruption in corruptions.CORRUPTIONS
        },
        facts=_list_facts(config, num_train, autoattack_images),
        open_images=report_files.images_below(data_dir),
    )
    return demo_report.DemoReport(
        report=report,
        clean="digits",
        corrupted="digits_c",
        histories={
            NAMES[method]: progress.read_metrics(os.path.join(output_dir, method))
            for method in configs
        },
        pictures=_make_pictures(configs, output_dir),
        picture_note="AdvProp’s own attack on test images, through the auxiliary batch norms: "
        f"{_describe(config.attack)}.",
        configs={NAMES[method]: own_config.to_json() for method, own_config in configs.items()},
    )


def _list_facts(config: ExperimentConfig, num_train: int, autoattack_images: int) -> dict[str, str]:
    """What a reader needs to reproduce the results, in words."""
    model = config.model
    training = config.training
    size = config.data.image_size
    num_parameters = assembly.make_model(config, aux_branches=0).count_params()
    autoattack = {
        "AutoAttack": f"version standard, L∞, through {NAMES[AUTOATTACKED]}’s main batch norms, on "
        f"{autoattack_images} of the test images, evenly spaced"
    }
    return {
        "data": f"scikit-learn’s handwritten digits, 8×8 enlarged to {size}×{size}: "
        f"{num_train} for training, {digits.NUM_VALIDATION} others for all tests",
        "network": f"EfficientNet-{model.variant.upper()} at width "
        f"{model.width_coefficient:g} and depth {model.depth_coefficient:g}, "
        f"{num_parameters:,} parameters",
        "training": f"{training.num_epochs:g} epochs in batches of "
        f"{training.global_batch_size}, {config.optimizer.name}, weights averaged with decay "
        f"{config.optimizer.ema_decay:g}; the same for all three",
        "training attack": f"{_describe(config.attack)}; on AdvProp’s auxiliary branch, "
        "or on the only branch",
        "evaluation attack": ATTACK_DESCRIPTION,
        **(autoattack if autoattack_images else {}),
        "corruptions": f"{len(corruptions.CORRUPTIONS)} of ImageNet-C’s types, made here with "
        "the parameters for small images and fixed seeds",
        "seed": str(training.seed),
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs, {platform.system()}",
    }


def _describe(attack) -> str:
    return (
        f"PGD with ε = {attack.epsilon:g} of 255, "
        f"{attack.num_steps} steps of {attack.step_size:g}, "
        f"{'targeted at a random wrong class' if attack.targeted else 'untargeted'}"
    )


def _make_pictures(
    configs: dict[str, ExperimentConfig], output_dir: str
) -> list[demo_report.Picture]:
    """Test images of the first classes, their adversarial versions, and all
    predictions.
    """
    config = configs["advprop"]
    images, labels = digits.load_digits("validation")
    chosen = [int((labels == label).argmax()) for label in range(NUM_PICTURES)]
    images = tf.constant(images[chosen], tf.float32)
    labels = tf.constant(labels[chosen], tf.int32)
    state = assembly.make_state(config)
    checkpoints.Checkpoints(
        os.path.join(output_dir, "advprop"), state, config.training.keep_last
    ).restore()
    seed = tf.constant([config.training.seed, 0])
    network = passes.attacked_network(state.model, "aux", config.attack.statistics, seed)
    adversarial_images = assembly.make_attack(config)(network, images, labels, seed)

    def answers(method):
        model = checkpoints.load_averaged_model(os.path.join(output_dir, method), which="last")
        return [
            [str(int(label)) for label in tf.argmax(model(x), -1)]
            for x in (images, adversarial_images)
        ]

    by_method = {method: answers(method) for method in configs}
    return [
        demo_report.Picture(
            image=images[i].numpy(),
            adversarial_image=adversarial_images[i].numpy(),
            label=str(int(labels[i])),
            answers={
                NAMES[method]: (clean[i], adversarial[i])
                for method, (clean, adversarial) in by_method.items()
            },
        )
        for i in range(len(chosen))
    ]
