"""Files of arrays that show another file, or declare more than they hold: refused before anything is read."""

import io
import zipfile

import h5py
import numpy as np
import pytest

from frcnn import arrays
from frcnn.arrays import open_hdf5, read_npz

SECRET = np.arange(6, dtype=np.float32)


def link(file, folder):
    file["vars/0"] = h5py.ExternalLink(str(folder / "secret.h5"), "/secret")


def virtual(file, folder):
    layout = h5py.VirtualLayout((6,), np.float32)
    layout[:] = h5py.VirtualSource(str(folder / "secret.h5"), "secret", (6,))
    file.create_virtual_dataset("a/b/c", layout)


def raw(file, folder):
    (folder / "secret.raw").write_bytes(SECRET.tobytes())
    file.create_dataset("vars/0", (6,), np.float32, external=[(str(folder / "secret.raw"), 0, 24)])


def empty(file, folder):
    file.create_dataset("vars/0", (10**15,), np.float32, chunks=(1000,))


def bomb(file, folder):
    """80 MB of zeros in 80 KB, where 1 MB is the limit."""
    file.create_dataset("vars/0", data=np.zeros(10_000_000), chunks=(1_000_000,), compression="gzip")


def half(file, folder):
    dataset = file.create_dataset("vars/0", (2000,), np.float32, chunks=(1000,))
    dataset[:1000] = 1


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (link, "^0 lies in another file"),
        (virtual, "^/a/b/c lies in another file"),
        (raw, "^/vars/0 lies in another file"),
        (empty, "^/vars/0 declares 4,000,000,000,000,000 bytes, of which the file does not hold all"),
        (half, "^/vars/0 declares 8,000 bytes, of which the file does not hold all"),
        (bomb, r"^its arrays come to 80,000,000 bytes: more than \d+ GiB is not read"),
    ],
)
def test_hdf5_that_shows_another_file_or_grows_is_refused(tmp_path, monkeypatch, write, message):
    monkeypatch.setattr(arrays, "MOST_BYTES", 10**6)
    with h5py.File(tmp_path / "secret.h5", "w") as file:
        file["secret"] = SECRET
    with h5py.File(tmp_path / "x.h5", "w") as file:
        write(file, tmp_path)
    for source in (tmp_path / "x.h5", io.BytesIO((tmp_path / "x.h5").read_bytes())):
        with pytest.raises(ValueError, match=message), open_hdf5(source):
            pass


def test_links_within_a_file_may_go_in_circles(tmp_path):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["a/values"] = SECRET
        file["a/again"] = file["a"]  # a hard link to the group that it lies in
        file["soft"], file["round"], file["nowhere"] = map(h5py.SoftLink, ("/a", "/round", "/none"))
    with open_hdf5(tmp_path / "x.h5") as file:
        assert np.array_equal(file["soft/values"], SECRET)


def write_npy(path, shape, data=b"", dtype="<f4"):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": dtype, "fortran_order": False, "shape": shape})
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.npy", header.getvalue() + data)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (((10**15,), bytes(8)), r"a declares \(1000000000000000,\) of float32, and holds 8 bytes"),
        (((-2, -1), bytes(8)), "a declares"),
        (((2,), bytes(8), "|O"), "a holds objects"),
        (((10**7,), bytes(4 * 10**7)), r"its arrays come to 40,000,\d+ bytes: more than"),
    ],
)
def test_npz_that_grows_is_refused(tmp_path, monkeypatch, content, message):
    monkeypatch.setattr(arrays, "MOST_BYTES", 10**6)
    write_npy(tmp_path / "x.npz", *content)
    with pytest.raises(ValueError, match=message):
        read_npz(tmp_path / "x.npz")


def test_npz_is_read_as_numpy_does(tmp_path):
    values = {"a": SECRET.reshape(2, 3).T, "b": np.array(7), "c": np.array(["größe"]), "d": np.zeros((0, 4))}
    np.savez_compressed(tmp_path / "x.npz", **values)
    found = read_npz(tmp_path / "x.npz", lambda name: name != "d")
    assert list(found) == ["a", "b", "c"]
    assert all(np.array_equal(found[name], values[name]) and found[name].dtype == values[name].dtype for name in found)
