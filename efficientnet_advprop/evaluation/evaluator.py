"""Evaluation of a classifier: predictions for images, as they are or under attack, and
accuracy over whole data sets.

    evaluate = Evaluator(lambda images: model(images, branch="main"))
    evaluate(make_eval_dataset(...)).top1                # counts: `metrics.Score`
    for predictions in evaluate.predict(batches): ...    # or image by image
    Evaluator(logits_fn, attack=PGD(…))(dataset).top1    # robust accuracy

An evaluator is traced once per shape of batch, so keep it for all sets of that shape.
"""

import functools
import math
from typing import Callable, Iterable, Iterator, NamedTuple, Optional, Sequence

import numpy as np
import tensorflow as tf

from efficientnet_advprop.attacks import Attack, AttackError
from efficientnet_advprop.attacks.labels import check_classes, is_class
from efficientnet_advprop.evaluation.metrics import Score
from efficientnet_advprop.runtime.autograph import call_rewritten
from tpu_utils import randomness, replica_runtime
from tpu_utils.batch_iterator import keep_freed_blocks, read_ahead

TOP_K = 5
NO_CLASS = -1  # the predicted class where the logits were undefined


class Predictions(NamedTuple):
    """A classifier's predictions for a batch of images.

    Logits of −inf exclude a class and are defined. A row with NaN, with +inf, or without
    any class left is undefined.
    """

    # int32 [batch], number of classes before the true one: 0 is a top-1 hit. Of equal logits the
    # lower class comes first, as with argmax; undefined rows and labels without class come last.
    ranks: tf.Tensor
    losses: tf.Tensor  # float32 [batch]: infinite where the true class is excluded, NaN without one
    classes: tf.Tensor  # int32 [batch, k], the k highest; `NO_CLASS` in an undefined row
    probabilities: tf.Tensor  # float32 [batch, k], of `classes`; 0 in an undefined row


def category_logits(logits: tf.Tensor, categories: Sequence[Sequence[int]]) -> tf.Tensor:
    """Returns logits [batch, categories]: up to a constant, the logarithm of the mean
    probability of each category's classes (Geirhos et al., ICLR 2019).
    """
    return tf.stack(
        [
            tf.reduce_logsumexp(tf.gather(logits, list(classes), axis=1), -1)
            - math.log(len(classes))
            for classes in categories
        ],
        -1,
    )


def score(
    logits: tf.Tensor, labels: tf.Tensor, class_subset: Optional[Sequence[int]] = None
) -> Predictions:
    """Ranks the true class among a batch's logits, float [batch, classes].

    With `class_subset`, to which the labels must belong, the other classes' logits are dropped
    first. Labels that are no classes raise an AttackError, or, in a traced function, rank last.
    """
    logits = tf.cast(logits, tf.float32)
    labels = check_classes(labels, logits.shape[-1], logits.shape[0])
    has_class = is_class(labels, logits.shape[-1])
    labels = tf.where(has_class, labels, 0)
    if class_subset is not None:
        columns = np.full(logits.shape[-1], -1, np.int32)  # label → column of the subset
        columns[list(class_subset)] = np.arange(len(class_subset))
        logits, labels = tf.gather(logits, list(class_subset), axis=1), tf.gather(columns, labels)
        has_class &= labels >= 0
        labels = tf.maximum(labels, 0)
    num_classes = logits.shape[-1]
    is_defined = tf.math.is_finite(tf.reduce_max(logits, -1)) & ~tf.reduce_any(
        tf.math.is_nan(logits), -1
    )
    own = tf.gather(logits, labels, batch_dims=1)[:, None]
    is_before = (logits > own) | (tf.equal(logits, own) & (tf.range(num_classes) < labels[:, None]))
    top = tf.math.top_k(logits, min(TOP_K, num_classes))
    classes = (
        top.indices
        if class_subset is None
        else tf.gather(tf.constant(list(class_subset), tf.int32), top.indices)
    )
    probabilities = tf.gather(tf.nn.softmax(logits), top.indices, batch_dims=1)
    # XLA multiplies by a one-hot vector, and 0 · −inf would be NaN.
    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(
        labels, tf.maximum(logits, tf.float32.min)
    )
    losses = tf.where(own[:, 0] == -math.inf, math.inf, losses)
    return Predictions(
        ranks=tf.where(
            is_defined & has_class, tf.reduce_sum(tf.cast(is_before, tf.int32), -1), num_classes
        ),
        losses=tf.where(is_defined & has_class, losses, math.nan),
        classes=tf.where(is_defined[:, None], classes, NO_CLASS),
        probabilities=tf.where(is_defined[:, None], tf.minimum(probabilities, 1.0), 0.0),
    )


