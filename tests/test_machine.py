"""The processor as the system tells of it, and memory that is kept instead of asked for again."""

import builtins
import os
import platform
import subprocess
import sys
import threading

import pytest

from frcnn import machine
from frcnn.data import threads

# A thread takes 96 MB, touches each page and gives them back, twenty times; page faults of the last ten.
FAULTS = """
import ctypes, resource, threading
from frcnn.machine import keep_freed_memory
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
def work():
    for turn in range(20):
        if turn == 10:
            faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
        blocks = [libc.malloc(24 << 20) for _ in range(4)]
        for block in blocks:
            ctypes.memset(block, 1, 24 << 20)
        for block in blocks:
            libc.free(block)
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
faults, kept = [], keep_freed_memory()
thread = threading.Thread(target=work)
thread.start()
thread.join()
print(kept, faults[1] - faults[0])
"""


def faults(**environment):
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    result = subprocess.run(
        [sys.executable, "-c", FAULTS], env=clean | environment, capture_output=True, text=True, check=True
    )
    kept, count = result.stdout.split()
    return kept == "True", int(count)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has such settings")
def test_freed_memory_is_kept_unless_the_environment_says_how():
    kept, few = faults()
    assert kept
    assert few < 100
    kept, many = faults(MALLOC_MMAP_THRESHOLD_="131072")
    assert not kept
    assert many > 10 * (96 << 20) / os.sysconf("SC_PAGE_SIZE") * 0.9


def test_without_proc_nothing_is_known(monkeypatch):
    def no_file(*_):
        raise FileNotFoundError

    monkeypatch.setattr(builtins, "open", no_file)
    assert machine.processor_flags() == set()


def test_the_processor_has_a_name():
    assert machine.processor_name()


@pytest.mark.parametrize(("workers", "cores", "expected"), [(0, 3, 3), (0, 64, 8), (5, 3, 5)])
def test_there_are_as_many_threads_as_cores_unless_somebody_says_how_many(monkeypatch, workers, cores, expected):
    monkeypatch.setattr(threads, "processor_cores", lambda: cores)
    together = threading.Barrier(expected, timeout=10)  # nobody passes before all are there
    names = set()

    def wait(_):
        together.wait()
        names.add(threading.current_thread().name)

    assert list(threads.map_in_threads(wait, range(4 * expected), workers, ahead=4 * expected)) == [None] * 4 * expected
    assert len(names) == expected
