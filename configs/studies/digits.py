"""The paper's experiments in miniature, on 100 training images of handwritten digits.

Usage:

    python -m efficientnet_advprop.study --study=configs/studies/digits.py --output_dir=runs/study

Each arm trains on 100 of scikit-learn's digits with five seeds, and is tested on 1,000
others. The training set is so small that clean accuracy stays below its maximum. The
recipe is that of configs/digits.py, which was chosen on these test images with seed 0
and 300 training images. Nothing was chosen for this study, whose seeds are others.
"""

import dataclasses

from advprop_experiments.plan import Arm, Claim, Contrast, Study
from efficientnet_advprop.config import AttackConfig, ExperimentConfig
from efficientnet_advprop.configs import digits

SEEDS = (1, 2, 3, 4, 5)
# Width coefficients of an EfficientNet-B0 with depth coefficient 0.3.
SIZES = {"small": 0.25, "medium": 0.5, "large": 1.0}
# Processor time of a run with its evaluation, for vanilla and for other methods, which
# --list shows. Those of medium and large were measured.
SECONDS = {"small": (45.0, 65.0), "medium": (60.0, 90.0), "large": (110.0, 200.0)}
EPSILON = 64.0  # of 255; configs/digits.py explains why it is so large
ALL_METRICS = ("clean", "corrupted", "attacked")
EPSILONS = (16.0, 32.0, 64.0, 128.0)
NOISE = dataclasses.asdict(AttackConfig(name="noise", epsilon=EPSILON))


def make_config(
    method: str, size: str, *, augment: str = "none", aux_shares: str = "none", **attack
) -> ExperimentConfig:
    """The recipe of a method and size; further arguments are fields of `config.attack`."""
    config = digits.get_config("vanilla")
    config.model.width_coefficient = SIZES[size]
    config.model.aux_shares = aux_shares
    config.data.augment = augment
    config.data.num_train_examples = 100
    config.training.num_epochs = 120.0
    config.training.evaluate_every_epochs = config.training.num_epochs
    config.training.checkpoint_every_steps = 240
    config.training.keep_last = 1
    config.use_method(method)  # after `num_epochs`, which Fast AdvProp reduces
    config.attack = dataclasses.replace(config.attack, **attack)
    return config


def within(epsilon: float) -> dict[str, float]:
    """The options of an attack with the recipe's three steps and another ε."""
    return dict(epsilon=epsilon, step_size=epsilon / 2)


def make_arm(method: str, size: str, **options) -> Arm:
    vanilla, others = SECONDS[size]
    return Arm(make_config(method, size, **options), vanilla if method == "vanilla" else others)


