"""The reader of pictures with one class each: every layout, and every mistake in one sentence."""

import gzip
import os
import pickle
import struct
from pathlib import Path

import h5py
import numpy as np
import pytest

from frcnn.data.readers.labelled import read_labelled

CLASSES = ("cat", "dog")
DATA = os.environ.get("FRCNN_DATA")


def pictures(count, *shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, *(shape or (8, 6, 3))), dtype=np.uint8)


def labels_of(parts):
    return {part: [record.label for record in records] for part, records in parts.items()}


def write_hdf5(path, **changes):
    """A file in the tutorials' layout; None takes a dataset away."""
    arrays = {
        "train_set_x": pictures(3),
        "train_set_y": np.array([0, 1, 1]),
        "test_set_x": pictures(2, seed=1),
        "test_set_y": np.array([1, 0]),
        "list_classes": np.array([b"cat", b"dog"]),
    }
    with h5py.File(path, "w") as file:
        for name, values in {**arrays, **changes}.items():
            if values is not None:
                file[name] = values
    return path


def write_idx(path, array, compress=False):
    data = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(data) if compress else data)
    return path


@pytest.fixture
def folders(draw_picture, tmp_path):
    """draw "train/cat/0.png" and the like; return the folder."""

    def draw(*names):
        for seed, name in enumerate(names):
            draw_picture(f"root/{name}", 8, 6, seed)
        return tmp_path / "root"

    return draw


# ------------------------------------------------------------------------------------------------- what is read


def test_a_folder_for_each_class(folders):
    root = folders("dog/b.png", "cat/sub/c.jpg", "cat/a.png", ".hidden/x.png")
    parts, class_names = read_labelled(root)
    assert class_names == CLASSES
    names = [(Path(record.path).relative_to(root).as_posix(), record.label) for record in parts["all"]]
    assert names == [("cat/a.png", 0), ("cat/sub/c.jpg", 0), ("dog/b.png", 1)]
    assert all(record.pixels is None for record in parts["all"])
    assert labels_of(read_labelled(root, ("wolf", "dog", "cat"))[0]) == {"all": [2, 2, 1]}


def test_a_root_of_train_and_test(folders):
    root = folders(
        "train/cat/1.png", "train/dog/2.png", "test/dog/3.png", "test/cat/4.png", "val/dog/5.png", "val/cat/6.png"
    )
    parts, _ = read_labelled(root)
    assert labels_of(parts) == {"train": [0, 1], "val": [0, 1], "test": [0, 1]}


@pytest.mark.parametrize("header", ["", "path,class\n"])
def test_csv(draw_picture, tmp_path, header):
    draw_picture("a b.png"), draw_picture("sub/c.png")
    (tmp_path / "list.csv").write_text(f'{header}"a b.png", dog\n\nsub/c.png,cat\n')
    parts, class_names = read_labelled(tmp_path / "list.csv")
    assert class_names == CLASSES
    assert [(Path(record.path).name, record.label) for record in parts["all"]] == [("a b.png", 1), ("c.png", 0)]


@pytest.mark.parametrize("shape", [(3,), (1, 3), (3, 1)])
def test_hdf5_of_the_tutorials(tmp_path, shape):
    path = write_hdf5(tmp_path / "x.h5", train_set_y=np.array([0, 1, 1]).reshape(shape))
    parts, class_names = read_labelled(path)
    assert (class_names, labels_of(parts)) == (CLASSES, {"train": [0, 1, 1], "test": [1, 0]})
    assert np.array_equal(parts["test"][1].pixels, pictures(2, seed=1)[1])
    assert parts["test"][1].path == f"{path} test_set_x[1]"


def test_hdf5_whose_classes_are_numbers_is_labelled_by_them(tmp_path):
    settings = {"list_classes": np.array([7, 3]), "train_set_y": np.array([3, 7, 7]), "test_set_x": None}
    parts, class_names = read_labelled(write_hdf5(tmp_path / "x.h5", test_set_y=None, **settings))
    assert (class_names, labels_of(parts)) == (("7", "3"), {"train": [1, 0, 0]})


@pytest.mark.skipif(not DATA, reason="FRCNN_DATA names no folder of picture sets")
def test_the_signs():
    counts = {"train": [171, 170, 171, 174, 184, 181], "test": [34, 36, 35, 32, 23, 26]}
    for part, expected in counts.items():
        parts, class_names = read_labelled(Path(DATA, "signs", f"{part}_signs.h5"))
        assert list(parts) == [part] and class_names == ("0", "1", "2", "3", "4", "5")
        assert np.bincount([record.label for record in parts[part]]).tolist() == expected
        assert {record.pixels.shape for record in parts[part]} == {(64, 64, 3)}


