"""The evaluation run: a model on test sets, whose results are kept as they come in.

    results = run(model, ["imagenet", "imagenet_c"], data_dir="/data", out_dir="results/b3")

Each test set's predictions and scores are written when it is done; the same call again
measures what is missing, or was measured under other conditions.
"""

import concurrent.futures
import dataclasses
import functools
import importlib.metadata
import itertools
import math
import os
import platform
import sys
import time
from typing import Any, Callable, Iterable, Iterator, Optional, Sequence

import numpy as np
import tensorflow as tf
import tqdm

from efficientnet_advprop.attacks import PGD, AutoAttack
from efficientnet_advprop.attacks.autoattack import square_warnings
from efficientnet_advprop.evaluation.classifiers import Classifier, as_classifier
from efficientnet_advprop.evaluation.results import (
    RESULTS_FILE,
    ImagePredictions,
    Results,
    TestSetResult,
    predictions_path,
)
from efficientnet_advprop.evaluation.suites.registry import open_suites
from efficientnet_advprop.evaluation.suites.test_sets import SuiteSettings, TestSet
from efficientnet_advprop.images import labeled_images
from efficientnet_advprop.images.labeled_images import LabeledImages
from efficientnet_advprop.runtime.branches import Branch
from efficientnet_advprop.runtime.directory_lock import DirectoryLock
from efficientnet_advprop.runtime.errors import (
    DataError,
    RunError,
    UsageError,
    brief_message,
)
from efficientnet_advprop.runtime.files import write_atomically

DEFAULT_DIRECTORY = os.path.join("runs", "evaluation")
_MANY = 10  # test sets, whose files take a while to be listed
_PACKAGES = ("numpy", "scipy", "pillow", "scikit-learn")
_SECONDS_BETWEEN_LINES = 30.0  # of progress, where there is no terminal

