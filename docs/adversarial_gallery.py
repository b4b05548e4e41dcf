r"""Pictures of what AdvProp does: its adversarial images, its two kinds of batch norms,
and what the networks look at.

    python docs/adversarial_gallery.py \
        --advprop_dir=runs/advprop \
        --vanilla_dir=runs/vanilla \
        --data_dir=data/digits --out_dir=docs/images

adversarial_images.png    the same test images for growing ε, by the run's attack (its
                          steps and targets), through "aux"
statistics.png            per batch norm, how far the auxiliary branch's statistics and
                          affine parameters are from main's
input_gradients.png       |∂ loss / ∂ pixel| of both networks on the same images, each
                          picture scaled by its own 99 % quantile

Any two runs of the same data will do, of the averaged weights after their last steps.
"""

import os

import matplotlib
import numpy as np
import tensorflow as tf
from absl import app, flags

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

from efficientnet_advprop.attacks import PGD  # noqa: E402
from efficientnet_advprop.data import sources  # noqa: E402
from efficientnet_advprop.data.class_names import find_class_names  # noqa: E402
from efficientnet_advprop.images import labeled_images  # noqa: E402
from efficientnet_advprop.models import DualBatchNormalization  # noqa: E402
from efficientnet_advprop.training import checkpoints, losses  # noqa: E402

FLAGS = flags.FLAGS
flags.DEFINE_string("advprop_dir", None, "Folder of an AdvProp run.", required=True)
flags.DEFINE_string("vanilla_dir", None, "Folder of a vanilla run on the same data.", required=True)
flags.DEFINE_string("data_dir", None, "Folder of the records.", required=True)
flags.DEFINE_string("out_dir", "docs/images", "Folder for the pictures.")
flags.DEFINE_list(
    "epsilons",
    [],
    "Pixels of 255; default: a quarter of the run's ε, half of it, it and twice as much.",
)
flags.DEFINE_integer("num_images", 6, "Images in each picture.")
flags.DEFINE_integer("seed", 0, "Of the attack's random start and targets.")


def show(axes, image, title: str = "") -> None:
    """`image`: [height, width, 3], pixels in [0, 255], or [height, width] in [0, 1]."""
    if image.ndim == 3:
        axes.imshow(np.clip(np.round(image), 0, 255).astype(np.uint8))
    else:
        axes.imshow(image, cmap="magma", vmin=0.0, vmax=1.0)
    axes.set_title(title, fontsize=8)
    axes.set_xticks([])
    axes.set_yticks([])


def save(figure, name: str) -> None:
    path = os.path.join(FLAGS.out_dir, name)
    figure.savefig(path, dpi=130, metadata={"Software": None})
    plt.close(figure)
    print(path, flush=True)


def answers(model, images, names) -> list[str]:
    """The class that the main branch sees in each image."""
    return [names[label] for label in tf.argmax(model(images, training=False), -1)]


def draw_adversarial_images(model, config, images, labels, names) -> None:
    """A row per image, a column per ε; above each, what the network says through its
    main batch norms.
    """
    epsilons = [float(text) for text in FLAGS.epsilons] or [
        config.attack.epsilon * factor for factor in (0.25, 0.5, 1.0, 2.0)
    ]
    columns = [("clean", images)]
    for epsilon in epsilons:
        attack = PGD(
            epsilon,
            config.attack.step_size * epsilon / config.attack.epsilon,
            config.attack.num_steps,
            targeted=config.attack.targeted,
            random_start=config.attack.random_start,
            num_classes=config.model.num_classes,
        )

        def network(x):
            return model(x, training=False, branch="aux")

        columns.append(
            (f"ε = {epsilon:g}", attack(network, images, labels, tf.constant([FLAGS.seed, 0])))
        )
    size = (1.25 * len(columns), 1.45 * len(images))
    figure, grid = plt.subplots(
        len(images), len(columns), figsize=size, layout="constrained", squeeze=False
    )
    for column, (name, shown) in enumerate(columns):
        for row, answer in enumerate(answers(model, shown, names)):
            show(
                grid[row, column],
                shown[row].numpy(),
                f"{name}: “{answer}”" if row == 0 else f"“{answer}”",
            )
    save(figure, "adversarial_images.png")


