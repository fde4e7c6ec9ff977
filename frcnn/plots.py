"""Charts: the curves of a training run, precision and recall, the confusion matrix; PNG files, through matplotlib."""

import os
from pathlib import Path

import numpy as np
import pandas as pd

from frcnn.files import replacing

_MOST_CURVES = 20  # that a legend names
_MOST_CLASSES = 80  # of a matrix: a picture of more would be large, and unreadable
_SCORES = {"val_map": "mAP", "val_accuracy": "accuracy"}
_LOSSES = ("loss", "rpn_class_loss", "rpn_box_loss", "roi_class_loss", "roi_box_loss")


def plot_history(history, path):
    """Plot the losses of a training run, and its validation score where there is one, into a PNG file.

    Args:
        history: path of a CSV file, or a DataFrame, with a row per epoch: `epoch` from 0, `loss` and the four losses
            it is the sum of, the same with `val_` before them (drawn dashed), `val_map`; of a classifier `accuracy` and
            `val_accuracy`. What is missing is left out.
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
    score = next((name for name in _SCORES if name in table and table[name].notna().any()), None)
    figure = Figure(figsize=(12 if score else 7, 4.5), layout="constrained")
    axes = figure.subplots(1, 2 if score else 1, squeeze=False)[0]
    _plot_losses(axes[0], table)
    if score:
        _plot_score(axes[1], table, score)
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

    Of more than 80 classes those with the most errors, in their row and column, are shown; the title says so.

    Args:
        matrix: (K + 1, K + 1) int, or (K, K) of a classifier, without background and missed; zeros stay empty.
        class_names: K strings.
        path: PNG file to write; missing folders are made.
        title: the first line; a second says what the colour means.

    Returns:
        Path of the file.
    """
    from matplotlib.figure import Figure

    kept, has_background = _most_confused(matrix, len(class_names)), len(matrix) > len(class_names)
    if len(kept) < len(matrix):
        title += f"\nthe {_MOST_CLASSES} most confused of {len(class_names):,} classes"
    names, sums = [_short(class_names[index]) for index in kept if index < len(class_names)], matrix.sum(axis=1)[kept]
    matrix, count = matrix[np.ix_(kept, kept)], len(kept)
    cell, font_size = (0.8, 10) if count <= 12 else (0.4, 7)
    side = max(5, 2.5 + count * cell)
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.subplots()
    shares = matrix / np.maximum(sums, 1)[:, None]
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for row, column in np.argwhere(matrix):
        colour = "white" if shares[row, column] > 0.6 else "black"
        style = {"color": colour, "fontsize": font_size, "ha": "center", "va": "center", "in_layout": False}
        axes.text(column, row, str(matrix[row, column]), **style)
    for edge in np.arange(count) - 0.5:
        colour = "black" if has_background and edge == count - 1.5 else "0.9"
        axes.axhline(edge, color=colour, linewidth=0.8)
        axes.axvline(edge, color=colour, linewidth=0.8)
    axes.set_xticks(range(count), [*names, *["missed"] * has_background], rotation=90, fontsize=font_size)
    axes.set_yticks(range(count), [*names, *["background"] * has_background], fontsize=font_size)
    axes.set(
        xlabel="detected as" if has_background else "predicted class",
        ylabel="true class",
        title=f"{title}\ncolour: share of the row",
    )
    return _save(figure, path)


def _most_confused(matrix, classes):
    """The indices of the classes that a plot has room for, in their order, and of background and missed."""
    errors = (matrix.sum(axis=0) + matrix.sum(axis=1) - 2 * matrix.diagonal())[:classes]
    most = np.sort(np.argsort(-errors, kind="stable")[:_MOST_CLASSES])
    return np.append(most, np.arange(classes, len(matrix)))


def _save(figure, path):
    with replacing(path, binary=True) as file:
        figure.savefig(file, format="png", dpi=120)
    figure.clear()  # its parts point at each other: Python would keep them until it looks for such rings
    return Path(path)


def _short(name):
    """A class name that a plot has room for; matplotlib would take what lies between two dollars for a formula."""
    return (name if len(name) <= 30 else f"{name[:29]}…").replace("$", r"\$")


def _plot_losses(axes, table):
    for prefix, style in (("", "-"), ("val_", "--")):
        for index, name in enumerate(_LOSSES):
            colour, width = ("black", 2.0) if name == "loss" else (f"C{index - 1}", 1.4)
            if prefix + name in table:
                _plot_column(axes, table, prefix + name, color=colour, linewidth=width, linestyle=style)
    axes.set(title="Losses", xlabel="epoch", ylabel="loss")
    axes.set_ylim(bottom=0)
    axes.legend(fontsize="small", ncols=2 if any(name.startswith("val_") for name in table) else 1)


def _plot_score(axes, table, score):
    _plot_column(axes, table, score, color="C0", linewidth=2.0)
    if "accuracy" in table:
        _plot_column(axes, table, "accuracy", color="0.6", linewidth=1.4)
        axes.legend(fontsize="small", loc="lower right")
    best, name = table.loc[table[score].idxmax()], _SCORES[score]
    title = f"Validation {name}, best {best[score]:.3f} in epoch {best['epoch']:g}"
    axes.set(title=title, xlabel="epoch", ylabel=name)
    axes.set_ylim(0, 1.01)


def _plot_column(axes, table, column, **style):
    """A line with a dot per epoch, so that a single epoch, or one between two without a value, is seen."""
    rows = table[["epoch", column]].dropna()
    axes.plot(rows["epoch"], rows[column], marker=".", label=column, **style)
    axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    axes.set_xlim(table["epoch"].min() - 0.5, table["epoch"].max() + 0.5)
    axes.grid(alpha=0.3)
