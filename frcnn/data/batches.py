"""From records to padded batches.

A batch is a pure function of (records, config, seed, epoch, step): a resumed run needs two numbers and no generator
state, and the files of any batch can be named afterwards. The generator only iterates and works ahead.
"""

import math
from collections import Counter
from itertools import count

import numpy as np

from frcnn.data.augment import (
    add_jpeg_noise,
    blur,
    crop,
    flip_horizontal,
    flip_vertical,
    jitter_colour,
    rotate_90,
    scale,
    zoom,
)
from frcnn.data.images import as_rgb, read_image, resize_image, resized_size
from frcnn.data.threads import map_in_threads

_SIZE_STEP = 32  # padded sides are multiples: few distinct shapes, so that little is compiled anew
_MIN_SLOTS = 8
_SCALE_STEPS = 5
_BATCHES_AHEAD = 2  # finished batches that wait, besides one in work on each thread
# The fourth word keeps these streams apart from the (seed, epoch, step) of a batch: numpy pads short seeds with zeros.
_PLAN_STREAM = 1
_SPLIT_STREAM = 2
_REPEAT_STREAM = 3
_NO_BOXES = np.zeros((0, 4), np.float32)


def split_records(records, fraction, seed):
    """Hold out a random share of the pictures; the same seed gives the same split, both parts in the given order.

    Args:
        records: list of ImageRecord.
        fraction: share to hold out, 0 <= fraction < 1; above 0, each part gets at least one picture.
        seed: int.

    Returns:
        list of training records, list of validation records.

    Raises:
        ValueError: fraction out of range, or too few pictures to split.
    """
    if not 0 <= fraction < 1:
        raise ValueError(f"the validation fraction ({fraction}) must be at least 0 and less than 1")
    if fraction == 0:
        return list(records), []
    if len(records) < 2:
        raise ValueError(
            f"{len(records)} picture(s) cannot be split into training and validation: "
            "annotate more, give a validation file, or set data.val_fraction=0"
        )
    held_out = np.clip(round(fraction * len(records)), 1, len(records) - 1)
    order = np.random.default_rng([seed, 0, 0, _SPLIT_STREAM]).permutation(len(records))
    validation = set(order[:held_out].tolist())
    train = [record for index, record in enumerate(records) if index not in validation]
    return train, [record for index, record in enumerate(records) if index in validation]


def repeat_factors(records, threshold):
    """How often pictures are to come in an epoch, so that rare classes are seen (Gupta et al. 2019).

    A class that the share f of the pictures shows has the factor max(1, sqrt(threshold / f)), a picture the largest of
    its classes', and 1 without objects.

    Args:
        records: list of ImageRecord or LabelledImage.
        threshold: 0..1; 0: all factors are 1.

    Returns:
        (N,) float64, at least 1; {label: factor} of the classes that occur.
    """
    shown = [set(record.labels.tolist()) for record in records]
    pictures = Counter(label for labels in shown for label in labels)
    of_class = {label: max(1.0, math.sqrt(threshold * len(records) / count)) for label, count in pictures.items()}
    return np.array([max((of_class[label] for label in labels), default=1.0) for labels in shown]), of_class


def plan_epoch(records, batch_size, seed, epoch, shuffle=True, repeat_threshold=0.0):
    """Say which pictures each step of an epoch takes.

    Portrait and landscape pictures never share a batch, which would pad both. Every picture appears; the last batch of
    a group is filled up with pictures of the group that come a second time, so that no batch is smaller. With a
    threshold a picture comes as often as `repeat_factors` says, on average over the epochs, in each epoch the next
    integer below or above; all epochs are equally long. Without shuffling nothing is repeated.

    Returns:
        (steps, batch_size) int64, indices into records.

    Raises:
        ValueError: no records.
    """
    if not records:
        raise ValueError("no pictures: a batch needs at least one record")
    generator, chance = (np.random.default_rng([seed, epoch, 0, stream]) for stream in (_PLAN_STREAM, _REPEAT_STREAM))
    portrait = np.array([record.is_portrait for record in records])
    factors = repeat_factors(records, repeat_threshold if shuffle else 0.0)[0]
    batches = []
    for group in (np.flatnonzero(~portrait), np.flatnonzero(portrait)):
        repeated = _repeat(group, factors[group], chance)
        order = generator.permutation(repeated) if shuffle else group
        steps = math.ceil((len(group) + math.ceil((factors[group] - 1).sum())) / batch_size)
        batches.append(np.resize(order, (steps, batch_size)))  # np.resize repeats from the start
    plan = np.concatenate(batches)
    return generator.permutation(plan) if shuffle else plan


