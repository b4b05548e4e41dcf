"""An iterator over batches whose end nobody waits for.

Usage:

    with BatchIterator(strategy.distribute_datasets_from_function(make_dataset)) as batches:
        run_steps(batches.iterator, num_steps)

    for batch in read_ahead(dataset):
        ...

When TensorFlow frees an iterator of `tf.data`, it stops the thread that tunes the
pipeline, and waits for it. That thread sleeps for up to a minute, as long as the
iterator has been there, and the call to wake up often comes too early: it looks once
more whether it shall stop before the flag is set, and sleeps on. A tenth to a half of
all iterators end so, those over a strategy's data even with the tuning switched off
(docs/maintainers/measurements.md#iterators-that-end-late). The GIL is free meanwhile, so that a
thread can do the waiting.
"""

import threading
from typing import Any, Iterable, Iterator


class BatchIterator:
    """A context in which there is an iterator over `batches`; afterwards it is freed by a
    thread of its own.

    A process whose work is done ends only after that thread, as it would without it.

    Args:
        batches: a `tf.data.Dataset`, a distributed one, or anything to iterate over.
    """

    def __init__(self, batches: Iterable):
        self._held = [iter(batches)]

    @property
    def iterator(self) -> Iterator:
        """To be used where it stands: a variable that keeps it would have to wait."""
        return self._held[0]

    def __enter__(self) -> "BatchIterator":
        return self

    def __exit__(self, *_: Any) -> None:
        threading.Thread(target=self._held.clear, name="freeing an iterator over batches").start()


def read_ahead(batches: Iterable) -> Iterator:
    """Each of the batches, the next one being read before; so the iterator is already
    being freed while the last one is worked on.
    """
    nothing = object()
    with BatchIterator(batches) as opened:
        batch = next(opened.iterator, nothing)
        for following in opened.iterator:
            yield batch
            batch = following
    if batch is not nothing:
        yield batch
