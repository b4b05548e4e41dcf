"""AutoAttack: four attacks one after the other, each on what withstood those before
(Croce and Hein, "Reliable evaluation of adversarial robustness with an ensemble of
diverse parameter-free attacks", ICML 2020).

Called from Python, images of any number are attacked in batches of one size, filled up
where there are too few, and each attack is traced once. Called while a `tf.function` is
traced, the attacks follow each other on that very batch.
"""

import dataclasses
import functools
import warnings
from typing import Any, Iterator, Mapping, NamedTuple, Optional

import numpy as np
import tensorflow as tf

from efficientnet_advprop.attacks import network_checks, objectives
from efficientnet_advprop.attacks.apgd import APGD
from efficientnet_advprop.attacks.attack import Attack, LogitsFn, as_batch, require_whole
from efficientnet_advprop.attacks.fab import FAB
from efficientnet_advprop.attacks.network_checks import AttackWarning
from efficientnet_advprop.attacks.search import Found, Search
from efficientnet_advprop.attacks.square import Square
from efficientnet_advprop.config.tables import AUTOATTACK_VERSIONS as VERSIONS
from efficientnet_advprop.runtime.autograph import call_rewritten
from tpu_utils import randomness

CLEAN = "clean"
_PLUS_RESTARTS = 5  # of the untargeted attacks of "plus"
_RAND_GRADIENTS = 20  # averaged for each step of "rand"


class AttackResult(NamedTuple):
    """What came of each image.

    Args:
        images: float32 [n, height, width, channels]; see `Search.__call__`.
        still_correct: "clean" and the attacks in their order → bool [n]: whether the image
            is classified correctly after this attack and all before it.
        warnings: see `network_checks`.
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
        if self.version not in VERSIONS:
            raise ValueError(
                f"`version` is {self.version!r}, but must be one of {', '.join(VERSIONS)}."
            )
        require_whole("batch_size", self.batch_size, 1)
        self.attacks()

    def attacks(self) -> dict[str, Search]:
        """Returns the attacks by name, in their order."""
        ball: dict[str, Any] = dict(
            epsilon=self.epsilon, norm=self.norm, num_classes=self.num_classes
        )
        by_steps: dict[str, Any] = dict(ball, num_steps=self.num_steps)
        by_targets: dict[str, Any] = dict(by_steps, targeted=True, num_targets=self.num_targets)
        restarts = _PLUS_RESTARTS if self.version == "plus" else 1
        untargeted: dict[str, Any] = dict(
            by_steps,
            num_restarts=restarts,
            num_gradients=_RAND_GRADIENTS if self.version == "rand" else 1,
        )
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

    def run(
        self,
        logits_fn: LogitsFn,
        images: tf.Tensor,
        labels: tf.Tensor,
        seed: Optional[tf.Tensor] = None,
        candidates: Optional[tf.Tensor] = None,
    ) -> AttackResult:
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
        found_warnings = network_checks.check_network(
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
            for batch, (chosen, is_image) in enumerate(
                _batches(np.flatnonzero(still_correct), size)
            ):
                batch_seed = randomness.fold_in(attack_seed, batch)
                found = search(images[chosen], labels[chosen], batch_seed, is_image)
                is_new = is_image & ~found.still_correct.numpy()
                adversarial_images[chosen[is_new]] = found.images.numpy()[is_new]
                still_correct[chosen[is_new]] = False
            correct_after[name] = still_correct.copy()
            if not attack.needs_gradient:
                num_found = num_before - int(still_correct.sum())
                found_warnings += network_checks.square_warnings(len(images), num_found)
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
