"""What keras-frcnn got wrong, the whole list in one place: each test fails on the old behaviour.

The docstrings quote the list. Where the old arithmetic is a line, it stands in the test and gives another result.
"""

import os
import pickle

import keras
import numpy as np
import pytest

from frcnn.config import load_config, load_run_config
from frcnn.data.batches import split_records, training_batches
from frcnn.data.images import resized_size
from frcnn.data.readers import read_records
from frcnn.evaluation import evaluate
from frcnn.models.layers import ImageNormalization
from frcnn.models.resnet import BLOCKS, CONVENTIONS
from frcnn.ops.anchors import grid_anchors
from frcnn.ops.boxes import decode_deltas
from frcnn.ops.detections import select_detections
from frcnn.ops.losses import rpn_class_loss
from frcnn.ops.proposals import select_proposals
from frcnn.ops.targets import rpn_targets, sample_rois
from frcnn.outputs import write_csv, write_json
from frcnn.records import Detections, ImageRecord
from frcnn.weights import load_weights
from tests.oracles.boxes import iou_table
from tests.oracles.tensors import array, tensor

SEEDS = tensor([0], "int32")
ANCHORS = array(grid_anchors(12, 12, 16, (32, 64), (0.5, 1.0, 2.0)))
SIZE = tensor([[192, 192]], "int32")


def truth(*boxes):
    """(1, G, 4) boxes and (1, G) labels, all of class 0."""
    return tensor([boxes]), tensor([[0] * len(boxes)], "int32")


def sample_anchors(anchors, *boxes, **settings):
    """`rpn_targets` of one picture: indices, labels, delta targets."""
    return tuple(x[0] for x in array(rpn_targets(tensor(anchors), *truth(*boxes), SEEDS, **settings)))


def sample_one(proposals, *boxes):
    """`sample_rois` of one picture and one class: rois, labels."""
    scores = np.ones((1, len(proposals)), np.float32)
    sampled = sample_rois(tensor([proposals]), tensor(scores), *truth(*boxes), SEEDS, num_classes=1, samples=8)
    return tuple(x[0] for x in array(sampled)[:2])


def test_anchors_have_one_centre():
    """Anchors centred at `16*i` when decoding and at `16*(i+0.5)` when training (every box shifted by 8 px)."""
    box = (40.0, 50.0, 75.0, 88.0)
    indices, labels, targets = sample_anchors(ANCHORS, box)
    anchors, targets = ANCHORS[indices[labels == 1]], targets[labels == 1]
    assert len(targets) and array(decode_deltas(tensor(targets), tensor(anchors))) == pytest.approx(
        np.array([box] * len(targets)), abs=1e-3
    )
    old = array(decode_deltas(tensor(targets), tensor(anchors - 8)))
    assert old == pytest.approx(np.array([box] * len(targets)) - 8, abs=1e-3)


def test_nothing_is_rounded_to_cells():
    """Proposals, ground truth and final boxes rounded to 16-px cells (a perfect predictor reaches IoU .75 on 51 %)."""
    boxes = np.array([(33.3, 40.1, 97.2, 104.4), (100.7, 9.9, 164.6, 73.2)], np.float32)
    proposals, scores = select_proposals(
        tensor([[2.0, 1.0]]), tensor(np.zeros((1, 2, 4))), tensor(boxes), SIZE, pre_nms=2, post_nms=2
    )
    assert array(proposals)[0] == pytest.approx(boxes, abs=1e-3)
    found, _, _ = select_detections(proposals, scores, tensor([[[9, 0], [8, 0]]]), tensor(np.zeros((1, 2, 1, 4))), SIZE)
    assert array(found)[0, :2] == pytest.approx(boxes, abs=1e-3)
    rois, labels = sample_one(boxes[:0], *boxes.tolist())
    assert np.sort(rois[labels == 0], axis=0) == pytest.approx(np.sort(boxes, axis=0), abs=1e-3)
    rounded = np.round(boxes / 16) * 16
    assert np.diag(iou_table(rounded, boxes)).min() < 0.75


def test_the_mean_is_subtracted_from_its_own_channel():
    """RGB pictures minus BGR means."""
    conventions = CONVENTIONS["frcnn"]
    settings = {name: getattr(conventions, name) for name in ("channel_order", "mean", "deviation")}
    mean = np.array([123.675, 116.28, 103.53], np.float32)  # of red, green and blue over ImageNet
    normalised = ImageNormalization(**settings)(tensor(mean[None, None, None]), tensor([[1, 1]], "int32"))
    assert array(normalised) == pytest.approx(0, abs=1e-5)
    assert np.abs(mean - (103.939, 116.779, 123.68)).max() > 19


