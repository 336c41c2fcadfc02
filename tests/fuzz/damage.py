"""Ways to damage a file: its bytes, or its structure, which h5py knows. Every function takes its random numbers from `rng`."""

import random
from pathlib import Path

import h5py
import numpy as np

HUGE = (2**31, 2**40, 2**62, -(2**63), 2**63 - 1)
NAMES = ("s_aux", "bias", "softmax_scale", "sliding_windows", "x", "layers ", "ä", "output_position", "kv_source")


def damage_bytes(path: Path, rng: random.Random) -> str:
    """Flips, cuts, moves or clears bytes; returns what was done."""
    data = bytearray(path.read_bytes())
    how = rng.choice(["flip", "flip", "flip", "cut", "splice", "clear", "grow"])
    if how == "flip":
        for _ in range(rng.choice([1, 1, 2, 8])):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif how == "cut":
        del data[rng.randrange(len(data)) :]
    elif how == "splice":
        source, target, size = (rng.randrange(len(data)) for _ in range(3))
        size %= 512
        data[target : target + size] = data[source : source + size]
    elif how == "clear":
        start = rng.randrange(len(data))
        data[start : start + rng.choice([8, 64, 4096])] = b"\0" * min(rng.choice([8, 64, 4096]), len(data) - start)
    else:
        data += bytes(rng.randrange(256) for _ in range(rng.randrange(1, 4096)))
    path.write_bytes(data)
    return how


def damage_structure(path: Path, rng: random.Random) -> str:
    """One change that keeps the file HDF5; returns what was done."""
    with h5py.File(path, "r+") as file:
        names: list[str] = []
        file.visit(names.append)
        name = rng.choice(names)
        change = rng.choice([*DATASET, *OBJECT] if isinstance(file[name], h5py.Dataset) else OBJECT)
        try:
            change(file, name, rng)
        except (TypeError, ValueError, OSError, KeyError, RuntimeError):  # h5py refuses some of what is asked of it
            return f"{change.__name__} of {name}, refused by h5py"
    return f"{change.__name__} of {name}"


def replaced(file, name, **options):
    attributes = dict(file[name].attrs)
    del file[name]
    made = file.create_dataset(name, **options)
    for key, value in attributes.items():
        if not isinstance(value, np.ndarray):
            made.attrs[key] = value


def other_type(file, name, rng):
    values = file[name][()]
    kind = rng.choice(["f2", "f4", "f8", ">f4", "i1", "u2", "i8", "c8", "?", "S3", "g"])
    replaced(file, name, data=np.asarray(values).astype(kind))


def other_shape(file, name, rng):
    values = np.asarray(file[name][()])
    shape = rng.choice([values[None], values.reshape(-1), np.moveaxis(values, 0, -1), values[..., :-1], values[1:], values[:0]])
    replaced(file, name, data=shape)


def odd_values(file, name, rng):
    values = np.array(file[name][()])
    if values.size and values.dtype.kind in "fiu":
        number = rng.choice([np.nan, np.inf, -np.inf, 0, -1, 1e300, 65504, 2**31])
        flat = values.reshape(-1)
        with np.errstate(all="ignore"):
            flat[rng.randrange(flat.size) : flat.size if rng.random() < 0.2 else None] = np.array(number).astype(values.dtype)
        file[name][...] = values


def declared_huge(file, name, rng):
    shape = tuple(rng.choice([n, 2**20, 2**31, 2**40]) for n in file[name].shape)
    replaced(file, name, shape=shape, dtype=file[name].dtype, chunks=tuple(min(n, 64) for n in shape) or None)


def unwritten(file, name, rng):
    chunks = rng.choice([None, True])
    replaced(file, name, shape=file[name].shape, dtype=file[name].dtype, chunks=chunks)


def filtered(file, name, rng):
    filters = rng.choice(
        [dict(compression="lzf"), dict(fletcher32=True), dict(compression="gzip", shuffle=True), dict(scaleoffset=3)]
    )
    replaced(file, name, data=file[name][()], **filters)


def virtual(file, name, rng):
    layout = h5py.VirtualLayout(file[name].shape, file[name].dtype)
    source = rng.choice(["gone.h5", "."])
    layout[...] = h5py.VirtualSource(source, name, shape=file[name].shape)
    del file[name]
    file.create_virtual_dataset(name, layout)


def external(file, name, rng):
    replaced(file, name, shape=file[name].shape, dtype=file[name].dtype, external=[("gone.bin", 0, h5py.h5f.UNLIMITED)])


def texts(file, name, rng):
    replaced(file, name, data=["a", None, "b"][: rng.randrange(1, 4)], dtype=h5py.string_dtype())


def lists(file, name, rng):
    replaced(file, name, data=np.array([np.arange(3), np.arange(2)], dtype=object), dtype=h5py.vlen_dtype(np.int32))


def removed(file, name, rng):
    del file[name]


def renamed(file, name, rng):
    file.move(name, rng.choice(NAMES))


def linked(file, name, rng):
    other = rng.choice(["/", "/layers", "/nowhere", name])
    del file[name]
    file[name] = rng.choice([h5py.SoftLink(other), h5py.ExternalLink("gone.h5", other)])


def made_a_group(file, name, rng):
    del file[name]
    file.create_group(name)


def with_attribute(file, name, rng):
    target = rng.choice([file, file[name]])
    known = list(target.attrs) + ["context_length", "version", "format", "scale", "softcap", "sliding_window", "dtype", "budgets"]
    values = [np.nan, np.inf, -1, 0, 1.5, "x", "", h5py.Empty("f4"), np.arange(3), True, *HUGE]
    target.attrs[rng.choice([*known, *NAMES])] = rng.choice(values)


def without_attribute(file, name, rng):
    target = rng.choice([file, file[name]])
    if len(target.attrs):
        del target.attrs[rng.choice(list(target.attrs))]


def with_dataset(file, name, rng):
    parent = file[name] if isinstance(file[name], h5py.Group) else file[name].parent
    parent[rng.choice(NAMES)] = rng.choice([0.0, np.zeros(3), "text"])


DATASET = (other_type, other_shape, odd_values, declared_huge, unwritten, filtered, virtual, external, texts, lists)
OBJECT = (removed, renamed, linked, made_a_group, with_attribute, with_attribute, without_attribute, with_dataset)
