"""Static pages that need nothing else: pictures are in them, there is no script, and no text of a file is markup."""

import base64
import html

import cv2

from frcnn.data.images import resize_image, resized_size
from frcnn.data.readers.problems import printable
from frcnn.visualize import draw_boxes

_THUMBNAIL = 360  # pixels, longer side
_MOST_DRAWN = 300  # boxes of a picture
MOST_LETTERS = 40  # of a class name

_STYLE = """body { font: 15px/1.5 system-ui, sans-serif; max-width: 76rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; margin: 1rem 0 } td, th { padding: .15rem .8rem; text-align: right }
td:first-child, th:first-child { text-align: left } tr { border-bottom: 1px solid #ddd }
table.facts td { text-align: left; vertical-align: top; overflow-wrap: anywhere }
table.facts td:first-child { white-space: nowrap }
h3 small { font-weight: normal; color: #666 } .error { color: #b00020 } .warning { color: #9a6700 }
li { overflow-wrap: anywhere } pre { background: #f4f4f4; padding: .7rem; white-space: pre-wrap }
figure { display: inline-block; vertical-align: top; margin: .5rem; max-width: 100% } img { max-width: 100% }
figcaption { font-size: 12px; overflow-wrap: anywhere }"""


def page(title, parts):
    """A whole page.

    Args:
        title: text.
        parts: list of HTML texts, what stands below each other.
    """
    head = f'<meta charset="utf-8"><title>{as_text(title)}</title><style>{_STYLE}</style>'
    return f"<!DOCTYPE html>\n<html lang=en><head>{head}</head><body>{''.join(parts)}</body></html>\n"


def as_text(text):
    """Anything as HTML that shows its text, whatever stands in it; cut to a sensible length."""
    return html.escape(printable(str(text)))


def table(rows):
    """A table whose first row holds the titles."""
    head = "".join(f"<th>{as_text(cell)}</th>" for cell in rows[0])
    return f"<table><tr>{head}</tr>{_rows(rows[1:])}</table>"


def facts(values):
    """A table without titles, a row for each name and value of a dict."""
    return f"<table class=facts>{_rows(values.items())}</table>"


def _rows(rows):
    cells = ("".join(f"<td>{as_text(cell)}</td>" for cell in row) for row in rows)
    return "".join(f"<tr>{row}</tr>" for row in cells)


def shrink(image):
    """A copy of a picture, (H, W, 3) uint8 RGB, that a page has room for."""
    return resize_image(image, resized_size(*image.shape[:2], _THUMBNAIL, _THUMBNAIL))


def draw_on(small, size, boxes, labels, class_names, scores=None):
    """`draw_boxes` on what `shrink` gives; boxes in pixels of the large picture, whose (height, width) is `size`."""
    boxes, names = boxes[:_MOST_DRAWN] * (small.shape[1] / size[1]), [name[:MOST_LETTERS] for name in class_names]
    return draw_boxes(small, boxes, labels[:_MOST_DRAWN], names, scores if scores is None else scores[:_MOST_DRAWN])


def figure(image, caption):
    """A picture, (H, W, 3) uint8 RGB, as a JPEG in the page, with a text below that is no wider."""
    _, data = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    text = f"<figcaption>{as_text(caption)}</figcaption>"
    return f'<figure style="width:{image.shape[1]}px">{embedded(data, "jpeg")}{text}</figure>'


def missing_figure(error):
    """What stands in the place of a picture that cannot be read: why not."""
    return f"<figure><figcaption>{as_text(error)}</figcaption></figure>"


def embedded(data, kind):
    """An <img> that holds the bytes of a picture file; kind: "jpeg" or "png"."""
    return f'<img src="data:image/{kind};base64,{base64.b64encode(data).decode()}" alt="">'
