"""The second study on digits, fixed in this file before any of its runs.

Usage:

    python -m efficientnet_advprop.study --study=configs/studies/digits_v2.py:primary \
        --output_dir=runs/study_v2_primary --num_parallel=2
    python -m efficientnet_advprop.study --study=configs/studies/digits_v2.py:secondary \
        --output_dir=runs/study_v2_secondary --num_parallel=2

About four and a half hours on two cores together; `--list` shows the runs. After an
interruption the same command goes on.

What was weak about the first study (configs/studies/digits.py): with 100 training
images any further image helps, so that harm without auxiliary batch norms cannot show;
and 45 tests of equal rank, with five seeds each, leave differences of three points
"suggested".

Arms, sizes and seeds.

- Sizes of the training set: 100, 300 and all 797 images, each for the same 240 updates
  of 50 images. 300 is where vanilla training is below its ceiling and a network has
  still something to lose; 100 and 797 are there because the effects should shrink or
  turn there, if the reason is right.
- Primary: vanilla, AdvProp and no auxiliary batch norms at 300, seeds 31 to 54.
- Secondary: the same at all three sizes, and the other arms of the first study at 300,
  with one new arm, `shared_moments`; seeds 61 to 70.
- Seeds 0, 1 to 5, 11 to 13 and 21 to 25 were looked at before and are not used. Of the
  test images, 11 to 13 saw this design: three seeds, which are why it was chosen.

Primary contrasts, the only ones of the part "primary", corrected for four tests by
Holm's method.

1. AdvProp − vanilla, clean, > 0: the paper's claim.
2. AdvProp − vanilla, corrupted, > 0: the same for robustness.
3. no auxiliary − vanilla, clean, < 0: what the auxiliary batch norms are for.
4. AdvProp − no auxiliary, clean, > 0: the same without vanilla training in between.

Power, with 24 seeds and the standard deviations over seeds of the first study (100
images; the largest of its three sizes). "Detected" is the difference found with
probability 0.8 if it is the first of four to be tested (α = 0.05 / 4), in points;
"expected" is the mean of seeds 11 to 13.

    contrast   deviation   detected   power, for the expected difference
    1          1.41        1.04       0.88 for +1.1
    2          3.85        2.82       1.00 for +5.3
    3          1.99        1.46       1.00 for -2.4
    4          1.94        1.42       1.00 for +3.6

All contrasts of the part "secondary" are secondary, whatever their p-values: they are
corrected among themselves, and suggest what to look at next.

Nothing is still to be chosen, so no validation image is used. The 1,000 test images are
looked at once, when all runs of a part are done.
"""

from efficientnet_advprop.configs.studies import digits as first

from advprop_experiments.plan import Arm, Claim, Contrast, Study
from efficientnet_advprop.config import ConfigError, ExperimentConfig

PRIMARY_SEEDS = tuple(range(31, 55))
SECONDARY_SEEDS = tuple(range(61, 71))
TRAINING_SIZES = (100, 300, 797)
SIZE = 300
METHODS = ("vanilla", "advprop", "adversarial")


def make_config(method: str, network: str, num_images: int, **options) -> ExperimentConfig:
    """An arm's config in the first study, with another number of training images and as
    many updates.
    """
    config = first.make_config(method, network, **options)
    first.digits.set_num_images(config, num_images)
    config.training.evaluate_every_epochs = config.training.num_epochs
    return config


def make_arm(method: str, network: str = "medium", num_images: int = SIZE, **options) -> Arm:
    vanilla, others = first.SECONDS[network]
    config = make_config(method, network, num_images, **options)
    return Arm(config, vanilla if method == "vanilla" else others)


def minus(name, treatment, control, expected, metrics=("clean", "corrupted")):
    return Contrast(name, {treatment: 1.0, control: -1.0}, expected, metrics)


def get_study(part: str = "primary") -> Study:
    if part not in ("primary", "secondary"):
        raise ConfigError(
            f"`--study` names the part {part!r}, but must name 'primary' or 'secondary': "
            "configs/studies/digits_v2.py:primary."
        )
    return _primary() if part == "primary" else _secondary()


def _study(title: str, arms: dict, seeds: tuple, claims: list) -> Study:
    return Study(
        title=title,
        introduction=(
            "Small EfficientNets on scikit-learn’s handwritten digits, scored on 1,000 others: as"
            " they are, under ImageNet-C’s 15 corruptions at three severities, and under attack."
            " Arms, seeds and contrasts were fixed before any run."
        ),
        arms=arms,
        seeds=seeds,
        severities=(1, 3, 5),
        attack_epsilons=(16.0,),
        claims=claims,
    )


