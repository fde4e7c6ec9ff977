"""Draw a small detection data set: circles, squares and triangles on textured backgrounds, with their boxes.

It is what `make demo` trains on: no network, the same files for the same seed. As with real things, outline and hue
tell the class; shade, texture, size, place and background do not. Shapes overlap and leave the picture, but most of
each stays visible.
"""

import argparse
import sys
from pathlib import Path

import cv2
import numpy as np

HUES = {"circle": (50, 60, 230), "square": (70, 200, 50), "triangle": (235, 90, 70)}  # BGR, as OpenCV writes them
CLASS_NAMES = tuple(HUES)
SMALLEST, LARGEST = 28, 140  # side of a shape's box before rotation, pixels
MOST_SHAPES = 5
LEAST_VISIBLE = 0.8  # of a shape's area, after what covers it and what lies outside the picture
EMPTY_EVERY = 25  # one picture in so many holds no shape
JPEG_QUALITY = 90


def main(argv=None):
    """Write OUT/train, OUT/test and their annotation files."""
    arguments = parse_arguments(argv)
    for split, (name, count) in enumerate((("train", arguments.train), ("test", arguments.test))):
        boxes = draw_split(arguments.out, name, count, [arguments.seed, split])
        print(f"{arguments.out / name}.txt: {count} pictures, {boxes} shapes")
    return 0


def parse_arguments(argv):
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        epilog="example: python examples/draw_shapes.py demo/shapes --train 300 --test 60",
    )
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write into; made when missing")
    parser.add_argument("--train", type=int, default=300, help="pictures to train on (default: 300)")
    parser.add_argument("--test", type=int, default=60, help="pictures to test on (default: 60)")
    parser.add_argument("--seed", type=int, default=0, help="same seed, same pictures (default: 0)")
    arguments = parser.parse_args(argv)
    for name in ("train", "test", "seed"):
        if getattr(arguments, name) < 0:
            parser.error(f"--{name} ({getattr(arguments, name)}) must be at least 0")
    return arguments


def draw_split(out, name, count, seed):
    """Draw OUT/name/*.jpg and OUT/name.txt, whose paths are relative to it; return the number of boxes.

    A line is `filepath,x1,y1,x2,y2,class_name`, or `filepath,,,,,` for a picture without shapes.
    """
    (out / name).mkdir(parents=True, exist_ok=True)
    lines, boxes = [], 0
    for index in range(count):
        empty = index % EMPTY_EVERY == EMPTY_EVERY - 1
        image, annotations = draw_picture(np.random.default_rng([*seed, index]), empty)
        path = f"{name}/{index:05d}.jpg"
        write_jpeg(out / path, image)
        lines += [f"{path},{x1},{y1},{x2},{y2},{shape}" for (x1, y1, x2, y2), shape in annotations] or [f"{path},,,,,"]
        boxes += len(annotations)
    (out / f"{name}.txt").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return boxes


def write_jpeg(path, image):
    """Write an (H, W, 3) uint8 picture; unlike cv2.imwrite, fail loudly and take any path."""
    _, encoded = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    path.write_bytes(encoded.tobytes())


def draw_picture(rng, empty=False):
    """An (H, W, 3) uint8 picture and its [((x1, y1, x2, y2), class name)], boxes half-open, inside the picture."""
    longer, shorter = rng.integers(224, 289), rng.integers(168, 217)
    height, width = (longer, shorter) if rng.random() < 0.35 else (shorter, longer)
    image = texture(rng, height, width, background_colour(rng))
    placed = []  # (visible mask, area, box, class name), the lowest first
    wanted = 0 if empty else rng.integers(1, MOST_SHAPES + 1)
    for _ in range(wanted):
        place_shape(rng, image, placed)
    if not empty and not placed:
        return draw_picture(rng)
    image += rng.normal(0, rng.uniform(1, 6), image.shape)  # the grain of a camera
    return np.clip(image, 0, 255).astype(np.uint8), [(box, name) for _, _, box, name in placed]


def place_shape(rng, image, placed):
    """Draw one more shape on `image`, unless it or one that it covers would be seen too little."""
    height, width = image.shape[:2]
    name = CLASS_NAMES[rng.integers(len(CLASS_NAMES))]
    corners = outline(rng, name) + rng.uniform((0, 0), (width, height))
    alpha = coverage(corners, height, width)
    mask, area = alpha > 0.5, cv2.contourArea(corners.astype(np.float32))
    remaining = [visible & ~mask for visible, _, _, _ in placed]
    if mask.sum() < LEAST_VISIBLE * area or any(
        visible.sum() < LEAST_VISIBLE * full for visible, (_, full, _, _) in zip(remaining, placed)
    ):
        return
    fill = texture(rng, height, width, contrasting_colour(rng, name, image[mask].mean(axis=0)))
    image += alpha[..., None] * (fill - image)
    placed[:] = [(visible, *rest) for visible, (_, *rest) in zip(remaining, placed)]
    placed.append((mask, area, tight_box(mask), name))


def outline(rng, name):
    """Corners (N, 2) float64 of a shape around (0, 0), with random size and rotation."""
    if name == "circle":
        angles = np.linspace(0, 2 * np.pi, 96, endpoint=False)
        corners = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    elif name == "square":
        corners = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)], float)
    else:
        corners = np.array([(0, -1), (1, 0.75), (-1, 0.75)])
    size = np.exp(rng.uniform(np.log(SMALLEST), np.log(LARGEST)))
    turn = np.radians(rng.uniform(-25, 25))
    rotation = np.array([(np.cos(turn), -np.sin(turn)), (np.sin(turn), np.cos(turn))])
    return corners @ rotation.T * size / 2


def coverage(corners, height, width):
    """(H, W) float32 in 0..1: how much of each pixel the polygon covers."""
    canvas = np.zeros((height, width), np.uint8)
    cv2.fillPoly(canvas, [np.round(corners * 16).astype(np.int32)], 255, lineType=cv2.LINE_AA, shift=4)
    return canvas.astype(np.float32) / 255


def tight_box(mask):
    """(x1, y1, x2, y2), half-open, of the true pixels."""
    columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def background_colour(rng):
    """(3,) float64, 0-255: a grey with a tint."""
    return rng.uniform(40, 215) + rng.uniform(-25, 25, 3)


def contrasting_colour(rng, name, other):
    """(3,) float64, 0-255: of a few shades of the class's hue, the one that differs most from `other`."""
    shades = np.array(HUES[name]) * rng.uniform(0.5, 1.0, (4, 1)) + rng.uniform(-25, 25, (4, 3))
    return shades[np.abs(shades - other).mean(axis=1).argmax()]


def texture(rng, height, width, colour):
    """(H, W, 3) float32: `colour` with a gradient, stripes, blotches or nothing on it."""
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    angle = rng.uniform(0, np.pi)
    along = columns * np.cos(angle) + rows * np.sin(angle)
    kind = rng.integers(4)
    if kind == 0:
        pattern = along / np.abs(along).max() * 2 - 1
    elif kind == 1:
        pattern = np.sin(along * 2 * np.pi / rng.uniform(6, 40))
    elif kind == 2:
        cells = rng.uniform(-1, 1, (int(rng.integers(3, 25)), int(rng.integers(3, 25))))
        pattern = cv2.resize(cells, (int(width), int(height)), interpolation=cv2.INTER_CUBIC)
    else:
        pattern = np.zeros((height, width))
    strength = rng.uniform(-30, 30, 3)
    return (colour + pattern[..., None] * strength).astype(np.float32)


if __name__ == "__main__":
    sys.exit(main())
