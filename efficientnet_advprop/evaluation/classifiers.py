"""Models under test: whatever turns pixels into logits, with a name and what its
results depend on.

    as_classifier(model)    # a network of ours or another Keras model, a `tf.function`
    as_classifier(lambda images: torch_model(images), name="…")    # of uint8 images, eagerly
    saved_models.load("served/efficientnet/1")
"""

import dataclasses
import functools
import hashlib
import json
from typing import Any, Callable, Iterable, Iterator, Mapping, Optional, Sequence

import numpy as np
import tensorflow as tf

from efficientnet_advprop.attacks import Attack
from efficientnet_advprop.attacks.autoattack import check_network
from efficientnet_advprop.config.tables import background_offset
from efficientnet_advprop.data.python_calls import call_python
from efficientnet_advprop.evaluation.evaluator import Evaluator, category_logits, score
from efficientnet_advprop.keras2 import keras
from efficientnet_advprop.models import KerasNetwork, Network
from efficientnet_advprop.models.converted.keras_network import check_no_mixture
from efficientnet_advprop.models.network import weights_digest
from efficientnet_advprop.runtime.branches import Branch, check_branch, parse_branch
from efficientnet_advprop.runtime.errors import ModelError, UsageError, brief_message

DEFAULT_IMAGE_SIZE, DEFAULT_CROP = 224, "0.875"
_NUM_PROBES = 4  # images of noise on which a model is tried first
# Constructor arguments that act in training only, or that the weights' names and shapes
# tell; the activation is told as resolved.
_WITHOUT_EFFECT = {
    *("name", "num_classes", "width_coefficient", "depth_coefficient", "aux_branches"),
    *("dropout_rate", "survival_prob", "recomputed_blocks"),
    *("batch_norm_momentum", "batch_norm_group_size"),
    *("activation", "activation_alpha", "smooth_relu_gradient"),
}
# Likewise of the layers of Keras models, by the ends of their names.
_WITHOUT_EFFECT_IN_LAYERS = ("_initializer", "_regularizer", "_constraint", "momentum", "trainable")


