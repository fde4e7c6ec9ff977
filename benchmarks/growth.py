"""What time and memory grow with: `python -m benchmarks.growth [GROUP ...] [--json FILE]`.

Each case is a process of its own. The training step is of ResNet-18 with a pyramid, frozen statistics, random weights:
one picture of 320x416 with 10 boxes of 20 classes, but for what the group changes; seconds are the median of 5 steps
after two. Lines of an annotation file are read with `read_records`, 100 of each picture. The pictures of a folder, of
64x64 with 10 proposals, go through `frcnn detect` as from the command line, loading and the files it writes included,
and nothing is drawn; "arrays" tells how fast as many pictures of 320x416 are from files, and as arrays in memory.
"""

import argparse
import contextlib
import io
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.speed import Picture, our_batch, our_model, step_of

GROUPS = {
    "size": ((160, 208), (320, 416), (640, 832), (960, 1248)),
    "batch": (1, 2, 4, 8),
    "boxes": (1, 10, 100, 1000),
    "classes": (1, 10, 100, 1000),
    "lines": (10**3, 10**4, 10**5, 10**6),
    "folder": (10**2, 10**3, 10**4),
    "arrays": (32,),
}
STEPS, USUAL_SIZE, LINES_OF_A_PICTURE = 5, (320, 416), 100


def main():
    """Run the cases, one after the other, and print a row for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("groups", nargs="*", metavar="GROUP", help=f"{', '.join(GROUPS)} (default: all)")
    parser.add_argument("--json", metavar="FILE", help="write the rows")
    parser.add_argument("--case", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        return be_case(arguments.case[0], json.loads(arguments.case[1]))
    print(f"{'':<24}{'seconds':>9}{'a unit, ms':>12}{'peak, GB':>10}")
    rows = []
    for group in arguments.groups or GROUPS:
        for value in GROUPS[group]:
            command = [sys.executable, "-m", "benchmarks.growth", "--case", group, json.dumps(value)]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
            for name, row in json.loads(done.stdout.splitlines()[-1]).items():
                rows.append(row | {"case": name})
                unit = 1000 * row["seconds"] / row["units"]
                print(f"{name:<24}{row['seconds']:>9.3f}{unit:>12.4g}{row['peak'] / 1e9:>10.2f}", flush=True)
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(rows, indent=1) + "\n")
    return 0


def be_case(group, value):
    """Measure one case and print {name: {"seconds", "units", "peak"}} as JSON."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    measure = {"lines": read_lines, "folder": detect_in_folder, "arrays": compare_with_arrays}.get(group)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        times = measure(Path(folder), value) if measure else train(folder, group, value)
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({name: {"seconds": time, "units": units, "peak": peak} for name, (time, units) in times.items()}))
    return 0


def train(folder, group, value):
    """{name: (seconds of a training step, units)} with one thing changed."""
    size = value if group == "size" else USUAL_SIZE
    settings = {"batch": "count", "boxes": "boxes", "classes": "classes"}
    picture = Picture(folder, size, **({settings[group]: value} if group in settings else {}))
    model = model_of(picture)
    step, times = step_of(model, "train", model.config, our_batch(picture, model, "train")), []
    for _ in range(STEPS + 2):
        begin = time.perf_counter()
        step()
        times.append(time.perf_counter() - begin)
    units = size[0] * size[1] / 1e6 if group == "size" else value
    label = "x".join(map(str, size)) if group == "size" else value
    return {f"{group} {label}": (statistics.median(times[2:]), units)}


def model_of(picture, *changes):
    """The training model of all cases."""
    return our_model("config/resnet18_fpn.yaml", ["train.precision=float32", *changes], picture)


def read_lines(folder, count):
    """The time to read an annotation file."""
    from frcnn import read_records

    picture = Picture(folder, (64, 64))
    with open(folder / "annotations.txt", "w", encoding="utf-8") as file:
        for line in range(count):
            number = line // LINES_OF_A_PICTURE
            if line % LINES_OF_A_PICTURE == 0:
                os.link(picture.path, folder / f"{number}.png")
            file.write(f"{folder}/{number}.png,{line % 30},{line % 20},{line % 30 + 30},{line % 20 + 40},thing\n")
    begin = time.perf_counter()
    read_records(folder / "annotations.txt", format="simple")
    return {f"lines {count}": (time.perf_counter() - begin, count)}


def detect_in_folder(folder, count):
    """The time of `frcnn detect` on a folder."""
    from frcnn.cli import main
    from frcnn.config import save_config

    picture = Picture(folder, (64, 64))
    (folder / "pictures").mkdir()
    for number in range(count):
        os.link(picture.path, folder / "pictures" / f"{number:06}.png")
    model = model_of(picture, "rpn.test_post_nms=10")  # or the head would take ten times as long as all else
    save_config(model.config, folder / "run", model.class_names)
    model.save_weights(folder / "run" / "best.weights.h5")
    begin = time.perf_counter()
    options = ["--run", str(folder / "run"), "--output", str(folder / "out"), "--no-pictures"]
    if main(["detect", "-p", str(folder / "pictures"), *options]):
        raise SystemExit("frcnn detect failed")
    return {f"folder {count}": (time.perf_counter() - begin, count)}


def compare_with_arrays(folder, count):
    """The time to detect from files, and from the same pictures in memory, in turn."""
    import frcnn

    picture = Picture(folder, USUAL_SIZE)
    detector = frcnn.detection_model(model_of(picture))
    sources = {"from files": [picture.path] * count, "from arrays": [picture.image] * count}
    times = {name: [] for name in sources}
    for turn in range(STEPS + 1):
        for name, images in sources.items():
            begin = time.perf_counter()
            frcnn.detect(detector, images, batch_size=4)
            if turn:  # the first compiles
                times[name].append(time.perf_counter() - begin)
    return {name: (statistics.median(seconds), count) for name, seconds in times.items()}


if __name__ == "__main__":
    sys.exit(main())
