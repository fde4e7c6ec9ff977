"""Readers of annotation formats; each turns one path into `ImageRecord`s and class names."""

import os

from frcnn.data.readers.annotation_text import read_annotation_text
from frcnn.data.readers.table import Problem
from frcnn.data.readers.voc import read_voc, split_names

__all__ = ["FORMATS", "Problem", "read_records", "split_names"]

FORMATS = ("auto", "simple", "voc", "pascal_voc")


def read_records(path, format="simple", class_names=None, split=None, problems=None):
    """Read annotated pictures.

    Args:
        path: an annotation file, or the folder of a Pascal VOC tree (Annotations, JPEGImages, ImageSets/Main) or of
            several (VOC2007, VOC2012), which are joined.
        format: "simple", keras-frcnn's text file with one `filepath,x1,y1,x2,y2,class_name` a line; "voc" or, as
            keras-frcnn says, "pascal_voc"; "auto" takes a folder for voc and a file for simple.
        class_names: the classes of a trained model, in its order; any other class is then an error. None takes the
            classes that occur, sorted.
        split: voc only, the name of a list in ImageSets/Main. None takes trainval, else train, else every XML file.
        problems: None, or a list that takes every mistake and note as a `Problem`; what is wrong is then left out,
            nothing about single annotations is raised, and the good rest is returned.

    Returns:
        list of ImageRecord in the order of first appearance, tuple of K class names.

    Raises:
        ValueError: unknown format or split, or anything wrong in the annotations, each mistake with its file and
            line. With `problems` only what makes the whole source unusable: it is not there, not text, not that format.
    """
    if format not in FORMATS:
        raise ValueError(f"unknown annotation format {format!r}: expected one of {', '.join(FORMATS)}")
    if format == "auto":
        format = "voc" if os.path.isdir(path) else "simple"
    if format == "simple":
        if split is not None:
            raise ValueError(f"{path}: splits such as {split!r} belong to Pascal VOC trees; give the file of the split")
        records, class_names = read_annotation_text(path, class_names, problems)
    else:
        records, class_names = read_voc(path, class_names, split, problems)
    if not class_names:
        message = "has no box, only pictures without objects: mark at least one object"
        if problems is None:
            raise ValueError(f"{path} {message}")
        problems.append(Problem("no-boxes", "error", str(path), None, message))
    return records, class_names
