"""How a signal ends a training: after the step in work, which is saved, and within ten seconds."""

import contextlib
import os
import select
import signal
import socket
import threading

SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")  # Windows has no SIGHUP
GRACE = 9.0  # seconds; whoever stops programs politely kills them after ten


class Interrupted(KeyboardInterrupt):
    """A signal ended the run; `status` is the exit status that a shell expects then."""

    def __init__(self, number):
        super().__init__("interrupted" if number == signal.SIGINT else "terminated")
        self.status = 128 + number


class Stop:
    """Whether a signal came.

    Attributes:
        signal: its number, or None.
        awaited: whether the training will look, by calling `check`, as soon as it has something to save; while it will
            not (at the start, in validation) the signal ends what runs, at once.
    """

    def __init__(self):
        self.signal, self.awaited = None, False

    def check(self):
        """Raise `Interrupted` if a signal came."""
        if self.signal:
            raise Interrupted(self.signal)

    def handle(self, number, frame=None):
        """What Python calls in its main thread for a signal, but not before a step that is in work ends."""
        self.signal = self.signal or number
        if not self.awaited:
            self.check()


@contextlib.contextmanager
def stopping(say, hint):
    """Let SIGINT (Ctrl-C), SIGTERM and SIGHUP (the terminal is closed) end what runs inside; gives a `Stop`.

    It must be the main thread's. SIGHUP stays ignored in a process that was started so, as `nohup` does.

    A thread of its own sees each signal at once, also while the main thread is busy in a backend. At the second one, or
    `GRACE` seconds after the first, it ends the process on the spot.

    Args:
        say: function that is called, in that thread, with what to tell the user.
        hint: what to tell when the process was ended on the spot.
    """
    stop = Stop()
    reader, writer = socket.socketpair()  # not a pipe, for which Windows cannot wait
    writer.setblocking(False)
    old_writer = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    numbers = [getattr(signal, name) for name in SIGNALS if hasattr(signal, name)]
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
        numbers.remove(signal.SIGHUP)
    old = {number: signal.signal(number, stop.handle) for number in numbers}
    watch = threading.Thread(target=_watch, args=(reader, say, hint), name="frcnn-signals", daemon=True)
    watch.start()
    try:
        yield stop
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(old_writer)
        writer.close()
        watch.join()
        reader.close()


def _watch(reader, say, hint):
    first = reader.recv(1)
    if not first:  # the writing end was closed: nothing happened
        return
    say("stopping; once more stops at once")
    came, *_ = select.select([reader], [], [], GRACE)
    if came and not reader.recv(1):
        return
    say(f"stopped {'at once' if came else f'after {GRACE:.0f} s, within the step'}; {hint}")
    os._exit(128 + first[0])
