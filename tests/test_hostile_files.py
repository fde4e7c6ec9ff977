"""Damaged files of every kind but pictures and annotations, see tests/fuzz: one sentence with the file's name."""

import hashlib
import json
import time
from pathlib import Path

import h5py
import numpy as np
import pytest

from frcnn.arrays import open_hdf5
from frcnn.checkpoints import DamagedCheckpoint, read_checkpoint, write_checkpoint
from frcnn.cli.evaluate import _load_detections
from frcnn.config import load_config, load_pickle, save_config
from frcnn.files import reading
from frcnn.outputs import write_json
from frcnn.records import Detections
from frcnn.weight_files import describe
from tests.fuzz.mutations import mutate

ARRAYS = {f"res2a_branch2{part}/{leaf}": np.ones(9, np.float32) for part in "ab" for leaf in ("kernel", "gamma")}


def write_config(folder):
    save_config(load_config(), folder, ["cat", "größe"])


def write_detections(folder):
    boxes, scores = [[1, 2, 3, 4], [5, 6, 7, 8]], [0.5, 0.25]
    write_json(folder / "detections.json", [Detections(boxes, scores, [0, 1], ("cat", "dog"), "a.png")])


def write_hdf5(folder):
    with h5py.File(folder / "x.h5", "w") as file:
        file.attrs["layer_names"] = [name.encode() for name in ARRAYS]
        for number, (name, values) in enumerate(ARRAYS.items()):
            file.create_dataset(f"{name}:0", data=values, chunks=(3,), compression="gzip" if number else None)


def write_safetensors(folder):
    header = {
        name: {"dtype": "F32", "shape": [9], "data_offsets": [36 * index, 36 * index + 36]}
        for index, name in enumerate(ARRAYS)
    }
    text = json.dumps(header).encode()
    data = b"".join(values.tobytes() for values in ARRAYS.values())
    (folder / "x.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data)


def read_hdf5(path):
    with reading(path, "HDF5"), open_hdf5(path) as file:
        file.visititems(lambda _, item: item[()] if isinstance(item, h5py.Dataset) else None)


KINDS = {  # file: (write it into a folder, read it)
    "config.yaml": (write_config, load_config),
    "config.pickle": (write_config, load_pickle),
    "detections.json": (write_detections, _load_detections),
    "detections.images.json": (write_detections, lambda path: _load_detections(path.parent / "detections.json")),
    "x.h5": (write_hdf5, lambda path: (read_hdf5(path), describe(path))),
    "x.npz": (lambda folder: np.savez_compressed(folder / "x.npz", **ARRAYS), describe),
    "x.safetensors": (write_safetensors, describe),
    "checkpoints/epoch-00001-step-0000002.ckpt": (
        lambda folder: write_checkpoint(folder, ARRAYS, {"epoch": 1, "step": 2}),
        read_checkpoint,
    ),
}


@pytest.mark.parametrize("name", KINDS)
def test_whatever_a_file_holds_the_error_is_one_sentence_that_names_it(tmp_path, name):
    write, read = KINDS[name]
    write(tmp_path)
    path, outcomes = tmp_path / name, set()
    whole, generator = path.read_bytes(), np.random.default_rng(0)
    for _ in range(300):
        path.write_bytes(mutate(whole, generator, whole))
        start = time.perf_counter()
        try:
            read(path)
            outcomes.add("read")
        except ValueError as error:
            outcomes.add("refused")
            text = str(error)
            assert text.startswith(str(path.parent)) and Path(name).stem.split(".")[0] in text, text
            assert all(line.isprintable() for line in text.splitlines()), ascii(text)
        assert time.perf_counter() - start < 10
    assert "refused" in outcomes


def test_a_checkpoint_of_any_content_with_a_good_checksum_is_damaged_at_worst(tmp_path):
    path = write_checkpoint(tmp_path, ARRAYS, {"epoch": 1, "step": 2})
    whole, generator, errors = path.read_bytes()[:-32], np.random.default_rng(0), []
    for _ in range(300):
        data = whole[:24] + mutate(whole[24:], generator, whole)
        path.write_bytes(data + hashlib.sha256(data).digest())
        try:
            read_checkpoint(path)
        except ValueError as error:
            errors.append(error)
    assert errors
    assert all(isinstance(error, DamagedCheckpoint) or "reads format 1" in str(error) for error in errors)
