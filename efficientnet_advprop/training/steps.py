"""The training step: vanilla, AdvProp, and adversarial training without auxiliary batch norms.

    train_step = make_train_step("advprop", state, learning_rate, global_batch_size=256, attack=attack)
    sums = strategy.run(train_step, (batch,))                     # inside a tf.function

A step runs on every replica of a strategy and compiles with XLA as a whole. Its random numbers follow from (seed, step,
replica) alone, so that a restarted run draws what the uninterrupted one would have drawn.
"""

from typing import Callable, Optional

import tensorflow as tf

from efficientnet_advprop.attacks import PGD
from efficientnet_advprop.training import losses
from efficientnet_advprop.training.schedules import LearningRate
from efficientnet_advprop.training.state import TrainState
from tpu_utils import ordering, randomness, reduction

METHODS = ("vanilla", "advprop", "adversarial")
STATISTICS = ("running", "batch")

Batch = dict[str, tf.Tensor]
Sums = dict[str, tf.Tensor]
Gradients = list[tf.Tensor]
GradientFn = Callable[[tf.Tensor, tf.Tensor, tf.Tensor], tuple[Gradients, Sums]]  # images, labels, seed


def attacked_network(model: tf.keras.Model, branch: str, statistics: str, seed: Optional[tf.Tensor] = None):
    """The `logits_fn` that an attack gets: the model through one branch, changing nothing.

    Args:
        model: an `EfficientNet`.
        branch: "aux" for AdvProp, "main" where there is no other.
        statistics: "running" is inference mode, the paper's attack; "batch" uses each batch's moments and moves none (Fast
            AdvProp).
        seed: int32 [2], for dropout and stochastic depth under "batch".
    """
    if statistics == "running":
        return lambda images: model(images, training=False, branch=branch)
    return lambda images: model(images, training=True, branch=branch, update_statistics=False, seed=seed)


class _Passes:
    """Forward and backward through a branch, for the losses of one step."""

    def __init__(self, model, global_batch_size: int, label_smoothing: float):
        self.model, self.global_batch_size, self.label_smoothing = model, global_batch_size, label_smoothing

    def __call__(self, images, labels, branch: str, seed):
        """This replica's share of the gradient of the mean loss (None for another branch's variables), and losses and hits
        per image."""
        with tf.GradientTape() as tape:
            logits = self.model(images, training=True, branch=branch, seed=seed)
            per_image = losses.cross_entropy(labels, logits, self.label_smoothing)
            loss = tf.reduce_sum(per_image) / self.global_batch_size
        gradients = tape.gradient(loss, self.model.trainable_variables)
        hits = tf.cast(tf.equal(tf.argmax(logits, -1, labels.dtype), labels), tf.float32)
        return gradients, per_image, hits


def _add(first, second):
    """The sum of two gradients, either of which may be None."""
    return second if first is None else first if second is None else first + second


def _sums(**per_image) -> Sums:
    return {name: tf.reduce_sum(values) for name, values in per_image.items()}


def _vanilla(run: _Passes) -> GradientFn:
    """Clean images through the main branch."""

    def gradients_of(images, labels, seed):
        gradients, loss, hits = run(images, labels, "main", seed)
        return gradients, _sums(clean_loss=loss, clean_correct=hits, num_images=tf.ones_like(loss))

    return gradients_of


def _advprop(run: _Passes, attack: PGD, statistics: str) -> GradientFn:
    """The paper's algorithm: attack through the auxiliary branch, then L_c through main plus L_a through auxiliary.

    Two passes whose gradients are added, rather than one over a concatenated batch: one pass's activations at a time.
    """

    def gradients_of(images, labels, seed):
        clean_seed, attack_seed, adversarial_seed = randomness.split(seed, 3)
        clean_gradients, clean_loss, clean_hits = run(images, labels, "main", clean_seed)
        if reduction.executes_in_order():
            # The clean pass and the attack depend on nothing of each other's, and XLA would mix them: two passes' activations
            # at once. The first gradient is the last one to be known.
            finished = next(gradient for gradient in clean_gradients if gradient is not None)
            images = ordering.after(finished, tf.cast(images, tf.float32))
        network = attacked_network(run.model, "aux", statistics, attack_seed)
        adversarial_images = attack(network, images, labels, attack_seed)
        gradients, loss, hits = run(adversarial_images, labels, "aux", adversarial_seed)
        sums = _sums(
            clean_loss=clean_loss, clean_correct=clean_hits, adversarial_loss=loss, adversarial_correct=hits,
            num_images=tf.ones_like(loss),
        )  # fmt: skip
        return [_add(*pair) for pair in zip(clean_gradients, gradients)], sums

    return gradients_of


def _adversarial(run: _Passes, attack: PGD, statistics: str) -> GradientFn:
    """The paper's control: clean and adversarial images in one batch, through the same (main) batch norms."""

    def gradients_of(images, labels, seed):
        attack_seed, pass_seed = randomness.split(seed, 2)
        network = attacked_network(run.model, "main", statistics, attack_seed)
        adversarial_images = attack(network, images, labels, attack_seed)
        both = tf.concat([tf.cast(images, tf.float32), adversarial_images], 0)
        gradients, loss, hits = run(both, tf.concat([labels, labels], 0), "main", pass_seed)
        (clean_loss, adversarial_loss), (clean_hits, adversarial_hits) = tf.split(loss, 2), tf.split(hits, 2)
        return gradients, _sums(
            clean_loss=clean_loss, clean_correct=clean_hits, adversarial_loss=adversarial_loss,
            adversarial_correct=adversarial_hits, num_images=tf.ones_like(clean_loss),
        )  # fmt: skip

    return gradients_of


