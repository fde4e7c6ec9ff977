"""The smallest detector and pictures that the tests of models, training and commands share."""

import cv2
import numpy as np

from frcnn.config import load_config
from frcnn.records import ImageRecord

CLASS_NAMES = ("tall", "wide")
SIZE = 64
# A bright rectangle of each shape on dark noise: (class, box), two pictures with one and two objects, one with none.
SCENES = (
    ((0, (10, 4, 26, 56)), (1, (30, 34, 62, 50))),
    ((1, (8, 20, 56, 40)),),
    (),
    ((0, (40, 6, 58, 58)),),
)
OVERRIDES = [
    "data.im_size=64",
    "data.max_size=64",
    "data.horizontal_flip=false",
    "data.workers=1",
    "model.depth=18",
    "model.anchor_sizes=[20,36]",
    "model.rpn_channels=16",
    "model.roi_pool_size=2",
    "rpn.samples=32",
    "rpn.train_pre_nms=64",
    "rpn.train_post_nms=24",
    "rpn.test_pre_nms=64",
    "rpn.test_post_nms=16",
    "roi.samples=16",
    "roi.positive_fraction=0.5",
    "detect.max_detections=10",
    "train.batch_size=2",
    "train.learning_rate=0.01",
    "train.precision=float32",
]


def tiny_config(*overrides):
    return load_config(None, [*OVERRIDES, *overrides])


def draw_scene(objects, seed=0):
    image = np.random.default_rng(seed).integers(20, 60, (SIZE, SIZE, 3), dtype=np.uint8)
    for _, (x1, y1, x2, y2) in objects:
        image[y1:y2, x1:x2] = (230, 200, 60)
    return image


def tiny_images(count=2):
    return [draw_scene(objects, seed) for seed, objects in enumerate(SCENES[:count])]


def tiny_batch(count=2, seed=0, slots=8):
    """What the data pipeline gives for the first scenes: a dict of arrays."""
    boxes, labels = np.zeros((count, slots, 4), np.float32), np.full((count, slots), -1, np.int32)
    for picture, objects in enumerate(SCENES[:count]):
        for slot, (label, box) in enumerate(objects):
            boxes[picture, slot], labels[picture, slot] = box, label
    return {
        "images": np.stack(tiny_images(count)),
        "image_sizes": np.full((count, 2), SIZE, np.int32),
        "gt_boxes": boxes,
        "gt_labels": labels,
        "sampling_seeds": np.arange(count, dtype=np.int32) + seed * count,
    }


def write_tiny_pictures(folder, count=4):
    """Draw the scenes as PNG files and return their records."""
    folder.mkdir(parents=True, exist_ok=True)
    records = []
    for index, objects in enumerate(SCENES[:count]):
        path = folder / f"{index}.png"
        cv2.imwrite(str(path), draw_scene(objects, index)[:, :, ::-1])
        boxes, labels = [box for _, box in objects], [label for label, _ in objects]
        records.append(ImageRecord(str(path), (SIZE, SIZE), np.array(boxes, np.float32).reshape(-1, 4), labels))
    return records
