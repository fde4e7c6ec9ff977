"""Files that are whole or not there: what every writer of the project uses."""

import contextlib
import os
from pathlib import Path


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
        with open(draft, "wb") if binary else open(draft, "w", encoding="utf-8", newline="") as file:
            yield file
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)
