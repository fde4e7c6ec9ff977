"""Detection in a folder of any size: a journal keeps what is finished, so that an interrupted run can go on.

The journal is a file of JSON lines in the output folder, each a list. The first holds the settings of the run, which
another must share to go on with it; each further one a batch of pictures with their detections, or why they could not
be read; the last that the run is finished. The files that people want are made from it at the end, picture by picture.
"""

import json
import shutil
import unicodedata
from functools import partial

import numpy as np

from frcnn.data.images import WRITTEN, read_image, write_image
from frcnn.data.readers.problems import printable
from frcnn.data.threads import map_in_threads
from frcnn.files import fitting, is_of_the_name, locked, remove_drafts, replacing
from frcnn.inference import detect_stream
from frcnn.outputs import (
    unique_names,
    unique_stems,
    write_crops,
    write_csv,
    write_json,
    write_voc,
    write_yolo,
)
from frcnn.records import Detections
from frcnn.visualize import draw_detections

JOURNAL = "detections.journal.jsonl"
ERRORS = "errors.txt"
LOCK = ".detect.lock"
FOLDERS = ("pictures", "crops", "voc", "yolo")
RESULTS = (*FOLDERS, "detections.json", "detections.images.json", "detections.csv", ERRORS)


def lock(output):
    """Keep other detections out of an output folder (Path) for a block; ValueError where another process is at work."""
    return locked(output / LOCK, f"{output} is being written to", "wait for that one, or name another output folder")


def begin(output, settings, resume):
    """Start a journal, or go on with the one that is there; to be called within `lock`.

    A run that starts anew removes the results of the finished one before it, so that the two never mix. What a killed
    one left half written is removed.

    Args:
        output: Path of the output folder; made if it is missing.
        settings: dict of plain values, see `detect_folder`.
        resume: whether to go on with an earlier run.

    Returns:
        set of the paths of the pictures that are done; those that could not be read are not among them.

    Raises:
        ValueError: the folder holds a run with other settings (resume), or an unfinished one (no resume).
    """
    remove_drafts(output, *(folder for name in FOLDERS for folder in (output / name, *(output / name).rglob("*/"))))
    for file in (output / name for name in FOLDERS if (output / name).is_file()):
        raise ValueError(f"{file} is a file where a folder is to be made: move it, or name another output folder")
    entries = _read_journal(output)
    header, last, done = next(entries, {}), {}, set()
    for last in entries:
        if "boxes" in last:
            done.add(last["path"])
    others = [name for name, value in settings.items() if header.get(name) != value]
    if resume and header and others:
        raise ValueError(f"{output} holds a run with other {', '.join(others)}: name another output folder")
    if resume and header:
        return done
    if done and "finished" not in last:
        raise ValueError(
            f"{output} holds an unfinished run, {len(done)} pictures done: add --resume to go on with it, name another "
            f"output folder, or delete {output / JOURNAL} to start anew"
        )
    for name in set(last.get("finished", ())) & set(RESULTS):
        shutil.rmtree(output / name) if (output / name).is_dir() else (output / name).unlink(missing_ok=True)
    with replacing(output / JOURNAL) as file:
        absent = [name for name in RESULTS if not (output / name).exists()]
        file.write(json.dumps([settings | {"absent": absent}]) + "\n")
    return set()


def detect_folder(detector, names, output, settings, done=()):
    """Detect in pictures, draw them, cut out what was found, and write down in the journal what is finished.

    Args:
        detector: from `load_detector`.
        names: dict from each picture's path to its name in the output folders, "/" between the parts.
        output: Path of the output folder, with the journal of `begin`.
        settings: dict with "classes" (list of those to keep, or None for all), "draw_score" (lowest score drawn and cut
            out), "pictures" (whether to draw), "crops" (whether to cut out), and whatever else tells two runs apart.
        done: the pictures to leave out.

    Yields:
        the number of pictures that this call has finished, after each.

    Raises:
        ValueError, OSError: nothing can be written any more. What only one picture's file is in the way of, such as a
            size that its format cannot hold, is written down in the journal beside its detections.
    """
    places = _places(names, output)
    waiting = [path for path in names if path not in done]
    finish = partial(_finish, places, output, settings | {"bit_depth": detector.config.data.bit_depth})
    data, batch_size = detector.config.data, detector.config.detect.batch_size
    whole, entries = 0, []
    with open(output / JOURNAL, "a", encoding="ascii") as journal:
        journal.write("\n")  # a kill may have torn the last line
        items = zip(waiting, detect_stream(detector, waiting))
        for number, entry in enumerate(map_in_threads(finish, items, data.workers, batch_size), start=1):
            entries.append(entry)
            whole += "boxes" in entry
            # All or nothing of a batch: padding lets neighbours count a little, and going on must not change them.
            if whole % batch_size == 0 or number == len(waiting):
                journal.write(json.dumps(entries) + "\n")
                journal.flush()
                entries.clear()
            yield number


