"""The test sets of a built-in data set: clean, corrupted and attacked images."""

import dataclasses
from typing import Optional, Sequence

from efficientnet_advprop.attacks import PGD, AutoAttack
from efficientnet_advprop.config.experiment import ExperimentConfig
from efficientnet_advprop.data.builtin_datasets import BUILTIN_DATASETS
from efficientnet_advprop.evaluation.suites import registry
from efficientnet_advprop.evaluation.suites.test_sets import (
    SuiteSettings,
    TestSet,
    attack_stages,
    with_attack,
)
from efficientnet_advprop.evaluation.test_set_name import parse_name

# The attack in the evaluation: number of iterations, and the size of one iteration
# relative to ε.
ATTACK_STEPS = 10
RELATIVE_STEP_SIZE = 0.25


def open_test_sets(
    config: ExperimentConfig,
    data_dir: str,
    *,
    severities: Sequence[int],
    attack_epsilons: Sequence[float],
    autoattack_epsilon: Optional[float] = None,
    autoattack_images: Optional[int] = None,
) -> dict[str, list[TestSet]]:
    """Returns "clean", "corrupted", "attacked" and "autoattack" → test sets.

    Those of "autoattack" are its attacks, each on what withstood those before: the
    accuracy of the last one is that under all.

    Args:
        config: of the network that will be measured; the attack uses its seed.
        data_dir: folder of the images, which are written there if necessary.
        severities: of each of the fifteen corruptions, 1…5.
        attack_epsilons: one attack for each, pixels of 255.
        autoattack_epsilon: of AutoAttack under L∞; None: no AutoAttack.
        autoattack_images: so many evenly spaced images are attacked by it; None: all.
    """
    settings = SuiteSettings(
        data_dir,
        config.model.num_classes,
        config.data.image_size,
        config.data.eval_crop,
        seed=config.training.seed,
    )
    builtin = BUILTIN_DATASETS[config.data.source]
    clean, *corrupted = registry.open_suites([builtin.name, builtin.corrupted_name], settings)
    attacks = [
        PGD(epsilon, RELATIVE_STEP_SIZE * epsilon, ATTACK_STEPS, targeted=False, random_start=1.0)
        for epsilon in attack_epsilons
    ]
    autoattack: list[TestSet] = []
    if autoattack_epsilon is not None:
        autoattack = attack_stages(
            dataclasses.replace(clean, max_images=autoattack_images),
            "autoattack",
            AutoAttack(autoattack_epsilon, num_classes=config.model.num_classes),
            config.training.seed,
        )
    return {
        "clean": [clean],
        "corrupted": [
            test_set for test_set in corrupted if parse_name(test_set.name).severity in severities
        ],
        "attacked": [with_attack(clean, attack, seed=settings.seed) for attack in attacks],
        "autoattack": autoattack,
    }
