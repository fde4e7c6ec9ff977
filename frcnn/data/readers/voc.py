"""Pascal VOC: an XML file of boxes for each picture; `frcnn.data.readers.voc_folders` finds both.

A VOC box counts pixels from 1 and holds its last one: (xmin, ymin, xmax, ymax) becomes (xmin - 1, ymin - 1, xmax,
ymax). Of a turned box, the box around it is taken. The pictures are measured; the sizes in the XML, often wrong, are
not read.
"""

import math
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
from frcnn.data.readers.voc_folders import FOLDER_SPLITS, list_trees, match_pictures, unannotated, voc_splits

_CORNERS = ("xmin", "ymin", "xmax", "ymax")
_TURNED = ("cx", "cy", "w", "h", "angle")  # of roLabelImg's <robndbox>, the angle in radians
_TYPES = {"picture": np.int64, "line": np.int64, "difficult": bool}
_YES = ("1", "true", "yes")


def read_voc(path, class_names, split, errors):
    """Read VOC's XML files, in a tree or not; see `frcnn.data.readers.read_records`.

    The picture is the one that <filename> names or, where there is none, the one with the XML's name.
    """
    path = Path(path)
    trees = list_trees(path)
    if not trees:
        expected = "expected folders Annotations and JPEGImages in it, or in its VOC2007 or VOC2012, or pictures with"
        raise ValueError(f"{path} is no Pascal VOC tree: {expected} an XML file each (YOLO: a data.yaml)")
    if not any(tree.names for tree in trees) and not trees[0].is_classic:
        raise ValueError(f"{path} holds XML files but no picture: name the folder that holds both")
    if split not in (None, "all"):
        available = {name for tree in trees for name in tree.splits}
        split = split if split in available else FOLDER_SPLITS.get(split, split)
        if split not in available:
            names = ", ".join(voc_splits(path)) or "no list"
            place = "ImageSets/Main holds" if trees[0].is_classic else "its folders are"
            raise ValueError(f"{path} has no split {split!r}: {place} {names}")
    pictures, rows = {}, []
    for tree in trees:
        rows += _read_tree(tree, split, path, pictures, errors)
    if not pictures and not errors.found:
        raise ValueError(f"{path} has no annotated picture: Annotations, or the list of the split, is empty")
    columns = ["class_name", *COORDINATES, *_TYPES]
    table = pd.DataFrame(rows, columns=columns, dtype=object).astype(_TYPES)
    return build_records(table, list(pictures), class_names, errors, _CORNERS, origin=1)


def _read_tree(tree, split, path, pictures, errors):
    """Add the tree's pictures to `pictures`, a dict from path to XML file; returns the rows of their boxes."""
    files = _read_files(tree, split, path, errors)
    matches = match_pictures(tree, [(file, _bare(named)) for file, named, *_ in files])
    rows, own = [], set()
    for (file, named, line, start, its_rows, size), (found, folders) in zip(files, matches, strict=True):
        shown = file.relative_to(path)
        place = found[0] if len(found) == 1 else os.path.join(folders[0], file.stem)
        if not found:
            looked = ", ".join(os.path.relpath(folder, path) for folder in folders[:3])
            wanted = f"no {_bare(named) or '<filename>'} and no {file.stem}.*"
            message = f"no picture for {shown}: {looked} has {wanted}"
            names = [named, *(str(shown.with_suffix(suffix)) for suffix in SUFFIXES)]
            own_name = str(shown.with_name(_bare(named) or file.stem))
            place = errors.find_picture(line or start + 1, own_name, (), message, names) or place
        elif len(found) > 1:
            message = f"{' and '.join(found[:2])} could both be the picture of {shown}: keep one of them here"
            errors.add(start + 1, "ambiguous-picture", message)
        elif not os.path.isfile(place):
            errors.add(start + 1, "missing-picture", f"{place} is no file, but a folder, a pipe or a device")
        if place in pictures:
            message = f"{place} is the picture of {pictures[place]} already: correct <filename>"
            errors.add(start + 1, "repeated-picture", message)
            continue
        rows += [(*row[:-2], len(pictures), *row[-2:]) for row in its_rows]
        if size:
            errors.declared[place] = size
        pictures[place] = shown
        own.add(place)
    if not tree.is_classic:
        for place in unannotated(tree, own):
            line = errors.begin(os.path.relpath(place, path), 1) + 1
            errors.note([line], "unreferenced-picture", "without an XML file of its own, left out", what="picture")
    return rows


