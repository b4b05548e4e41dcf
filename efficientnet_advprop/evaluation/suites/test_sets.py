"""A test set: images, how they are fed, and what attacks them; and the conditions under
which any clean test set can be evaluated.

    test_set = TestSet("imagenet_a", "/data/imagenet-a", find_images, image_size=300, crop="none")
    attacked = with_attack(test_set, PGD(…), num_restarts=1, seed=0)
"""

import dataclasses
import itertools
from typing import Callable, Optional, Sequence

from efficientnet_advprop.attacks import PGD, Attack, AutoAttack, Square
from efficientnet_advprop.attacks.attack import Search
from efficientnet_advprop.config import suites
from efficientnet_advprop.data import corruptions
from efficientnet_advprop.evaluation.results import Conditions
from efficientnet_advprop.evaluation.test_set_name import (
    CLEAN,
    SQUARE_ALONE,
    corrupted_name,
)
from efficientnet_advprop.images import corrupted_images
from efficientnet_advprop.images.labeled_images import LabeledImages


@dataclasses.dataclass(frozen=True)
class SuiteSettings:
    """What all suites share: where the data are, and how the network takes its images."""

    data_dir: Optional[str]  # docs/evaluation.md says what lies where below it
    num_classes: int  # of the network, without a background class
    image_size: int  # of the network's own pre-processing, as is `crop`
    crop: str = "released"
    stored_size: int = suites.STORED_SIZE  # pixels at which images stored at 224 are fed, uncropped
    attack: PGD = PGD(
        suites.PGD_EPSILON, suites.PGD_STEP_SIZE, suites.PGD_STEPS, targeted=False, random_start=1.0
    )
    num_restarts: int = 1
    autoattack: AutoAttack = AutoAttack(suites.AUTOATTACK_EPSILON)  # its classes: the network's
    max_images: Optional[int] = None  # of each test set, evenly spaced; None: all
    seed: int = 0  # of attacks and of corruptions made here
    allow_incomplete: bool = False  # score incomplete data
    class_names: Optional[Sequence[str]] = None  # by label; None: unknown

    def own_fields(self, **fields) -> dict:
        """Returns the fields of a test set that the network's pre-processing decides."""
        own = dict(image_size=self.image_size, crop=self.crop, max_images=self.max_images)
        return {**own, **fields}


@dataclasses.dataclass(frozen=True)
class TestSet:
    """Images and the conditions under which they are evaluated."""

    __test__ = False  # not a test of pytest's

    name: str  # as in `Results.test_sets`
    source: str  # where the images are, for people
    find_images: Callable[[], LabeledImages]  # lists them anew
    image_size: int  # see `preprocessing.preprocess_for_eval`, as for `crop`
    crop: str
    expected_num_images: Optional[int] = None  # None: any number
    asked_for: Optional[str] = None  # see `TestSetResult`
    class_subset: Optional[tuple[int, ...]] = None  # see `evaluator.score`
    categories: Optional[tuple[tuple[int, ...], ...]] = None  # see `evaluator.category_logits`
    # Image id → all classes that count as right; None: the label alone.
    label_variants: Optional[Callable[[str], Sequence[int]]] = None
    label_variants_digest: Optional[str] = None  # see `Conditions`
    change: Optional[Callable] = None  # see `labeled_images.make_dataset`
    clean_suite: Optional[str] = None  # of the images that `change` corrupts
    attack: Optional[Attack] = None  # white-box, on the evaluated model
    num_restarts: int = 1
    # Another test set of the same images: only images still classified correctly there are
    # evaluated; other predictions are copied.
    after: Optional[str] = None
    max_images: Optional[int] = None  # see `SuiteSettings`
    seed: int = 0  # of the attack or of `change`; 0 where nothing is random

    @property
    def checks_network(self) -> bool:
        """Whether its attack is the first one of a chain, which checks the network before."""
        is_first = self.after is None or self.after.endswith(f"/{CLEAN}")
        return isinstance(self.attack, Search) and is_first

    def num_sampled(self, num_images: int) -> int:
        """Returns how many of its images are evaluated."""
        return num_images if self.max_images is None else min(num_images, self.max_images)

    def conditions(self, data_digest: str, num_images: int, branch: str) -> Conditions:
        """Returns what its score depends on."""
        num_sampled = self.num_sampled(num_images)
        return Conditions(
            data_digest=data_digest,
            image_size=self.image_size,
            crop=self.crop,
            branch=branch,
            class_subset_size=None if self.class_subset is None else len(self.class_subset),
            clean_suite=self.clean_suite,
            num_sampled=num_sampled if num_sampled < num_images else None,
            attack=None
            if self.attack is None
            else {"num_restarts": self.num_restarts, **self.attack.settings()},
            seed=self.seed,
            num_categories=None if self.categories is None else len(self.categories),
            label_variants_digest=self.label_variants_digest,
        )

    def problems(self, num_images: int) -> list[str]:
        """Returns what keeps a score over so many images from being that of the data set."""
        if self.expected_num_images in (None, num_images):
            return []
        kind = "lacks" if num_images < self.expected_num_images else "has too many:"
        difference = abs(self.expected_num_images - num_images)
        return [
            f"{kind} {difference:,} images: {num_images:,} where there should be"
            f" {self.expected_num_images:,}"
        ]


