"""Random choice of the anchors and RoIs that enter the losses: a pure function of a seed, equal on every backend."""

from keras import ops

from frcnn import backend


def random_uniform(seeds, count):
    """Pseudo-random numbers by hashing (seed, position), so that a step needs no generator state to be repeated.

    The mixing function is "lowbias32" of Chris Wellons' hash prospector, in wrapping 32-bit arithmetic.

    Args:
        seeds: (B,) int32, one a picture.
        count: numbers per seed, an int or a scalar int tensor.

    Returns:
        (B, count) float32 in [0, 1), with 24 random bits.
    """
    x = ops.cast(ops.arange(count), "int32")[None, :] * _wrapped(0x9E3779B1) + _mix(ops.cast(seeds, "int32"))[:, None]
    return ops.cast(ops.bitwise_and(_mix(x), 0xFFFFFF), "float32") / float(1 << 24)


def sample_indices(positive, negative, seeds, count, positive_fraction):
    """Draw at most `count` candidates, at most `positive_fraction` of them positive, the rest negative.

    Missing positives are replaced by negatives (Ren et al. 2015, section 3.1.3), never the other way round.

    Args:
        positive, negative: (B, N) bool, disjoint; a candidate that is neither is never drawn.
        seeds: (B,) int32.
        count: S, how many to draw.
        positive_fraction: 0..1.

    Returns:
        indices: (B, S) int32, positives first; 0 in empty slots.
        valid: (B, S) bool, False in empty slots.
    """
    noise = random_uniform(seeds, ops.shape(positive)[1])
    positives, is_positive = _draw(positive, noise, int(count * positive_fraction))
    negatives, is_negative = _draw(negative, noise, count)
    room = count - ops.sum(ops.cast(is_positive, "int32"), axis=1, keepdims=True)
    is_negative = is_negative & (ops.arange(count)[None, :] < room)
    return _first_valid(
        ops.concatenate([positives, negatives], axis=1), ops.concatenate([is_positive, is_negative], axis=1), count
    )


def _draw(candidate, noise, count):
    """Indices (B, count) of `count` random candidates, and which of these slots are filled."""
    priority = ops.where(candidate, noise + 1.0, 0.0)
    priority = ops.pad(priority, [[0, 0], [0, count]])  # so that there are always `count` to take
    priority, indices = backend.top_k(priority, count)
    return ops.where(priority > 0, indices, 0), priority > 0


def _first_valid(indices, valid, count):
    """The first `count` filled slots of each row, in order."""
    slots = indices.shape[1]
    order = ops.where(valid, ops.cast(slots - ops.arange(slots), "float32")[None, :], 0.0)
    order, position = ops.top_k(order, count)
    chosen = ops.take_along_axis(indices, position, axis=1)
    return ops.where(order > 0, chosen, 0), order > 0


def _mix(x):
    x = ops.bitwise_xor(x, _shift_right(x, 16)) * _wrapped(0x7FEB352D)
    x = ops.bitwise_xor(x, _shift_right(x, 15)) * _wrapped(0x846CA68B)
    return ops.bitwise_xor(x, _shift_right(x, 16))


def _shift_right(x, bits):
    """Logical shift of an int32, whose own shift would copy the sign."""
    return ops.bitwise_and(ops.right_shift(x, bits), (1 << (32 - bits)) - 1)


def _wrapped(value):
    """An unsigned 32-bit constant as the int32 of the same bits."""
    return value - (1 << 32) if value >= 1 << 31 else value
