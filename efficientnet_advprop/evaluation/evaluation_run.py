"""The evaluation run: a model on test sets, kept as it comes in, and gone on with where it stopped.

    results = run(model, ["imagenet", "imagenet_c"], data_dir="/data", out_dir="runs/evaluation/mine")

Each test set's predictions and scores are written when it is done; the same call again measures what is not there yet, or was
measured under other conditions.
"""

import concurrent.futures
import functools
import importlib.metadata
import os
import platform
from typing import Any, Callable, Iterable, Iterator, NamedTuple, Optional, Sequence

import numpy as np
import tensorflow as tf

from efficientnet_advprop.attacks import PGD
from efficientnet_advprop.data import labeled_images
from efficientnet_advprop.data.labeled_images import LabeledImages
from efficientnet_advprop.data.records import DataError
from efficientnet_advprop.errors import UsageError
from efficientnet_advprop.evaluation.classifiers import Classifier, as_classifier
from efficientnet_advprop.evaluation.image_predictions import ImagePredictions
from efficientnet_advprop.evaluation.progress import Progress
from efficientnet_advprop.evaluation.results import (
    RESULTS_FILE,
    Conditions,
    Results,
    TestSetResult,
    predictions_path,
)
from efficientnet_advprop.evaluation.suites.registry import open_suites
from efficientnet_advprop.evaluation.suites.test_sets import SuiteSettings, TestSet
from efficientnet_advprop.files import write_atomically
from tpu_utils.errors import brief_message

DEFAULT_DIRECTORY = os.path.join("runs", "evaluation")
_MANY = 10  # test sets, whose files take a while to be listed
_PACKAGES = ("numpy", "scipy", "pillow", "scikit-learn")


class RunError(UsageError, ValueError):
    """An evaluation that cannot be run as asked; the message says why."""


class _Seen(NamedTuple):
    """What a look at a test set's files told."""

    num_images: int
    num_drawn: int
    conditions: Conditions
    problems: list[str]
    remarks: Sequence[str]


def run(
    model: Any,
    suites: Sequence[str],
    *,
    data_dir: Optional[str] = None,
    out_dir: Optional[str] = None,
    name: Optional[str] = None,
    image_size: Optional[int] = None,
    crop: Optional[str] = None,
    branch: str = "main",
    stored_size: int = SuiteSettings.stored_size,
    attack: PGD = SuiteSettings.attack,
    num_restarts: int = 1,
    max_images: Optional[int] = None,
    allow_incomplete: bool = False,
    seed: int = 0,
    batch_size: int = 64,
    strategy: Optional[tf.distribute.Strategy] = None,
    log: Optional[Callable[[str], None]] = None,
) -> Results:
    """Evaluates a model on test suites.

    Args:
        model: see `classifiers.as_classifier`: a network of ours, a Keras model, a `tf.function`, or any function from uint8
            images [n, size, size, 3] to logits [n, classes], of whatever library.
        suites: names as for `--suite`: "imagenet", "imagenet_c", "imagenet_c/fog", "folder:/data/pets", …
        data_dir: what lies where below it says docs/evaluation.md.
        out_dir: of results.json and predictions/; None: runs/evaluation/<name>.
        name: of the model; needed for a function without one. Of a function the name also stands for the weights, which cannot
            be seen: give another one another name.
        image_size, crop, branch: see `classifiers.as_classifier`.
        stored_size, attack, num_restarts, max_images, allow_incomplete, seed: see `SuiteSettings`.
        batch_size: images, over all replicas.
        strategy: under which a TensorFlow model was made; None: one device.
        log: takes lines of progress; None: the console.

    Returns:
        What is now in `out_dir`, results of earlier calls included.

    Raises:
        ClassifierError, SuiteError, RunError, DataError: with what is wrong in words.
    """
    classifier = as_classifier(model, name=name, image_size=image_size, crop=crop, branch=branch)
    settings = SuiteSettings(
        data_dir=data_dir,
        num_classes=classifier.num_classes - classifier.has_background,
        image_size=classifier.image_size,
        crop=classifier.crop,
        stored_size=stored_size,
        attack=attack,
        num_restarts=num_restarts,
        max_images=max_images,
        seed=seed,
        allow_incomplete=allow_incomplete,
        class_names=classifier.class_names,
    )
    return measure(
        classifier,
        open_suites(suites, settings),
        out_dir or default_directory(classifier),
        batch_size=batch_size,
        strategy=strategy,
        allow_incomplete=allow_incomplete,
        log=log,
    )


