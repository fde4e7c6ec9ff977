import sys

import cv2
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from frcnn.evaluation import evaluate
from frcnn.plots import plot_confusion_matrix, plot_history, plot_precision_recall
from frcnn.records import Detections, ImageRecord


def history(epochs=3):
    columns = ["rpn_class_loss", "rpn_box_loss", "roi_class_loss", "roi_box_loss", "loss"]
    table = pd.DataFrame({name: np.linspace(1, 0.5, epochs) for name in columns}).assign(epoch=range(epochs))
    return table.join(table[columns].add_prefix("val_"))


def drawn_axes(monkeypatch, plot, *arguments):
    """The axes of the figure that a function saves."""
    saved, savefig = [], Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda figure, *a, **k: (saved.append(figure), savefig(figure, *a, **k)))
    clear = Figure.clear  # a test looks at what was drawn
    monkeypatch.setattr(Figure, "clear", lambda figure, *a, **k: figure in saved or clear(figure, *a, **k))
    plot(*arguments)
    return saved[0].axes


def test_history_from_a_csv_becomes_a_png_without_touching_pyplot(tmp_path):
    history().to_csv(tmp_path / "history.csv", index=False)
    had_pyplot = "matplotlib.pyplot" in sys.modules
    path = plot_history(tmp_path / "history.csv", tmp_path / "new" / "history.png")
    assert cv2.imread(str(path)).shape[2] == 3
    assert ("matplotlib.pyplot" in sys.modules) == had_pyplot


def test_history_draws_five_losses_and_dashes_the_validation(monkeypatch, tmp_path):
    (losses,) = drawn_axes(monkeypatch, plot_history, history(), tmp_path / "history.png")
    styles = {line.get_label(): line.get_linestyle() for line in losses.lines}
    assert len(styles) == 10
    assert all(style == ("--" if name.startswith("val_") else "-") for name, style in styles.items())


def test_history_draws_map_beside_where_it_was_measured(monkeypatch, tmp_path):
    table = history().assign(val_map=[0.1, np.nan, 0.4])
    _, scores = drawn_axes(monkeypatch, plot_history, table, tmp_path / "history.png")
    assert scores.lines[0].get_xydata().tolist() == [[1, 0.1], [3, 0.4]]
    assert scores.get_title() == "Validation mAP, best 0.400 in epoch 3"
    assert len(drawn_axes(monkeypatch, plot_history, history().assign(val_map=np.nan), tmp_path / "none.png")) == 1


def test_history_of_a_classifier_draws_both_accuracies(monkeypatch, tmp_path):
    columns = {"loss": [2, 1], "val_loss": [2, 2], "accuracy": [0.4, 0.9], "val_accuracy": [0.5, 0.75]}
    table = pd.DataFrame(columns).assign(epoch=range(2))
    losses, scores = drawn_axes(monkeypatch, plot_history, table, tmp_path / "history.png")
    assert [line.get_label() for line in losses.lines] == ["loss", "val_loss"]
    found = {line.get_label(): line.get_ydata().tolist() for line in scores.lines}
    assert found == {"val_accuracy": [0.5, 0.75], "accuracy": [0.4, 0.9]}
    assert scores.get_title() == "Validation accuracy, best 0.750 in epoch 2"


def test_history_of_one_epoch_shows_a_dot_at_a_whole_number(monkeypatch, tmp_path):
    (losses,) = drawn_axes(monkeypatch, plot_history, history(1), tmp_path / "history.png")
    assert losses.lines[0].get_marker() == "."
    low, high = losses.get_xlim()
    assert [tick for tick in losses.get_xticks() if low <= tick <= high] == [1]


@pytest.mark.parametrize("columns", [["epoch", "accuracy"], ["loss", "accuracy"]])
def test_history_without_losses_or_epochs_is_refused(tmp_path, columns):
    with pytest.raises(ValueError, match=r"'accuracy'.*: it needs epoch and one of loss"):
        plot_history(pd.DataFrame([[0, 1]], columns=columns), tmp_path / "history.png")


def evaluation(count):
    """Class i has 1 box, found after i false detections but never in the last class; one more class has no box."""
    names = tuple(f"class {i}" for i in range(count + 1))
    record = ImageRecord("a.jpg", (200, 200), [[0, 0, 10, 10]] * count, range(count))
    boxes = [box for i in range(count - 1) for box in [*[[50, 50, 60, 60]] * i, [0, 0, 10, 10]]]
    labels = [i for i in range(count - 1) for _ in range(i + 1)]
    return evaluate([record], [Detections(boxes, np.linspace(1, 0.1, len(boxes)), labels, names)], names)


