"""Counts how often a classifier is right, on images as they are or under attack.

    evaluate = Evaluator(lambda images: model(images, branch="main"))
    evaluate(make_eval_dataset(...)).top1                         # metrics.Score of the whole set

    white_box = PGD(epsilon=4.0, step_size=1.0, num_steps=10, targeted=False, random_start=1.0)
    Evaluator(logits_fn, attack=white_box)(dataset).top1          # robust accuracy

Any classifier will do: the evaluator sees a function from pixels to logits. Under attack that function must be differentiable:
it is itself what is attacked. An evaluator is traced once per shape of batch, so keep it for all sets of that shape.
"""

from typing import Callable, Iterable, Optional

import tensorflow as tf

from efficientnet_advprop.attacks import PGD
from efficientnet_advprop.evaluation.metrics import Score
from tpu_utils import randomness, reduction

TOP_K = 5


def top_k_hits(logits: tf.Tensor, labels: tf.Tensor, k: int) -> tf.Tensor:
    """Whether the label is among the k highest logits; of equal logits the lower class ranks first, as with argmax.

    Args:
        logits: float [batch, classes]. A row with a NaN or an infinity is a miss whatever the label.
        labels: int [batch].
        k: ≥ 1; with fewer classes than k every row is a hit.

    Returns:
        bool [batch].
    """
    logits = tf.cast(logits, tf.float32)
    highest = tf.math.top_k(logits, min(k, logits.shape[-1])).indices
    is_finite = tf.reduce_all(tf.math.is_finite(logits), -1)
    return tf.reduce_any(tf.equal(highest, tf.cast(labels, tf.int32)[:, None]), -1) & is_finite


class Evaluator:
    """Scores a classifier over whole data sets.

    Args:
        logits_fn: pixels [batch, height, width, 3] in [0, 255] → logits [batch, classes]; must not change any variable.
        attack: if given, an image counts as right only if it is so both as it is and after this attack on `logits_fn` (robust
            accuracy); an untargeted one with `random_start=1.0` is the usual white-box test.
        strategy: that distributes the batches; None: the current one, for plain batches one device.
        seed: of the attack's random numbers, which follow from (seed, batch, replica) alone.
    """

    def __init__(
        self,
        logits_fn: Callable[[tf.Tensor], tf.Tensor],
        *,
        attack: Optional[PGD] = None,
        strategy: Optional[tf.distribute.Strategy] = None,
        seed: int = 0,
    ):
        self._logits_fn, self._attack, self._seed = logits_fn, attack, seed
        self._strategy = strategy or tf.distribute.get_strategy()
        self._count_on_all = tf.function(self._count_on_all_replicas)

    def __call__(self, batches: Iterable[dict[str, tf.Tensor]]) -> Score:
        """Counts over all batches.

        Args:
            batches: {"images": [replica_batch, height, width, 3], "labels": int [replica_batch], "mask": float [replica_batch],
                1 for an image and 0 for padding}, distributed by the strategy if there is more than one replica.

        Raises:
            ValueError: there was no image.
        """
        counts, total_loss = tf.zeros([3], tf.int32), tf.zeros([], tf.float64)
        for index, batch in enumerate(batches):
            batch_counts, batch_loss = self._count_on_all(batch, tf.constant(index))
            counts, total_loss = counts + batch_counts, total_loss + tf.cast(batch_loss, tf.float64)
        num_images, num_top1, num_top5 = (int(count) for count in counts)
        if not num_images:
            raise ValueError(
                "`batches` held no image, so there is no accuracy; is the set empty, or read to its end before?"
            )
        return Score(num_images, num_top1, num_top5, float(total_loss))

    def _count_on_all_replicas(self, batch, index):
        counts, loss = self._strategy.run(self._count, args=(batch, index))
        return tuple(self._strategy.reduce(tf.distribute.ReduceOp.SUM, sums, axis=None) for sums in (counts, loss))

    def _count(self, batch, index):
        """On one replica: int32 [3], images, top-1 hits, top-5 hits; and the summed cross-entropy (under attack, if any)."""
        images, labels = tf.cast(batch["images"], tf.float32), batch["labels"]
        is_image = tf.cast(batch["mask"], tf.float32) > 0.0
        logits = self._logits_fn(images)
        hits = [top_k_hits(logits, labels, k) & is_image for k in (1, TOP_K)]
        if self._attack is not None:
            seed = tf.constant([self._seed, 0])
            for part in (index, reduction.replica_id()):
                seed = randomness.fold_in(seed, part)
            logits = self._logits_fn(self._attack(self._logits_fn, images, labels, seed))
            hits = [hit & top_k_hits(logits, labels, k) for hit, k in zip(hits, (1, TOP_K))]
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, tf.cast(logits, tf.float32))
        counts = tf.stack([tf.reduce_sum(tf.cast(flags, tf.int32)) for flags in (is_image, *hits)])
        return counts, tf.reduce_sum(tf.where(is_image, losses, 0.0))