def default_directory(classifier: Classifier) -> str:
    """Where a model's results go unless told: below `DEFAULT_DIRECTORY`, by its name and branch."""
    name = os.path.basename(os.path.normpath(classifier.name)).removesuffix(".tar.gz")
    return os.path.join(
        DEFAULT_DIRECTORY, name if classifier.branch == "main" else f"{name}-{classifier.branch}"
    )


def measure(
    classifier: Classifier,
    test_sets: Sequence[TestSet],
    out_dir: str,
    *,
    batch_size: int = 64,
    strategy: Optional[tf.distribute.Strategy] = None,
    allow_incomplete: bool = False,
    log: Optional[Callable[[str], None]] = None,
) -> Results:
    """Measures what `out_dir` does not hold yet; see `run`."""
    strategy = strategy or tf.distribute.get_strategy()
    _check(classifier, test_sets, batch_size, strategy)
    results = _start_or_continue(classifier, out_dir)
    if len(test_sets) > _MANY:
        (log or print)(f"Looking at the files of {len(test_sets)} test sets …")
    seen = {test_set.name: _look_at(test_set, classifier.branch) for test_set in test_sets}
    for name, facts in seen.items():
        for remark in facts.remarks:
            (log or print)(f"{name}: {remark}")
    _require_complete(seen, allow_incomplete)
    coming = [
        test_set
        for test_set in test_sets
        if not _is_measured(results, test_set.name, seen[test_set.name], out_dir)
    ]
    num_images = sum(seen[test_set.name].num_drawn for test_set in coming)
    with Progress(num_images, log) as progress:
        if len(coming) < len(test_sets):
            progress.write(
                f"{len(test_sets) - len(coming)} of {len(test_sets)} test sets were measured before: {out_dir}"
            )
        open_batches = functools.partial(_open_batches, batch_size=batch_size, strategy=strategy)
        for test_set, opened in _open_ahead(coming, seen, open_batches):
            progress.start(test_set.name)
            facts = seen[test_set.name]
            predictions = _predict(classifier, test_set, facts, opened, strategy, progress)
            result = TestSetResult(
                score=predictions.score(),
                calibration=predictions.calibration(),
                conditions=facts.conditions,
                expected_num_images=test_set.expected_num_images,
                problems=tuple(facts.problems),
            )
            predictions.write(predictions_path(out_dir, test_set.name))
            results.test_sets[test_set.name] = result
            write_atomically(os.path.join(out_dir, RESULTS_FILE), results.to_json().encode())
            progress.write(_describe(test_set, result))
        if coming:
            progress.write(f"{progress.summary()}; results and predictions: {out_dir}")
    return results


