"""The third study, on photographs of clothing: fixed in this file before any of its runs.

Usage:

    python -m efficientnet_advprop.study --study=configs/studies/fashion_mnist.py:primary \
        --output_dir=docs/study/fashion_mnist/primary --num_parallel=2
    python -m efficientnet_advprop.study --study=configs/studies/fashion_mnist.py:ladder \
        --output_dir=docs/study/fashion_mnist/ladder --num_parallel=2

`--list` shows the runs and the time that they take. After an interruption the same command
goes on; nothing is reported before the last run of a part is done.

What was weak about the studies on digits: one training subset for all seeds, ε and sizes
chosen on the test images, digits of 8×8 pixels, no control of equal compute, and corrupted
accuracy as one mean over corruptions that go opposite ways.

- Data: Fashion-MNIST. Each seed draws its own 1,000 or 4,000 of the 60,000 training images.
- Recipe: configs/fashion_mnist.py. Everything in it was chosen on training images, of which
  4,000 were held out; docs/study/fashion_mnist/README.md lists all that was looked at. No
  regime showed a clear gain there. 1,200 updates with ε = 8 was the best-founded one (81.1
  against 80.7, two runs each); AutoAugment lost to none at every length that these runs can
  have; twice the updates gained more than 1.4 times the width, so that more updates are the
  control of equal compute.
- Arms: vanilla; vanilla with 1.85 times the updates, the processor time of AdvProp; uniform
  noise of the same ε through auxiliary batch norms; adversarial images through the same
  batch norms; AdvProp.
- Scored: all 10,000 test images as they are; 2,000 of them, evenly spaced, under the 15
  corruptions at severity 3; 1,000 under untargeted PGD of 10 steps. The averaged weights of
  the last update are scored, so that no choice is left.

Primary contrasts, corrected for these five by Holm's method; each is the mean of both sizes.

1. AdvProp − vanilla, clean, > 0: the paper's claim.
2. AdvProp − vanilla at equal compute, clean, > 0: the claim as a practitioner needs it.
3. AdvProp − no auxiliary, clean, > 0: what the auxiliary batch norms are for.
4. AdvProp − no auxiliary, corrupted, > 0.
5. AdvProp − noise, corrupted, > 0: it is the adversarial direction that helps.

Power: in the few held-out pairs, such a difference at one size had a standard deviation of
about 1.2 points over seeds, so 0.85 for the mean of two sizes. With 24
seeds and α = 0.05 / 5, a difference of half a point, the smallest that matters here, is found
with a probability of 0.54, one of 0.64 with 0.8, one of a whole point with 0.997.

Intervals are given twice: over seeds (Student's), and over seeds and images (two-way
bootstrap). Verdicts follow the first, as in the other studies. The part "ladder", secondary,
has ε = 2, 4, 16 and 32 for AdvProp and without auxiliary batch norms, at 1,000 images.
"""

import dataclasses

from advprop_experiments.plan import Arm, Claim, Contrast, Study
from efficientnet_advprop.config import AttackConfig, ConfigError, ExperimentConfig
from efficientnet_advprop.configs import fashion_mnist

PRIMARY_SEEDS = tuple(range(101, 125))
LADDER_SEEDS = tuple(range(201, 213))
TRAINING_SIZES = (1000, 4000)
LADDER = (2.0, 4.0, 16.0, 32.0)
COMPUTE_RATIO = 1.85  # the processor time of AdvProp's step by vanilla's
NOISE = dataclasses.asdict(AttackConfig(name="noise", epsilon=fashion_mnist.EPSILON))
# Processor time of a run with its evaluation, for `--list`.
SECONDS = {"vanilla": 75.0, "vanilla_compute": 110.0, "noise": 95.0, "adversarial": 105.0}
SECONDS["advprop"] = 110.0


def make_config(
    method: str, num_images: int, *, updates_ratio: float = 1.0, **attack
) -> ExperimentConfig:
    """Returns a recipe; further arguments are fields of `config.attack`."""
    config = fashion_mnist.get_config(method)
    config.data.num_train_examples = num_images
    fashion_mnist.set_num_updates(config, round(fashion_mnist.NUM_UPDATES * updates_ratio))
    config.attack = dataclasses.replace(config.attack, **attack)
    # Nothing is chosen by accuracy, so none is measured during training.
    config.training.evaluate_every_epochs = 0.0
    config.training.keep_last = 1
    return config