def _primary() -> Study:
    return _study(
        "AdvProp on handwritten digits, primary contrasts",
        {method: make_arm(method) for method in METHODS},
        PRIMARY_SEEDS,
        [
            Claim(
                "gain",
                "AdvProp against vanilla training",
                "Adversarial examples through auxiliary batch norms improve accuracy on clean and"
                " on corrupted images.",
                [minus("AdvProp − vanilla", "advprop", "vanilla", 1)],
            ),
            Claim(
                "harm",
                "Without auxiliary batch norms",
                "The same adversarial examples through the same batch norms cost clean accuracy.",
                [
                    minus("no auxiliary − vanilla", "adversarial", "vanilla", -1, ("clean",)),
                    minus("AdvProp − no auxiliary", "advprop", "adversarial", 1, ("clean",)),
                ],
            ),
        ],
    )


def _secondary() -> Study:
    arms = {
        f"{method}_{size}": make_arm(method, num_images=size)
        for size in TRAINING_SIZES
        for method in METHODS
    }
    for network in ("small", "large"):
        for method in METHODS:
            arms[f"{method}_{network}"] = make_arm(method, network)
        for epsilon in (16.0, 128.0):
            attack = first.within(epsilon)
            arms[f"advprop_{network}_eps{epsilon:g}"] = make_arm("advprop", network, **attack)
    others = {
        "ifgsm": dict(random_start=0.0),
        "gd": dict(random_start=0.0, projection=False),
        "untargeted": dict(targeted=False),
        "shared_statistics": dict(aux_shares="statistics"),
        "shared_moments": dict(aux_shares="moments"),
        "shared_affine": dict(aux_shares="affine"),
        "noise": first.NOISE,
    }
    for name, options in others.items():
        arms[name] = make_arm("advprop", **options)
    arms["advprop_small_autoaugment"] = make_arm("advprop", "small", augment="autoaugment")
    arms["fine_grained_small"] = make_arm("fine_grained", "small")
    arms["fast_advprop"] = make_arm("fast_advprop")

    def gain(network, sign):
        return {f"advprop_{network}": sign, f"vanilla_{network}": -sign}

    def steeper(network, sign):
        return {f"advprop_{network}_eps128": sign, f"advprop_{network}_eps16": -sign}

    by_size = [
        contrast
        for size in TRAINING_SIZES
        for contrast in (
            minus(f"AdvProp − vanilla, {size}", f"advprop_{size}", f"vanilla_{size}", 1),
            minus(f"no auxiliary − vanilla, {size}", f"adversarial_{size}", f"vanilla_{size}", -1),
            minus(f"AdvProp − no auxiliary, {size}", f"advprop_{size}", f"adversarial_{size}", 1),
        )
    ]
    return _study(
        "AdvProp on handwritten digits, secondary contrasts",
        arms,
        SECONDARY_SEEDS,
        [
            Claim(
                "b",
                "By the size of the training set",
                "The gain, and the harm without auxiliary batch norms, at 100, 300 and 797 images.",
                by_size,
            ),
            Claim(
                "c",
                "The gain grows with the network",
                "Larger networks gain more from AdvProp.",
                [
                    Contrast(
                        "gain of large − gain of small",
                        {**gain("large", 1.0), **gain("small", -1.0)},
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
                        {**steeper("large", 1.0), **steeper("small", -1.0)},
                        1,
                    )
                ],
            ),
            Claim(
                "e",
                "Other attackers",
                "I-FGSM and gradient descent without projection do about as well as PGD.",
                [
                    minus(f"{words} − PGD", key, "advprop_300", 0)
                    for key, words in (
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
                "It improves on vanilla training, by less than AdvProp (Mei et al., ICLR 2022).",
                [
                    minus("Fast AdvProp − vanilla", "fast_advprop", "vanilla_300", 1),
                    minus("AdvProp − Fast AdvProp", "advprop_300", "fast_advprop", 1),
                ],
            ),
            Claim(
                "h",
                "Noise in place of the attack",
                "It is the adversarial direction that helps, not its size.",
                [
                    minus("AdvProp − noise", "advprop_300", "noise", 1),
                    minus("noise − vanilla", "noise", "vanilla_300", 0),
                ],
            ),
            Claim(
                "i",
                "What of a batch norm must be separate",
                "Later work (Rebuffi et al., ICLR 2023; Zhang et al., arXiv 2403.19150) finds that"
                " both kinds of images may share the moments of their batch, but not γ and β."
                " Shared moments are that arm; shared statistics are running ones alone.",
                [
                    minus("shared moments − all separate", "shared_moments", "advprop_300", 0),
                    minus("shared γ and β − all separate", "shared_affine", "advprop_300", -1),
                    minus("shared moments − shared γ and β", "shared_moments", "shared_affine", 1),
                    minus(
                        "shared statistics − all separate", "shared_statistics", "advprop_300", -1
                    ),
                ],
            ),
        ],
    )