def _check(
    classifier: Classifier,
    test_sets: Sequence[TestSet],
    batch_size: int,
    strategy: tf.distribute.Strategy,
) -> None:
    num_replicas = strategy.num_replicas_in_sync
    if batch_size < 1 or batch_size % num_replicas:
        raise RunError(
            f"`batch_size` is {batch_size}, but must be positive and divide by the {num_replicas} replicas."
        )
    if classifier.fixed_batch_size not in (None, batch_size // num_replicas):
        raise RunError(
            f"`batch_size` is {batch_size}, but {classifier.name!r} takes {classifier.fixed_batch_size} images at a time only; "
            f"use {classifier.fixed_batch_size * num_replicas}."
        )
    for test_set in test_sets:
        if classifier.fixed_image_size not in (None, test_set.image_size):
            option = "stored_size" if test_set.crop == "none" else "image_size"
            raise RunError(
                f"`{option}` is {test_set.image_size}, at which {test_set.name} would be fed, but {classifier.name!r} takes "
                f"images of {classifier.fixed_image_size} pixels only; set it to that."
            )


def _start_or_continue(classifier: Classifier, out_dir: str) -> Results:
    # TensorFlow's own word: its distribution has another name on a TPU VM.
    versions = {"tensorflow": tf.__version__}
    versions |= {package: importlib.metadata.version(package) for package in _PACKAGES}
    config = {
        **classifier.config,
        "image_size": classifier.image_size,
        "crop": classifier.crop,
        "branch": classifier.branch,
    }
    if classifier.class_names is not None:
        config["class_names"] = list(classifier.class_names)
    results = Results(
        classifier.name,
        classifier.weights_digest,
        config,
        {**versions, "python": platform.python_version()},
    )
    if not tf.io.gfile.exists(os.path.join(out_dir, RESULTS_FILE)):
        return results
    try:
        earlier = Results.read(out_dir)
    except ValueError as error:
        raise RunError(
            f"`out_dir` is {out_dir!r}, but {error} Move the file away, or choose another folder."
        ) from error
    if (earlier.weights_digest, earlier.config.get("branch")) != (
        results.weights_digest,
        classifier.branch,
    ) or (not results.weights_digest and earlier.model != results.model):
        raise RunError(
            f"`out_dir` is {out_dir!r}, which holds the results of another model ({earlier.model}, weights "
            f"{earlier.weights_digest[:12] or 'unknown'}, branch {earlier.config.get('branch')}); choose another folder."
        )
    results.test_sets = earlier.test_sets
    return results


def _look_at(test_set: TestSet, branch: str) -> _Seen:
    images = test_set.find_images()
    num_images = images.num_images
    conditions = test_set.conditions(images.digest(), num_images, branch)
    return _Seen(
        num_images,
        test_set.num_drawn(num_images),
        conditions,
        test_set.problems(num_images),
        images.remarks,
    )


def _require_complete(seen: dict[str, _Seen], allow_incomplete: bool) -> None:
    wrong = [f"{name} {problem}" for name, facts in seen.items() for problem in facts.problems]
    if wrong and not allow_incomplete:
        more = f"; and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise DataError(
            f"{'; '.join(wrong[:5])}{more}. Repair the data; or let what there is be scored, and marked as incomplete, with "
            "`--allow_incomplete`."
        )


def _is_measured(results: Results, name: str, facts: _Seen, out_dir: str) -> bool:
    earlier = results.test_sets.get(name)
    return (
        earlier is not None
        and earlier.conditions == facts.conditions
        and tf.io.gfile.exists(predictions_path(out_dir, name))
    )


def _open_ahead(
    test_sets: Sequence[TestSet], seen: dict[str, _Seen], open_batches: Callable[..., Iterable]
) -> Iterator[tuple[TestSet, "concurrent.futures.Future[tuple[LabeledImages, Iterable]]"]]:
    """Each test set with its images and batches; a thread lists and opens the next set while the present one is scored."""

    def open_one(test_set):
        images = test_set.find_images()
        return images, open_batches(test_set, images, seen[test_set.name])

    with concurrent.futures.ThreadPoolExecutor(1) as opener:
        coming = opener.submit(open_one, test_sets[0]) if test_sets else None
        for index, test_set in enumerate(test_sets):
            opened = coming
            concurrent.futures.wait([opened])
            if index + 1 < len(test_sets):
                coming = opener.submit(open_one, test_sets[index + 1])
            yield test_set, opened


