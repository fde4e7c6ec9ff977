"""Pictures for people: boxes drawn into images, and many images on one sheet."""

import colorsys

import cv2
import numpy as np

from frcnn.data.images import resize_image, resized_size

# Strong colours first, then dark and pale ones; no two are closer than 56 in RGB.
_PALETTE = (
    (230, 25, 75),
    (60, 220, 60),
    (20, 110, 255),
    (255, 225, 25),
    (240, 50, 230),
    (0, 225, 255),
    (255, 130, 0),
    (120, 40, 200),
    (0, 130, 110),
    (255, 165, 190),
    (150, 0, 30),
    (190, 255, 140),
    (0, 0, 140),
    (215, 180, 255),
    (0, 100, 0),
    (255, 205, 150),
)
DRAWN_SCORE = 0.5  # lowest score of a drawn detection, the default of `frcnn detect --draw-score`
_GOLDEN_RATIO = 0.61803398875
_FIRST_HUE = 0.32  # keeps the first 14 further colours farthest from the palette
_BLUE = (20, 60, 255)
_STATE_COLOURS = ((130, 130, 130), (255, 150, 40), (0, 150, 60))  # of anchors: background, not in the loss, object
_READABLE_SIDE = 1280  # pixels of a picture with fine lines in it
_FONT = cv2.FONT_HERSHEY_SIMPLEX


def draw_detections(image, detections):
    """Draw what was found in a picture, each box in the colour of its class and labelled "name 0.97".

    Args:
        image: (H, W, 3) uint8 RGB, the picture that the detections are of; it is not changed.
        detections: Detections.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    return draw_boxes(image, detections.boxes, detections.labels, detections.class_names, detections.scores)


def draw_boxes(image, boxes, labels, class_names, scores=None):
    """Draw labelled boxes, detections or ground truth; lines and letters grow with the picture.

    The best scores end on top; without scores the smallest boxes do, which larger ones would hide. All names lie above
    all lines, and never above each other: one that finds no free place at its box is left out, and the colour alone
    tells the class.

    Args:
        image: (H, W, 3) uint8 RGB; it is not changed.
        boxes: (D, 4) xyxy pixels; what leaves the picture is drawn along its edge.
        labels: (D,) int, indices into `class_names`.
        class_names: sequence of K strings.
        scores: (D,) 0..1, or None.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        ValueError: the picture has another shape or dtype.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"image is {image.dtype} {image.shape}: it must be uint8 (H, W, 3), RGB")
    canvas = np.ascontiguousarray(image).copy()
    boxes = np.asarray(boxes, np.float64).reshape(-1, 4)
    order = np.argsort(-np.prod(boxes[:, 2:] - boxes[:, :2], axis=1) if scores is None else scores, kind="stable")
    corners = _pixel_corners(boxes, canvas.shape)
    thickness = max(1, round(max(canvas.shape) / 400))
    for index in order:
        x1, y1, x2, y2 = corners[index]
        cv2.rectangle(canvas, (x1, y1), (x2, y2), class_colour(labels[index]), thickness)
    taken = np.zeros(canvas.shape[:2], bool)
    for index in order[::-1]:
        text = class_names[labels[index]] + ("" if scores is None else f" {scores[index]:.2f}")
        _draw_label(canvas, taken, text, corners[index], class_colour(labels[index]))
    return canvas


