"""Readers of pictures with one class each: class folders, CSV, HDF5 as in the tutorials, MNIST's idx files, npz."""

import csv
import gzip
import io
import re
import zlib
from pathlib import Path

import h5py  # comes with Keras
import numpy as np

from frcnn.arrays import open_hdf5, read_npz
from frcnn.data.images import SUFFIXES, find_pictures, image_size
from frcnn.data.readers.annotation_text import locate
from frcnn.data.readers.problems import MAX_BYTES, Errors, read_bytes, read_lines
from frcnn.files import open_regular, reading
from frcnn.records import LabelledImage

SPLITS = ("train", "val", "test")
WHOLE = "all"  # the part of a source that has no parts
_HDF5_KEYS = "train_set_x, train_set_y, test_set_x, test_set_y (one pair is enough) and list_classes"
_NPZ_KEYS = "x_train, y_train, x_test, y_test, or x and y"
_IDX_NAME = re.compile(r"(.*)images([-.])idx3([-.])ubyte(\.gz)?")


def read_labelled(path, class_names=None, images=None):
    """Read pictures with one class each; what a file is, its content says.

    Args:
        path: one of: a folder with a folder of pictures per class, or with such folders in train and val or test; a
            text file with one `path,class` a line, the paths tried from its own folder, then from the working
            directory; an HDF5 file with train_set_x (N, H, W, 3), train_set_y (N,), test_set_x, test_set_y and
            list_classes; MNIST's idx files, with or without .gz, as a folder or the file of the pictures; an npz file
            with x_train, y_train, x_test, y_test, or x and y.
        class_names: the classes of a trained model, in its order; any other class is then an error. None takes those
            of list_classes, else those that occur, sorted.
        images: None, or a folder for the pictures of a text file, as in `read_records`.

    Returns:
        dict from "train", "val" and "test", as far as they are there, else from "all", to lists of `LabelledImage`;
        tuple of K class names. Arrays are held in memory, pictures in files are not, but their headers are read.

    Raises:
        ValueError: nothing there, anything wrong in it (names file, line or index), or only one class.
    """
    path = Path(path)
    if not path.exists():
        raise ValueError(f"{path}: no such file or folder")
    reader = _reader_of(path)
    if images is not None and reader is not _read_csv:
        raise ValueError(f"images: {path} holds its pictures itself; leave out the folder {images}")
    parts, known = reader(path) if images is None else reader(path, images)
    unknown = [name for name in known if class_names is not None and name not in class_names]
    if unknown:
        expected = ", ".join(class_names)
        raise ValueError(f"{path}: class {', '.join(unknown)} is not one of the model's classes: {expected}")
    class_names = tuple(known if class_names is None else class_names)
    if len(class_names) < 2:
        raise ValueError(f"{path} has one class ({class_names[0]}): a classifier tells at least two apart")
    labels = {name: label for label, name in enumerate(class_names)}
    return {
        part: [LabelledImage(place, labels[name], pixels) for place, name, pixels in rows]
        for part, rows in parts.items()
    }, class_names


def is_labelled(path):
    """Whether `read_labelled` may take what lies at a path; of text, by its first line: two fields, `path,class`."""
    path = Path(path)
    if not path.exists() or _reader_of(path) is not _read_csv:
        return True
    lines, _ = read_lines(path, path.name, Errors())
    first = next(filter(str.strip, lines), ",")  # an empty file is told of by the reader
    try:
        return len(next(csv.reader([first]))) == 2 and not first.strip().lower().endswith(SUFFIXES)
    except csv.Error:  # a line of JSON, perhaps
        return False


def _reader_of(path):
    """A function from the path to ({part: rows of (path or place, class, pixels or None)}, its classes in order)."""
    if path.is_dir():
        return _read_idx if any(_IDX_NAME.fullmatch(file.name) for file in path.iterdir()) else _read_folders
    try:
        with open_regular(path) as file:
            start = file.read(8)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from error
    if start.startswith(b"\x89HDF"):
        return _read_hdf5
    if start.startswith(b"PK"):
        return _read_npz
    return _read_idx if start.startswith((b"\x1f\x8b", b"\0\0\x08")) else _read_csv


