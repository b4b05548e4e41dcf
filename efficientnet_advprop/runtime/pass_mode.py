"""How a forward pass runs while it is traced: through which batch norms, and with what
they do.

    with use_branch("aux"):
        outputs = model(images, training=True)        # inside a tf.function or a train_step
    model(images)                                     # outside any context: main

This project's networks set it in their own `call`, from its arguments; layers of other
people's models take no such arguments, so for them the caller sets it.
"""

import contextlib
import threading
from typing import Callable, Iterator, NamedTuple

from efficientnet_advprop.runtime.branches import MAIN, Branch


class PassMode(NamedTuple):
    """What layers do in the current pass.

    Args:
        branch: whose gamma, beta and statistics batch norms use.
        update_statistics: whether running statistics move in training mode.
        batch_moments: whether to normalise with the batch's moments in inference mode,
            too (an attack on batch statistics, in which dropout and augmentation stand
            still).
        constant_weights: whether this project's layers write their weights into the
            graph as constants (an export).
    """

    branch: Branch = MAIN
    update_statistics: bool = True
    batch_moments: bool = False
    constant_weights: bool = False


MAIN_PASS = PassMode()
# Each thread has its own: a replica of `MirroredStrategy` is traced in a thread of its
# own, so the context has to be entered in the replica's code, not around `strategy.run`.
_thread = threading.local()


def current_pass() -> PassMode:
    """Returns the mode of the pass that this thread is tracing (or running eagerly)."""
    return getattr(_thread, "mode", MAIN_PASS)


@contextlib.contextmanager
def enter(mode: PassMode) -> Iterator[PassMode]:
    """Runs this thread's passes in `mode` while the context lasts."""
    before = current_pass()
    _thread.mode = mode
    try:
        yield mode
    finally:
        _thread.mode = before


def use_branch(branch: Branch, *, update_statistics: bool = True, batch_moments: bool = False):
    """Lets this thread's passes go through `branch` while the context lasts; see `PassMode`.

    Gradients of a converted model have to be taken inside it, too, because recomputation
    calls layers again. It decides what is traced, not what runs: a `tf.function` that calls
    the model enters the context inside (those in a converted model's own layers are
    `inner_functions`' business).
    """
    return enter(PassMode(branch, update_statistics, batch_moments))


def weights(compute: Callable):
    """Returns the tensors that `compute` makes of variables; constants, if the pass has these."""
    if not current_pass().constant_weights:
        return compute()
    import tensorflow as tf  # here: passes of Keras 3 need none

    with tf.init_scope():
        return tf.nest.map_structure(lambda tensor: tf.convert_to_tensor(tensor).numpy(), compute())
