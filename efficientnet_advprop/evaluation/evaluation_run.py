"""The evaluation run: a model on test sets, kept as it comes in, and gone on with where
it stopped.

    results = run(model, ["imagenet", "imagenet_c"], data_dir="/data", out_dir="results/b3")

Each test set's predictions and scores are written when it is done; the same call again
measures what is not there yet, or was measured under other conditions.
"""

import concurrent.futures
import functools
import importlib.metadata
import math
import os
import platform
from typing import Any, Callable, Iterable, Iterator, NamedTuple, Optional, Sequence

import numpy as np
import tensorflow as tf

from efficientnet_advprop.attacks import PGD, AutoAttack
from efficientnet_advprop.attacks.network_checks import square_warnings
from efficientnet_advprop.data.records import DataError
from efficientnet_advprop.evaluation.classifiers import Classifier, as_classifier
from efficientnet_advprop.evaluation.image_predictions import ImagePredictions
from efficientnet_advprop.evaluation.progress import Progress
from efficientnet_advprop.evaluation.results import (
    RESULTS_FILE,
    Conditions,
    Results,
    TestSetResult,
    describe_attack,
    predictions_path,
)
from efficientnet_advprop.evaluation.suites.registry import open_suites
from efficientnet_advprop.evaluation.suites.test_sets import SuiteSettings, TestSet
from efficientnet_advprop.images import labeled_images
from efficientnet_advprop.images.labeled_images import LabeledImages
from efficientnet_advprop.runtime.branches import Branch
from efficientnet_advprop.runtime.directory_lock import DirectoryLock
from efficientnet_advprop.runtime.errors import UsageError
from efficientnet_advprop.runtime.files import write_atomically
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
    branch: Branch = "main",
    stored_size: int = SuiteSettings.stored_size,
    attack: PGD = SuiteSettings.attack,
    num_restarts: int = 1,
    autoattack: AutoAttack = SuiteSettings.autoattack,
    max_images: Optional[int] = None,
    allow_incomplete: bool = False,
    seed: int = 0,
    batch_size: int = 64,
    strategy: Optional[tf.distribute.Strategy] = None,
    log: Optional[Callable[[str], None]] = None,
) -> Results:
    """Evaluates a model on test suites.

    Args:
        model: see `classifiers.as_classifier`: a network of ours, a Keras model, a
            `tf.function`, or any function from uint8 images [n, size, size, 3] to
            logits [n, classes], of whatever library.
        suites: names as for `--suite`: "imagenet", "imagenet_c", "imagenet_c/fog",
            "folder:/data/pets", …
        data_dir: what lies where below it says docs/evaluation.md.
        out_dir: of results.json and predictions/; None: runs/evaluation/<name>.
        name: of the model; needed for a function without one. Of a function the name
            also stands for the weights, which cannot be seen: give another one another
            name.
        image_size, crop, branch: see `classifiers.as_classifier`.
        stored_size, attack, num_restarts, autoattack, max_images, allow_incomplete,
            seed: see `SuiteSettings`.
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
        autoattack=autoattack,
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
    """Where a model's results go unless told: below `DEFAULT_DIRECTORY`, by its name
    and branch.
    """
    name = os.path.basename(os.path.normpath(classifier.name)).removesuffix(".tar.gz")
    if classifier.branch != "main":
        branch = classifier.branch.replace(":", "-").replace(",", "-")  # of a mixture
        name = f"{name}-{branch}"
    return os.path.join(DEFAULT_DIRECTORY, name)


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
    _start_or_continue(classifier, out_dir)  # refuses another model's folder at once
    if len(test_sets) > _MANY:
        (log or print)(f"Looking at the files of {len(test_sets)} test sets …")
    seen = {test_set.name: _look_at(test_set, classifier.branch) for test_set in test_sets}
    for name, facts in seen.items():
        for remark in facts.remarks:
            (log or print)(f"{name}: {remark}")
    _require_complete(seen, allow_incomplete)
    with DirectoryLock(out_dir, "out_dir"):  # another process would overwrite results.json
        results = _start_or_continue(classifier, out_dir)
        _measure(classifier, test_sets, results, seen, out_dir, batch_size, strategy, log)
    return results


def _measure(
    classifier: Classifier,
    test_sets: Sequence[TestSet],
    results: Results,
    seen: dict[str, _Seen],
    out_dir: str,
    batch_size: int,
    strategy: tf.distribute.Strategy,
    log: Optional[Callable[[str], None]],
) -> None:
    """Measures what `results` lacks; adds it there and in `out_dir`."""
    unmeasured = [
        test_set
        for test_set in test_sets
        if not _is_measured(results, test_set.name, seen[test_set.name], out_dir)
    ]
    num_images = sum(seen[test_set.name].num_drawn for test_set in unmeasured)
    with Progress(num_images, log) as progress:
        if len(unmeasured) < len(test_sets):
            progress.write(
                f"{len(test_sets) - len(unmeasured)} of {len(test_sets)} test sets were measured"
                f" before: {out_dir}"
            )
        open_batches = functools.partial(
            _open_batches,
            batch_size=batch_size,
            is_fixed=classifier.fixed_batch_size is not None,
            strategy=strategy,
            out_dir=out_dir,
        )
        for test_set, opened in _open_ahead(unmeasured, seen, open_batches):
            progress.start(test_set.name)
            facts = seen[test_set.name]
            opening = opened.result()
            doubts = _doubts(classifier, test_set, opening, results, strategy)
            predictions = _predict(classifier, test_set, facts, opening, strategy, progress)
            doubts += _doubts_afterwards(test_set, opening.earlier, predictions)
            result = TestSetResult(
                score=predictions.score(),
                calibration=predictions.calibration(),
                conditions=facts.conditions,
                expected_num_images=test_set.expected_num_images,
                problems=tuple(facts.problems),
                doubts=tuple(doubts),
            )
            predictions.write(predictions_path(out_dir, test_set.name))
            results.test_sets[test_set.name] = result
            write_atomically(os.path.join(out_dir, RESULTS_FILE), results.to_json().encode())
            progress.write(_describe(test_set, result))
        if unmeasured:
            progress.write(f"{progress.summary()}; results and predictions: {out_dir}")


def _check(
    classifier: Classifier,
    test_sets: Sequence[TestSet],
    batch_size: int,
    strategy: tf.distribute.Strategy,
) -> None:
    num_replicas = strategy.num_replicas_in_sync
    if batch_size < 1 or batch_size % num_replicas:
        raise RunError(
            f"`batch_size` is {batch_size}, but must be positive and divide by the {num_replicas}"
            " replicas."
        )
    if classifier.fixed_batch_size not in (None, batch_size // num_replicas):
        raise RunError(
            f"`batch_size` is {batch_size}, but {classifier.name!r} takes"
            f" {classifier.fixed_batch_size} images at a time only; use"
            f" {classifier.fixed_batch_size * num_replicas}."
        )
    for test_set in test_sets:
        if classifier.fixed_image_size not in (None, test_set.image_size):
            option = "stored_size" if test_set.crop == "none" else "image_size"
            raise RunError(
                f"`{option}` is {test_set.image_size}, at which {test_set.name} would be fed, but"
                f" {classifier.name!r} takes images of {classifier.fixed_image_size} pixels only;"
                " set it to that."
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
            f"`out_dir` is {out_dir!r}, which holds the results of another model ({earlier.model},"
            f" weights {earlier.weights_digest[:12] or 'unknown'}, branch"
            f" {earlier.config.get('branch')}); choose another folder."
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
            f"{'; '.join(wrong[:5])}{more}. Repair the data; or let what there is be scored, and"
            " marked as incomplete, with `--allow_incomplete`."
        )


def _is_measured(results: Results, name: str, facts: _Seen, out_dir: str) -> bool:
    earlier = results.test_sets.get(name)
    return (
        earlier is not None
        and earlier.conditions == facts.conditions
        and tf.io.gfile.exists(predictions_path(out_dir, name))
    )


class _Opened(NamedTuple):
    """A test set that is about to be scored.

    Args:
        images: all of them.
        batches: of the images that are to be looked at.
        earlier: what was said after the test set before, of all images; None: no such
            set.
        rows: which of them `batches` holds, as numbers of rows of `earlier`; None: all.
        open_all: opens batches of all images.
    """

    images: LabeledImages
    batches: Iterable
    earlier: Optional[ImagePredictions]
    rows: Optional[np.ndarray]
    open_all: Callable[[], Iterable]


def _open_ahead(
    test_sets: Sequence[TestSet], seen: dict[str, _Seen], open_batches: Callable[..., _Opened]
) -> Iterator[tuple[TestSet, "concurrent.futures.Future[_Opened]"]]:
    """Each test set with its images and batches; a thread lists and opens the next set
    while the present one is scored, unless it must know of the present one's answers.
    """

    def open_one(test_set):
        return open_batches(test_set, test_set.find_images(), seen[test_set.name])

    with concurrent.futures.ThreadPoolExecutor(1) as opener:
        opened_ahead = None
        for test_set, following in zip(test_sets, [*test_sets[1:], None]):
            opened = opener.submit(open_one, test_set) if opened_ahead is None else opened_ahead
            concurrent.futures.wait([opened])
            is_free = following is not None and following.after is None
            opened_ahead = opener.submit(open_one, following) if is_free else None
            yield test_set, opened


def _doubts(
    classifier: Classifier,
    test_set: TestSet,
    opened: _Opened,
    results: Results,
    strategy: tf.distribute.Strategy,
) -> list[str]:
    """Why the accuracy under the attack may be too high, as far as it can be told
    before it.
    """
    doubts = [] if test_set.after is None else list(results.test_sets[test_set.after].doubts)
    if test_set.checks_network:
        # Also of images that are wrong at once: a constant network may have no others.
        batch = next(iter(opened.open_all()))
        doubts += classifier.doubts(batch, test_set.attack, strategy)
    return doubts


def _doubts_afterwards(
    test_set: TestSet, earlier: Optional[ImagePredictions], predictions: ImagePredictions
) -> list[str]:
    if test_set.attack is None or test_set.attack.needs_gradient or earlier is None:
        return []
    num_found = int(earlier.is_top1.sum() - predictions.is_top1.sum())
    return square_warnings(len(predictions.labels), num_found)


def _predict(
    classifier: Classifier,
    test_set: TestSet,
    facts: _Seen,
    opened: _Opened,
    strategy: tf.distribute.Strategy,
    progress: Progress,
) -> ImagePredictions:
    parts, num_done = [], 0
    try:
        for answers in classifier.predict(
            opened.batches,
            kept_classes=test_set.kept_classes,
            categories=test_set.categories,
            attack=test_set.attack,
            num_restarts=test_set.num_restarts,
            seed=test_set.seed,
            strategy=strategy,
        ):
            parts.append(answers)
            num_done += len(answers["positions"])
            progress.add(len(answers["positions"]))
    except tf.errors.OpError as error:
        # Files come in the order of their positions, so that the search may start where
        # the answers ended.
        is_in_order = (
            facts.num_drawn == facts.num_images
            and opened.rows is None
            and isinstance(opened.images, labeled_images.FileImages)
        )
        unreadable = labeled_images.find_unreadable(
            opened.images, num_done if is_in_order else 0
        ) or labeled_images.find_unreadable(opened.images)
        if unreadable is None:
            raise RunError(f"{test_set.name}: {brief_message(error)}") from error
        raise DataError(f"{test_set.name}: {unreadable}. Repair or replace it.") from error
    progress.add(facts.num_drawn - num_done)  # what was wrong before is not looked at again
    return _in_order(parts, opened, test_set, facts)


def _open_batches(
    test_set: TestSet,
    images: LabeledImages,
    facts: _Seen,
    *,
    batch_size: int,
    is_fixed: bool,
    strategy: tf.distribute.Strategy,
    out_dir: str,
) -> _Opened:
    """The images to look at, in batches no larger than their number, unless the size is
    fixed: an attack takes as long for what only fills a batch up as for an image.
    """
    earlier, rows, chosen = None, None, None
    if test_set.after is not None:
        try:
            earlier = ImagePredictions.read(predictions_path(out_dir, test_set.after))
        except ValueError as error:
            raise RunError(
                f"{test_set.name} goes on where {test_set.after} ended, but {error}; measure both."
            ) from error
        rows = np.flatnonzero(earlier.is_top1)
        chosen = labeled_images.drawn_positions(facts.num_drawn, facts.num_images)[rows]

    def size_of_batches(num_wanted):
        if is_fixed:
            return batch_size
        num_replicas = strategy.num_replicas_in_sync
        return min(batch_size, num_replicas * max(1, math.ceil(num_wanted / num_replicas)))

    def open_pipeline(chosen, context=None):
        return labeled_images.make_dataset(
            images,
            image_size=test_set.image_size,
            crop=test_set.crop,
            global_batch_size=size_of_batches(facts.num_drawn if chosen is None else len(chosen)),
            input_context=context,
            num_drawn=facts.num_drawn,
            change=test_set.change,
            chosen=chosen,
        )

    def open_batches(chosen):
        if strategy is tf.distribute.get_strategy():
            return open_pipeline(chosen)
        return strategy.distribute_datasets_from_function(functools.partial(open_pipeline, chosen))

    return _Opened(
        images, open_batches(chosen), earlier, rows, functools.partial(open_batches, None)
    )


def _in_order(
    parts: list[dict[str, np.ndarray]], opened: _Opened, test_set: TestSet, facts: _Seen
) -> ImagePredictions:
    """All answers, by position; and a last look that every image is there once."""
    num_wanted = facts.num_drawn if opened.rows is None else len(opened.rows)
    if not num_wanted:
        return opened.earlier
    joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    order = np.argsort(joined["positions"])
    positions = joined["positions"][order]
    if len(positions) != num_wanted or len(np.unique(positions)) != num_wanted:
        raise RunError(
            f"{test_set.name}: {len(positions)} images were seen, {len(np.unique(positions))} of "
            f"them different, where there are {num_wanted}; did the files change meanwhile?"
        )
    labels = joined["labels"][order]
    if test_set.kept_classes is not None and not np.isin(labels, test_set.kept_classes).all():
        wrong = labels[~np.isin(labels, test_set.kept_classes)]
        raise DataError(
            f"{test_set.name} has images of class {wrong[0]}, which is none of its "
            f"{len(test_set.kept_classes)}."
        )
    predictions = ImagePredictions(
        image_ids=np.array([opened.images.image_id(position) for position in positions]),
        labels=labels,
        **{name: joined[name][order] for name in ("classes", "probabilities", "losses")},
    )
    if test_set.right_answers is not None:
        predictions = predictions.with_right_answers(
            [test_set.right_answers(image_id) for image_id in predictions.image_ids]
        )
    return (
        predictions if opened.earlier is None else opened.earlier.updated(predictions, opened.rows)
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
        parts.append(describe_attack(result.conditions.attack))
        parts.append(f"{result.conditions.branch} batch norms")
    if test_set.made_from is not None:
        parts.append("made here, not the official images")
    if not result.is_complete:
        parts.append(f"INCOMPLETE: {'; '.join(result.shortfalls)}")
    parts += [f"DOUBTFUL: {doubt}" for doubt in result.doubts]
    return "  ".join(parts)