# ------------------------------------------------------------------------------------------------------- in files


def _read_folders(path):
    split = [name for name in SPLITS if (path / name).is_dir()]
    split = split if "train" in split and len(split) > 1 else []
    parts = {name: _read_classes(path / name) for name in split} or {WHOLE: _read_classes(path)}
    known = {part: {name for _, name, _ in rows} for part, rows in parts.items()}
    for part, names in known.items():
        if names != known[next(iter(known))]:
            only = ", ".join(sorted(names ^ known["train"]))
            raise ValueError(
                f"{path}: train and {part} name different classes ({only} is in one alone): make them equal"
            )
    for rows in parts.values():
        for place, _, _ in rows:
            image_size(place)  # a file that is no picture is to be said before anything starts
    return parts, sorted(known[next(iter(known))])


def _read_classes(folder):
    classes = sorted(place for place in folder.iterdir() if place.is_dir() and not place.name.startswith("."))
    if not classes:
        raise ValueError(f"{folder}: expected a folder of pictures for each class, found no folder")
    found = {place: find_pictures(place) for place in classes}
    for place, files in found.items():
        if not files:
            raise ValueError(f"{place} holds no picture ({', '.join(SUFFIXES)}): a class folder needs at least one")
    return [(file, place.name, None) for place, files in found.items() for file in files]


def _read_csv(path, images=None):
    errors, rows = Errors(images=images), []
    lines, _ = read_lines(path, path.name, errors)
    for number, fields in enumerate(_fields(path, lines), start=1):
        fields = [field.strip() for field in fields]
        if not any(fields) or (number == 1 and fields == ["path", "class"]):
            continue
        if len(fields) != 2 or not all(fields):
            errors.add(number, "field-count", f"expected path,class, got {','.join(fields)!r:.80}")
            continue
        place = locate(fields[0], path.parent, number, errors)
        try:
            if Path(place).is_file():
                image_size(place)
        except ValueError as error:
            errors.add(number, "unreadable-picture", str(error))
        rows.append((place, fields[1], None))
    errors.finish()
    if not rows:
        raise ValueError(f"{path} is empty: expected lines of path,class")
    return {WHOLE: rows}, sorted({name for _, name, _ in rows})


def _fields(path, lines):
    try:
        yield from csv.reader(lines)
    except csv.Error as error:  # longer than any line of ours: JSON, perhaps
        raise ValueError(f"{path} is no list of path,class ({error})") from error


# ------------------------------------------------------------------------------------------------------ in arrays


def _read_hdf5(path):
    with reading(path, "HDF5"), open_hdf5(path) as file:
        arrays = {name: item[()] for name, item in file.items() if isinstance(item, h5py.Dataset)}
    parts = [part for part in SPLITS if {f"{part}_set_x", f"{part}_set_y"} & arrays.keys()] or ["train"]
    wanted = ["list_classes", *(f"{part}_set_{axis}" for part in parts for axis in "xy")]
    _require_keys(path, arrays, wanted, _HDF5_KEYS)
    classes = arrays["list_classes"].ravel().tolist()
    names = [name.decode(errors="replace") if isinstance(name, bytes) else str(name) for name in classes]
    # Numbers name themselves; texts are counted from 0.
    values = classes if all(isinstance(name, int) for name in classes) else list(range(len(classes)))
    name_of = dict(zip(values, names))
    rows = {part: _rows(path, f"{part}_set_x", f"{part}_set_y", arrays) for part in parts}
    for part, found in rows.items():
        for index, (_, value, _) in enumerate(found):
            if value not in name_of:
                known = ", ".join(map(str, values))
                raise ValueError(f"{path}: {part}_set_y[{index}] ({value}) is not of list_classes: expected {known}")
    return {part: [(place, name_of[value], x) for place, value, x in found] for part, found in rows.items()}, names


