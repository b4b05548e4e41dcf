"""The training step of every method: passes, and one update of weights and statistics.

    train_step = make_train_step(
        "advprop", state, learning_rate, global_batch_size=256, attack=attack
    )
    sums = strategy.run(train_step, (batch,))                     # inside a tf.function

A step runs on every replica of a strategy, and XLA can compile it as a whole. (seed,
step, replica) determine its random numbers, so a restarted run draws the same ones.
"""

import functools
from typing import Callable, Optional, Sequence, Union

import tensorflow as tf

from efficientnet_advprop.attacks import Attack
from efficientnet_advprop.attacks.labels import check_labels
from efficientnet_advprop.config.methods import AUGMENTED, Method
from efficientnet_advprop.config.tables import STATISTICS
from efficientnet_advprop.keras2 import keras
from efficientnet_advprop.keras_common.fit_rules import checked_method
from efficientnet_advprop.models.normalization import batch_norms, moving_statistics
from efficientnet_advprop.runtime.branches import branch_names
from efficientnet_advprop.runtime.errors import list_names
from efficientnet_advprop.training import losses
from efficientnet_advprop.training.passes import (
    Batch,
    GradientFn,
    PassRunner,
    Sums,
    fast_advprop_gradients,
    gradients_by_pass,
)
from efficientnet_advprop.training.schedules import LearningRate
from efficientnet_advprop.training.state import TrainState
from tpu_utils import randomness, reduction, replica_runtime


def _over_accumulated_parts(
    gradients_of: GradientFn, accumulation_steps: int, reduces: Callable[[], bool]
) -> GradientFn:
    """Applies `gradients_of` to `accumulation_steps` parts of a batch, one after the other."""

    def over_parts(batch, seed):
        def part(index):
            return gradients_of(
                {
                    name: _part_of(tensor, index, accumulation_steps)
                    for name, tensor in batch.items()
                },
                randomness.fold_in(seed, index),
            )

        totals = part(tf.constant(0))

        def add_part(index, totals):
            return index + 1, tf.nest.map_structure(tf.add, totals, part(index))

        # Traced once, in a loop, unless the replicas would have to reduce there and cannot.
        if reduces() and not replica_runtime.current().reduces_in_loops:
            for index in range(1, accumulation_steps):
                _, totals = add_part(tf.constant(index), totals)
            return totals

        return tf.while_loop(
            lambda index, totals: index < accumulation_steps,
            add_part,
            (tf.constant(1), totals),
            maximum_iterations=accumulation_steps - 1,
        )[1]

    return over_parts


def _part_of(tensor: tf.Tensor, index: tf.Tensor, num_parts: int) -> tf.Tensor:
    size = tensor.shape[0] // num_parts
    return tf.ensure_shape(tensor[index * size : (index + 1) * size], [size, *tensor.shape[1:]])


