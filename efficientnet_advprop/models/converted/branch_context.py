"""Which batch norms a pass of a converted model goes through: a context while it is
traced.

    with use_branch("aux"):
        outputs = model(images, training=True)        # inside a tf.function or a train_step
    model(images)                                     # outside any context: main

Layers of other people's models take no argument for a branch, so the converted batch
norms ask here. The answer is read when the pass is traced, and each thread has its own:
a replica of `MirroredStrategy` is traced in a thread of its own, so the context has to
be entered in the replica's code, not around `strategy.run`.
"""

import contextlib
import threading
from typing import Iterator, NamedTuple

from efficientnet_advprop.models.branches import MAIN


class PassMode(NamedTuple):
    """What converted batch norms do in the current pass.

    Args:
        branch: whose gamma, beta and statistics: "main", "aux", "aux_2", …
        update_statistics: whether the running statistics move in training mode.
        batch_moments: whether to normalise with the batch's moments in inference mode,
            too (an attack on batch statistics, in which dropout and augmentation stand
            still).
    """

    branch: str = MAIN
    update_statistics: bool = True
    batch_moments: bool = False


MAIN_PASS = PassMode()
_thread = threading.local()


def current_pass() -> PassMode:
    """The mode of the pass that this thread is tracing (or running eagerly)."""
    return getattr(_thread, "mode", MAIN_PASS)


@contextlib.contextmanager
def use_branch(
    branch: str, *, update_statistics: bool = True, batch_moments: bool = False
) -> Iterator[PassMode]:
    """Lets this thread's passes go through `branch` while the context lasts.

    Arguments as those of `PassMode`. Gradients have to be taken inside it, too, because
    recomputation (`tf.recompute_grad`) calls layers again. It decides what is traced,
    not what runs: a `tf.function` that calls the model enters the context inside (those
    in the model's own layers are `inner_functions`' business).
    """
    before, mode = current_pass(), PassMode(branch, update_statistics, batch_moments)
    _thread.mode = mode
    try:
        yield mode
    finally:
        _thread.mode = before
