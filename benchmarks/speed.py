"""How fast, and how near to what the machine can do: `python -m benchmarks.speed --peer PYTHON`.

ResNet-50, one picture of 600x800, 10 boxes, 20 classes, frozen statistics, all stages trainable, momentum SGD, random
weights; detection is from the file to the boxes. Each contestant is a process of its own, so that torchvision may live
in an environment of its own (PYTHON is that environment's interpreter), and they do one thing each in turn. A row gives
the median and the spread of the times, and of the medians:

  use     multiply-adds x 2 (x 3 in training) / time / the rate of the matrix product of that precision, timed in turn
  floor   how many times the floor: the same network's layers with weights, activations and the update alone
  / ours  how many times as fast as it each of ours is
  peak    of the process's memory, GB

`--parts` adds what each step of the network takes: differences between the network up to it and up to the one before.
KERAS_BACKEND chooses the backend; TensorFlow need not be there.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

BOXES, CLASSES, SIDE = 10, 20, 2048  # SIDE: of the matrices
FEWER = ["roi.samples=32"]  # as many RoIs as keras-frcnn trains on
OURS = {
    f"{name} {precision}": (f"config/resnet50_{name.split(',')[0]}.yaml", [*changes, f"train.precision={precision}"])
    for name, changes in (("c4", []), ("c4, 32 RoIs", FEWER), ("fpn", []))
    for precision in ("float32", "bfloat16")
}
PEERS = ("torchvision fpn float32", "torchvision fpn float32 channels_last", "torchvision fpn bfloat16 channels_last")
FLOOR, PRODUCT = "floor of ", "matrix product "
TASKS = {"train": "training step", "detect": "detection"}


def main():
    """Start the contestants, let them take turns, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", metavar="PYTHON", help="interpreter of an environment with torch and torchvision")
    parser.add_argument("--only", nargs="+", metavar="WORD", help="detectors whose names hold one of these")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--parts", action="store_true", help="print what each step of our networks takes")
    parser.add_argument("--rounds", type=int, default=7, help="turns of each (default: 7)")
    parser.add_argument(
        "--size", type=int, nargs=2, default=[600, 800], metavar=("HEIGHT", "WIDTH"), help="of the picture"
    )
    parser.add_argument("--batch", type=int, default=1, help="pictures in a step (default: 1)")
    parser.add_argument("--json", metavar="FILE", help="write all that was measured, times in seconds")
    parser.add_argument("--contestant", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.contestant:
        return take_turns(*arguments.contestant.split(" ", 1), arguments)
    names = [*OURS, *(PEERS if arguments.peer else ())]
    names = [name for name in names if not arguments.only or any(word in name for word in arguments.only)]
    results = {}
    for task in arguments.tasks:  # one task after the other: fewer processes hold memory at a time
        results[task] = measure(task, names, arguments)
        report(TASKS[task], results[task])
        for name in names if arguments.parts else ():
            if name in OURS:
                results[task][f"parts of {name}"] = parts = measure_parts(task, name, arguments)
                report_parts(f"{TASKS[task]}, {name}", parts)
        if arguments.json:
            Path(arguments.json).write_text(json.dumps(results, indent=1) + "\n")
    return 0


def measure(task, names, arguments):
    """{contestant: {"seconds": [...], "flop": of one step or None, "peak": bytes}}, in turns."""
    ours = [name for name in names if name in OURS]
    products = dict.fromkeys(PRODUCT + name.split()[-1] for name in ours)
    contestants = [*products, *names, *(FLOOR + name for name in ours)]
    processes = {name: start(f"{task} {name}", arguments) for name in contestants}
    results = {name: {"seconds": [], "flop": ready["flop"]} for name, (_, ready) in processes.items()}
    for _ in range(arguments.rounds):
        for name, (process, _) in processes.items():
            results[name]["seconds"].append(ask(process))
    for name, (process, _) in processes.items():
        results[name]["peak"] = json.loads(process.communicate("")[0])
    return results


def measure_parts(task, name, arguments):
    """{step: [seconds, ...]} of one of ours."""
    process, _ = start(f"{task} parts of {name}", arguments)
    rounds = [ask(process) for _ in range(arguments.rounds)]
    process.communicate("")
    return {part: [times[part] for times in rounds] for part in rounds[0]}


def start(contestant, arguments):
    """A contestant's process, warmed up, and what it says of itself."""
    python = arguments.peer if contestant.partition(" ")[2] in PEERS else sys.executable
    options = ["--size", *map(str, arguments.size), "--batch", str(arguments.batch)]
    command = [python, "-m", "benchmarks.speed", "--contestant", contestant, *options]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True)
    line = process.stdout.readline()
    if not line:
        raise SystemExit(f"{contestant} did not start; to see why: {' '.join(command[:4])} '{contestant}'")
    return process, json.loads(line)


