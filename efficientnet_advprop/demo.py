"""The demo: AdvProp beside its two rivals on handwritten digits, from nothing to a report, in a few minutes on two CPU cores.

    python -m efficientnet_advprop.demo --config=configs/digits.py

It trains one small EfficientNet by each method, with the same config, data and seed; scores the averaged weights on clean,
corrupted and attacked test images; and writes <output_dir>/report.html. Stopped or killed, the same command goes on where it
was. What it finds is what it shows: the weights are those after the last step, not the best on the test images. (The recipe
itself was found on these images with seed 0: BUILD_NOTES.md.)
"""

import dataclasses
import os
import platform
import time

import tensorflow as tf
from absl import flags, logging

from efficientnet_advprop import door
from efficientnet_advprop.attacks import PGD
from efficientnet_advprop.config import ConfigError, ExperimentConfig
from efficientnet_advprop.data import corruptions, digits, pipeline
from efficientnet_advprop.data.records import DataError, write_atomically
from efficientnet_advprop.evaluation import demo_reports, report_files, reports, running, suites
from efficientnet_advprop.evaluation.classifiers import as_classifier
from efficientnet_advprop.evaluation.comparison import Measured, compare
from efficientnet_advprop.evaluation.progress import format_duration
from efficientnet_advprop.evaluation.test_sets import SuiteSettings, with_attack
from efficientnet_advprop.models.digest import weights_digest
from efficientnet_advprop.training import assembly, checkpoints, loop, progress, steps
from tpu_utils.strategy import make_strategy

_CONFIG = door.define_config_flag()
_OUTPUT_DIR = flags.DEFINE_string("output_dir", "runs/demo", "folder of the three runs, their data, the scores and the report")

NAMES = {"vanilla": "Vanilla", "advprop": "AdvProp", "adversarial": "Adversarial, no aux BN"}
DESCRIPTIONS = {
    "vanilla": "clean images only",
    "advprop": "adversarial images through auxiliary batch norms of their own",
    "adversarial": "clean and adversarial images through the same batch norms",
}
ATTACK_EPSILONS = (4.0, 8.0, 16.0)  # of the evaluation, pixels of 255
ATTACK_STEPS, RELATIVE_STEP_SIZE = 10, 0.25  # iterations, and the size of one as a share of ε
NUM_PICTURES = 6
SAMPLE = 7  # the test image that stands for all in the pictures of the corruptions


def main(argv):
    del argv
    config, output_dir, started = door.read_config(_CONFIG), _OUTPUT_DIR.value, time.monotonic()
    if config.data.source != "digits":
        raise ConfigError(
            f"`config.data.source` is {config.data.source!r}, but the demo is about 'digits'; use configs/digits.py."
        )
    logging.set_verbosity(logging.WARNING)  # the data's remarks on each of the many test sets
    configs = {method: _with_method(config, method) for method in NAMES}
    data_dir = os.path.join(output_dir, "data")
    strategy = make_strategy("one_device")

    for number, (method, own_config) in enumerate(configs.items(), 1):
        print(f"\n[{number}/4] {NAMES[method]}: {DESCRIPTIONS[method]}", flush=True)
        result = loop.train(own_config, data_dir=data_dir, model_dir=os.path.join(output_dir, method), strategy=strategy)
        if result.step < result.total_steps:
            return 0  # by SIGTERM; the trainer has said so

    print("\n[4/4] scores of the averaged weights, through the main batch norms", flush=True)
    measured = _evaluate(configs, data_dir, output_dir)
    demo = _make_report(configs, measured, data_dir, output_dir)
    path = os.path.join(output_dir, "report.html")
    write_atomically(path, demo_reports.render_html(demo).encode())
    print(f"\n{reports.format_table(demo.report)}\n")
    print(f"{format_duration(time.monotonic() - started)}. The report: {os.path.abspath(path)}", flush=True)


def _with_method(config: ExperimentConfig, method: str) -> ExperimentConfig:
    return dataclasses.replace(config, training=dataclasses.replace(config.training, method=method))


