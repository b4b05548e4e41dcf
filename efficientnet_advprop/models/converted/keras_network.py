"""A Keras model as a network: pixels in, logits out, through one of its branches.

    network = make_keras_network(
        "keras:my_models:small", num_classes=10, image_size=32, aux_branches=1
    )
    network = KerasNetwork(model, image_size=32)       # a finished one, converted or plain
    logits = network(images, training=True, branch="aux")

Such a network is trained, evaluated and exported like this project's own ones. Its
branch is an argument here and becomes the context that converted batch norms read.
"""

import collections
import importlib
import inspect
import traceback
import types
import weakref
from typing import Any, Callable, Optional

import numpy as np
import tensorflow as tf

from efficientnet_advprop.config.tables import split_keras_variant
from efficientnet_advprop.keras2 import keras
from efficientnet_advprop.keras_common.converted_models import DualModel
from efficientnet_advprop.models.converted.conversion import (
    add_auxiliary_batch_norms,
    aux_branches_of,
    convert_batch_norms,
    is_converted,
    remove_auxiliary_batch_norms,
    restore_batch_norms,
)
from efficientnet_advprop.models.network import (
    COMPUTE_DTYPES,
    NORMALIZATIONS,
    Network,
    check_images,
    normalize_pixels,
)
from efficientnet_advprop.runtime.autograph import call_rewritten
from efficientnet_advprop.runtime.branches import MAIN, BranchMixture, branch_index
from efficientnet_advprop.runtime.errors import (
    ModelError,
    UserError,
    brief_message,
    list_names,
    require_choice,
)
from efficientnet_advprop.runtime.pass_mode import use_branch

OUTPUTS = ("logits", "probabilities")
_GIVEN = ("num_classes", "image_size")  # what a function may ask for
_PROBABILITIES = ("softmax", "sigmoid")


# The models that are networks already: the trainer needs a new one for each network.
_in_use: "weakref.WeakSet[keras.Model]" = weakref.WeakSet()


