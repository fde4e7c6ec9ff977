"""Blood cells from scratch, ResNet-18 FPN, beside torchvision's: `python -m benchmarks.bccd FOLDER --peer PYTHON`.

FOLDER holds BCCD with trainval.txt and test.txt; PYTHON is the interpreter of an environment with torch and
torchvision. Each contestant is a process of its own. They take turns of `--every` pictures of training, so that what
else the machine does falls on all alike, and are then scored on the test pictures. The time of a mark is the number of
pictures times the median of what a step took, reading included and scoring not: a disturbed hour does not make a slow
contestant. Ours is `config/bccd_fpn.yaml`. torchvision's network is the same one, with trained batch normalisation, the
same anchors, pictures, flips, batch size, learning rate, warm-up and weight decay; the rate stays constant unless
`--peer-decay` gives it our cosine over its own pictures; the rest are its defaults.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

RECIPE = "config/bccd_fpn.yaml"


def main():
    """Start the contestants of each seed, let them take turns, print their curves and the means."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="the data set, with trainval.txt and test.txt")
    parser.add_argument("--peer", metavar="PYTHON", help="interpreter of an environment with torch and torchvision")
    parser.add_argument("--peer-pictures", type=int, default=1300, help="that torchvision trains on (default: 1300)")
    parser.add_argument("--peer-decay", action="store_true", help="let torchvision's learning rate decay")
    parser.add_argument("--every", type=int, default=160, help="pictures between scores (default: 160)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="default: 0 1 2")
    parser.add_argument("--peer-seeds", type=int, nargs="*", help="torchvision's (default: the same)")
    parser.add_argument("--json", metavar="FILE", help="write the curves")
    parser.add_argument("overrides", nargs="*", metavar="FIELD=VALUE", help="of our config")
    parser.add_argument("--contestant", help=argparse.SUPPRESS)
    arguments = parser.parse_intermixed_args()
    if arguments.contestant:
        return compete(arguments)
    contestants = [("frcnn", seed) for seed in arguments.seeds]
    if arguments.peer:
        peer_seeds = arguments.seeds if arguments.peer_seeds is None else arguments.peer_seeds
        contestants += [("torchvision", seed) for seed in peer_seeds]
    curves = {name: {} for name, _ in contestants}
    for seed in dict.fromkeys(seed for _, seed in contestants):  # of one seed at a time: memory
        processes = {name: start(name, seed, arguments) for name, own in contestants if own == seed}
        while processes:
            for name, process in list(processes.items()):
                score = turn(process)
                if score is None:
                    del processes[name]
                    continue
                curves[name].setdefault(seed, []).append(score)
                shown = "  ".join(f"{key} {score[key]:g}" for key in ("pictures", "minutes", "loss", "AP", "AP50"))
                print(f"{name:<12} seed {seed}  {shown}", flush=True)
                if arguments.json:
                    Path(arguments.json).write_text(json.dumps(curves, indent=1) + "\n")
    report(curves)
    return 0


def start(name, seed, arguments):
    """A contestant's process, which waits for its turn."""
    python = arguments.peer if name == "torchvision" else sys.executable
    options = ["--every", arguments.every, "--peer-pictures", arguments.peer_pictures, "--seeds", seed]
    options += ["--peer-decay"] * arguments.peer_decay + ["--contestant", name]
    command = [python, "-m", "benchmarks.bccd", arguments.folder, *arguments.overrides, *options]
    return subprocess.Popen(list(map(str, command)), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def turn(process):
    """The score after a contestant's next minutes, a dict; None when it has finished."""
    process.stdin.write("go\n")
    process.stdin.flush()
    line = process.stdout.readline()
    if not line:
        raise RuntimeError("a contestant ended early: its message is above")
    return json.loads(line)


def report(curves):
    """The means over the seeds at each mark."""
    for name, of_seed in curves.items():
        for scores in zip(*of_seed.values()):
            keys = ("pictures", "minutes", "AP", "AP50")
            pictures, minutes, ap, ap50 = (statistics.mean(score[key] for score in scores) for key in keys)
            mean = f"mean of {len(scores)} after {pictures:.0f} pictures, {minutes:.1f} minutes"
            print(f"{name:<12} {mean}: AP {ap:.3f}, AP50 {ap50:.3f}")


def compete(arguments):
    """Be a contestant: train until the next mark for every line that comes, and print the score."""
    import frcnn
    from frcnn.data.batches import plan_epoch, training_batches

    seed = arguments.seeds[0]
    config = frcnn.load_config(RECIPE, [f"train.seed={seed}", *arguments.overrides])
    records, class_names = frcnn.read_records(arguments.folder / "trainval.txt", format="simple")
    test, _ = frcnn.read_records(arguments.folder / "test.txt", format="simple", class_names=class_names)
    is_peer = arguments.contestant == "torchvision"
    pictures = arguments.peer_pictures if arguments.peer_decay else None
    peer = (config, class_names, pictures)
    train_step, find = torchvision_contestant(*peer) if is_peer else frcnn_contestant(config, class_names, records)
    batches, times, loss = training_batches(records, config, seed), [], float("nan")
    size, threshold = config.train.batch_size, config.data.repeat_threshold
    ours = config.train.epochs * plan_epoch(records, size, seed, 0, repeat_threshold=threshold).size
    limit = arguments.peer_pictures if is_peer else ours
    for _ in sys.stdin:
        goal = min(len(times) * size + arguments.every, limit)
        while len(times) * size < goal:
            begin = time.perf_counter()
            loss = train_step(next(batches)[0])
            times.append(time.perf_counter() - begin)
        result = frcnn.evaluate(test, find([record.path for record in test]), class_names, metric="coco").stats
        pace = statistics.median(times) / size
        score = {"pictures": len(times) * size, "pace": pace, "minutes": len(times) * size * pace / 60, "loss": loss}
        print(json.dumps({name: round(value, 4) for name, value in (score | result).items()}), flush=True)
        if goal == limit:
            break
    print("null", flush=True)
    return 0


def frcnn_contestant(config, class_names, records):
    """Our step on a batch, which gives the loss, and our detection of paths."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import frcnn
    from frcnn.machine import keep_freed_memory
    from frcnn.training import build_model, compile_model

    keep_freed_memory()  # as the commands do
    model = build_model(config, class_names)
    compile_model(model, records)
    detector = frcnn.detection_model(model)
    return lambda batch: float(model.train_on_batch(batch)[0]), lambda paths: frcnn.detect(detector, paths)


def torchvision_contestant(config, class_names, decay_over):
    """The same by torchvision, in bfloat16 where the processor has it; decay_over: pictures, or None."""
    import torch
    from torchvision.models.detection import FasterRCNN
    from torchvision.models.detection.anchor_utils import AnchorGenerator
    from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

    from frcnn.data.images import read_image
    from frcnn.records import Detections

    settings = config.train
    torch.manual_seed(settings.seed)
    network = resnet_fpn_backbone(
        backbone_name="resnet18", weights=None, norm_layer=torch.nn.BatchNorm2d, trainable_layers=5
    )
    sizes, ratios = config.model.anchor_sizes, config.model.anchor_ratios
    anchors = AnchorGenerator(tuple((size,) for size in sizes), (tuple(ratios),) * len(sizes))
    limits = {"min_size": config.data.im_size, "max_size": config.data.max_size}
    model = FasterRCNN(network, len(class_names) + 1, rpn_anchor_generator=anchors, **limits)
    optimizer = torch.optim.SGD(
        model.parameters(), settings.learning_rate, settings.momentum, weight_decay=settings.weight_decay
    )
    flags = Path("/proc/cpuinfo").read_text(encoding="utf-8").split()
    autocast = torch.autocast("cpu", torch.bfloat16, enabled="amx_bf16" in flags or "avx512_bf16" in flags)
    step = 0

    def train_step(batch):
        nonlocal step
        step += 1
        progress = step * settings.batch_size / decay_over if decay_over else 0.0
        rate = 0.5 * (1 + math.cos(math.pi * progress)) * min(1.0, step / settings.warmup_steps)
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * rate
        images, targets = [], []
        for image, (height, width), boxes, labels in zip(
            *(batch[name] for name in ("images", "image_sizes", "gt_boxes", "gt_labels"))
        ):
            images.append(as_tensor(image[:height, :width]))
            real = labels >= 0
            labels = torch.from_numpy(labels[real].astype(np.int64)) + 1
            targets.append({"boxes": torch.from_numpy(boxes[real]), "labels": labels})
        optimizer.zero_grad()
        with autocast:
            loss = sum(model.train()(images, targets).values())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip_norm)
        optimizer.step()
        return float(loss.detach())

    def as_tensor(image):
        return torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1).float() / 255

    def find(paths):
        found = []
        for path in paths:
            image = read_image(path)
            with torch.inference_mode(), autocast:
                result = model.eval()([as_tensor(image)])[0]
            boxes, scores, labels = (result[name].float().numpy() for name in ("boxes", "scores", "labels"))
            found.append(Detections(boxes, scores, labels.astype(int) - 1, class_names, path, image.shape[:2]))
        return found

    return train_step, find


if __name__ == "__main__":
    sys.exit(main())
