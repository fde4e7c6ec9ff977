"""Files that are whole or not there: what every writer of the project uses."""

import contextlib
import errno
import os
import stat
from pathlib import Path


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
