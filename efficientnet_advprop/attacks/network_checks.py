"""Checks whether a network can be attacked at all, and what makes a robust accuracy of
it doubtful.

The warnings are those of the reference implementation of AutoAttack
(`autoattack/checks.py`, Croce and Hein): they do not stop an evaluation, but belong
beside its figures.
"""

import functools
from typing import Callable

import numpy as np
import tensorflow as tf

from efficientnet_advprop.attacks import objectives
from efficientnet_advprop.attacks.attack import LogitsFn, as_batch, checked_logits, image_gradients
from efficientnet_advprop.runtime.autograph import call_rewritten
from efficientnet_advprop.runtime.errors import AttackError

_NUM_REPETITIONS = 5
_SAME_LOGITS = 1e-3  # of the largest logit: more is no rounding
_SUM_OF_PROBABILITIES = 2e-2  # from 1, of probabilities in half precision or quantized
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
    """Returns reasons to doubt a robust accuracy, a sentence each.

    Args:
        logits_fn, images, labels: see `Attack`; a batch of some images is enough.
        epsilon, norm: of the attack.
        needs_gradient: False if only Square is to attack.
        may_be_random: the attack expects that the network answers differently each time.
        compile_function: turns a function of images and labels into one that is run;
            under a strategy with several replicas, one that runs it on one of them.

    Raises:
        AttackError: logits that are NaN or +inf, or the same for all images; no gradient.
    """
    images, labels = as_batch(images, labels, None)
    logits_fn = functools.partial(call_rewritten, logits_fn)

    def score(images, labels):
        logits = checked_logits(logits_fn(images), images, None)
        return objectives.cross_entropy(labels, logits), logits

    def look(images, labels):
        if not needs_gradient:
            return score(images, labels)[1], tf.ones_like(labels, tf.bool)
        gradients, (_, logits) = image_gradients(lambda images: score(images, labels), images)
        return logits, tf.reduce_any(tf.not_equal(gradients, 0.0), [1, 2, 3])

    look = compile_function(look)
    logits, has_gradient = (value.numpy() for value in look(images, labels))
    _require_logits(logits)
    is_correct = logits.argmax(-1) == labels.numpy()
    num_correct, num_flat = int(is_correct.sum()), int((is_correct & ~has_gradient).sum())
    warnings = []
    if epsilon < _LEAST_EPSILON[norm]:
        warnings.append(
            f"`epsilon` is {epsilon:g} pixels of 255, which hardly changes an image; 8/255 of a "
            "paper is 8 here, and an L2 radius of 0.5 is 127.5."
        )
    if (logits >= 0).all() and np.abs(logits.sum(-1) - 1.0).max() < _SUM_OF_PROBABILITIES:
        warnings.append(
            "The network returns probabilities; their gradients vanish where it is sure, so that "
            "robustness is overrated: attack its logits."
        )
    if num_flat:
        warnings.append(
            f"Of {num_correct} images that are classified correctly, {num_flat} have a gradient of "
            "zero: attacks that need it cannot move them, so that robustness is overrated."
        )
    if not may_be_random and _differs(look, images, labels, logits):
        warnings.append(
            "The network answers the same images differently each time: version='rand' averages "
            "gradients over its answers."
        )
    return warnings


def square_warnings(num_images: int, num_only_square: int) -> list[str]:
    """Returns what it means that Square, which sees no gradient, still found something."""
    if not num_only_square:
        return []
    return [
        f"Square misled the network on {num_only_square} of {num_images} images that had "
        "withstood all attacks by gradients ({:.1f} points): these may be masked, and stronger "
        "attacks may find more.".format(100.0 * num_only_square / num_images)
    ]


def _require_logits(logits: np.ndarray) -> None:
    # −inf excludes a class, and argmax and softmax are defined; not so where all are excluded.
    if np.isnan(logits).any() or not np.isfinite(logits.max(-1)).all():
        raise AttackError(
            "`logits_fn` returns NaN, +inf or only −inf for an image, so that no attack can tell "
            "what is right."
        )
    if len(logits) > 1 and (logits == logits[:1]).all():
        raise AttackError(
            f"`logits_fn` returns the same logits for all of {len(logits)} images: the network "
            "is constant, and an accuracy under attack says nothing of it."
        )


def _differs(look, images, labels, logits) -> bool:
    finite = np.isfinite(logits)
    bound = _SAME_LOGITS * max(np.abs(logits[finite]).max(), np.finfo(np.float32).tiny)
    for _ in range(_NUM_REPETITIONS - 1):
        again = look(images, labels)[0].numpy()
        if (finite != np.isfinite(again)).any() or (
            np.abs(again[finite] - logits[finite]).max() > bound
        ):
            return True
    return False