def _accumulated(gradients_of: GradientFn, accumulation_steps: int) -> GradientFn:
    """The same over a batch cut into `accumulation_steps` parts, one after the other; traced once."""

    def over_parts(images, labels, seed):
        size = images.shape[0] // accumulation_steps

        def part(index):
            span = slice(index * size, (index + 1) * size)
            sliced = tf.ensure_shape(images[span], [size, *images.shape[1:]]), tf.ensure_shape(labels[span], [size])
            return gradients_of(*sliced, randomness.fold_in(seed, index))

        totals = part(tf.constant(0))
        add_part = lambda index, totals: (index + 1, tf.nest.map_structure(tf.add, totals, part(index)))  # noqa: E731
        done = lambda index, totals: index < accumulation_steps  # noqa: E731
        return tf.while_loop(done, add_part, (tf.constant(1), totals), maximum_iterations=accumulation_steps - 1)[1]

    return over_parts


def make_train_step(
    method: str,
    state: TrainState,
    learning_rate: LearningRate,
    *,
    global_batch_size: int,
    attack: Optional[PGD] = None,
    attack_statistics: str = "running",
    label_smoothing: float = 0.1,
    weight_decay: float = 1e-5,
    accumulation_steps: int = 1,
    seed: int = 0,
) -> Callable[[Batch], Sums]:
    """One update of everything in `state`, as a function to run on each replica.

    The loss is the mean cross-entropy over the global batch, L_c + L_a where there are adversarial images (a sum, as in
    the paper), plus weight_decay · Σ ½‖v‖² over all but the batch norms' variables. Running statistics move once per pass of
    each branch (with accumulation: once per part).

    Args:
        method: "vanilla", "advprop" or "adversarial" (clean and adversarial through the same batch norms).
        state: whose variables move; its model needs an auxiliary branch for "advprop" and must have none otherwise.
        learning_rate: step → rate.
        global_batch_size: clean images per update, over all replicas and accumulation steps.
        attack: makes the adversarial images; None for "vanilla" alone.
        attack_statistics: of the attacked batch norms: "running" (the paper) or "batch" (Fast AdvProp).
        label_smoothing: of the training losses; the attack's has none.
        weight_decay: see above.
        accumulation_steps: parts of a replica's batch, run one after the other; must divide it.
        seed: of all random numbers in the step.

    Returns:
        train_step(batch) for `batch` = {"images": [replica_batch, h, w, 3] of any numeric dtype with pixels in [0, 255],
        "labels": int [replica_batch]}. It returns this replica's sums over its images, float32 scalars: `clean_loss`,
        `clean_correct`, `num_images` and, where there are adversarial images, `adversarial_loss`, `adversarial_correct`.

    Raises:
        ValueError: the method does not exist, lacks its attack, or does not fit the model's branches.
    """
    model = state.model
    if method not in METHODS:
        raise ValueError(f"`method` is {method!r}, but must be one of {', '.join(map(repr, METHODS))}.")
    if attack_statistics not in STATISTICS:
        raise ValueError(
            f"`attack_statistics` is {attack_statistics!r}, but must be one of {', '.join(map(repr, STATISTICS))}."
        )
    if (attack is None) != (method == "vanilla"):
        raise ValueError(f"`attack` is {attack!r}, but method {method!r} needs {'none' if method == 'vanilla' else 'one'}.")
    if model.aux_branches != (1 if method == "advprop" else 0):
        raise ValueError(
            f"The model has `aux_branches`={model.aux_branches}, but method {method!r} trains exactly "
            f"{1 if method == 'advprop' else 0}; the others would never learn. Build the model accordingly."
        )
    run = _Passes(model, global_batch_size, label_smoothing)
    if method == "vanilla":
        gradients_of = _vanilla(run)
    elif method == "advprop":
        gradients_of = _advprop(run, attack, attack_statistics)
    else:
        gradients_of = _adversarial(run, attack, attack_statistics)
    if accumulation_steps > 1:
        gradients_of = _accumulated(gradients_of, accumulation_steps)

    def train_step(batch: Batch) -> Sums:
        images, labels = batch["images"], batch["labels"]
        if images.shape[0] is None or images.shape[0] % accumulation_steps:
            raise ValueError(
                f"`accumulation_steps` is {accumulation_steps}, but a replica's batch is {images.shape[0]}; "
                "the one must divide the other, which must be known when tracing."
            )
        own_seed = tf.constant([seed, 0])
        for part in (tf.cast(state.step, tf.int32), reduction.replica_id()):
            own_seed = randomness.fold_in(own_seed, part)
        gradients, sums = gradients_of(images, labels, own_seed)
        trained = model.trainable_variables
        idle = [variable.name for variable, gradient in zip(trained, gradients) if gradient is None]
        if idle:
            raise ValueError(f"Method {method!r} gives no gradient to {', '.join(idle)}; they would never learn.")
        gradients = reduction.sum_over_replicas(gradients)
        gradients = [
            gradient + weight_decay * variable if weight_decay and losses.is_decayed(variable.name) else gradient
            for variable, gradient in zip(trained, gradients)
        ]
        state.optimizer.apply(gradients, learning_rate(state.step))
        # On the local copy, like every update here: each replica counts for itself, and they agree.
        tf.raw_ops.AssignAddVariableOp(resource=state.step.handle, value=tf.ones([], state.step.dtype))
        if state.ema is not None:
            state.ema.update(state.step)
        return sums

    return train_step
