"""How the host's memory is handed out: freed blocks are kept for the next tensor.

Usage:

    batches = iter(strategy.distribute_datasets_from_function(make_dataset))
    keep_freed_blocks()

By itself glibc does so: as large blocks are freed, it raises the size from which a block
comes from the kernel and goes back to it, up to 32 MiB. TensorFlow 2.21 fixes that size
at 128 KiB when a process makes the first iterator over a strategy's data (or over a
Python generator). After that the kernel clears the pages of nearly every tensor that a
CPU computes: a quarter of the time of a small network's training
(docs/maintainers/measurements.md#freed-memory).
"""

import ctypes

# Of glibc's mallopt(3): its parameters, and what it arrives at when it is left alone.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_LARGEST_REUSED_BLOCK = 32 * 2**20  # bytes; glibc refuses more
_KEPT_AT_THE_TOP = 2 * _LARGEST_REUSED_BLOCK


def keep_freed_blocks() -> bool:
    """Lets this process keep freed blocks of up to 32 MiB, and 64 MiB at the top of its
    heap.

    Returns:
        Whether it is so now; another C library than glibc goes its own ways, and is
        left alone.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(
        mallopt(_MMAP_THRESHOLD, _LARGEST_REUSED_BLOCK)
        and mallopt(_TRIM_THRESHOLD, _KEPT_AT_THE_TOP)
    )
