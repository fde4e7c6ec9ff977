"""Augmentation as pure functions: what to do is an argument, chance lies with the caller.

`image` is (H, W, 3) uint8 RGB, `boxes` (G, 4) float32 xyxy pixels; both are returned new, with the same types.
"""

import cv2
import numpy as np

from frcnn.data.images import resize_image

_LEAST_LEFT = 0.5  # of a box's area: less of an object often does not tell what it is


def flip_horizontal(image, boxes):
    """Mirror left-right."""
    x1, y1, x2, y2 = boxes.T
    width = image.shape[1]
    return cv2.flip(image, 1), np.stack([width - x2, y1, width - x1, y2], axis=1)


def flip_vertical(image, boxes):
    """Mirror top-bottom."""
    x1, y1, x2, y2 = boxes.T
    height = image.shape[0]
    return cv2.flip(image, 0), np.stack([x1, height - y2, x2, height - y1], axis=1)


def rotate_90(image, boxes, turns):
    """Turn counter-clockwise by `turns` quarters (any integer), like `np.rot90`."""
    for _ in range(turns % 4):
        x1, y1, x2, y2 = boxes.T
        width = image.shape[1]
        image, boxes = cv2.rotate(image, cv2.ROTATE_90_COUNTERCLOCKWISE), np.stack([y1, width - x2, y2, width - x1], 1)
    return image, boxes


def scale(image, boxes, size):
    """Resize to size (height, width); boxes follow by the exact ratio of each axis, border to border."""
    old_height, old_width = image.shape[:2]
    height, width = size
    # Multiplied before divided, in float64: a box that touches the border still touches it afterwards.
    scaled = boxes.astype(np.float64) * (width, height, width, height) / (old_width, old_height, old_width, old_height)
    return resize_image(image, size), scaled.astype(np.float32)


def zoom(image, factor, place):
    """Enlarge or shrink what a picture shows within its own size; its edges are repeated around a smaller one.

    Args:
        image: (H, W, 3) uint8 RGB.
        factor: above 0.
        place: (x, y) in 0..1: which part of the larger is seen, or where in the picture the smaller lies.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    height, width = image.shape[:2]
    # Pixel centres: pixel 0 covers -0.5 to 0.5, and (x + 0.5) is what is multiplied.
    shift = [side * (1 - factor) * share + (factor - 1) / 2 for side, share in zip((width, height), place)]
    matrix = np.array([[factor, 0, shift[0]], [0, factor, shift[1]]], np.float64)
    return cv2.warpAffine(image, matrix, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def crop(image, boxes, window):
    """Cut a window out; boxes are clipped to it, and those that keep less than half of their area are dropped.

    Args:
        image, boxes: as everywhere here.
        window: (x1, y1, x2, y2) ints, inside the picture.

    Returns:
        image, boxes of those kept, (G,) bool which are kept. All boxes lost would make a background of a picture with
        objects: then nothing is cut off.
    """
    x1, y1, x2, y2 = window
    corner = np.array((x1, y1, x1, y1), np.float32)
    clipped = np.clip(boxes, corner, np.array((x2, y2, x2, y2), np.float32))
    area, left = (np.prod(corners[:, 2:] - corners[:, :2], axis=1) for corners in (boxes, clipped))
    kept = left >= _LEAST_LEFT * area
    if len(boxes) and not kept.any():
        return image.copy(), boxes.copy(), ~kept
    return image[y1:y2, x1:x2].copy(), clipped[kept] - corner, kept


def blur(image, deviation):
    """Gaussian blur of a deviation in pixels; 0 changes nothing."""
    return cv2.GaussianBlur(image, (0, 0), deviation) if deviation > 0 else image.copy()


def add_jpeg_noise(image, quality):
    """What JPEG compression of this quality, 5 to 100, leaves of a picture."""
    _, data = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), (cv2.IMWRITE_JPEG_QUALITY, quality))
    return cv2.cvtColor(cv2.imdecode(data, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)


def jitter_colour(image, brightness=1.0, contrast=1.0, saturation=1.0):
    """Multiply brightness, contrast about the mean grey, and saturation about each pixel's grey; 1 changes nothing."""
    mean_grey = brightness * cv2.mean(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY))[0]
    levels = (np.arange(256) * brightness - mean_grey) * contrast + mean_grey
    image = cv2.LUT(image, np.clip(np.rint(levels), 0, 255).astype(np.uint8))
    grey = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    return cv2.addWeighted(image, saturation, grey, 1.0 - saturation, 0.0)
