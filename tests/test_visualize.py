import sys

import cv2
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from frcnn.evaluation import evaluate
from frcnn.records import Detections, ImageRecord
from frcnn.visualize import (
    class_colour,
    draw_boxes,
    draw_detections,
    plot_confusion_matrix,
    plot_history,
    plot_precision_recall,
)

RED, GREEN = class_colour(0), class_colour(1)


def grey(height, width):
    return np.full((height, width, 3), 128, np.uint8)


def covered(image, colour):
    """(x1, y1, x2, y2), half-open, around all pixels of exactly this colour."""
    rows, columns = np.nonzero((image == colour).all(axis=-1))
    return columns.min(), rows.min(), columns.max() + 1, rows.max() + 1


def label_area(image, colour):
    """Pixels of a colour that lie in filled areas: what is left when thin lines are eroded away."""
    mask = (image == colour).all(axis=-1).astype(np.uint8)
    return cv2.dilate(cv2.erode(mask, np.ones((3, 3))), np.ones((3, 3))).astype(bool)


def test_draws_on_a_copy_and_keeps_shape_and_dtype():
    image = grey(120, 160)
    drawn = draw_detections(image, Detections([[20, 50, 100, 100]], [0.97], [0], ("cell",)))
    assert (drawn.shape, drawn.dtype) == (image.shape, np.uint8)
    assert (image == 128).all()
    assert (drawn != 128).any()


def test_a_half_open_box_is_drawn_on_its_first_and_last_pixel():
    """The label lies above; below it the outline is columns 20..99 and ends in row 99."""
    drawn = draw_boxes(grey(120, 160), [[20, 50, 100, 100]], [0], ("cell",))
    x1, _, x2, y2 = covered(drawn[55:], RED)
    assert (x1, x2, y2 + 55) == (20, 100, 100)
    assert tuple(drawn[75, 20]) == tuple(drawn[75, 99]) == tuple(drawn[99, 60]) == RED
    assert (drawn[55:99, 21:99] == 128).all()


def test_nothing_to_draw_gives_an_equal_copy():
    image = grey(20, 30)
    drawn = draw_detections(image, Detections([], [], [], ("cell",)))
    assert np.array_equal(drawn, image)
    assert drawn is not image
    assert not np.shares_memory(drawn, image)


@pytest.mark.parametrize(("height", "width"), [(48, 64), (480, 640), (1500, 2000)])
@pytest.mark.parametrize("corner", [(0, 0), (0, 0.8), (0.8, 0), (0.8, 0.8)])
def test_the_label_stays_inside_the_picture(height, width, corner):
    """It has as many pixels of letters as a label in the open: nothing of it is cut off at an edge."""

    def letters(x, y):
        box = [width * x, height * y, width * (x + 0.2), height * (y + 0.2)]
        return (draw_boxes(grey(height, width), [box], [0], ("cell",)).min(axis=-1) > 200).sum()

    assert letters(*corner) == letters(0.4, 0.5) > 10


def test_lines_and_letters_grow_with_the_picture():
    def filled(scale):
        drawn = draw_boxes(grey(480 * scale, 640 * scale), np.multiply([[200, 200, 400, 400]], scale), [0], ("cell",))
        return (drawn != 128).any(axis=-1).mean()

    assert filled(6) == pytest.approx(filled(1), rel=0.4)


def test_the_best_detection_is_on_top():
    boxes = [[20, 40, 90, 110]] * 2
    best_first = draw_boxes(grey(120, 160), boxes, [0, 1], ("a", "b"), [0.9, 0.2])
    best_last = draw_boxes(grey(120, 160), boxes, [0, 1], ("a", "b"), [0.2, 0.9])
    assert tuple(best_first[100, 20]) == RED
    assert tuple(best_last[100, 20]) == GREEN


def test_without_scores_the_smaller_box_is_on_top():
    boxes = [[20, 40, 60, 110], [20, 40, 90, 110]]
    assert tuple(draw_boxes(grey(120, 160), boxes, [0, 1], ("a", "b"))[100, 20]) == RED


