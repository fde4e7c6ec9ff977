"""Plant defects of every kind in a copy of a Pascal VOC tree, each in a picture of its own, and say what to find.

`python -m tests.plant_defects SOURCE COPY` does so for people who want to look at the doctor's page.
"""

import os
import re
import shutil
import struct
import sys
import zlib
from pathlib import Path

import cv2
import numpy as np

from frcnn.data.images import write_image
from frcnn.data.readers import read_records

OBJECT = re.compile(r"[ \t]*<object>.*?</object>[ \t]*\n", re.DOTALL)


def plant(tree, skip=""):
    """Change a tree in place.

    Args:
        tree: folder of a VOC tree whose annotations have an element a line; JPEG pictures.
        skip: text; pictures whose names without suffix are in it, as they have problems already, are left alone.

    Returns:
        set of (kind, file, line): file relative to the tree, line None where the problem is about a picture.
    """
    tree, found = Path(tree), set()
    records, class_names = read_records(tree, "voc", split="all", problems=[])
    CLASSES[:] = class_names
    sound = [record for record in records if len(record.boxes) and Path(record.source).stem not in skip]
    victims = iter(sorted(sound, key=lambda record: record.source))
    for kind, change in TEXTS.items():
        file = tree / next(victims).source
        text, place = change(file.read_text())
        file.write_text(text)
        found |= {(kind.partition(":")[0], str(file.relative_to(tree)), text.count("\n", 0, place) + 1)}
    for kind, change in PICTURES.items():
        record = next(victims)
        change(Path(record.path))
        places = {"missing": (record.source, 1), "unreadable": (record.source, int(record.lines[0]))}
        place = places.get(kind.partition("-")[0], (os.path.relpath(record.path, tree), None))
        found |= {(kind.partition(":")[0], *place)}
    found |= _plant_classes(tree, victims, class_names)
    return found | _plant_copies(tree, victims)


def _object(text):
    """(start, end) of the first object of an annotation, and its text."""
    match = OBJECT.search(text)
    return match.start(), match.end(), match[0]


def _coordinates(**values):
    """A change that sets corners of the first object; functions get (xmin, ymin, xmax, ymax)."""

    def change(text):
        start, end, element = _object(text)
        corners = {name: float(re.search(rf"<{name}>([^<]*)</{name}>", element)[1]) for name in CORNERS}
        for name, value in values.items():
            value = value(**corners) if callable(value) else value
            element = re.sub(rf"<{name}>[^<]*</{name}>", f"<{name}>{value}</{name}>", element)
        return text[:start] + element + text[end:], start

    return change


def _repeat(name=None, **values):
    """A change that puts a copy of the first object after it, with another class or other corners."""

    def change(text):
        _, end, element = _object(text)
        copy = element if name is None else re.sub("<name>[^<]*</name>", f"<name>{name}</name>", element)
        if name is OTHER:
            copy = re.sub("<name>[^<]*</name>", f"<name>{_other_name(text, element)}</name>", element)
        if values:
            copy, _ = _coordinates(**values)(copy)
        return text[:end] + copy + text[end:], end

    return change


def _other_name(text, element):
    name = re.search("<name>([^<]*)</name>", element)[1]
    return next(other for other in CLASSES if other != name)


def _replace(pattern, replacement, at=None):
    def change(text):
        changed = re.sub(pattern, replacement, text, count=1, flags=re.DOTALL)
        return changed, re.search(at or pattern, text).start()

    return change


CORNERS = ("xmin", "ymin", "xmax", "ymax")
CLASSES = []  # of the tree in work, for OTHER
OTHER = object()
TEXTS = {
    "swapped-box": _coordinates(xmin=lambda xmax, **_: xmax, xmax=lambda xmin, **_: xmin),
    "degenerate-box": _coordinates(xmax=lambda xmin, **_: xmin),
    "outside-box": _coordinates(xmin=5000, xmax=5100),
    "clipped-box": _coordinates(xmax=lambda xmax, **_: xmax + 3000),
    "bad-number": _coordinates(ymin="12 px"),
    "bad-number:infinite": _coordinates(ymax="1e999"),
    "duplicate-box": _repeat(),
    "conflicting-boxes": _repeat(OTHER),
    "tiny-box": _repeat(xmin=3, xmax=6, ymin=3, ymax=7),
    "incomplete-object": _coordinates(xmin=""),
    "size-differs": _replace("<width>[0-9]+</width>", "<width>1234</width>", at="<size>"),
    "broken-xml": lambda text: (text[: _object(text)[1]], _object(text)[1]),
    "xml-entities": lambda text: ('<!DOCTYPE a [<!ENTITY b "c">]>\n' + text, 0),
}


