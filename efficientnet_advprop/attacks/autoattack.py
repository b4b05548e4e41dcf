"""AutoAttack: four attacks one after the other, each on what withstood those before
(Croce and Hein, "Reliable evaluation of adversarial robustness with an ensemble of
diverse parameter-free attacks", ICML 2020).

Called from Python, images of any number are attacked in batches of one size, filled up
where there are too few, and each attack is traced once. Called while a `tf.function` is
traced, the attacks follow each other on that very batch. What makes a robust accuracy
doubtful is warned of as in the reference implementation (`autoattack/checks.py`).
"""

import dataclasses
import functools
import warnings
from typing import Any, Callable, Iterator, Mapping, NamedTuple, Optional

import numpy as np
import tensorflow as tf

from efficientnet_advprop.attacks import objectives
from efficientnet_advprop.attacks.apgd import APGD
from efficientnet_advprop.attacks.attack import (
    Attack,
    Found,
    LogitsFn,
    Search,
    as_batch,
    checked_logits,
    image_gradients,
)
from efficientnet_advprop.attacks.fab import FAB
from efficientnet_advprop.attacks.square import Square
from efficientnet_advprop.config.tables import AUTOATTACK_VERSIONS as VERSIONS
from efficientnet_advprop.runtime.autograph import call_rewritten
from efficientnet_advprop.runtime.errors import AttackError, require_choice, require_whole
from tpu_utils import randomness

CLEAN = "clean"
_PLUS_RESTARTS = 5  # of the untargeted attacks of "plus"
_RAND_GRADIENTS = 20  # averaged for each step of "rand"
_NUM_REPETITIONS = 5
_SAME_LOGITS = 1e-3  # of the largest logit: more is no rounding
_SUM_OF_PROBABILITIES = 2e-2  # from 1, of probabilities in half precision or quantized
_LEAST_EPSILON = {"linf": 0.1, "l2": 1.0}  # pixels; below, ε was probably meant for [0, 1]


class AttackWarning(UserWarning):
    """A reason to doubt a robust accuracy."""


class AttackResult(NamedTuple):
    """What came of each image.

    Args:
        images: float32 [n, height, width, channels]; see `Search.__call__`.
        still_correct: "clean" and the attacks in their order → bool [n]: whether the image
            is classified correctly after this attack and all before it.
        warnings: reasons to doubt a robust accuracy, a sentence each.
    """

    images: np.ndarray
    still_correct: Mapping[str, np.ndarray]
    warnings: list[str]


