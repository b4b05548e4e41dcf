"""Memory for arithmetic: activations that are not kept for the backward pass but
computed again in it.

    outputs = recompute_in_backward(forward, again, inputs)

Chen et al. 2016, "Training deep nets with sublinear memory cost". `tf.recompute_grad`
runs one function twice; here the second run is a function of its own, because a batch
norm must move its running statistics once.
"""

from typing import Callable

import tensorflow as tf

from tpu_utils.replicas import ordering


def recompute_in_backward(
    forward: Callable[[tf.Tensor], tf.Tensor],
    again: Callable[[tf.Tensor], tf.Tensor],
    inputs: tf.Tensor,
) -> tf.Tensor:
    """`forward(inputs)`, of which nothing but `inputs` is kept for the gradient.

    Args:
        forward: float tensor → float tensor; may read variables and change those that
            are not trained.
        again: computes the same numbers from the same inputs, and changes nothing.
        inputs: what to call it with.

    Returns:
        The outputs. Their gradient flows to `inputs` and to the trainable variables
        that `forward` reads.
    """

    @tf.custom_gradient
    def run(inputs):
        def gradient(upstream, variables=()):
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                # Without this XLA sees the same operations on the same inputs twice,
                # does them once and keeps the results.
                starting_point = ordering.after(upstream, inputs)
                tape.watch([starting_point, *variables])
                outputs = again(starting_point)
            to_inputs, *to_variables = tape.gradient(
                outputs,
                [starting_point, *variables],
                upstream,
                unconnected_gradients=tf.UnconnectedGradients.ZERO,
            )
            return (to_inputs, to_variables) if variables else to_inputs

        return forward(inputs), gradient

    return run(inputs)