def draw_anchors(image, anchors, matches, iou, boxes):
    """Draw what the anchors of a picture stand for, on a pale copy of it.

    There are thousands of anchors. Each box (blue) shows the best three that stand for it (green) and the best that no
    loss sees (orange, thin); all others are dots at their centres, in the colour of the best anchor there, grey for
    background.

    Args:
        image: (H, W, 3) uint8 RGB.
        anchors: (A, 4) xyxy pixels.
        matches: (A,) int: index of a box, -1 background, -2 not in the loss (`frcnn.ops.targets.match_anchors`).
        iou: (G, A) overlap of boxes and anchors.
        boxes: (G, 4) xyxy pixels.

    Returns:
        (H, W, 3) uint8 RGB; a small picture is enlarged by a whole factor.
    """
    factor = max(1, _READABLE_SIDE // max(image.shape))
    canvas = np.repeat(np.repeat(image, factor, 0), factor, 1)
    canvas = cv2.addWeighted(canvas, 0.5, np.full_like(canvas, 255), 0.5, 0)
    thickness = max(1, round(max(canvas.shape) / 500))
    states = np.where(matches >= 0, 2, matches == -2)
    _draw_centres(canvas, (anchors[:, :2] + anchors[:, 2:]) / 2 * factor, states, thickness)
    for index, overlaps in enumerate(iou):
        ranked = np.argsort(-overlaps)
        _draw_outlines(canvas, anchors[ranked[states[ranked] == 1][:1]] * factor, _STATE_COLOURS[1], 1)
        _draw_outlines(canvas, anchors[ranked[matches[ranked] == index][:3]] * factor, _STATE_COLOURS[2], thickness)
    _draw_outlines(canvas, boxes * factor, _BLUE, thickness + 1)
    return canvas


def _draw_centres(canvas, centres, states, radius):
    centres, place = np.unique(np.round(centres).astype(int), axis=0, return_inverse=True)
    best = np.zeros(len(centres), int)
    np.maximum.at(best, place.ravel(), states)
    for centre, state in zip(centres.tolist(), best):
        cv2.circle(canvas, centre, radius * (1 + state) // 2, _STATE_COLOURS[state], -1)


def _draw_outlines(canvas, boxes, colour, thickness):
    for x1, y1, x2, y2 in _pixel_corners(np.asarray(boxes, np.float64).reshape(-1, 4), canvas.shape):
        cv2.rectangle(canvas, (x1, y1), (x2, y2), colour, thickness)


def contact_sheet(images, captions=None, side=160, columns=None):
    """Lay pictures out in rows, each whole, in a square cell, with its caption below.

    Args:
        images: list of (H, W, 3) uint8 RGB.
        captions: as many strings, cut to the width of a cell; None: none.
        side: of a cell, pixels.
        columns: cells in a row; None: about as many as rows.

    Returns:
        (H, W, 3) uint8 RGB, white where nothing is.

    Raises:
        ValueError: no picture.
    """
    if not len(images):
        raise ValueError("a contact sheet needs at least one picture")
    columns = columns or int(np.ceil(np.sqrt(len(images))))
    scale, weight = _font((side * 2,))
    line = cv2.getTextSize("Ag", _FONT, scale, weight)[0][1] * 2 if captions else 0
    sheet = np.full((-(-len(images) // columns) * (side + line), columns * side, 3), 255, np.uint8)
    for index, image in enumerate(images):
        top, left = index // columns * (side + line), index % columns * side
        image = resize_image(image, resized_size(*image.shape[:2], side, side))
        height, width = image.shape[:2]
        y, x = top + (side - height) // 2, left + (side - width) // 2
        sheet[y : y + height, x : x + width] = image
        if captions:
            text, _ = _cut_to(side - 4, captions[index], scale, weight)
            origin = (left + 2, top + side + line * 3 // 4)
            cv2.putText(sheet, text, origin, _FONT, scale, (0, 0, 0), weight, cv2.LINE_AA)
    return sheet


def class_colour(label):
    """The RGB colour of a class, three ints 0-255; the same in every picture and run."""
    label = int(label)
    if label < len(_PALETTE):
        return _PALETTE[label]
    # Steps of the golden ratio never come back to a hue, and neighbours differ in strength as well.
    step = label - len(_PALETTE)
    saturation, value = ((1.0, 1.0), (0.5, 1.0), (1.0, 0.6))[step % 3]
    return tuple(
        round(255 * part) for part in colorsys.hsv_to_rgb((_FIRST_HUE + step * _GOLDEN_RATIO) % 1.0, saturation, value)
    )


def _pixel_corners(boxes, shape):
    """First and last pixel of each half-open box inside the picture, (D, 4) list of ints."""
    last = np.array([shape[1], shape[0]] * 2) - 1
    return np.clip(np.round(boxes - [0, 0, 1, 1]), 0, last).astype(int).tolist()


def _draw_label(canvas, taken, text, corners, colour):
    """Write text in a filled box at a drawn one, inside the picture, where no pixel is `taken` (H, W) yet."""
    scale, weight = _font(canvas.shape)
    # The height of letters with tails, whether this name has them or not, so that all labels are equally tall.
    (_, text_height), baseline = cv2.getTextSize("Ag", _FONT, scale, weight)
    margin = max(1, text_height // 5)
    text, text_width = _cut_to(canvas.shape[1] - 2 * margin, text, scale, weight)
    size = (text_height + baseline + 2 * margin, text_width + 2 * margin)
    for top, left in _label_places(corners, size, canvas.shape):
        area = (slice(top, top + size[0]), slice(left, left + size[1]))
        if not taken[area].any():
            taken[area], canvas[area] = True, colour
            origin = (left + margin, top + margin + text_height)
            cv2.putText(canvas, text, origin, _FONT, scale, _readable_on(colour), weight, cv2.LINE_AA)
            return


def _cut_to(width, text, scale, weight):
    """As much of the text as fits into `width` pixels, and its width: half a name can be read, tiny letters cannot."""
    text = (
        text[: max(1, width)].encode(errors="replace").decode()
    )  # OpenCV dies of half a letter, as names of files have
    text_width = cv2.getTextSize(text, _FONT, scale, weight)[0][0]
    while text_width > width and len(text) > 1:
        text = text[:-1]
        text_width = cv2.getTextSize(text, _FONT, scale, weight)[0][0]
    return text, text_width


def _label_places(corners, size, shape):
    """(top, left) of a label, best first: on the box, under it, then inside it; at its left side, then its right."""
    (x1, y1, x2, y2), (height, width) = corners, size
    for top in (y1 - height, y2 + 1, y1, y2 + 1 - height):
        for left in (x1, x2 + 1 - width):
            if 0 <= top <= shape[0] - height:
                yield top, max(0, min(left, shape[1] - width))


def _font(shape):
    """Scale and weight of the letters: a fiftieth of the longer side tall, but never under 9 pixels."""
    text_height = max(9, max(shape) / 50)
    return text_height / 22, max(1, round(text_height / 20))


def _readable_on(colour):
    """Black on light colours, white on dark ones (luma of ITU-R BT.601)."""
    red, green, blue = colour
    return (0, 0, 0) if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else (255, 255, 255)
