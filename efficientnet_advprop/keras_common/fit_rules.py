"""The rules of training by `fit` that both Keras doors share, without either Keras."""

import inspect
import re
from typing import Any, Iterable, Optional, Union

from efficientnet_advprop.config.methods import AUGMENTED, METHODS, Method, Pass
from efficientnet_advprop.config.pgd_settings import PGDSettings
from efficientnet_advprop.config.tables import STATISTICS
from efficientnet_advprop.runtime.branches import branch_names
from efficientnet_advprop.runtime.errors import ModelError

# Losses over classes, by the names of their functions; "sparse_…" takes class numbers.
_CLASS_LOSSES = ("categorical_crossentropy", "categorical_focal_crossentropy", "categorical_hinge")
OWN_LOSS = "of your own"


def checked_method(method: Union[str, Method]) -> tuple[str, Method]:
    """Returns the name and the row of a method; a `ModelError` where there is none."""
    if isinstance(method, Method):
        return OWN_LOSS, method
    if method not in METHODS:
        raise ModelError(f"`method` is {method!r}, but must be one of {', '.join(METHODS)}.")
    return method, METHODS[method]


def method_from_dict(values: dict) -> Method:
    """Returns a method of one's own from `dataclasses.asdict` of it."""
    passes = tuple(Pass(**{**row, "views": tuple(row["views"])}) for row in values["passes"])
    return Method(passes, values["adversarial_share"])


def check_arguments(
    name: str,
    row: Method,
    *,
    aux_branches: int,
    attack: Any,
    augmentation: Any,
    clean_epochs: int,
    pixel_range: tuple[float, float],
    attack_statistics: str,
) -> None:
    """Raises a `ModelError` unless the arguments of an `AdvPropModel` fit each other."""
    if attack_statistics not in STATISTICS:
        raise ModelError(
            f"`attack_statistics` is {attack_statistics!r}, but must be one of {STATISTICS}."
        )
    if (attack is not None) != row.has_attack:
        needs = "one" if row.has_attack else "none"
        raise ModelError(f"`attack` is {attack!r}, but method {name!r} needs {needs}.")
    if row.branches != set(branch_names(aux_branches)):
        steps = ["remove_auxiliary_batch_norms(network)"] if aux_branches else []
        if row.aux_branches:
            steps += [f"add_auxiliary_batch_norms(network, aux_branches={row.aux_branches})"]
        raise ModelError(
            f"`network` has {aux_branches} auxiliary branches, but method {name!r} trains exactly "
            f"{row.aux_branches}: the others would never learn. Call {', then '.join(steps)}."
        )
    if (augmentation is not None) != (AUGMENTED in row.views):
        needs = "needs one" if AUGMENTED in row.views else "sees no augmented images"
        raise ModelError(f"`augmentation` is {augmentation!r}, but method {name!r} {needs}.")
    if not isinstance(clean_epochs, int) or clean_epochs < 0:
        raise ModelError(f"`clean_epochs` is {clean_epochs!r}, but must be a whole number ≥ 0.")
    if len(pixel_range) != 2 or not pixel_range[0] < pixel_range[1]:
        raise ModelError(
            f"`pixel_range` is {pixel_range!r}, but must be the values of black and white, such as "
            "(0.0, 255.0), (0.0, 1.0) or (-1.0, 1.0)."
        )


def left_out(network: Any, package: str) -> list[str]:
    """Returns warnings about steps of a network's own, which `AdvPropModel` does not call;
    Keras's own classes are in `package`.
    """
    found = [
        (kind.__name__, name)
        for kind in type(network).__mro__
        if kind.__module__.split(".")[0] not in (package, "efficientnet_advprop", "builtins")
        for name in ("train_step", "compute_loss")
        if name in vars(kind)
    ]
    return [
        f"`network` has a {name} of its own ({kind}), which AdvPropModel does not call: the step is"
        " AdvProp's, and the loss is the compiled one."
        for kind, name in found
    ]


def check_key(inputs: Any, key: Union[str, int, None]) -> None:
    """Raises a `ModelError` unless `attacked_input` names one of the inputs."""
    places: Optional[list] = None
    if isinstance(inputs, dict):
        places = list(inputs)
    elif isinstance(inputs, (list, tuple)):
        places = list(range(len(inputs)))
    if places is None and key is not None:
        raise ModelError(f"`attacked_input` is {key!r}, but the model has one input; leave it out.")
    if places is not None and key not in places:
        raise ModelError(
            f"`attacked_input` is {key!r}, but must say which of the inputs are the images: one of "
            f"{', '.join(map(repr, places))}."
        )


