"""The demo: a small study of three training methods, whose page has pictures.

The networks differ only in their training method (AdvProp and its two baselines) and in
their seed.
"""

import dataclasses
import os
import platform
import statistics
from typing import Mapping, Sequence

import numpy as np
import tensorflow as tf

from advprop_experiments import execution, report
from advprop_experiments.estimates import Estimate
from advprop_experiments.plan import METRICS, Arm, Claim, Contrast, Study, run_dir
from advprop_experiments.report import Summary
from efficientnet_advprop.config.experiment import ConfigError, ExperimentConfig
from efficientnet_advprop.data import builtin_datasets, corruptions, sources
from efficientnet_advprop.data.builtin_datasets import BUILTIN_DATASETS
from efficientnet_advprop.evaluation.metrics import Score
from efficientnet_advprop.evaluation.results import Results
from efficientnet_advprop.reports import charts
from efficientnet_advprop.reports.charts import Curve, Interval
from efficientnet_advprop.reports.pages import Card, Page, Section, colors
from efficientnet_advprop.reports.table import Cell, Table
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
_PLACES = {
    "clean": "on clean images",
    "corrupted": "on corrupted images",
    "autoattack": "under AutoAttack",
}
_COLORS = colors(NAMES)
_NUM_PICTURES = 6
_SAMPLE = 7  # the test image that is shown with every corruption
_MAX_PERTURBATION_GAIN = 16


def make_study(config: ExperimentConfig, *, autoattack_images: int) -> Study:
    """Returns the demo's plan: `config` by three methods and with three seeds.

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


def make_page(summary: Summary, output_dir: str) -> Page:
    """Returns the page of the runs in `output_dir`, which must be done."""
    study = summary.study
    names = [f"{arm}/seed_{study.seeds[0]}" for arm in study.arms]
    first_runs = dict(zip(study.arms, study.find_runs(names)))
    folders = {arm: run_dir(output_dir, run.name) for arm, run in first_runs.items()}
    config = first_runs["advprop"].config
    data_dir = os.path.join(output_dir, "data")
    results = {
        run.name: Results.read(os.path.join(run_dir(output_dir, run.name), "evaluation"))
        for run in study.runs()
    }
    # The last attack of the chain tells what withstood all.
    last = execution.choose_test_sets(first_runs["advprop"], study, data_dir)["autoattack"][-1]
    autoattack = {
        arm: results[run.name].test_sets[last.name].score for arm, run in first_runs.items()
    }
    histories = {arm: progress.read_metrics(folder) for arm, folder in folders.items()}
    seeds = f"{len(study.seeds)} seeds"
    lead = f"Small networks were trained here in three ways, each with {seeds}. "
    lead += "; ".join(f"{NAMES[arm]}: {what}" for arm, what in DESCRIPTIONS.items()) + "."
    of_study = report.make_page(summary)
    return Page(
        study.title,
        [
            Section("Accuracy", tell(summary), cards=accuracy_cards(summary, autoattack)),
            *of_study.sections,
            _section_of_corruptions(study, results),
            _section_of_pictures(config, folders, study.seeds[0]),
            training_section(histories, study.seeds[0]),
            Section(
                "How this was measured",
                tables=[Table(["what", "how"], list(_list_facts(study, config, data_dir).items()))],
            ),
        ],
        f"{of_study.lead} {lead}",
    )


def tell(summary: Summary) -> str:
    """Says in one sentence with how many seeds AdvProp is ahead, and by how many points.

    It counts, and infers nothing: the words hold whatever the figures are.
    """

    def count(other: str, metric: str) -> str:
        (values,) = [
            found.estimate.values
            for found in summary.findings
            if found.contrast.weights == {"advprop": 1.0, other: -1.0} and found.metric == metric
        ]
        points = f"{100 * statistics.fmean(values):+.1f}".replace("-", "−")
        of = f"{sum(value > 0 for value in values)} of {len(values)}"
        if (other, metric) == ("vanilla", "clean"):
            return f"{_PLACES[metric]} with {of} seeds ({points} points on average)"
        return f"{_PLACES[metric]} with {of} ({points})"

    clean, corrupted, autoattack = (count("vanilla", metric) for metric in _PLACES)
    same_clean, same_corrupted = (count("adversarial", m) for m in ("clean", "corrupted"))
    return (
        f"AdvProp is ahead of vanilla training {clean}, {corrupted} and {autoattack}; it is ahead"
        " of training on the same images without auxiliary batch norms"
        f" {same_clean} and {same_corrupted}."
    )


def accuracy_cards(summary: Summary, autoattack: Mapping[str, Score]) -> list[Card]:
    """Returns a chart of each metric: over the seeds, under AutoAttack over the images."""
    over_seeds = "dots: single seeds; lines: 95 % intervals (Student’s) of other seeds"
    cards = [
        Card(_capitalize(_PLACES[metric]), f"{METRICS[metric]}; {over_seeds}", svg)
        for metric in ("clean", "corrupted")
        if (svg := accuracy_chart({arm: of[metric] for arm, of in summary.arms.items()}))
    ]
    num_images = next(iter(autoattack.values())).num_images
    seed = summary.study.seeds[0]
    note = f"seed {seed}; {num_images} images, over which the intervals are (Wilson’s)"
    rows = [_row(arm, s.top1, s.interval(), ()) for arm, s in autoattack.items()]
    svg = charts.interval_chart(rows, x_label="top-1, %", x_range=(0, 100), size=(3.6, 1.3))
    return [*cards, Card(_capitalize(_PLACES["autoattack"]), note, svg)]


def accuracy_chart(by_arm: Mapping[str, Estimate]) -> str:
    """Returns a chart of the arms' accuracies over the seeds."""
    rows = [_row(arm, e.mean, e.span, e.values) for arm, e in by_arm.items()]
    return charts.interval_chart(rows, x_label="top-1, %", x_range=(0, 100), size=(3.6, 1.3))