class KerasNetwork(Network):
    """A Keras classifier, with the calls of this project's networks.

    Dropout and other random layers draw from Keras's own generator: `seed` does not
    reach them, and a restarted run draws other numbers. Gradients of a model that
    recomputes activations have to be taken inside `use_branch`, too.

    Args:
        model: of images [batch, height, width, 3] and outputs [batch, classes].
        image_size: pixels of the images' sides.
        num_classes: None: what the model says, which must then be built.
        normalization: what pixels in [0, 255] become before the model gets them, a key
            of `NORMALIZATIONS`; "none" for a model that does it inside.
        output: "logits", or "probabilities", whose logarithm is then the logits.
        arguments: of `make_keras_network`, if the model can be made anew from them.

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(
        self,
        model: keras.Model,
        *,
        image_size: int,
        num_classes: Optional[int] = None,
        normalization: str = "none",
        output: str = "logits",
        arguments: Optional[dict[str, Any]] = None,
    ):
        require_choice("normalization", normalization, NORMALIZATIONS)
        require_choice("output", output, OUTPUTS)
        super().__init__(name=model.name, dtype=tf.float32)
        self.keras_model = model
        self.image_size, self.fixed_image_size = image_size, _fixed_image_size(model)
        self.num_classes = int(model.output_shape[-1]) if num_classes is None else num_classes
        self.normalization, self.output_kind = normalization, output
        self._arguments = arguments
        self.variant = "keras" if arguments is None else arguments["variant"]
        self.activation_dtype = "float32" if arguments is None else arguments["compute_dtype"]
        self.aux_branches = aux_branches_of(model)
        self.built = True

    def call(
        self, images, training=False, branch: str = MAIN, update_statistics: bool = True, seed=None
    ):
        """Logits; arguments, errors and result as `BlockNetwork.call`."""
        check_no_mixture(branch)
        branch_index(branch, self.aux_branches)
        pixels = normalize_pixels(check_images(images), self.normalization)
        with use_branch(branch, update_statistics=update_statistics):
            outputs = call_rewritten(self.keras_model, pixels, training=training)
        outputs = tf.cast(outputs, tf.float32)
        if self.output_kind == "logits":
            return outputs
        return tf.math.log(tf.maximum(outputs, np.finfo(np.float32).tiny))

    def for_inference(self) -> "KerasNetwork":
        """The same main branch in float32, without auxiliary branches.

        A network that was made by a function is made once more. Another one cannot be:
        it is itself, with the branches that it has.
        """
        if self._arguments is None:
            return self
        arguments = {**self._arguments, "compute_dtype": "float32", "aux_branches": 0}
        plain = make_keras_network(**arguments)
        values = {variable.name: variable for variable in self.variables}
        for variable in plain.variables:
            # What a layer keeps in the compute dtype (`Normalization` its constants)
            # the function has made anew, unrounded.
            if variable.dtype == values[variable.name].dtype:
                variable.assign(values[variable.name])
        return plain

    def plain_model(self) -> keras.Model:
        """The Keras model of pixels in [0, 255], without branches and without this
        package; this network cannot be used any more.
        """
        model = self.keras_model
        if isinstance(model, DualModel):
            model = remove_auxiliary_batch_norms(model)
        else:
            restore_batch_norms(model)
        if self.normalization == "none":
            return model
        mean, deviation = NORMALIZATIONS[self.normalization]
        rescaling = keras.layers.Rescaling(
            [1.0 / value for value in deviation],
            [-center / value for center, value in zip(mean, deviation)],
            name="normalization_of_pixels",
        )
        size = self.image_size
        return keras.Sequential([keras.Input([size, size, 3]), rescaling, model], name=self.name)

    def get_config(self):
        kept = dict(normalization=self.normalization, num_classes=self.num_classes)
        return {"variant": self.variant, **kept, **(self._arguments or {})}


def check_no_mixture(branch: Any) -> None:
    """Raises a `ValueError` for a `BranchMixture`, which only our networks have."""
    if isinstance(branch, BranchMixture):
        raise ValueError(
            f"`branch` is the mixture '{branch}', but a Keras model has branches one at a time;"
            " name one of them."
        )


def make_keras_network(
    variant: str,
    *,
    num_classes: int,
    image_size: int,
    aux_branches: int = 0,
    normalization: str = "none",
    compute_dtype: str = "float32",
) -> KerasNetwork:
    """The network of a function that returns a Keras model.

    The function is called with those of `num_classes` and `image_size` that are among
    its arguments. It has to make a new model at each call. Keras numbers layers without
    a name through the whole process; the count starts anew before the call, so that the
    variables of all models of the function have the same names.

    Args:
        variant: see `tables.KERAS_VARIANT`; Python must be able to import the module.
        num_classes: size of the logits.
        image_size: pixels of the images' sides.
        aux_branches: auxiliary branches that are added to every batch norm.
        normalization: see `KerasNetwork`.
        compute_dtype: Keras's policy while the function runs: "float32", "bfloat16" or
            "float16", with variables in float32. Layers with a policy of their own keep
            it.

    Raises:
        ModelError: there is no such module or function, or what it returns is no
            classifier of such images, or its batch norms cannot have branches.
        ValueError: an argument is out of its range.
    """
    arguments = dict(
        variant=variant,
        num_classes=num_classes,
        image_size=image_size,
        aux_branches=aux_branches,
        normalization=normalization,
        compute_dtype=compute_dtype,
    )
    require_choice("compute_dtype", compute_dtype, COMPUTE_DTYPES)
    function, module = _find_function(variant)
    policy = keras.mixed_precision.global_policy()
    keras.backend.reset_uids()
    try:
        keras.mixed_precision.set_global_policy(COMPUTE_DTYPES[compute_dtype])
        model = _call(variant, function, module, arguments)
    finally:
        keras.mixed_precision.set_global_policy(policy)
    _check_model(variant, model)
    _check_shapes(variant, model, num_classes, image_size)
    _check_output(variant, model)
    _check_names(variant, model)
    if aux_branches:
        model = add_auxiliary_batch_norms(model, aux_branches)
    else:  # without branches, but so that passes may leave the statistics alone
        convert_batch_norms(model, 0)
    _in_use.add(model)
    return KerasNetwork(
        model,
        image_size=image_size,
        num_classes=num_classes,
        normalization=normalization,
        arguments=arguments,
    )


def _find_function(variant: str) -> tuple[Callable, types.ModuleType]:
    module_name, name = split_keras_variant(variant)
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        missing = getattr(error, "name", None) if isinstance(error, ModuleNotFoundError) else None
        if missing and f"{module_name}.".startswith(f"{missing}."):
            raise ModelError(
                f"`variant` is {variant!r}, but Python finds no module {missing!r}; start the "
                "program in the folder that holds it, or name that folder in PYTHONPATH."
            ) from error
        raise ModelError(
            f"`variant` is {variant!r}, but its module cannot be imported: {_told(error)}."
        ) from error
    function = getattr(module, name, None)
    if not callable(function):
        here = [
            other
            for other, value in vars(module).items()
            if inspect.isfunction(value)
            and value.__module__ == module_name
            and not other.startswith("_")
        ]
        hint = f"its functions are {list_names(here)}" if here else "it has no functions of its own"
        raise ModelError(
            f"`variant` is {variant!r}, but {module_name!r} has no function {name!r}; {hint}."
        )
    return function, module


def _call(variant: str, function: Callable, module, arguments: dict[str, Any]) -> Any:
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:  # a function without a signature, written in C
        parameters = ()
    taken = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    names = [parameter.name for parameter in parameters if parameter.kind in taken]
    needed = [
        parameter.name
        for parameter in parameters
        if parameter.default is inspect.Parameter.empty
        and parameter.kind not in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    ]
    unknown = [name for name in needed if name not in _GIVEN]
    if unknown:
        raise ModelError(
            f"`variant` is {variant!r}, whose function needs {list_names(unknown)}, but it can be "
            f"given only {' and '.join(_GIVEN)}; give its other arguments defaults."
        )
    try:
        return function(**{name: arguments[name] for name in _GIVEN if name in names})
    except UserError:
        raise
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        own = [frame for frame in frames if frame.filename == getattr(module, "__file__", None)]
        where = f" (line {own[-1].lineno} of {own[-1].filename})" if own else ""
        raise ModelError(
            f"`variant` is {variant!r}, but its function failed: {_told(error)}{where}."
        ) from error


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {brief_message(error)}".rstrip(".")


def _check_model(variant: str, model: Any) -> None:
    if not isinstance(model, keras.Model):
        raise ModelError(
            f"`variant` is {variant!r}, whose function returned a {type(model).__module__}."
            f"{type(model).__name__}, but must return a Model of Keras 2, from"
            " efficientnet_advprop.keras2. One of Keras 3 is trained by `fit`:"
            " efficientnet_advprop.keras3 (docs/keras.md)."
        )
    if model in _in_use:
        raise ModelError(
            f"`variant` is {variant!r}, whose function returned the same model again, but must make"
            " a new one at each call: training and its averages are networks of their own."
        )
    if isinstance(model, Network) or is_converted(model):
        raise ModelError(
            f"`variant` is {variant!r}, whose function returned a model with branches, or a network"
            " of this project, but must return a plain Keras model; the branches are added here."
        )


def _check_shapes(variant: str, model: keras.Model, num_classes: int, image_size: int) -> None:
    """Builds a model that is not built yet, and looks at what goes in and comes out."""
    wanted = [None, image_size, image_size, 3]
    if model.outputs is None:
        try:
            outputs = model(tf.zeros([1, *wanted[1:]]), training=False)
        except (ValueError, TypeError, tf.errors.OpError) as error:
            raise ModelError(
                f"`variant` is {variant!r}, whose model does not take images of `image_size` = "
                f"{image_size}, [batch, {image_size}, {image_size}, 3]: {_told(error)}."
            ) from error
        shapes = [tensor.shape for tensor in tf.nest.flatten(outputs)]
    else:
        inputs = [tensor.shape for tensor in model.inputs]
        if len(inputs) != 1 or not inputs[0].is_compatible_with(wanted):
            raise ModelError(
                f"`variant` is {variant!r}, whose model takes {', '.join(map(str, inputs))}, but "
                f"must take images of `image_size` = {image_size}, [batch, {image_size}, "
                f"{image_size}, 3]; let the function have an argument `image_size`."
            )
        shapes = [tensor.shape for tensor in model.outputs]
    if len(shapes) != 1 or shapes[0].rank != 2 or shapes[0][-1] != num_classes:
        raise ModelError(
            f"`variant` is {variant!r}, whose model returns {', '.join(map(str, shapes))}, but must"
            f" return logits of `num_classes` = {num_classes}, [batch, {num_classes}]; let the"
            " function have an argument `num_classes`, or change the number."
        )


def _check_output(variant: str, model: keras.Model) -> None:
    last = last_layer(model)
    if gives_probabilities(model):
        raise ModelError(
            f"`variant` is {variant!r}, whose model ends in probabilities ({last.name!r}), but must"
            " return logits, which the loss turns into probabilities itself; leave the last"
            " activation out (classifier_activation=None)."
        )
    if model.losses:
        raise ModelError(
            f"`variant` is {variant!r}, whose model has {len(model.losses)} losses of its own "
            "(regularizers, add_loss), which would not be trained; leave them out: weight decay is "
            "`config.optimizer.weight_decay`. Or train it by `keras.AdvPropModel`, which adds them."
        )


def last_layer(model: keras.Model) -> keras.layers.Layer:
    """The layer whose outputs are the model's, where it is the last in its list."""
    last = model.layers[-1] if model.layers else model
    return last_layer(last) if isinstance(last, keras.Model) and last is not model else last


def gives_probabilities(model: keras.Model) -> bool:
    """Whether the last layer is a softmax or a sigmoid, as far as its layers tell."""
    last = last_layer(model)
    if isinstance(last, keras.layers.Softmax):
        return True
    return getattr(getattr(last, "activation", None), "__name__", "") in _PROBABILITIES


def _check_names(variant: str, model: keras.Model) -> None:
    counts = collections.Counter(variable.name for variable in model.variables)
    twice = [name for name, count in counts.items() if count > 1]
    if twice:
        raise ModelError(
            f"`variant` is {variant!r}, whose model has several variables called "
            f"{list_names(twice)}, which a checkpoint could not tell apart; give the layers names "
            "of their own."
        )


def _fixed_image_size(model: keras.Model) -> Optional[int]:
    if model.inputs is None:
        return None
    return model.inputs[0].shape[1]