def test_labels_do_not_cover_each_other():
    boxes = [[50, 50, 110, 90]] * 20
    drawn = draw_boxes(grey(120, 160), boxes, [1] + [0] * 19, ("other", "cell"), np.linspace(1, 0.1, 20))
    alone = draw_boxes(grey(120, 160), boxes[:1], [1], ("other", "cell"), [1.0])
    area = label_area(alone, GREEN)
    area[50:] = False
    assert area.sum() > 100
    assert np.array_equal(drawn[area], alone[area])
    assert label_area(drawn, RED).sum() > 100


def test_a_name_wider_than_the_picture_is_cut_not_shrunk():
    """The first letters look as in a short name that starts alike."""
    long, short = (
        draw_boxes(grey(64, 64), [[0, 30, 60, 60]], [0], (name,)) for name in ("Platelets and their fragments", "Pla")
    )
    letters = (short.min(axis=-1) > 200).any(axis=0)
    assert letters.any()
    until = np.flatnonzero(letters)[-1]
    assert np.array_equal(long[:30, :until], short[:30, :until])
    assert (long[:30, 50:].min(axis=-1) > 200).any()
    assert not (long[:30, 63:].min(axis=-1) > 200).any()


def test_boxes_that_leave_the_picture_are_drawn_along_its_edge():
    drawn = draw_boxes(grey(100, 100), [[-1e9, -50, 1e9, 500]], [0], ("cell",))
    assert all(tuple(drawn[y, x]) == RED for y, x in [(60, 0), (60, 99), (99, 50)])


def test_letters_can_be_read_on_every_colour():
    for label in range(30):
        drawn = draw_boxes(grey(200, 200), [[50, 100, 150, 180]], [label], [f"c{i}" for i in range(30)])
        contrast = np.abs(
            drawn.astype(int) @ [0.299, 0.587, 0.114] - np.dot(class_colour(label), [0.299, 0.587, 0.114])
        )
        assert contrast[75:100, 50:70].max() > 100


def test_thirty_classes_have_thirty_colours_far_apart():
    colours = np.array([class_colour(label) for label in range(30)], int)
    assert colours.min() >= 0
    assert colours.max() <= 255
    distances = np.linalg.norm(colours[:, None] - colours, axis=-1)[~np.eye(30, dtype=bool)]
    assert distances.min() > 35
    assert class_colour(np.int32(200)) == class_colour(200)


@pytest.mark.parametrize(
    "image", [np.zeros((5, 5), np.uint8), np.zeros((5, 5, 3), np.float32), np.zeros((5, 5, 4), np.uint8)]
)
def test_an_image_of_another_kind_is_refused(image):
    with pytest.raises(ValueError, match=r"it must be uint8 \(H, W, 3\), RGB"):
        draw_boxes(image, [], [], ())


def history(epochs=3):
    columns = ["rpn_class_loss", "rpn_box_loss", "roi_class_loss", "roi_box_loss", "loss"]
    table = pd.DataFrame({name: np.linspace(1, 0.5, epochs) for name in columns}).assign(epoch=range(epochs))
    return table.join(table[columns].add_prefix("val_"))


def drawn_axes(monkeypatch, plot, *arguments):
    """The axes of the figure that a function saves."""
    saved, savefig = [], Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda figure, *a, **k: (saved.append(figure), savefig(figure, *a, **k)))
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


def test_numbers_fit_into_the_cells_of_eighty_classes(monkeypatch, tmp_path):
    matrix = np.zeros((81, 81), int)
    matrix[40, 40] = 88888
    (axes,) = drawn_axes(
        monkeypatch, plot_confusion_matrix, matrix, [f"class {i}" for i in range(80)], tmp_path / "matrix.png"
    )
    cell = axes.transData.transform((1, 0)) - axes.transData.transform((0, 0))
    assert 5 < axes.texts[0].get_window_extent().width < cell[0]
