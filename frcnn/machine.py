"""What is known of this machine's processor, and how its memory is asked for."""

import ctypes
import os
import platform

# Of glibc's malloc.h: mallopt's M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX, M_ARENA_MAX.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX, _ARENA_MAX = -1, -2, -4, -8


def keep_freed_memory():
    """Have memory that is freed kept for what asks next, on Linux with glibc; see mallopt(3).

    Else the large buffers of TensorFlow's kernels go back to the system each time, and each of their pages comes back
    through a fault: a fifth to two fifths of a training step (benchmarks/NOTES.md). A process whose environment says
    how memory is kept (`MALLOC_...`, `GLIBC_TUNABLES`) is left alone.

    Returns:
        Whether it was done.
    """
    if any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another system's C library
        return False
    # One heap, which grows by 64 MB and shrinks when 1 GB at its end is free; no block has a mapping of its own.
    settings = {_ARENA_MAX: 1, _MMAP_MAX: 0, _TOP_PAD: 1 << 26, _TRIM_THRESHOLD: 1 << 30}
    return sum(mallopt(option, value) for option, value in settings.items()) == len(settings)


def processor_flags():
    """The flags of the first processor as /proc/cpuinfo has them, a set; elsewhere empty."""
    return set(_processor("flags").split())


def processor_name():
    """The processor's name as its maker has it, where the system tells, else its kind."""
    return _processor("model name") or platform.processor() or platform.machine()


def processor_cores():
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _processor(entry):
    """What /proc/cpuinfo says of the first processor; elsewhere ""."""
    try:
        with open("/proc/cpuinfo") as file:
            return next((line.partition(":")[2].strip() for line in file if line.startswith(entry)), "")
    except OSError:  # not Linux
        return ""
