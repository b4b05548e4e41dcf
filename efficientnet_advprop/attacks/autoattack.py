"""AutoAttack: four attacks one after the other, each on what withstood those before
(Croce and Hein, "Reliable evaluation of adversarial robustness with an ensemble of
diverse parameter-free attacks", ICML 2020).

    attack = AutoAttack(epsilon=8.0, norm="linf", num_classes=10)
    adversarial_images = attack(logits_fn, images, labels, seed)
    withstood = attack.run(logits_fn, images, labels, seed)
    withstood.is_right["square"].mean()                           # robust accuracy under all

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
from efficientnet_advprop.attacks.fab import FAB
from efficientnet_advprop.attacks.network_checks import AttackWarning
from efficientnet_advprop.attacks.search import Found, LogitsFn, Search, as_batch, require_whole
from efficientnet_advprop.attacks.square import Square
from efficientnet_advprop.runtime.autograph import call_rewritten
from tpu_utils.replicas import randomness

CLEAN = "clean"
# Of the reference's versions: attack by attack.
VERSIONS = {
    "standard": ("apgd_ce", "apgd_t", "fab_t", "square"),
    "plus": ("apgd_ce", "apgd_dlr", "fab", "square", "apgd_t", "fab_t"),
    "rand": ("apgd_ce", "apgd_dlr"),
}
_PLUS_RESTARTS = 5  # of the untargeted attacks of "plus"
_RAND_GRADIENTS = 20  # averaged for each step of "rand"


class Withstood(NamedTuple):
    """What came of each image.

    Args:
        images: float32 [n, height, width, channels]; see `Search.__call__`.
        is_right: "clean" and the attacks in their order → bool [n]: whether the image
            is still classified correctly after this attack and all before it.
        doubts: see `network_checks`.
    """

    images: np.ndarray
    is_right: Mapping[str, np.ndarray]
    doubts: list[str]


@dataclasses.dataclass(frozen=True)
class AutoAttack:
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
        """Name → attack, in their order."""
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

    def __call__(
        self,
        logits_fn: LogitsFn,
        images: tf.Tensor,
        labels: tf.Tensor,
        seed: Optional[tf.Tensor] = None,
    ) -> tf.Tensor:
        """Adversarial images.

        Args:
            logits_fn, images, labels, seed: see `Search.__call__`.

        Returns:
            Float32 images of the same shape; see there.

        Raises:
            AttackError: see `run`.
        """
        seed = randomness.seed_or_fresh(seed)
        if not tf.executing_eagerly():
            return self._in_graph(logits_fn, images, labels, seed)
        withstood = self.run(logits_fn, images, labels, seed)
        for doubt in withstood.doubts:
            warnings.warn(doubt, AttackWarning, stacklevel=2)
        return tf.constant(withstood.images)

    def _in_graph(self, logits_fn, images, labels, seed):
        images, labels = as_batch(images, labels, self.num_classes)
        together = Found(images, tf.ones_like(labels, tf.bool))
        for number, attack in enumerate(self.attacks().values()):
            attack_seed = randomness.fold_in(seed, number)
            found = attack.search(logits_fn, images, labels, attack_seed, together.is_open)
            together = together.update(found.images, ~found.is_open)
        return together.images

    def run(
        self,
        logits_fn: LogitsFn,
        images: tf.Tensor,
        labels: tf.Tensor,
        seed: Optional[tf.Tensor] = None,
    ) -> Withstood:
        """Attacks any number of images, and tells after which attack each was still
        right.

        Args:
            logits_fn, images, labels, seed: see `Search.__call__`. Keep one `logits_fn`
                for several calls: what was traced for it is used again.

        Raises:
            AttackError: see `Search.search` and `network_checks.check_network`.
        """
        images, labels = (value.numpy() for value in as_batch(images, labels, self.num_classes))
        seed = randomness.seed_or_fresh(seed)
        attacks = self.attacks()
        if not len(images):
            return Withstood(images, {name: np.zeros(0, bool) for name in (CLEAN, *attacks)}, [])
        size = min(self.batch_size, len(images))
        network = functools.partial(call_rewritten, logits_fn)  # it may be anybody's
        doubts = network_checks.check_network(
            logits_fn,
            images[:size],
            labels[:size],
            epsilon=self.epsilon,
            norm=self.norm,
            may_be_random=self.version == "rand",
            compile_function=lambda function: self._trace("check", logits_fn, function),
        )
        adversarial_images, is_open = images.copy(), np.zeros(len(images), bool)
        judge = self._trace(
            CLEAN, logits_fn, lambda images, labels: objectives.is_right(labels, network(images))
        )
        for chosen, _ in _batches(np.arange(len(images)), size):
            is_open[chosen] = judge(images[chosen], labels[chosen])
        is_right = {CLEAN: is_open.copy()}
        for number, (name, attack) in enumerate(attacks.items()):
            search = self._trace(name, logits_fn, functools.partial(attack.search, network))
            attack_seed = randomness.fold_in(seed, number)
            num_before = int(is_open.sum())
            for batch, (chosen, is_image) in enumerate(_batches(np.flatnonzero(is_open), size)):
                batch_seed = randomness.fold_in(attack_seed, batch)
                found = search(images[chosen], labels[chosen], batch_seed, is_image)
                is_new = is_image & ~found.is_open.numpy()
                adversarial_images[chosen[is_new]] = found.images.numpy()[is_new]
                is_open[chosen[is_new]] = False
            is_right[name] = is_open.copy()
            if name == "square":
                num_found = num_before - int(is_open.sum())
                doubts += network_checks.doubts_of_square(len(images), num_found)
        return Withstood(adversarial_images, is_right, doubts)

    def _trace(self, name, logits_fn, function):
        """A function of batches, the same one for the same `logits_fn`."""
        key = (name, logits_fn)
        if key not in self._traced:
            # As a `partial`, each is counted by itself: TensorFlow warns of retracing
            # when several functions of the same code are traced once each.
            own = functools.partial(function)
            self._traced[key] = tf.function(own, autograph=False, reduce_retracing=False)
        return self._traced[key]


def _batches(positions: np.ndarray, size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The positions in arrays of `size`, and what is one: the last array is filled up."""
    for first in range(0, len(positions), size):
        chosen = positions[first : first + size]
        yield np.resize(chosen, size), np.arange(size) < len(chosen)
