"""How the host's memory is handed out: freed blocks are kept for the next tensor.

By itself glibc does so, up to 32 MiB. TensorFlow 2.21 limits it to 128 KiB when a process
makes the first iterator over a strategy's data. After that the kernel clears the pages
of nearly every tensor that a CPU computes: a quarter of the time of a small network's
training (docs/maintainers/measurements.md#freed-memory). So call this after making the iterator.
"""

import ctypes

# Of glibc's mallopt(3): its parameters, and what it arrives at when it is left alone.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_LARGEST_REUSED_BLOCK = 32 * 2**20  # bytes; glibc refuses more
_KEPT_AT_THE_TOP = 2 * _LARGEST_REUSED_BLOCK


def keep_freed_blocks() -> bool:
    """Keeps freed blocks of up to 32 MiB, and 64 MiB at the top of the heap.

    Returns whether it is so now; another C library than glibc is left alone.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(
        mallopt(_MMAP_THRESHOLD, _LARGEST_REUSED_BLOCK)
        and mallopt(_TRIM_THRESHOLD, _KEPT_AT_THE_TOP)
    )