def ask(process):
    """What one turn of a contestant gave."""
    process.stdin.write("go\n")
    process.stdin.flush()
    return json.loads(process.stdout.readline())


def report(title, results):
    """Print a task's rows."""
    medians = {name: statistics.median(result["seconds"]) for name, result in results.items()}
    rates = {name.split()[-1]: results[name]["flop"] / medians[name] for name in results if name.startswith(PRODUCT)}
    for precision, rate in rates.items():
        print(f"\n{PRODUCT}{precision}: {rate / 1e9:.0f} GFLOP/s", end="")
    ours = [name for name in medians if name in OURS]
    print(f"\n{title:<44}{'median':>9}{'spread':>16}{'use':>7}{'floor':>7}{'peak':>7}  ", end="")
    print("  ".join(f"/ {name}" for name in ours))
    for name in (name for name in results if not name.startswith(PRODUCT)):
        seconds, flop, median = results[name]["seconds"], results[name]["flop"], medians[name]
        use = f"{flop / median / rates[name.split()[-1]]:.2f}" if flop else ""
        floor = f"{median / medians[FLOOR + name]:.2f}" if FLOOR + name in medians else ""
        ratios = "".join(f"{median / medians[own]:>{len(own) + 2}.2f}  " for own in ours)
        spread = f"{min(seconds):>8.3f}-{max(seconds):.3f}"
        peak = results[name]["peak"] / 1e9
        print(f"{name:<44}{median:>7.3f} s{spread:>16}{use:>7}{floor:>7}{peak:>7.1f}  {ratios}", flush=True)


def report_parts(title, parts):
    """Print the steps of a network in milliseconds and per cent of their sum."""
    medians = {part: statistics.median(seconds) for part, seconds in parts.items()}
    whole = sum(seconds for part, seconds in medians.items() if not part.endswith("beside"))
    print(f"\n{title:<44}{'ms':>9}{'':>4}%")
    for part, seconds in medians.items():
        print(f"  {part:<42}{1000 * seconds:>9.1f}{100 * seconds / whole:>5.0f}", flush=True)


