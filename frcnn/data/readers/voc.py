"""Pascal VOC: `Annotations/*.xml` beside `JPEGImages`, with the names of each split in `ImageSets/Main/*.txt`.

A VOC box counts pixels from 1 and holds its last one: (xmin, ymin, xmax, ymax) becomes (xmin - 1, ymin - 1, xmax,
ymax). The pictures are measured; the sizes in the XML, often wrong, are not read.
"""

import os
from pathlib import Path, PureWindowsPath
from xml.etree.ElementTree import TreeBuilder

import numpy as np
import pandas as pd
from defusedxml import DefusedXmlException
from defusedxml.ElementTree import DefusedXMLParser, ParseError

from frcnn.data.images import SUFFIXES
from frcnn.data.readers.problems import read_bytes, read_lines
from frcnn.data.readers.table import COORDINATES, build_records

_CORNERS = ("xmin", "ymin", "xmax", "ymax")
_REQUIRED = ("name", *_CORNERS)
_TYPES = {"picture": np.int64, "line": np.int64, "difficult": bool}


def read_voc(path, class_names, split, errors):
    """Read a VOC tree, or those in a VOCdevkit folder; see `frcnn.data.readers.read_records`.

    The picture is the one that <filename> names or, where there is none, the one with the XML's name.
    """
    path = Path(path)
    trees = find_trees(path)
    if not trees:
        expected = "expected folders Annotations and JPEGImages in it, or in its VOC2007 or VOC2012 (YOLO: a data.yaml)"
        raise ValueError(f"{path} is no Pascal VOC tree: {expected}")
    if split not in (None, "all") and not any(split in _split_files(tree) for tree in trees):
        names = ", ".join(voc_splits(path)) or "no list"
        raise ValueError(f"{path} has no split {split!r}: ImageSets/Main holds {names}")
    pictures, rows = {}, []
    for tree in trees:
        rows += _read_tree(tree, split, path, pictures, errors)
    if not pictures and not errors.found:
        raise ValueError(f"{path} has no annotated picture: Annotations, or the list of the split, is empty")
    columns = ["class_name", *COORDINATES, *_TYPES]
    table = pd.DataFrame(rows, columns=columns, dtype=object).astype(_TYPES)
    return build_records(table, list(pictures), class_names, errors, _CORNERS, origin=1)


def voc_splits(path):
    """Names of the splits of the VOC trees at `path`, sorted; lists of one class, with a flag a line, do not count."""
    names = set()
    for tree in find_trees(Path(path)):
        for name, file in _split_files(tree).items():
            first_line = read_bytes(file).strip().partition(b"\n")[0]
            if first_line.split()[1:] not in ([b"-1"], [b"0"], [b"1"]):
                names.add(name)
    return tuple(sorted(names))


def find_trees(path):
    """The folders of the VOC trees at a path: itself, or those in it whose names begin with VOC."""
    path = Path(path)
    places = (path, *sorted(path.glob("VOC*")))
    return [tree for tree in places if (tree / "Annotations").is_dir() and (tree / "JPEGImages").is_dir()]


def _split_files(tree):
    return {file.stem: file for file in sorted((tree / "ImageSets" / "Main").glob("*.txt")) if file.is_file()}