def worst_case(predictions: Predictions, others: Predictions) -> Predictions:
    """Returns, image by image, the predictions with the lower rank of the true class; of
    equal ranks, those of the higher loss.
    """
    is_lower = others.ranks > predictions.ranks
    takes_other = is_lower | (
        tf.equal(others.ranks, predictions.ranks) & (others.losses > predictions.losses)
    )

    def shaped(value):
        return takes_other if value.shape.rank == 1 else takes_other[:, None]

    return Predictions(
        *(tf.where(shaped(other), other, own) for own, other in zip(predictions, others))
    )


class Evaluator:
    """Evaluates a classifier over whole data sets.

    Args:
        logits_fn: pixels [batch, height, width, 3] in [0, 255] → logits [batch,
            classes]; must not change any variable, and be differentiable under attack.
        attack: if given, an image counts as right only if it is right both as it is and
            after this attack on `logits_fn` (robust accuracy).
        num_restarts: random starts of the attack, all of which an image must withstand.
        class_subset: see `score`.
        categories: if given, labels are numbers of these; see `category_logits`.
        strategy: that distributes the batches; None: the current one.
        seed: of the attack's random numbers, which follow from (seed, batch, replica,
            restart) alone.
    """

    def __init__(
        self,
        logits_fn: Callable[[tf.Tensor], tf.Tensor],
        *,
        attack: Optional[Attack] = None,
        num_restarts: int = 1,
        class_subset: Optional[Sequence[int]] = None,
        categories: Optional[Sequence[Sequence[int]]] = None,
        strategy: Optional[tf.distribute.Strategy] = None,
        seed: int = 0,
    ):
        logits_fn = functools.partial(call_rewritten, logits_fn)  # it may be anybody's
        self._logits_fn, self._class_subset = logits_fn, class_subset
        if categories is not None:
            self._logits_fn = lambda images: category_logits(
                tf.cast(logits_fn(images), tf.float32), categories
            )
        self._attack, self._num_restarts, self._seed = attack, num_restarts, seed
        self._strategy = strategy or tf.distribute.get_strategy()
        self._count_on_all = tf.function(self._count_on_all_replicas, autograph=False)
        self._predict_on_all = tf.function(self._predict_on_all_replicas, autograph=False)

    def __call__(self, batches: Iterable[dict[str, tf.Tensor]]) -> Score:
        """Counts over all batches.

        Args:
            batches: {"images": [replica_batch, height, width, 3], "labels": integers
                [replica_batch], "mask": float [replica_batch], 1 for an image and 0 for
                padding}, distributed by the strategy if there are several replicas.

        Raises:
            ValueError: there was no image.
            AttackError: labels that are no classes.
        """
        counts, total_loss = tf.zeros([4], tf.int32), tf.zeros([], tf.float64)
        for index, batch in _numbered(batches):
            batch_counts, batch_loss = self._count_on_all(batch, tf.constant(index))
            counts, total_loss = counts + batch_counts, total_loss + tf.cast(batch_loss, tf.float64)
        num_images, num_top1, num_top5, num_unknown = (int(count) for count in counts)
        if num_unknown:
            raise _unknown_classes(num_unknown, num_images)
        if not num_images:
            raise ValueError(
                "`batches` held no image, so there is no accuracy; is the set empty, or read to its"
                " end before?"
            )
        return Score(num_images, num_top1, num_top5, float(total_loss))

    def predict(self, batches: Iterable[dict[str, tf.Tensor]]) -> Iterator[dict[str, np.ndarray]]:
        """Yields "positions", "labels" (int32 [images]) and the fields of `Predictions`, without
        padding, batch by batch; every process sees the images of all.

        The batches are those for counting, with "positions": int32 [replica_batch], the numbers
        of the images.
        """
        on_device = None
        for index, batch in _numbered(batches):
            # The device works on this batch while the last one's predictions leave it.
            predictions = self._predict_on_all(batch, tf.constant(index))
            if on_device is not None:
                yield _on_host(on_device)
            on_device = predictions
        if on_device is not None:
            yield _on_host(on_device)

    def _count_on_all_replicas(self, batch, index):
        counts, loss = self._strategy.run(self._count, args=(batch, index))
        return tuple(
            self._strategy.reduce(tf.distribute.ReduceOp.SUM, sums, axis=None)
            for sums in (counts, loss)
        )

    def _predict_on_all_replicas(self, batch, index):
        predictions, labels, has_class = self._strategy.run(self._predict, args=(batch, index))
        values = {**predictions._asdict(), "labels": labels, "has_class": has_class}
        values.update({name: batch[name] for name in ("mask", "positions")})
        if self._strategy.num_replicas_in_sync == 1:
            return {
                name: self._strategy.experimental_local_results(value)[0]
                for name, value in values.items()
            }
        return {name: self._strategy.gather(value, axis=0) for name, value in values.items()}

    def _count(self, batch, index):
        """Returns int32 [4], images, top-1 hits, top-5 hits and labels that are no class,
        and the summed cross-entropy, of one replica.
        """
        is_image = tf.cast(batch["mask"], tf.float32) > 0.0
        predictions, _, has_class = self._predict(batch, index)
        hits = [(predictions.ranks < k) & is_image for k in (1, TOP_K)]
        counted = (is_image, *hits, is_image & tf.equal(has_class, 0))
        counts = tf.stack([tf.reduce_sum(tf.cast(flags, tf.int32)) for flags in counted])
        return counts, tf.reduce_sum(tf.where(is_image, predictions.losses, 0.0))

    def _predict(self, batch, index) -> tuple[Predictions, tf.Tensor, tf.Tensor]:
        """Returns one replica's predictions, under attack the worst, its labels (int32
        [batch]), and 1 for each that is a class.
        """
        images = tf.cast(batch["images"], tf.float32)
        labels = check_classes(batch["labels"], num_images=images.shape[0])
        logits = self._logits_fn(images)
        has_class = is_class(labels, logits.shape[-1])
        has_class = tf.cast(has_class, tf.int32)  # not all replicas can exchange bools
        predictions = score(logits, labels, self._class_subset)
        if self._attack is None:
            return predictions, labels, has_class
        # The attack takes classes only; what it does to an image without one is unused.
        attacked_labels = tf.where(has_class > 0, labels, 0)
        seed = tf.constant([self._seed, 0])
        for part in (index, replica_runtime.current().replica_id):
            seed = randomness.fold_in(seed, part)

        def try_once_more(restart, worst):
            adversarial_images = self._attack(
                self._logits_fn,
                images,
                attacked_labels,
                randomness.fold_in(seed, restart),
                candidates=batch["mask"] > 0,  # a search ends early unless it waits for blanks
            )
            logits = self._logits_fn(adversarial_images)
            return restart + 1, worst_case(worst, score(logits, labels, self._class_subset))

        _, worst = tf.while_loop(
            lambda restart, _: restart < self._num_restarts,
            try_once_more,
            (tf.constant(0), predictions),
        )
        return worst, labels, has_class


def _numbered(batches: Iterable) -> Iterator[tuple[int, dict[str, tf.Tensor]]]:
    """Yields each batch with its number."""
    for index, batch in enumerate(read_ahead(batches)):
        if index == 0:
            keep_freed_blocks()  # not earlier: the first iterator resets it
        yield index, batch


def _unknown_classes(num_unknown: int, num_images: int, example: str = "") -> AttackError:
    return AttackError(
        f"`labels` of {num_unknown} of {num_images} images{example} are no classes of the model's: "
        "negative, or not below the number of its logits. Do they count from 1?"
    )


def _on_host(outputs: dict[str, tf.Tensor]) -> dict[str, np.ndarray]:
    values = {name: value.numpy() for name, value in outputs.items()}
    is_image = values.pop("mask") > 0.0
    wrong = values["labels"][is_image & (values.pop("has_class") == 0)]
    if len(wrong):
        raise _unknown_classes(len(wrong), int(is_image.sum()), f" ({wrong[0]}, for one)")
    return {name: value[is_image] for name, value in values.items()}
