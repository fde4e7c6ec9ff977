"""Files read with care, and files that are whole or not there: what every reader and writer of the project uses."""

import contextlib
import errno
import hashlib
import os
import secrets
import shutil
import socket
import stat
import time
import warnings
from pathlib import Path

import yaml

MOST_YAML_BYTES, _MOST_YAML_DEPTH = 2**20, 10  # YAML is slow to read
_MOST_SHOWN = 1000  # letters of a message

LEAST_ROOM = 2**20  # bytes
MOST_BYTES_OF_A_NAME = 255  # on nearly all file systems
# Where a file could have been written, but not under this name: too long, taken by a folder or lying in a file, odd.
_OF_THE_NAME = (errno.ENAMETOOLONG, errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.EINVAL, errno.EILSEQ)


def find_files(folder, suffixes, skip=None, unlisted=None):
    """The files with one of the suffixes in a folder and its sub-folders, each folder's in order of name.

    Hidden files and folders are left out. Links to folders are followed, but no folder is entered twice.

    Args:
        folder: where to look.
        suffixes: tuple of suffixes in lower case, dot included.
        skip: a folder that is not entered, or None.
        unlisted: None, or a dict that takes the sub-folders that cannot be listed, with the reason.

    Returns:
        list of strings, `folder` before each.

    Raises:
        ValueError: a folder cannot be listed; with `unlisted`, `folder` itself.
    """

    def refuse(error):
        reason = f"{error.filename}: the folder cannot be listed ({error.strerror})"
        if unlisted is None or error.filename == str(folder):
            raise ValueError(reason) from error
        unlisted[error.filename] = reason

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


def is_of_the_name(error):
    """Whether an OSError, or what was raised from one, says that a file cannot have this name; others may be written.

    So it is too of an error that the system has no part in, such as a picture that its format cannot hold.
    """
    cause = error if isinstance(error, OSError) else error.__cause__
    return not isinstance(cause, OSError) or cause.errno in _OF_THE_NAME


def fitting(name, suffix=""):
    """`name` + `suffix` if a file can be called that, else with its end cut off for a digest of it.

    Args:
        name: of a file; it may have folders before it, "/" between them, which stay as they are.
        suffix: what is never cut.
    """
    folder, slash, last = name.rpartition("/")
    room = MOST_BYTES_OF_A_NAME - len(os.fsencode(suffix))
    encoded = os.fsencode(last)
    if len(encoded) > room:
        digest = hashlib.sha256(encoded).hexdigest()[:8]
        last = f"{encoded[: room - 9].decode(errors='ignore')}~{digest}"
    return folder + slash + last + suffix


def require_room(folder, names=()):
    """Raise ValueError unless files of these names can be written into a folder, which need not be there yet."""
    folder = Path(folder)
    place = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        raise ValueError(f"{folder}: nothing can be written to {place}: name another place")
    if shutil.disk_usage(place).free < LEAST_ROOM:
        raise ValueError(f"{folder}: no space is left there: make room, or name another place")
    for file in (folder / name for name in names):
        if file.is_dir():
            raise ValueError(f"{file} is a folder where a file is to be written: move it, or name another place")


@contextlib.contextmanager
def replacing(path, binary=False, durable=False):
    """Open a file beside `path` that takes its place when the block ends well, and vanishes if it does not.

    Args:
        path: the file to write; missing folders are made.
        binary: bytes instead of UTF-8 text, whose line ends are written as they are.
        durable: on the disk for good when the block has ended: for what must outlive a crash of the machine.

    Raises:
        OSError: it cannot be written; what stood at `path` before still does.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # A short name of its own: one made from the file's could be too long where the file's is not.
    draft = path.with_name(f".frcnn-{os.getpid()}-{secrets.token_hex(4)}.tmp")
    # A file name that is no UTF-8 must not cost a long run its results.
    text = {"mode": "w", "encoding": "utf-8", "errors": "backslashreplace", "newline": ""}
    try:
        with open(draft, **({"mode": "wb"} if binary else text)) as file:
            with contextlib.suppress(OSError):  # a file system without locks
                _lock(file)
            yield file
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.replace(draft, path)
        if durable and os.name != "nt":  # Windows opens no folders
            _folder_to_disk(path.parent)
    finally:
        draft.unlink(missing_ok=True)


def remove_drafts(*folders):
    """Remove the drafts of `replacing` that killed processes left in these folders; those in work are locked."""
    for draft in (draft for folder in folders for draft in Path(folder).glob(".frcnn-*-*.tmp")):
        with contextlib.suppress(OSError):  # gone in the meantime, or open elsewhere
            with open(draft, "rb+") as file:
                _lock(file)
            draft.unlink()


@contextlib.contextmanager
def locked(path, doing, cure):
    """Hold a lock file for the block, and remove it in the end; its folder too, if that was made for it and is empty.

    The system lets go of the lock when the process ends, however it ends: a lock is never stale.

    Args:
        path: the lock file, a Path; missing folders are made.
        doing, cure: what to say where another process holds it: "<doing> by <that process>: <cure>".

    Raises:
        ValueError: another process holds it.
    """
    is_new = not path.parent.exists()
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+", encoding="utf-8") as file:
        try:
            _lock(file)
            if not (path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat())):
                raise BlockingIOError  # whoever had it removed it just now, and another has a new one already
        except BlockingIOError:
            file.seek(0)
            raise ValueError(f"{doing} by {file.read() or 'another process'}: {cure}") from None
        except OSError as error:  # some network file systems
            text = f"{path.parent} cannot be locked here ({error}): take care that nothing else writes into it"
            warnings.warn(text, stacklevel=3)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}, since {time.strftime('%Y-%m-%d %H:%M:%S')}")
        file.flush()
        try:
            yield
        finally:
            with contextlib.suppress(OSError):  # Windows removes no open file; no folder goes that holds any
                path.unlink()
                if is_new:
                    path.parent.rmdir()


def _lock(file):
    """Lock an open file, or raise BlockingIOError where another process has locked it; OSError: it cannot be locked."""
    try:
        import fcntl
    except ModuleNotFoundError:  # Windows: a byte behind all content, which stays readable
        import msvcrt

        os.lseek(file.fileno(), 2**30, os.SEEK_SET)
        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except PermissionError as error:
            raise BlockingIOError from error
        finally:
            os.lseek(file.fileno(), 0, os.SEEK_SET)
        return
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _folder_to_disk(folder):
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
