"""Training steps and detections beside torchvision's, taking turns: `python -m benchmarks.speed --peer PYTHON`.

Each contestant is a process of its own, so that torchvision may live in an environment of its own (PYTHON is that
environment's interpreter). All work on the same 600x800 picture with the same boxes: ResNet-50, one picture, frozen
statistics, all stages trainable, momentum SGD. They do one thing each in turn; a row gives the median and the spread,
and how many times as fast as it each of ours is.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

import numpy as np

HEIGHT, WIDTH, BOXES, CLASSES = 600, 800, 10, 20
OURS = ("c4 float32", "c4 bfloat16", "fpn float32", "fpn bfloat16")
PEERS = ("torchvision fpn float32", "torchvision fpn float32 channels_last", "torchvision fpn bfloat16 channels_last")
TASKS = ("train", "detect")


def main():
    """Start the contestants, let them take turns, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", metavar="PYTHON", help="interpreter of an environment with torch and torchvision")
    parser.add_argument("--only", nargs="+", metavar="WORD", help="contestants whose names hold one of these")
    parser.add_argument("--rounds", type=int, default=7, help="turns of each (default: 7)")
    parser.add_argument("--json", metavar="FILE", help="write every time, in seconds")
    parser.add_argument("--contestant", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.contestant:
        return take_turns(arguments.contestant)
    names = [*OURS, *(PEERS if arguments.peer else ())]
    names = [name for name in names if not arguments.only or any(word in name for word in arguments.only)]
    times = {task: {name: [] for name in names} for task in TASKS}
    for task in TASKS:  # one task after the other: fewer processes hold memory at a time
        contestants = {name: start(name, task, arguments.peer) for name in names}
        for _ in range(arguments.rounds):
            for name, process in contestants.items():
                times[task][name].append(turn(process))
        for process in contestants.values():
            process.communicate("")
        report(task, times[task])
    if arguments.json:
        with open(arguments.json, "w", encoding="utf-8") as file:
            json.dump(times, file, indent=1)
    return 0


def start(name, task, peer):
    """A contestant's process, warmed up."""
    python = peer if name in PEERS else sys.executable
    command = [python, "-m", "benchmarks.speed", "--contestant", f"{task} {name}"]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True)
    if process.stdout.readline() != "ready\n":
        raise RuntimeError(f"{' '.join(command)} did not start: run it by hand to see why")
    return process


def turn(process):
    """Seconds that one step of a contestant took."""
    process.stdin.write("go\n")
    process.stdin.flush()
    return float(process.stdout.readline())


def report(task, times):
    """Print a task's rows: medians, spread, and the ratio of each peer's median to each of ours."""
    medians = {name: statistics.median(seconds) for name, seconds in times.items()}
    ours = [name for name in medians if name in OURS]
    print(f"\n{task:<44}{'median':>9}{'spread':>16}  " + "  ".join(f"/ {name}" for name in ours))
    for name, seconds in times.items():
        ratios = "".join(f"{medians[name] / medians[own]:>{len(own) + 2}.2f}  " for own in ours)
        print(f"{name:<44}{medians[name]:>7.3f} s{min(seconds):>8.3f}-{max(seconds):.3f}  {ratios}", flush=True)


def take_turns(contestant):
    """Be a contestant: build, warm up, then one step for every line that comes."""
    task, _, name = contestant.partition(" ")
    step = torchvision_step(name, task) if name in PEERS else frcnn_step(name, task)
    for _ in range(2):
        step()
    print("ready", flush=True)
    for _ in sys.stdin:
        begin = time.perf_counter()
        step()
        print(time.perf_counter() - begin, flush=True)
    return 0


def picture():
    """The picture (H, W, 3) uint8, its boxes (G, 4) float32 and labels (G,) int, from 0."""
    generator = np.random.default_rng(0)
    corners = generator.uniform(0, (WIDTH - 200, HEIGHT - 200), (BOXES, 2))
    boxes = np.concatenate([corners, corners + generator.uniform(40, 200, (BOXES, 2))], 1).astype(np.float32)
    image = generator.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    return image, boxes, generator.integers(0, CLASSES, BOXES)


def frcnn_step(name, task):
    """One of our steps, as `fit` or `detect` take it: a training step on a padded batch, or a picture to boxes."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import frcnn
    from frcnn.data.batches import pad_images
    from frcnn.training import build_optimizer

    architecture, precision = name.split()
    recipe = {"c4": "config/resnet50_c4.yaml", "fpn": "config/resnet50_fpn.yaml"}[architecture]
    changes = ["model.weights=none", "model.norm=frozen", f"train.precision={precision}"]
    config = frcnn.load_config(recipe, [*changes, f"data.im_size={HEIGHT}", f"data.max_size={WIDTH}"])
    model = frcnn.build_detector(config, [f"class{k}" for k in range(CLASSES)])
    image, boxes, labels = picture()
    if task == "detect":
        detector = frcnn.detection_model(model)
        return lambda: frcnn.detect(detector, image)
    batch = {
        "images": pad_images([image]),
        "image_sizes": np.array([[HEIGHT, WIDTH]], np.int32),
        "gt_boxes": boxes[None],
        "gt_labels": labels[None].astype(np.int32),
        "sampling_seeds": np.zeros(1, np.int32),
    }
    model.compile(build_optimizer(config.train, 1000))
    return lambda: model.train_on_batch(batch)


def torchvision_step(name, task):
    """The same by torchvision, with its default proposals and samples."""
    import torch
    from torchvision.models.detection import FasterRCNN
    from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
    from torchvision.ops.misc import FrozenBatchNorm2d

    backbone = {"weights": None, "norm_layer": FrozenBatchNorm2d, "trainable_layers": 5}
    network = resnet_fpn_backbone(backbone_name="resnet50", **backbone)
    model = FasterRCNN(network, CLASSES + 1, min_size=HEIGHT, max_size=WIDTH).train(task == "train")
    layout = torch.channels_last if "channels_last" in name else torch.contiguous_format
    model = model.to(memory_format=layout)
    image, boxes, labels = picture()
    pixels = torch.from_numpy(image).permute(2, 0, 1).float() / 255
    target = {"boxes": torch.from_numpy(boxes), "labels": torch.from_numpy(labels) + 1}
    autocast = torch.autocast("cpu", torch.bfloat16, enabled="bfloat16" in name)
    optimizer = torch.optim.SGD(model.parameters(), 1e-4, momentum=0.9, weight_decay=1e-4)

    def train():
        optimizer.zero_grad()
        with autocast:
            loss = sum(model([pixels], [target]).values())
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    def detect():
        with torch.inference_mode(), autocast:
            return model([pixels])[0]["boxes"].float().numpy()

    return train if task == "train" else detect


if __name__ == "__main__":
    sys.exit(main())
