"""Damage files as fuzzers do: bytes changed, cut out, repeated, inserted; fields set to extremes; files spliced."""

import struct

EXTREMES = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


def mutate(data, generator, other=b""):
    """One to four changes at random places; half of them within the first 200 bytes, where headers are.

    Args:
        data: bytes.
        generator: numpy Generator.
        other: bytes that parts are taken from.
    """
    data = bytearray(data)
    for _ in range(generator.integers(1, 5)):
        end = min(200, len(data)) if generator.random() < 0.5 else len(data)
        place, length = int(generator.integers(0, end + 1)), int(generator.geometric(0.1))
        change = generator.integers(0, 7)
        if change == 0:
            data[place : place + 1] = bytes([generator.integers(256)])
        elif change == 1:
            kind = (">B", ">H", "<H", ">I", "<I")[generator.integers(5)]
            size = struct.calcsize(kind)
            value = EXTREMES[generator.integers(len(EXTREMES))] & (256**size - 1)
            data[place : place + size] = struct.pack(kind, value)
        elif change == 2:
            del data[place : place + length]
        elif change == 3:
            data[place:place] = data[place : place + length]
        elif change == 4:
            data[place:place] = generator.bytes(length)
        elif change == 5:
            start = int(generator.integers(0, len(other) + 1))
            data[place : place + length] = other[start : start + length]
        else:
            del data[max(place, 4) :]
    return bytes(data)
