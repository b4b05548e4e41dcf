"""Models under test: whatever turns pixels into logits, with a name and what its
results depend on.

Usage:

    # a network of ours or another Keras model, a `tf.function`
    as_classifier(model)
    # any function of uint8 images [n, h, w, 3], called eagerly
    as_classifier(lambda images: torch_model(images), name="…")
    saved_models.load("served/efficientnet/1")
"""

import dataclasses
from typing import Any, Callable, Iterable, Iterator, Optional, Sequence

import numpy as np
import tensorflow as tf

from efficientnet_advprop.attacks import Attack
from efficientnet_advprop.attacks.network_checks import check_network
from efficientnet_advprop.config.class_labels import background_offset
from efficientnet_advprop.data.python_calls import call_python
from efficientnet_advprop.evaluation.evaluator import Evaluator, category_logits, judge
from efficientnet_advprop.keras2 import keras
from efficientnet_advprop.models import KerasNetwork, Network
from efficientnet_advprop.models.converted.keras_network import check_no_mixture
from efficientnet_advprop.models.variable_names import weights_digest
from efficientnet_advprop.runtime.branches import Branch, check_branch, parse_branch
from efficientnet_advprop.runtime.errors import UserError
from tpu_utils.errors import brief_message

DEFAULT_IMAGE_SIZE, DEFAULT_CROP = 224, "0.875"
_NUM_PROBES = 4  # images of noise that a model is asked about first


class ClassifierError(UserError, ValueError):
    """A model that cannot be evaluated; the message says why."""


