import os
from pathlib import Path

import cv2
import numpy as np
import pytest

from frcnn.data.duplicates import SAME_CORRELATION, Fingerprint, fingerprint, group_duplicates, near_duplicates
from frcnn.data.images import read_image, write_image

needs_pictures = pytest.mark.skipif("FRCNN_DATA" not in os.environ, reason="set FRCNN_DATA to the picture sets")
SETS = {
    "bccd": [("BloodImage_00037.jpg", "BloodImage_00038.jpg")],  # one field, focused anew
    "cards": [
        *((f"IMG_{number}.JPG", f"IMG_{number + 1}.JPG") for number in (2464, 2466, 2468, 2471, 2473)),  # taken twice
        ("cam_image1.jpg", "cam_image54.jpg"),  # half the size
    ],
}
COPIES = {
    "the same bytes": lambda image: image,
    "re-encoded": lambda image: cv2.imdecode(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 30])[1], 1),
    "half the size": lambda image: cv2.resize(image, None, fx=0.5, fy=0.5),
    "larger and stretched": lambda image: cv2.resize(image, None, fx=1.7, fy=1.3),
    "brighter": lambda image: cv2.convertScaleAbs(image, alpha=1.1, beta=12),
    "darker": lambda image: cv2.convertScaleAbs(image, alpha=0.6),
    "noisy": lambda image: cv2.add(image, np.random.default_rng(0).integers(0, 20, image.shape, dtype=np.uint8)),
}


def scene(seed, height=150, width=200):
    """Blobs on a shaded ground: all scenes have the same light, but other blobs."""
    generator = np.random.default_rng(seed)
    image = np.repeat(np.linspace(120, 200, width, dtype=np.uint8)[None, :, None], height, 0).repeat(3, 2)
    for _ in range(12):
        centre, colour = generator.integers(0, (width, height)), generator.integers(0, 256, 3)
        cv2.circle(image, centre.tolist(), int(generator.integers(8, 25)), colour.tolist(), -1)
    return image


def random_fingerprints(views, digests=None):
    views = np.asarray(views, np.float32)
    views = np.pad(views, ((0, 0), (0, 1024 - views.shape[1])))
    digests = range(len(views)) if digests is None else digests
    return [Fingerprint(str(digest).encode(), view) for digest, view in zip(digests, views)]


def groups_by_loops(fingerprints):
    """Every pair, then whoever is reached from a picture over alike ones."""
    alike = [
        [a.digest == b.digest or float(a.view @ b.view) >= SAME_CORRELATION for b in fingerprints] for a in fingerprints
    ]
    groups, seen = [], set()
    for start in range(len(fingerprints)):
        reached, todo = set(), [start]
        while todo:
            index = todo.pop()
            if index not in reached | seen:
                reached.add(index)
                todo += [other for other, same in enumerate(alike[index]) if same]
        seen |= reached
        groups += [tuple(sorted(reached))] * (len(reached) > 1)
    return groups


@pytest.mark.parametrize("copy", COPIES)
@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_a_copy_is_found_among_other_scenes(tmp_path, copy, suffix):
    for seed in range(8):
        write_image(tmp_path / f"{seed}.{suffix}", scene(seed))
    write_image(tmp_path / f"copy.{suffix}", COPIES[copy](scene(7)))
    paths = [*(tmp_path / f"{seed}.{suffix}" for seed in range(8)), tmp_path / f"copy.{suffix}"]
    assert near_duplicates(paths) == [(7, 8)]
    equal = fingerprint(paths[7]).digest == fingerprint(paths[8]).digest
    assert equal == (copy == "the same bytes")


def test_pictures_that_show_nothing_are_equal_only_as_files(tmp_path):
    for name, grey in (("a", 100), ("b", 101), ("c", 100)):
        write_image(tmp_path / f"{name}.png", np.full((60, 80, 3), grey, np.uint8))
    assert near_duplicates([tmp_path / f"{name}.png" for name in "abc"]) == [(0, 2)]
    assert near_duplicates([]) == []


def test_a_large_jpeg_is_compared_by_a_small_decoding(tmp_path):
    large = cv2.resize(scene(0), (2000, 1500))
    write_image(tmp_path / "large.jpg", large)
    write_image(tmp_path / "small.png", scene(0))
    assert near_duplicates([tmp_path / "large.jpg", tmp_path / "small.png"]) == [(0, 1)]


@pytest.mark.parametrize("name", ["cut.jpg", "cut.png", "absent.jpg", "empty.jpg"])
def test_what_cannot_be_decoded_is_named(tmp_path, draw_picture, name):
    if name.startswith("cut"):
        data = draw_picture(name).read_bytes()
        (tmp_path / name).write_bytes(data[: len(data) // 2])
    (tmp_path / "empty.jpg").touch()
    with pytest.raises(ValueError, match=f"{name}: cannot"):
        near_duplicates([tmp_path / name])


def test_pairs_that_share_a_picture_are_one_group():
    angle = np.arccos(SAME_CORRELATION + 0.01)  # each is like its neighbours only
    chain = [[np.cos(k * angle), np.sin(k * angle)] for k in (4, 0, 3, 1, 2)]
    assert group_duplicates(random_fingerprints(chain)) == [(0, 1, 2, 3, 4)]
    apart = [[np.cos(k * 1.2 * angle), np.sin(k * 1.2 * angle)] for k in range(3)]
    assert group_duplicates(random_fingerprints(apart)) == []
    assert group_duplicates(random_fingerprints(apart, digests=[1, 2, 1])) == [(0, 2)]


@pytest.mark.parametrize("seed", range(4))
def test_groups_are_those_of_a_loop_over_pairs(monkeypatch, seed):
    monkeypatch.setattr("frcnn.data.duplicates._ROWS", 7)  # several blocks
    generator = np.random.default_rng(seed)
    views = generator.normal(size=(60, 4))
    views /= np.linalg.norm(views, axis=1)[:, None]
    marks = random_fingerprints(views, digests=generator.integers(0, 50, 60))
    groups = group_duplicates(marks)
    assert groups == groups_by_loops(marks)
    assert 1 < len(groups) < 20


@needs_pictures
@pytest.mark.parametrize("name", SETS)
def test_real_pictures_have_these_duplicates_and_no_others(name):
    folder = Path(os.environ["FRCNN_DATA"], name, "JPEGImages")
    paths = sorted(folder.iterdir())
    found = [tuple(paths[index].name for index in group) for group in near_duplicates(paths)]
    assert found == SETS[name]


@needs_pictures
@pytest.mark.parametrize("name", SETS)
def test_copies_of_real_pictures_are_found(tmp_path, name):
    paths = sorted(Path(os.environ["FRCNN_DATA"], name, "JPEGImages").iterdir())[100:116]
    copies = [tmp_path / f"{index}.jpg" for index in range(len(paths))]
    for index, (path, copy) in enumerate(zip(paths, copies)):
        write_image(copy, list(COPIES.values())[index % len(COPIES)](read_image(path)))
    assert near_duplicates(paths + copies) == [(index, index + 16) for index in range(16)]
