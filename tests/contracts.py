"""What every producer of a record must hold to, said once."""

import numpy as np


def assert_is_detections(detections, class_names=None, size=None):
    """Assert the contract of `frcnn.records.Detections`: shapes, dtypes, ranges and order.

    Args:
        detections: what is tested.
        class_names: the expected names, or None for any.
        size: (height, width) in pixels that the boxes must stay inside, or None.
    """
    count = len(detections.boxes)
    assert (detections.boxes.shape, detections.boxes.dtype) == ((count, 4), np.float32)
    assert (detections.scores.shape, detections.scores.dtype) == ((count,), np.float32)
    assert (detections.labels.shape, detections.labels.dtype) == ((count,), np.int32)
    assert isinstance(detections.class_names, tuple)
    assert isinstance(detections.path, str)
    assert class_names is None or detections.class_names == tuple(class_names)
    assert np.isfinite(detections.boxes).all()
    assert (detections.boxes[:, 2:] >= detections.boxes[:, :2]).all()
    assert ((detections.scores >= 0) & (detections.scores <= 1)).all()
    assert (np.diff(detections.scores) <= 0).all()
    assert ((detections.labels >= 0) & (detections.labels < len(detections.class_names))).all()
    if size is not None and count:
        height, width = size
        assert detections.boxes.min() >= 0
        assert (detections.boxes[:, 2:] <= [width, height]).all()


def assert_is_record(record, class_names=None):
    """Assert the contract of `frcnn.records.ImageRecord`: shapes, dtypes, and boxes inside the picture.

    Args:
        record: what is tested.
        class_names: the names that labels index, or None for any.
    """
    count = len(record.boxes)
    assert isinstance(record.path, str)
    assert record.path
    assert len(record.size) == 2
    assert all(type(side) is int and side > 0 for side in record.size)
    assert (record.boxes.shape, record.boxes.dtype) == ((count, 4), np.float32)
    assert (record.labels.shape, record.labels.dtype) == ((count,), np.int32)
    for flags in (record.difficult, record.crowd):
        assert (flags.shape, flags.dtype) == ((count,), bool)
    height, width = record.size
    assert (record.boxes[:, :2] >= 0).all()
    assert (record.boxes[:, :2] < record.boxes[:, 2:]).all()
    assert (record.boxes[:, 2:] <= [width, height]).all()
    assert (record.labels >= 0).all()
    assert class_names is None or (record.labels < len(class_names)).all()
