"""Damage to a file's bytes, without a look at what they mean; every random number comes from `rng`."""

import random

PAGE = 4096
HOW = ("flip", "flip", "flip", "overwrite", "cut", "splice", "clear", "remove", "insert", "grow")


def place(size: int, spots: list[tuple[int, int]] | None, rng: random.Random) -> int:
    """An offset below `size`; mostly within one of the ranges [first, end) of `spots`, where a byte does most."""
    if spots and rng.random() < 0.8:
        first, end = rng.choice(spots)
        if first < min(end, size):
            return rng.randrange(first, min(end, size))
    return rng.randrange(size)


def damage_bytes(content: bytes, rng: random.Random, spots: list[tuple[int, int]] | None = None) -> tuple[bytes, str]:
    """The content after one kind of damage, and the kind's name."""
    data, how = bytearray(content), rng.choice(HOW)
    if not data:
        return b"\0", "grow"
    at, length = place(len(data), spots, rng), rng.choice([1, 2, 4, 8, 64, 512])
    if how == "flip":
        for _ in range(rng.choice([1, 1, 2, 8])):
            data[place(len(data), spots, rng)] ^= 1 << rng.randrange(8)
    elif how == "overwrite":
        length = min(length, len(data) - at)
        value = rng.choice([b"\0", b"\x7f", b"\xff", bytes([rng.randrange(256)])])
        data[at : at + length] = value * length
    elif how == "cut":
        del data[at:]
    elif how == "splice":
        source = rng.randrange(len(data))
        data[at : at + length] = data[source : source + length]
    elif how == "clear":
        at -= at % PAGE
        data[at : at + PAGE] = bytes(len(data[at : at + PAGE]))
    elif how == "remove":
        del data[at : at + length]
    elif how == "insert":
        data[at:at] = rng.randbytes(length)
    else:
        data += rng.randbytes(rng.randrange(1, PAGE))
    return bytes(data), how
