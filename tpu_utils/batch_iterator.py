"""An iterator over batches whose end nobody waits for, and the memory of the batches.

    with BatchIterator(strategy.distribute_datasets_from_function(make_dataset)) as batches:
        run_steps(batches.iterator, num_steps)

When TensorFlow frees an iterator of `tf.data`, it waits for the thread that tunes the
pipeline, which often misses the call to wake up and sleeps on, for up to a minute. That
happens to a tenth to a half of all iterators, those over a strategy's data even with
the tuning off (docs/maintainers/measurements.md#iterators-that-end-late). The GIL is free
meanwhile, so a thread can do the waiting.
"""

import ctypes
import threading
from typing import Any, Iterable, Iterator

# Of glibc's mallopt(3): its parameters, and what it arrives at when it is left alone.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_LARGEST_REUSED_BLOCK = 32 * 2**20  # bytes; glibc refuses more
_KEPT_AT_THE_TOP = 2 * _LARGEST_REUSED_BLOCK


class BatchIterator:
    """A context with an iterator over `batches`, which a thread of its own frees.

    A process whose work is done ends only after that thread, as it would without it.
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
    """Yields the batches, the next one being read before: so the iterator is already being
    freed while the last one is worked on.
    """
    nothing = object()
    with BatchIterator(batches) as opened:
        batch = next(opened.iterator, nothing)
        for following in opened.iterator:
            yield batch
            batch = following
    if batch is not nothing:
        yield batch


def keep_freed_blocks() -> bool:
    """Keeps freed blocks of up to 32 MiB, and 64 MiB at the top of the heap, for the next tensor.

    Returns whether it is so now; another C library than glibc is left alone.
    """
    # glibc does so by itself. TensorFlow 2.21 limits it to 128 KiB when a process makes its
    # first iterator over a strategy's data, hence the call after that: otherwise the kernel
    # clears the pages of nearly every tensor that a CPU computes, a quarter of a small
    # network's training (docs/maintainers/measurements.md#freed-memory).
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(
        mallopt(_MMAP_THRESHOLD, _LARGEST_REUSED_BLOCK)
        and mallopt(_TRIM_THRESHOLD, _KEPT_AT_THE_TOP)
    )
