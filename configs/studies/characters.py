"""AdvProp on rendered characters, by the size of the network: claims (c) and (d) of the
paper on images harder than digits; fixed in this file before any of its runs.

Usage:

    python -m efficientnet_advprop.study --study=configs/studies/characters.py \
        --output_dir=runs/study_characters --num_parallel=2

The characters are coloured, textured and cluttered, and the 2,048 test images show
fonts and textures that no training image has (efficientnet_advprop/data/characters.py).

What was chosen beforehand, on the training split's images 6,400 to 7,199, which no run
of the study sees, with seeds 201 to 204. With 700 updates a run's accuracy depends on
when it leaves a plateau at chance (vanilla, small: 37 %; large: 78 %). With 1,500 updates
of 64 images, 1,600 training images and seed 204, all are past it and below their
ceiling: vanilla 92.8 % clean and 80.5 % corrupted (small), 94.0 and 82.5 (large), AdvProp
with ε = 8 94.5 and 83.8 (small), 95.1 and 82.4 (large). Larger is better here, as on
ImageNet, and unlike on the digits. The attack has one step, as in the paper's small
networks. No test image was looked at.

Arms: small and large networks, vanilla and AdvProp with a weak and a strong attack (ε = 2
and 8). Seeds 301 to 308, used for nothing before. Contrasts, all corrected together for
eight tests by Holm's method:

(a) AdvProp (ε = 8) − vanilla, for each network, clean and corrupted, > 0.
(c) The gain of (a) of the large network − that of the small one, > 0.
(d) (ε = 8 − ε = 2) of the large network − the same of the small one, > 0.

Eight seeds detect, with probability 0.8, a difference of 1.7 of its standard deviations
over the seeds if it is the first of eight to be tested, and of 1.2 if it is the last; the
deviations are not known. About two hours and a half on two cores; after an interruption
the same command goes on.
"""

import importlib.util
import os

from advprop_experiments.plan import Arm, Claim, Contrast, Study
from efficientnet_advprop.config import ExperimentConfig

SEEDS = tuple(range(301, 309))
NUM_IMAGES = 1600
NUM_UPDATES = 1500
# Network → width, depth, and the processor time of a run with its evaluation in seconds,
# of vanilla training and of AdvProp.
NETWORKS = {"small": (0.25, 0.35, 200.0, 430.0), "large": (0.5, 0.5, 260.0, 560.0)}
EPSILONS = (2.0, 8.0)  # of 255

_path = os.path.join(os.path.dirname(__file__), os.pardir, "characters.py")
_spec = importlib.util.spec_from_file_location("characters_config", _path)
_characters = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_characters)


def make_config(method: str, network: str, epsilon: float = EPSILONS[-1]) -> ExperimentConfig:
    config = _characters.get_config(method)
    config.model.width_coefficient, config.model.depth_coefficient, *_ = NETWORKS[network]
    config.attack.epsilon = config.attack.step_size = epsilon
    config.attack.num_steps = 1
    config.data.num_train_examples = NUM_IMAGES
    epochs = config.training.global_batch_size / NUM_IMAGES
    # A little more than whole updates, whose number is rounded down.
    config.training.num_epochs = NUM_UPDATES * epochs * (1.0 + 1e-6)
    config.optimizer.warmup_epochs = NUM_UPDATES * epochs / 20
    config.training.evaluate_every_epochs = config.training.num_epochs
    config.training.checkpoint_every_steps = NUM_UPDATES
    config.training.keep_last = 1
    return config


def get_study() -> Study:
    arms = {}
    for network, (_, _, vanilla, advprop) in NETWORKS.items():
        arms[f"vanilla_{network}"] = Arm(make_config("vanilla", network), vanilla)
        for epsilon in EPSILONS:
            config = make_config("advprop", network, epsilon)
            arms[f"advprop_{network}_eps{epsilon:g}"] = Arm(config, advprop)
    weak, strong = (f"eps{epsilon:g}" for epsilon in EPSILONS)

    def gain(network, epsilon, sign=1.0):
        return {f"advprop_{network}_{epsilon}": sign, f"vanilla_{network}": -sign}

    def stronger(network, sign):
        return {f"advprop_{network}_{strong}": sign, f"advprop_{network}_{weak}": -sign}

    metrics = ("clean", "corrupted")
    return Study(
        title="AdvProp on rendered characters, by the size of the network",
        introduction=(
            "EfficientNets of two sizes, trained on rendered characters and scored on 2,048"
            " others, of other fonts and textures: as they are, and under ImageNet-C’s 15"
            " corruptions. Arms, seeds and contrasts were fixed before any run."
        ),
        arms=arms,
        seeds=SEEDS,
        severities=(3,),
        claims=[
            Claim(
                "a",
                "AdvProp against vanilla training",
                "Adversarial examples through auxiliary batch norms improve accuracy on clean and"
                " on corrupted images.",
                [
                    Contrast(f"AdvProp − vanilla, {network}", gain(network, strong), 1, metrics)
                    for network in NETWORKS
                ],
            ),
            Claim(
                "c",
                "The gain grows with the network",
                "Larger networks gain more from AdvProp.",
                [
                    Contrast(
                        "gain of large − gain of small",
                        {**gain("large", strong), **gain("small", strong, -1.0)},
                        1,
                        metrics,
                    )
                ],
            ),
            Claim(
                "d",
                "The best ε grows with the network",
                "Small networks do best with a weak attack, large ones with a stronger one.",
                [
                    Contrast(
                        f"(ε {EPSILONS[1]:g} − ε {EPSILONS[0]:g}) of large − the same of small",
                        {**stronger("large", 1.0), **stronger("small", -1.0)},
                        1,
                        metrics,
                    )
                ],
            ),
        ],
    )