def make_train_step(
    method: Union[str, Method],
    state: TrainState,
    learning_rate: LearningRate,
    *,
    global_batch_size: int,
    attack: Optional[Attack] = None,
    attack_statistics: str = "running",
    label_smoothing: float = 0.1,
    weight_decay: float = 1e-5,
    decays_biases: bool = True,
    accumulation_steps: int = 1,
    seed: int = 0,
) -> Callable[[Batch], Sums]:
    """Returns a function that updates everything in `state` once, to run on each replica.

    The loss is the sum over the method's passes of the mean cross-entropy over the
    global batch (L_c + L_a for AdvProp: a sum, as in the paper), plus weight_decay · Σ
    ½‖v‖² over `losses.decayed_variables`. Moving statistics move once per pass of each
    branch (with accumulation: once per part), and are then averaged over the replicas.
    With `state.loss_scale`, an update by gradients that are not finite only counts.

    Args:
        method: a key of `METHODS`, or a `Method` of your own.
        state: the variables to update; its model has the method's branches and no other.
        learning_rate: step → learning rate.
        global_batch_size: images per update, over all replicas and accumulation steps.
        attack: makes the adversarial images; None for a method without attack.
        attack_statistics: "running" (the paper) or "batch" (required by Fast AdvProp).
        label_smoothing: of the training losses, and of an attack whose pass trains.
        weight_decay, decays_biases, seed: of the loss above, and of all random numbers.
        accumulation_steps: parts of a replica's batch, processed one after the other.

    Returns:
        train_step(batch) for `batch` = {"images": [replica_batch, h, w, 3] of any
        numeric dtype with pixels in [0, 255], "labels": integers [replica_batch] or
        [replica_batch, 1], or class weights [replica_batch, classes], and, if the method
        uses them, "augmented_images"}. It returns the sums over the images of this
        replica, float32 scalars: `num_images` and, for each of the method's `views`,
        `<view>_loss` and `<view>_correct`, scaled to the whole batch where it is a part.

    Raises:
        ValueError: method, attack, the model's branches or the batch do not fit. In a
            traced step, a label that is no class makes the loss nan.
    """
    name, method = checked_method(method)
    check_attack(name, method, attack, attack_statistics)
    model = state.model
    _check_branches(name, method, model)
    if any(norm.aux_shares == "moments" for norm in batch_norms(model)):
        method = method.in_one_batch()
    run = PassRunner(state, global_batch_size, label_smoothing)
    if method.adversarial_share is None:
        gradients_of = gradients_by_pass(method, run, attack, attack_statistics)
    else:
        gradients_of = fast_advprop_gradients(method, run, attack)
    if accumulation_steps > 1:
        reduces = functools.partial(_reduces, method, model)
        gradients_of = _over_accumulated_parts(gradients_of, accumulation_steps, reduces)
    update = _make_update(state, learning_rate, weight_decay, decays_biases)

    def train_step(batch: Batch) -> Sums:
        batch = _checked_batch(batch, name, method, accumulation_steps)
        # With a loss scale, these come back if the gradients turn out not to be finite.
        statistics, before = moving_statistics(model), []
        if state.loss_scale is not None:
            before = [variable.read_value() for variable in statistics]
        gradients, sums = gradients_of(batch, _seed_of_step(seed, state.step))
        _require_gradients(name, model.trainable_variables, gradients)
        gradients = _reduce_over_replicas(gradients, statistics)
        if state.loss_scale is None:
            update(gradients)
        else:
            _update_if_finite(state, gradients, update, statistics, before)
        # Each replica updates its own copy, like every update here; the copies stay equal.
        one = tf.ones([], state.step.dtype)
        tf.raw_ops.AssignAddVariableOp(resource=state.step.handle, value=one)
        return sums

    return train_step


def _seed_of_step(seed: int, step: tf.Variable) -> tf.Tensor:
    folded = tf.constant([seed, 0])
    for part in (tf.cast(step, tf.int32), replica_runtime.current().replica_id):
        folded = randomness.fold_in(folded, part)
    return folded


def _check_branches(name: str, method: Method, model: keras.Model) -> None:
    if method.branches != set(branch_names(model.aux_branches)):
        raise ValueError(
            f"The model has `aux_branches`={model.aux_branches}, but method {name!r} trains "
            f"exactly {method.aux_branches}; the others would never learn. "
            "Build the model accordingly."
        )


def _checked_batch(batch: Batch, name: str, method: Method, accumulation_steps: int) -> Batch:
    size = batch["images"].shape[0]
    if size is None or size % accumulation_steps:
        raise ValueError(
            f"`accumulation_steps` is {accumulation_steps}, but a replica's batch is {size}; "
            "the one must divide the other, which must be known when tracing."
        )
    if AUGMENTED in method.views and "augmented_images" not in batch:
        raise ValueError(
            f"`batch` has {', '.join(batch)}, but method {name!r} also needs 'augmented_images'."
        )
    return {**batch, "labels": check_labels(batch["labels"], num_images=size)}


def _require_gradients(
    name: str, trained: Sequence[tf.Variable], gradients: Sequence[Optional[tf.Tensor]]
) -> None:
    untrained = [v.name for v, gradient in zip(trained, gradients) if gradient is None]
    if untrained:
        raise ValueError(
            f"Method {name!r} gives no gradient to {list_names(untrained)}; they would never learn."
        )


