"""Auto-PGD: gradient ascent that chooses its own step sizes (Croce and Hein, ICML 2020)."""

import dataclasses
from typing import NamedTuple, Optional

import numpy as np
import tensorflow as tf

from efficientnet_advprop.attacks import norms, objectives
from efficientnet_advprop.attacks.attack import Found, Search, image_gradients
from efficientnet_advprop.runtime.errors import require_choice, require_whole
from tpu_utils import replica_runtime

LOSSES = ("cross_entropy", "dlr")
# Of the paper: the first step is this many radii long; so much of a step is taken
# anew, the rest is momentum; and the step is halved where fewer than so many of the
# steps since the last check raised the loss.
_FIRST_STEP = 2.0
_NEW_SHARE = 0.75
_ENOUGH_RISES = 0.75
# Fractions of the steps: until the first check, by how much the distance of checks
# shrinks, and its least.
_FIRST_CHECK, _SHRINKAGE, _LEAST_DISTANCE = 0.22, 0.03, 0.06


class _State(NamedTuple):
    """Where the search of each image is and was, its best point, and what the checks count."""

    images: tf.Tensor
    previous_images: tf.Tensor
    best_images: tf.Tensor
    best_gradients: tf.Tensor
    best_loss: tf.Tensor
    previous_loss: tf.Tensor
    num_rises: tf.Tensor
    step_size: tf.Tensor
    best_loss_at_check: tf.Tensor
    was_halved: tf.Tensor


def check_distances(num_steps: int) -> dict[int, int]:
    """Returns after which steps step sizes are checked, each with the distance from the last."""
    first, shrinkage, least = (
        max(int(share * num_steps), 1) for share in (_FIRST_CHECK, _SHRINKAGE, _LEAST_DISTANCE)
    )
    checks, step, distance = {}, first, first
    while step <= num_steps:
        checks[step] = distance
        distance = max(distance - shrinkage, least)
        step += distance
    return checks