def _read_files(tree, split, path, errors):
    """What the XML files of a split say: a list of (file, <filename>, line in the list of the split or None, first
    line, rows of the table but for the picture, declared size or None)."""
    found = []
    for file, line in _find_files(tree, split, path, errors).items():
        shown = file.relative_to(path)
        try:
            data = read_bytes(file)
        except ValueError as error:
            errors.add(errors.begin(shown, 1) + 1, "unreadable-file", str(error))
            continue
        start = errors.begin(shown, len(data))
        root = _parse(data, start, errors, tree.is_classic)
        if root is None:
            continue
        named = (root.findtext("filename") or "").strip()
        found.append((file, named, line, start, _rows(root, start, errors), _declared_size(root, start)))
    return found


def _bare(name):
    return PureWindowsPath(name).name  # some write a whole path


def _declared_size(root, start):
    size = root.find("size")
    if size is None:
        return None
    texts = (size.findtext(side, "").strip() for side in ("width", "height"))
    sides = [int(text) if text.isdecimal() and len(text) < 10 else 0 for text in texts]
    return (start + size.get("line"), *sides)


def _find_files(tree, split, path, errors):
    """The XML files asked for, each with its line in the list of the split, or None where there is no list."""
    name = split or next((name for name in ("trainval", "train") if name in tree.splits), None)
    if name is None or split == "all":
        return dict.fromkeys(tree.files.values())
    source = tree.splits.get(name, [])  # of several trees, one has it
    if not isinstance(source, Path):
        return dict.fromkeys(source)
    found = {}
    lines, start = read_lines(source, source.relative_to(path), errors)
    for number, line in enumerate(map(str.strip, lines), start + 1):
        if not line:
            continue
        stem = line if line in tree.files else line.split()[0]  # lists of one class go on with a flag
        if stem in tree.files:
            found[tree.files[stem]] = number
        else:
            message = f"no {tree.annotations.relative_to(path) / stem}.xml"
            errors.add(number, "missing-annotation", message)
    return found


def _parse(data, start, errors, is_classic):
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
        if is_classic:
            errors.add(start + root.get("line"), "broken-xml", f"<{root.tag}> where <annotation> was expected")
        else:
            text = "of another kind than <annotation>, not read"
            errors.note([start + root.get("line")], "other-xml", text, what="XML file")
    return None


class _LineTreeBuilder(TreeBuilder):
    """Gives every element the attribute `line`, where it begins."""

    def start(self, tag, attributes):
        return super().start(tag, {"line": self.expat.CurrentLineNumber})


def _rows(root, start, errors):
    """Rows of the table but for the picture, one an object, or an empty one for a picture without objects."""
    rows = []
    for element in root.iter("object"):
        line, turned = start + element.get("line"), element.find("robndbox")
        box = element.find("bndbox") if turned is None else turned
        texts = {child.tag: (child.text or "").strip() for child in (*element, *(() if box is None else box))}
        required = ("name", *(_CORNERS if turned is None else _TURNED))
        missing = [tag for tag in required if not texts.get(tag)]
        if missing:
            errors.add(line, "incomplete-object", f"object without {', '.join(missing)}")
            continue
        corners = _corners(element, texts, line, errors)
        if corners:
            rows.append((texts["name"], *corners, line, texts.get("difficult", "").lower() in _YES))
    return rows or [("",) * 5 + (start + 1, False)]


def _corners(element, texts, line, errors):
    """The four corners as they are written; of a turned box, those of the box around it; None where a mistake is
    reported."""
    attributes = {item.findtext("name"): item.findtext("value") for item in element.iterfind("attributes/attribute")}
    degrees = texts.get("rotation") or (attributes.get("rotation") or "").strip()
    corners = [texts.get(corner) for corner in _CORNERS]
    try:
        if element.find("robndbox") is not None:
            x, y, width, height, angle = (float(texts[name]) for name in _TURNED)
        elif degrees and float(degrees):
            x1, y1, x2, y2 = map(float, corners)
            x, y, width, height = (x1 - 1 + x2) / 2, (y1 - 1 + y2) / 2, x2 - x1 + 1, y2 - y1 + 1
            angle = math.radians(float(degrees))
        else:
            return corners
        sine, cosine = abs(math.sin(angle)), abs(math.cos(angle))
    except ValueError:  # not numbers; of an unturned box that is said with the corner's name
        written = ", ".join(filter(None, (*(texts.get(name) for name in (*_CORNERS, *_TURNED)), degrees)))
        errors.add(line, "bad-number", f"turned box ({written}): expected finite numbers")
        return None
    errors.note([line], "turned-box", "turned, read as the box around it")
    half_width, half_height = (width * cosine + height * sine) / 2, (width * sine + height * cosine) / 2
    return x - half_width + 1, y - half_height + 1, x + half_width, y + half_height