def test_the_arguments_of_the_cross_entropy():
    """Cross-entropy with its arguments swapped."""
    loss = array(rpn_class_loss((tensor([[4.0]]), tensor([[0]], "int32"))))
    score = 1 / (1 + np.exp(-4.0))
    assert loss == pytest.approx(-np.log(1 - score), rel=1e-5)
    assert -score * np.log(1e-7) - (1 - score) * np.log(1 - 1e-7) > 3 * loss[0]  # Keras clipped the logarithm's label


def test_256_samples_are_256():
    """ "256" RPN samples that are really 1:1 with the positives."""
    _, labels, _ = sample_anchors(ANCHORS, (40.0, 50.0, 75.0, 88.0))
    positives = (labels == 1).sum()
    assert 0 < positives < 20 and (labels == 0).sum() == 256 - positives


def test_many_positive_anchors_are_sampled():
    """Pictures with more than 128 positive anchors silently dropped."""
    box = (40.0, 50.0, 80.0, 90.0)
    anchors = np.concatenate([np.tile(np.float32(box), (300, 1)), ANCHORS])
    _, labels, _ = sample_anchors(anchors, box)
    assert [(labels == value).sum() for value in (1, 0, -1)] == [128, 128, 0]


def test_the_ground_truth_is_among_the_rois():
    """Ground truth not added to the RoIs."""
    box = (40.0, 50.0, 80.0, 90.0)
    rois, labels = sample_one([(100.0, 100.0, 150.0, 150.0)], box)
    assert [tuple(roi) for roi in rois[labels == 0]] == [box]


def test_far_rois_are_background():
    """RoIs under IoU 0.1 discarded."""
    far = (100.0, 100.0, 150.0, 150.0)
    rois, labels = sample_one([far], (40.0, 50.0, 80.0, 90.0))
    assert [tuple(roi) for roi in rois[labels == 1]] == [far]


def test_a_box_that_no_anchor_touches_claims_none():
    """A ground truth without any overlap turning every anchor positive by a tie at 0."""
    box = (1000.0, 1000.0, 1040.0, 1040.0)
    _, labels, _ = sample_anchors(ANCHORS, box)
    assert not (labels == 1).any() and (labels == 0).sum() == 256
    iou = np.array(iou_table([box], ANCHORS))
    assert (iou >= iou.max()).all()


def test_the_longer_side_has_a_limit():
    """No limit on the longer side."""
    data = load_config().data
    assert resized_size(100, 2000, data.im_size, data.max_size) == (50, 1000)
    assert resized_size(100, 2000, data.im_size, 100_000) == (600, 12000)


def test_deltas_are_bounded():
    """`exp` of an unbounded delta."""
    box = array(decode_deltas(tensor([0.0, 0.0, 100.0, 100.0]), tensor([0.0, 0.0, 16.0, 16.0])))
    assert box == pytest.approx([8 - 500, 8 - 500, 8 + 500, 8 + 500])
    with np.errstate(over="ignore"):
        assert np.isinf(np.exp(np.float32(100)))


def test_a_broken_picture_ends_the_run(draw_picture):
    """Exceptions swallowed in an endless loop."""
    records = [ImageRecord(str(draw_picture(name)), (40, 60), [(1, 2, 30, 30)], [0]) for name in ("a.png", "b.png")]
    draw_picture("b.png").write_bytes(b"no picture")
    batches = training_batches(records, load_config(None, ["train.batch_size=1", "data.im_size=32"]), seed=0)
    with pytest.raises(ValueError, match=r"b\.png"):
        list(zip(range(3), batches, strict=False))


def test_weights_that_do_not_fit_are_an_error():
    """Weights that fail to load silently, heads of another class count included."""
    features = keras.Input((4,))
    layers = keras.layers.Dense(3, name="class_logits"), keras.layers.Dense(8, name="box_predictor")
    model = keras.Model(features, [layer(features) for layer in layers])
    model.config, model.class_names = load_config(None, ["model.depth=18", "model.conventions=keras2016"]), ("a", "b")
    trunk = {
        f"res{stage}{letter}_branch2a/kernel": np.zeros((3, 3, 1, 1))
        for stage, blocks in zip((2, 3, 4, 5), BLOCKS[18], strict=True)
        for letter in "ab"[:blocks]
    }
    before = [weight.numpy().copy() for weight in model.weights]
    for classes, message in ((3, "its classes"), (2, "has shape")):
        head = {"class_logits": classes + 1, "box_predictor": 4 * classes}
        weights = {f"{name}/kernel": np.ones((4 + (classes == 2), width)) for name, width in head.items()}
        weights |= {f"{name}/bias": np.ones(width) for name, width in head.items()}
        with pytest.raises(ValueError, match=message):
            load_weights(model, trunk | weights)
    with pytest.raises(ValueError, match=r"\S"):
        load_weights(model, {"something/else": np.ones(3)})
    assert all((weight.numpy() == old).all() for weight, old in zip(model.weights, before, strict=True))


