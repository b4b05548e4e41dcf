"""Forward and backward passes, and how the gradients of every method consist of them."""

import functools
import math
from typing import Any, Callable, NamedTuple, Optional, Sequence

import tensorflow as tf

from efficientnet_advprop.attacks import PGD, Attack
from efficientnet_advprop.attacks.labels import are_classes
from efficientnet_advprop.config.methods import ADVERSARIAL, AUGMENTED, CLEAN, Method, Pass
from efficientnet_advprop.keras2 import keras
from efficientnet_advprop.runtime.pass_mode import use_branch
from efficientnet_advprop.training import losses
from efficientnet_advprop.training.state import TrainState
from tpu_utils import randomness, reduction, replica_runtime

BATCH_KEYS = {CLEAN: "images", AUGMENTED: "augmented_images"}
Batch = dict[str, Any]  # tensors; "labels" may be a structure of them
Labels = Any  # classes or class weights, or a structure of tensors that another runner understands
Sums = dict[str, tf.Tensor]
# One gradient per trainable variable; None for the variables of other branches.
Gradients = list[Optional[tf.Tensor]]
GradientFn = Callable[[Batch, tf.Tensor], tuple[Gradients, Sums]]  # batch, seed


class PassResult(NamedTuple):
    """What one pass of this replica gives."""

    gradients: Gradients
    image_gradients: Optional[tf.Tensor]  # only from a pass with `is_attack`
    losses: tf.Tensor  # float32 [batch], as the next
    hits: tf.Tensor  # 1 where the predicted class is right

    def sums_of(self, part: Pass) -> Sums:
        """Returns the sums of losses and hits for each view of the pass."""
        sums = {}
        for name, values in (("loss", self.losses), ("correct", self.hits)):
            for view, share in zip(part.views, tf.split(values, len(part.views))):
                sums[f"{view}_{name}"] = tf.reduce_sum(share)
        return sums


class PassRunner:
    """Runs forward and backward passes through the branches of a network."""

    def __init__(self, state: TrainState, global_batch_size: int, label_smoothing: float):
        self.model = state.model
        self.loss_scale = state.loss_scale
        self.global_batch_size = global_batch_size
        self.label_smoothing = label_smoothing

    def __call__(self, part: Pass, images, labels, seed, *, is_attack: bool = False) -> PassResult:
        """Returns the gradients of one pass.

        The loss is the sum over the images, times the weight of the pass and the loss
        scale, divided by the global batch size. With `is_attack` there are gradients of
        the images, too, and moving statistics stay.
        """
        trained = self.model.trainable_variables
        # The branch is an argument, but a Keras model that recomputes activations calls
        # its layers again in the backward pass, and they read the context.
        with use_branch(part.branch, update_statistics=not is_attack):
            with tf.GradientTape() as tape:
                if is_attack:
                    tape.watch(images)
                logits = self.model(
                    images,
                    training=True,
                    branch=part.branch,
                    update_statistics=not is_attack,
                    seed=seed,
                )
                per_image = losses.cross_entropy(labels, logits, self.label_smoothing)
                loss = tf.reduce_sum(per_image) / (self.global_batch_size / part.weight)
                if self.loss_scale is not None:
                    loss *= self.loss_scale.scale
            gradients = tape.gradient(loss, [*trained, images] if is_attack else trained)
        image_gradients = gradients.pop() if is_attack else None
        true_classes = labels if are_classes(labels) else tf.argmax(labels, -1)
        hits = tf.cast(
            tf.equal(tf.argmax(logits, -1, true_classes.dtype), true_classes), tf.float32
        )
        return PassResult(gradients, image_gradients, per_image, hits)

    def attacked(
        self, attack: Attack, branch: str, statistics: str, images, labels, seed
    ) -> tf.Tensor:
        """Returns the adversarial images of an attack on `attacked_network`."""
        network = attacked_network(self.model, branch, statistics, seed)
        with use_branch(branch, update_statistics=statistics == "running"):
            return attack(network, images, labels, seed)


def attacked_network(
    model: keras.Model, branch: str, statistics: str, seed: Optional[tf.Tensor] = None
):
    """Returns the `logits_fn` of an attack: the model through one branch, unchanged by it.

    Args:
        model: a `Network`.
        branch: "aux" for AdvProp, "main" if there is no other.
        statistics: "running" is inference mode, as in the paper; "batch" takes the
            moments of each batch without moving the running ones, as in Fast AdvProp.
        seed: int32 [2], for dropout and stochastic depth with "batch".
    """
    if statistics == "running":
        return lambda images: model(images, training=False, branch=branch)
    return lambda images: model(
        images, training=True, branch=branch, update_statistics=False, seed=seed
    )


def sum_of_gradients(gradients: Sequence[Optional[tf.Tensor]]) -> Optional[tf.Tensor]:
    """Returns the sum of the gradients that are not None; None if there is none."""
    given = [gradient for gradient in gradients if gradient is not None]
    return sum(given[1:], given[0]) if given else None


def start_after(gradients: Gradients, images: tf.Tensor) -> tf.Tensor:
    """Returns `images`, whose users then start after `gradients` are computed."""
    # The pass over clean images and the attack do not depend on each other, so XLA would
    # interleave them and keep the activations of two passes in memory.
    if not replica_runtime.current().executes_in_order:
        return images
    # The first gradient is the last one to be computed.
    return replica_runtime.after(
        next(gradient for gradient in gradients if gradient is not None),
        tf.cast(images, tf.float32),
    )


def gradients_by_pass(
    method: Method, run: PassRunner, attack: Optional[Attack], statistics: str
) -> GradientFn:
    """Returns a function that makes every pass over the whole batch and adds the gradients."""
    # One pass after the other rather than one over a concatenated batch, so that the
    # activations of only one pass are in memory.

    def gradients_of(batch, seed):
        labels = batch["labels"]
        images = {view: batch[key] for view, key in BATCH_KEYS.items() if view in method.views}
        images[CLEAN] = batch["images"]  # which the attack starts from
        num_seeds = len(method.passes) + method.has_attack
        seeds = iter(randomness.split(seed, num_seeds) if num_seeds > 1 else [seed])
        results = []
        sums = {}
        for part in method.passes:
            if results:
                images = {view: start_after(results[-1], tensor) for view, tensor in images.items()}
            if ADVERSARIAL in part.views and ADVERSARIAL not in images:
                attack_seed = next(seeds)
                images[ADVERSARIAL] = run.attacked(
                    attack, method.attacked_branch, statistics, images[CLEAN], labels, attack_seed
                )
            count = len(part.views)
            if count == 1:
                pass_images = images[part.views[0]]
                pass_labels = labels
            else:
                pass_images = tf.concat(
                    [tf.cast(images[view], tf.float32) for view in part.views], 0
                )
                pass_labels = _repeated(labels, count)
            result = run(part, pass_images, pass_labels, next(seeds))
            results.append(result.gradients)
            sums.update(result.sums_of(part))
        return [sum_of_gradients(gradients) for gradients in zip(*results)], {
            **sums,
            "num_images": tf.cast(tf.shape(images[CLEAN])[0], tf.float32),
        }

    return gradients_of


def _repeated(labels: Labels, count: int) -> Labels:
    return tf.nest.map_structure(lambda tensor: tf.concat([tensor] * count, 0), labels)


def fast_advprop_gradients(method: Method, run: PassRunner, attack: PGD) -> GradientFn:
    """Returns the function that computes the gradients of Fast AdvProp (Mei et al., ICLR 2022,
    arXiv 2204.09838): part of the batch is attacked, and the attack's pass trains.

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
