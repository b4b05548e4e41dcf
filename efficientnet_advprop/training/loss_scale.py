"""Scales the loss so that float16 gradients neither underflow nor overflow.

Usage:

    loss_scale = LossScale()                  # under the strategy's scope
    # compute the gradients of loss · loss_scale.scale, and divide them by the scale
    loss_scale.update(is_finite)              # in a replica; skip the update if not finite

Source: Micikevicius et al., ICLR 2018; the rule is that of
`tf.keras.mixed_precision.LossScaleOptimizer`. float32 and bfloat16 do not need it.
"""

import tensorflow as tf


class LossScale(tf.Module):
    """A factor of the loss that adapts to the gradients.

    It doubles after every `growth_steps` consecutive finite gradients, and halves (to
    no less than 1) after a gradient that is not finite.

    Args:
        initial: the first scale.
        growth_steps: the number of finite gradients after which it doubles.
    """

    def __init__(self, initial: float = 2.0**15, growth_steps: int = 2000):
        super().__init__()
        self.growth_steps = growth_steps
        self.scale = tf.Variable(initial, trainable=False, dtype=tf.float32, name="loss_scale")
        self.num_finite = tf.Variable(
            0, trainable=False, dtype=tf.int64, name="loss_scale_num_finite"
        )

    def update(self, is_finite: tf.Tensor) -> None:
        """Counts a step; call it in a replica.

        `is_finite`: bool scalar, the same on all replicas.
        """
        num_finite = tf.where(is_finite, self.num_finite.read_value() + 1, 0)
        grows = num_finite >= self.growth_steps
        scale = self.scale.read_value()
        shrunk = tf.maximum(scale * 0.5, 1.0)
        grown = tf.minimum(scale * 2.0, 2.0**31)
        # Each replica updates its own copy, as everywhere in a step; the copies stay
        # equal.
        tf.raw_ops.AssignVariableOp(
            resource=self.scale.handle,
            value=tf.where(is_finite, tf.where(grows, grown, scale), shrunk),
        )
        tf.raw_ops.AssignVariableOp(
            resource=self.num_finite.handle,
            value=tf.where(grows, tf.zeros_like(num_finite), num_finite),
        )