def corrupted_here(clean: TestSet, suite: str, image_size: int, seed: int) -> list[TestSet]:
    """Returns ImageNet-C's corruptions of clean images, made by its generator's recipe."""
    test_sets = []
    for corruption, severity in itertools.product(corruptions.CORRUPTIONS, corruptions.SEVERITIES):
        corrupt = corrupted_images.corrupter(corruption, severity, seed)
        test_set = dataclasses.replace(
            clean,
            name=corrupted_name(suite, corruption, severity),
            change=_one_after_the_other(clean.change, corrupt),
            image_size=image_size,
            crop="none",
            clean_suite=clean.name,
            seed=seed,
        )
        test_sets.append(test_set)
    return test_sets


def _one_after_the_other(first: Optional[Callable], second: Callable) -> Callable:
    if first is None:
        return second
    return lambda encoded, position: second(first(encoded, position), position)


def with_attack(
    clean: TestSet, attack: PGD, *, num_restarts: int = 1, seed: int = 0, suite: str = "pgd"
) -> TestSet:
    """Returns the same images under a white-box PGD attack."""
    return dataclasses.replace(
        clean,
        name=f"{suite}/{attack.epsilon:g}",
        attack=attack,
        num_restarts=num_restarts,
        seed=seed,
    )


def attack_stages(
    clean: TestSet, suite: str, autoattack: AutoAttack, seed: int, *, with_clean: bool = False
) -> list[TestSet]:
    """Returns the attacks of `autoattack` in a chain, each on the images that those before
    have left right; `with_clean` begins with the images without attack.
    """
    chain = f"{suite}/{autoattack.norm}_{autoattack.epsilon:g}"
    stages, after = [], None
    if with_clean:
        after = f"{chain}/{CLEAN}"
        stages.append(dataclasses.replace(clean, name=after))
    for attack_name, attack in autoattack.attacks().items():
        stage = dataclasses.replace(
            clean, name=f"{chain}/{attack_name}", attack=attack, after=after, seed=seed
        )
        stages.append(stage)
        after = stage.name
    return stages


def square_alone(clean: TestSet, suite: str, autoattack: AutoAttack, seed: int) -> TestSet:
    """Returns all images under Square, which needs no gradient of the network."""
    square = Square(
        epsilon=autoattack.epsilon,
        norm=autoattack.norm,
        num_queries=autoattack.num_queries,
        num_classes=autoattack.num_classes,
    )
    name = f"{suite}/{autoattack.norm}_{autoattack.epsilon:g}/{SQUARE_ALONE}"
    return dataclasses.replace(clean, name=name, attack=square, seed=seed)