def test_precision_recall_curves_and_their_legend(monkeypatch, tmp_path):
    """AP 1, 1/2 and 0; the class without ground truth has no curve, the one never detected no dot but a name."""
    path = tmp_path / "new" / "curves.png"
    (axes,) = drawn_axes(monkeypatch, plot_precision_recall, evaluation(3), path)
    legend = axes.get_legend()
    assert legend.get_title().get_text() == "AP (voc12), mean 0.500"
    assert [text.get_text() for text in legend.get_texts()] == ["1.000  class 0", "0.500  class 1", "0.000  class 2"]
    curves = {line.get_label(): line.get_xydata().tolist() for line in axes.lines}
    assert curves["0.500  class 1"] == [[0, 0], [1, 0.5]]
    dots = [line.get_xydata()[0].tolist() for line in axes.lines if line.get_marker() == "."]
    assert dots[:2] == [[1, 1], [1, 0.5]] and np.isnan(dots[2][1])
    assert cv2.imread(str(path)).shape[2] == 3


def test_a_legend_names_the_ten_best_and_the_ten_worst_of_many_classes(monkeypatch, tmp_path):
    (axes,) = drawn_axes(monkeypatch, plot_precision_recall, evaluation(25), tmp_path / "curves.png")
    texts = [text.get_text() for text in axes.get_legend().get_texts()]
    names = [f"class {i}" for i in range(25)]
    assert [text.split("  ")[-1] for text in texts] == [*names[:10], "5 others", *names[-10:]]
    assert sum(line.get_color() == "0.8" for line in axes.lines) == 5


def test_curves_without_ground_truth_are_an_empty_picture(monkeypatch, tmp_path):
    (axes,) = drawn_axes(monkeypatch, plot_precision_recall, evaluate([], [], ("cell",)), tmp_path / "curves.png")
    assert (len(axes.lines), axes.get_legend()) == (0, None)


def test_confusion_matrix_shows_counts_and_shares(monkeypatch, tmp_path):
    """A row of 3 and 1 is coloured 3/4 and 1/4; the names that matplotlib might take for formulas stay names."""
    matrix = np.array([[3, 1, 0], [0, 0, 0], [2, 0, 0]])
    path = tmp_path / "new" / "matrix.png"
    names = ("$5 or $6", "a name of more than thirty letters")
    (axes,) = drawn_axes(monkeypatch, plot_confusion_matrix, matrix, names, path, "IoU >= 0.5")
    assert {text.get_position(): text.get_text() for text in axes.texts} == {(0, 0): "3", (1, 0): "1", (0, 2): "2"}
    np.testing.assert_allclose(axes.images[0].get_array(), [[0.75, 0.25, 0], [0, 0, 0], [1, 0, 0]])
    columns, rows = (
        [label.get_text() for label in labels] for labels in (axes.get_xticklabels(), axes.get_yticklabels())
    )
    assert columns == [r"\$5 or \$6", "a name of more than thirty le…", "missed"]
    assert rows == [*columns[:2], "background"]
    assert axes.get_title().startswith("IoU >= 0.5\n")
    assert cv2.imread(str(path)).shape[2] == 3


def test_confusion_matrix_of_a_classifier_has_no_background(monkeypatch, tmp_path):
    matrix = np.array([[3, 1], [0, 2]])
    (axes,) = drawn_axes(monkeypatch, plot_confusion_matrix, matrix, ("a", "b"), tmp_path / "matrix.png")
    ticks = axes.get_xticklabels(), axes.get_yticklabels()
    assert [[label.get_text() for label in labels] for labels in ticks] == [["a", "b"], ["a", "b"]]
    assert {line.get_color() for line in axes.lines} == {"0.9"}


def test_numbers_fit_into_the_cells_of_eighty_classes(monkeypatch, tmp_path):
    matrix = np.zeros((81, 81), int)
    matrix[40, 40] = 88888
    (axes,) = drawn_axes(
        monkeypatch, plot_confusion_matrix, matrix, [f"class {i}" for i in range(80)], tmp_path / "matrix.png"
    )
    cell = axes.transData.transform((1, 0)) - axes.transData.transform((0, 0))
    assert 5 < axes.texts[0].get_window_extent().width < cell[0]


def test_of_many_classes_the_most_confused_are_shown(monkeypatch, tmp_path):
    """Of 1,203 classes 100 is taken for 1,100 and 700 missed; row 100 keeps its whole sum: 3 of 4 are right."""
    matrix = np.zeros((1204, 1204), int)
    matrix[100, 100], matrix[100, 1100], matrix[700, 1203] = 3, 1, 5
    names = [f"class {i}" for i in range(1203)]
    (axes,) = drawn_axes(monkeypatch, plot_confusion_matrix, matrix, names, tmp_path / "matrix.png", "Title")
    shown = [label.get_text() for label in axes.get_yticklabels()]
    assert len(shown) == 81 and {"class 100", "class 700", "class 1100", "background"} <= set(shown)
    assert axes.get_title().startswith("Title\nthe 80 most confused of 1,203 classes\n")
    row = axes.images[0].get_array()[shown.index("class 100")]
    assert (row[shown.index("class 100")], row[shown.index("class 1100")]) == (0.75, 0.25)
    assert max(cv2.imread(str(tmp_path / "matrix.png")).shape) < 6000
