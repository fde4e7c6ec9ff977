"""Readers of annotation formats; each turns one path into `ImageRecord`s and class names."""

from frcnn.data.readers.annotation_text import read_annotation_text

_READERS = {"simple": read_annotation_text}


def read_records(path, format="simple", class_names=None):
    """Read annotated pictures.

    Args:
        path: the annotation file.
        format: "simple", keras-frcnn's text file with one `filepath,x1,y1,x2,y2,class_name` a line.
        class_names: the classes of a trained model, in its order; any other class is then an error. None takes the
            classes that occur, sorted.

    Returns:
        list of ImageRecord in the order of first appearance, tuple of K class names.

    Raises:
        ValueError: unknown format, or anything wrong in the annotations, each mistake with its line.
    """
    if format not in _READERS:
        raise ValueError(f"unknown annotation format {format!r}: expected one of {', '.join(sorted(_READERS))}")
    return _READERS[format](path, class_names)
