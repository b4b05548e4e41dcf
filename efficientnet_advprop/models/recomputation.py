"""Memory for arithmetic: activations that are not kept for the backward pass but
computed again in it (Chen et al. 2016, "Training deep nets with sublinear memory cost").
"""

from typing import Callable

import tensorflow as tf

from efficientnet_advprop.runtime.pass_mode import current_pass, enter
from tpu_utils import replica_runtime


def recompute_in_backward(
    forward: Callable[[tf.Tensor], tf.Tensor], inputs: tf.Tensor
) -> tf.Tensor:
    """Returns `forward(inputs)`, of which nothing but `inputs` is kept for the gradient.

    Args:
        forward: float tensor → float tensor; may read variables and, unless the pass
            says otherwise, change those that are not trained. The same inputs give the
            same numbers.
        inputs: what to call it with. The gradient flows to it and to the trainable
            variables that `forward` reads.
    """
    # The backward pass runs outside the network's call, so the second run brings the
    # mode along. Batch norms move their statistics in the first one alone, which
    # `tf.recompute_grad` could not be told.
    mode = current_pass()._replace(update_statistics=False)

    @tf.custom_gradient
    def run(inputs):
        def gradient(upstream, variables=()):
            with enter(mode), tf.GradientTape(watch_accessed_variables=False) as tape:
                # Without this XLA sees the same operations on the same inputs twice,
                # does them once and keeps the results.
                starting_point = replica_runtime.after(upstream, inputs)
                tape.watch([starting_point, *variables])
                outputs = forward(starting_point)
            to_inputs, *to_variables = tape.gradient(
                outputs,
                [starting_point, *variables],
                upstream,
                unconnected_gradients=tf.UnconnectedGradients.ZERO,
            )
            return (to_inputs, to_variables) if variables else to_inputs

        return forward(inputs), gradient

    return run(inputs)