def get_study(part: str = "primary") -> Study:
    if part not in ("primary", "ladder"):
        raise ConfigError(
            f"`--study` names the part {part!r}, but must name 'primary' or 'ladder': "
            "configs/studies/fashion_mnist.py:primary."
        )
    return _primary() if part == "primary" else _ladder()


def _study(title: str, arms: dict, seeds: tuple, claims: list) -> Study:
    return Study(
        title=title,
        introduction=(
            "Small EfficientNets on 1,000 and 4,000 of Fashion-MNIST’s photographs, drawn anew for"
            " each seed. Arms, seeds and contrasts were fixed before any run, on training images"
            " alone."
        ),
        arms=arms,
        seeds=seeds,
        severities=(3,),
        attack_epsilons=(fashion_mnist.EPSILON,),
        corrupted_images=2000,
        attacked_images=1000,
        redraws_training_images=True,
        keeps_images=True,
        claims=claims,
    )


def _primary() -> Study:
    options = {
        "vanilla": ("vanilla", {}),
        "vanilla_compute": ("vanilla", {"updates_ratio": COMPUTE_RATIO}),
        "noise": ("advprop", NOISE),
        "adversarial": ("adversarial", {}),
        "advprop": ("advprop", {}),
    }
    arms = {
        f"{name}_{size}": Arm(make_config(method, size, **own), SECONDS[name])
        for size in TRAINING_SIZES
        for name, (method, own) in options.items()
    }

    def minus(name: str, control: str, metric: str) -> Contrast:
        share = 1.0 / len(TRAINING_SIZES)
        weights = {f"advprop_{size}": share for size in TRAINING_SIZES}
        weights |= {f"{control}_{size}": -share for size in TRAINING_SIZES}
        return Contrast(name, weights, 1, (metric,))

    return _study(
        "AdvProp on photographs of clothing, primary contrasts",
        arms,
        PRIMARY_SEEDS,
        [
            Claim(
                "gain",
                "AdvProp against vanilla training",
                "Adversarial examples through auxiliary batch norms improve accuracy on clean"
                " images.",
                [
                    minus("AdvProp − vanilla", "vanilla", "clean"),
                    minus("AdvProp − vanilla at equal compute", "vanilla_compute", "clean"),
                ],
            ),
            Claim(
                "norms",
                "What the auxiliary batch norms do",
                "The same adversarial examples through the same batch norms do worse.",
                [
                    minus("AdvProp − no auxiliary, clean", "adversarial", "clean"),
                    minus("AdvProp − no auxiliary, corrupted", "adversarial", "corrupted"),
                ],
            ),
            Claim(
                "noise",
                "Noise in place of the attack",
                "It is the adversarial direction that helps, not its size.",
                [minus("AdvProp − noise", "noise", "corrupted")],
            ),
        ],
    )


def _ladder() -> Study:
    size = TRAINING_SIZES[0]
    arms = {
        f"{method}_eps{epsilon:g}": Arm(
            make_config(method, size, epsilon=epsilon, step_size=epsilon), SECONDS[method]
        )
        for epsilon in LADDER
        for method in ("advprop", "adversarial")
    }
    differences = [
        Contrast(
            f"AdvProp − no auxiliary, ε {epsilon:g}",
            {f"advprop_eps{epsilon:g}": 1.0, f"adversarial_eps{epsilon:g}": -1.0},
            1,
            ("clean", "corrupted"),
        )
        for epsilon in LADDER
    ]
    return _study(
        "AdvProp on photographs of clothing, a ladder of ε",
        arms,
        LADDER_SEEDS,
        [
            Claim(
                "ladder",
                "Auxiliary batch norms matter more under a stronger attack",
                "Through the same batch norms a strong attack costs accuracy, through auxiliary"
                " ones it does not.",
                differences,
            )
        ],
    )
