"""The demo: a small study of three training methods, whose page has pictures.

The networks differ only in their training method (AdvProp and its two baselines) and in
their seed.
"""

import dataclasses

from advprop_experiments.plan import Arm, Claim, Contrast, Study
from efficientnet_advprop.config.experiment import ConfigError, ExperimentConfig

NAMES = {"vanilla": "Vanilla", "advprop": "AdvProp", "adversarial": "Adversarial, no aux BN"}
DESCRIPTIONS = {
    "vanilla": "clean images only",
    "advprop": "adversarial images through auxiliary batch norms of their own",
    "adversarial": "clean and adversarial images through the same batch norms",
}
SEEDS = (91, 92, 93)  # of no study: docs/maintainers/decisions.md
SEVERITY = 3  # of the corruptions
AUTOATTACK_EPSILON = 16.0  # pixels of 255, L∞
# On two cores of a machine without AVX-512; docs/maintainers/measurements.md.
_SECONDS = {"vanilla": 45.0, "advprop": 95.0, "adversarial": 95.0}


def make_study(config: ExperimentConfig, *, autoattack_images: int) -> Study:
    """Returns the demo's plan: `config` by three methods and with three seeds.

    Raises:
        ConfigError: the config uses other data, or is invalid.
    """
    if config.data.source != "digits":
        raise ConfigError(
            f"`config.data.source` is {config.data.source!r}, but the demo is about 'digits'; "
            "use configs/demo.py."
        )
    metrics = ("clean", "corrupted", "autoattack")
    study = Study(
        title="AdvProp on handwritten digits",
        introduction="AdvProp’s claim (Xie et al., CVPR 2020) is that adversarial images make a "
        "network more accurate on clean and on corrupted images if they go through batch norms of "
        "their own, which are left out afterwards, and that without these they do harm.",
        arms={
            method: Arm(_with_method(config, method), seconds)
            for method, seconds in _SECONDS.items()
        },
        seeds=SEEDS,
        claims=[
            Claim(
                "demo",
                "AdvProp’s claims",
                "More accurate by adversarial images, and only with batch norms of their own.",
                [
                    Contrast(
                        f"{NAMES[first]} − {NAMES[second]}",
                        {first: 1.0, second: -1.0},
                        expected,
                        metrics,
                    )
                    for first, second, expected in (
                        ("advprop", "vanilla", 1),
                        ("adversarial", "vanilla", -1),
                        ("advprop", "adversarial", 1),
                    )
                ],
            )
        ],
        severities=(SEVERITY,),
        autoattack_epsilon=AUTOATTACK_EPSILON,
        autoattack_images=autoattack_images,
        # It takes as long as all else; for those of one seed.
        autoattack_seeds=SEEDS[:1],
    )
    study.validate()
    return study


def _with_method(config: ExperimentConfig, method: str) -> ExperimentConfig:
    training = config.training
    # The test images are looked at once, at the end: those before would take time.
    training = dataclasses.replace(
        training, method=method, evaluate_every_epochs=training.num_epochs
    )
    return dataclasses.replace(config, training=training)
