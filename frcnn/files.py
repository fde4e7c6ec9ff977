"""Files read with care, and files that are whole or not there: what every reader and writer of the project uses."""

import contextlib
import errno
import os
import stat
from pathlib import Path

import yaml

MOST_YAML_BYTES, _MOST_YAML_DEPTH = 2**20, 10  # YAML is slow to read
_MOST_SHOWN = 1000  # letters of a message


def find_files(folder, suffixes, skip=None):
    """The files with one of the suffixes in a folder and its sub-folders, each folder's in order of name.

    Hidden files and folders are left out. Links to folders are followed, but no folder is entered twice.

    Args:
        folder: where to look.
        suffixes: tuple of suffixes in lower case, dot included.
        skip: a folder that is not entered, or None.

    Returns:
        list of strings, `folder` before each.

    Raises:
        ValueError: a folder cannot be listed.
    """

    def refuse(error):
        raise ValueError(f"{error.filename}: the folder cannot be listed ({error.strerror})") from error

    found, seen = [], {os.path.realpath(place) for place in (folder, skip or folder)}
    for place, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        targets = {name: os.path.realpath(os.path.join(place, name)) for name in sorted(folders) if name[0] != "."}
        folders[:] = [name for name, target in targets.items() if not (target in seen or seen.add(target))]
        names = sorted(name for name in names if name[0] != "." and name.lower().endswith(suffixes))
        found += [os.path.join(place, name) for name in names]
    return found


def open_regular(path):
    """Open a file to read bytes. A folder, a pipe or a device in its place is refused at once, never waited for.

    Raises:
        OSError: it cannot be opened, or is no regular file.
    """
    return open(path, "rb", opener=_open_at_once)


def read_at_most(path, limit):
    """Read a regular file whole, its bytes; None if it has more than `limit`. Errors as in `open_regular`.

    `read(limit)` would ask for as much memory as the limit.
    """
    with open_regular(path) as file:
        return file.read() if os.fstat(file.fileno()).st_size <= limit else None


@contextlib.contextmanager
def reading(path, what, error_type=ValueError):
    """Raise a ValueError of one sentence that begins with the file's name, whatever goes wrong in the block.

    Damaged bytes make the libraries that read them raise anything, RecursionError and MemoryError among it.

    Args:
        path: the file.
        what: what it is read as, for the sentence: "weights", "a config".
        error_type: ValueError, or a class of it.
    """
    try:
        yield
    except MemoryError as error:
        raise error_type(f"{path}: reading it as {what} takes more memory than there is") from error
    except Exception as error:
        if type(error) in (ValueError, error_type):  # our words, or numpy's
            if str(error).startswith(str(path)):
                raise
            reason = str(error)
        elif isinstance(error, OSError) and error.strerror:
            reason = f"cannot be read as {what} ({error.strerror})"
        else:
            reason = f"damaged, or not {what} ({type(error).__name__}: {_first_line(error)})"
        raise error_type(f"{path}: {reason}") from error


def _first_line(error):
    return printable(next(iter(str(error).splitlines()), "no reason given"))


def printable(text):
    """Text for a terminal, cut to a sensible length; what would move its cursor, or is no character, is escaped."""
    text = text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}..."
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def read_yaml(text, place, loader):
    """Read YAML whose size cannot grow: no anchors and aliases, no deep nesting, no key twice.

    Args:
        text: str or bytes.
        place: the file's name, or what else the text is called in messages.
        loader: a safe loader class of PyYAML.

    Returns:
        What the loader makes of it.

    Raises:
        ValueError: it is no such YAML; with the line where there is one.
    """
    depth = 0
    try:
        for event in yaml.parse(text, loader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > _MOST_YAML_DEPTH or isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
                raise ValueError(f"{place}: YAML aliases (*name) and deep nesting can hide attacks and are not read")
        _refuse_repeated_keys(yaml.compose(text, loader), place)
        return yaml.load(text, loader)
    except yaml.YAMLError as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None) or _first_line(error)
        line = f" line {mark.line + 1}" if mark else ""
        raise ValueError(f"{place}{line}: not valid YAML ({printable(problem)})") from error
    except Exception as error:
        if str(error).startswith(str(place)):
            raise
        raise ValueError(f"{place}: not valid YAML ({_first_line(error)})") from error  # an impossible date


def _refuse_repeated_keys(node, place):
    """PyYAML would take the last of them without a word."""
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _refuse_repeated_keys(item, place)
    if not isinstance(node, yaml.MappingNode):
        return
    seen = {}
    for key, value in node.value:
        line = key.start_mark.line + 1
        if isinstance(key, yaml.ScalarNode) and (first := seen.setdefault(key.value, line)) != line:
            raise ValueError(f"{place} line {line}: {printable(key.value)} stands here again, first in line {first}")
        _refuse_repeated_keys(value, place)


def _open_at_once(path, flags):
    # Opened first, then looked at: nothing can take the file's place in between.
    descriptor = os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "a folder, a pipe or a device, not a file", str(path))
    return descriptor


@contextlib.contextmanager
def replacing(path, binary=False):
    """Open a file beside `path` that takes its place when the block ends well, and vanishes if it does not.

    Args:
        path: the file to write; missing folders are made.
        binary: bytes instead of UTF-8 text, whose line ends are written as they are.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        # A file name that is no UTF-8 must not cost a long run its results.
        text = {"mode": "w", "encoding": "utf-8", "errors": "backslashreplace", "newline": ""}
        with open(draft, **({"mode": "wb"} if binary else text)) as file:
            yield file
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


@contextlib.contextmanager
def draft_of(path):
    """Give the path of a draft that takes the place of `path`, on the disk for good, when the block ends well.

    For what must outlive a crash of the machine, and for writers that want a path. The draft keeps the suffix, and
    vanishes if the block does not end well.

    Args:
        path: the file to write, a Path; missing folders are made.

    Raises:
        OSError: the disk is full or gone; what stood at `path` before still does.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{os.getpid()}.tmp.{path.name}")
    try:
        yield draft
        _to_disk(draft, os.O_RDWR)
        os.replace(draft, path)
        _to_disk(path.parent, os.O_RDONLY)
    finally:
        draft.unlink(missing_ok=True)


def _to_disk(path, mode):
    if os.name == "nt" and mode == os.O_RDONLY:  # Windows opens no folders
        return
    descriptor = os.open(path, mode)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