@dataclasses.dataclass(frozen=True)
class APGD(Search):
    """Auto-PGD.

    Args:
        epsilon: radius of the ball around the clean image, in pixels of 255: of the
            largest pixel under "linf", Euclidean under "l2"; > 0.
        norm: "linf" or "l2".
        num_steps: gradient steps of a run, ≥ 1; the loop is traced once whatever their
            number.
        loss: "cross_entropy", or "dlr", the difference of logits ratio.
        targeted: go for the `num_targets` likeliest wrong classes one after the other;
            False goes away from the true class.
        num_targets: with `targeted`, ≥ 1 and below the number of classes.
        num_restarts: random starts (per target), ≥ 1.
        num_classes: of the logits; None: as many as come. "dlr" needs 3, targeted 4.
        num_gradients: gradients that are averaged for a step (expectation over
            transformation), for a network that answers differently each time; ≥ 1.

    Raises:
        ValueError: a value out of its range, with its name.
    """

    epsilon: float = 8.0
    norm: str = "linf"
    num_steps: int = 100
    loss: str = "cross_entropy"
    targeted: bool = False
    num_targets: int = 9
    num_restarts: int = 1
    num_classes: Optional[int] = None
    num_gradients: int = 1

    def __post_init__(self):
        super().__post_init__()
        require_whole("num_steps", self.num_steps, 1)
        require_whole("num_gradients", self.num_gradients, 1)
        require_choice("loss", self.loss, LOSSES)
        least = 4 if self.targeted else 3
        if self.loss == "dlr" and self.num_classes is not None and self.num_classes < least:
            raise ValueError(
                f"`num_classes` is {self.num_classes}, but the loss dlr compares {least} logits"
                f"{' when targeted' if self.targeted else ''}; loss='cross_entropy' does with two."
            )

    def _objective(self, labels, logits, targets):
        if self.loss == "dlr":
            if targets is None:
                return objectives.dlr(labels, logits)
            return objectives.targeted_dlr(labels, targets, logits)
        if targets is None:
            return objectives.cross_entropy(labels, logits)
        return -objectives.cross_entropy(targets, logits)

    def _run(self, logits_fn, images, labels, seed, targets, is_restart, found: Found) -> Found:
        norm = norms.NORMS[self.norm]
        distances = np.zeros([self.num_steps + 1], np.int32)  # 0: no check after this step
        for step, distance in check_distances(self.num_steps).items():
            distances[step] = distance
        distances = tf.constant(distances)

        def score(images):
            logits = tf.cast(logits_fn(images), tf.float32)
            return self._objective(labels, logits, targets), objectives.is_correct(labels, logits)

        def evaluate(images):
            if self.num_gradients == 1:
                gradients, (loss, is_correct) = image_gradients(score, images)
                return gradients, loss, is_correct

            def once_more(number, gradients, loss, _):
                more_gradients, (more_loss, is_correct) = image_gradients(score, images)
                return number + 1, gradients + more_gradients, loss + more_loss, is_correct

            nothing = tf.zeros_like(images)
            start = (tf.constant(0), nothing, nothing[:, 0, 0, 0], found.still_correct)
            _, gradients, loss, is_correct = tf.while_loop(
                lambda n, *_: n < self.num_gradients, once_more, start
            )
            return gradients / self.num_gradients, loss / self.num_gradients, is_correct

        move = replica_runtime.in_one_program(self._move)

        def advance(step, state, found):
            seen = evaluate(state.images)
            state, found = move(images, state, found, *seen, step, distances)
            state = state._replace(images=tf.ensure_shape(state.images, images.shape))
            return step + 1, state, found

        start = images + self.epsilon * norm.random_direction(images, seed)
        start = tf.ensure_shape(norm.project(start, images, self.epsilon), images.shape)
        zeros = tf.zeros_like(images[:, 0, 0, 0])
        state = _State(
            images=start,
            previous_images=start,
            best_images=start,
            best_gradients=tf.zeros_like(images),
            best_loss=zeros,
            previous_loss=zeros,
            num_rises=tf.zeros_like(labels),
            step_size=zeros + _FIRST_STEP * self.epsilon,
            best_loss_at_check=zeros,
            was_halved=tf.ones_like(found.still_correct),
        )
        # The start is looked at like every step, hence one more than `num_steps`.
        _, _, found = tf.while_loop(
            lambda step, _, found: (step <= self.num_steps) & tf.reduce_any(found.still_correct),
            advance,
            (tf.constant(0), state, found),
        )
        return found

    def _move(self, clean_images, state, found, gradients, loss, is_correct, step, distances):
        """Returns what is kept of a look at `state.images`, and where to look next."""
        norm = norms.NORMS[self.norm]
        found = found.update(state.images, ~is_correct)
        is_start = tf.equal(step, 0)
        state = _remember(state, gradients, loss, is_start)
        state, gradients = _check(state, gradients, tf.gather(distances, step))
        # The first step has no momentum: there is no step before it.
        new_share = tf.where(is_start, 1.0, _NEW_SHARE)
        moved = state.images + norms.per_image(state.step_size) * norm.steepest(gradients)
        moved = norm.project(moved, clean_images, self.epsilon) - state.images
        momentum = state.images - state.previous_images
        coming = state.images + new_share * moved + (1.0 - new_share) * momentum
        coming = norm.project(coming, clean_images, self.epsilon)
        return state._replace(images=coming, previous_images=state.images), found


def _remember(state: _State, gradients, loss, is_start) -> _State:
    """Returns the state with what was seen at its images."""
    is_better = is_start | (loss > state.best_loss)
    rises = ~is_start & (loss > state.previous_loss)
    return state._replace(
        best_images=norms.where_per_image(is_better, state.images, state.best_images),
        best_gradients=norms.where_per_image(is_better, gradients, state.best_gradients),
        best_loss=tf.where(is_better, loss, state.best_loss),
        best_loss_at_check=tf.where(is_start, loss, state.best_loss_at_check),
        previous_loss=loss,
        num_rises=state.num_rises + tf.cast(rises, tf.int32),
    )


def _check(state: _State, gradients, distance) -> tuple[_State, tf.Tensor]:
    """Halves step sizes, and returns to the best point, where the search stopped rising: after
    the steps whose `distance` is > 0.
    """
    is_check = distance > 0
    enough = _ENOUGH_RISES * tf.cast(distance, tf.float32)
    rises_too_little = tf.cast(state.num_rises, tf.float32) <= enough
    is_stuck = ~state.was_halved & (state.best_loss_at_check >= state.best_loss)
    is_halved = is_check & (rises_too_little | is_stuck)
    state = state._replace(
        images=norms.where_per_image(is_halved, state.best_images, state.images),
        step_size=tf.where(is_halved, 0.5 * state.step_size, state.step_size),
        was_halved=tf.where(is_check, is_halved, state.was_halved),
        best_loss_at_check=tf.where(is_check, state.best_loss, state.best_loss_at_check),
        num_rises=tf.where(is_check, 0, state.num_rises),
    )
    return state, norms.where_per_image(is_halved, state.best_gradients, gradients)
