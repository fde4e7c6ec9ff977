"""`frcnn inspect`: the network, its anchors, its batches; the config is in test_cli."""

import os
import re
from pathlib import Path

import cv2
import numpy as np
import pytest

from frcnn.cli import main
from frcnn.config import save_config
from frcnn.data.images import read_image
from frcnn.data.readers.annotation_text import write_annotations
from frcnn.models import summary
from frcnn.records import ImageRecord
from frcnn.visualize import class_colour
from tests.oracles.boxes import iou_table
from tests.oracles.tiny import CLASS_NAMES, OVERRIDES, SCENES, tiny_config, write_tiny_pictures


@pytest.fixture
def inspect(monkeypatch, capsys, tmp_path):
    """Run `frcnn inspect` in an empty folder: inspect("model", ...) -> exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        code = main(["inspect", *map(str, arguments)])
        return code, *capsys.readouterr()

    return call


@pytest.fixture
def pictures(tmp_path):
    records = write_tiny_pictures(tmp_path / "pictures")
    write_annotations(tmp_path / "all.txt", records, CLASS_NAMES)
    return records


def assert_one_sentence(result, *words):
    code, _, error = result
    assert code == 2 and len(error.strip().splitlines()) == 1 and error.startswith("frcnn inspect: ")
    assert all(word in error for word in words), error


# --- model


def test_model_prints_every_stage_and_what_a_detection_costs(inspect, tmp_path):
    """The smallest detector at 64 pixels: 3 classes of a run, 16 RoIs; its sum is that of the table."""
    save_config(tiny_config("data.max_size=100"), tmp_path / "run", ["a", "b", "c"])
    code, out, error = inspect("model", "--run", "run", "rpn.test_post_nms=10")
    assert (code, error) == (0, "")
    assert "3 classes, pictures of 64x85, padded to 64x96" in out
    heads = dict(re.findall(r"^(\S+(?:: stage \d)?) +[\d,]+ +([\d,]+)$", out, re.MULTILINE))
    assert list(heads) == [f"backbone: stage {stage}" for stage in (1, 2, 3, 4)] + [
        "rpn",
        "roi_head: stage 5",
        "roi_head",
    ]
    adds = {name: int(number.replace(",", "")) for name, number in heads.items()}
    head = adds["roi_head: stage 5"] + adds["roi_head"]
    total = sum(adds.values()) - head + 10 * head
    assert f"roi_head 10 x {head / 1e9:.3f} = {total / 1e9:.1f} G multiply-adds" in out
    assert "1x1x256x64 + 3x3x64x64 + 1x1x64x256 = 16,384 + 36,864 + 16,384 = 69,632" in out


def test_graphs_are_written_all_four(inspect, monkeypatch):
    drawn = []
    monkeypatch.setattr(summary, "draw_graph", lambda model, format: drawn.append(model) or format.encode())
    code, out, _ = inspect("model", "--output", "graphs", "--format", "svg", *OVERRIDES)
    assert code == 0 and "graphs in graphs" in out
    assert sorted(os.listdir("graphs")) == ["backbone.svg", "block.svg", "classifier.svg", "training.svg"]
    assert {path.read_bytes() for path in Path("graphs").iterdir()} == {b"svg"}
    backbone, block, classifier, training = ({layer.name for layer in model.layers} for model in drawn)
    assert "res4b" in backbone and "res5a" not in backbone and {"res5b", "fc"} <= classifier
    assert {"res2a_branch2a", "res2a_add"} <= block
    assert {"backbone", "rpn", "roi_head", "rpn_class_loss", "roi_box_loss", "gt_boxes"} <= training
    assert max(map(len, (backbone, block, classifier, training))) <= 25


def test_without_graphviz_the_table_is_printed_and_nothing_is_written(inspect, monkeypatch):
    monkeypatch.setenv("PATH", "")
    result = inspect("model", "--output", "graphs", *OVERRIDES)
    assert_one_sentence(result, "the graphs are not drawn, they need ", "install")
    assert "backbone: stage 4" in result[1]
    assert not os.path.exists("graphs")


# --- anchors


def test_anchors_are_counted_and_matched_as_in_training(inspect, pictures, tmp_path):
    """Scene 0, 64x64: 4x4 cells, 6 anchors each; IoU by the oracle, then the rule of the paper by hand."""
    arguments = ["anchors", "pictures/0.png", "--boxes", "all.txt", "--output", "a.png", *OVERRIDES]
    code, out, error = inspect(*arguments, "rpn.positive_iou=0.4", "rpn.negative_iou=0.2")
    assert (code, error) == (0, "")
    places = [(16 * column, 16 * row) for row in range(4) for column in range(4)]
    iou = {20: [], 36: []}
    for size, rows in iou.items():
        for x, y in places:
            for ratio in (0.5, 1.0, 2.0):
                half_width, half_height = np.round(size / ratio**0.5 / 2), np.round(size * ratio**0.5 / 2)
                anchor = (x - half_width, y - half_height, x + half_width, y + half_height)
                rows.append(np.array(iou_table([box for _, box in SCENES[0]], [anchor]))[:, 0])
    best = np.max([np.max(rows, axis=0) for rows in iou.values()], axis=0)
    for size, rows in iou.items():
        positive = [max(row) >= 0.4 or any(row >= best - 1e-5) for row in rows]
        negative = [max(row) < 0.2 and not up for row, up in zip(rows, positive)]
        counts = (48, sum(positive), 48 - sum(positive) - sum(negative), sum(negative))
        assert re.search(rf"^ +16 +{size} +" + " +".join(map(str, counts)) + "$", out, re.MULTILINE), (
            size,
            counts,
            out,
        )
    for name, box, overlap in zip(CLASS_NAMES, (SCENES[0][0][1], SCENES[0][1][1]), best):
        width, height = box[2] - box[0], box[3] - box[1]
        assert re.search(rf"^ *{name} +{width} +{height} +{overlap:.2f} ", out, re.MULTILINE)
    assert read_image("a.png").shape == (1280, 1280, 3)


def test_anchors_at_another_size_stride_and_scale(inspect, draw_picture):
    """40x60 becomes 80x120, padded to 96x128; at stride 32 that is 3x4 cells."""
    draw_picture("a.png")
    arguments = [
        "anchors",
        "a.png",
        "--box",
        "10,5,50,35",
        "--stride",
        32,
        "data.im_size=80",
        "model.anchor_ratios=[1]",
    ]
    code, out, _ = inspect(*arguments, "model.anchor_sizes=[16,64,90]")
    assert code == 0 and "a.png, 40x60, resized to 80x120, padded to 96x128" in out
    assert [line.split()[:3] for line in out.splitlines()[2:5]] == [["32", size, "12"] for size in ("16", "64", "90")]
    assert re.search(r"^ *box +80 +60 +0\.\d\d +\d+ +32 +64 +1$", out, re.MULTILINE)
    assert re.search(r"\d of 1 boxes below rpn.positive_iou=0.7: ", out)


def test_anchors_without_boxes_are_those_of_the_middle_cell(inspect, draw_picture):
    draw_picture("a.png", 64, 64)
    code, out, _ = inspect("anchors", "a.png", *OVERRIDES, "model.anchor_ratios=[1]")
    assert code == 0 and "best IoU" not in out
    assert out.splitlines()[1:4][-1].split() == ["16", "36", "16", "0", "0", "16"]
    drawn = read_image("anchors.png")  # cell (2, 2) of 4x4, centred on (32, 32); enlarged 20 times
    for label, size in enumerate((20, 36)):
        rows, columns = np.nonzero((drawn == class_colour(label)).all(axis=-1))
        assert (columns.max(), rows.max()) == pytest.approx((20 * (32 + size / 2),) * 2, abs=3)  # lines are 3 wide


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["none.png"], ["none.png", "No such file"]),
        (["a.png", "--box", "1,2,3"], ["--box 1,2,3", "X1,Y1,X2,Y2"]),
        (["a.png", "--box", "1,2,3,x"], ["--box 1,2,3,x"]),
        (["a.png", "--box", "10,10,5,20"], ["a.png box 0", "must satisfy"]),
        (["a.png", "--boxes", "all.txt"], ["all.txt does not hold a.png", "4 others"]),
        (["a.png", "--boxes", "all.txt", "--box", "1,2,3,4"], ["either --boxes or --box"]),
        (["a.png", "--stride", "0"], ["--stride (0) must be at least 1"]),
        (["a.png", "--run", "nowhere"], ["nowhere"]),
        (["a.png", "--output", "a.nothing"], ["a.nothing", "cannot be written"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_mistakes_with_anchors_are_one_sentence(inspect, draw_picture, pictures, arguments, words):
    draw_picture("a.png")
    assert_one_sentence(inspect("anchors", *arguments), *words)


# --- batch


def test_a_batch_sheet_has_a_row_for_the_pictures_and_one_for_each_epoch(inspect, tmp_path):
    """Two black pictures with a white box each: the sheet shows the boxes of the plan's first batch, row by row."""
    records = []
    for index, (x1, y1) in enumerate([(8, 8), (40, 20)]):
        pixels = np.zeros((48, 64, 3), np.uint8)
        pixels[y1 : y1 + 16, x1 : x1 + 16] = 255
        cv2.imwrite(str(tmp_path / f"{index}.png"), pixels)
        records.append(ImageRecord(str(tmp_path / f"{index}.png"), (48, 64), [[x1, y1, x1 + 16, y1 + 16]], [0]))
    write_annotations(tmp_path / "all.txt", records, ["box"])
    arguments = [
        "batch",
        "-p",
        "all.txt",
        "--epochs",
        3,
        "--output",
        "sheet.png",
        "data.im_size=48",
        "data.max_size=64",
    ]
    code, out, error = inspect(*arguments, "train.batch_size=2", "data.horizontal_flip=true")
    assert (code, error) == (0, "")
    assert "0.png" in out and "1.png" in out and "sheet.png" in out
    sheet = read_image("sheet.png")
    height, width = sheet.shape[0] // 4, sheet.shape[1] // 2
    assert (width, sheet.shape[0] % 4) == (400, 0)
    centres = []
    for row in range(4):
        for column in range(2):
            cell = sheet[row * height : row * height + 400, column * width : (column + 1) * width]
            # 64x64 padded fills the cell: 400 / 64 pixels a pixel; below 48 rows it is black.
            assert cell[310:, :].max() < 30 and cell[: int(48 * 6.25) - 5].max() > 200
            rows, columns = np.nonzero((cell[:300] > 240).all(axis=-1))
            centres.append((columns.mean() / 6.25, rows.mean() / 6.25))
            assert ((cell == class_colour(0)).all(axis=-1)).sum() > 100
    np.testing.assert_allclose(centres[:2], [(16, 16), (48, 28)], atol=1)
    rows = {tuple(np.round(centres[index : index + 2]).ravel()) for index in (0, 2, 4, 6)}
    assert len(rows) > 2  # an epoch differs from another, not only from the pictures as they are


def test_mistakes_with_batches_are_one_sentence(inspect, pictures):
    assert_one_sentence(inspect("batch", "-p", "nothing.txt"), "nothing.txt")
    assert_one_sentence(inspect("batch", "-p", "all.txt", "--epochs", "0"), "--epochs (0) must be at least 1")
    assert_one_sentence(inspect("batch", "-p", "all.txt", "data.im_size=1"), "data.im_size")
