"""Files of arrays, HDF5 and npz, opened with care: nothing of another file, nothing larger than a network needs."""

import contextlib
import math
import os
import zipfile

from frcnn.files import open_regular

MOST_BYTES = 4 << 30  # of all arrays of a file; ResNet-152 with FPN and Adam's values takes a fifth


@contextlib.contextmanager
def open_hdf5(file):
    """Open an HDF5 file to read, looked through before anything in it is: its arrays lie in it, whole.

    Links to other files, and arrays kept in them, would let a file of weights show what is none of its business.

    Args:
        file: a path, or a binary file object.

    Raises:
        ValueError: something in it lies in another file, or declares more than it holds or than `MOST_BYTES`.
        OSError, RuntimeError: it is damaged, or no HDF5.
    """
    import h5py

    if isinstance(file, str | os.PathLike):
        open_regular(file).close()  # HDF5 would wait for a pipe
    with h5py.File(file) as root:
        _refuse_hostile_groups(h5py, root)
        yield root


def _refuse_hostile_groups(h5py, root):
    seen, waiting, total = set(), [root], 0
    while waiting:  # no recursion: a group may lie in a thousand others, or in itself
        item = waiting.pop()
        if isinstance(item, h5py.Dataset):
            total += _checked_bytes(item)
            require_size(total)
        if not isinstance(item, h5py.Group) or (place := h5py.h5o.get_info(item.id).addr) in seen:
            continue
        seen.add(place)
        for name in item:
            link = item.get(name, getlink=True)
            if isinstance(link, h5py.HardLink):
                waiting.append(item[name])
            elif not isinstance(link, h5py.SoftLink):  # what a soft link leads to is looked at in its own place
                raise ValueError(f"{name} lies in another file: links to other files are not followed")


def _checked_bytes(dataset):
    """The bytes that a dataset comes to when it is read."""
    if dataset.is_virtual or dataset.external:
        raise ValueError(f"{dataset.name} lies in another file: arrays are read from this one only")
    declared = (dataset.size or 0) * dataset.dtype.itemsize
    is_packed = dataset.id.get_create_plist().get_nfilters() > 0
    if not is_packed and dataset.id.get_storage_size() < declared:
        raise ValueError(f"{dataset.name} declares {declared:,} bytes, of which the file does not hold all")
    return declared


def read_npz(path, is_wanted=lambda name: True):
    """Read arrays of numbers or text from an npz file.

    Args:
        path: the file.
        is_wanted: whether to read the array of a name.

    Returns:
        {name: array}.

    Raises:
        ValueError, OSError, zipfile.BadZipFile, and what else damaged bytes raise.
    """
    with open_regular(path) as file, zipfile.ZipFile(file) as archive:
        require_size(sum(entry.file_size for entry in archive.infolist()))
        names = {entry.filename: entry.filename.removesuffix(".npy") for entry in archive.infolist()}
        return {name: _read_npy(archive, entry, name) for entry, name in names.items() if is_wanted(name)}


def _read_npy(archive, entry, name):
    """One array; numpy itself would take the memory that the header asks for before it looks whether it is there."""
    import numpy as np

    with archive.open(entry) as file:
        version = np.lib.format.read_magic(file)
        read_header = {1: np.lib.format.read_array_header_1_0, 2: np.lib.format.read_array_header_2_0}.get(version[0])
        if read_header is None:
            raise ValueError(f"{name} is of a version of npy that is not read")
        shape, is_fortran, dtype = read_header(file)
        data = file.read()
    if dtype.hasobject:
        raise ValueError(f"{name} holds objects instead of numbers")
    if math.prod(shape) * dtype.itemsize != len(data) or min(shape, default=0) < 0:
        raise ValueError(f"{name} declares {shape} of {dtype}, and holds {len(data):,} bytes")
    return np.frombuffer(data, dtype).reshape(shape, order="F" if is_fortran else "C")


def require_size(count):
    """Raise a ValueError where arrays of so many bytes are more than is read."""
    if count > MOST_BYTES:
        raise ValueError(f"its arrays come to {count:,} bytes: more than {MOST_BYTES >> 30} GiB is not read")