def _row(arm: str, mean: float, span: tuple[float, float], values: Sequence[float]) -> Interval:
    low, high = max(span[0], 0.0), min(span[1], 1.0)
    return Interval(f"{NAMES[arm]} {100 * mean:.1f}", mean, (low, high), values, _COLORS[arm])


def _capitalize(text: str) -> str:
    return text[0].upper() + text[1:]


def _section_of_corruptions(study: Study, results: Mapping[str, Results]) -> Section:
    suite = BUILTIN_DATASETS[study.source].corrupted_name
    images, _ = builtin_datasets.load_digits("validation")
    cards = []
    for corruption in corruptions.CORRUPTIONS:
        accuracies = {
            run.name: results[run.name].mean_corrupted_accuracy(suite, corruption)
            for run in study.runs()
        }
        by_arm = {
            arm: Estimate.of([accuracies[f"{arm}/seed_{seed}"] for seed in study.seeds])
            for arm in study.arms
        }
        sample = corruptions.corrupt(images[_SAMPLE], corruption, SEVERITY, seed=_SAMPLE)
        name = corruption.replace("_", " ")
        image = (charts.png_uri(sample), "")
        cards.append(Card(name, svg=accuracy_chart(by_arm), images=[image]))
    return Section("Corruption by corruption", cards=cards)


