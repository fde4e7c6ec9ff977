"""Kill a small training again and again, resume it each time, compare: `python -m benchmarks.kill_resume 100`.

SIGKILL comes at random moments, of which `--seed` decides: at any time, at the start, in a checkpoint write, in
validation. Whenever a run has come to its end, its trace of losses, its history and its last weights are compared, bit
for bit, with those of a run that nobody disturbed, and the next run begins. Prints a table of the moments and what was
lost, and exits with 1 if anything differed.
"""

import argparse
import collections
import mmap
import os
import random
import shutil
import signal
import statistics
import struct
import sys
import tempfile
import time
import traceback
from pathlib import Path

import h5py
import numpy as np

PHASES = ("start", "steps", "checkpoint", "validation")
MOMENTS = ("any time", "any time", "any time", "start", "checkpoint", "checkpoint", "validation")
MEASURED = {"pictures_per_second", "data_wait"}  # columns of history.csv that no two runs share


def main():
    """Make the undisturbed run, kill and resume others, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kills", type=int, help="how often to kill")
    parser.add_argument("--model", choices=MODELS, default="detector", help="what is trained (default: detector)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: 0)")
    parser.add_argument("--folder", metavar="FOLDER", help="where the runs go (default: a temporary folder)")
    arguments = parser.parse_args()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import frcnn.training  # once: each training is a fork of this process

    assert frcnn.training
    folder = Path(arguments.folder or tempfile.mkdtemp(prefix="kill_resume"))
    folder.mkdir(parents=True, exist_ok=True)
    shared = mmap.mmap(-1, 16)  # the phase of the training, and when it last was safe
    started = time.monotonic()
    assert attempt(folder / "undisturbed", arguments.model, shared, None) == "finished"
    seconds = time.monotonic() - started
    generator, kills, rounds = random.Random(arguments.seed), [], 0
    different = []
    while len(kills) < arguments.kills:
        run = folder / f"round{rounds}"
        outcome = None
        while outcome != "finished":
            moment = generator.choice(MOMENTS) if len(kills) < arguments.kills else None
            outcome = attempt(run, arguments.model, shared, moment, generator, seconds)
            if outcome != "finished":
                kills.append(outcome)
                print(f"kill {len(kills)}: in {outcome[0]}, {outcome[1]:.2f} s lost", flush=True)
        differs = compare(folder / "undisturbed", run)
        different += [differs] if differs else []
        print(f"round {rounds} is {differs or 'equal bit for bit'}", flush=True)
        rounds += 1
        shutil.rmtree(run)
    report(kills, rounds, different)
    if not arguments.folder:
        shutil.rmtree(folder)
    return 1 if different else 0


def attempt(run, model, shared, moment, generator=None, seconds=0.0):
    """Train or resume in a child until it ends, or until it is killed at a moment; None: it is not.

    Returns:
        "finished", or (phase in which it was killed, seconds of training that were lost).
    """
    set_phase(shared, "start")
    child = os.fork()
    if not child:
        try:
            train(run, model, shared)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    if moment:
        delay = generator.uniform(0, seconds / 2) if moment in ("any time", "start") else generator.uniform(0, 0.05)
        wait_for(child, shared, moment, delay)
        os.kill(child, signal.SIGKILL)
    killed_at, phase = time.monotonic(), PHASES[shared[0]]
    _, status = os.waitpid(child, 0)
    if os.WIFEXITED(status):
        assert os.WEXITSTATUS(status) == 0, f"the training ended with {os.WEXITSTATUS(status)}"
        return "finished"
    (safe,) = struct.unpack("d", shared[8:16])
    return phase, killed_at - safe if safe else 0.0


def wait_for(child, shared, moment, delay):
    """Sleep until the child is in the phase that the moment names, and then for `delay` seconds; or until it ends."""
    wanted = {"any time": PHASES[1:], "start": PHASES[:1]}.get(moment, (moment,))
    until = None
    while until is None or time.monotonic() < until:
        if os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            return
        if until is None and PHASES[shared[0]] in wanted:
            until = time.monotonic() + delay
        time.sleep(0.001)


def set_phase(shared, phase, is_safe=False):
    """Write down what the training does, and that all it has done is in a checkpoint."""
    shared[0] = PHASES.index(phase)
    if phase == "start":
        shared[8:16] = struct.pack("d", 0.0)
    elif is_safe:
        shared[8:16] = struct.pack("d", time.monotonic())


def train(run, model, shared):
    """Train, in a child, or resume what is there, and say in `shared` how far it is."""
    log = os.open(run.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    from frcnn import backend, checkpoints, run_folder

    write, begin = run_folder.write_checkpoint, run_folder.RunFolder.on_test_begin

    def write_checkpoint(*arguments):
        set_phase(shared, "checkpoint")
        write(*arguments)
        set_phase(shared, "steps", is_safe=True)

    def on_test_begin(self, logs=None):
        set_phase(shared, "validation")
        begin(self, logs)

    def on_epoch_begin(self, epoch, logs=None, begin=run_folder.RunFolder.on_epoch_begin):
        begin(self, epoch, logs)
        set_phase(shared, "steps", is_safe=PHASES[shared[0]] == "start")

    run_folder.write_checkpoint = write_checkpoint
    run_folder.RunFolder.on_test_begin, run_folder.RunFolder.on_epoch_begin = on_test_begin, on_epoch_begin
    saved = checkpoints.newest_checkpoint(run)[:2] if checkpoints.checkpoint_files(run) else None
    if not saved:
        shutil.rmtree(run, ignore_errors=True)  # killed before its first checkpoint
    backend.make_deterministic(0)
    MODELS[model](run, saved)


def train_detector(run, saved):
    """Three epochs of the tests' tiny detector on eight pictures, three more to validate on."""
    from frcnn.training import build_model, train_model
    from tests.oracles.tiny import CLASS_NAMES, tiny_config, write_tiny_pictures

    config = tiny_config("train.epochs=3", "train.checkpoint_minutes=0.01", "train.patience=9", "train.batch_size=1")
    records = [record for part in "abc" for record in write_tiny_pictures(run.parent / part)]
    model = build_model(config, CLASS_NAMES, resumed=bool(saved))
    train_model(model, records[:8], validation=records[8:11], output=run, verbose=2, saved=saved)


