"""The hash behind the samplers, in Python's unbounded integers."""

MASK = 0xFFFFFFFF


def lowbias32(x):
    """Chris Wellons' hash prospector, "lowbias32": multipliers 7feb352d and 846ca68b, shifts 16, 15, 16."""
    x &= MASK
    x = (x ^ (x >> 16)) * 0x7FEB352D & MASK
    x = (x ^ (x >> 15)) * 0x846CA68B & MASK
    return x ^ (x >> 16)


def uniform(seed, count):
    """`count` numbers in [0, 1): the low 24 bits of hash(hash(seed) + position * golden ratio)."""
    return [(lowbias32(lowbias32(seed) + position * 0x9E3779B1) & 0xFFFFFF) / 2**24 for position in range(count)]
