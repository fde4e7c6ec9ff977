"""Pictures for people: boxes drawn into images, the curves of a training run, and those of an evaluation."""

import colorsys
import os
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

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
_GOLDEN_RATIO = 0.61803398875
_FIRST_HUE = 0.32  # keeps the first 14 further colours farthest from the palette
_FONT = cv2.FONT_HERSHEY_SIMPLEX
_MOST_CURVES = 20  # that a legend names
_LOSSES = ("loss", "rpn_class_loss", "rpn_box_loss", "roi_class_loss", "roi_box_loss")


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


def plot_history(history, path):
    """Plot the losses of a training run, and its validation mAP where there is one, into a PNG file.

    Args:
        history: path of a CSV file, or a DataFrame, with a row per epoch: `epoch` from 0, `loss` and the four losses
            it is the sum of, the same with `val_` before them (drawn dashed), `val_map`. What is missing is left out.
        path: PNG file to write; missing folders are made.

    Returns:
        Path of the file.

    Raises:
        ValueError: the history has no `epoch` or none of the losses.
    """
    # matplotlib takes a second to import; a Figure of its own leaves the user's pyplot alone.
    from matplotlib.figure import Figure

    table = history if isinstance(history, pd.DataFrame) else pd.read_csv(history)
    if "epoch" not in table or not any(name in table for name in _LOSSES):
        where = "history" if isinstance(history, pd.DataFrame) else os.fspath(history)
        raise ValueError(f"{where} has the columns {list(table)}: it needs epoch and one of {', '.join(_LOSSES)}")
    table = table.assign(epoch=table["epoch"] + 1)  # Keras counts from 0 in its files and from 1 in what it prints
    has_map = "val_map" in table and table["val_map"].notna().any()
    figure = Figure(figsize=(12 if has_map else 7, 4.5), layout="constrained")
    axes = figure.subplots(1, 2 if has_map else 1, squeeze=False)[0]
    _plot_losses(axes[0], table)
    if has_map:
        _plot_map(axes[1], table)
    return _save(figure, path)


def plot_precision_recall(result, path):
    """Plot a curve per class into a PNG file, with a dot at the best F1; the legend gives the AP, best first.

    Of more than 20 classes the ten best and the ten worst are named, the others grey. Classes without ground truth are
    left out.

    Args:
        result: EvaluationResult.
        path: PNG file to write; missing folders are made.

    Returns:
        Path of the file.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 6), layout="constrained")
    axes = figure.subplots()
    order = np.argsort(-result.ap, kind="stable")[: np.count_nonzero(~np.isnan(result.ap))]
    half = _MOST_CURVES // 2
    others = set() if len(order) <= _MOST_CURVES else set(order[half:-half])
    for rank, label in enumerate(order):
        _, precision, recall = result.curves[label]
        style = {"color": f"C{rank % 10}", "linestyle": ("-", "--")[rank >= half], "zorder": 3}
        style["label"] = f"{result.ap[label]:.3f}  {_short(result.class_names[label])}"
        if label in others:
            style = {"color": "0.8", "linewidth": 0.8, "label": f"{len(others)} others" if rank == half else None}
        axes.plot(recall, precision, **style)
        if label not in others:
            axes.plot(result.recall[label], result.precision[label], ".", markersize=10, color=style["color"], zorder=4)
    axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1.01), ylim=(0, 1.01))
    axes.set_title(f"Precision and recall at IoU >= {result.iou_threshold:g}; dot: best F1")
    axes.grid(alpha=0.3)
    if len(order):
        axes.legend(
            title=f"AP ({result.metric}), mean {result.mean_ap:.3f}", loc="upper left", bbox_to_anchor=(1.01, 1)
        )
    return _save(figure, path)


def plot_confusion_matrix(matrix, class_names, path, title="Confusion matrix"):
    """Plot the counts of `frcnn.evaluation.confusion_matrix` into a PNG file, coloured by their share of the row.

    Args:
        matrix: (K + 1, K + 1) int; zeros stay empty.
        class_names: K strings.
        path: PNG file to write; missing folders are made.
        title: the first line; a second says what the colour means.

    Returns:
        Path of the file.
    """
    from matplotlib.figure import Figure

    count = len(matrix)
    cell, font_size = (0.8, 10) if count <= 12 else (0.4, 7)
    side = max(5, 2.5 + count * cell)
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.subplots()
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for row, column in np.argwhere(matrix):
        colour = "white" if shares[row, column] > 0.6 else "black"
        style = {"color": colour, "fontsize": font_size, "ha": "center", "va": "center", "in_layout": False}
        axes.text(column, row, str(matrix[row, column]), **style)
    for edge in np.arange(count) - 0.5:
        colour = "black" if edge == count - 1.5 else "0.9"
        axes.axhline(edge, color=colour, linewidth=0.8)
        axes.axvline(edge, color=colour, linewidth=0.8)
    names = [_short(name) for name in class_names]
    axes.set_xticks(range(count), [*names, "missed"], rotation=90, fontsize=font_size)
    axes.set_yticks(range(count), [*names, "background"], fontsize=font_size)
    axes.set(xlabel="detected as", ylabel="true class", title=f"{title}\ncolour: share of the row")
    return _save(figure, path)


def _save(figure, path):
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png", dpi=120)
    return path


def _short(name):
    """A class name that a plot has room for; matplotlib would take what lies between two dollars for a formula."""
    return (name if len(name) <= 30 else f"{name[:29]}…").replace("$", r"\$")


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


def _plot_losses(axes, table):
    for prefix, style in (("", "-"), ("val_", "--")):
        for index, name in enumerate(_LOSSES):
            colour, width = ("black", 2.0) if name == "loss" else (f"C{index - 1}", 1.4)
            if prefix + name in table:
                _plot_column(axes, table, prefix + name, color=colour, linewidth=width, linestyle=style)
    axes.set(title="Losses", xlabel="epoch", ylabel="loss")
    axes.set_ylim(bottom=0)
    axes.legend(fontsize="small", ncols=2 if any(name.startswith("val_") for name in table) else 1)


def _plot_map(axes, table):
    _plot_column(axes, table, "val_map", color="C0", linewidth=2.0)
    best = table.loc[table["val_map"].idxmax()]
    axes.set(
        title=f"Validation mAP, best {best['val_map']:.3f} in epoch {best['epoch']:g}", xlabel="epoch", ylabel="mAP"
    )
    axes.set_ylim(0, 1)


def _plot_column(axes, table, column, **style):
    """A line with a dot per epoch, so that a single epoch, or one between two without a value, is seen."""
    rows = table[["epoch", column]].dropna()
    axes.plot(rows["epoch"], rows[column], marker=".", label=column, **style)
    axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    axes.set_xlim(table["epoch"].min() - 0.5, table["epoch"].max() + 0.5)
    axes.grid(alpha=0.3)