def _read_npz(path):
    with reading(path, "npz"):
        arrays = read_npz(path, re.compile(r"[xy](_train|_val|_test)?").fullmatch)
    parts = {part: f"_{part}" for part in SPLITS if {f"x_{part}", f"y_{part}"} & arrays.keys()} or {WHOLE: ""}
    _require_keys(path, arrays, [axis + suffix for suffix in parts.values() for axis in "xy"], _NPZ_KEYS)
    return _named({part: _rows(path, f"x{suffix}", f"y{suffix}", arrays) for part, suffix in parts.items()})


def _read_idx(path):
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    rows = {}
    for file in files:
        match = _IDX_NAME.fullmatch(file.name)
        if match:
            part = WHOLE if path.is_file() else "train" if "train" in match[1] else "test"
            stem = f"{match[1]}labels{match[2]}idx1{match[3]}ubyte"
            labels = next(
                (place for place in (file.with_name(stem), file.with_name(f"{stem}.gz")) if place.exists()), None
            )
            if labels is None:
                raise ValueError(f"{file}: its labels are missing, {stem} or {stem}.gz")
            rows[part] = _rows(file, "pictures", "labels", {"pictures": _idx_array(file), "labels": _idx_array(labels)})
    if not rows:
        raise ValueError(f"{path}: expected MNIST's names, as in train-images-idx3-ubyte.gz")
    return _named(rows)


def _idx_array(path):
    """The array of an idx file: 0, 0, 8 (bytes), number of axes, their lengths in big-endian 32 bits, the bytes."""
    data = read_bytes(path)
    try:
        if data.startswith(b"\x1f\x8b"):
            with gzip.open(io.BytesIO(data)) as file:  # a small file may unpack to any size
                data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise ValueError(f"unpacks to more than {MAX_BYTES >> 20} MiB")
        shape = np.frombuffer(data, ">u4", data[3], 4).astype(int)
        return np.frombuffer(data, np.uint8, offset=4 + 4 * data[3]).reshape(shape)
    except (OSError, EOFError, ValueError, IndexError, zlib.error) as error:
        raise ValueError(f"{path}: truncated, or not an idx file of bytes ({error})") from error


def _named(rows):
    """Rows whose classes are what occurs in them, numbers in their order."""
    known = sorted({value for found in rows.values() for _, value, _ in found})
    named = {part: [(place, str(value), x) for place, value, x in found] for part, found in rows.items()}
    return named, [str(value) for value in known]


def _require_keys(path, arrays, wanted, expected):
    missing = [name for name in wanted if name not in arrays]
    if missing:
        raise ValueError(
            f"{path} lacks {', '.join(missing)}: expected {expected}, found {', '.join(arrays) or 'nothing'}"
        )


def _rows(path, x_name, y_name, arrays):
    pictures, labels = arrays[x_name], arrays[y_name]
    is_grey, is_colour = pictures.ndim == 3, pictures.ndim == 4 and pictures.shape[3] in (1, 3, 4)
    if pictures.dtype != np.uint8 or not (is_grey or is_colour) or 0 in pictures.shape:
        raise ValueError(
            f"{path}: {x_name} is {pictures.dtype} {pictures.shape}, expected uint8 (N, H, W) or (N, H, W, 1, 3 or 4)"
        )
    if labels.dtype.kind not in "iuU" or labels.size != len(pictures) or labels.size not in labels.shape:
        raise ValueError(
            f"{path}: {y_name} is {labels.dtype} {labels.shape}, expected one class number for each of the "
            f"{len(pictures)} pictures of {x_name}"
        )
    places = (f"{path} {x_name}[{index}]" for index in range(len(pictures)))
    return list(zip(places, labels.ravel().tolist(), pictures))
