"""What the readers share: annotation files read with care, and their mistakes by file and line."""

import bisect
import codecs
import json
import os
import warnings
from pathlib import Path
from typing import NamedTuple

from frcnn.data.readers.pictures import PictureFolder
from frcnn.files import printable, read_at_most

MAX_BYTES = 2**30  # of an annotation file: ten million boxes; what is made of it takes up to ten times as much memory
SPLITS = ("train", "val", "test")
_SPLIT_FOLDERS = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}
ELSEWHERE = "where the pictures lie in another folder, name it: --images FOLDER (in Python images=FOLDER)"
_MAX_SHOWN = 20
_MAX_KEPT = 100_000


class Problem(NamedTuple):
    """One mistake or note about annotations.

    Attributes:
        kind: a short code that stays the same, such as "missing-picture", "swapped-box" or "clipped-box".
        severity: "error": what it speaks of is left out; "warning": it is used as the message says.
        file: as people write it: the annotation file's name, in a tree its path from there.
        line: from 1, or None where lines say nothing (JSON); the message then begins with the entry.
        message: what is wrong, and what was expected.
    """

    kind: str
    severity: str
    file: str
    line: int | None
    message: str

    def __str__(self):
        """`file line 12: message`."""
        return f"{self.file}{f' line {self.line}' if self.line else ''}: {self.message}"


class Errors:
    """Mistakes by line, raised together, so that one run shows them all. Lines are counted on from file to file.

    Args:
        problems: None, or a list that takes all mistakes and notes as `Problem`s; nothing is then raised or warned of.
        outside: "error" or "warning", what a picture's name that leaves the folder of the data is.
        images: None, or a folder in which pictures are looked for that are not where their names say.

    Attributes:
        declared: dict from a picture's path to (line, width, height) as the annotations have them, whatever they are.
    """

    def __init__(self, problems=None, outside="warning", images=None):
        self._images = None if images is None else PictureFolder(images)
        self.problems, self.outside, self.declared = problems, outside, {}
        self.found, self._more, self._notes = [], 0, {}
        self._names, self._starts, self._end, self._entries = [], [], 0, []

    def begin(self, name, size, entry=None):
        """Announce a file; returns what to add to its line numbers, counted from 1.

        Args:
            name: the file's, as people write it.
            size: not less than its number of lines.
            entry: None, or a function from a number to the name of an entry, in a file whose lines say nothing.
        """
        self._names.append(printable(str(name)))
        self._starts.append(self._end)
        self._entries.append(entry)
        self._end += size + 1
        return self._starts[-1]

    def place(self, line):
        """The file and line as people write it."""
        return str(self._problem(line, "", "", "")).removesuffix(": ")

    def locate(self, lines):
        """The file that lines as counted here are of, and their numbers in it, or None where lines say nothing."""
        if not len(lines):
            return "", lines
        index = bisect.bisect_left(self._starts, lines[0]) - 1
        return self._names[index], lines - self._starts[index] if self._entries[index] is None else None

    def add(self, line, kind, message, severity="error"):
        """Note a mistake. A hundred thousand are kept, the rest is counted."""
        if len(self.found) < _MAX_KEPT:
            self.found.append((int(line), kind, severity, printable(message)))
        else:
            self._more += 1

    def note(self, lines, kind, text, severity="warning", what="box"):
        """Note boxes that are not used as they stand: one warning counts them, or each is a problem."""
        if self.problems is None:
            self._notes.setdefault((kind, text, what), []).extend(lines)
            return
        for line in lines:
            self.add(line, kind, f"{what} {text}", severity)

    def check_name(self, line, name):
        """Report a picture's name that leaves the folder of the data: more ".." than folders before, or absolute.

        An absolute one says plainly where it leads: it is reported only where the others are errors.

        Returns:
            bool, whether what it names may be opened.
        """
        if not _leaves(name):
            return True
        if self.outside == "error":
            self.add(line, "outside-folder", f"{name} leaves the folder of the data, which is not allowed here")
        elif not os.path.isabs(name):
            self.note([line], "outside-folder", "outside the folder of the data", what="name")
        return self.outside != "error"

    def find_picture(self, line, name, candidates, message, others=()):
        """Where a picture lies: the first of the candidates, else in the folder of images; reports where it does not.

        Args:
            line: where it is named.
            name: as the annotations have it.
            candidates: iterable of paths, where the name may lead.
            message: what to say if it is nowhere.
            others: further names, that are looked for in the folder of images only.

        Returns:
            the path, or None.
        """
        may_leave = self.outside != "error"
        place = next(filter(os.path.isfile, candidates), None) if may_leave or not _leaves(name) else None
        try:
            names = (name, *others) if self._images and place is None else ()
            below = next(filter(None, map(self._images.find, names)), None) if names else None
        except ValueError as error:
            self.add(line, "missing-picture", str(error))
            return None
        if below is not None or not self.check_name(line, name):
            return below
        if place is None:
            self.add(line, "missing-picture", message)
        return place

    def find_folder(self, name):
        """The folder of pictures that the longest tail of a name leads to in the folder of images, or None."""
        return self._images and self._images.find_folder(name)

    def finish(self):
        """Raise a ValueError that lists the first mistakes and counts the others, or give everything to the collector.

        Warnings are given at the level of who called `read_records`, which calls the reader, `build_records` and this.
        """
        self.found.sort(key=lambda error: error[0])
        if self.problems is not None:
            self.problems += [self._problem(*error) for error in self.found]
            if self._more:
                self.problems.append(Problem("too-many", "error", self._names[0], None, f"{self._more} more problems"))
        elif self.found:
            shown = [str(self._problem(*error)) for error in self.found[:_MAX_SHOWN]]
            more = len(self.found) - len(shown) + self._more
            shown += [f"... and {more} more"] if more > 0 else []
            if self._images is None and any(
                kind in ("missing-picture", "missing-folder") for _, kind, _, _ in self.found
            ):
                shown.append(ELSEWHERE)
            raise ValueError("\n".join(shown))
        for (_, text, what), lines in self._notes.items():
            if lines:
                things = f"{len(lines)} {what}" + ("es" if what == "box" else "s") * (len(lines) > 1)
                warnings.warn(f"{things} {text}, first {self.place(min(lines))}", stacklevel=5)

    def _problem(self, line, kind, severity, message):
        index = bisect.bisect_left(self._starts, line) - 1
        name, number, entry = self._names[index], int(line - self._starts[index]), self._entries[index]
        if entry is None:
            return Problem(kind, severity, name, number, message)
        return Problem(kind, severity, name, None, f"{entry(number)}: {message}".removesuffix(": "))


