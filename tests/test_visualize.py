import cv2
import numpy as np
import pytest

from frcnn.records import Detections
from frcnn.visualize import class_colour, contact_sheet, draw_anchors, draw_boxes, draw_detections

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


def test_a_contact_sheet_shows_whole_pictures_in_rows_with_their_captions_below():
    """Three cells of 100 in two columns: a wide picture fills 100x50 of its cell, a tall one 50x100."""
    images = [np.full((50, 100, 3), 200, np.uint8), np.full((60, 30, 3), 100, np.uint8), grey(10, 10)]
    sheet = contact_sheet(images, ["wide", "", "a caption that is much too long for its cell"], side=100, columns=2)
    cell = sheet.shape[0] // 2
    assert sheet.shape == (2 * cell, 200, 3) and cell > 100
    assert ((sheet[:100, :100] == 200).all(axis=-1)).sum() == 50 * 100
    assert ((sheet[:100, 100:] == 100).all(axis=-1)).sum() == 100 * 50
    assert (sheet[100:cell, :100] < 100).any() and (sheet[100:cell, 100:] == 255).all()
    assert (sheet[cell:, 100:] == 255).all()


def test_a_contact_sheet_of_nothing_is_refused():
    with pytest.raises(ValueError, match="at least one picture"):
        contact_sheet([])


def test_anchors_show_what_they_stand_for():
    """Six anchors on 64x64, enlarged 20 times: the best three of box 0, the best one in no loss; the rest are dots."""
    box = np.array([[10, 10, 30, 30]], np.float32)
    anchors = box + np.array([[shift] * 4 for shift in (1, 2, 3, 4, 6, 7)], np.float32)
    anchors = np.concatenate([anchors, [[40, 40, 60, 60]]]).astype(np.float32)
    matches = np.array([0, 0, 0, 0, -2, -2, -1])
    iou = np.array([[0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.0]])
    drawn = draw_anchors(grey(64, 64), anchors, matches, iou, box)
    assert drawn.shape == (1280, 1280, 3)

    def is_drawn(index):  # the right edge of an anchor, half way down, where no other lies
        return tuple(drawn[20 * int(anchors[index, 3]) - 60, 20 * int(anchors[index, 2]) - 1])

    assert [is_drawn(index) for index in range(3)] == [(0, 150, 60)] * 3
    assert is_drawn(4) == (255, 150, 40)
    assert is_drawn(3) == is_drawn(5) == is_drawn(6) == (192, 192, 192)  # the grey picture, half way to white
    assert tuple(drawn[400, 599]) == (20, 60, 255)
    centres = [tuple(drawn[20 * row, 20 * row]) for row in (24, 26, 27, 50)]
    assert centres == [(0, 150, 60), (255, 150, 40), (255, 150, 40), (130, 130, 130)]


def test_anchors_at_one_centre_have_the_dot_of_the_best():
    anchors = np.array([[10, 10, 30, 30], [0, 0, 40, 40], [18, 18, 22, 22]], np.float32)
    for order in ([0, 1, 2], [2, 1, 0]):
        drawn = draw_anchors(grey(64, 64), anchors[order], np.array([-1, -2, -1]), np.zeros((0, 3)), np.zeros((0, 4)))
        assert tuple(drawn[400, 400]) == (255, 150, 40)


def test_half_a_letter_in_a_name_and_a_very_long_one_are_drawn():
    image = np.zeros((60, 80, 3), np.uint8)
    drawn = draw_boxes(image, [[5, 20, 70, 50]], [0], ["a\udcff" * 100_000])
    assert drawn.any() and contact_sheet([image], ["\udcff"]).any()
