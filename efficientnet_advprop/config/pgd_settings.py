"""The numbers of projected gradient descent, for every library that runs it."""

import dataclasses
import numbers
from typing import Any, Optional

from efficientnet_advprop.runtime.errors import AttackError

NORMS = ("linf", "l2")


@dataclasses.dataclass(frozen=True)
class PGDSettings:
    """An attack by gradient steps (Madry et al., ICLR 2018): under L∞ by their signs,
    as the paper uses it; under L2 along the gradient.

    Args:
        epsilon: radius of the ball around the clean image, pixels, ≥ 0; also a float32
            scalar tensor, for a radius that changes from step to step.
        step_size: of one iteration, pixels, > 0.
        num_steps: iterations, ≥ 1; the loop is traced once whatever their number.
        targeted: descend the loss of a uniformly drawn wrong class (the paper); False
            ascends that of the true class.
        random_start: probability, per batch, of starting from uniform noise in
            ±`epsilon` instead of the clean images (0.8 in the authors'
            adversarial-training code).
        num_classes: of the labels, ≥ 2; needed by targeted attacks.
        project: keep within `epsilon` of the clean image; False is plain gradient
            descent (GD), where only the pixel range clips.
        loss_scale: what the loss is multiplied by, > 0: nothing for the signs, but
            float16 gradients of a small loss are zero (128 in the authors' code).
        norm: "linf", or "l2": `epsilon` and `step_size` are then Euclidean lengths over
            all pixel values of an image, and a random start is uniform in that ball.
        pixel_range: the values of black and white in the images; `epsilon` and
            `step_size` count 255ths of the distance between them.

    Raises:
        AttackError: a value out of its range, with its name.
    """

    epsilon: float = 1.0
    step_size: float = 1.0
    num_steps: int = 1
    targeted: bool = True
    random_start: float = 0.8
    num_classes: Optional[int] = None
    project: bool = True
    loss_scale: float = 1.0
    norm: str = NORMS[0]
    pixel_range: tuple[float, float] = (0.0, 255.0)

    def __post_init__(self):
        is_number = isinstance(self.epsilon, numbers.Real)
        steps, (black, white) = self.num_steps, self.pixel_range
        for name, ok, rule in (
            ("norm", self.norm in NORMS, f"must be one of {NORMS}"),
            ("num_steps", type(steps) is int and steps >= 1, "must be a whole number ≥ 1"),
            (
                "epsilon",
                not is_number or self.epsilon >= 0,
                "must be ≥ 0, in pixels of 255; the paper uses 1 to 4",
            ),
            ("step_size", self.step_size > 0, "must be > 0, in pixels of 255; the paper uses 1"),
            ("random_start", 0.0 <= self.random_start <= 1.0, "is a probability, in [0, 1]"),
            ("loss_scale", self.loss_scale > 0, "must be > 0; 128 suits float16"),
            ("pixel_range", black < white, "must be the values of black and white, rising"),
            (
                "num_classes",
                not self.targeted or (self.num_classes is not None and self.num_classes >= 2),
                "a targeted attack draws a wrong class and must know of at least 2; give the"
                " number, or targeted=False",
            ),
        ):
            if not ok:
                raise AttackError(f"`{name}` is {getattr(self, name)!r}, but {rule}.")

    def pixels(self, length: Any) -> Any:
        """Returns a length in 255ths as one in the images' own values."""
        black, white = self.pixel_range
        return length * ((white - black) / 255.0)
