"""A test set: images, how they are fed, what attacks them; and what all suites of them
share.

Usage:

    test_set = TestSet(
        "imagenet_a", "/data/imagenet-a", find_images,
        image_size=300, crop="released", expected_num_images=7500,
    )
    test_set.find_images().num_images
"""

import dataclasses
from typing import Any, Callable, Mapping, Optional, Sequence

from efficientnet_advprop.attacks import PGD, Attack, AutoAttack, Square
from efficientnet_advprop.evaluation.results import Conditions, describe_feeding
from efficientnet_advprop.evaluation.test_set_name import CLEAN, TestSetName
from efficientnet_advprop.images.labeled_images import LabeledImages
from efficientnet_advprop.runtime.errors import UsageError

STORED_SIZE = 224  # pixels: of the images of ImageNet-C and Stylized-ImageNet


class SuiteError(UsageError, ValueError):
    """A suite that there is not, or that does not go with the model or the settings."""


@dataclasses.dataclass(frozen=True)
class SuiteSettings:
    """What all suites share: where the data are, and how the network wants its images.

    Args:
        data_dir: see docs/evaluation.md for what lies where below it.
        num_classes: of the network, without a background class.
        image_size, crop: of the network's own pre-processing; see
            `preprocessing.preprocess_for_eval`.
        stored_size: pixels at which images stored at 224 are fed: 224 is as they are;
            another number resizes them whole.
        attack, num_restarts: of the suite pgd.
        autoattack: of the suite autoattack; its number of classes is the network's.
        max_images: evaluate only this many images of each test set, evenly spaced;
            None: all.
        seed: of what is random: attacks, corruptions made here.
        allow_incomplete: score what there is of a data set that is not whole.
        class_names: of the network, by label; None: not known.
    """

    data_dir: Optional[str]
    num_classes: int
    image_size: int
    crop: str = "released"
    stored_size: int = STORED_SIZE
    attack: PGD = PGD(4.0, 1.0, 10, targeted=False, random_start=1.0)
    num_restarts: int = 1
    autoattack: AutoAttack = AutoAttack(4.0)
    max_images: Optional[int] = None
    seed: int = 0
    allow_incomplete: bool = False
    class_names: Optional[Sequence[str]] = None


@dataclasses.dataclass(frozen=True)
class TestSet:
    """Images, how they are fed, and what attacks them.

    Args:
        name: as in `Results.test_sets`.
        source: where the images are, for people.
        find_images: lists them anew.
        image_size, crop: see `preprocessing.preprocess_for_eval`.
        expected_num_images: how many there must be; None: any number.
        kept_classes: see `evaluator.judge`.
        change: see `labeled_images.make_dataset`.
        made_from: with `change`, the suite of the clean images.
        attack, num_restarts: white-box, on the model that is tested; None for the
            images as they are.
        max_images: see `SuiteSettings`.
        after: another test set of the same images: only those that were right there are
            looked at, what was said of the others stands.
        checks_network: the attack is the first one, and the network is to be checked
            before it.
        categories: see `evaluator.category_logits`; labels are then numbers of
            categories.
        right_answers: image id → all classes that count as right; None: the label
            alone.
        answers_digest: see `Conditions`.
        seed: of the attack or of `change`; 0 where nothing is random.
    """

    __test__ = False  # not a test of pytest's

    name: TestSetName
    source: str
    find_images: Callable[[], LabeledImages]
    image_size: int
    crop: str
    expected_num_images: Optional[int] = None
    kept_classes: Optional[tuple[int, ...]] = None
    change: Optional[Callable] = None
    made_from: Optional[str] = None
    attack: Optional[Attack] = None
    num_restarts: int = 1
    max_images: Optional[int] = None
    after: Optional[str] = None
    checks_network: bool = False
    categories: Optional[tuple[tuple[int, ...], ...]] = None
    right_answers: Optional[Callable[[str], Sequence[int]]] = None
    answers_digest: Optional[str] = None
    seed: int = 0

    def __post_init__(self):
        object.__setattr__(self, "name", TestSetName(self.name))

    def num_drawn(self, num_images: int) -> int:
        """How many of its images are looked at."""
        return num_images if self.max_images is None else min(num_images, self.max_images)

    def conditions(self, data_digest: str, num_images: int, branch: str) -> Conditions:
        """What its score depends on."""
        return Conditions(
            data_digest=data_digest,
            image_size=self.image_size,
            crop=self.crop,
            branch=branch,
            num_kept_classes=None if self.kept_classes is None else len(self.kept_classes),
            made_from=self.made_from,
            num_drawn=(
                self.num_drawn(num_images) if self.num_drawn(num_images) < num_images else None
            ),
            attack=None if self.attack is None else self._attack_conditions(),
            seed=self.seed,
            num_categories=None if self.categories is None else len(self.categories),
            answers_digest=self.answers_digest,
        )

    def _attack_conditions(self) -> Mapping[str, Any]:
        return {"num_restarts": self.num_restarts, **self.attack.settings()}

    def problems(self, num_images: int) -> list[str]:
        """What keeps a score over so many images from being that of the data set."""
        if self.expected_num_images is None or num_images == self.expected_num_images:
            return []
        kind = "lacks" if num_images < self.expected_num_images else "has too many:"
        difference = abs(self.expected_num_images - num_images)
        return [
            f"{kind} {difference:,} images: {num_images:,} where there should be"
            f" {self.expected_num_images:,}"
        ]

    def describe_feeding(self) -> str:
        """At which resolution its images are fed, in words."""
        return describe_feeding(self.image_size, self.crop)


def common(settings: SuiteSettings, **fields) -> dict:
    """The fields of a test set that the network's own pre-processing and the settings
    decide.
    """
    return {
        "image_size": settings.image_size,
        "crop": settings.crop,
        "max_images": settings.max_images,
        **fields,
    }


def with_attack(test_set: TestSet, settings: SuiteSettings) -> TestSet:
    """The same images under the settings' attack."""
    return dataclasses.replace(
        test_set,
        name=TestSetName.attacked(settings.attack.epsilon),
        attack=settings.attack,
        num_restarts=settings.num_restarts,
        seed=settings.seed,
    )


def attack_stages(
    clean: TestSet, suite: str, autoattack: AutoAttack, seed: int, *, with_clean: bool = False
) -> list[TestSet]:
    """The attacks of `autoattack` in a chain, each on what withstood those before.

    Args:
        clean: the images.
        suite: what the stages' names begin with.
        with_clean: begin with the images as they are.
    """
    stages, after = [], None
    if with_clean:
        name = TestSetName.stage(suite, autoattack.norm, autoattack.epsilon, CLEAN)
        stages.append(dataclasses.replace(clean, name=name))
        after = name
    for number, (attack_name, attack) in enumerate(autoattack.attacks().items()):
        name = TestSetName.stage(suite, autoattack.norm, autoattack.epsilon, attack_name)
        stages.append(
            dataclasses.replace(
                clean,
                name=name,
                attack=attack,
                after=after,
                checks_network=number == 0,
                seed=seed,
            )
        )
        after = name
    return stages


def square_alone(clean: TestSet, autoattack: AutoAttack, seed: int) -> TestSet:
    """Square on all images, which needs no gradient of the network."""
    norm, epsilon = autoattack.norm, autoattack.epsilon
    return dataclasses.replace(
        clean,
        name=TestSetName.stage("autoattack", norm, epsilon, "square_alone"),
        attack=Square(
            epsilon=epsilon,
            norm=norm,
            num_queries=autoattack.num_queries,
            num_classes=autoattack.num_classes,
        ),
        checks_network=True,
        seed=seed,
    )