def train_classifier(run, saved):
    """Six epochs of the tests' smallest classifier on 64 pictures, 16 more to validate on."""
    from frcnn import build_classifier, classification
    from frcnn.training import build_model
    from tests.oracles.shapes import SHAPES, shape_records, shapes_config

    changes = ["train.epochs=6", "train.checkpoint_minutes=0.005", "data.colour_jitter=0.3"]
    model = build_model(shapes_config(*changes), SHAPES, build_classifier, resumed=bool(saved))
    records = {"records": shape_records(64), "validation": shape_records(16, 100)}
    classification.train_classifier(model, **records, output=run, verbose=2, saved=saved)


MODELS = {"detector": train_detector, "classifier": train_classifier}


def compare(one, other):
    """What differs between two runs, or ""."""
    different = [] if (one / "steps.csv").read_bytes() == (other / "steps.csv").read_bytes() else ["steps.csv"]
    tables = [np.genfromtxt(run / "history.csv", delimiter=",", names=True) for run in (one, other)]
    same = {name: np.array_equal(*(table[name] for table in tables), equal_nan=True) for name in tables[0].dtype.names}
    different += sorted(name for name, equal in same.items() if not equal and name not in MEASURED)
    for name in ("last.weights.h5", "best.weights.h5"):
        weights = [read_weights(run / name) for run in (one, other)]
        equal = set(weights[0]) == set(weights[1]) and all(
            np.array_equal(values, weights[1][key]) for key, values in weights[0].items()
        )
        different += [] if equal else [name]
    return f"different in {', '.join(different)}" if different else ""


def read_weights(path):
    """{name: array} of all data sets of an HDF5 file."""
    found = {}
    with h5py.File(path) as file:
        file.visititems(lambda name, item: found.update({name: item[()]}) if isinstance(item, h5py.Dataset) else None)
    assert found
    return found


def report(kills, rounds, different):
    """Print how often each phase was hit, and what that cost."""
    counts = collections.Counter(phase for phase, _ in kills)
    print(f"\n{'killed in':<12}{'times':>7}{'seconds lost: median':>23}{'most':>8}")
    for phase in PHASES:
        lost = [seconds for name, seconds in kills if name == phase] or [0.0]
        print(f"{phase:<12}{counts[phase]:>7}{statistics.median(lost):>23.2f}{max(lost):>8.2f}")
    print(
        f"{len(kills)} kills in {rounds} runs, {rounds - len(different)} of which equal the undisturbed one bit for bit"
    )


if __name__ == "__main__":
    sys.exit(main())