def images_name(key: Union[str, int, None]) -> str:
    """Returns what messages call the images."""
    return "the images" if key is None else f"the input {key!r}"


def check_images(shape: Iterable, dtype: str, key: Union[str, int, None]) -> None:
    """Raises a `ModelError` unless these can be images."""
    if len(tuple(shape)) != 4 or not dtype.startswith(("float", "bfloat", "int", "uint")):
        raise ModelError(
            f"{images_name(key)} have shape {tuple(shape)} and dtype {dtype}, but must be numbers "
            "of shape [batch, height, width, channels]."
        )


def out_of_range(key: Union[str, int, None], pixel_range: tuple[float, float], found: str) -> str:
    """Returns the message about pixels outside of black and white."""
    return (
        f"`pixel_range` does not fit: {images_name(key)} hold {found}, but black is "
        f"{pixel_range[0]:g} and white {pixel_range[1]:g}. Give the range of the images."
    )


def loss_name(loss: Any, package: str) -> str:
    """Returns the name of a loss's function ("categorical_crossentropy"), whether it is
    given by a string, a function, a class or an object; "of your own" for others, and for
    several in a list or dictionary.
    """
    if isinstance(loss, (list, tuple)) and len(loss) == 1:
        loss = loss[0]
    if isinstance(loss, dict) and len(loss) == 1:
        loss = next(iter(loss.values()))
    if isinstance(loss, str):
        return _snake(loss)
    kinds = [loss] if inspect.isfunction(loss) else type(loss).__mro__
    for kind in kinds:
        if getattr(kind, "__module__", "").split(".")[0] == package and kind.__name__ != "Loss":
            name = _snake(kind.__name__)
            return OWN_LOSS if name.endswith("wrapper") else name
    return OWN_LOSS


def _snake(name: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()  # "MeanError" → "mean_error"


def check_loss(
    model: Any, loss: Any, package: str, labels: list[tuple], outputs: list[tuple]
) -> Optional[bool]:
    """Checks the loss that `compile` got, and the attack, against shapes of labels and outputs.

    Returns whether labels are weights of the classes; None where that is not known.
    """
    attack = model.attack if isinstance(model.attack, PGDSettings) else None
    if len(outputs) == 1 and len(labels) == 1:
        told = told_shapes(labels, outputs)
        return check_classes(loss_name(loss, package), attack, labels[0], outputs[0], told)
    if attack is not None and attack.targeted:
        raise ModelError(
            f"`attack` is targeted, but the model has {len(outputs)} outputs, of which none alone"
            " says what a wrong class is; take PGD(targeted=False)."
        )
    return None


def require_loss(loss: Any) -> None:
    """Raises a `ModelError` unless a loss was compiled."""
    if not loss:
        raise ModelError(
            "No loss was compiled. An attack climbs the compiled loss, and losses that layers add "
            "cannot take its place; give one to `compile`."
        )


def told_shapes(labels: list[tuple], outputs: list[tuple]) -> str:
    """Returns what messages say of shapes."""
    told = (", ".join(map(str, shapes)) for shapes in (labels, outputs))
    return "labels of shape {}, outputs of shape {}".format(*told)


def check_classes(
    name: str, attack: Any, labels: tuple, outputs: tuple, told: str
) -> Optional[bool]:
    """Checks the shapes of labels and outputs, of a model that has one, against loss and attack.

    Sizes that are not known are None. Returns whether labels are weights of the classes, not
    class numbers.
    """
    alike = len(labels) == len(outputs) and all(
        None in pair or pair[0] == pair[1] for pair in zip(labels[1:], outputs[1:])
    )
    are_numbers = len(labels) == len(outputs) - 1 or (
        len(labels) == len(outputs) and labels[-1] == 1
    )
    is_sparse = name.startswith("sparse_")
    if is_sparse and not are_numbers:
        raise ModelError(f"The loss wants class numbers, but there are {told}.")
    are_weights = alike and not is_sparse
    if attack is None or not attack.targeted:
        return are_weights
    if name != OWN_LOSS and name.removeprefix("sparse_") not in _CLASS_LOSSES:
        raise ModelError(
            f"`attack` is targeted: it draws a wrong class, but the loss {name!r} knows no classes;"
            " take PGD(targeted=False)."
        )
    if outputs[-1] != attack.num_classes:
        raise ModelError(
            f"`attack.num_classes` is {attack.num_classes}, but the outputs have {outputs[-1]} "
            f"classes ({told}); make it {outputs[-1]}."
        )
    if not are_numbers and not are_weights:
        raise ModelError(f"`attack` is targeted, but does not understand the labels: {told}.")
    return are_weights