def _make_update(
    state: TrainState, learning_rate: LearningRate, weight_decay: float, decays_biases: bool
) -> Callable[[Sequence[tf.Tensor]], None]:
    """Returns a function that updates weights, slots and averages by gradients that are equal
    on all replicas.
    """
    decaying = losses.decayed_variables(state.model, decays_biases) if weight_decay else ()
    are_decayed = set(map(id, decaying))

    def update(gradients: Sequence[tf.Tensor]) -> None:
        decayed = [
            gradient + weight_decay * variable if id(variable) in are_decayed else gradient
            for variable, gradient in zip(state.model.trainable_variables, gradients)
        ]
        state.optimizer.apply(decayed, learning_rate(state.step))
        if state.ema is not None:
            state.ema.update(state.step + 1)

    return update


def _reduce_over_replicas(
    gradients: Sequence[tf.Tensor], statistics: Sequence[tf.Variable]
) -> list[tf.Tensor]:
    """Returns the summed gradients, and averages the statistics, in one exchange."""
    count = replica_runtime.current().num_replicas
    if count == 1:
        return list(gradients)
    # `tf.identity` is needed because a multi-worker strategy asks a tensor for its
    # device, which the value of a variable does not know.
    totals = reduction.sum_over_replicas([*gradients, *map(tf.identity, statistics)])
    for variable, total in zip(statistics, totals[len(gradients) :]):
        tf.raw_ops.AssignVariableOp(resource=variable.handle, value=total / count)
    return totals[: len(gradients)]


def _update_if_finite(
    state: TrainState,
    gradients: Sequence[tf.Tensor],
    update: Callable[[Sequence[tf.Tensor]], None],
    statistics: Sequence[tf.Variable],
    before: Sequence[tf.Tensor],
) -> None:
    """Divides the gradients by the loss scale; updates, or puts the statistics back."""
    gradients = [gradient / state.loss_scale.scale for gradient in gradients]
    is_finite = tf.reduce_all(
        [tf.reduce_all(tf.math.is_finite(gradient)) for gradient in gradients]
    )
    for variable, value in zip(statistics, before):
        kept = tf.where(is_finite, variable.read_value(), value)
        tf.raw_ops.AssignVariableOp(resource=variable.handle, value=kept)
    tf.cond(is_finite, lambda: update(gradients), lambda: None)
    state.loss_scale.update(is_finite)


def _reduces(method: Method, model: keras.Model) -> bool:
    """Returns whether the replicas exchange tensors before the end of the step."""
    return method.adversarial_share is not None or any(
        norm.num_replicas_together > 1 for norm in batch_norms(model)
    )


def check_attack(name: str, method: Method, attack: Optional[Attack], statistics: str) -> None:
    """Raises a `ValueError` unless the attack and its statistics fit the method."""
    needs = "one" if method.has_attack else "none"
    rules = [
        ("attack_statistics", statistics, statistics in STATISTICS, f"must be one of {STATISTICS}"),
        (
            "attack",
            attack,
            (attack is not None) == method.has_attack,
            f"method {name!r} needs {needs}",
        ),
        (
            "attack_statistics",
            statistics,
            # Any function of (logits_fn, images, labels, seed) is an attack.
            getattr(attack, "needs_gradient", True) or statistics == "running",
            f"{attack!r} attacks no network; leave it at 'running'",
        ),
    ]
    if method.adversarial_share is not None:
        shared = f"method {name!r} trains with the attack's own pass"
        rules += [
            ("attack", attack, hasattr(attack, "move"), f"{shared}, that of a `PGD`"),
            ("attack_statistics", statistics, statistics == "batch", f"{shared}: 'batch'"),
        ]
        for option, required in {"num_steps": 1, "targeted": False}.items():
            value = getattr(attack, option, required)
            rules.append((f"attack.{option}", value, value == required, f"{shared}: {required!r}"))
    for argument, value, is_right, rule in rules:
        if not is_right:
            raise ValueError(f"`{argument}` is {value!r}, but {rule}.")
