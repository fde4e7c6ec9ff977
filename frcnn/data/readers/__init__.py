"""Readers of annotation formats; each turns one path into `ImageRecord`s and class names."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from frcnn.data.readers.annotation_text import read_annotation_text, write_annotations
from frcnn.data.readers.coco import FOLDER_FILE, coco_splits, read_coco
from frcnn.data.readers.csv_table import has_header, read_csv_table
from frcnn.data.readers.huggingface import METADATA_FILE, huggingface_splits, read_huggingface, write_huggingface
from frcnn.data.readers.label_studio import is_label_studio, read_label_studio, write_label_studio
from frcnn.data.readers.problems import Errors, Problem, find_by_split, match_split
from frcnn.data.readers.voc import read_voc
from frcnn.data.readers.voc_folders import find_trees, voc_splits
from frcnn.data.readers.yolo import is_yolo, read_yolo, yolo_splits
from frcnn.records import name_problem

__all__ = [
    "FORMATS",
    "PARSERS",
    "Problem",
    "find_format",
    "match_split",
    "read_records",
    "require_boxes",
    "split_names",
]


class Format(NamedTuple):
    """One annotation format.

    Attributes:
        read: function of a path, class names or None, split or None, `Errors`; gives records and class names.
        matches: whether what lies at a path is of this format; the first in `FORMATS` of which it holds is taken.
        splits: function from a path to the names of its splits; None where each split is a file of its own.
        write: what writes it, see `frcnn.convert`, which writes voc, yolo and coco itself; None where nothing does.
        suffix: of the file that is written a split; None where it is a folder with copies of the pictures.
        holds: of "difficult", "crowd" and "classes" (their order, and those without boxes) what can be written.
    """

    read: Callable
    matches: Callable
    splits: Callable | None = None
    write: Callable | None = None
    suffix: str | None = None
    holds: tuple = ()


def read_records(path, format="simple", class_names=None, split=None, problems=None, outside="warning", images=None):
    """Read annotated pictures.

    Args:
        path: an annotation file (simple, csv, coco, label-studio); the folder of a Pascal VOC tree (Annotations,
            JPEGImages, ImageSets/Main) or of several (VOC2007, VOC2012), which are joined; a YOLO data.yaml, or its
            folder; Roboflow's folder of COCO files; the folder of Hugging Face's metadata.jsonl, or this file.
        format: "simple", keras-frcnn's text file with one `filepath,x1,y1,x2,y2,class_name` a line; another name in
            `FORMATS`, or keras-frcnn's "pascal_voc" for "voc"; "auto" tells them apart, see `find_format`.
        class_names: the classes of a trained model, in its order; any other class is then an error. None takes those
            that the file declares (coco by id, yolo by number) or, where none are declared, those that occur, sorted.
        split: voc, the name of a list in ImageSets/Main, and None takes trainval, else train, else every XML file;
            yolo and the formats of folders, train (None), val or test; val may be called valid or validation. "all"
            takes every picture.
        problems: None, or a list that takes every mistake and note as a `Problem`; what is wrong is then left out,
            nothing about single annotations is raised, and the good rest is returned.
        outside: "warning" or "error", what a picture's name that leaves the folder of the data is: one with more ".."
            than folders before or, when an error, an absolute one. Links are followed wherever they lead.
        images: None, or a folder: a picture that is not where its name says is looked for there and in its sub-folders
            by the last parts of its name, as many as possible. The name may be a Windows path or a `file://` URL.

    Returns:
        list of ImageRecord in the order of first appearance, tuple of K class names.

    Raises:
        ValueError: unknown format or split, or anything wrong in the annotations, each mistake with its file and
            line. With `problems` only what makes the whole source unusable: it is not there, not text, not that format.
    """
    for name, value, allowed in (("annotation format", format, PARSERS), ("outside", outside, ("warning", "error"))):
        if value not in allowed:
            raise ValueError(f"unknown {name} {value!r}: expected one of {', '.join(allowed)}")
    row = FORMATS[find_format(path, format)]
    if split not in (None, "all") and row.splits is None:
        with_splits = ", ".join(name for name, each in FORMATS.items() if each.splits)
        raise ValueError(f"{path}: splits such as {split!r} belong to {with_splits}; give the file of the split")
    errors, given = Errors(problems, outside, images), class_names
    try:
        split = split if split in (None, "all") else match_split(split, row.splits(path))
        records, class_names = row.read(path, class_names, split, errors)
    except OSError as error:  # a folder that cannot be listed, or that went away in between
        raise ValueError(f"{error.filename or path}: cannot be read ({error.strerror})") from error
    if not class_names:
        require_boxes([], path, problems)
    for message in filter(None, map(name_problem, class_names if given is None else ())):
        if problems is None:
            raise ValueError(f"{path}: {message}")
        problems.append(Problem("class-name", "error", str(path), None, message))
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


def find_format(path, format="auto"):
    """The name in `FORMATS` of a format; "auto" tells it from what lies at a path.

    A folder is "yolo" if it holds a data.yaml and no VOC tree, "coco" or "huggingface" if it, or its train, valid or
    test, holds Roboflow's _annotations.coco.json or a metadata.jsonl, and else "voc". A file is told by its suffix,
    .json by its first sign, and any other is "csv" with a header and else "simple".
    """
    if format != "auto":
        return _ALIASES.get(format, format)
    return next(name for name, row in FORMATS.items() if row.matches(path))


def split_names(path, format="auto"):
    """Names of the splits of the data set at `path`: sorted those of VOC trees, where lists of one class, with a flag
    a line, do not count; train, val and test of YOLO and of folders; none of a single file."""
    splits = FORMATS[find_format(path, format)].splits
    return splits(path) if splits else ()


def _has_suffix(path, *suffixes):
    return not os.path.isdir(path) and Path(path).suffix.lower() in suffixes


def _has_file(path, name):
    return os.path.isdir(path) and bool(find_by_split(path, name))


# Told apart in this order: of folders voc is the last resort, of files simple.
FORMATS = {
    "yolo": Format(
        read_yolo,
        lambda path: is_yolo(path) and not find_trees(path),
        splits=yolo_splits,
        holds=("classes",),
    ),
    "label-studio": Format(
        read_label_studio,
        lambda path: _has_suffix(path, ".json") and is_label_studio(path),
        write=write_label_studio,
        suffix=".json",
    ),
    "coco": Format(
        read_coco,
        lambda path: _has_suffix(path, ".json") or _has_file(path, FOLDER_FILE),
        splits=coco_splits,
        suffix=".json",
        holds=("crowd", "classes"),
    ),
    "huggingface": Format(
        read_huggingface,
        lambda path: _has_suffix(path, ".jsonl") or _has_file(path, METADATA_FILE),
        splits=huggingface_splits,
        write=write_huggingface,
    ),
    "voc": Format(read_voc, os.path.isdir, splits=voc_splits, holds=("difficult",)),
    "csv": Format(read_csv_table, has_header),
    "simple": Format(read_annotation_text, lambda path: True, write=write_annotations, suffix=".txt"),
}
_ALIASES = {"pascal_voc": "voc"}  # as keras-frcnn says
PARSERS = ("auto", *FORMATS, *_ALIASES)  # what -o may be
