"""Smooth Adversarial Training's claim in miniature, on handwritten digits.

Usage:

    python -m efficientnet_advprop.study --study=configs/studies/smooth_adversarial.py \
        --output_dir=runs/study_smooth

The claim (Xie et al. 2020, arXiv 2006.14536): trained on adversarial images alone, with
an attack of one step, a network with a smooth activation is more robust than one with
ReLU, and no less accurate.

This file was written before any of its runs. The 300 training images and the recipe are
those of configs/digits.py, with half of its network's width, so that 20 runs and their
AutoAttack take half an hour on two cores. The attack is SAT's: untargeted, one step of
size ε from noise in 80 % of the batches, on running statistics. No test image took part
in any choice, and the seeds were used for nothing before.

Contrasts, all paired by seed: each smooth activation minus ReLU. Primary is the robust
accuracy, under AutoAttack of the training radius, on 100 evenly spaced test images: the
claim is a gain. Secondary is the clean accuracy, on all 1,000: the claim is no loss,
which a difference that cannot be told from zero does not show.
"""

from advprop_experiments.plan import Arm, Claim, Contrast, Study
from efficientnet_advprop.config import AttackConfig, ExperimentConfig
from efficientnet_advprop.configs import digits

SEEDS = (21, 22, 23, 24, 25)
SMOOTH_ACTIVATIONS = ("silu", "softplus", "smooth_relu")
EPSILON = 32.0  # of 255
SECONDS = 120.0  # processor time of a run with its evaluation


def make_config(activation: str) -> ExperimentConfig:
    config = digits.get_config("adversarial_only")
    config.model.width_coefficient = 0.25
    config.model.activation = activation
    config.attack = AttackConfig(epsilon=EPSILON, step_size=EPSILON, num_steps=1, targeted=False)
    config.training.evaluate_every_epochs = config.training.num_epochs
    config.training.checkpoint_every_steps = 240
    config.training.keep_last = 1
    return config


def get_study() -> Study:
    def contrast(activation):
        weights = {activation: 1.0, "relu": -1.0}
        return (
            Contrast(f"{activation} − relu", weights, 1, ("autoattack",)),
            Contrast(f"{activation} − relu, secondary", weights, 0, ("clean",)),
        )

    robust, clean = zip(*map(contrast, SMOOTH_ACTIVATIONS))
    return Study(
        title="Smooth Adversarial Training on handwritten digits",
        introduction=(
            "Small EfficientNets that differ in their activation alone, trained on adversarial"
            " versions of 300 of scikit-learn’s handwritten digits and scored on others, as they"
            " are and under AutoAttack."
        ),
        arms={name: Arm(make_config(name), SECONDS) for name in ("relu", *SMOOTH_ACTIVATIONS)},
        seeds=SEEDS,
        severities=(),
        autoattack_epsilon=EPSILON,
        autoattack_images=100,
        claims=[
            Claim("a", "Robust accuracy", "Smooth activations are more robust than ReLU.", robust),
            Claim("b", "Clean accuracy", "They cost no accuracy on clean images.", clean),
        ],
    )