def _predict(
    classifier: Classifier,
    test_set: TestSet,
    facts: _Seen,
    opened: "concurrent.futures.Future[tuple[LabeledImages, Iterable]]",
    strategy: tf.distribute.Strategy,
    progress: Progress,
) -> ImagePredictions:
    images, batches = opened.result()
    parts, num_done = [], 0
    try:
        for answers in classifier.predict(
            batches,
            kept_classes=test_set.kept_classes,
            attack=test_set.attack,
            num_restarts=test_set.num_restarts,
            seed=test_set.seed,
            strategy=strategy,
        ):
            parts.append(answers)
            num_done += len(answers["positions"])
            progress.add(len(answers["positions"]))
    except tf.errors.OpError as error:
        # Files come in the order of their positions, so that the search may start where the answers ended.
        start = (
            num_done
            if facts.num_drawn == facts.num_images and isinstance(images, labeled_images.FileImages)
            else 0
        )
        unreadable = labeled_images.find_unreadable(
            images, start
        ) or labeled_images.find_unreadable(images)
        if unreadable is None:
            raise RunError(f"{test_set.name}: {brief_message(error)}") from error
        raise DataError(f"{test_set.name}: {unreadable}. Repair or replace it.") from error
    return _in_order(parts, images, test_set, facts)


def _open_batches(test_set, images, facts, *, batch_size, strategy) -> Iterable:
    def open_pipeline(context=None):
        return labeled_images.make_dataset(
            images,
            image_size=test_set.image_size,
            crop=test_set.crop,
            global_batch_size=batch_size,
            input_context=context,
            num_drawn=facts.num_drawn,
            change=test_set.change,
        )

    if strategy is tf.distribute.get_strategy():
        return open_pipeline()
    return strategy.distribute_datasets_from_function(open_pipeline)


def _in_order(
    parts: list[dict[str, np.ndarray]], images: LabeledImages, test_set: TestSet, facts: _Seen
) -> ImagePredictions:
    """All answers, by position; and a last look that every image is there once."""
    joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    order = np.argsort(joined["positions"])
    positions = joined["positions"][order]
    if len(positions) != facts.num_drawn or len(np.unique(positions)) != facts.num_drawn:
        raise RunError(
            f"{test_set.name}: {len(positions)} images were seen, {len(np.unique(positions))} of them different, where there "
            f"are {facts.num_drawn}; did the files change meanwhile?"
        )
    labels = joined["labels"][order]
    if test_set.kept_classes is not None and not np.isin(labels, test_set.kept_classes).all():
        wrong = labels[~np.isin(labels, test_set.kept_classes)]
        raise DataError(
            f"{test_set.name} has images of class {wrong[0]}, which is none of its {len(test_set.kept_classes)}."
        )
    return ImagePredictions(
        image_ids=np.array([images.image_id(position) for position in positions]),
        labels=labels,
        **{name: joined[name][order] for name in ("classes", "probabilities", "losses")},
    )


def _describe(test_set: TestSet, result: TestSetResult) -> str:
    """The line of a finished test set."""
    score = result.score
    low, high = (100 * end for end in score.interval())
    parts = [
        f"{test_set.name:28} top-1 {100 * score.top1:6.2f} % ({low:.2f}–{high:.2f})",
        f"top-5 {100 * score.top5:6.2f} %",
        f"{score.num_images:,} images",
        test_set.describe_feeding(),
    ]
    if test_set.kept_classes is not None:
        parts.append(f"{len(test_set.kept_classes)} classes")
    if test_set.attack is not None:
        parts.append(
            f"PGD ε {test_set.attack.epsilon:g}, {test_set.attack.num_steps} steps of {test_set.attack.step_size:g}, "
            f"{test_set.num_restarts} restart{'s' if test_set.num_restarts > 1 else ''}, {result.conditions.branch} batch norms"
        )
    if test_set.made_from is not None:
        parts.append("made here, not the official images")
    if not result.is_complete:
        parts.append(f"INCOMPLETE: {'; '.join(result.shortfalls)}")
    return "  ".join(parts)
