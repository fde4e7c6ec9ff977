import gc
import threading
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frcnn.config import Config
from frcnn.data.batches import (
    batch_files,
    make_batch,
    make_labelled_batch,
    pad_images,
    plan_epoch,
    repeat_factors,
    split_records,
    training_batches,
)
from frcnn.records import ImageRecord, LabelledImage

OLDER = {"vertical_flip": True, "rotate_90": True, "scale_jitter": 0.3, "colour_jitter": 0.4}
EVERYTHING = {**OLDER, "random_crop": 0.5, "blur": 1.5, "jpeg_noise": 60}


def config(batch_size=2, **data):
    return Config(data={"im_size": 64, "max_size": 100, **data}, train={"batch_size": batch_size})


def blank_records(sizes):
    return [ImageRecord(f"{index}.png", size, np.zeros((0, 4)), []) for index, size in enumerate(sizes)]


@pytest.fixture
def records(draw_picture):
    """Seven pictures, portrait and landscape, with 0 to 6 boxes."""
    result = []
    for index, (height, width) in enumerate([(40, 60), (60, 40), (50, 50), (30, 90), (80, 40), (40, 60), (45, 60)]):
        path = draw_picture(f"{index}.png", height, width, seed=index)
        boxes = [[slot, slot, slot + 20, slot + 10] for slot in range(index)]
        result.append(ImageRecord(str(path), (height, width), boxes, [slot % 3 for slot in range(index)]))
    return result


def assert_same_batch(one, other):
    assert one.keys() == other.keys()
    for key in one:
        np.testing.assert_array_equal(one[key], other[key])


def loader_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("frcnn-data")]


# --- split_records


def test_split_is_a_partition_that_follows_the_seed():
    records = blank_records([(10, 10)] * 50)
    train, validation = split_records(records, 0.1, seed=3)
    paths = [record.path for record in train], [record.path for record in validation]
    assert len(paths[1]) == 5
    assert sorted(paths[0] + paths[1]) == sorted(record.path for record in records)
    assert paths[0] == sorted(paths[0], key=lambda path: int(path[:-4]))
    assert [record.path for record in split_records(records, 0.1, seed=3)[1]] == paths[1]
    assert [record.path for record in split_records(records, 0.1, seed=4)[1]] != paths[1]


@pytest.mark.parametrize(
    ("count", "fraction", "held_out"), [(2, 0.001, 1), (2, 0.99, 1), (17, 0.1, 2), (5, 0.0, 0), (1, 0.0, 0)]
)
def test_split_leaves_a_picture_on_each_side(count, fraction, held_out):
    train, validation = split_records(blank_records([(10, 10)] * count), fraction, seed=0)
    assert (len(train), len(validation)) == (count - held_out, held_out)


@pytest.mark.parametrize(("count", "fraction", "message"), [(1, 0.1, "val_fraction=0"), (9, 1.0, "less than 1")])
def test_split_says_what_is_wrong(count, fraction, message):
    with pytest.raises(ValueError, match=message):
        split_records(blank_records([(10, 10)] * count), fraction, seed=0)


# --- plan_epoch


