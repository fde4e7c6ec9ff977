from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from frcnn.config import save_config
from frcnn.inference import detect, detect_stream, load_detector
from frcnn.models.detector import build_detector
from tests.contracts import assert_is_detections
from tests.oracles.fake_detector import fake_detector
from tests.oracles.tiny import CLASS_NAMES, SIZE, tiny_config, tiny_images, write_tiny_pictures

pytestmark = pytest.mark.tensorflow


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run folder with random weights."""
    folder = tmp_path_factory.mktemp("run")
    config = tiny_config("model.norm=frozen", "data.max_size=128")
    save_config(config, folder, CLASS_NAMES)
    build_detector(config, CLASS_NAMES).save_weights(folder / "best.weights.h5")
    return folder


@pytest.fixture(scope="module")
def detector(run):
    return load_detector(run)


@pytest.fixture
def pictures(tmp_path):
    return [record.path for record in write_tiny_pictures(tmp_path)]


def assert_same(first, second, tolerance=1e-3):
    assert first.labels.tolist() == second.labels.tolist()
    np.testing.assert_allclose(first.boxes, second.boxes, atol=tolerance)
    np.testing.assert_allclose(first.scores, second.scores, atol=tolerance)


def test_paths_and_arrays_alone_and_in_lists(detector, pictures):
    found = detect(detector, pictures)
    arrays = detect(detector, [cv2.imread(path)[:, :, ::-1] for path in pictures])
    assert [detections.path for detections in found] == pictures
    assert [detections.path for detections in arrays] == [""] * 4
    for by_path, by_array in zip(found, arrays, strict=True):
        assert len(by_path)
        assert_is_detections(by_path, CLASS_NAMES, size=(SIZE, SIZE))
        assert_is_detections(by_array, CLASS_NAMES, size=(SIZE, SIZE))
        assert_same(by_path, by_array, tolerance=0)
    assert {detections.size for detections in found} == {(SIZE, SIZE)}
    for one in (pictures[1], Path(pictures[1]), tiny_images()[1]):
        alone = detect(detector, one)
        assert_is_detections(alone, CLASS_NAMES)
        assert_same(alone, found[1])


def test_no_pictures(detector):
    assert detect(detector, []) == []
    assert list(detect_stream(detector, iter(()))) == []


def test_pictures_of_different_sizes_get_boxes_of_their_own_pixels(detector):
    sizes = [(64, 64), (200, 300), (37, 51), (16, 90)]
    images = [np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]
    for size, found in zip(sizes, detect(detector, images), strict=True):
        assert_is_detections(found, CLASS_NAMES, size=size)
        assert len(found)
        assert (found.boxes[:, 2:].max(axis=0) > 0.6 * np.array(size[::-1])).all()  # they span the picture


@pytest.mark.parametrize(("down", "right"), [(3, 3), (2, 5)])
def test_boxes_grow_with_the_picture(detector, down, right):
    """Every pixel repeated, so that averaging gives back the small picture: the detector then sees the same pixels."""
    small = np.random.default_rng(1).integers(0, 256, (64, 64 if down == right else 128, 3), dtype=np.uint8)
    if down != right:  # shrinks to 64 x 128 by 2 below and 2.5 to the right of it
        small = np.repeat(small[:, ::2], 2, axis=1)
    large = np.repeat(np.repeat(small, down, axis=0), right if down == right else down, axis=1)
    first, second = detect(detector, small), detect(detector, large)
    assert len(first) and first.labels.tolist() == second.labels.tolist()
    np.testing.assert_allclose(second.boxes, first.boxes * down, atol=down * 1e-3)
    np.testing.assert_allclose(second.scores, first.scores, atol=1e-3)


def test_the_batch_size_changes_nothing(detector, pictures):
    expected = detect(detector, pictures, batch_size=1)
    for batch_size in (3, 4, 8):
        for first, second in zip(detect(detector, pictures, batch_size=batch_size), expected, strict=True):
            assert_same(first, second)


def test_a_broken_picture_is_an_error_of_detect(detector, pictures, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"broken.png: cannot decode the picture"):
        detect(detector, [pictures[0], tmp_path / "broken.png", pictures[1]])


def test_few_pictures_are_no_large_batch(detector, pictures, monkeypatch):
    """Batches of 4: one picture goes through alone, three together, the last of five in a full batch."""
    sizes, predict = [], detector.predict_on_batch
    monkeypatch.setattr(
        detector, "predict_on_batch", lambda inputs: sizes.append(len(inputs["images"])) or predict(inputs)
    )
    detect(detector, pictures[0])
    detect(detector, pictures[:3])
    detect(detector, (pictures * 5)[:5])
    assert sizes == [1, 3, 4, 4]
    assert detect(detector, []) == []


def test_a_pass_without_the_memory_says_what_to_lower(detector, pictures, monkeypatch):
    def fail(_):
        raise RuntimeError(reason)

    monkeypatch.setattr(detector, "predict_on_batch", fail)
    reason = "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 9 bytes."
    sentence = (
        r"^memory ran out in a pass of 2 pictures of up to \d+x\d+: lower detect.batch_size \(2\), data.im_size \("
    )
    with pytest.raises(MemoryError, match=sentence):
        detect(detector, pictures[:2])
    reason = "shapes differ"
    with pytest.raises(RuntimeError, match=r"^shapes differ$"):
        detect(detector, pictures[:2])


@pytest.mark.parametrize("batch_size", [1, 2, 4])
def test_a_stream_yields_the_errors_in_their_places(detector, pictures, tmp_path, batch_size):
    (tmp_path / "broken.png").write_bytes(b"no picture")
    broken, missing = tmp_path / "broken.png", tmp_path / "missing.png"
    grey = np.zeros((4, 4), np.uint8)
    given = [broken, pictures[0], broken, missing, pictures[1], pictures[2], grey, pictures[3], broken]
    found = list(detect_stream(detector, given, batch_size=batch_size))
    assert len(found) == len(given)
    expected = {index: path for index, path in enumerate(given) if isinstance(path, str)}
    for index, result in enumerate(found):
        assert isinstance(result, ValueError) == (index not in expected), index
    assert "missing.png" in str(found[3]) and "(4, 4) uint8" in str(found[6])
    for (index, path), reference in zip(expected.items(), detect(detector, pictures), strict=True):
        assert found[index].path == path
        assert_same(found[index], reference)


def test_a_stream_of_errors_only(detector, tmp_path):
    found = list(detect_stream(detector, [tmp_path / "missing.png"] * 5, batch_size=2))
    assert [type(result) for result in found] == [ValueError] * 5


def test_a_stream_reads_only_a_little_ahead(detector):
    read = []

    def images():
        for image in tiny_images() * 50:
            read.append(1)
            yield image

    results = detect_stream(detector, images(), batch_size=2)
    next(results)
    assert len(read) < 12
    results.close()


UINT8 = r"a picture must be a \(H, W, 3\) uint8 RGB array, not \("


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((4, 4, 3)), UINT8 + r"4, 4, 3\) float64; \(image \* 255\).round\(\).astype\(np.uint8\)"),
        (np.full((4, 4, 3), 200.0), UINT8 + r"4, 4, 3\) float64; image.round"),
        (np.zeros((4, 4), np.uint8), UINT8 + r"4, 4\) uint8; repeat its grey"),
        (np.zeros((4, 4, 4), np.uint8), UINT8 + r"4, 4, 4\) uint8; drop its alpha"),
        (np.zeros((3, 4, 5), np.uint8), UINT8 + r"3, 4, 5\) uint8; .*image.transpose\(1, 2, 0\)"),
        (np.zeros((0, 4, 3), np.uint8), UINT8 + r"0, 4, 3\) uint8$"),
        (Image.new("I;16", (4, 4)), "a PIL image of mode I;16 is not read"),
        (None, "a picture must be a path or .*, not a NoneType"),
        (b"a.png", "a picture must be a path or .*, not a bytes"),
    ],
    ids=["0..1", "0..255", "grey", "alpha", "channels first", "empty", "16 bits", "None", "bytes"],
)
def test_what_is_no_picture_is_told_with_its_cure(image, message):
    with pytest.raises(ValueError, match=message):
        detect(fake_detector(), [image])


@pytest.mark.parametrize("images", [{"a.png": 1}, None, 7, b"a.png"])
def test_what_holds_no_pictures_is_told(images):
    message = rf"^images is a {type(images).__name__}: expected pictures, each a path or a \(H, W, 3\) uint8 RGB array"
    for call in (detect, lambda *arguments: list(detect_stream(*arguments))):
        with pytest.raises(ValueError, match=message):
            call(fake_detector(), images)
    with pytest.raises(ValueError, match=r"^images is a str"):
        list(detect_stream(fake_detector(), "a.png"))


@pytest.mark.parametrize("batch_size", [0, -1, 2.5, True, "4"])
def test_a_batch_size_must_be_a_number_from_1(batch_size):
    for call in (detect, lambda *arguments, **settings: list(detect_stream(*arguments, **settings))):
        with pytest.raises(ValueError, match=rf"^batch_size \({batch_size!r}\) must be a whole number of at least 1"):
            call(fake_detector(), tiny_images(), batch_size=batch_size)


def test_batches_and_images_of_pillow():
    images = np.stack(tiny_images(2))
    expected = detect(fake_detector(), list(images))
    for given in (images, map(Image.fromarray, images), [Image.fromarray(image).convert("RGBA") for image in images]):
        found = detect(fake_detector(), given)
        assert len(found) == 2
        for first, second in zip(found, expected):
            assert_same(first, second, tolerance=0)
    assert_is_detections(detect(fake_detector(), Image.fromarray(images[0])))


# --------------------------------------------------------------------------------------------------- a run folder


def test_overrides_reach_the_detector(run):
    config = load_detector(run, overrides=["detect.max_detections=3", "detect.score_threshold=0"]).config
    assert (config.detect.max_detections, config.detect.score_threshold) == (3, 0)
    detector = load_detector(run, overrides=["detect.max_detections=3", "detect.score_threshold=0"])
    assert len(detect(detector, tiny_images(1))[0]) == 3


def test_a_folder_without_a_run_says_what_is_missing(run, tmp_path):
    with pytest.raises(ValueError, match=r"nowhere is not a finished run: config.pickle is missing"):
        load_detector(tmp_path / "nowhere")
    save_config(tiny_config(), tmp_path, CLASS_NAMES)
    with pytest.raises(ValueError, match=r"is not a finished run: best.weights.h5 is missing"):
        load_detector(tmp_path)
    with pytest.raises(ValueError, match=r"is not a finished run: last.weights.h5 is missing"):
        load_detector(run, weights="last")


def test_a_run_whose_weights_are_not_finite_is_refused(tmp_path):
    model = build_detector(tiny_config("model.norm=frozen"), CLASS_NAMES)
    save_config(model.config, tmp_path, CLASS_NAMES)
    kernel = model.get_layer("rpn").get_layer("rpn_conv1").kernel
    kernel.assign(kernel + np.where(np.arange(16) == 3, np.nan, 0).astype(np.float32))
    model.save_weights(tmp_path / "best.weights.h5")
    with pytest.raises(ValueError, match=r"best.weights.h5: 2304 of the 36864 values of rpn_conv1/kernel are not fin"):
        load_detector(tmp_path)


@pytest.mark.parametrize("damage", ["classes", "depth", "garbage", "truncated"])
def test_weights_that_do_not_fit_are_one_sentence(run, tmp_path, damage):
    config, weights = tiny_config("model.norm=frozen"), (run / "best.weights.h5").read_bytes()
    class_names = ("a", "b", "c") if damage == "classes" else CLASS_NAMES
    config = tiny_config("model.norm=group") if damage == "depth" else config
    save_config(config, tmp_path, class_names)
    content = {"garbage": b"no weights", "truncated": weights[: len(weights) // 2]}.get(damage, weights)
    (tmp_path / "best.weights.h5").write_bytes(content)
    with pytest.raises(ValueError, match=r"best.weights.h5") as caught:
        load_detector(tmp_path)
    assert str(tmp_path) in str(caught.value) and "does not fit the config" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1 and "train" in str(caught.value)