@pytest.mark.parametrize("compress", [False, True])
def test_idx_as_mnist_has_it(tmp_path, compress):
    suffix = ".gz" if compress else ""
    for part, count in (("train", 3), ("t10k", 2)):
        write_idx(tmp_path / f"{part}-images-idx3-ubyte{suffix}", pictures(count, 28, 28), compress)
        write_idx(tmp_path / f"{part}-labels-idx1-ubyte{suffix}", np.array([9, 0, 9])[:count], compress)
    parts, class_names = read_labelled(tmp_path)
    assert (class_names, labels_of(parts)) == (("0", "9"), {"train": [1, 0, 1], "test": [1, 0]})
    assert np.array_equal(parts["train"][2].pixels, pictures(3, 28, 28)[2])
    assert labels_of(read_labelled(tmp_path / f"t10k-images-idx3-ubyte{suffix}")[0]) == {"all": [1, 0]}


@pytest.mark.parametrize(("x", "y", "part"), [("x_train", "y_train", "train"), ("x", "y", "all")])
def test_npz_in_the_order_of_the_numbers(tmp_path, x, y, part):
    np.savez(tmp_path / "x.npz", **{x: pictures(3, 8, 8, 4), y: np.array([10, 9, 10]), "more": np.zeros(2)})
    parts, class_names = read_labelled(tmp_path / "x.npz")
    assert (class_names, labels_of(parts)) == (("9", "10"), {part: [1, 0, 1]})


# -------------------------------------------------------------------------------------------------- what is wrong


def refused(path, pattern, class_names=None):
    with pytest.raises(ValueError, match=pattern) as caught:
        read_labelled(path, class_names)
    assert len(str(caught.value).splitlines()) == 1
    assert str(path) in str(caught.value) or path.name in str(caught.value)


def test_train_and_test_of_different_classes(folders):
    root = folders("train/cat/1.png", "train/dog/2.png", "test/dog/3.png", "test/wolf/4.png")
    refused(root, r"train and test name different classes \(cat, wolf is in one alone\)")


def test_one_class(folders, tmp_path):
    refused(folders("cat/1.png"), r"has one class \(cat\)")
    np.savez(tmp_path / "x.npz", x=pictures(2), y=[5, 5])
    refused(tmp_path / "x.npz", r"has one class \(5\)")


def test_folders_that_hold_nothing(folders, tmp_path):
    root = folders("cat/1.png")
    refused(root / "cat", "expected a folder of pictures for each class")
    (root / "dog").mkdir()
    with pytest.raises(ValueError, match=r"dog holds no picture \(.jpg"):
        read_labelled(root)
    refused(tmp_path / "nowhere", "no such file or folder")


