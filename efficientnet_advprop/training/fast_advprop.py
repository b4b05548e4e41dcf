"""Fast AdvProp (Mei et al., ICLR 2022, arXiv 2204.09838): part of the batch is attacked,
and the attack's pass trains.
"""

import functools
import math

import tensorflow as tf

from efficientnet_advprop.attacks import PGD
from efficientnet_advprop.config.methods import Method
from efficientnet_advprop.training.passes import (
    GradientFn,
    Labels,
    PassRunner,
    start_after,
    sum_of_gradients,
)
from tpu_utils import randomness, reduction, replica_runtime


def fast_advprop_gradients(method: Method, run: PassRunner, attack: PGD) -> GradientFn:
    """Returns the function that computes the gradients of Fast AdvProp.

    Images are shuffled over the replicas before the attack, and again (as in the
    authors' code) before the pass over the adversarial ones, so that none is trained on
    with the batch, and therefore the batch moments, with which it was made.
    """
    clean_pass, noisy_pass, adversarial_pass = method.passes

    def gradients_of(batch, seed):
        shuffle_seed, clean_seed, attack_seed, noisy_seed, again_seed, adversarial_seed = (
            randomness.split(seed, 6)
        )
        images, labels = shuffle_over_replicas(batch["images"], batch["labels"], shuffle_seed)
        size = images.shape[0]
        count = round(method.adversarial_share * size)
        if not 0 < count < size:
            raise ValueError(
                f"`adversarial_share` is {method.adversarial_share}, but of {size} images on a "
                "replica (in one of the `accumulation_steps`) that leaves none of one kind; "
                "take more."
            )
        others = tf.nest.map_structure(lambda tensor: tensor[count:], labels)
        clean = run(clean_pass, images[count:], others, clean_seed)
        labels = tf.nest.map_structure(lambda tensor: tensor[:count], labels)
        images = tf.cast(images[:count], tf.float32)
        noisy_images = start_after(clean.gradients, attack.start(images, attack_seed))
        noisy = run(noisy_pass, noisy_images, labels, noisy_seed, is_attack=True)
        adversarial_images = tf.stop_gradient(
            attack.move(images, noisy_images, noisy.image_gradients)
        )
        adversarial_images, labels = shuffle_over_replicas(adversarial_images, labels, again_seed)
        adversarial = run(adversarial_pass, adversarial_images, labels, adversarial_seed)

        results = {clean_pass: clean, noisy_pass: noisy, adversarial_pass: adversarial}
        sizes = [size - count, count, count]
        shares = [part.weight * part_size / size for part, part_size in zip(results, sizes)]
        gradients = [
            sum_of_gradients(by_pass)
            / sum(share for share, gradient in zip(shares, by_pass) if gradient is not None)
            for by_pass in zip(*(result.gradients for result in results.values()))
        ]
        sums = {"num_images": tf.constant(float(size))}
        # Scaled to the size of the whole batch, so that sums / `num_images` are means.
        for (part, result), part_size in zip(results.items(), sizes):
            sums.update(
                {name: value * (size / part_size) for name, value in result.sums_of(part).items()}
            )
        return gradients, sums

    return gradients_of


def shuffle_over_replicas(images: tf.Tensor, labels: Labels, seed: tf.Tensor) -> tuple:
    """Shuffles images and labels over groups of g replicas, g being the greatest common
    divisor of the numbers of images and replicas; each replica keeps its number.
    """
    group_size = math.gcd(images.shape[0], replica_runtime.current().num_replicas)
    tensors = images, labels
    for index, order_seed in enumerate(randomness.split(seed, 2)):
        order = tf.argsort(randomness.uniform([images.shape[0]], order_seed))
        tensors = tf.nest.map_structure(functools.partial(tf.gather, indices=order), tensors)
        if index == 0:
            tensors = tf.nest.map_structure(
                lambda tensor: reduction.exchange_over_replicas(tensor, group_size), tensors
            )
    return tensors
