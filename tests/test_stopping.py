"""What signals do, in programs of their own: the second one ends the process."""

import signal
import subprocess
import sys
import time

import pytest

from frcnn import stopping
from frcnn.stopping import Interrupted

# `busy` is a backend in the middle of a step: C code, in which Python handles no signals.
PROGRAM = """
import hashlib, sys, time
from frcnn import stopping
stopping.GRACE = 1.0
start = time.monotonic()
hashlib.pbkdf2_hmac("sha256", b"", b"", 50_000)
rounds = 50_000 / (time.monotonic() - start)
busy = lambda seconds: hashlib.pbkdf2_hmac("sha256", b"", b"", int(rounds * seconds))
try:
    with stopping.stopping(lambda sentence: print(sentence, flush=True), "go on with X") as stop:
        stop.awaited = {awaited}
        print("ready", flush=True)
        for _ in range({steps}):
            busy({seconds})
            print("step", flush=True)
            if stop.awaited:
                stop.check()
except stopping.Interrupted as error:
    print("saved" if {awaited} else "at once", error, flush=True)
    sys.exit(error.status)
print("done")
"""


@pytest.fixture(autouse=True)
def hangup_is_not_ignored():
    """As it is where the tests themselves run under `nohup`."""
    old = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, old)


def run(*signals, awaited=True, steps=3, seconds=0.5):
    """Exit status, the lines printed, seconds after the first signal."""
    program = PROGRAM.format(awaited=awaited, steps=steps, seconds=seconds)
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        start = time.monotonic()
        for number in signals:
            time.sleep(0.1)
            process.send_signal(number)
        lines = process.stdout.read().splitlines()
    return process.returncode, lines, time.monotonic() - start


@pytest.mark.parametrize(
    ("number", "status", "word"),
    [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated"), (signal.SIGHUP, 129, "terminated")],
)
def test_a_step_is_finished_and_saved(number, status, word):
    found, lines, _ = run(number)
    assert (found, lines) == (status, ["stopping; once more stops at once", "step", f"saved {word}"])


def test_a_hangup_that_is_ignored_stays_ignored():
    """As under nohup."""
    old = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        status, lines, _ = run(signal.SIGHUP, seconds=0.1)
        assert (status, lines) == (0, ["step"] * 3 + ["done"])
    finally:
        signal.signal(signal.SIGHUP, old)


def test_where_nothing_can_be_saved_nothing_is_waited_for():
    status, lines, _ = run(signal.SIGTERM, awaited=False, steps=100, seconds=0.02)
    assert status == 143 and lines[-1] == "at once terminated"
    assert lines.count("step") < 50


@pytest.mark.parametrize("numbers", [(signal.SIGINT, signal.SIGINT), (signal.SIGTERM, signal.SIGINT)], ids=str)
def test_a_second_signal_ends_the_process_in_the_middle_of_a_step(numbers):
    status, lines, seconds = run(*numbers, seconds=6)
    assert status == 128 + numbers[0] and seconds < 4
    assert lines == ["stopping; once more stops at once", "stopped at once; go on with X"]


def test_a_step_that_takes_too_long_is_not_waited_for():
    status, lines, seconds = run(signal.SIGTERM, seconds=9)
    assert status == 143 and 1 < seconds < 6
    assert lines[1:] == ["stopped after 1 s, within the step; go on with X"]


def test_without_a_signal_all_is_as_before():
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with stopping.stopping(print, "") as stop:
        stop.check()
        assert signal.getsignal(signal.SIGTERM) == stop.handle
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert signal.set_wakeup_fd(-1) == -1


def test_a_signal_that_ends_the_block_leaves_the_handlers_as_they_were():
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted, match="terminated"), stopping.stopping(lambda sentence: None, ""):
        signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) == handler


WINDOWS = """
import os, select, signal, socket, sys, types, warnings
for module in ("fcntl", "resource", "termios", "pwd"):
    sys.modules[module] = None  # importing it fails
sys.modules["msvcrt"] = types.SimpleNamespace(LK_NBLCK=2, locking=lambda *_: None)
for name in ("set_blocking", "sysconf", "sched_getaffinity", "O_NONBLOCK", "fork", "getuid"):
    delattr(os, name)
del signal.SIGKILL, signal.SIGHUP
wait = select.select
def only_sockets(readers, *others):
    assert all(isinstance(reader, socket.socket) for reader in readers), "Windows waits for sockets only"
    return wait(readers, *others)
select.select = only_sockets
from frcnn import checkpoints, files, machine, stopping
assert machine.processor_cores() and machine.processor_name()
assert files.read_at_most(sys.argv[1], 10)
with warnings.catch_warnings(record=True) as noted, checkpoints.lock_run(sys.argv[2]):
    warnings.simplefilter("always")
said = []
try:
    with stopping.stopping(said.append, "") as stop:
        stop.awaited = True
        signal.raise_signal(signal.SIGTERM)
        while not said:
            pass
        stop.check()
except stopping.Interrupted as error:
    print(error.status, said)
"""


def test_where_windows_lacks_what_posix_has_all_of_it_works(tmp_path):
    (tmp_path / "file").write_text("x")
    command = [sys.executable, "-c", WINDOWS, tmp_path / "file", tmp_path / "run"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert result.stdout.strip() == "143 ['stopping; once more stops at once']", result.stderr
