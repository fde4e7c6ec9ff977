"""Can this network learn four of these pictures by heart, and which stage fails if not? For `frcnn train --check`."""

import itertools
import time
from dataclasses import replace
from typing import NamedTuple

import keras
import numpy as np

from frcnn.data.anchor_recall import best_overlaps, resize_boxes
from frcnn.data.batches import make_batch
from frcnn.evaluation import evaluate
from frcnn.health import better_anchors, look, open_twin
from frcnn.models.resnet import ConvNorm
from frcnn.weights import flat_layers

PICTURES = 4
GOAL = 0.9  # AP50
# Adam learns by heart at this rate whatever the data are, and needs no rate of theirs.
_LEARNING_RATE, _WARMUP_STEPS = 1e-3, 10
# Of the stored statistics. At that rate the network of ten steps ago (0.9) is another one, and a batch that is always
# the same has little noise to average out.
_MOMENTUM = 0.7
_EVERY = 10.0  # seconds between two evaluations, at least


class Progress(NamedTuple):
    """How far learning by heart has come.

    Attributes:
        steps, seconds: since the start, compiling aside.
        loss: mean of the steps since the last one of these.
        mean_ap: AP50 on the pictures, 0..1.
        any_class_ap: the same if all classes were one.
        recall: see `frcnn.health.look`.
    """

    steps: int
    seconds: float
    loss: float
    mean_ap: float
    any_class_ap: float
    recall: float


def choose_pictures(records, seed):
    """Choose four pictures with objects, by a seeded draw, that show as many classes as four can.

    Args:
        records: list of ImageRecord.
        seed: int.

    Returns:
        list of ImageRecord, without crowds.

    Raises:
        ValueError: no picture shows an object.
    """
    left = [record.without_crowds() for record in records]
    order = np.random.default_rng(seed).permutation(len(left))
    left, chosen, seen = [left[index] for index in order if len(left[index].boxes)], [], set()
    if not left:
        raise ValueError(f"none of the {len(records)} pictures shows an object: there is nothing to learn")
    while left and len(chosen) < PICTURES:
        best = max(range(len(left)), key=lambda index: len(set(left[index].labels.tolist()) - seen))
        chosen.append(left.pop(best))
        seen |= set(chosen[-1].labels.tolist())
    return chosen


def uncovered(records, config, class_names):
    """Say which classes the anchors miss: of half of their boxes even the best anchor is below `rpn.negative_iou`.

    Args:
        records: list of ImageRecord.
        config: `frcnn.Config`.
        class_names: K strings.

    Returns:
        A sentence with better anchors, or "".
    """
    boxes = resize_boxes(records, config.data.im_size, config.data.max_size)
    overlaps = best_overlaps(boxes, config.model.anchor_levels, config.model.anchor_ratios)
    medians = {label: np.median(overlaps[boxes.labels == label]) for label in np.unique(boxes.labels)}
    missed = {class_names[label]: iou for label, iou in medians.items() if iou < config.rpn.negative_iou}
    if not missed:
        return ""
    shown = ", ".join(f"{name!r:.80} {iou:.2f}" for name, iou in missed.items())
    return (
        f"no anchor covers the boxes: the median IoU with the best one is {shown}, below rpn.negative_iou "
        f"{config.rpn.negative_iou:g}, background. Try {better_anchors(records, config, len(class_names))}"
    )


