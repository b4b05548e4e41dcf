"""The measurement of one test set: from its images to the predictions for each of them."""

import dataclasses
import functools
import math
from typing import Callable, Iterable, Optional

import numpy as np
import tensorflow as tf

from efficientnet_advprop.attacks.autoattack import square_warnings
from efficientnet_advprop.evaluation.classifiers import Classifier
from efficientnet_advprop.evaluation.image_predictions import ImagePredictions
from efficientnet_advprop.evaluation.results import TestSetResult, predictions_path
from efficientnet_advprop.evaluation.suites.test_sets import TestSet
from efficientnet_advprop.images import labeled_images
from efficientnet_advprop.images.labeled_images import LabeledImages
from efficientnet_advprop.runtime.errors import DataError, RunError, brief_message


class Measurement:
    """A test set under one classifier.

    Constructing it lists the images for what their score will depend on; `open` lists
    them anew, since 75 lists of 50,000 paths would not fit into memory at once. `earlier`
    measures the set that this one comes after.

    Attributes:
        test_set: what is measured.
        conditions: what its score depends on.
        num_images, num_sampled: of the test set, and to be evaluated.
        problems: see `TestSetResult`.
        notes: lines for people, such as files that were skipped.
    """

    def __init__(
        self,
        test_set: TestSet,
        classifier: Classifier,
        out_dir: str,
        batch_size: int,
        strategy: tf.distribute.Strategy,
        earlier: Optional["Measurement"] = None,
    ):
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

    @property
    def path(self) -> str:
        """Where the predictions are kept."""
        return predictions_path(self._out_dir, self.test_set.name)

    def open(self) -> None:
        """Lists the images and opens batches of those to be evaluated.

        Raises:
            RunError: the predictions that this set begins with cannot be read.
        """
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
        """Evaluates the images that `open` has opened.

        Args:
            warnings: from before the attack.
            add: is called with numbers of images that are done.

        Raises:
            DataError: an image cannot be read, or has a class that it must not have.
            RunError: the evaluation fails otherwise.
        """
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