def _repeat(group, factors, generator):
    """Repeat each index by its factor, rounded up or down by chance so that the sum is rounded only once; ascending."""
    order = generator.permutation(len(group))
    # What factors have above 1 is laid end to end along a ruler whose ticks, one apart, are shifted by chance: each
    # picture comes once, and once more for every tick within its length.
    ticks = np.floor(np.cumsum(factors[order] - 1) + generator.random())
    return np.sort(np.repeat(group[order], 1 + np.diff(ticks, prepend=0).astype(int)))


def batch_files(records, config, seed, epoch, step, *, batch_size=None, shuffle=True, plan=None):
    """Name the picture files of a batch, in its order; arguments as in `make_batch`."""
    return [
        records[index].path for index in _batch_indices(records, config, seed, epoch, step, batch_size, shuffle, plan)
    ]


def make_batch(records, config, seed, epoch, step, *, batch_size=None, augment=True, shuffle=True, plan=None):
    """Load, augment, resize and pad one batch; the same arguments give the same bytes.

    Odd or even quarter turns and the jittered scale are drawn once a batch: else portrait and landscape would mix and
    every batch have a size of its own.

    Args:
        records: list of ImageRecord.
        config: `frcnn.config.Config`; `data`, and `train.batch_size`.
        seed, epoch, step: non-negative ints.
        batch_size: pictures in the batch; None takes `config.train.batch_size`.
        augment: without, nothing is random but the order and `sampling_seeds`.
        shuffle: as in `plan_epoch`.
        plan: what `plan_epoch` returns for this epoch, where it is known already; it then decides order and batch size.

    Returns:
        dict: `images` (B, H, W, 3) uint8 RGB, zero-padded at right and bottom to multiples of 32; `image_sizes` (B, 2)
        int32, true (height, width); `gt_boxes` (B, G, 4) float32, xyxy pixels of the resized picture, zeros in empty
        slots; `gt_labels` (B, G) int32, -1 in empty slots; `sampling_seeds` (B,) int32, not negative, the same with and
        without augmentation. G is the smallest of 8, 16, 32, ... that holds every box.

    Raises:
        ValueError: a picture is missing, broken or of another size than its record says (names the file), or the
            epoch has no such step.
    """
    indices = _batch_indices(records, config, seed, epoch, step, batch_size, shuffle, plan)
    generator = np.random.default_rng([seed, epoch, step])
    (other,) = generator.spawn(1)  # for crop, blur and compression, so that they leave the first stream as it is
    sampling_seeds = generator.integers(0, 2**31, len(indices)).astype(np.int32)
    odd_turn, factor = _draw_for_batch(config.data, generator) if augment else (False, 1.0)
    pictures = []
    for index in indices:
        draws = other.random(5) if augment else None
        image, boxes, labels = _load_picture(records[index], config.data, factor, draws)
        if augment:
            image, boxes = _augment(image, boxes, config.data, odd_turn, generator)
            image = _degrade(image, config.data, draws)
        pictures.append((image, boxes, labels))
    return {**_pad(pictures), "sampling_seeds": sampling_seeds}


def load_picture(record, bit_depth=None):
    """The picture of a `LabelledImage` as (H, W, 3) uint8 RGB; ValueError, naming the file, if it cannot be read.

    `bit_depth`: as in `read_image`.
    """
    return read_image(record.path, bit_depth) if record.pixels is None else as_rgb(record.pixels)


