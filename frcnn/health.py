"""What an epoch shows of a training that will not learn, and what to do about it.

The `judge_...` functions are pure: numbers in, findings out. A finding is (key, text): the text says what is wrong and
what to do, and two of the same key say the same, perhaps in other numbers.
"""

import contextlib
import functools
import warnings
from types import SimpleNamespace

import keras
import numpy as np

from frcnn.data.anchor_recall import Boxes, best_overlaps, propose_settings
from frcnn.data.images import resized_size
from frcnn.doctor_report import paste
from frcnn.evaluation import evaluate
from frcnn.evaluation.voc import areas
from frcnn.inference import detect
from frcnn.models.detector import detection_model
from frcnn.optimizer import warmup_steps
from frcnn.visualize import DRAWN_SCORE

PROPOSALS = 300  # Ren et al. 2015, section 3.3
_LOW_RECALL = 0.5
_LONG_WAIT = 0.2
_SETTLED_EPOCHS = 4
_FLAT, _RISEN = 0.95, 1.2


def judge_anchors(labels, overlaps, positive_iou, class_names, cure):
    """Find the classes of which no box is overlapped enough for an anchor to stand for it on that account.

    Args:
        labels, overlaps: (N,) int and (N,) float, class of each box and its IoU with its best anchor (`best_overlaps`).
        positive_iou: see `RPNConfig`.
        class_names: K strings.
        cure: function without arguments that gives better settings as text; called only if there is a finding.

    Returns:
        list of findings.
    """
    found = []
    for label in np.unique(labels):
        own = overlaps[labels == label]
        if own.max() >= positive_iou:
            continue
        missed = np.count_nonzero(own == 0)
        text = (
            f"of class {class_names[label]!r:.80} no anchor overlaps any of the {len(own)} boxes by rpn.positive_iou "
            f"{positive_iou:g}: each stands on its best anchor alone (median IoU {np.median(own):.2f})"
            f"{f', {missed} on none' * bool(missed)}. Try {cure()}, as frcnn doctor does"
        )
        found.append((("anchors", int(label)), text))
    return found


def judge_scores(recall, score, threshold):
    """Find what keeps objects from being found in a run that should have begun to learn.

    Args:
        recall, score: `val_rpn_recall` and `val_best_score` of `validation_scores`.
        threshold: `detect.score_threshold`.

    Returns:
        list of findings: the RPN's proposals miss half of the objects; no score is high enough to be found, or drawn.
    """
    found = []
    if recall < _LOW_RECALL:
        text = (
            f"the RPN's best {PROPOSALS} proposals (or rpn.test_post_nms) cover only {recall:.0%} of the validation "
            "boxes by IoU 0.5; what they miss cannot be found. Look at frcnn doctor, model.norm and frcnn train --check"
        )
        found.append((("recall",), text))
    limits = ((threshold, "found", "detect.score_threshold"), (DRAWN_SCORE, "drawn", "--draw-score"))
    for limit, what, name in limits:
        if score < limit:
            text = (
                f"the highest score in the validation pictures is {score:.2g}, below {name} {limit:g}: nothing would "
                f"be {what}. Train longer (train.epochs); if the loss falls no more, see docs/no_detections.md"
            )
            return [*found, (("score", what), text)]
    return found


def judge_loss(losses, settled):
    """Say if the loss is flat, no epoch 5 % below the first, or rises, three times in turn to 1.2 times the lowest.

    It may well rise in the second and third epoch: better proposals give the head more to learn.

    Args:
        losses: of the epochs so far, means over their steps.
        settled: see `is_settled`; before, a loss is not called flat.

    Returns:
        list of findings.
    """
    last = losses[-4:]
    if len(last) == 4 and all(np.diff(last) > 0) and last[-1] > _RISEN * min(losses):
        shown = " ".join(f"{loss:.3g}" for loss in last)
        return [(("loss", "rises"), f"the loss rises: {shown}. Try a third of the train.learning_rate")]
    if not settled or len(losses) < 2 or min(losses[1:]) <= _FLAT * losses[0]:
        return []
    text = (
        f"the loss is flat: {losses[0]:.3g} in the first epoch, {losses[-1]:.3g} in number {len(losses)}. "
        "Try three times the train.learning_rate; if that changes nothing, look at model.norm and the annotations"
    )
    return [(("loss", "flat"), text)]


def judge_wait(share):
    """Say if more than a fifth of an epoch's time, 0..1, went by in waiting for pictures."""
    text = (
        f"{share:.0%} of the time goes by in waiting for pictures. More data.workers help, up to the number of "
        "processor cores, and so do pictures that are stored no larger than data.im_size needs"
    )
    return [(("wait",), text)] if share > _LONG_WAIT else []


def is_settled(epochs, steps, config):
    """Whether a run should have begun to learn: after four epochs and twice the warm-up, or at its end.

    Args:
        epochs: that are over.
        steps: of an epoch.
        config: `frcnn.Config`.
    """
    warmup = warmup_steps(config.train, steps * config.train.epochs)
    return epochs >= config.train.epochs or (epochs >= _SETTLED_EPOCHS and epochs * steps >= 2 * warmup)


def better_anchors(records, config, classes):
    """The anchors that `frcnn doctor` proposes for records, as overrides; config: `frcnn.Config`, classes: K."""
    now, found, chosen = propose_settings(records, config, classes)
    if found[chosen].has_values_of(now):
        return "more anchors (model.anchor_ratios, C4: model.anchor_sizes), as many as now meet no more boxes"
    return paste(found[chosen])


# ------------------------------------------------------------------------------------------------- measurements