def test_a_class_never_detected_scores_0():
    """An average precision that scores 1.0 for a class never detected."""
    records = [ImageRecord("a.png", (40, 60), [(1, 2, 30, 30)], [0])]
    result = evaluate(records, [Detections([], [], [], ("a",), "a.png")], ("a",))
    assert result.mean_ap == 0


def test_the_split_is_drawn_once(draw_picture):
    """An unseeded train/test split redrawn at every run."""
    records = [ImageRecord(f"{index}.png", (40, 60), [], []) for index in range(50)]

    def held_out(seed):
        return [record.path for record in split_records(records, 0.2, seed)[1]]

    np.random.seed(1)
    first = held_out(0)
    np.random.seed(2)
    assert held_out(0) == first and len(first) == 10
    assert held_out(1) != first


@pytest.mark.parametrize(("threshold", "count"), [(0.05, 1), (0.2, 1), (0.4, 0), (0.8, 0)])
def test_the_score_threshold_is_a_setting(threshold, count):
    """A score threshold fixed at 0.8."""
    logits = np.log([[[0.3, 0.7]]])
    box, deltas = tensor([[(10.0, 10.0, 50.0, 50.0)]]), tensor(np.zeros((1, 1, 1, 4)))
    _, _, labels = select_detections(box, tensor([[1.0]]), tensor(logits), deltas, SIZE, score_threshold=threshold)
    assert (array(labels) >= 0).sum() == count
    assert load_config().detect.score_threshold == 0.05


def test_detections_are_written(tmp_path):
    """Detections never written to a file."""
    found = [Detections([(1, 2, 30, 30)], [0.5], [0], ("a",), "a.png")]
    write_json(tmp_path / "found.json", found)
    write_csv(tmp_path / "found.csv", found)
    assert '"category_name": "a"' in (tmp_path / "found.json").read_text()
    assert (tmp_path / "found.csv").read_text().splitlines()[1:] == ["a.png,1.0,2.0,30.0,30.0,0.5,a"]


@pytest.fixture
def voc_tree(draw_picture):
    """A VOC2007 without its VOC2012: two pictures, the second without objects."""
    box = "<bndbox><xmin>2</xmin><ymin>3</ymin><xmax>30</xmax><ymax>30</ymax></bndbox>"
    for name, text in (("1", f"<object><name>a</name>{box}</object>"), ("2", "")):
        folder = draw_picture(f"VOC2007/JPEGImages/{name}.jpg").parents[1] / "Annotations"
        folder.mkdir(exist_ok=True)
        (folder / f"{name}.xml").write_text(f"<annotation><filename>{name}.jpg</filename>{text}</annotation>")
    return folder.parents[1]


def test_an_xml_without_objects_is_a_picture_without_objects(voc_tree):
    """An XML without objects that repeats the previous picture."""
    records, _ = read_records(voc_tree, "voc")
    assert [(os.path.basename(record.path), len(record.boxes)) for record in records] == [("1.jpg", 1), ("2.jpg", 0)]


def test_one_year_is_enough(voc_tree):
    """Both VOC2007 and VOC2012 required."""
    assert not (voc_tree / "VOC2012").exists()
    records, class_names = read_records(voc_tree, "pascal_voc")
    assert (len(records), class_names) == (2, ("a",))


class Attack:
    """Unpickled the ordinary way, makes the folder `marker`."""

    def __reduce__(self):
        return os.mkdir, ("marker",)


def test_a_pickle_runs_nothing(tmp_path, monkeypatch):
    """`pickle.load` on any file."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.pickle").write_bytes(pickle.dumps(Attack()))
    with pytest.raises(ValueError, match=r"holds more than plain values \(\w+\.mkdir\): refused"):
        load_run_config(tmp_path)
    assert not (tmp_path / "marker").exists()
    pickle.loads((tmp_path / "config.pickle").read_bytes())
    assert (tmp_path / "marker").exists()