def make_labelled_batch(records, config, seed, epoch, step, *, augment=True, shuffle=True, plan=None):
    """`make_batch` for a classifier: squares and their classes.

    Args:
        records: list of `LabelledImage`.
        config, seed, epoch, step, augment, shuffle, plan: as in `make_batch`. Every picture has turns and a scale of
            its own here, and the jittered scale zooms into it or away from it.

    Returns:
        images (B, im_size, im_size, 3) uint8 RGB; labels (B,) int32. Without shuffling nothing comes twice: the last
        batch may be smaller.

    Raises:
        ValueError: as in `make_batch`.
    """
    indices = _batch_indices(records, config, seed, epoch, step, None, shuffle, plan)
    indices = indices if shuffle else indices[: len(records) - step * len(indices)]
    generator = np.random.default_rng([seed, epoch, step])
    (other,) = generator.spawn(1)  # as in `make_batch`
    images = []
    for index in indices:
        image, draws = load_picture(records[index], config.data.bit_depth), other.random(5) if augment else None
        image, *_ = _crop(image, _NO_BOXES, config.data, draws)
        image = resize_image(image, (config.data.im_size, config.data.im_size))  # whatever the proportions were
        if augment:
            image = _degrade(_augment_square(image, config.data, generator), config.data, draws)
        images.append(image)
    return np.stack(images), np.array([records[index].label for index in indices], np.int32)


def _augment_square(image, data, generator):
    odd_turn, factor, place = generator.random() < 0.5, generator.uniform(-1, 1), generator.random(2)
    image, _ = _augment(image, _NO_BOXES, data, odd_turn, generator)
    return zoom(image, 1 + data.scale_jitter * factor, place) if data.scale_jitter else image


def training_batches(records, config, seed, *, start=(0, 0), epochs=None, augment=True, shuffle=True, make=make_batch):
    """Yield `(batch,)` tuples, as Keras's `fit` takes them, batch after batch and epoch after epoch.

    `config.data.workers` threads decode and augment a few batches ahead; the order is that of the plan. Closing,
    exhausting or dropping the generator ends them.

    Args:
        records, config, seed, augment, shuffle: as in `make_batch`.
        start: (epoch, step) of the first batch, where an interrupted run goes on.
        epochs: number of the epoch to stop before, counted from epoch 0 whatever `start` is; None never stops.
        make: `make_batch`; or another function of its arguments, which then returns the whole tuple.

    Raises:
        ValueError: from the batch it concerns, as in `make_batch`.
    """

    def load(step_of_plan):
        epoch, step, plan = step_of_plan
        batch = make(records, config, seed, epoch, step, augment=augment, shuffle=shuffle, plan=plan)
        return batch if isinstance(batch, tuple) else (batch,)

    steps = _iterate_steps(records, config, seed, start, epochs, shuffle)
    return map_in_threads(load, steps, config.data.workers, _BATCHES_AHEAD)


def _iterate_steps(records, config, seed, start, epochs, shuffle):
    first_epoch, first_step = start
    for epoch in count(first_epoch) if epochs is None else range(first_epoch, epochs):
        plan = plan_epoch(records, config.train.batch_size, seed, epoch, shuffle, config.data.repeat_threshold)
        for step in range(first_step if epoch == first_epoch else 0, len(plan)):
            yield epoch, step, plan


def _batch_indices(records, config, seed, epoch, step, batch_size, shuffle, plan):
    if plan is None:
        batch_size = batch_size or config.train.batch_size
        plan = plan_epoch(records, batch_size, seed, epoch, shuffle, config.data.repeat_threshold)
    if not 0 <= step < len(plan):
        raise ValueError(f"step {step} is not in epoch {epoch}, which has the steps 0 to {len(plan) - 1}")
    return plan[step]


def _draw_for_batch(data, generator):
    # Both are drawn whether used or not: switching one augmentation on leaves the draws of the others as they were.
    odd_turn = generator.random() < 0.5
    factor = generator.choice(np.linspace(1 - data.scale_jitter, 1 + data.scale_jitter, _SCALE_STEPS))
    return bool(odd_turn), float(factor)


