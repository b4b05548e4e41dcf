"""What `AdvPropModel` of either Keras is beside its training step: arguments, the images
among the inputs, the attack of a step, `fit`, and files.
"""

import contextlib
import dataclasses
import warnings
from typing import Any, Callable, Optional, Union

from efficientnet_advprop.config.methods import Method
from efficientnet_advprop.config.pgd_settings import PGDSettings
from efficientnet_advprop.keras_common import fit_rules as rules

_FLOAT16_LOSS_SCALE = 128.0  # the authors' adversarial-training code
_PARTS = ("network", "augmentation", "epsilon_schedule")  # which Keras serializes


class AdvPropModel:
    """Trains a Keras model by a method of this project; in all else it is that model.

    `fit` reports the clean images' metrics under their own names, other images' with
    the name of their view before: `adversarial_loss`, `augmented_loss`, `noisy_loss`.
    The losses are added (L_c + L_a, as in the paper). The layers' own losses, such as
    weight decay, count once per step, in `loss`. Keras 2 reports the clean images' loss
    as `loss`; Keras 3 reports it as `clean_loss`, and as `loss` the sum.

    Args:
        network: with as many auxiliary branches as the method trains
            (`add_auxiliary_batch_norms`); plain for "vanilla", "adversarial" and
            "adversarial_only".
        attack: makes the adversarial images, from the compiled loss; None for a method
            without them.
        method: a key of `METHODS`, or a `Method` of your own. Keras 3 has no
            "fast_advprop".
        pixel_range: the values of black and white in the images. The attack's ε and
            steps are counted in 255ths of the distance between them.
        attacked_input: the name (or place) of the images among several inputs; None
            where there is one input.
        attack_statistics: what attacked batch norms normalise with: "running"
            statistics (the paper) or those of the "batch"; None: what the method wants.
        augmentation: images → other views of them, for methods that see "augmented"
            images.
        clean_epochs: so many epochs the adversarial images are the clean ones.
        epsilon_schedule: step → the attack's ε, instead of the attack's own.
        seed: of the attack's random numbers.

    Raises:
        ModelError: the arguments do not fit each other.
    """

    # What the class of each Keras says.
    keras: Any  # the module
    keras_package: str  # in which Keras's own classes are
    attacks: dict[str, type]  # by their names in files
    num_aux_branches: Callable  # of a network; a `ModelError` for what is no model
    make_counter: Callable  # from a name, an integer variable that starts with 0
    # From `fit`'s x, y, sample_weight and batch_size, what Keras shall get in place of x;
    # a `ModelError` for what cannot be trained.
    look_at_first_batch: Callable
    epsilon_of_step: Callable  # what the schedule says, a float32 scalar
    computes_in_float16: Any  # whether gradients may vanish without a loss scale

    def __init__(
        self,
        network: Any,
        attack: Any = None,
        method: Union[str, Method] = "advprop",
        *,
        pixel_range: tuple[float, float] = (0.0, 255.0),
        attacked_input: Union[str, int, None] = None,
        attack_statistics: Optional[str] = None,
        augmentation: Optional[Callable] = None,
        clean_epochs: int = 0,
        epsilon_schedule: Optional[Callable] = None,
        seed: int = 0,
        name: Optional[str] = None,
        **kwargs,
    ):
        aux_branches = self.num_aux_branches(network)
        method_name, row = rules.checked_method(method)
        statistics = attack_statistics or ("running" if row.adversarial_share is None else "batch")
        rules.check_arguments(
            method_name,
            row,
            aux_branches=aux_branches,
            attack=attack,
            augmentation=augmentation,
            clean_epochs=clean_epochs,
            pixel_range=pixel_range,
            attack_statistics=statistics,
        )
        self.check_method(method_name, row, attack, statistics)
        for text in rules.left_out(network, self.keras_package):
            warnings.warn(text, stacklevel=2)
        super().__init__(  # type: ignore[call-arg]
            name=name or f"advprop_{network.name}", **self.layer_arguments(network), **kwargs
        )
        self.network, self.method, self.row = network, method, row
        self.attack, self.attack_statistics = attack, statistics
        self.aux_branches, self.attacked_input = aux_branches, attacked_input
        self.pixel_range = tuple(map(float, pixel_range))
        self.augmentation, self.clean_epochs = augmentation, clean_epochs
        self.epsilon_schedule, self.seed = epsilon_schedule, seed
        self.output_names = getattr(network, "output_names", None)
        self.step_counter, self.epoch_counter = map(
            self.make_counter, ("advprop_step", "advprop_epoch")
        )
        # Whether labels are class weights, not class numbers; known from the first batch.
        self.labels_are_weights: Optional[bool] = None

    def check_method(self, name: str, row: Method, attack: Any, statistics: str) -> None:
        """Raises a `ModelError` for what this Keras cannot train."""

    def layer_arguments(self, network: Any) -> dict[str, Any]:
        """Returns what Keras's own constructor gets besides the name."""
        return {}

    def fit(self, x=None, y=None, batch_size=None, epochs=1, verbose="auto", callbacks=None,
            **kwargs):  # fmt: skip
        """As `keras.Model.fit`, after a look at the first batch.

        Raises:
            ModelError: the batch, the loss and the attack do not fit each other.
        """
        x = self.look_at_first_batch(x, y, kwargs.get("sample_weight"), batch_size)
        begin = self.keras.callbacks.LambdaCallback(on_epoch_begin=self.begin_epoch)
        if isinstance(callbacks, self.keras.callbacks.CallbackList):
            callbacks.append(begin)
        elif callbacks is None or not isinstance(callbacks, (list, tuple)):
            callbacks = [begin] if callbacks is None else [callbacks, begin]
        else:
            callbacks = [*callbacks, begin]
        with self.readable_errors():
            return super().fit(  # type: ignore[misc]
                x, y, batch_size, epochs, verbose, callbacks, **kwargs
            )

    def readable_errors(self) -> contextlib.AbstractContextManager:
        """Returns a context that takes our own messages out of what is wrapped around them."""
        return contextlib.nullcontext()

    def begin_epoch(self, epoch: int, logs: Any = None) -> None:
        """Tells the step which epoch this is."""
        del logs
        self.epoch_counter.assign(epoch)

    def attack_of_step(self) -> Any:
        """Returns the attack in this model's pixels, with the ε of the present step."""
        changes: dict[str, Any] = {"pixel_range": self.pixel_range}
        if isinstance(self.attack, PGDSettings) and self.computes_in_float16:
            changes["loss_scale"] = max(self.attack.loss_scale, _FLOAT16_LOSS_SCALE)
        if self.epsilon_schedule is not None:
            changes["epsilon"] = self.epsilon_of_step()
        return dataclasses.replace(self.attack, **changes)

    def get_config(self):
        def serialized(part):
            return None if part is None else self.keras.saving.serialize_keras_object(part)

        method, attack = self.method, self.attack
        if attack is not None:
            kind = next(name for name, kind in self.attacks.items() if type(attack) is kind)
            attack = {"kind": kind, **dataclasses.asdict(attack)}
        network = serialized(self.network)
        network.pop("compile_config", None)
        return {
            "network": network,
            "attack": attack,
            "method": method if isinstance(method, str) else dataclasses.asdict(method),
            "pixel_range": list(self.pixel_range),
            "attacked_input": self.attacked_input,
            "attack_statistics": self.attack_statistics,
            "augmentation": serialized(self.augmentation),
            "clean_epochs": self.clean_epochs,
            "epsilon_schedule": serialized(self.epsilon_schedule),
            "seed": self.seed,
            "name": self.name,  # type: ignore[attr-defined]
        }

    @classmethod
    def deserialize(cls, config: dict, custom_objects: Optional[dict]) -> Any:
        """Returns the object of a configuration."""
        return cls.keras.saving.deserialize_keras_object(config, custom_objects)

    @classmethod
    def from_config(cls, config, custom_objects=None):
        config = dict(config)
        for name in _PARTS:
            if config[name] is not None:
                config[name] = cls.deserialize(config[name], custom_objects)
        if config["attack"] is not None:
            attack = dict(config["attack"])
            attack["pixel_range"] = tuple(attack["pixel_range"])
            config["attack"] = cls.attacks[attack.pop("kind", "PGD")](**attack)
        if isinstance(config["method"], dict):
            config["method"] = rules.method_from_dict(config["method"])
        return cls(**config)


def split_inputs(inputs: Any, key: Union[str, int, None]) -> tuple[Any, dict]:
    """Returns the images among the inputs, and the other ones by name or place."""
    if key is None:
        return inputs, {}
    pairs = dict(inputs) if isinstance(inputs, dict) else dict(enumerate(inputs))
    return pairs.pop(key), pairs


def join_inputs(images: Any, others: Any, key: Union[str, int, None]) -> Any:
    """Returns the network's inputs: the images in their place among the other ones."""
    if key is None:
        return images
    pairs = {**dict(others), key: images}
    return pairs if isinstance(key, str) else [pairs[place] for place in range(len(pairs))]
