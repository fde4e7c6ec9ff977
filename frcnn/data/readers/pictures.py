"""Pictures that do not lie where annotations say: moved, or named as on another machine."""

import os
import re
import unicodedata
from collections import defaultdict
from functools import cached_property
from urllib.parse import unquote

from frcnn.files import find_files


class PictureFolder:
    """A folder in whose files pictures are looked for by the last parts of their names.

    Args:
        folder: where to look, sub-folders included; hidden files are left out.

    Raises:
        ValueError: it is no folder, or cannot be listed.
    """

    def __init__(self, folder):
        if not os.path.isdir(folder):
            raise ValueError(f"images: {folder} is no folder; name the one that holds the pictures")
        self._folder, self._names = str(folder), {}

    @cached_property
    def _files(self):
        """Dict from the bare names, folded, to the parts of the paths within the folder."""
        files = defaultdict(list)
        for path in find_files(self._folder, ("",)):
            parts = os.path.relpath(path, self._folder).split(os.sep)
            files[_fold(parts[-1])].append(parts)
        return files

    def find(self, name):
        """The file that shares the longest tail of a name: of `old/cam1/a.png` that is `cam1/a.png`, then `a.png`.

        A tail in the name's own letters is better than one in others (a.JPG). Of equals, the one that lies directly in
        the folder is taken. Names may be Windows paths, `file://` URLs, and quoted as in URLs.

        Args:
            name: as the annotations have it.

        Returns:
            the path; None where no file has the name.

        Raises:
            ValueError: several files are equally good, or the one found belongs to another name already.
        """
        for parts in _spellings(name):
            candidates = self._files.get(_fold(parts[-1]), ())
            for fold in (str, _fold):
                lengths = [_shared_tail(parts, other, fold) for other in candidates]
                longest = max(lengths, default=0)
                if longest:
                    best = [other for other, length in zip(candidates, lengths) if length == longest]
                    return self._claim(parts, self._choose(name, best, longest))
        return None

    def find_folder(self, name):
        """The folder that the longest tail of a folder's name leads to, or None; perhaps this folder itself."""
        above, own = os.path.split(os.path.abspath(self._folder))
        for parts in _spellings(name):
            places = [os.path.join(self._folder, *parts[start:]) for start in range(len(parts))]
            places += [os.path.join(above, own)] if parts[-1] == own else []
            if found := next(filter(os.path.isdir, places), None):
                return found
        return None

    def _choose(self, name, best, length):
        direct = [parts for parts in best if len(parts) == length]
        if len(best) > 1 and len(direct) != 1:
            one, other = (os.path.join(self._folder, *parts) for parts in best[:2])
            raise ValueError(
                f"{name} may be {one} or {other}: name a folder that holds one of them, or more of the path"
            )
        return os.path.join(self._folder, *(direct if direct else best)[0])

    def _claim(self, parts, path):
        """The path, unless it was found for another name: the boxes of one of the two would be in a wrong picture."""
        first = self._names.setdefault(path, parts)
        if _shared_tail(first, parts, _fold) < min(len(first), len(parts)):
            raise ValueError(f"{'/'.join(first)} and {'/'.join(parts)} would both be {path}: put both pictures there")
        return path


def _spellings(name):
    """The parts of a name as it stands, of a Windows path, and of a URL without its query, or what this asks for."""
    url = unquote(name.replace("\\", "/"))
    texts = [name, name.replace("\\", "/"), url, re.sub(r"[?#].*", "", url), re.sub(r".*[?&]\w+=", "", url)]
    parts = ([part for part in text.split("/") if part not in ("", ".", "..")] for text in texts)
    return list(filter(None, parts))


def _shared_tail(parts, other, fold):
    """How many parts two paths have in common, from the end."""
    pairs = zip(map(fold, reversed(parts)), map(fold, reversed(other)))
    return next((count for count, (one, two) in enumerate(pairs) if one != two), min(len(parts), len(other)))


def _fold(text):
    return unicodedata.normalize("NFC", text).casefold()