def _load_picture(record, data, factor, draws):
    """The picture, its boxes and their labels; cropped by `draws`, if there are."""
    image, boxes, labels = read_image(record.path, data.bit_depth), record.boxes, record.labels
    if image.shape[:2] != record.size:
        raise ValueError(
            f"{record.path}: the picture is {image.shape[0]} high and {image.shape[1]} wide, its annotation says "
            f"{record.size[0]} and {record.size[1]}; read the annotations again if the file has changed"
        )
    image, boxes, kept = _crop(image, boxes, data, draws)
    # The crop is enlarged to what the whole picture would be, else every batch had a size of its own.
    # Both limits move, else a long picture, held by max_size, would never be enlarged.
    size = resized_size(*record.size, round(data.im_size * factor), round(data.max_size * factor))
    return *scale(image, boxes, size), labels[kept]


def _crop(image, boxes, data, draws):
    """`crop` to a part of the picture's own shape, of a size and at a place by the first three of `draws`, if any."""
    if draws is None or not data.random_crop:
        return image, boxes, np.ones(len(boxes), bool)
    window = _crop_window(image.shape[:2], 1 - data.random_crop * draws[0], draws[1:3])
    return crop(image, boxes, window)


def _crop_window(size, share, place):
    """(x1, y1, x2, y2) of a part of a picture that has its shape; place: 0..1 from top and left."""
    height, width = (max(1, round(share * side)) for side in size)
    y1, x1 = (round(where * (whole - part)) for where, whole, part in zip(place, size, (height, width)))
    return x1, y1, x1 + width, y1 + height


def _augment(image, boxes, data, odd_turn, generator):
    mirror, upend, half_turn = generator.random(3) < 0.5
    colours = generator.uniform(1 - data.colour_jitter, 1 + data.colour_jitter, 3)
    if data.horizontal_flip and mirror:
        image, boxes = flip_horizontal(image, boxes)
    if data.vertical_flip and upend:
        image, boxes = flip_vertical(image, boxes)
    if data.rotate_90:
        image, boxes = rotate_90(image, boxes, int(odd_turn) + 2 * int(half_turn))
    if data.colour_jitter:
        image = jitter_colour(image, *colours)
    return image, boxes


def _degrade(image, data, draws):
    """Blur, then compress: the order in which a camera does."""
    if data.blur:
        image = blur(image, data.blur * draws[3])
    if data.jpeg_noise:
        image = add_jpeg_noise(image, 100 - round(data.jpeg_noise * draws[4]))
    return image


def slot_count(boxes):
    """The smallest of 8, 16, 32, ... that holds so many boxes: the ground-truth slots of a batch."""
    slots = _MIN_SLOTS
    while slots < boxes:
        slots *= 2
    return slots


def padded_size(size):
    """The next multiples of 32 of (height, width), as ints."""
    return tuple(-(-int(side) // _SIZE_STEP) * _SIZE_STEP for side in size)


def pad_images(images):
    """Put pictures into one array, zero-padded at right and bottom to the next multiples of 32.

    Args:
        images: list of B (H, W, 3) uint8.

    Returns:
        (B, H', W', 3) uint8.
    """
    height, width = padded_size(np.max([image.shape[:2] for image in images], axis=0))
    padded = np.zeros((len(images), height, width, 3), np.uint8)
    for position, image in enumerate(images):
        padded[position, : image.shape[0], : image.shape[1]] = image
    return padded


def _pad(pictures):
    """Put (image, boxes, labels) of each picture into arrays of one size."""
    images, boxes, labels = zip(*pictures, strict=True)
    slots = slot_count(max(map(len, boxes)))
    gt_boxes = np.zeros((len(pictures), slots, 4), np.float32)
    gt_labels = np.full((len(pictures), slots), -1, np.int32)
    for position, count_of_boxes in enumerate(map(len, boxes)):
        gt_boxes[position, :count_of_boxes] = boxes[position]
        gt_labels[position, :count_of_boxes] = labels[position]
    sizes = np.array([image.shape[:2] for image in images], np.int32)
    return {"images": pad_images(images), "image_sizes": sizes, "gt_boxes": gt_boxes, "gt_labels": gt_labels}
