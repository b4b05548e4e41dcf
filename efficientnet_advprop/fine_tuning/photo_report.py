"""Measures the networks that were trained on photographs, and writes the page about them.

report(model_dir, ["vanilla", "advprop"], class_names, facts, seed=0, …)
"""

import json
import os
from typing import Mapping, Sequence

import numpy as np
import tensorflow as tf

from efficientnet_advprop.attacks import PGD, AutoAttack
from efficientnet_advprop.data import records
from efficientnet_advprop.data.preprocessing import preprocess_for_eval
from efficientnet_advprop.evaluation import evaluation_run
from efficientnet_advprop.evaluation.classifiers import Classifier
from efficientnet_advprop.evaluation.results import ImagePredictions
from efficientnet_advprop.evaluation.suites.test_sets import (
    TestSet,
    attack_stages,
    corrupted_here,
    with_attack,
)
from efficientnet_advprop.images.labeled_images import RecordImages
from efficientnet_advprop.reports import charts, evaluation_report, pages, report_files
from efficientnet_advprop.reports.comparison import Comparison, Measured, compare, read_measured
from efficientnet_advprop.reports.pages import Card, Page, Section, colors
from efficientnet_advprop.reports.table import Cell, Table
from efficientnet_advprop.runtime import files
from efficientnet_advprop.serving.trained_network import RestoredNetwork, restore_network

SUITE = "photos-test"
RECORDS, EVALUATION = "records", "evaluation"
PGD_EPSILON, PGD_STEPS = 4.0, 10
_MAX_AUTOATTACK = 500
_NUM_SHOWN = 12


def _test_sets(
    model_dir: str, classifier: Classifier, max_corrupted: int, seed: int, autoattack: bool
) -> list[TestSet]:
    folder = os.path.join(model_dir, RECORDS)
    image_size, num_classes = classifier.image_size, classifier.num_classes

    def at_most(number):
        return TestSet(
            SUITE,
            folder,
            lambda: RecordImages(records.open_split(folder, "test"), num_classes),
            image_size,
            classifier.crop,
            max_images=number,
        )

    clean = at_most(None)
    pgd = PGD(PGD_EPSILON, PGD_EPSILON / 4, PGD_STEPS, targeted=False, random_start=1.0)
    chosen = [clean]
    if max_corrupted:
        chosen += corrupted_here(at_most(max_corrupted), f"{SUITE}_c", image_size, seed)
    chosen.append(with_attack(clean, pgd, seed=seed, suite=f"{SUITE}_pgd"))
    if autoattack:
        attack = AutoAttack(PGD_EPSILON, num_classes=num_classes)
        chosen += attack_stages(at_most(_MAX_AUTOATTACK), f"{SUITE}_autoattack", attack, seed)
    return chosen


def report(
    model_dir: str,
    methods: Sequence[str],
    names: Sequence[str],
    facts: Mapping[str, str],
    *,
    seed: int,
    max_corrupted: int,
    autoattack: bool,
    strategy: tf.distribute.Strategy,
) -> str:
    """Evaluates the averaged weights of the last step of each network on the test images, and
    writes report.html, its tables as Markdown, LaTeX and CSV, and report.json.

    What is measured already is not measured again.

    Args:
        model_dir: of the records, and of a run for each method.
        methods: names of the runs.
        names: of the classes by label.
        facts: what was done and with what, by title.
        seed: of corruptions and attacks.
        max_corrupted: test images under each corruption and severity; 0: none.
        autoattack: also under AutoAttack.
        strategy: of the evaluation.

    Returns:
        The main table and where the page is, for a console.
    """
    networks = {}
    for method in methods:
        with strategy.scope():
            network = restore_network(model_dir=os.path.join(model_dir, method), which="last")
            classifier = network.classifier()
        evaluation_run.measure(
            classifier,
            _test_sets(model_dir, classifier, max_corrupted, seed, autoattack),
            os.path.join(model_dir, EVALUATION, method),
            strategy=strategy,
            allow_incomplete=True,
        )
        networks[method] = network
    images = RecordImages(records.open_split(os.path.join(model_dir, RECORDS), "test"), len(names))
    comparison = compare(
        read_measured([os.path.join(model_dir, EVALUATION, method) for method in methods])
    )
    page = evaluation_report.make_page(
        f"{' and '.join(methods)} on your photographs",
        comparison,
        class_names=names,
        open_images=lambda test_set: images if test_set == SUITE else None,
    )
    of_classes = [
        section
        for measured in comparison.measured
        for section in _class_sections(measured, names, images, networks[measured.name])
    ]
    facts = {**facts, "network": describe_size(networks[methods[0]])}
    done = Section("What was done", tables=[Table(["", ""], list(map(list, facts.items())))])
    sections = [*page.sections[:-1], *of_classes, *_curves(model_dir, methods)]
    page = Page(page.title, [*sections, page.sections[-1], done], _lead(comparison))
    path = pages.write(page, model_dir)
    _write_json(page, comparison, names, facts, model_dir)
    return f"\n{evaluation_report.format_console(comparison)}\nThe report: {path}"


def _write_json(
    page: Page,
    comparison: Comparison,
    names: Sequence[str],
    facts: Mapping[str, str],
    model_dir: str,
) -> None:
    contents = {
        "facts": dict(facts),
        "classes": list(names),
        "results": {
            measured.name: json.loads(measured.results.to_json())
            for measured in comparison.measured
        },
        "tables": {
            table.name: [
                {
                    column: cell.text if cell.value is None else cell.value
                    for column, cell in zip(table.columns, row)
                }
                for row in table.rows
            ]
            for table in page.tables()
            if table.name
        },
    }
    text = files.to_json(contents) + "\n"
    files.write_atomically(os.path.join(model_dir, "report.json"), text.encode())