def _read_tree(tree, split, path, pictures, errors):
    """Add the tree's pictures to `pictures`, a dict from path to XML file; returns the rows of their boxes."""
    names = set(os.listdir(tree / "JPEGImages"))
    by_stem = {os.path.splitext(name)[0]: name for name in sorted(names) if name.lower().endswith(SUFFIXES)}
    rows = []
    for file, line in _find_files(tree, split, path, errors).items():
        shown = file.relative_to(path)
        try:
            data = read_bytes(file)
        except ValueError as error:
            errors.add(errors.begin(shown, 1) + 1, "unreadable-file", str(error))
            continue
        start = errors.begin(shown, len(data))
        root = _parse(data, start, errors)
        if root is None:
            continue
        filename = PureWindowsPath((root.findtext("filename") or "").strip()).name  # some write a whole path
        place = str(tree / "JPEGImages" / (filename if filename in names else by_stem.get(file.stem, file.stem)))
        if filename not in names and file.stem not in by_stem:
            message = f"no picture for {shown}: JPEGImages has no {filename or '<filename>'} and no {file.stem}.*"
            others = [root.findtext("filename") or "", *(file.stem + suffix for suffix in SUFFIXES)]
            place = errors.find_picture(line or start + 1, filename, (), message, others) or place
        elif not os.path.isfile(place):
            errors.add(start + 1, "missing-picture", f"{place} is no file, but a folder, a pipe or a device")
        if place in pictures:
            message = f"{place} is the picture of {pictures[place]} already: correct <filename>"
            errors.add(start + 1, "repeated-picture", message)
            continue
        rows += _rows(root, len(pictures), start, errors)
        size = root.find("size")
        if size is not None:
            texts = (size.findtext(side, "").strip() for side in ("width", "height"))
            sides = [int(text) if text.isdecimal() and len(text) < 10 else 0 for text in texts]
            errors.declared[place] = (start + size.get("line"), *sides)
        pictures[place] = shown
    return rows


def _find_files(tree, split, path, errors):
    """The XML files asked for, each with its line in the list of the split, or None where there is no list."""
    files = {file.stem: file for file in sorted((tree / "Annotations").iterdir()) if file.suffix.lower() == ".xml"}
    lists = _split_files(tree)
    name = split or next((name for name in ("trainval", "train") if name in lists), None)
    if name is None or split == "all":
        return dict.fromkeys(files.values())
    if name not in lists:  # one of several trees has it
        return {}
    found = {}
    lines, start = read_lines(lists[name], lists[name].relative_to(path), errors)
    for number, line in enumerate(map(str.strip, lines), start + 1):
        if not line:
            continue
        stem = line if line in files else line.split()[0]  # lists of one class go on with a flag
        if stem in files:
            found[files[stem]] = number
        else:
            message = f"no {tree.relative_to(path) / 'Annotations' / stem}.xml"
            errors.add(number, "missing-annotation", message)
    return found


def _parse(data, start, errors):
    """The root element of an XML file, or None where that is reported."""
    builder = _LineTreeBuilder()
    parser = DefusedXMLParser(target=builder)
    builder.expat = parser.parser
    try:
        parser.feed(data)
        root = parser.close()
    except ParseError as error:
        message = f"broken XML ({error}); cut short, or not an annotation?"
        errors.add(start + error.position[0], "broken-xml", message)
    except DefusedXmlException:
        message = "XML entities can hide attacks and are not read: write the text itself in their place"
        errors.add(start + 1, "xml-entities", message)
    except (ValueError, LookupError) as error:
        errors.add(start + 1, "bad-encoding", f"cannot decode the XML ({error}): save it as UTF-8")
    else:
        if root.tag == "annotation":
            return root
        errors.add(start + root.get("line"), "broken-xml", f"<{root.tag}> where <annotation> was expected")
    return None


class _LineTreeBuilder(TreeBuilder):
    """Gives every element the attribute `line`, where it begins."""

    def start(self, tag, attributes):
        return super().start(tag, {"line": self.expat.CurrentLineNumber})


def _rows(root, picture, start, errors):
    """Rows of the table, one an object, or an empty one for a picture without objects."""
    rows = []
    for element in root.iter("object"):
        line, box = start + element.get("line"), element.find("bndbox")
        texts = {child.tag: (child.text or "").strip() for child in (*element, *(() if box is None else box))}
        missing = [tag for tag in _REQUIRED if not texts.get(tag)]
        if missing:
            errors.add(line, "incomplete-object", f"object without {', '.join(missing)}")
        else:
            rows.append((*(texts[tag] for tag in _REQUIRED), picture, line, texts.get("difficult") == "1"))
    return rows or [("",) * len(_REQUIRED) + (picture, start + 1, False)]