def write_results(names, class_names, output, formats, unlisted=None):
    """Make the files of a run from its journal, and mark it as finished.

    Args:
        names: see `detect_folder`; other pictures in the journal are left out.
        class_names: tuple of K strings.
        output: Path of the output folder.
        formats: which of "json", "csv", "voc", "yolo".
        unlisted: dict from the path of each folder that could not be listed to the reason, or None.

    Returns:
        dict from the path of each folder or picture that could not be read, or of which a file could not be written,
        to the reason.

    Raises:
        ValueError, OSError: nothing can be written any more, or a detection is not finite.
    """
    broken = dict(unlisted or {})
    if "json" in formats:
        write_json(output / "detections.json", read_detections(output, class_names, names))
    if "csv" in formats:
        write_csv(output / "detections.csv", read_detections(output, class_names, names))
    for format in {"voc", "yolo"} & set(formats):
        broken |= _write_beside(format, read_detections(output, class_names, names), _places(names, output), output)
    if "yolo" in formats:
        with replacing(output / "yolo" / "classes.txt") as file:
            file.writelines(f"{name}\n" for name in class_names)
    broken |= _broken(output, names)
    with replacing(output / ERRORS) as file:
        file.writelines(f"{printable(reason)}\n" for reason in broken.values())
    if not broken:
        (output / ERRORS).unlink()
    absent = next(_read_journal(output))["absent"]
    with open(output / JOURNAL, "a", encoding="ascii") as journal:
        journal.write(json.dumps([{"finished": [name for name in absent if (output / name).exists()]}]) + "\n")
    return broken


def read_detections(output, class_names, names):
    """Yield the `Detections` of a journal, in the order in which the pictures were finished; see `write_results`."""
    for entry in _read_journal(output):
        if "boxes" in entry and entry["path"] in names:
            arrays = (entry[name] for name in ("boxes", "scores", "labels"))
            yield Detections(*arrays, class_names, entry["path"], entry["size"])


def _broken(output, names):
    broken = {}
    for entry in _read_journal(output):
        if "error" in entry and entry["path"] in names:
            broken[entry["path"]] = entry["error"]
        elif "boxes" in entry:
            broken.pop(entry["path"], None)  # mended since
    return broken


def _read_journal(output):
    """Yield the entries of all lines, dicts; lines that a kill or a full disk tore, and blank ones, are passed over."""
    if not (output / JOURNAL).exists():
        return
    with open(output / JOURNAL, encoding="ascii", errors="replace") as file:
        for line in file:
            try:
                entries = json.loads(line)
            except ValueError:
                continue
            yield from entries


def _places(names, output):
    """{path: (name of its drawing, what its other files are called without suffix)}; `names`: see `detect_folder`."""
    same = _same_names(output)
    drawn = [name if name.lower().endswith(WRITTEN) else fitting(name, ".jpg") for name in names.values()]
    return dict(zip(names, zip(unique_names(drawn, same), unique_stems(names.values(), same))))


def _same_names(output):
    """The function `same` of `unique_names`, of a folder that holds a journal."""
    return _fold if (output / JOURNAL.upper()).exists() else str


def _fold(name):
    return unicodedata.normalize("NFC", name).casefold()


def _write_beside(format, found, places, output):
    """Write a VOC or YOLO file for each picture; {path: reason} of those that can have none."""
    (write, suffix), failed = {"voc": (write_voc, ".xml"), "yolo": (write_yolo, ".txt")}[format], {}
    for detections in found:
        file = output / format / fitting(places[detections.path][1], suffix)
        try:
            write(file, detections)
        except OSError as error:
            if not is_of_the_name(error):
                raise
            failed[detections.path] = f"{file}: cannot be written ({error.strerror})"
    return failed


def _finish(places, output, settings, item):
    """Draw a picture and cut it up, in a thread; what the journal says about it."""
    path, found = item
    try:
        if isinstance(found, Exception):
            raise found
        image = read_image(path, settings["bit_depth"]) if settings["pictures"] or settings["crops"] else None
    except ValueError as error:
        return {"path": path, "error": str(error)}
    found = found if settings["classes"] is None else found.of_classes(settings["classes"])
    # Numpy's text of a float32 is the shortest that gives it back, a third as long as that of its float64.
    boxes, scores = (array.astype(str).astype(np.float64).tolist() for array in (found.boxes, found.scores))
    entry = {"path": path, "size": found.size, "boxes": boxes, "scores": scores, "labels": found.labels.tolist()}
    shown, (name, stem) = found.above(settings["draw_score"]), places[path]
    writers = {
        "pictures": lambda: write_image(output / "pictures" / name, draw_detections(image, shown)),
        "crops": lambda: write_crops(output / "crops", stem, image, shown, _same_names(output)),
    }
    for write in (writers[kind] for kind in writers if settings[kind]):
        try:
            write()
        except (ValueError, OSError) as error:
            if not is_of_the_name(error):
                raise
            entry["error"] = str(error)  # its detections are there all the same
    return entry