def _lead(comparison: Comparison) -> str:
    num_images = comparison.first.results.test_sets[SUITE].score.num_images
    return (
        f"Accuracy on {num_images:,} test images that no training saw, as they are and changed."
        " Intervals are of 95 %; with few test images they are wide, and a difference within them"
        " says nothing."
    )


def _class_sections(
    measured: Measured, names: Sequence[str], images: RecordImages, network: RestoredNetwork
) -> list[Section]:
    predictions = measured.predictions(SUITE)
    found = [
        report_files.class_section(measured.name, predictions, names, f"per_class_{measured.name}")
    ]
    confidence = predictions.probabilities[:, 0]
    wrong = np.flatnonzero(~predictions.is_top1)
    worst = wrong[np.argsort(-confidence[wrong], kind="stable")][:_NUM_SHOWN]
    unsure = np.argsort(confidence, kind="stable")[:_NUM_SHOWN]
    for title, rows in (("its surest errors", worst), ("its least certain answers", unsure)):
        if len(rows):
            cards = _image_cards(network, predictions, rows, names, images)
            found.append(
                Section(
                    f"{measured.name}: {title}",
                    "Beside each image the gradient of the answer's logit for the pixels: bright"
                    " where a change would matter most.",
                    cards=cards,
                    grid="three",
                )
            )
    return found


def _image_cards(
    network: RestoredNetwork,
    predictions: ImagePredictions,
    rows: np.ndarray,
    names: Sequence[str],
    images: RecordImages,
) -> list[Card]:
    encoded = [images.encoded(int(row)) for row in rows]
    pixels = tf.stack(
        [preprocess_for_eval(one, network.image_size, crop=network.crop) for one in encoded]
    )
    answers = predictions.classes[rows, 0]
    maps = input_gradients(network.model, pixels, answers)
    cards = []
    for row, contents, answer, heat in zip(rows, encoded, answers, maps):
        label, confidence = predictions.labels[row], predictions.probabilities[row, 0]
        cards.append(
            Card(
                names[label],
                images=[
                    (charts.thumbnail_uri(contents) or "", "image"),
                    (charts.png_uri(heat), "gradient"),
                ],
                lines=[Cell(f"taken for {names[answer]}, {100 * confidence:.0f} %")],
            )
        )
    return cards


def input_gradients(model, pixels: tf.Tensor, classes: np.ndarray) -> np.ndarray:
    """Returns uint8 [n, size, size]: by how much a change of each pixel changes the logit of
    a class, the largest over the channels, with each image's largest as 255.
    """
    pixels = tf.cast(pixels, tf.float32)
    with tf.GradientTape() as tape:
        tape.watch(pixels)
        logits = model(pixels, training=False)
        chosen = tf.gather(logits, classes, axis=1, batch_dims=1)
    heat = tf.reduce_max(tf.abs(tape.gradient(chosen, pixels)), axis=-1)
    largest = tf.maximum(tf.reduce_max(heat, axis=(1, 2), keepdims=True), 1e-12)
    return tf.cast(255 * heat / largest, tf.uint8).numpy()


def describe_size(network: RestoredNetwork) -> str:
    """Returns the parameters and the FLOPs (two per multiplication with its addition) of one
    image.
    """
    shape = [1, network.image_size, network.image_size, 3]
    call = tf.function(lambda images: network.model(images, training=False))
    graph = call.get_concrete_function(tf.TensorSpec(shape, tf.float32)).graph
    options = tf.compat.v1.profiler.ProfileOptionBuilder.float_operation()
    options["output"] = "none"
    logger = tf.get_logger()
    level = logger.level
    logger.setLevel("ERROR")  # it warns of TensorFlow's own deprecated call
    try:
        flops = tf.compat.v1.profiler.profile(graph, options=options).total_float_ops
    finally:
        logger.setLevel(level)
    count = sum(int(np.prod(v.shape)) for v in network.model.trainable_variables)
    return f"{network.model.name}, {count:,} parameters, {flops / 1e6:,.1f} million FLOPs an image"


def _curves(model_dir: str, methods: Sequence[str]) -> list[Section]:
    """Loss of the training and accuracy of the validation images over the updates."""
    dots = colors(list(methods))
    found: dict[str, list] = {"clean_loss": [], "eval_top1": []}
    for method in methods:
        lines = files.read_text(os.path.join(model_dir, method, "metrics.jsonl")).splitlines()
        entries = list(map(json.loads, lines))
        for key, curves in found.items():
            own = [(one["step"], one[key]) for one in entries if one.get(key) is not None]
            if own:
                steps, values = zip(*own)
                curves.append(charts.Curve(method, dots[method], values, x=steps))
    titles = {"clean_loss": "loss on clean images in training", "eval_top1": "validation accuracy"}
    cards = [
        Card(
            titles[key],
            svg=charts.line_chart(
                curves[0].x,
                curves,
                x_label="updates",
                **({"scale": 1.0, "y_range": None} if key == "clean_loss" else {}),
            ),
            lines=[Cell(curve.label, color=curve.color) for curve in curves],
        )
        for key, curves in found.items()
        if curves
    ]
    return [Section("How the training went", cards=cards, grid="two")] if cards else []
