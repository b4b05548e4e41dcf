"""AdvProp beside its two rivals on the digits: three runs, their scores, and what a page shows of them.

    demo = run(config, "runs/demo")                               # a `DemoReport`; None: SIGTERM stopped a training
    html = demo_report.render_html(demo)

The networks differ in nothing but how they are trained. Stopped or killed, the same call goes on where it was.
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
from efficientnet_advprop.studies.digit_tests import ATTACK_DESCRIPTION, open_test_sets
from efficientnet_advprop.training import assembly, checkpoints, loop, progress, steps
from tpu_utils.devices.strategy import make_strategy

NAMES = {"vanilla": "Vanilla", "advprop": "AdvProp", "adversarial": "Adversarial, no aux BN"}
DESCRIPTIONS = {
    "vanilla": "clean images only",
    "advprop": "adversarial images through auxiliary batch norms of their own",
    "adversarial": "clean and adversarial images through the same batch norms",
}
ATTACK_EPSILONS = (4.0, 8.0, 16.0)  # of the evaluation, pixels of 255
NUM_PICTURES = 6
SAMPLE = 7  # the test image that stands for all in the pictures of the corruptions


def run(config: ExperimentConfig, output_dir: str) -> Optional[demo_report.DemoReport]:
    """Trains by each method, measures the averaged weights of the last steps, and gathers what the page shows.

    Args:
        config: of all three, but for the method.
        output_dir: gets a folder for each run, `data/` and `evaluation/`.

    Raises:
        ConfigError: the config is of other data.
        and as `loop.train` and `evaluation_run.measure`.
    """
    if config.data.source != "digits":
        raise ConfigError(
            f"`config.data.source` is {config.data.source!r}, but the demo is about 'digits'; use configs/digits.py."
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
            return None  # by SIGTERM; the trainer has said so
    print("\n[4/4] scores of the averaged weights, through the main batch norms", flush=True)
    return _make_report(configs, _evaluate(configs, data_dir, output_dir), data_dir, output_dir)


def _with_method(config: ExperimentConfig, method: str) -> ExperimentConfig:
    return dataclasses.replace(config, training=dataclasses.replace(config.training, method=method))


def _evaluate(
    configs: dict[str, ExperimentConfig], data_dir: str, output_dir: str
) -> list[Measured]:
    """Scores by method, kept in <output_dir>/evaluation/ as they come in; the same weights are not measured twice."""
    config = configs["vanilla"]
    test_sets = open_test_sets(
        config, data_dir, severities=corruptions.SEVERITIES, attack_epsilons=ATTACK_EPSILONS
    )
    in_order = [*test_sets["clean"], *test_sets["attacked"], *test_sets["corrupted"]]
    # One network for all three in turn, so that each attack on it is traced once.
    network_on_stage = assembly.make_model(config, aux_branches=0)
    stage = as_classifier(
        network_on_stage, image_size=config.data.image_size, crop=config.data.eval_crop
    )
    measured = []
    for method in configs:
        network = checkpoints.load_averaged_model(os.path.join(output_dir, method), which="last")
        for variable, value in zip(network_on_stage.variables, network.variables):
            variable.assign(value)
        digest = weights_digest(network.variables)
        classifier = dataclasses.replace(stage, name=NAMES[method], weights_digest=digest)
        folder = os.path.join(
            output_dir, "evaluation", f"{method}-{digest[:8]}"
        )  # of other weights: another folder
        print(f"{NAMES[method]}:", flush=True)
        results = evaluation_run.measure(
            classifier, in_order, folder, batch_size=config.training.eval_batch_size
        )
        measured.append(Measured(NAMES[method], results, folder))
    return measured


def _make_report(
    configs: dict[str, ExperimentConfig], measured: list[Measured], data_dir: str, output_dir: str
) -> demo_report.DemoReport:
    config = configs["advprop"]
    images, _ = digits.load_digits("validation")
    num_train = pipeline.count_examples(config.data, data_dir, "train")
    report = evaluation_report.Report(
        title="AdvProp on handwritten digits",
        comparison=compare(measured),
        introduction=f"Three EfficientNets, alike but for how they were trained, on {num_train} images: on clean images alone; "
        "by AdvProp, which sends adversarial images through auxiliary batch norms of their own, left out afterwards; "
        "and on clean and adversarial images through the same batch norms. AdvProp’s claim (Xie et al., CVPR 2020) is that "
        "adversarial images then help on clean and on corrupted ones, and that without the auxiliary batch norms they do harm. "
        "Here is what one run measured.",
        descriptions={NAMES[method]: description for method, description in DESCRIPTIONS.items()},
        featured=NAMES["advprop"],
        samples={
            corruption: [
                corruptions.corrupt(images[SAMPLE], corruption, severity, seed=SAMPLE)
                for severity in corruptions.SEVERITIES
            ]
            for corruption in corruptions.CORRUPTIONS
        },
        facts=_list_facts(config, num_train),
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
        picture_note=f"AdvProp’s own attack on test images, through the auxiliary batch norms: {_describe(config.attack)}.",
        configs={NAMES[method]: own_config.to_json() for method, own_config in configs.items()},
    )


def _list_facts(config: ExperimentConfig, num_train: int) -> dict[str, str]:
    """What one needs to get the same figures, in words."""
    model, training, size = config.model, config.training, config.data.image_size
    num_parameters = assembly.make_model(config, aux_branches=0).count_params()
    return {
        "data": f"scikit-learn’s handwritten digits, 8×8 enlarged to {size}×{size}: {num_train} for training, "
        f"{digits.NUM_VALIDATION} others for all tests",
        "network": f"EfficientNet-{model.variant.upper()} at width {model.width_coefficient:g} and depth "
        f"{model.depth_coefficient:g}, {num_parameters:,} parameters",
        "training": f"{training.num_epochs:g} epochs in batches of {training.global_batch_size}, {config.optimizer.name}, "
        f"weights averaged with decay {config.optimizer.ema_decay:g}; the same for all three",
        "training attack": f"{_describe(config.attack)}; on AdvProp’s auxiliary branch, or the only one there is",
        "evaluation attack": ATTACK_DESCRIPTION,
        "corruptions": f"{len(corruptions.CORRUPTIONS)} of ImageNet-C’s types, made here with the parameters for small images "
        "and fixed seeds",
        "seed": str(training.seed),
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs, {platform.system()}",
    }


def _describe(attack) -> str:
    return (
        f"PGD with ε = {attack.epsilon:g} of 255, {attack.num_steps} steps of {attack.step_size:g}, "
        f"{'targeted at a random wrong class' if attack.targeted else 'untargeted'}"
    )


def _make_pictures(
    configs: dict[str, ExperimentConfig], output_dir: str
) -> list[demo_report.Picture]:
    """Test images of the first classes, what AdvProp's attack makes of them, and what each model says to both."""
    config = configs["advprop"]
    images, labels = digits.load_digits("validation")
    chosen = [int((labels == label).argmax()) for label in range(NUM_PICTURES)]
    images, labels = tf.constant(images[chosen], tf.float32), tf.constant(labels[chosen], tf.int32)
    state = assembly.make_state(config)
    checkpoints.Checkpoints(
        os.path.join(output_dir, "advprop"), state, config.training.keep_last
    ).restore()
    seed = tf.constant([config.training.seed, 0])
    network = steps.attacked_network(state.model, "aux", config.attack.statistics, seed)
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