@dataclasses.dataclass(frozen=True)
class Classifier:
    """A model under test.

    `function` turns pixels [n, size, size, 3] in [0, 255] into logits [n, num_classes]:
    float32 pixels, traced by TensorFlow, if it `is_traceable`; else uint8 NumPy arrays,
    and any array back.
    """

    name: str  # for people, and for the folder of its results
    function: Callable[[Any], Any]
    num_classes: int  # of the logits
    image_size: int  # of its own pre-processing, as is `crop`
    crop: str
    weights_digest: str = ""  # see `Results`
    config: dict[str, Any] = dataclasses.field(default_factory=dict)  # see `Results`
    branch: str = "main"  # whose batch norms classify
    is_traceable: bool = True
    fixed_image_size: Optional[int] = None  # the only size that it takes; None: any
    fixed_batch_size: Optional[int] = None  # images of a replica's batch; None: any number
    class_names: Optional[Sequence[str]] = None  # by label; None: unknown
    has_background: bool = False  # the last logit is of no class; see `background_last`
    _evaluators: dict = dataclasses.field(default_factory=dict, repr=False, compare=False)

    def predict(
        self,
        batches: Iterable,
        *,
        class_subset: Optional[Sequence[int]] = None,
        categories: Optional[Sequence[Sequence[int]]] = None,
        attack: Optional[Attack] = None,
        num_restarts: int = 1,
        seed: int = 0,
        strategy: Optional[tf.distribute.Strategy] = None,
    ) -> Iterator[dict[str, np.ndarray]]:
        """Predicts as `Evaluator.predict`, traced once for all test sets of one kind."""
        self._require_attackable(attack)
        if self.is_traceable or attack is not None:
            key = (class_subset, categories, attack, num_restarts, seed, strategy)
            if key not in self._evaluators:
                self._evaluators[key] = Evaluator(
                    self._traceable_function(),
                    attack=attack,
                    num_restarts=num_restarts,
                    class_subset=class_subset,
                    categories=categories,
                    strategy=strategy,
                    seed=seed,
                )
            return self._evaluators[key].predict(batches)
        if strategy is not None and strategy.num_replicas_in_sync > 1:
            raise UsageError(
                f"`strategy` has {strategy.num_replicas_in_sync} replicas, but {self.name!r} is a"
                " plain function, which runs on one; leave it out."
            )
        return self._predict_on_host(batches, class_subset, categories)

    def _require_attackable(self, attack: Optional[Attack]) -> None:
        if attack is None or self.is_traceable or not attack.needs_gradient:
            return
        raise UsageError(
            f"{self.name!r} is a plain function, through which TensorFlow cannot differentiate, as "
            "this attack must; give a `tf.function` or a Keras model. Square alone needs no "
            "gradient: --suite=autoattack/square."
        )

    def warnings(
        self,
        batch: dict[str, tf.Tensor],
        attack: Attack,
        strategy: Optional[tf.distribute.Strategy] = None,
    ) -> list[str]:
        """Returns why an accuracy under `attack` may be too high; see `check_network`.

        Of `batch`, one of those that `predict` takes, one replica's part is used.
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
        if self.is_traceable:
            return self.function

        # Called from the graph, which then has no gradient.
        def call(images):
            pixels = np.clip(np.rint(images), 0, 255).astype(np.uint8)
            return np.asarray(self.function(pixels), np.float32)

        def in_graph(images):
            shape = [images.shape[0], self.num_classes]
            (logits,) = call_python(call, [images], logits=tf.TensorSpec(shape, tf.float32))
            return logits

        return in_graph

    def _predict_on_host(self, batches, class_subset, categories):
        for batch in batches:
            batch = {name: value.numpy() for name, value in batch.items()}
            is_image = batch.pop("mask") > 0.0
            batch = {name: value[is_image] for name, value in batch.items()}
            if not is_image.any():
                continue
            images = np.clip(np.rint(batch.pop("images")), 0, 255).astype(np.uint8)
            logits = np.asarray(self.function(images), np.float32)
            if logits.shape != (len(images), self.num_classes):
                raise ModelError(
                    f"{self.name!r} returned an array of shape {logits.shape} for {len(images)}"
                    f" images, but must return logits ({len(images)}, {self.num_classes})."
                )
            logits = tf.constant(logits)
            if categories is not None:
                logits = category_logits(logits, categories)
            predictions = score(logits, tf.constant(batch["labels"]), class_subset)
            yield {**batch, **{name: part.numpy() for name, part in predictions._asdict().items()}}


def as_classifier(
    model: Any,
    *,
    name: Optional[str] = None,
    image_size: Optional[int] = None,
    crop: Optional[str] = None,
    branch: Branch = "main",
) -> Classifier:
    """Makes a model ready for evaluation; one that is not ours is tried on noise.

    Args:
        model: a `Classifier`; a `Network` of ours, another Keras model or a
            `tf.function`, of float32 pixels; or any other function, of uint8 pixels.
            Outputs that are probabilities are turned into logits by their logarithm;
            see `are_probabilities`.
        name: for its results; None: the model's own.
        image_size, crop: None: those of the `Classifier` or the `Network`; else 224 and
            "0.875".
        branch: of a `Network`; also a mixture of several, as a value or as text, such
            as "main:0.7,aux:0.3".

    Raises:
        UsageError: it has no name or no such branch.
        ModelError: it does not return logits.
    """
    if isinstance(model, Classifier):
        changes = dict(name=name, image_size=image_size, crop=crop)
        return dataclasses.replace(
            model, **{field: value for field, value in changes.items() if value is not None}
        )
    own_name = name or getattr(model, "name", None) or getattr(model, "__name__", "<lambda>")
    if own_name == "<lambda>":
        raise UsageError(
            "`name` is missing; a model that has none needs one for the folder of its results."
        )
    if isinstance(model, Network):
        return _network_classifier(model, own_name, image_size, crop, branch)
    if branch != "main":
        raise UsageError(
            f"`branch` is '{branch}', but only networks of `models` have auxiliary branches."
        )
    is_traceable = isinstance(model, tf.Module) or hasattr(model, "get_concrete_function")
    size = image_size or DEFAULT_IMAGE_SIZE
    num_classes, function, output = probe(
        functools.partial(model, training=False) if isinstance(model, keras.Model) else model,
        own_name,
        size,
        tf.float32 if is_traceable else tf.uint8,
    )
    return Classifier(
        name=own_name,
        function=function,
        num_classes=num_classes,
        image_size=size,
        crop=crop or DEFAULT_CROP,
        weights_digest=weights_digest(model.variables) if isinstance(model, tf.Module) else "",
        config={
            "model": type(model).__name__,
            "output": output,
            "settings": {**settings_of(model), "output": output},
        },
        is_traceable=is_traceable,
    )


def _network_classifier(
    model: Network, name: str, image_size: Optional[int], crop: Optional[str], branch: Branch
) -> Classifier:
    try:
        branch = parse_branch(branch)
        check_branch(branch, model.aux_branches)
        if isinstance(model, KerasNetwork):
            check_no_mixture(branch)
    except ValueError as error:
        raise UsageError(str(error)) from error

    def function(images):
        return model(images, training=False, branch=branch)

    has_background = background_offset(model.num_classes) == 1
    return Classifier(
        name=name,
        function=background_last(function) if has_background else function,
        has_background=has_background,
        num_classes=model.num_classes,
        image_size=image_size or model.image_size,
        crop=crop or "released",
        weights_digest=weights_digest(model.variables),
        config={
            "model": type(model).__name__,
            "output": "logits",
            "normalization": model.normalization,
            "settings": settings_of(model),
        },
        branch=str(branch),
    )


def background_last(function: Callable) -> Callable:
    """Moves a traceable function's first logit, of the background, behind the others.

    The labels then fit, and the background still takes its place among an image's five
    best, as in the official evaluation.
    """
    return lambda images: tf.roll(function(images), -1, axis=-1)


def probe(
    function: Callable, name: str, image_size: int, dtype: tf.DType, batch_size: int = _NUM_PROBES
) -> tuple[int, Callable, str]:
    """Tries a model on noise; returns the number of classes, the function or what turns its
    probabilities into logits, and "logits" or "probabilities".
    """
    noise = np.random.default_rng(0).integers(
        0, 256, [batch_size, image_size, image_size, 3], np.uint8
    )
    try:
        outputs = function(noise if dtype == tf.uint8 else tf.cast(noise, dtype))
        outputs = tf.cast(outputs, tf.float32).numpy() if tf.is_tensor(outputs) else outputs
        outputs = np.asarray(outputs, np.float32)
    except (tf.errors.OpError, ValueError, TypeError) as error:
        reason = brief_message(error)
        raise ModelError(
            f"{name!r} does not take images [{batch_size}, {image_size}, {image_size}, 3]: {reason}"
        ) from error
    if outputs.ndim != 2 or len(outputs) != batch_size:
        raise ModelError(
            f"{name!r} answers {batch_size} images by an array of shape {outputs.shape}, but must"
            " by logits [images, classes]."
        )
    num_classes = outputs.shape[1]
    if not are_probabilities(outputs):
        return num_classes, function, "logits"
    tiny = np.finfo(np.float32).tiny

    def logarithm(images):
        if dtype == tf.uint8:
            return np.log(np.maximum(np.asarray(function(images), np.float32), tiny))
        return tf.math.log(tf.maximum(tf.cast(function(images), tf.float32), tiny))

    return num_classes, logarithm, "probabilities"


def are_probabilities(outputs: np.ndarray) -> bool:
    """Whether each row, float32 [n, classes], is a distribution: none negative, sum 1.

    The sum may be off by as much as rounding makes of it: values that bfloat16, float16
    or 8 bits of [0, 1] hold exactly have been rounded to it, whatever their type is now.
    """
    num_classes, sums = outputs.shape[1], outputs.sum(1, dtype=np.float64)
    tolerance = 1e-3
    # Each value is off by up to half a last digit, relative to it; the divisor, a sum
    # of rounded terms, by several.
    for dtype, digits in ((tf.bfloat16, 2.0**-8), (tf.float16, 2.0**-11)):
        if (tf.cast(tf.cast(outputs, dtype), tf.float32).numpy() == outputs).all():
            tolerance = max(tolerance, 16 * digits)
            break
    for levels in (255, 256):
        if np.allclose(outputs * levels, np.rint(outputs * levels), rtol=0.0, atol=1e-3):
            # All small values may have been rounded in one direction.
            tolerance = max(tolerance, min(0.5, 1e-3 + num_classes / 2 / levels))
    return bool((outputs >= 0).all() and (outputs <= 1.0 + tolerance).all()) and bool(
        (abs(sums - 1.0) <= tolerance).all()
    )


def settings_of(model: Any) -> dict[str, Any]:
    """Returns what changes a network's logits beside its weights, as JSON values; of a function,
    about which nothing is known, {}.
    """
    if isinstance(model, Network) and not isinstance(model, KerasNetwork):
        settings = {
            name: value for name, value in model.get_config().items() if name not in _WITHOUT_EFFECT
        }
        return _as_json({**settings, "activation": dataclasses.asdict(model.activation)})
    if not isinstance(model, tf.Module):
        return {}
    # `submodules` comes in an order of its own making, the same for the same model.
    layers = [part for part in (model, *model.submodules) if isinstance(part, keras.layers.Layer)]
    digest = hashlib.sha256()
    for layer in layers:
        text = json.dumps(_as_json(_config_of(layer)), sort_keys=True)
        digest.update(f"{type(layer).__name__} {layer.dtype_policy.name} {text};".encode())
    settings: dict[str, Any] = {"layers": digest.hexdigest()}
    if isinstance(model, KerasNetwork):
        settings |= {"normalization": model.normalization, "output": model.output_kind}
    return settings


def _config_of(layer: keras.layers.Layer) -> Any:
    try:
        return layer.get_config()
    except Exception:  # a class of the model's author, without one
        return {}


def _as_json(value: Any) -> Any:
    """Returns `value` as JSON reads it back, without what has no effect on logits."""
    if isinstance(value, Mapping):
        return {
            str(name): _as_json(item)
            for name, item in value.items()
            if not str(name).endswith(_WITHOUT_EFFECT_IN_LAYERS)
        }
    if isinstance(value, (list, tuple)):
        return [_as_json(item) for item in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return type(value).__name__  # such as a function, whose text would hold its address
