"""A loss multiplied so that float16 gradients neither vanish nor overflow (Micikevicius et al., ICLR 2018).

    loss_scale = LossScale()                                      # under the strategy's scope
    gradients of loss · loss_scale.scale                          # … divided by it again
    loss_scale.update(is_finite)                                  # in a replica; an update that is not finite is left out

The rule is that of `tf.keras.mixed_precision.LossScaleOptimizer`. float32 and bfloat16 need none of it.
"""

import tensorflow as tf


class LossScale(tf.Module):
    """Twice as large after every `growth_steps` finite gradients in a row, half as large (but ≥ 1) after one that is not.

    Args:
        initial: the first scale.
        growth_steps: see above.
    """

    def __init__(self, initial: float = 2.0**15, growth_steps: int = 2000):
        super().__init__()
        self.growth_steps = growth_steps
        self.scale = tf.Variable(initial, trainable=False, dtype=tf.float32, name="loss_scale")
        self.num_finite = tf.Variable(
            0, trainable=False, dtype=tf.int64, name="loss_scale_num_finite"
        )

    def update(self, is_finite: tf.Tensor) -> None:
        """Counts a step, in a replica. `is_finite`: bool scalar, the same on all of them."""
        num_finite = tf.where(is_finite, self.num_finite.read_value() + 1, 0)
        grows = num_finite >= self.growth_steps
        scale = self.scale.read_value()
        shrunk, grown = tf.maximum(scale * 0.5, 1.0), tf.minimum(scale * 2.0, 2.0**31)
        # On the local copies, as everywhere in a step: the replicas agree.
        tf.raw_ops.AssignVariableOp(
            resource=self.scale.handle,
            value=tf.where(is_finite, tf.where(grows, grown, scale), shrunk),
        )
        tf.raw_ops.AssignVariableOp(
            resource=self.num_finite.handle,
            value=tf.where(grows, tf.zeros_like(num_finite), num_finite),
        )
