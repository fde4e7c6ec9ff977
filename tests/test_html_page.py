import base64

import cv2
import numpy as np

from frcnn.html_page import as_text, draw_on, embedded, facts, figure, page, shrink, table
from tests.test_doctor_report import Page

EVIL = "<script>alert(1)</script>&\"'\x1b[2J"


def test_no_text_is_markup():
    text = page(EVIL, [table([(EVIL, "b"), ("1", EVIL)]), facts({EVIL: EVIL}), f"<p>{as_text(EVIL)}</p>"])
    read = Page(text)
    assert "script" not in read.tags and "\x1b" not in text
    assert read.text.count("<script>alert(1)</script>&\"'\\x1b[2J") == 6
    assert text.startswith("<!DOCTYPE html>") and text.endswith("</html>\n")


def test_a_figure_holds_its_picture():
    image = np.full((30, 50, 3), (250, 10, 20), np.uint8)  # RGB, and JPEG's own BGR must not swap it
    read = Page(figure(image, EVIL))
    data = base64.b64decode(read.images[0].removeprefix("data:image/jpeg;base64,"), validate=True)
    found = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    assert found.shape == (30, 50, 3)
    np.testing.assert_allclose(found[15, 25], (20, 10, 250), atol=6)
    assert embedded(b"abc", "png") == '<img src="data:image/png;base64,YWJj" alt="">'


def test_boxes_are_drawn_at_the_small_pictures_scale():
    """720x1440 becomes 180x360, a quarter: the box (400, 200, 800, 600) has its corners at 100, 50, 199, 149."""
    small = shrink(np.zeros((720, 1440, 3), np.uint8))
    assert small.shape == (180, 360, 3)
    drawn = draw_on(small, (720, 1440), np.array([[400, 200, 800, 600]]), np.array([0]), ["x" * 500])
    assert drawn[100, 100].any() and drawn[100, 199].any() and drawn[149, 150].any()
    assert not drawn[100, 102:197].any() and not drawn[152:, :].any()
    assert not small.any()