def _leaves(name):
    return os.path.isabs(name) or os.path.normpath(name).split(os.sep)[0] == os.pardir


def read_lines(path, name, errors):
    """Read a UTF-8 text file and begin it in `errors`.

    Returns:
        list of its lines, the number to add to a line's number.

    Raises:
        ValueError: the file cannot be read, or is not UTF-8 text.
    """
    data = read_bytes(path)
    start = errors.begin(name, len(data))
    text = decode(data, path, lambda count: errors.place(start + count))
    # Not str.splitlines: it also breaks at characters that may stand in a file name. A "\r" goes with the blanks.
    return text.split("\n"), start


def decode(data, path, place=None):
    """Decode UTF-8 text.

    Args:
        data: bytes.
        path: of the file, for messages.
        place: a function from a line's number to how people write it; None writes "path line 3".

    Raises:
        ValueError: not UTF-8, or not text.
    """
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise ValueError(f"{path} is UTF-16 text; save the file as UTF-8 (Notepad: Save as, Encoding)")
    if b"\0" in data:
        raise ValueError(f"{path}: this annotation file is not text; a picture or an archive, perhaps")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        count = data.count(b"\n", 0, error.start) + 1
        line = place(count) if place else f"{path} line {count}"
        raise ValueError(f"{line}: byte {data[error.start]:#04x} is not UTF-8; save the file as UTF-8 text") from error


def parse_json(text, path=None):
    """What a JSON text holds.

    Args:
        text: the text.
        path: of the file, for messages; None for a text that is one line of a file.

    Raises:
        ValueError: broken, too deep, or with a number that is too long.
    """
    line = ""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line, message = f" line {error.lineno}", f"broken JSON ({error.msg}); cut short, perhaps"
    except ValueError as error:  # a number of thousands of digits
        message = f"broken JSON ({error})"
    except RecursionError:
        message = "JSON nested too deeply to be a file of annotations"
    raise ValueError(f"{path}{line}: {message}" if path else message)


def find_by_split(path, name):
    """The annotation files of this name: a dict from None to the one that `path` is or holds or, where there is none,
    from train, val and test to those in its folders (val's may be called valid or validation); each value a list."""
    path = Path(path)
    if not path.is_dir():
        return {None: [path]}
    if os.path.lexists(path / name):
        return {None: [path / name]}
    found = {
        split: [path / folder / name for folder in folders if os.path.lexists(path / folder / name)]
        for split, folders in _SPLIT_FOLDERS.items()
    }
    return {split: files for split, files in found.items() if files}


def choose_split(found, split, path):
    """The files of a split, from what `find_by_split` gives; None takes train where there is one, else everything.

    Raises:
        ValueError: there is no such split.
    """
    if split is None and "train" in found:
        split = "train"
    if split in (None, "all"):
        return [file for files in found.values() for file in files]
    if split not in found:
        names = ", ".join(filter(None, found))
        expected = f"its splits are {names}" if names else "it is not in parts; give the file of the split"
        raise ValueError(f"{path} has no split {split!r}: {expected}")
    return found[split]


def match_split(name, names):
    """`name` as a data set with the splits `names` calls it: val, valid and validation are the same."""
    same = _SPLIT_FOLDERS["val"]
    if name in names or name not in same:
        return name
    return next((each for each in names if each in same), name)


def read_bytes(path, limit=MAX_BYTES):
    """Read a whole file; never waits for one that is none, such as a pipe.

    Raises:
        ValueError: it cannot be read, is no regular file, or is longer than the limit; names it.
    """
    try:
        data = read_at_most(path, limit)
    except OSError as error:
        raise ValueError(f"{path}: cannot read the annotation file ({error.strerror})") from error
    if data is None:
        size = f"{limit >> 20} MiB" if limit >> 20 else f"{limit} bytes"
        raise ValueError(f"{path}: an annotation file of more than {size} is not read; split it")
    return data