@dataclasses.dataclass(frozen=True)
class AutoAttack(Attack):
    """The attacks of one of the reference's versions.

    Args:
        epsilon, norm, num_classes: see `APGD`.
        version: "standard": APGD on cross-entropy, targeted APGD on DLR, targeted FAB,
            Square. "plus": APGD on cross-entropy and on DLR and FAB, with five restarts
            each, Square, and the two targeted ones. "rand", for networks that answer
            differently each time: APGD on cross-entropy and on DLR, with 20 gradients
            averaged for each step.
        num_targets: of the targeted attacks; below the number of classes.
        num_steps: of APGD and FAB.
        num_queries: of Square.
        batch_size: images that are attacked at once when called from Python.

    Raises:
        ValueError: a value out of its range, with its name.
    """

    epsilon: float = 8.0
    norm: str = "linf"
    num_classes: Optional[int] = None
    version: str = "standard"
    num_targets: int = 9
    num_steps: int = 100
    num_queries: int = 5000
    batch_size: int = 100
    _traced: dict = dataclasses.field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self):
        require_choice("version", self.version, VERSIONS)
        require_whole("batch_size", self.batch_size, 1)
        self.attacks()

    def attacks(self) -> dict[str, Search]:
        """Returns the attacks by name, in their order."""
        ball: dict[str, Any]
        ball = dict(epsilon=self.epsilon, norm=self.norm, num_classes=self.num_classes)
        by_steps = dict(ball, num_steps=self.num_steps)
        by_targets = dict(by_steps, targeted=True, num_targets=self.num_targets)
        restarts = _PLUS_RESTARTS if self.version == "plus" else 1
        gradients = _RAND_GRADIENTS if self.version == "rand" else 1
        untargeted = dict(by_steps, num_restarts=restarts, num_gradients=gradients)
        make = {
            "apgd_ce": lambda: APGD(loss="cross_entropy", **untargeted),
            "apgd_dlr": lambda: APGD(loss="dlr", **untargeted),
            "apgd_t": lambda: APGD(loss="dlr", **by_targets),
            "fab": lambda: FAB(targeted=False, num_restarts=restarts, **by_steps),
            "fab_t": lambda: FAB(**by_targets),
            "square": lambda: Square(num_queries=self.num_queries, **ball),
        }
        return {name: make[name]() for name in VERSIONS[self.version]}

    def __call__(self, logits_fn, images, labels, seed=None, candidates=None) -> tf.Tensor:
        """Returns adversarial images; see `Search.__call__`. Warns as `run` does."""
        seed = randomness.seed_or_fresh(seed)
        if not tf.executing_eagerly():
            return self._in_graph(logits_fn, images, labels, seed, candidates)
        result = self.run(logits_fn, images, labels, seed, candidates)
        for warning in result.warnings:
            warnings.warn(warning, AttackWarning, stacklevel=2)
        return tf.constant(result.images)

    def _in_graph(self, logits_fn, images, labels, seed, candidates):
        images, labels = as_batch(images, labels, self.num_classes)
        if candidates is None:
            candidates = tf.ones_like(labels, tf.bool)
        together = Found(images, candidates)
        for number, attack in enumerate(self.attacks().values()):
            attack_seed = randomness.fold_in(seed, number)
            found = attack.search(logits_fn, images, labels, attack_seed, together.still_correct)
            together = together.update(found.images, ~found.still_correct)
        return together.images

    def run(self, logits_fn: LogitsFn, images, labels, seed=None, candidates=None) -> AttackResult:
        """Attacks any number of images; returns also after which attack each was still right.

        Arguments as of a call. Keep one `logits_fn` for several calls: what was traced for
        it is used again.
        """
        images, labels = (value.numpy() for value in as_batch(images, labels, self.num_classes))
        seed = randomness.seed_or_fresh(seed)
        attacks = self.attacks()
        if not len(images):
            return AttackResult(images, {name: np.zeros(0, bool) for name in (CLEAN, *attacks)}, [])
        size = min(self.batch_size, len(images))
        network = functools.partial(call_rewritten, logits_fn)  # it may be anybody's
        found_warnings = check_network(
            logits_fn,
            images[:size],
            labels[:size],
            epsilon=self.epsilon,
            norm=self.norm,
            may_be_random=self.version == "rand",
            compile_function=lambda function: self._trace("check", logits_fn, function),
        )
        adversarial_images, still_correct = images.copy(), np.zeros(len(images), bool)
        score = self._trace(
            CLEAN, logits_fn, lambda images, labels: objectives.is_correct(labels, network(images))
        )
        for chosen, _ in _batches(np.arange(len(images)), size):
            still_correct[chosen] = score(images[chosen], labels[chosen])
        if candidates is not None:
            still_correct &= np.asarray(candidates)
        correct_after = {CLEAN: still_correct.copy()}
        for number, (name, attack) in enumerate(attacks.items()):
            search = self._trace(name, logits_fn, functools.partial(attack.search, network))
            attack_seed = randomness.fold_in(seed, number)
            num_before = int(still_correct.sum())
            batches = _batches(np.flatnonzero(still_correct), size)
            for batch, (chosen, is_image) in enumerate(batches):
                batch_seed = randomness.fold_in(attack_seed, batch)
                found = search(images[chosen], labels[chosen], batch_seed, is_image)
                is_new = is_image & ~found.still_correct.numpy()
                adversarial_images[chosen[is_new]] = found.images.numpy()[is_new]
                still_correct[chosen[is_new]] = False
            correct_after[name] = still_correct.copy()
            if not attack.needs_gradient:
                num_found = num_before - int(still_correct.sum())
                found_warnings += square_warnings(len(images), num_found)
        return AttackResult(adversarial_images, correct_after, found_warnings)

    def _trace(self, name, logits_fn, function):
        """Returns a function of batches, the same one for the same `logits_fn`."""
        key = (name, logits_fn)
        if key not in self._traced:
            # As a `partial`, each is counted by itself: TensorFlow warns of retracing
            # when several functions of the same code are traced once each.
            own = functools.partial(function)
            self._traced[key] = tf.function(own, autograph=False, reduce_retracing=False)
        return self._traced[key]


def _batches(positions: np.ndarray, size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields the positions in arrays of `size`, and what is one: the last array is filled up."""
    for first in range(0, len(positions), size):
        chosen = positions[first : first + size]
        yield np.resize(chosen, size), np.arange(size) < len(chosen)


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
        if (finite != np.isfinite(again)).any():
            return True
        if np.abs(again[finite] - logits[finite]).max() > bound:
            return True
    return False