@dataclasses.dataclass(frozen=True)
class Classifier:
    """A model under test.

    Args:
        name: for people, and for the folder of its results.
        function: pixels [n, size, size, 3] in [0, 255] → logits [n, num_classes].
            Float32 pixels, traced by TensorFlow, if `is_traceable`; else uint8 NumPy
            arrays, and any array back.
        num_classes: of the logits.
        image_size, crop: of its own pre-processing.
        weights_digest, config: see `Results`.
        branch: whose batch norms answer.
        is_traceable: see `function`.
        fixed_image_size: the only size that it takes; None: any.
        fixed_batch_size: the only size of a replica's batch that it takes; None: any.
        class_names: by label; None: not known.
        has_background: whether the last logit is of no class of any data set; see
            `background_last`.
    """

    name: str
    function: Callable[[Any], Any]
    num_classes: int
    image_size: int
    crop: str
    weights_digest: str = ""
    config: dict[str, Any] = dataclasses.field(default_factory=dict)
    branch: str = "main"
    is_traceable: bool = True
    fixed_image_size: Optional[int] = None
    fixed_batch_size: Optional[int] = None
    class_names: Optional[Sequence[str]] = None
    has_background: bool = False
    _evaluators: dict = dataclasses.field(default_factory=dict, repr=False, compare=False)

    def predict(
        self,
        batches: Iterable,
        *,
        kept_classes: Optional[Sequence[int]] = None,
        categories: Optional[Sequence[Sequence[int]]] = None,
        attack: Optional[Attack] = None,
        num_restarts: int = 1,
        seed: int = 0,
        strategy: Optional[tf.distribute.Strategy] = None,
    ) -> Iterator[dict[str, np.ndarray]]:
        """As `Evaluator.predict`. Traced once for all test sets of one kind.

        Raises:
            ClassifierError: an attack, but the function is not traceable; or it returns
                something else than logits.
        """
        self._require_attackable(attack)
        if self.is_traceable or attack is not None:
            key = (kept_classes, categories, attack, num_restarts, seed, strategy)
            if key not in self._evaluators:
                self._evaluators[key] = Evaluator(
                    self._traceable_function(),
                    attack=attack,
                    num_restarts=num_restarts,
                    kept_classes=kept_classes,
                    categories=categories,
                    strategy=strategy,
                    seed=seed,
                )
            return self._evaluators[key].predict(batches)
        if strategy is not None and strategy.num_replicas_in_sync > 1:
            raise ClassifierError(
                f"{self.name!r} is a plain function, which runs on one replica; leave `strategy`"
                " out."
            )
        return self._predict_on_host(batches, kept_classes, categories)

    def _require_attackable(self, attack: Optional[Attack]) -> None:
        if attack is None or self.is_traceable or not attack.needs_gradient:
            return
        raise ClassifierError(
            f"{self.name!r} is a plain function, through which TensorFlow cannot differentiate, as "
            "this attack must; give a `tf.function` or a Keras model. Square alone needs no "
            "gradient: --suite=autoattack/square."
        )

    def doubts(
        self,
        batch: dict[str, tf.Tensor],
        attack: Attack,
        strategy: Optional[tf.distribute.Strategy] = None,
    ) -> list[str]:
        """Why an accuracy under `attack` may be too high; see `network_checks`.

        Args:
            batch: one of those that `predict` takes; one replica's part of it is looked
                at.

        Raises:
            AttackError: see there.
            ClassifierError: the attack needs a gradient, but the function is not
                traceable.
        """
        self._require_attackable(attack)
        strategy = strategy or tf.distribute.get_strategy()
        images, labels, mask = (
            strategy.experimental_local_results(batch[name])[0]
            for name in ("images", "labels", "mask")
        )
        is_image = mask > 0

        def on_one_replica(function):
            run = tf.function(
                lambda *arguments: strategy.run(function, args=arguments), autograph=False
            )
            return lambda *arguments: tuple(
                strategy.experimental_local_results(value)[0] for value in run(*arguments)
            )

        return check_network(
            self._traceable_function(),
            images[is_image],
            labels[is_image],
            epsilon=attack.epsilon,
            norm=attack.norm,
            needs_gradient=attack.needs_gradient,
            may_be_random=attack.num_gradients > 1,
            compile_function=on_one_replica,
        )

    def _traceable_function(self):
        """`function` for float32 tensors; one that is not traceable is called from the
        graph, which has no gradient.
        """
        if self.is_traceable:
            return self.function

        def call(images):
            pixels = np.clip(np.rint(images), 0, 255).astype(np.uint8)
            return np.asarray(self.function(pixels), np.float32)

        def answer(images):
            shape = [images.shape[0], self.num_classes]
            (logits,) = call_python(call, [images], logits=tf.TensorSpec(shape, tf.float32))
            return logits

        return answer

    def _predict_on_host(self, batches, kept_classes, categories):
        for batch in batches:
            batch = {name: value.numpy() for name, value in batch.items()}
            is_image = batch.pop("mask") > 0.0
            batch = {name: value[is_image] for name, value in batch.items()}
            if not is_image.any():
                continue
            images = np.clip(np.rint(batch.pop("images")), 0, 255).astype(np.uint8)
            logits = np.asarray(self.function(images), np.float32)
            if logits.shape != (len(images), self.num_classes):
                raise ClassifierError(
                    f"{self.name!r} returned an array of shape {logits.shape} for {len(images)}"
                    f" images, but must return logits ({len(images)}, {self.num_classes})."
                )
            logits = tf.constant(logits)
            if categories is not None:
                logits = category_logits(logits, categories)
            answers = judge(logits, tf.constant(batch["labels"]), kept_classes)
            yield {**batch, **{name: value.numpy() for name, value in answers._asdict().items()}}