Log = Optional[Callable[[str], None]]


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
    log: Log = None,
) -> Results:
    """Evaluates a model on test suites.

    Args:
        model: see `classifiers.as_classifier`: a network of ours, a Keras model, a
            `tf.function`, or any function from uint8 images [n, size, size, 3] to
            logits [n, classes], of whatever library.
        suites: names as for `--suite`: "imagenet", "imagenet_c", "imagenet_c/fog",
            "folder:/data/pets", …
        data_dir: what lies where below it says docs/evaluation.md.
        out_dir: of results.json and predictions/; None: see `default_directory`.
        name: of the model; needed for a function without one. Of a function the name
            also stands for the weights, which are unknown: give another one another name.
        image_size, crop, branch: see `classifiers.as_classifier`.
        stored_size, attack, num_restarts, autoattack, max_images, allow_incomplete,
            seed: see `SuiteSettings`.
        batch_size: images, over all replicas.
        strategy: under which a TensorFlow model was made; None: one device.
        log: takes lines of progress; None: the console.

    Returns:
        The results in `out_dir`, those of earlier calls included.

    Raises:
        UsageError: an argument is wrong, or `out_dir` holds another model's results.
        ModelError: the model does not turn images into logits.
        DataError: the data are missing, incomplete or unreadable.
        RunError: the evaluation fails otherwise.
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
    """Returns the folder below `DEFAULT_DIRECTORY` that has the model's name and branch; if
    another model's results are there, one with a number behind the name.
    """
    name = os.path.basename(os.path.normpath(classifier.name)).removesuffix(".tar.gz")
    if classifier.branch != "main":
        branch = classifier.branch.replace(":", "-").replace(",", "-")  # of a mixture
        name = f"{name}-{branch}"
    directory = os.path.join(DEFAULT_DIRECTORY, name)
    for number in itertools.count(2):
        if not tf.io.gfile.exists(os.path.join(directory, RESULTS_FILE)):
            return directory
        try:
            if not _differences(Results.read(directory), _new_results(classifier)):
                return directory
        except ValueError:
            pass  # not results of ours: left alone
        directory = os.path.join(DEFAULT_DIRECTORY, f"{name}-{number}")


def measure(
    classifier: Classifier,
    test_sets: Sequence[TestSet],
    out_dir: str,
    *,
    batch_size: int = 64,
    strategy: Optional[tf.distribute.Strategy] = None,
    allow_incomplete: bool = False,
    log: Log = None,
) -> Results:
    """Evaluates a classifier on test sets; arguments and errors as `run`."""
    strategy = strategy or tf.distribute.get_strategy()
    _check(classifier, test_sets, batch_size, strategy)
    if len(test_sets) >= _MANY:
        (log or print)(f"Listing the files of {len(test_sets)} test sets.")
    measurements: dict[str, _Measurement] = {}
    for test_set in test_sets:
        earlier = measurements.get(test_set.after)
        one = _Measurement(test_set, classifier, out_dir, batch_size, strategy, earlier)
        measurements[test_set.name] = one
        for note in one.notes:
            (log or print)(f"{test_set.name}: {note}")
    measurements = list(measurements.values())
    if not allow_incomplete:
        _require_complete(measurements)
    with DirectoryLock(out_dir, "out_dir"):  # another process would overwrite results.json
        results = _start_or_continue(classifier, out_dir)
        _measure_missing(measurements, results, out_dir, log)
    return results


class _Measurement:
    """A test set under one classifier; `earlier` measures the one that this one comes after."""

    def __init__(
        self,
        test_set: TestSet,
        classifier: Classifier,
        out_dir: str,
        batch_size: int,
        strategy: tf.distribute.Strategy,
        earlier: Optional["_Measurement"] = None,
    ):
        # Listed for what the score depends on, and anew by `open`: 75 lists of 50,000 paths would
        # not fit into memory at once.
        images = test_set.find_images()
        self.test_set, self._classifier, self._out_dir = test_set, classifier, out_dir
        self._batch_size, self._strategy = batch_size, strategy
        self.num_images = images.num_images
        self.num_sampled = test_set.num_sampled(self.num_images)
        conditions = test_set.conditions(images.digest(), self.num_images, classifier.branch)
        if earlier is not None:
            conditions = dataclasses.replace(conditions, after_digest=earlier.conditions.digest())
        self.conditions = conditions
        self.problems, self.notes = test_set.problems(self.num_images), images.remarks
        self.path = predictions_path(out_dir, test_set.name)

    def open(self) -> None:
        """Lists the images and opens batches of those to be evaluated."""
        self._images: LabeledImages = self.test_set.find_images()
        self._earlier: Optional[ImagePredictions] = None
        self._rows: Optional[np.ndarray] = None  # of `_earlier`, that are evaluated; None: all
        chosen = None
        after = self.test_set.after
        if after is not None:
            try:
                self._earlier = ImagePredictions.read(predictions_path(self._out_dir, after))
            except ValueError as error:
                raise RunError(
                    f"{self.test_set.name} goes on where {after} ended, but {error}; measure both."
                ) from error
            self._rows = np.flatnonzero(self._earlier.is_top1)
            drawn = labeled_images.drawn_positions(self.num_sampled, self.num_images)
            chosen = drawn[self._rows]
        self._batches = self._open_batches(chosen)

    def _open_batches(self, chosen: Optional[np.ndarray]) -> Iterable:
        num_wanted = self.num_sampled if chosen is None else len(chosen)
        batch_size = self._batch_size
        if self._classifier.fixed_batch_size is None:
            # An attack takes as long for what only fills a batch up as for an image.
            num_replicas = self._strategy.num_replicas_in_sync
            batch_size = min(
                batch_size, num_replicas * max(1, math.ceil(num_wanted / num_replicas))
            )

        def open_pipeline(context=None):
            return labeled_images.make_dataset(
                self._images,
                image_size=self.test_set.image_size,
                crop=self.test_set.crop,
                global_batch_size=batch_size,
                input_context=context,
                num_drawn=self.num_sampled,
                change=self.test_set.change,
                chosen=chosen,
            )

        if self._strategy is tf.distribute.get_strategy():
            return open_pipeline()
        return self._strategy.distribute_datasets_from_function(open_pipeline)

    def warnings(self) -> list[str]:
        """Checks the network before the first attack of a chain."""
        if not self.test_set.checks_network:
            return []
        # All images: a constant network gets every one that is still right wrong at once.
        batch = next(iter(self._open_batches(None)))
        return self._classifier.warnings(batch, self.test_set.attack, self._strategy)

    def measure(
        self, warnings: list[str], add: Callable[[int], None]
    ) -> tuple[TestSetResult, ImagePredictions]:
        """Evaluates the images that `open` has opened; calls `add` with numbers that are done."""
        predictions = self._in_order(self._predict(add))
        attack = self.test_set.attack
        if attack is not None and not attack.needs_gradient and self._earlier is not None:
            num_found = int(self._earlier.is_top1.sum() - predictions.is_top1.sum())
            warnings = warnings + square_warnings(len(predictions.labels), num_found)
        result = TestSetResult(
            score=predictions.score(),
            calibration=predictions.calibration(),
            conditions=self.conditions,
            expected_num_images=self.test_set.expected_num_images,
            problems=tuple(self.problems),
            warnings=tuple(warnings),
            asked_for=self.test_set.asked_for,
        )
        return result, predictions

    def _predict(self, add: Callable[[int], None]) -> list[dict[str, np.ndarray]]:
        test_set, parts, num_done = self.test_set, [], 0
        predict = functools.partial(
            self._classifier.predict,
            class_subset=test_set.class_subset,
            categories=test_set.categories,
            attack=test_set.attack,
            num_restarts=test_set.num_restarts,
            seed=test_set.seed,
            strategy=self._strategy,
        )
        try:
            for part in predict(self._batches):
                parts.append(part)
                num_done += len(part["positions"])
                add(len(part["positions"]))
        except tf.errors.OpError as error:
            # Files come in the order of their positions, so that the search for the bad
            # one may start where the predictions ended.
            is_in_order = (
                self.num_sampled == self.num_images
                and self._rows is None
                and isinstance(self._images, labeled_images.FileImages)
            )
            unreadable = labeled_images.find_unreadable(
                self._images, num_done if is_in_order else 0
            ) or labeled_images.find_unreadable(self._images)
            if unreadable is None:
                raise RunError(f"{test_set.name}: {brief_message(error)}") from error
            raise DataError(f"{test_set.name}: {unreadable}. Repair or replace it.") from error
        add(self.num_sampled - num_done)  # what was wrong before is not evaluated again
        return parts

    def _in_order(self, parts: list[dict[str, np.ndarray]]) -> ImagePredictions:
        """Joins the predictions by position, and checks that every image is there once."""
        name, class_subset = self.test_set.name, self.test_set.class_subset
        num_wanted = self.num_sampled if self._rows is None else len(self._rows)
        if not num_wanted:
            return self._earlier
        joined = {field: np.concatenate([part[field] for part in parts]) for field in parts[0]}
        order = np.argsort(joined["positions"])
        positions = joined["positions"][order]
        num_different = len(np.unique(positions))
        if len(positions) != num_wanted or num_different != num_wanted:
            raise RunError(
                f"{name}: {len(positions)} images were seen, {num_different} of them different,"
                f" where there are {num_wanted}; did the files change meanwhile?"
            )
        labels = joined["labels"][order]
        if class_subset is not None and not np.isin(labels, class_subset).all():
            wrong = labels[~np.isin(labels, class_subset)]
            raise DataError(
                f"{name} has images of class {wrong[0]}, which is none of its {len(class_subset)}."
            )
        predictions = ImagePredictions(
            image_ids=np.array([self._images.image_id(position) for position in positions]),
            labels=labels,
            **{field: joined[field][order] for field in ("classes", "probabilities", "losses")},
        )
        if self.test_set.label_variants is not None:
            predictions = predictions.with_label_variants(
                [self.test_set.label_variants(image_id) for image_id in predictions.image_ids]
            )
        if self._earlier is None:
            return predictions
        return self._earlier.updated(predictions, self._rows)


class _Progress:
    """Counts evaluated images: a bar on a terminal, a line now and then elsewhere."""

    def __init__(self, num_images: int, log: Log = None):
        self._has_bar = log is None and sys.stderr.isatty()
        self._log, self._last_line = log, time.monotonic()
        self._bar = tqdm.tqdm(
            total=num_images,
            unit=" images",
            unit_scale=True,
            dynamic_ncols=True,
            smoothing=0.05,  # the first batches take as long as tracing does
            file=sys.stderr if self._has_bar else open(os.devnull, "w"),
        )

    def __enter__(self) -> "_Progress":
        return self

    def __exit__(self, *error) -> None:
        self._bar.close()
        if not self._has_bar:
            self._bar.fp.close()

    def start(self, what: str) -> None:
        self._bar.set_description(what)

    def add(self, num_images: int) -> None:
        self._bar.update(num_images)
        now = time.monotonic()
        if not self._has_bar and now - self._last_line > _SECONDS_BETWEEN_LINES:
            self._last_line = now
            self.write(str(self._bar))

    def write(self, line: str) -> None:
        """Prints a line that stays."""
        if self._log is not None:
            self._log(line)
        elif self._has_bar:
            self._bar.write(line)
        else:
            print(line, flush=True)

    def summary(self) -> str:
        """Returns "3,750,000 images, 812 images/s"."""
        done, seconds = (self._bar.format_dict[name] for name in ("n", "elapsed"))
        return f"{done:,} images, {done / max(seconds, 1e-3):,.0f} images/s"


def _measure_missing(
    measurements: Sequence[_Measurement],
    results: Results,
    out_dir: str,
    log: Log,
) -> None:
    """Measures what `results` lacks; adds it there and in `out_dir`."""
    missing = [one for one in measurements if not _is_measured(results, one)]
    with _Progress(sum(one.num_sampled for one in missing), log) as progress:
        if len(missing) < len(measurements):
            progress.write(
                f"{len(measurements) - len(missing)} of {len(measurements)} test sets were measured"
                f" before: {out_dir}"
            )
        for one in _open_ahead(missing):
            test_set = one.test_set
            progress.start(test_set.name)
            warnings = [] if test_set.after is None else results.test_sets[test_set.after].warnings
            result, predictions = one.measure([*warnings, *one.warnings()], progress.add)
            if results.test_sets.pop(test_set.name, None) is not None:
                # A stop between the two files would leave a score beside other predictions.
                _write(results, out_dir)
            predictions.write(one.path)
            results.test_sets[test_set.name] = result
            _write(results, out_dir)
            progress.write(_describe(test_set, result, results.has_top5))
        if missing:
            progress.write(f"{progress.summary()}; results and predictions: {out_dir}")


def _write(results: Results, out_dir: str) -> None:
    write_atomically(os.path.join(out_dir, RESULTS_FILE), results.to_json().encode())


def _is_measured(results: Results, measurement: _Measurement) -> bool:
    earlier = results.test_sets.get(measurement.test_set.name)
    return (
        earlier is not None
        and earlier.conditions == measurement.conditions
        and tf.io.gfile.exists(measurement.path)
    )


def _open_ahead(measurements: Sequence[_Measurement]) -> Iterator[_Measurement]:
    """Yields opened measurements; a thread opens the next one while the present one runs,
    unless it depends on the present one's predictions.
    """
    with concurrent.futures.ThreadPoolExecutor(1) as opener:
        opening = None
        for one, next_one in zip(measurements, [*measurements[1:], None]):
            (opening or opener.submit(one.open)).result()
            is_free = next_one is not None and next_one.test_set.after is None
            opening = opener.submit(next_one.open) if is_free else None
            yield one


def _check(
    classifier: Classifier,
    test_sets: Sequence[TestSet],
    batch_size: int,
    strategy: tf.distribute.Strategy,
) -> None:
    num_replicas = strategy.num_replicas_in_sync
    if batch_size < 1 or batch_size % num_replicas:
        raise UsageError(
            f"`batch_size` is {batch_size}, but must be positive and divide by the {num_replicas}"
            " replicas."
        )
    if classifier.fixed_batch_size not in (None, batch_size // num_replicas):
        raise UsageError(
            f"`batch_size` is {batch_size}, but {classifier.name!r} takes"
            f" {classifier.fixed_batch_size} images at a time only; use"
            f" {classifier.fixed_batch_size * num_replicas}."
        )
    for test_set in test_sets:
        if classifier.fixed_image_size not in (None, test_set.image_size):
            option = "stored_size" if test_set.crop == "none" else "image_size"
            raise UsageError(
                f"`{option}` is {test_set.image_size}, at which {test_set.name} would be fed, but"
                f" {classifier.name!r} takes images of {classifier.fixed_image_size} pixels only;"
                " set it to that."
            )


def _require_complete(measurements: Sequence[_Measurement]) -> None:
    wrong = [f"{one.test_set.name} {problem}" for one in measurements for problem in one.problems]
    if wrong:
        more = f"; and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise DataError(
            f"{'; '.join(wrong[:5])}{more}. Repair the data; or let what there is be scored, and"
            " marked as incomplete, with `--allow_incomplete`."
        )


def _new_results(classifier: Classifier) -> Results:
    # TensorFlow's own word: its distribution has another name on a TPU VM.
    versions = {"tensorflow": tf.__version__, "python": platform.python_version()}
    versions |= {package: importlib.metadata.version(package) for package in _PACKAGES}
    config = {
        **classifier.config,
        "image_size": classifier.image_size,
        "crop": classifier.crop,
        "branch": classifier.branch,
        "num_classes": classifier.num_classes,
    }
    if classifier.class_names is not None:
        config["class_names"] = list(classifier.class_names)
    return Results(classifier.name, classifier.weights_digest, config, versions)


def _start_or_continue(classifier: Classifier, out_dir: str) -> Results:
    results = _new_results(classifier)
    if not tf.io.gfile.exists(os.path.join(out_dir, RESULTS_FILE)):
        return results
    try:
        earlier = Results.read(out_dir)
    except ValueError as error:
        raise UsageError(
            f"`out_dir` is {out_dir!r}, but {error} Move the file away, or choose another folder."
        ) from error
    differences = _differences(earlier, results)
    if differences:
        raise UsageError(
            f"`out_dir` is {out_dir!r}, which holds the results of another model"
            f" ({earlier.model}): {'; '.join(differences)}. Choose another folder."
        )
    results.test_sets = earlier.test_sets
    return results


def _differences(earlier: Results, results: Results) -> list[str]:
    """Returns in what two models differ that can change a prediction."""
    facts = []
    for one in (earlier, results):
        own = {
            "weights": one.weights_digest,
            "branch": one.config.get("branch"),
            "TensorFlow": one.versions.get("tensorflow"),
            **(one.config.get("settings") or {}),
        }
        if not results.weights_digest:  # of a function, which only its name tells from others
            own["name"] = one.model
        facts.append(own)
    before, now = facts
    return [
        f"{name} {str(before.get(name))[:40]!r} there, {str(now.get(name))[:40]!r} here"
        for name in dict.fromkeys([*before, *now])
        if before.get(name) != now.get(name)
    ]


def _describe(test_set: TestSet, result: TestSetResult, has_top5: bool) -> str:
    """Returns the line of a finished test set."""
    score = result.score
    low, high = (100 * end for end in score.interval())
    parts = [
        f"{test_set.name:28} top-1 {100 * score.top1:6.2f} % ({low:.2f}–{high:.2f})",
        *([f"top-5 {100 * score.top5:6.2f} %"] if has_top5 else []),
        f"{score.num_images:,} images",
        result.conditions.describe(),
    ]
    if test_set.clean_suite is not None:
        parts.append("made here, not the official images")
    if not result.is_complete:
        parts.append(f"INCOMPLETE: {'; '.join(result.shortfalls)}")
    parts += [f"DOUBTFUL: {warning}" for warning in result.warnings]
    return "  ".join(parts)
