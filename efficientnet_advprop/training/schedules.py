"""Learning rates as functions of the step, as in the official `build_learning_rate`."""

import dataclasses
import math

import tensorflow as tf

from efficientnet_advprop.config.tables import SCHEDULES


@dataclasses.dataclass(frozen=True)
class LearningRate:
    """step → learning rate.

    Args:
        initial: the rate after the warm-up; recipes scale it by global batch size /
            256.
        steps_per_epoch: may be fractional.
        schedule: "exponential" (decays in steps); "cosine" (to zero at `total_steps`);
            "constant"; "piecewise" (times `decay_factor` at each of `decay_at_epochs`,
            as for ResNets); or "poly" (a parabola from the end of the warm-up to `end`
            at `total_steps`, as for LARS).
        decay_factor, decay_epochs: of the exponential schedule, which counts from step
            0, including the warm-up.
        decay_at_epochs: of "piecewise", counted from step 0, too.
        warmup_epochs: epochs of linear increase from 0, which replaces the schedule
            meanwhile.
        total_steps: of "cosine" and "poly".
        end: of "poly": the last rate.
    """

    initial: float
    steps_per_epoch: float
    schedule: str = "exponential"
    decay_factor: float = 0.97
    decay_epochs: float = 2.4
    warmup_epochs: float = 5.0
    total_steps: int = 0
    decay_at_epochs: tuple[float, ...] = ()
    end: float = 0.1

    def __post_init__(self):
        if self.schedule not in SCHEDULES:
            raise ValueError(
                f"`schedule` is {self.schedule!r}, "
                f"but must be one of {', '.join(map(repr, SCHEDULES))}."
            )
        if self.schedule in ("cosine", "poly") and self.total_steps < 1:
            raise ValueError(
                f"`total_steps` is {self.total_steps!r}, but a {self.schedule} schedule must know "
                "its end; give a number ≥ 1."
            )
        if self.schedule == "piecewise" and not self.decay_at_epochs:
            raise ValueError(
                "`decay_at_epochs` is empty, but a piecewise schedule must know when the rate "
                "falls: (30, 60)."
            )

    def __call__(self, step: tf.Tensor) -> tf.Tensor:
        """Returns the rate, a float32 scalar, of the update after `step` updates."""
        step = tf.cast(step, tf.float32)
        rate = tf.constant(self.initial, tf.float32)
        if self.schedule == "exponential":
            stairs = tf.floor(step / (self.steps_per_epoch * self.decay_epochs))
            rate *= tf.pow(tf.constant(self.decay_factor, tf.float32), stairs)
        elif self.schedule == "piecewise":
            passed = [
                tf.cast(step >= epoch * self.steps_per_epoch, tf.float32)
                for epoch in self.decay_at_epochs
            ]
            rate *= tf.pow(tf.constant(self.decay_factor, tf.float32), tf.add_n(passed))
        elif self.schedule == "cosine":
            rate *= 0.5 * (1.0 + tf.cos(math.pi * step / self.total_steps))
        warmup_steps = int(self.warmup_epochs * self.steps_per_epoch)
        if self.schedule == "poly":
            # As in the official code, the parabola begins one step later, and its
            # length includes both ends.
            done = tf.maximum(1.0, step - warmup_steps) / (self.total_steps - warmup_steps + 1)
            rate = (self.initial - self.end) * tf.square(1.0 - tf.minimum(done, 1.0)) + self.end
        if warmup_steps:
            rate = tf.where(step < warmup_steps, self.initial * step / warmup_steps, rate)
        return rate