def _section_of_pictures(
    config: ExperimentConfig, folders: Mapping[str, str], seed_of_networks: int
) -> Section:
    """Test images of the first classes, their adversarial versions, and all predictions."""
    images, labels = builtin_datasets.load_digits("validation")
    chosen = [int((labels == label).argmax()) for label in range(_NUM_PICTURES)]
    images = tf.constant(images[chosen], tf.float32)
    labels = tf.constant(labels[chosen], tf.int32)
    state = build.make_state(config)
    checkpoints.Checkpoints(folders["advprop"], state, config.training.keep_last).restore()
    seed = tf.constant([config.training.seed, 0])
    network = passes.attacked_network(state.model, "aux", config.attack.statistics, seed)
    attacked = build.make_attack(config)(network, images, labels, seed)
    predictions = {}  # arm → (of clean images, of adversarial images)
    for arm, folder in folders.items():
        model = checkpoints.load_averaged_model(folder, which="last")
        predictions[arm] = [tf.argmax(model(x), -1).numpy() for x in (images, attacked)]
    images, attacked = images.numpy(), attacked.numpy()
    gain = perturbation_gain(attacked - images)
    note = (
        "AdvProp’s own attack on test images, through the auxiliary batch norms: "
        f"{_describe(config.attack)}. Perturbations are shown {gain} times as strong, around gray. "
        f"Below: what the networks of seed {seed_of_networks} answer, through their main batch "
        "norms, to the clean → to the adversarial image."
    )
    cards = [
        picture_card(images[i], attacked[i], gain, int(labels[i]), {
            arm: (int(clean[i]), int(adversarial[i]))
            for arm, (clean, adversarial) in predictions.items()
        })
        for i in range(len(chosen))
    ]  # fmt: skip
    return Section("What the attack of the training does to a digit", note, cards=cards)


def picture_card(
    image: np.ndarray,
    attacked: np.ndarray,
    gain: int,
    label: int,
    predictions: Mapping[str, tuple[int, int]],
) -> Card:
    """Returns an image, its amplified perturbation and its adversarial version.

    Args:
        image, attacked: float [height, width, 3], pixels in [0, 255].
        predictions: arm → (for the clean image, for the adversarial one).
    """

    def as_uri(pixels):
        return charts.png_uri(np.clip(np.round(pixels), 0, 255).astype(np.uint8))

    return Card(
        images=[
            (as_uri(image), f"clean: {label}"),
            (as_uri(127.5 + gain * (attacked - image)), f"perturbation × {gain}"),
            (as_uri(attacked), "adversarial"),
        ],
        lines=[
            Cell(
                f"{NAMES[arm]}: {before} → {after}{'' if after == label else ' ✗'}",
                color=_COLORS[arm],
            )
            for arm, (before, after) in predictions.items()
        ],
    )


def perturbation_gain(perturbations: np.ndarray) -> int:
    """Returns the factor by which pictures amplify perturbations.

    It is 16, or the largest smaller power of two at which none, drawn around mid-gray,
    leaves the range of pixels.
    """
    largest = float(np.abs(perturbations).max())
    gain = _MAX_PERTURBATION_GAIN
    while gain > 1 and gain * largest > 128.0:
        gain //= 2
    return gain


def training_section(histories: Mapping[str, Sequence[Mapping[str, float]]], seed: int) -> Section:
    """Returns the losses of one run of each arm, and its median speed."""
    curves = []
    for name, kind in (("clean_loss", ""), ("adversarial_loss", ", adversarial")):
        for arm, history in histories.items():
            entries = [entry for entry in history if name in entry]
            if entries:
                losses = [entry[name] for entry in entries]
                epochs = [entry["epoch"] for entry in entries]
                label = f"{NAMES[arm]}{kind}"
                curves.append(Curve(label, _COLORS[arm], losses, x=epochs, dashed=bool(kind)))
    svg = charts.line_chart(
        range(99),
        curves,
        x_label="epoch",
        y_label="cross-entropy",
        scale=1.0,
        y_range=None,
        markers=False,
    )
    lines = []
    for arm, history in histories.items():
        speeds = [entry["images_per_second"] for entry in history if "images_per_second" in entry]
        speed = f"{statistics.median(speeds):.0f} images per second" if speeds else "speed unknown"
        lines.append(Cell(f"{NAMES[arm]}, {speed}", color=_COLORS[arm]))
    note = (
        f"Cross-entropy of seed {seed}; solid: on clean images, dashed: on adversarial ones. "
        "Images per second: the median while training, beside the other runs."
    )
    return Section("Training", note, cards=[Card(svg=svg, lines=lines)], grid="one")


def _list_facts(study: Study, config: ExperimentConfig, data_dir: str) -> dict[str, str]:
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
        f"{SEVERITY} of 5, made here with the parameters for small images "
        "and fixed seeds",
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