def as_classifier(
    model: Any,
    *,
    name: Optional[str] = None,
    image_size: Optional[int] = None,
    crop: Optional[str] = None,
    branch: Branch = "main",
) -> Classifier:
    """Makes a model ready for evaluation; one that is not ours is asked about a few
    images of noise.

    Args:
        model: a `Classifier`; a `Network` of ours, another Keras model or a
            `tf.function`, of float32 pixels; or any other function, of uint8 pixels.
            Outputs that are probabilities (none negative, each row's sum 1) are turned
            into logits by their logarithm.
        name: for its results; None: the model's own.
        image_size, crop: None: those of the `Classifier` or the `Network`; else 224 and
            "0.875".
        branch: of a `Network`; also a mixture of several, as a value or as text, such
            as "main:0.7,aux:0.3".

    Raises:
        ClassifierError: it has no name or branch of that kind, or does not return
            logits.
    """
    if isinstance(model, Classifier):
        changes = dict(name=name, image_size=image_size, crop=crop)
        return dataclasses.replace(
            model, **{field: value for field, value in changes.items() if value is not None}
        )
    own_name = name or getattr(model, "name", None) or getattr(model, "__name__", "<lambda>")
    if own_name == "<lambda>":
        raise ClassifierError(
            "`name` is missing; a model that has none needs one for the folder of its results."
        )
    is_network = isinstance(model, Network)
    if branch != "main" and not is_network:
        raise ClassifierError(
            f"`branch` is '{branch}', but only networks of `models` have auxiliary branches."
        )
    is_traceable = isinstance(model, tf.Module) or hasattr(model, "get_concrete_function")
    if is_network:
        try:
            branch = parse_branch(branch)
            check_branch(branch, model.aux_branches)
            if isinstance(model, KerasNetwork):
                check_no_mixture(branch)
        except ValueError as error:
            raise ClassifierError(str(error)) from error

        def function(images):
            return model(images, training=False, branch=branch)

    elif isinstance(model, keras.Model):

        def function(images):
            return model(images, training=False)

    else:
        function = model
    size = image_size or (model.image_size if is_network else DEFAULT_IMAGE_SIZE)
    if is_network:  # which is known, and too large to be asked without need
        num_classes, output = model.num_classes, "logits"
    else:
        num_classes, function, output = probe(
            function, own_name, size, tf.float32 if is_traceable else tf.uint8
        )
    has_background = is_network and background_offset(num_classes) == 1
    config = {"model": type(model).__name__, "output": output}
    if is_network:
        config["normalization"] = model.normalization
    return Classifier(
        name=own_name,
        function=background_last(function) if has_background else function,
        has_background=has_background,
        num_classes=num_classes,
        image_size=size,
        crop=crop or ("released" if is_network else DEFAULT_CROP),
        weights_digest=weights_digest(model.variables) if isinstance(model, tf.Module) else "",
        config=config,
        branch=str(branch),
        is_traceable=is_traceable,
    )


def background_last(function: Callable) -> Callable:
    """A traceable function's logits with the first one, of the background, behind those
    of the data set's classes.

    The labels then fit; and the background still takes its place among an image's five
    best, as in the official evaluation.
    """
    return lambda images: tf.roll(function(images), -1, axis=-1)


def probe(
    function: Callable, name: str, image_size: int, dtype: tf.DType, batch_size: int = _NUM_PROBES
) -> tuple[int, Callable, str]:
    """Asks about images of noise.

    Returns:
        The number of classes; the function, or what turns its probabilities into
        logits; and "logits" or "probabilities".

    Raises:
        ClassifierError: the answer is no matrix with a row per image.
    """
    noise = np.random.default_rng(0).integers(
        0, 256, [batch_size, image_size, image_size, 3], np.uint8
    )
    try:
        outputs = np.asarray(function(noise if dtype == tf.uint8 else tf.cast(noise, dtype)))
    except (tf.errors.OpError, ValueError, TypeError) as error:
        reason = brief_message(error)
        raise ClassifierError(
            f"{name!r} does not take images [{batch_size}, {image_size}, {image_size}, 3]: {reason}"
        ) from error
    if outputs.ndim != 2 or len(outputs) != batch_size:
        raise ClassifierError(
            f"{name!r} answers {batch_size} images by an array of shape {outputs.shape}, but must"
            " by logits [images, classes]."
        )
    num_classes = outputs.shape[1]
    if (outputs >= 0).all() and np.allclose(outputs.sum(1), 1.0, atol=1e-3):
        tiny = np.finfo(np.float32).tiny
        if dtype == tf.uint8:
            return (
                num_classes,
                lambda images: np.log(np.maximum(function(images), tiny)),
                "probabilities",
            )
        return (
            num_classes,
            lambda images: tf.math.log(tf.maximum(function(images), tiny)),
            "probabilities",
        )
    return num_classes, function, "logits"