def get_study() -> Study:
    arms = {}
    for size in SIZES:
        for method in ("vanilla", "advprop", "adversarial"):
            arms[f"{method}_{size}"] = make_arm(method, size)
    for size in ("small", "large"):
        for epsilon in EPSILONS:
            if epsilon != EPSILON:
                arms[f"advprop_{size}_eps{epsilon:g}"] = make_arm(
                    "advprop", size, **within(epsilon)
                )
    arms["advprop_medium_ifgsm"] = make_arm("advprop", "medium", random_start=0.0)
    arms["advprop_medium_gd"] = make_arm("advprop", "medium", random_start=0.0, projection=False)
    arms["advprop_medium_untargeted"] = make_arm("advprop", "medium", targeted=False)
    arms["advprop_small_autoaugment"] = make_arm("advprop", "small", augment="autoaugment")
    arms["fine_grained_small"] = make_arm("fine_grained", "small")
    arms["fast_advprop_medium"] = make_arm("fast_advprop", "medium")
    arms["noise_medium"] = make_arm("advprop", "medium", **NOISE)
    arms["advprop_medium_shared_statistics"] = make_arm(
        "advprop", "medium", aux_shares="statistics"
    )
    arms["advprop_medium_shared_affine"] = make_arm("advprop", "medium", aux_shares="affine")

    def minus(name, treatment, control, expected, metrics=("clean", "corrupted")):
        return Contrast(name, {treatment: 1.0, control: -1.0}, expected, metrics)

    def gain(treatment, control, sign=1.0):
        return {treatment: sign, control: -sign}

    return Study(
        title="AdvProp’s claims on handwritten digits",
        introduction=(
            "Small EfficientNets on 100 training images of scikit-learn’s handwritten digits,"
            " scored on 1,000 others: as they are, under ImageNet-C’s 15 corruptions at three"
            " severities, and under attack. What the paper says of ImageNet need not hold here; the"
            " page says for each of its claims whether it does."
        ),
        arms=arms,
        seeds=SEEDS,
        severities=(1, 3, 5),
        attack_epsilons=(16.0,),
        claims=[
            Claim(
                "a",
                "AdvProp against vanilla training",
                "Adversarial examples through auxiliary batch norms improve accuracy on clean and"
                " on corrupted images.",
                [
                    minus(
                        f"AdvProp − vanilla, {size}",
                        f"advprop_{size}",
                        f"vanilla_{size}",
                        1,
                        ALL_METRICS,
                    )
                    for size in SIZES
                ],
            ),
            Claim(
                "b",
                "Without auxiliary batch norms",
                "The same adversarial examples through the same batch norms cost clean accuracy.",
                [
                    minus(
                        f"no auxiliary − vanilla, {size}",
                        f"adversarial_{size}",
                        f"vanilla_{size}",
                        -1,
                        ("clean",),
                    )
                    for size in SIZES
                ]
                + [
                    minus(
                        f"AdvProp − no auxiliary, {size}",
                        f"advprop_{size}",
                        f"adversarial_{size}",
                        1,
                    )
                    for size in SIZES
                ],
            ),
            Claim(
                "c",
                "The gain grows with the network",
                "Larger networks gain more from AdvProp.",
                [
                    Contrast(
                        "gain of large − gain of small",
                        {
                            **gain("advprop_large", "vanilla_large"),
                            **gain("advprop_small", "vanilla_small", -1.0),
                        },
                        1,
                    )
                ],
            ),
            Claim(
                "d",
                "The best ε grows with the network",
                "Small networks do best with a weak attack, large ones with a stronger one.",
                [
                    Contrast(
                        "(ε 128 − ε 16) of large − (ε 128 − ε 16) of small",
                        {
                            **gain("advprop_large_eps128", "advprop_large_eps16"),
                            **gain("advprop_small_eps128", "advprop_small_eps16", -1.0),
                        },
                        1,
                    ),
                    *(
                        minus(
                            f"ε {epsilon:g} − vanilla, {size}",
                            f"advprop_{size}_eps{epsilon:g}",
                            f"vanilla_{size}",
                            1,
                        )
                        for size in ("small", "large")
                        for epsilon in EPSILONS
                        if epsilon != EPSILON
                    ),
                ],
            ),
            Claim(
                "e",
                "Other attackers",
                "I-FGSM and gradient descent without projection do about as well as PGD.",
                [
                    minus(f"{name} − PGD, medium", f"advprop_medium_{key}", "advprop_medium", 0)
                    for key, name in (
                        ("ifgsm", "I-FGSM"),
                        ("gd", "GD"),
                        ("untargeted", "untargeted PGD"),
                    )
                ],
            ),
            Claim(
                "f",
                "Fine-grained AdvProp",
                "One more auxiliary batch norm for AutoAugmented images gives small networks a"
                " further gain.",
                [
                    minus(
                        "fine-grained − AdvProp on AutoAugment",
                        "fine_grained_small",
                        "advprop_small_autoaugment",
                        1,
                    ),
                    minus("fine-grained − AdvProp", "fine_grained_small", "advprop_small", 1),
                ],
            ),
            Claim(
                "g",
                "Fast AdvProp at the cost of vanilla training",
                "A fifth of each batch made adversarial in the training pass itself improves on"
                " vanilla training at equal cost (Mei et al., ICLR 2022), by less than AdvProp does"
                " at three times the cost and more.",
                [
                    minus(
                        "Fast AdvProp − vanilla, medium",
                        "fast_advprop_medium",
                        "vanilla_medium",
                        1,
                        ALL_METRICS,
                    ),
                    minus(
                        "AdvProp − Fast AdvProp, medium", "advprop_medium", "fast_advprop_medium", 1
                    ),
                ],
            ),
            Claim(
                "h",
                "Noise in place of the attack",
                "It is the adversarial direction that helps, not its size: uniform noise within the"
                " same ε is the control.",
                [
                    minus("AdvProp − noise, medium", "advprop_medium", "noise_medium", 1),
                    minus("noise − vanilla, medium", "noise_medium", "vanilla_medium", 0),
                ],
            ),
            Claim(
                "i",
                "What of a batch norm must be separate",
                "The paper separates both statistics and affine parameters; these networks share"
                " one of the two. “Shared statistics” are running ones: in training each pass has"
                " the moments of its own batch, so that training and inference differ, which later"
                " work (arXiv 2210.04886, 2403.19150) does not mean. (No claim of the paper’s.)",
                [
                    minus(
                        f"{name} − all separate, medium",
                        f"advprop_medium_shared_{key}",
                        "advprop_medium",
                        0,
                    )
                    for key, name in (
                        ("statistics", "shared statistics"),
                        ("affine", "shared γ and β"),
                    )
                ],
            ),
        ],
    )
