"""How far `frcnn.memory.estimate` is from what training takes: `python -m benchmarks.memory [NAME ...]`.

Each case is a process of its own that trains three steps on a picture of noise, float32, from random weights, and then
validates on four, and says how much it held at most (VmHWM of /proc/self/status, Linux). The largest takes 11 GB.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

STEPS, BOXES, CLASS_NAMES = 3, 12, tuple("abcdef")
LARGE = ["data.im_size=600", "data.max_size=1000"]
CASES = {  # name: (config, (height, width) of the picture, overrides)
    "demo": ("demo", (192, 256), []),
    "bccd": ("bccd", (480, 640), []),
    "cards": ("cards", (504, 672), []),
    "bccd_fpn": ("bccd_fpn", (480, 640), []),
    **{
        f"{name}, {batch} x 600x800": (name, (600, 800), [*LARGE, f"train.batch_size={batch}"])
        for name in ("resnet50_c4", "resnet50_fpn")
        for batch in (1, 2)
    },
}


def main():
    """Measure the cases that are named, or all, one after the other, and print the table."""
    print(f"{'':<28}{'estimate':>10}{'training':>10}{'and validation':>16}{'ratio':>7}")
    for name in sys.argv[1:] or CASES:
        runs = [
            subprocess.run(
                [sys.executable, "-m", "benchmarks.memory", "--measure", name, str(validation)],
                check=True,
                capture_output=True,
                text=True,
            )
            for validation in (0, 4)
        ]
        (_, training), (estimate, both) = (json.loads(run.stdout.splitlines()[-1]) for run in runs)
        ratio = estimate / max(training, both)
        print(f"{name:<28}{estimate:>10.2f}{training:>10.2f}{both:>16.2f}{ratio:>7.2f}", flush=True)
    return 0


def measure(name, validation):
    """Train in this process, and print the estimate and the peak in GB."""
    import cv2
    import numpy as np

    from frcnn import load_config
    from frcnn.machine import keep_freed_memory
    from frcnn.memory import estimate
    from frcnn.records import ImageRecord
    from frcnn.training import build_model, train_model

    keep_freed_memory()  # as the commands do
    file, size, overrides = CASES[name]
    settings = ["model.weights=none", "train.precision=float32", "train.epochs=1", *overrides]
    config = load_config(f"config/{file}.yaml", settings)
    generator = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder, "noise.jpg"))
        cv2.imwrite(path, generator.integers(0, 256, (*size, 3), dtype=np.uint8))
        records = []
        for _ in range(STEPS * config.train.batch_size + validation):
            corners = generator.uniform(0, 0.6, (BOXES, 2))
            boxes = np.concatenate([corners, corners + generator.uniform(0.15, 0.35, (BOXES, 2))], 1) * [
                *size[::-1],
                *size[::-1],
            ]
            records.append(ImageRecord(path, size, boxes, generator.integers(0, len(CLASS_NAMES), BOXES)))
        held_out, records = records[:validation], records[validation:]
        model = build_model(config, CLASS_NAMES)
        expected = estimate(model, records, held_out)
        train_model(model, records, validation=held_out, output=Path(folder, "run"), verbose=0)
    status = Path("/proc/self/status").read_text().splitlines()
    peak = next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))
    print(json.dumps([expected / 1e9, peak / 1e9]))


if __name__ == "__main__":
    sys.exit(measure(sys.argv[2], int(sys.argv[3])) if sys.argv[1:2] == ["--measure"] else main())
