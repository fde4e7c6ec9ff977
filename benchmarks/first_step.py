"""How long `frcnn train` takes from the command to the end of the first step: `python -m benchmarks.first_step -p ...`.

Takes the arguments of `frcnn train`, runs it three times in a process of its own, stops it after the first step, and
prints the medians in seconds: Keras imported, `fit` called, first step done, second step done. Nothing is kept.
"""

import statistics
import subprocess
import sys
import tempfile
import time

ROUNDS, MARK = 3, "benchmarks.first_step "
CHILD = f"""
import os, sys, keras

class Tell(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        print("{MARK}step", batch + 1, flush=True)
        if batch:
            os._exit(0)

def fit(self, *given, callbacks=(), own=keras.Model.fit, **settings):
    print("{MARK}fit", flush=True)
    return own(self, *given, callbacks=[*callbacks, Tell()], **settings)

print("{MARK}keras", flush=True)
keras.Model.fit = fit
from frcnn.cli import main
sys.exit(main(["train", *sys.argv[1:]]))
"""


def main():
    """Run the child and print when it said what."""
    rounds = []
    for _ in range(ROUNDS):
        seconds, said = {}, []
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-c", CHILD, *sys.argv[1:], "--output", f"{folder}/run"]
            begin, pipe = time.perf_counter(), subprocess.PIPE
            with subprocess.Popen(command, stdout=pipe, stderr=subprocess.STDOUT, text=True) as process:
                for line in process.stdout:
                    said.append(line)
                    if MARK in line:
                        seconds[line.partition(MARK)[2].strip()] = time.perf_counter() - begin
        if "step 1" not in seconds:
            raise SystemExit("no step was done:\n" + "".join(said))
        rounds.append(seconds)
    for name in rounds[0]:
        times = [seconds[name] for seconds in rounds]
        print(f"{name:<8}{statistics.median(times):6.1f} s  ({min(times):.1f} to {max(times):.1f})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