def take_turns(task, name, arguments):
    """Be a contestant: build, warm up, then one step for every line that comes; say the peak of memory in the end."""
    make = next(
        (make for start, make in ((PRODUCT, product_step), ("parts of ", parts_step)) if name.startswith(start)),
        torchvision_step if name in PEERS else frcnn_step,
    )
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with tempfile.TemporaryDirectory() as folder:
        step, flop = make(task, name, Picture(folder, arguments.size, arguments.batch))
        for _ in range(2):
            step()
        print(json.dumps({"flop": flop}), flush=True)
        for _ in sys.stdin:
            begin = time.perf_counter()
            parts = step()
            seconds = time.perf_counter() - begin
            print(json.dumps(parts if isinstance(parts, dict) else seconds), flush=True)
    print(1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    return 0


class Picture:
    """The picture of all: `path` of a PNG, `image` (H, W, 3) uint8, `boxes` (G, 4) float32, `labels` (G,) int from 0.

    `count`: how many times it stands in a batch; `classes`: how many there are.
    """

    def __init__(self, folder, size, count=1, boxes=BOXES, classes=CLASSES):
        import cv2

        generator, (height, width) = np.random.default_rng(0), size
        corners = generator.uniform(0, (width * 0.75, height * 0.65), (boxes, 2))
        sides = generator.uniform(0.05, 0.25, (boxes, 2)) * (width, height)
        self.boxes = np.concatenate([corners, corners + sides], 1).astype(np.float32)
        self.image = cv2.GaussianBlur(generator.integers(0, 256, (height, width, 3), dtype=np.uint8), (0, 0), 3)
        self.labels = generator.integers(0, classes, boxes)
        self.path, self.count, self.classes = str(Path(folder, "picture.png")), count, classes
        cv2.imwrite(self.path, self.image[..., ::-1])


def product_step(_, name, __):
    """A product of two square matrices."""
    from keras import ops, random

    dtype = name.split()[-1]
    left, right = (ops.cast(random.normal((SIDE, SIDE), seed=seed), dtype) for seed in range(2))
    return lambda: ops.convert_to_numpy(ops.matmul(left, right)[:1, :1]), 2 * SIDE**3


def frcnn_step(task, name, picture):
    """Ours, as `fit` or `detect` take it: a training step on a padded batch, or pictures from files to boxes."""
    import frcnn
    from benchmarks import parts

    model = our_model(*OURS[name.removeprefix(FLOOR)], picture)
    factor = 6 if task == "train" else 2
    flop = factor * picture.count * parts.multiply_adds(model, task, *picture.image.shape[:2])
    if name.startswith(FLOOR):
        return step_of(parts.floor(model, task), task, model.config, our_batch(picture, model, task)), flop
    if task == "detect":
        detector = frcnn.detection_model(model)
        return lambda: frcnn.detect(detector, [picture.path] * picture.count), flop
    return step_of(model, task, model.config, our_batch(picture, model, task)), flop


def our_model(recipe, changes, picture):
    """The training model of a recipe with some fields changed, which sees a picture at its own size."""
    import frcnn
    from frcnn.machine import keep_freed_memory

    keep_freed_memory()  # as the commands do

    height, width = picture.image.shape[:2]
    size = [f"data.im_size={min(height, width)}", f"data.max_size={max(height, width)}"]
    changes = [*changes, *size, "model.weights=none", "model.norm=frozen", f"detect.batch_size={picture.count}"]
    changes.append("train.learning_rate=1e-9")  # so that all steps, and all parts, compute the same
    return frcnn.build_detector(frcnn.load_config(recipe, changes), [f"class{k}" for k in range(picture.classes)])


def our_batch(picture, model, task):
    """Of the pictures, with what the floor and the parts take besides."""
    from benchmarks import parts
    from frcnn.data.batches import pad_images

    count, generator = picture.count, np.random.default_rng(0)
    shapes = parts.given_shapes(model, task) | parts.map_shapes(model, *picture.image.shape[:2])
    given = {name: (count, *shape) for name, shape in shapes.items()}
    return {name: generator.normal(size=shape).astype(np.float32) for name, shape in given.items()} | {
        "images": pad_images([picture.image] * count),
        "image_sizes": np.array([picture.image.shape[:2]] * count, np.int32),
        "gt_boxes": np.stack([picture.boxes] * count),
        "gt_labels": np.stack([picture.labels] * count).astype(np.int32),
        "sampling_seeds": np.arange(count, dtype=np.int32),
    }


def step_of(model, task, config, batch):
    """A training step of a model, or a prediction, on what it takes of a batch."""
    from frcnn.optimizer import build_optimizer

    batch = {name: batch[name] for name in model.input} if isinstance(model.input, dict) else np.zeros((1, 1))
    if task == "detect":
        return lambda: model.predict_on_batch(batch)
    model.compile(build_optimizer(config.train, 1000))
    return lambda: model.train_on_batch(batch)


def parts_step(task, name, picture):
    """Every part of one of ours, one after the other: the step gives their seconds.

    Each is the time of the network up to it without that of the one before. A part of a training step holds its forward
    and its backward pass; the update, timed alone, is taken off each by its share of the variables.
    """
    from benchmarks import parts
    from frcnn.data.batches import make_batch
    from frcnn.inference import _prepare
    from frcnn.records import ImageRecord

    model = our_model(*OURS[name.removeprefix("parts of ")], picture)
    config, batch = model.config, our_batch(picture, model, task)
    models, steps = dict(parts.stages(model, task)), {}
    if task == "train":
        record = ImageRecord(picture.path, picture.image.shape[:2], picture.boxes, picture.labels)
        steps["input, in threads beside"] = lambda: make_batch([record] * picture.count, config, 0, 0, 0)
        steps["optimizer"] = step_of(parts.optimizer(model), task, config, batch)
    else:
        steps["input, in threads beside"] = lambda: [_prepare(picture.path, config.data) for _ in range(picture.count)]
    steps |= {part: step_of(own, task, config, batch) for part, own in models.items()}
    weights = {part: own.count_params() if task == "train" else 0 for part, own in models.items()}

    def step():
        seconds, before, result = {}, 0.0, {}
        for part, run in steps.items():
            begin = time.perf_counter()
            run()
            seconds[part] = time.perf_counter() - begin
        for part in models:
            update = seconds.get("optimizer", 0.0) * weights[part] / model.count_params()
            result[part] = seconds[part] - update - before
            before = seconds[part] - update if part != "backbone" else 0.0
        del result["given maps"]
        return result | {part: time_of for part, time_of in seconds.items() if part not in models}

    return step, None


def torchvision_step(task, name, picture):
    """The same by torchvision, with its default proposals and samples."""
    import cv2
    import torch
    from torchvision.models.detection import FasterRCNN
    from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
    from torchvision.ops.misc import FrozenBatchNorm2d

    device = "cuda" if torch.cuda.is_available() else "cpu"
    height, width = picture.image.shape[:2]
    backbone = {"weights": None, "norm_layer": FrozenBatchNorm2d, "trainable_layers": 5}
    network = resnet_fpn_backbone(backbone_name="resnet50", **backbone)
    size = {"min_size": min(height, width), "max_size": max(height, width)}
    model = FasterRCNN(network, CLASSES + 1, **size).train(task == "train")
    layout = torch.channels_last if "channels_last" in name else torch.contiguous_format
    model = model.to(device, memory_format=layout)
    target = {"boxes": torch.from_numpy(picture.boxes), "labels": torch.from_numpy(picture.labels) + 1}
    target = {key: tensor.to(device) for key, tensor in target.items()}
    autocast = torch.autocast(device, torch.bfloat16, enabled="bfloat16" in name)
    optimizer = torch.optim.SGD(model.parameters(), 1e-4, momentum=0.9, weight_decay=1e-4)

    def as_tensor(image):
        return torch.from_numpy(image).to(device).permute(2, 0, 1).float() / 255

    def train():
        optimizer.zero_grad()
        with autocast:
            losses = model([as_tensor(picture.image)] * picture.count, [target] * picture.count)
            loss = sum(losses.values())
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    def detect():
        images = [cv2.cvtColor(cv2.imread(picture.path), cv2.COLOR_BGR2RGB) for _ in range(picture.count)]
        with torch.inference_mode(), autocast:
            found = model([as_tensor(image) for image in images])
        return [result["boxes"].float().cpu().numpy() for result in found]

    return (train if task == "train" else detect), None


if __name__ == "__main__":
    sys.exit(main())