def _evaluate(configs: dict[str, ExperimentConfig], data_dir: str, output_dir: str) -> list[Measured]:
    """Scores by method, kept in <output_dir>/evaluation/ as they come in; the same weights are not measured twice."""
    config = configs["vanilla"]
    settings = SuiteSettings(data_dir, config.model.num_classes, config.data.image_size, config.data.eval_crop)
    clean, *corrupted = suites.open_suites(["digits", "digits_c"], settings)
    attacks = [
        PGD(epsilon, RELATIVE_STEP_SIZE * epsilon, ATTACK_STEPS, targeted=False, random_start=1.0)
        for epsilon in ATTACK_EPSILONS
    ]
    seed = config.training.seed
    attacked = [with_attack(clean, dataclasses.replace(settings, attack=attack, seed=seed)) for attack in attacks]
    # One network for all three in turn, so that each attack on it is traced once.
    network_on_stage = assembly.make_model(config, aux_branches=0)
    stage = as_classifier(network_on_stage, image_size=config.data.image_size, crop=config.data.eval_crop)
    measured = []
    for method in configs:
        network = checkpoints.load_averaged_model(os.path.join(output_dir, method), which="last")
        for variable, value in zip(network_on_stage.variables, network.variables):
            variable.assign(value)
        digest = weights_digest(network.variables)
        classifier = dataclasses.replace(stage, name=NAMES[method], weights_digest=digest)
        folder = os.path.join(output_dir, "evaluation", f"{method}-{digest[:8]}")  # of other weights: another folder
        print(f"{NAMES[method]}:", flush=True)
        test_sets = [clean, *attacked, *corrupted]
        results = running.measure(classifier, test_sets, folder, batch_size=config.training.eval_batch_size)
        measured.append(Measured(NAMES[method], results, folder))
    return measured


def _make_report(
    configs: dict[str, ExperimentConfig], measured: list[Measured], data_dir: str, output_dir: str
) -> demo_reports.DemoReport:
    config = configs["advprop"]
    images, _ = digits.load_digits("validation")
    num_train = pipeline.count_examples(config.data, data_dir, "train")
    report = reports.Report(
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
                corruptions.corrupt(images[SAMPLE], corruption, severity, seed=SAMPLE) for severity in corruptions.SEVERITIES
            ]
            for corruption in corruptions.CORRUPTIONS
        },
        facts=_list_facts(config, num_train),
        open_images=report_files.images_below(data_dir),
    )
    return demo_reports.DemoReport(
        report=report,
        clean="digits",
        corrupted="digits_c",
        histories={NAMES[method]: progress.read_metrics(os.path.join(output_dir, method)) for method in configs},
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
        "evaluation attack": f"Untargeted PGD through the main batch norms, {ATTACK_STEPS} steps of {RELATIVE_STEP_SIZE:g}·ε "
        "from a random start.",
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


def _make_pictures(configs: dict[str, ExperimentConfig], output_dir: str) -> list[demo_reports.Picture]:
    """Test images of the first classes, what AdvProp's attack makes of them, and what each model says to both."""
    config = configs["advprop"]
    images, labels = digits.load_digits("validation")
    chosen = [int((labels == label).argmax()) for label in range(NUM_PICTURES)]
    images, labels = tf.constant(images[chosen], tf.float32), tf.constant(labels[chosen], tf.int32)
    state = assembly.make_state(config)
    checkpoints.Checkpoints(os.path.join(output_dir, "advprop"), state, config.training.keep_last).restore()
    seed = tf.constant([config.training.seed, 0])
    network = steps.attacked_network(state.model, "aux", config.attack.statistics, seed)
    adversarial_images = assembly.make_attack(config)(network, images, labels, seed)

    def answers(method):
        model = checkpoints.load_averaged_model(os.path.join(output_dir, method), which="last")
        return [[str(int(label)) for label in tf.argmax(model(x), -1)] for x in (images, adversarial_images)]

    by_method = {method: answers(method) for method in configs}
    return [
        demo_reports.Picture(
            image=images[i].numpy(),
            adversarial_image=adversarial_images[i].numpy(),
            label=str(int(labels[i])),
            answers={NAMES[method]: (clean[i], adversarial[i]) for method, (clean, adversarial) in by_method.items()},
        )
        for i in range(len(chosen))
    ]


if __name__ == "__main__":
    door.run(main, run_errors=(checkpoints.CheckpointError, DataError, loop.TrainingError))