def draw_statistics(model) -> None:
    """The domain difference that auxiliary batch norms are for, from the pixels up."""
    norms = [layer for layer in model.submodules if isinstance(layer, DualBatchNormalization)]
    order = {id(variable): index for index, variable in enumerate(model.variables)}
    norms.sort(key=lambda norm: order[id(norm.gamma)])
    panels = {
        "|Δ mean| / σ of main": [],
        "|log₂ (variance of aux / main)|": [],
        "|Δ γ|": [],
        "|Δ β|": [],
    }
    for norm in norms:
        main, aux = (norm.variables_of(branch) for branch in ("main", "aux"))
        deviation = np.sqrt(main.moving_variance.numpy() + norm.epsilon)
        panels["|Δ mean| / σ of main"].append(
            np.abs(aux.moving_mean - main.moving_mean) / deviation
        )
        ratio = (aux.moving_variance.numpy() + norm.epsilon) / (
            main.moving_variance.numpy() + norm.epsilon
        )
        panels["|log₂ (variance of aux / main)|"].append(np.abs(np.log2(ratio)))
        panels["|Δ γ|"].append(np.abs(aux.gamma - main.gamma))
        panels["|Δ β|"].append(np.abs(aux.beta - main.beta))
    figure, grid = plt.subplots(2, 2, figsize=(9, 5), layout="constrained", sharex=True)
    for axes, (title, values) in zip(grid.flat, panels.items()):
        middle = [np.median(of_norm) for of_norm in values]
        low, high = (
            [np.quantile(of_norm, quantile) for of_norm in values] for quantile in (0.1, 0.9)
        )
        axes.fill_between(range(len(norms)), low, high, alpha=0.2, linewidth=0)
        axes.plot(middle, marker="o", markersize=3)
        axes.set_title(title, fontsize=9)
        axes.set_ylim(bottom=0)
    for axes in grid[1]:
        axes.set_xlabel(
            "batch norm, from the pixels up (median and 10–90 % of its channels)", fontsize=8
        )
    save(figure, "statistics.png")


def input_gradients(model, images, labels) -> np.ndarray:
    """float [n, height, width] in [0, 1]: the largest channel of |∂ cross-entropy / ∂
    pixel|, main branch, inference mode.
    """
    with tf.GradientTape() as tape:
        tape.watch(images)
        loss = tf.reduce_sum(losses.cross_entropy(labels, model(images, training=False)))
    maps = np.abs(tape.gradient(loss, images).numpy()).max(-1)
    scale = np.quantile(maps, 0.99, axis=(1, 2), keepdims=True)
    return np.clip(maps / np.maximum(scale, np.finfo(np.float32).tiny), 0.0, 1.0)


def draw_input_gradients(models, images, labels, names) -> None:
    """A column per image: the image, then what each network's loss depends on."""
    size = (1.25 * len(images), 1.35 * (1 + len(models)))
    figure, grid = plt.subplots(
        1 + len(models), len(images), figsize=size, layout="constrained", squeeze=False
    )
    for column in range(len(images)):
        show(grid[0, column], images[column].numpy(), names[labels[column]])
    for row, (name, model) in enumerate(models.items(), 1):
        for column, gradient in enumerate(input_gradients(model, images, labels)):
            show(grid[row, column], gradient)
        grid[row, 0].set_ylabel(name, fontsize=9)
    save(figure, "input_gradients.png")


def main(_):
    config = checkpoints.read_config(FLAGS.advprop_dir)
    advprop = checkpoints.load_averaged_model(FLAGS.advprop_dir, which="last", aux_branches=None)
    vanilla = checkpoints.load_averaged_model(FLAGS.vanilla_dir, which="last")
    split = sources.open_split(config.data, FLAGS.data_dir, "validation")
    batch = next(
        iter(
            labeled_images.make_eval_dataset(config.data, split, global_batch_size=FLAGS.num_images)
        )
    )
    images, labels = tf.clip_by_value(batch["images"], 0.0, 255.0), batch["labels"]
    numbers = [str(number) for number in range(config.model.num_classes)]
    names = find_class_names(FLAGS.advprop_dir) or numbers
    os.makedirs(FLAGS.out_dir, exist_ok=True)
    draw_adversarial_images(advprop, config, images, labels, names)
    draw_statistics(advprop)
    draw_input_gradients({"vanilla": vanilla, "AdvProp": advprop}, images, labels, names)


if __name__ == "__main__":
    app.run(main)