def _cut(path):
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 6 // 10])


def _pipe(path):
    path.unlink()
    os.mkfifo(path)


def _with_exif(block):
    def change(path):
        data, marker = path.read_bytes(), b"Exif\0\0" + block
        # Before whatever block the camera wrote; of two the first counts.
        path.write_bytes(data[:2] + b"\xff\xe1" + struct.pack(">H", len(marker) + 2) + marker + data[2:])

    return change


PNG, HUGE = b"\x89PNG\r\n\x1a\n", b"IHDR" + struct.pack(">II5B", 60000, 60000, 8, 2, 0, 0, 0)
PICTURES = {
    "missing-picture": Path.unlink,
    "missing-picture:pipe": _pipe,
    "unreadable-picture": lambda path: path.write_text("a page that says the picture is gone"),
    "unreadable-picture:bomb": lambda path: path.write_bytes(
        PNG + struct.pack(">I", len(HUGE) - 4) + HUGE + struct.pack(">I", zlib.crc32(HUGE))
    ),
    "undecodable-picture": _cut,
    "exif-rotation": _with_exif(struct.pack("<4sIHHHIHHI", b"II*\0", 8, 1, 0x112, 3, 1, 3, 0, 0)),
    "exif-invalid": _with_exif(b"II*\0\xff\xff\xff\xff"),
}


def _plant_classes(tree, victims, class_names):
    """A class in capitals and, where a name is long enough, one with a letter left out."""
    found, wanted = set(), [(class_names[0], class_names[0].swapcase())]
    wanted += [(name, name[:2] + name[3:]) for name in class_names if len(name) > 4][:1]
    for name, wrong in wanted:
        file = next(
            file for file in (tree / record.source for record in victims) if f"<name>{name}<" in file.read_text()
        )
        file.write_text(file.read_text().replace(f"<name>{name}<", f"<name>{wrong}<", 1))
        found |= {("similar-classes", wrong, None), ("few-boxes", wrong, None)}
    return found


def _plant_copies(tree, victims):
    """Pictures that occur twice, one that nobody annotated, and two annotations of one picture."""
    found, names = set(), []
    for kind in ("duplicate-picture", "near-duplicate-picture", "repeated-picture"):
        record = next(victims)
        source, copy = tree / record.source, tree / "Annotations" / f"zz_{kind}.xml"
        text = OBJECT.sub("", source.read_text())
        if kind != "repeated-picture":
            text = re.sub("<filename>[^<]*<", f"<filename>{copy.stem}.jpg<", text)
            names.append((kind, os.path.relpath(record.path, tree), None))
        copy.write_text(text)
        if kind == "duplicate-picture":
            shutil.copy(record.path, tree / "JPEGImages" / f"{copy.stem}.jpg")
        elif kind == "near-duplicate-picture":
            image = cv2.convertScaleAbs(cv2.imread(record.path), alpha=1.05, beta=5)
            cv2.imwrite(str(tree / "JPEGImages" / f"{copy.stem}.jpg"), image, [cv2.IMWRITE_JPEG_QUALITY, 60])
        else:
            names.append((kind, f"Annotations/{copy.name}", 1))
    write_image(
        tree / "JPEGImages" / "zz_new.jpg", np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    )
    return found | set(names) | {("unreferenced-picture", "JPEGImages/zz_new.jpg", None)}


if __name__ == "__main__":
    shutil.copytree(sys.argv[1], sys.argv[2])
    print(*sorted(plant(sys.argv[2]), key=str), sep="\n")