def test_a_file_in_a_class_folder_that_is_no_picture(folders):
    root = folders("cat/1.png", "dog/1.png")
    (root / "dog" / "2.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"dog/2.png: cannot read the picture's size"):
        read_labelled(root)


def test_a_class_that_the_model_does_not_know(folders):
    refused(folders("cat/1.png", "wolf/1.png"), "class wolf is not one of the model's classes: cat, dog", CLASSES)


def test_csv_names_the_lines(draw_picture, tmp_path):
    draw_picture("a.png")
    (tmp_path / "x.csv").write_text("a.png,cat,1\nb.png,cat\na.png,\nx.csv,dog\n")
    with pytest.raises(ValueError, match="line 1") as caught:
        read_labelled(tmp_path / "x.csv")
    first, second, third, fourth, _ = str(caught.value).splitlines()
    assert first == "x.csv line 1: expected path,class, got 'a.png,cat,1'"
    assert second.startswith("x.csv line 2: no picture at ") and "b.png" in second
    assert third == "x.csv line 3: expected path,class, got 'a.png,'"
    assert fourth.startswith("x.csv line 4: ") and "cannot read the picture's size" in fourth
    (tmp_path / "x.csv").write_text("path,class\n")
    refused(tmp_path / "x.csv", "is empty: expected lines of path,class")
    (tmp_path / "x.csv").write_text("file,label,split\n")
    refused(tmp_path / "x.csv", "line 1: expected path,class, got 'file,label,split'")


HDF5_MISTAKES = {
    "no classes": ({"list_classes": None}, "lacks list_classes: expected train_set_x, .* found test_set_x"),
    "no labels": ({"train_set_y": None}, "lacks train_set_y: expected"),
    "nothing": (dict.fromkeys(("train_set_x", "train_set_y", "test_set_x", "test_set_y")), "lacks train_set_x, train_"),
    "label": ({"train_set_y": np.array([0, 2, 1])}, r"train_set_y\[1\] \(2\) is not of list_classes: expected 0, 1"),
    "floats": ({"train_set_x": np.zeros((3, 8, 6, 3))}, r"train_set_x is float64 \(3, 8, 6, 3\), expected uint8"),
    "channels": ({"train_set_x": pictures(3, 8, 6, 2)}, r"train_set_x is uint8 \(3, 8, 6, 2\), expected uint8"),
    "flat": ({"train_set_x": pictures(3, 144)}, r"train_set_x is uint8 \(3, 144\), expected uint8"),
    "lengths": ({"train_set_y": np.array([0, 1])}, r"train_set_y is int64 \(2,\), expected .* each of the 3 pictures"),
    "square": (
        {"train_set_x": pictures(4), "train_set_y": np.zeros((2, 2), int)},
        r"train_set_y is int64 \(2, 2\), expected one class number for each of the 4",
    ),
    "one-hot": ({"train_set_y": np.eye(3, dtype=int)}, r"train_set_y is int64 \(3, 3\), expected one class number"),
}


@pytest.mark.parametrize("name", HDF5_MISTAKES)
def test_hdf5_of_another_layout(tmp_path, name):
    changes, pattern = HDF5_MISTAKES[name]
    refused(write_hdf5(tmp_path / "x.h5", **changes), pattern)


def test_truncated_files(tmp_path):
    whole = write_hdf5(tmp_path / "x.h5")
    whole.write_bytes(whole.read_bytes()[:-500])
    refused(whole, "damaged, or not HDF5")
    np.savez(tmp_path / "x.npz", x=pictures(2), y=[0, 1])
    (tmp_path / "x.npz").write_bytes((tmp_path / "x.npz").read_bytes()[:-100])
    refused(tmp_path / "x.npz", "damaged, or not npz")
    for compress in (False, True):
        write_idx(tmp_path / "t10k-labels-idx1-ubyte", np.array([0, 1]))
        path = write_idx(tmp_path / "t10k-images-idx3-ubyte", pictures(2, 28, 28), compress)
        path.write_bytes(path.read_bytes()[:-9])
        refused(path, "truncated, or not an idx file")


def test_small_files_of_huge_arrays(tmp_path, monkeypatch):
    """A dataset that declares a petabyte and stores nothing; zeros that gzip packs a thousand times smaller; a pipe."""
    with h5py.File(write_hdf5(tmp_path / "x.h5", test_set_x=None), "a") as file:
        file.create_dataset("test_set_x", (2**40, 32, 32, 1), np.uint8, chunks=(1, 32, 32, 1))
    refused(tmp_path / "x.h5", "test_set_x declares 1,125,899,906,842,624 bytes, of which the file does not hold all")
    monkeypatch.setattr("frcnn.data.readers.labelled.MAX_BYTES", 100_000)
    write_idx(tmp_path / "t10k-labels-idx1-ubyte", np.zeros(1000, np.uint8))
    refused(write_idx(tmp_path / "t10k-images-idx3-ubyte", np.zeros((1000, 28, 28), np.uint8), True), "unpacks to more")
    os.mkfifo(tmp_path / "pipe")
    refused(tmp_path / "pipe", "a pipe or a device, not a file")


def test_objects_in_an_npz_file_are_not_unpickled(tmp_path):
    class Evil:
        def __reduce__(self):
            return Path.touch, (tmp_path / "ran",)

    np.savez(tmp_path / "x.npz", x=pictures(2), y=np.array([Evil(), Evil()], object))
    refused(tmp_path / "x.npz", "y holds objects instead of numbers")
    assert not (tmp_path / "ran").exists()
    (tmp_path / "x.pickle").write_bytes(pickle.dumps(Evil()))
    refused(tmp_path / "x.pickle", "is not UTF-8|is not text")
    assert not (tmp_path / "ran").exists()


def test_idx_without_its_other_half(tmp_path):
    path = write_idx(tmp_path / "train-images-idx3-ubyte", pictures(2, 28, 28))
    refused(path, "its labels are missing, train-labels-idx1-ubyte or")
    refused(write_idx(tmp_path / "x", pictures(2, 28, 28)), "expected MNIST's names")