def learn_by_heart(model, records, seconds):
    """Train on a few pictures, not augmented, until their AP50 is 0.9 or the time is over.

    Network, anchors, sizes, normalisation and which layers train are the model's; optimizer and rate are of the check.

    Args:
        model: from `frcnn.training.build_model`; it is of no use for anything else afterwards.
        records: list of ImageRecord.
        seconds: of training and evaluating, compiling aside.

    Yields:
        Progress, every ten seconds or as often as evaluating takes no more than a quarter of the time.
    """
    for layer in flat_layers(model):
        if isinstance(layer, ConvNorm):
            layer.momentum = _MOMENTUM
    model.compile(optimizer=keras.optimizers.AdamW(_LEARNING_RATE, weight_decay=0.0, global_clipnorm=10.0))
    twin, batches = open_twin(model), _batches(records, model.config)
    generator, losses, passed = np.random.default_rng(model.config.train.seed), [], 0.0
    for step in itertools.count(1):
        decay = 0.5 * (1 + np.cos(np.pi * min(passed / seconds, 1.0)))
        model.optimizer.learning_rate = _LEARNING_RATE * decay * min(1.0, step / _WARMUP_STEPS)
        batch = dict(batches[step % len(batches)])
        batch["sampling_seeds"] = generator.integers(0, 2**31, len(batch["images"])).astype(np.int32)
        losses.append(float(model.train_on_batch(batch, return_dict=True)["loss"]))
        if step == len(batches):  # every size of batch is compiled now; detection is next
            look(twin, records)
            start = evaluated = time.perf_counter()
            took = 0.0
        if step < len(batches):
            continue
        passed = time.perf_counter() - start
        if passed < seconds and time.perf_counter() - evaluated < max(_EVERY, 3 * took):
            continue
        scores = _scores(twin, records)
        evaluated = time.perf_counter()
        took = evaluated - start - passed
        yield Progress(step, passed, float(np.mean(losses)), *scores)
        losses.clear()
        if scores[0] >= GOAL or passed >= seconds:
            return


def _batches(records, config):
    """The batches of an epoch; with batch normalisation one of all pictures, whose statistics detection then meets."""
    size = len(records) if config.model.norm == "batch" else min(config.train.batch_size, len(records))
    plan = np.resize(np.arange(len(records)), (-(-len(records) // size), size))
    settings = {"augment": False, "shuffle": False, "plan": plan}
    return [make_batch(records, config, config.train.seed, 0, step, **settings) for step in range(len(plan))]


def _scores(twin, records):
    """AP50, the same if all classes were one, and the RPN's recall."""
    found, recall, _ = look(twin, records)
    mean_ap = evaluate(records, found, twin.class_names).mean_ap
    one_class = [[replace(item, labels=np.zeros_like(item.labels)) for item in items] for items in (records, found)]
    return mean_ap, evaluate(*one_class, twin.class_names).mean_ap, recall


def diagnose(history, seconds):
    """Say which stage kept the pictures from being learned by heart, and what to do.

    Args:
        history: list of Progress, the last one below the goal.
        seconds: that were allowed.

    Returns:
        str, a sentence or two.
    """
    last, losses = history[-1], [progress.loss for progress in history]
    if last.recall < GOAL:
        stage = (
            f"RPN: its best 300 proposals (or rpn.test_post_nms) cover {last.recall:.0%} of the boxes. Look at rpn.*, "
            "at model.norm (frozen statistics of random weights cannot learn) and at the anchors of frcnn doctor"
        )
    elif last.any_class_ap >= GOAL:
        stage = (
            f"head: the boxes are found (AP50 {last.any_class_ap:.2f} if all classes were one), their classes are not. "
            "Do things that look alike have different names in the annotations?"
        )
    else:
        stage = (
            f"head: the proposals cover {last.recall:.0%} of the boxes, but what becomes of them scores too little or "
            "lies beside the boxes. Look at roi.* and model.norm, and whether the boxes are right: frcnn doctor --html"
        )
    fact = f"AP50 {last.mean_ap:.2f} after {last.seconds:.0f} s and {last.steps} steps"
    if len(losses) >= 4 and np.mean(losses[-2:]) >= 0.9 * np.mean(losses[-4:-2]):
        return f"{fact}. What fails is the {stage}"
    more = f"the loss still falls ({losses[0]:.3g} to {losses[-1]:.3g}): try --check {4 * seconds:g}"
    return f"{fact}, and {more}. What is behind is the {stage}"
