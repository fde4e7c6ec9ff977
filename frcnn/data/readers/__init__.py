"""Readers of annotation formats; each turns one path into `ImageRecord`s and class names."""

import os
from pathlib import Path

from frcnn.data.readers.annotation_text import read_annotation_text
from frcnn.data.readers.coco import read_coco
from frcnn.data.readers.problems import Errors, Problem
from frcnn.data.readers.voc import read_voc
from frcnn.data.readers.voc_folders import find_trees, holds_xml, voc_splits
from frcnn.data.readers.yolo import find_yaml, names_data, read_yolo, yolo_splits

__all__ = ["FORMATS", "Problem", "find_format", "read_records", "require_boxes", "split_names"]

FORMATS = ("auto", "simple", "voc", "pascal_voc", "coco", "yolo")


def read_records(path, format="simple", class_names=None, split=None, problems=None, outside="warning"):
    """Read annotated pictures.

    Args:
        path: an annotation file (simple, coco); the folder of a Pascal VOC tree (Annotations, JPEGImages,
            ImageSets/Main) or of several (VOC2007, VOC2012), which are joined; a YOLO data.yaml, or its folder.
        format: "simple", keras-frcnn's text file with one `filepath,x1,y1,x2,y2,class_name` a line; "voc" or, as
            keras-frcnn says, "pascal_voc"; "coco", a JSON file of instances; "yolo"; "auto" tells them apart, see
            `find_format`.
        class_names: the classes of a trained model, in its order; any other class is then an error. None takes those
            that the file declares (coco by id, yolo by number) or, where none are declared, those that occur, sorted.
        split: voc, the name of a list in ImageSets/Main, and None takes trainval, else train, else every XML file;
            yolo, train (None), val or test. "all" takes every picture.
        problems: None, or a list that takes every mistake and note as a `Problem`; what is wrong is then left out,
            nothing about single annotations is raised, and the good rest is returned.
        outside: "warning" or "error", what a picture's name that leaves the folder of the data is: one with more ".."
            than folders before or, when an error, an absolute one. Links are followed wherever they lead.

    Returns:
        list of ImageRecord in the order of first appearance, tuple of K class names.

    Raises:
        ValueError: unknown format or split, or anything wrong in the annotations, each mistake with its file and
            line. With `problems` only what makes the whole source unusable: it is not there, not text, not that format.
    """
    for name, value, allowed in (("annotation format", format, FORMATS), ("outside", outside, ("warning", "error"))):
        if value not in allowed:
            raise ValueError(f"unknown {name} {value!r}: expected one of {', '.join(allowed)}")
    format = find_format(path) if format == "auto" else format
    if split not in (None, "all") and format in ("simple", "coco"):
        raise ValueError(
            f"{path}: splits such as {split!r} belong to Pascal VOC trees and YOLO; give the file of the split"
        )
    errors = Errors(problems, outside)
    try:
        if format == "simple":
            records, class_names = read_annotation_text(path, class_names, errors)
        elif format == "coco":
            records, class_names = read_coco(path, class_names, errors)
        elif format == "yolo":
            records, class_names = read_yolo(path, class_names, split, errors)
        else:
            records, class_names = read_voc(path, class_names, split, errors)
    except OSError as error:  # a folder that cannot be listed, or that went away in between
        raise ValueError(f"{error.filename or path}: cannot be read ({error.strerror})") from error
    if not class_names:
        require_boxes([], path, problems)
    return records, class_names


def require_boxes(records, path, problems=None):
    """Refuse annotations without a single box to learn from; they are read, as what is only converted may be empty.

    Args:
        records: list of ImageRecord.
        path: where they come from, for the message.
        problems: None, or a list that takes the mistake, which is then not raised.

    Raises:
        ValueError: no record has a box that is no crowd's.
    """
    if any(len(record.without_crowds().boxes) for record in records):
        return
    message = "has no box, only pictures without objects: mark at least one object"
    if problems is None:
        raise ValueError(f"{path} {message}")
    problems.append(Problem("no-boxes", "error", str(path), None, message))


def find_format(path):
    """The format of what lies at a path: a folder is "yolo" if it holds a data.yaml and no VOC tree, and else "voc",
    also where its only YAML file is none of YOLO and XML annotations lie there; a file is "coco" if it ends in
    ".json", "yolo" if in ".yaml" or ".yml", and else "simple"."""
    if os.path.isdir(path):
        file = None if find_trees(path) else find_yaml(path)
        return "yolo" if file and (names_data(file) or not holds_xml(path)) else "voc"
    suffix = Path(path).suffix.lower()
    return "coco" if suffix == ".json" else "yolo" if suffix in (".yaml", ".yml") else "simple"


def split_names(path):
    """Names of the splits of the data set at `path`: sorted those of VOC trees, where lists of one class, with a flag
    a line, do not count; train, val and test of YOLO; none of a single file."""
    format = find_format(path)
    return voc_splits(path) if format == "voc" else yolo_splits(path) if format == "yolo" else ()