@settings(max_examples=50, deadline=None)
@given(
    sizes=st.lists(st.sampled_from([(10, 20), (20, 10), (10, 10)]), min_size=1, max_size=30),
    batch_size=st.integers(1, 7),
    shuffle=st.booleans(),
)
def test_plan_holds_every_picture_in_full_batches_of_one_orientation(sizes, batch_size, shuffle):
    plan = plan_epoch(blank_records(sizes), batch_size, seed=1, epoch=2, shuffle=shuffle)
    assert plan.shape[1] == batch_size
    assert set(plan.ravel()) == set(range(len(sizes)))
    portraits = sum(height > width for height, width in sizes)
    assert len(plan) == -(-portraits // batch_size) + -(-(len(sizes) - portraits) // batch_size)
    for batch in plan:
        assert len({sizes[index][0] > sizes[index][1] for index in batch}) == 1


def test_plan_follows_seed_and_epoch():
    records = blank_records([(10, 20)] * 40)
    plan = plan_epoch(records, 4, seed=0, epoch=0)
    np.testing.assert_array_equal(plan, plan_epoch(records, 4, seed=0, epoch=0))
    assert (plan != plan_epoch(records, 4, seed=0, epoch=1)).any()
    assert (plan != plan_epoch(records, 4, seed=1, epoch=0)).any()


def test_plan_mixes_the_company_of_pictures():
    records = blank_records([(10, 20)] * 40)
    company = [{frozenset(batch) for batch in plan_epoch(records, 4, 0, epoch).tolist()} for epoch in range(2)]
    assert company[0] != company[1]


def test_plan_without_shuffling_by_hand():
    # 1 and 3 are portrait; 4 is filled up with 0, the first of its group.
    records = blank_records([(10, 20), (20, 10), (10, 10), (20, 10), (10, 20)])
    np.testing.assert_array_equal(plan_epoch(records, 2, 0, 0, shuffle=False), [[0, 2], [4, 0], [1, 3]])


def test_plan_shuffles_the_order_of_batches_too():
    records = blank_records([(10, 20)] * 20 + [(20, 10)] * 20)
    portrait = plan_epoch(records, 2, seed=0, epoch=0)[:, 0] >= 20
    assert portrait[:10].any()
    assert not portrait[:10].all()


def test_plan_of_nothing_is_an_error():
    with pytest.raises(ValueError, match="no pictures"):
        plan_epoch([], 2, 0, 0)


def shown_records(*labels_of_pictures, size=(10, 20)):
    """Records of one size whose pictures show these labels, each in a box of its own."""
    return [ImageRecord("", size, [[0, 0, 1, 1]] * len(labels), labels) for labels in labels_of_pictures]


def test_repeat_factors_by_hand():
    """Ten pictures: class 0 on eight (f = 0.8), 1 on two (0.2), 2 on one (0.1), threshold 0.4; one without objects.

    sqrt(0.4 / 0.8) is below 1, so 1; sqrt(0.4 / 0.2) = sqrt(2); sqrt(0.4 / 0.1) = 2. Two boxes of a class count once.
    """
    records = shown_records([0], [0, 0], [0], [0], [0], [0], [0, 1], [0, 1, 2], [], [])
    of_picture, of_class = repeat_factors(records, 0.4)
    assert of_class == pytest.approx({0: 1.0, 1: 2**0.5, 2: 2.0})
    np.testing.assert_allclose(of_picture, [1, 1, 1, 1, 1, 1, 2**0.5, 2, 1, 1])
    np.testing.assert_array_equal(repeat_factors(records, 0.0)[0], 1)


def test_pictures_of_rare_classes_come_as_often_as_their_factors_say():
    """Ten pictures show class 0, four of them 1, one 2: factors 1, sqrt(0.9 / 0.4) = 1.5 and sqrt(0.9 / 0.1) = 3.

    Their sum is 5 x 1 + 4 x 1.5 + 3 = 14 in every epoch, so two of the four come twice; over 400 epochs the mean of
    each is 1.5 within five standard deviations of 0.5 / 20.
    """
    records = shown_records(*[[0]] * 5, *[[0, 1]] * 4, [0, 2])
    plans = [plan_epoch(records, 1, 0, epoch, repeat_threshold=0.9) for epoch in range(400)]
    counts = np.array([np.bincount(plan.ravel(), minlength=10) for plan in plans])
    assert {plan.shape for plan in plans} == {(14, 1)}
    assert (counts[:, :5] == 1).all() and (counts[:, 9] == 3).all()
    assert set(counts[:, 5:9].ravel()) == {1, 2} and (counts[:, 5:9].sum(axis=1) == 6).all()
    np.testing.assert_allclose(counts[:, 5:9].mean(axis=0), 1.5, atol=0.125)


@settings(max_examples=50, deadline=None)
@given(
    shown=st.lists(st.sets(st.integers(0, 3)), min_size=1, max_size=25),
    portrait=st.integers(0, 25),
    threshold=st.floats(0, 1),
    batch_size=st.integers(1, 5),
)
def test_a_plan_with_repeats_is_pure_equally_long_and_leaves_no_picture_out(shown, portrait, threshold, batch_size):
    records = [
        ImageRecord("", (20, 10) if index < portrait else (10, 20), [[0, 0, 1, 1]] * len(labels), sorted(labels))
        for index, labels in enumerate(shown)
    ]
    settings_ = {"batch_size": batch_size, "seed": 4, "repeat_threshold": threshold}
    plans = [plan_epoch(records, epoch=epoch, **settings_) for epoch in range(4)]
    np.testing.assert_array_equal(plans[2], plan_epoch(records, epoch=2, **settings_))
    assert {plan.shape for plan in plans} == {plans[0].shape}
    for plan in plans:
        assert set(plan.ravel()) == set(range(len(records)))
        for batch in plan:
            assert len({index < portrait for index in batch}) == 1
    unshuffled = plan_epoch(records, epoch=0, shuffle=False, **settings_)
    np.testing.assert_array_equal(unshuffled, plan_epoch(records, batch_size, 4, 0, shuffle=False))


def test_the_field_repeats_in_training_and_leaves_validation_as_it_is(records):
    """Class 2 is on four of seven pictures, 1 on five, 0 on six; the threshold 1 gives its four sqrt(7 / 4) = 1.32."""
    repeating = config(1, repeat_threshold=1.0)
    expected = [plan_epoch(records, 1, 3, epoch, repeat_threshold=1.0) for epoch in (0, 1)]
    assert len(expected[0]) > len(plan_epoch(records, 1, 3, 0)) == 7
    batches = list(training_batches(records, repeating, 3, epochs=2))
    assert len(batches) == 2 * len(expected[0])
    for step, (batch,) in enumerate(batches[: len(expected[0])]):
        assert_same_batch(batch, make_batch(records, repeating, 3, 0, step, plan=expected[0]))
        assert batch_files(records, repeating, 3, 0, step) == [records[expected[0][step, 0]].path]
    assert len(list(training_batches(records, repeating, 3, epochs=1, augment=False, shuffle=False))) == 7


# --- make_batch


def test_batch_shapes_and_types(records):
    batch = make_batch(records, config(**EVERYTHING), seed=0, epoch=0, step=1)
    _, height, width, _ = batch["images"].shape
    assert batch["images"].shape == (2, height, width, 3)
    assert height % 32 == width % 32 == 0
    assert (batch["image_sizes"] <= (height, width)).all()
    assert (batch["image_sizes"] > (height - 32, 0)).any()
    shapes = {key: (value.shape, str(value.dtype)) for key, value in batch.items() if key != "images"}
    assert shapes == {
        "image_sizes": ((2, 2), "int32"),
        "gt_boxes": ((2, 8, 4), "float32"),
        "gt_labels": ((2, 8), "int32"),
        "sampling_seeds": ((2,), "int32"),
    }
    assert batch["images"].dtype == np.uint8


def test_batch_without_augmentation_by_hand(records):
    # Record 3 is 30 x 90: max_size 100 decides, 30 * 100 // 90 = 33 high; its boxes grow by 100/90 and 33/30.
    batch = make_batch(records, config(), 0, 0, 0, augment=False, plan=np.array([[3, 0]]))
    np.testing.assert_array_equal(batch["image_sizes"], [[33, 100], [64, 96]])
    assert batch["images"].shape == (2, 64, 128, 3)
    np.testing.assert_allclose(batch["gt_boxes"][0, 1], [100 / 90, 1.1, 21 * 100 / 90, 11 * 1.1], rtol=1e-6)
    assert batch["gt_labels"].tolist() == [[0, 1, 2] + [-1] * 5, [-1] * 8]
    assert not batch["gt_boxes"][0, 3:].any()
    assert not batch["gt_boxes"][1].any()
    assert not batch["images"][0, 33:].any()
    assert not batch["images"][0, :, 100:].any()
    assert batch["images"][0, 32, :100].any()


def test_batch_is_a_pure_function_of_its_arguments(records):
    arguments = (records, config(**EVERYTHING))
    batch = make_batch(*arguments, seed=5, epoch=2, step=1)
    assert_same_batch(batch, make_batch(*arguments, seed=5, epoch=2, step=1))
    for other in ((6, 2, 1), (5, 3, 1), (5, 2, 0)):
        assert (make_batch(*arguments, *other)["sampling_seeds"] != batch["sampling_seeds"]).any()


def test_sampling_seeds_differ_by_position_and_not_by_augmentation(records):
    batch = make_batch(records, config(4, **EVERYTHING), 0, 0, 0)
    plain = make_batch(records, config(4), 0, 0, 0, augment=False)
    assert len(set(batch["sampling_seeds"].tolist())) == 4
    assert (batch["sampling_seeds"] >= 0).all()
    np.testing.assert_array_equal(batch["sampling_seeds"], plain["sampling_seeds"])


@pytest.mark.parametrize(("count", "slots"), [(0, 8), (8, 8), (9, 16), (33, 64)])
def test_slots_are_never_too_few(draw_picture, count, slots):
    boxes = [[slot, 0, slot + 1, 1] for slot in range(count)]
    record = ImageRecord(str(draw_picture("many.png")), (40, 60), boxes, [0] * count)
    batch = make_batch([record], config(1), 0, 0, 0)
    assert batch["gt_boxes"].shape == (1, slots, 4)
    assert (batch["gt_labels"] == 0).sum() == count


@pytest.mark.parametrize(
    ("switches", "poses"),
    [
        ({}, 1),
        ({"horizontal_flip": True}, 2),
        ({"vertical_flip": True}, 2),
        ({"rotate_90": True}, 4),
        ({"horizontal_flip": True, "vertical_flip": True, "rotate_90": True, "scale_jitter": 0.5}, 8),
    ],
)
def test_every_augmentation_happens_and_keeps_boxes_on_their_objects(tmp_path, switches, poses):
    """A white box in a corner, longer than high: where and how it lies tells the pose, its pixels where it is."""
    pixels = np.zeros((64, 96, 3), np.uint8)
    pixels[8:16, 8:24] = 255
    cv2.imwrite(str(tmp_path / "box.png"), pixels)
    record = ImageRecord(str(tmp_path / "box.png"), (64, 96), [[8, 8, 24, 16]], [0])
    seen, sides = set(), set()
    for seed in range(60):
        batch = make_batch([record], config(1, **{"horizontal_flip": False, **switches}), seed, 0, 0)
        rows, columns = np.nonzero(batch["images"][0, ..., 0] > 127)
        found = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        np.testing.assert_allclose(batch["gt_boxes"][0, 0], found, atol=1.01)
        height, width = batch["image_sizes"][0].tolist()
        seen.add((height > width, found[0] * 2 > width, found[1] * 2 > height))
        sides.add(min(height, width))
    assert len(seen) == poses
    assert sides == ({32, 48, 64, 80, 96} if "scale_jitter" in switches else {64})


def test_odd_turns_and_scale_are_shared_by_a_batch(records):
    landscape = [record for record in records if record.size == (40, 60)]
    for seed in range(10):
        batch = make_batch(landscape, config(4, rotate_90=True, scale_jitter=0.5), seed, 0, 0)
        assert len({tuple(size) for size in batch["image_sizes"].tolist()}) == 1


def test_a_crop_cuts_off_and_enlarges_and_keeps_labels_with_their_boxes(tmp_path):
    """Three white boxes in a 64x96 picture, each of a brightness that tells its label."""
    pixels = np.zeros((64, 96, 3), np.uint8)
    boxes = [[8, 8, 24, 20], [40, 30, 60, 50], [76, 44, 92, 60]]
    for label, (x1, y1, x2, y2) in enumerate(boxes):
        pixels[y1:y2, x1:x2] = 100 + 60 * label
    cv2.imwrite(str(tmp_path / "a.png"), pixels)
    record = ImageRecord(str(tmp_path / "a.png"), (64, 96), boxes, [0, 1, 2])
    areas, counts = set(), set()
    for seed in range(40):
        batch = make_batch([record], config(1, horizontal_flip=False, random_crop=0.7), seed, 0, 0)
        assert batch["image_sizes"].tolist() == [[64, 96]]
        kept = batch["gt_labels"][0] >= 0
        counts.add(int(kept.sum()))
        for (x1, y1, x2, y2), label in zip(batch["gt_boxes"][0][kept], batch["gt_labels"][0][kept]):
            inside = batch["images"][0, round(y1) + 2 : round(y2) - 2, round(x1) + 2 : round(x2) - 2]
            assert abs(np.median(inside) - (100 + 60 * label)) < 2
            areas.add(round((x2 - x1) * (y2 - y1)))
        assert not batch["gt_boxes"][0][~kept].any()
    assert counts == {1, 2, 3} and max(areas) > 2 * 400 and min(areas) >= 16 * 12 // 2


@pytest.mark.parametrize("field", [{"random_crop": 0.5}, {"blur": 2.0}, {"jpeg_noise": 80}], ids=str)
def test_switching_one_on_leaves_the_draws_of_the_others_as_they_were(records, field):
    """What the other draws decide is seen in what they leave: seeds, sizes, boxes; in colours for the crop."""
    before, after = (make_batch(records, config(4, **OLDER, **fields), 3, 1, 0) for fields in ({}, field))
    assert (before["images"] != after["images"]).any()
    if "random_crop" in field:
        np.testing.assert_array_equal(before["sampling_seeds"], after["sampling_seeds"])
        np.testing.assert_array_equal(before["image_sizes"], after["image_sizes"])
        spans = [batch["images"].reshape(4, -1).mean(axis=1) for batch in (before, after)]
        np.testing.assert_allclose(*spans, rtol=0.05)  # noise of the same brightness and contrast in each picture
    else:
        before.pop("images"), after.pop("images")
        assert_same_batch(before, after)
    with_all = config(4, **EVERYTHING)
    crops = [
        make_batch(records, with_all.model_copy(update={"data": data}), 3, 1, 0)["gt_boxes"]
        for data in (with_all.data, with_all.data.model_copy(update={"blur": 0.0, "jpeg_noise": 0}))
    ]
    np.testing.assert_array_equal(*crops)


def test_colour_jitter_changes_colours_only(records):
    plan = np.array([[6]])
    plain = make_batch(records, config(horizontal_flip=False), 0, 0, 0, plan=plan)
    coloured = make_batch(records, config(horizontal_flip=False, colour_jitter=0.5), 0, 0, 0, plan=plan)
    assert (plain.pop("images") != coloured.pop("images")).any()
    assert_same_batch(plain, coloured)


def test_pictures_of_16_bits_are_scaled_by_the_bits_in_use(tmp_path):
    path = str(tmp_path / "deep.png")
    Path(path).write_bytes(cv2.imencode(".png", np.full((32, 32), 2048, np.uint16))[1].tobytes())
    for bit_depth, grey in ((None, 8), (12, 128)):
        settings = config(1, im_size=32, max_size=32, bit_depth=bit_depth)
        batch = make_batch([ImageRecord(path, (32, 32), [], [])], settings, 0, 0, 0, augment=False)
        images, _ = make_labelled_batch([LabelledImage(path, 0)], settings, 0, 0, 0, augment=False)
        assert (batch["images"] == grey).all() and (images == grey).all()


def test_a_picture_that_changed_since_it_was_annotated_is_an_error(records):
    changed = ImageRecord(records[0].path, (41, 60), [], [])
    with pytest.raises(ValueError, match=r"0\.png: the picture is 40 high and 60 wide, its annotation says 41 and 60"):
        make_batch([changed], config(), 0, 0, 0)


def test_a_step_beyond_the_epoch_is_an_error(records):
    with pytest.raises(ValueError, match="step 4 is not in epoch 0, which has the steps 0 to 3"):
        make_batch(records, config(), 0, 0, 4)


def test_batch_files_names_what_make_batch_loads(records):
    sizes = {record.path: record.size for record in records}
    for step in range(4):
        files = batch_files(records, config(), 0, 1, step)
        batch = make_batch(records, config(im_size=32, max_size=3000), 0, 1, step, augment=False)
        for file, (height, width) in zip(files, batch["image_sizes"], strict=True):
            assert width / height == pytest.approx(sizes[file][1] / sizes[file][0], rel=0.05)


# --- training_batches


def test_generator_yields_the_batches_of_make_batch_in_order(records):
    settings_ = config(workers=3, **EVERYTHING)
    batches = [batch for (batch,) in training_batches(records, settings_, seed=7, epochs=2)]
    expected = [make_batch(records, settings_, 7, epoch, step) for epoch in range(2) for step in range(4)]
    assert len(batches) == len(expected) == 8
    for batch, wanted in zip(batches, expected, strict=True):
        assert_same_batch(batch, wanted)
    assert not loader_threads()


def test_a_run_goes_on_where_it_stopped(records):
    whole = list(training_batches(records, config(), 0, epochs=2))
    rest = list(training_batches(records, config(), 0, start=(0, 3), epochs=2))
    assert len(rest) == 5
    for (batch,), (wanted,) in zip(rest, whole[3:], strict=True):
        assert_same_batch(batch, wanted)
    next_epoch = next(training_batches(records, config(), 0, start=(0, 4)))[0]
    assert_same_batch(next_epoch, whole[4][0])


def test_without_shuffling_and_augmentation_the_order_is_the_plans(records):
    plan = plan_epoch(records, 2, 0, 0, shuffle=False)
    batches = training_batches(records, config(), 0, epochs=1, augment=False, shuffle=False)
    for step, (batch,) in enumerate(batches):
        assert_same_batch(batch, make_batch(records, config(), 0, 0, step, augment=False, plan=plan))


def test_an_endless_generator_leaves_no_thread_when_closed_or_dropped(records):
    batches = training_batches(records, config(), 0)
    for _ in range(10):
        next(batches)
    assert loader_threads()
    batches.close()
    assert not loader_threads()
    dropped = training_batches(records, config(), 0)
    next(dropped)
    del dropped
    gc.collect()
    assert not loader_threads()


def test_a_broken_picture_is_raised_at_its_batch_by_name_and_leaves_no_thread(records):
    with open(records[4].path, "wb") as file:
        file.write(b"no picture")
    plan = plan_epoch(records, 1, 0, 0)
    batches = training_batches(records, config(1), 0)
    for _ in range(plan[:, 0].tolist().index(4)):
        next(batches)
    with pytest.raises(ValueError, match=r"4\.png: cannot (read|decode) the picture"):
        next(batches)
    assert not loader_threads()


def test_look_ahead_is_bounded(records, monkeypatch):
    made = []
    monkeypatch.setattr("frcnn.data.batches.make_batch", lambda *_, **__: made.append(0))
    batches = training_batches(records, config(workers=2), 0)
    for _ in range(5):
        next(batches)
    batches.close()
    assert len(made) <= 5 + 2 + 2


def test_pictures_are_padded_with_zeros_to_multiples_of_32():
    images = [np.full((*size, 3), 7 + index, np.uint8) for index, size in enumerate([(33, 20), (10, 64)])]
    padded = pad_images(images)
    assert (padded.shape, padded.dtype) == ((2, 64, 64, 3), np.uint8)
    for image, place in zip(images, padded):
        height, width, _ = image.shape
        assert (place[:height, :width] == image).all()
        assert not place[height:].any() and not place[:, width:].any()
    assert pad_images(images[1:]).shape == (1, 32, 64, 3)
    assert np.array_equal(pad_images([np.full((32, 32, 3), 5, np.uint8)]), np.full((1, 32, 32, 3), 5))


# --- make_labelled_batch


@pytest.fixture
def labelled(draw_picture):
    """Five pictures: files of two shapes, and arrays, grey and with alpha."""
    generator = np.random.default_rng(0)
    files = [LabelledImage(str(draw_picture(f"{i}.png", *size, i)), i) for i, size in enumerate([(40, 60), (60, 40)])]
    shapes = [(64, 64), (30, 30, 1), (64, 64, 4)]
    arrays = [generator.integers(0, 256, shape, dtype=np.uint8) for shape in shapes]
    return files + [LabelledImage(f"x[{i}]", i, pixels) for i, pixels in enumerate(arrays)]


def test_a_labelled_batch_holds_squares_and_labels(labelled):
    images, labels = make_labelled_batch(labelled, config(5), 0, 0, 0, augment=False, shuffle=False)
    assert (images.shape, images.dtype, labels.dtype) == ((5, 64, 64, 3), np.uint8, np.int32)
    assert labels.tolist() == [0, 1, 0, 1, 2]
    assert np.array_equal(images[2], np.repeat(labelled[2].pixels[..., None], 3, axis=2))
    assert np.array_equal(images[4], labelled[4].pixels[..., :3])
    assert batch_files(labelled, config(5), 0, 0, 0, shuffle=False) == [record.path for record in labelled]


def test_labelled_batches_are_a_function_of_seed_epoch_and_step(labelled):
    settings = config(2, **EVERYTHING)
    once, again = (make_labelled_batch(labelled, settings, 3, 1, 2) for _ in range(2))
    assert all(map(np.array_equal, once, again))
    stream = training_batches(labelled, settings, 3, epochs=2, make=make_labelled_batch)
    assert all(map(np.array_equal, list(stream)[5], once))  # three steps an epoch
    assert not np.array_equal(make_labelled_batch(labelled, settings, 3, 2, 2)[0], once[0])


def test_without_shuffling_every_picture_comes_once(labelled):
    """Five in batches of two: the last has one; shuffled, it is filled up."""
    settings = {"epochs": 1, "augment": False, "make": make_labelled_batch}
    found = [labels.tolist() for _, labels in training_batches(labelled, config(2), 0, shuffle=False, **settings)]
    assert found == [[0, 1], [0, 1], [2]]
    assert [len(labels) for _, labels in training_batches(labelled, config(2), 0, **settings)] == [2, 2, 2]


def test_only_what_the_config_allows_changes_a_picture(labelled):
    plain = make_labelled_batch(labelled, config(5), 0, 0, 0, augment=False)[0]
    off = config(5, horizontal_flip=False)
    assert np.array_equal(make_labelled_batch(labelled, off, 0, 0, 0)[0], plain)
    flipped = make_labelled_batch(labelled, config(5), 0, 0, 0)[0]
    assert {np.array_equal(a, b) for a, b in zip(flipped, plain)} == {True, False}
    assert all(np.array_equal(a, b) or np.array_equal(a, b[:, ::-1]) for a, b in zip(flipped, plain))
    for change in ({"scale_jitter": 0.3}, {"random_crop": 0.5}, {"blur": 2.0}, {"jpeg_noise": 80}):
        changed = make_labelled_batch(labelled, config(5, horizontal_flip=False, **change), 0, 0, 0)[0]
        assert changed.shape == plain.shape and not np.array_equal(changed, plain)


def test_a_rare_class_of_labelled_pictures_is_repeated(labelled):
    """Classes 0, 1 and 2 have two, two and one of five pictures: at a threshold of 0.8 the factors sqrt(2) and 2."""
    factors, _ = repeat_factors(labelled, 0.8)
    np.testing.assert_allclose(factors, [2**0.5] * 4 + [2])


def test_a_labelled_picture_that_is_broken_is_named(tmp_path):
    (tmp_path / "a.png").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"a.png: cannot"):
        make_labelled_batch([LabelledImage(str(tmp_path / "a.png"), 0)], config(1), 0, 0, 0)
