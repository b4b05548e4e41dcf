"""Whether a network can be attacked at all, and what makes a robust accuracy of it
doubtful.

    warnings = check_network(logits_fn, images, labels, epsilon=8.0, norm="linf")

The doubts are those of the reference implementation of AutoAttack
(`autoattack/checks.py`, Croce and Hein): they do not stop an evaluation, but belong
beside its figures.
"""

import functools
from typing import Callable

import numpy as np
import tensorflow as tf

from efficientnet_advprop.attacks import objectives
from efficientnet_advprop.attacks.search import (
    AttackError,
    LogitsFn,
    as_batch,
    ascend,
    checked_logits,
)
from efficientnet_advprop.runtime.autograph import call_rewritten

_NUM_REPETITIONS = 5
_SAME_LOGITS = 1e-3  # of the largest logit: more is no rounding
_SUM_OF_PROBABILITIES = 1e-3  # from 1
_LEAST_EPSILON = {"linf": 0.1, "l2": 1.0}  # pixels; below, ε was probably meant for [0, 1]


class AttackWarning(UserWarning):
    """A reason to doubt a robust accuracy."""


def check_network(
    logits_fn: LogitsFn,
    images: tf.Tensor,
    labels: tf.Tensor,
    *,
    epsilon: float,
    norm: str,
    needs_gradient: bool = True,
    may_be_random: bool = False,
    compile_function: Callable = functools.partial(tf.function, autograph=False),
) -> list[str]:
    """Asks a network about some images, several times.

    Args:
        logits_fn, images, labels: see `Search.__call__`; a batch of some images is
            enough.
        epsilon, norm: of the attack.
        needs_gradient: False if only Square is to attack.
        may_be_random: the attack expects that the network answers differently each
            time.
        compile_function: turns a function of images and labels into one that is run;
            under a strategy with several replicas, one that runs it on one of them.

    Returns:
        Doubts, a sentence each; none if there are none.

    Raises:
        AttackError: logits that are not finite, or the same for all images; no
            gradient.
    """
    images, labels = as_batch(images, labels, None)
    logits_fn = functools.partial(call_rewritten, logits_fn)

    def judge(images, labels):
        logits = checked_logits(logits_fn(images), images, None)
        return objectives.cross_entropy(labels, logits), logits

    def look(images, labels):
        if not needs_gradient:
            return judge(images, labels)[1], tf.ones_like(labels, tf.bool)
        gradients, (_, logits) = ascend(lambda images: judge(images, labels), images)
        return logits, tf.reduce_any(tf.not_equal(gradients, 0.0), [1, 2, 3])

    look = compile_function(look)
    logits, has_gradient = (value.numpy() for value in look(images, labels))
    _require_answers(logits)
    num_right = int((logits.argmax(-1) == labels.numpy()).sum())
    num_flat = int(((logits.argmax(-1) == labels.numpy()) & ~has_gradient).sum())
    doubts = []
    if epsilon < _LEAST_EPSILON[norm]:
        doubts.append(
            f"`epsilon` is {epsilon:g} pixels of 255, which hardly changes an image; 8/255 of a "
            "paper is 8 here, and an L2 radius of 0.5 is 127.5."
        )
    if (logits >= 0).all() and np.abs(logits.sum(-1) - 1.0).max() < _SUM_OF_PROBABILITIES:
        doubts.append(
            "The network returns probabilities; their gradients vanish where it is sure, so that "
            "robustness is overrated: attack its logits."
        )
    if num_flat:
        doubts.append(
            f"Of {num_right} images that are classified correctly, {num_flat} have a gradient of "
            "zero: attacks that need it cannot move them, so that robustness is overrated."
        )
    if not may_be_random and _differs(look, images, labels, logits):
        doubts.append(
            "The network answers the same images differently each time: version='rand' averages "
            "gradients over its answers."
        )
    return doubts


def doubts_of_square(num_images: int, num_only_square: int) -> list[str]:
    """What it means that Square, which sees no gradient, still found something."""
    if not num_only_square:
        return []
    return [
        f"Square misled the network on {num_only_square} of {num_images} images that had "
        "withstood all attacks by gradients ({:.1f} points): these may be masked, and stronger "
        "attacks may find more.".format(100.0 * num_only_square / num_images)
    ]


def _require_answers(logits: np.ndarray) -> None:
    if not np.isfinite(logits).all():
        raise AttackError(
            "`logits_fn` returns logits that are not finite (NaN or infinity), so that no attack "
            "can tell what is right."
        )
    if len(logits) > 1 and (logits == logits[:1]).all():
        raise AttackError(
            f"`logits_fn` returns the same logits for all of {len(logits)} images: the network "
            "is constant, and an accuracy under attack says nothing of it."
        )


def _differs(look, images, labels, logits) -> bool:
    bound = _SAME_LOGITS * max(float(np.abs(logits).max()), float(np.finfo(np.float32).tiny))
    again = (look(images, labels)[0].numpy() for _ in range(_NUM_REPETITIONS - 1))
    return any(np.abs(answer - logits).max() > bound for answer in again)