def validation_scores(validation, found):
    """Make the function that measures a training model on records.

    Args:
        validation: list of ImageRecord.
        found: list in which it leaves the `Detections`.

    Returns:
        function, `FasterRCNN` -> dict: `val_map`, the mAP (AP50, VOC all points, 0..1), `val_rpn_recall` and
        `val_best_score`, see `look`.
    """
    twin = functools.cache(open_twin)  # JAX would compile each new one

    def measure(model):
        found[:], recall, score = look(twin(model), validation)
        mean_ap = evaluate(validation, found, model.class_names, metric="voc12").mean_ap
        return {"val_map": mean_ap, "val_rpn_recall": recall, "val_best_score": score}

    return measure


def open_twin(model):
    """The detection twin of a `FasterRCNN`, whose outputs hold as well what goes into its last layer, for `look`."""
    detector = detection_model(model)
    names = ("proposals", "proposal_scores", "class_logits")
    twin = keras.Model(detector.input, detector.output | dict(zip(names, detector.get_layer("detections").input)))
    twin.config, twin.class_names = detector.config, detector.class_names
    return twin


def look(twin, records):
    """Detect, and see on the way what the RPN proposes and how sure the head is.

    Args:
        twin: from `open_twin`.
        records: list of ImageRecord.

    Returns:
        list of Detections; the share of the boxes that one of the best 300 proposals overlaps by 0.5, nan without
        boxes; the highest score of any class in any proposal, 0..1.
    """
    rows, covered, best = iter(records), [], [0.0]

    def predict_on_batch(inputs):
        outputs = twin.predict_on_batch(inputs)
        shown = zip(outputs["proposals"], outputs["proposal_scores"], outputs["class_logits"], rows)
        for proposals, scores, logits, record in shown:  # the last batch ends in copies: the records end before
            covered.extend(_covered(record, proposals[:PROPOSALS], twin.config.data))
            best.append(_best_score(logits[scores > -np.inf]))
        return outputs

    detector = SimpleNamespace(config=twin.config, class_names=twin.class_names, predict_on_batch=predict_on_batch)
    found = detect(detector, [record.path for record in records])
    return found, float(np.mean(covered)) if covered else float("nan"), max(best)


def _covered(record, proposals, data):
    """(G,) bool, which boxes of a record, difficult ones and crowds aside, a proposal (P, 4) overlaps by 0.5."""
    height, width = record.size
    scale = np.array(resized_size(height, width, data.im_size, data.max_size)) / (height, width)
    boxes = record.boxes[~(record.difficult | record.crowd)] * scale[[1, 0, 1, 0]]
    shared, area, other = areas(boxes[:, None], proposals.astype(np.float64))
    return (shared >= 0.5 * (area + other - shared)).any(axis=1)


def _best_score(logits):
    """The highest probability of a class, the background aside; logits: (P, K + 1)."""
    chances = np.exp(logits - logits.max(axis=1, keepdims=True, initial=-np.inf))
    return float((chances[:, :-1] / chances.sum(axis=1, keepdims=True)).max(initial=0.0))


class HealthReport(keras.callbacks.Callback):
    """Judges each epoch, keeps what it finds in the model's `findings`, a tuple of strings, and warns of it.

    Each is said once: what was said before in other numbers is not said again. Must stand behind `EpochReport`.

    Args:
        records, config: as in `train`.
        steps: in an epoch.
        losses: of the epochs that a resumed run has behind it.
    """

    def __init__(self, records, config, steps, losses=()):
        super().__init__()
        self.records, self.config, self.steps = records, config, steps
        self.findings = []
        self._losses, self._boxes, self._keys, self._unsaid = list(losses), [], set(), []

    def watch(self, batches):
        """Yield the batches of a generator, and take down how well their boxes are met by anchors."""
        model = self.config.model
        with contextlib.closing(batches):
            for batch in batches:
                inputs = batch[0]
                if "gt_boxes" in inputs:  # not a classifier's
                    there = inputs["gt_labels"] >= 0
                    corners, labels = inputs["gt_boxes"][there], inputs["gt_labels"][there]
                    sizes = np.tile(inputs["images"].shape[1:3], (len(corners), 1))
                    met = best_overlaps(Boxes(corners, sizes, labels), model.anchor_levels, model.anchor_ratios)
                    self._boxes.append((labels, met))
                yield batch

    def on_epoch_begin(self, epoch, logs=None):
        self._say()

    def on_epoch_end(self, epoch, logs=None):
        self._losses.append(float(logs["loss"]))
        for key, text in self._judge(logs):
            if key not in self._keys:
                self._keys.add(key)
                self.findings.append(f"epoch {epoch + 1}: {text}")
                self._unsaid.append(self.findings[-1])
        self.model.findings = tuple(self.findings)

    def on_train_end(self, logs=None):
        self._say()

    def _judge(self, logs):
        boxes, self._boxes = self._boxes, []
        settled, config = is_settled(len(self._losses), self.steps, self.config), self.config
        found = judge_loss(self._losses, settled) + judge_wait(logs["data_wait"])
        if boxes:
            names = self.model.class_names
            cure = functools.cache(lambda: better_anchors(self.records, config, len(names)))
            found += judge_anchors(*map(np.concatenate, zip(*boxes)), config.rpn.positive_iou, names, cure)
        if settled and "val_rpn_recall" in logs:
            scores = logs["val_rpn_recall"], logs["val_best_score"]
            found += judge_scores(*scores, config.detect.score_threshold)
        return found

    def _say(self):
        """Not at an epoch's end, where a progress bar is not yet complete."""
        while self._unsaid:
            warnings.warn(self._unsaid.pop(0), stacklevel=2)
