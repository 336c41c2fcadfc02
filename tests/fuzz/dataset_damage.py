"""Damage to a dataset: its type, its shape, its values, or how they are stored. A change is change(file, name, rng)."""

import zlib

import h5py
import numpy as np

BIG = 1 << 20  # elements beyond which values are left alone
TYPES = ("f2", "f4", "f8", ">f4", "i1", "u1", "u2", "i8", ">i8", "u8", "c8", "?", "S3", "g")


def values_of(dataset):
    """What a dataset holds; what has no values of its own in this file is refused."""
    if dataset.is_virtual or dataset.external or dataset.shape is None or dataset.size > BIG:
        raise ValueError("no values")
    return np.asarray(dataset[()])


def replaced(file, name, **options):
    """A new dataset in the place of the old one, with its attributes."""
    attributes = {key: file[name].attrs[key] for key in file[name].attrs if key not in ("DIMENSION_LIST", "REFERENCE_LIST")}
    del file[name]
    made = file.create_dataset(name, **options)
    for key, value in attributes.items():
        made.attrs[key] = value
    return made


def other_type(file, name, rng):
    with np.errstate(all="ignore"):
        replaced(file, name, data=values_of(file[name]).astype(rng.choice(TYPES)))


def strange_type(file, name, rng):
    """Types that are no number: compound, opaque, enumeration, array, reference, list, text."""
    shape = file[name].shape
    kinds = [
        dict(data=np.zeros(shape, [("a", "i4"), ("b", "f4")])),
        dict(data=np.zeros(shape, "V7")),
        dict(data=np.zeros(shape, "u1"), dtype=h5py.enum_dtype({"no": 0, "yes": 1}, basetype="u1")),
        dict(data=np.zeros(shape, np.dtype(("f4", (2,))))),
        dict(shape=shape, dtype=h5py.ref_dtype),
        dict(shape=shape, dtype=h5py.regionref_dtype),
        dict(shape=(2,), data=np.array([np.arange(3), np.arange(2)], object), dtype=h5py.vlen_dtype(np.int32)),
        dict(data=["a", "", "b"][: rng.randrange(1, 4)], dtype=h5py.string_dtype()),
        dict(shape=shape, dtype=h5py.string_dtype()),  # NULL pointers
        dict(data=np.full(shape, b"\xff\x1b"), dtype=h5py.string_dtype(length=rng.choice([1, 2, 70000]))),
    ]
    replaced(file, name, **rng.choice(kinds))


def strange_float(file, name, rng):
    """A float of other fields than IEEE's."""
    kind = h5py.h5t.IEEE_F32LE.copy()
    kind.set_fields(*rng.choice([(31, 23, 8, 0, 23), (31, 20, 11, 0, 20), (15, 7, 8, 0, 7), (30, 22, 8, 0, 22)]))
    kind.set_ebias(rng.choice([127, 0, 1023, 2**31 - 1]))
    shape = file[name].shape
    del file[name]
    made = h5py.h5d.create(file.id, name.encode(), kind, h5py.h5s.create_simple(shape))
    made.write(h5py.h5s.ALL, h5py.h5s.ALL, np.ones(shape, "f4"), kind)


def other_shape(file, name, rng):
    values = values_of(file[name])
    shapes = [values[None], values.reshape(-1), np.moveaxis(values, 0, -1), values[..., :-1], values[1:], values[:0]]
    shapes += [np.concatenate([values, values]), values[..., None], values.reshape(-1)[0] if values.size else values]
    replaced(file, name, data=rng.choice(shapes))


def odd_values(file, name, rng):
    values = values_of(file[name]).copy()
    if values.size and values.dtype.kind in "fiu":
        number = rng.choice([np.nan, np.inf, -np.inf, 0, -1, 1e300, 1e-300, 65504, 2**31, 2**62])
        flat = values.reshape(-1)
        with np.errstate(all="ignore"):
            flat[rng.randrange(flat.size) : flat.size if rng.random() < 0.2 else None] = np.array(number).astype(values.dtype)
        file[name][...] = values


def shuffled_values(file, name, rng):
    values = values_of(file[name])
    file[name][...] = values[::-1] if rng.random() < 0.5 else np.sort(values.reshape(-1)).reshape(values.shape)[..., ::-1]


def no_values(file, name, rng):
    """A dataset that has a type and no space at all."""
    replaced(file, name, data=h5py.Empty("f4"))


def declared_huge(file, name, rng):
    shape = tuple(rng.choice([n, 2**20, 2**31, 2**40, 2**62]) for n in file[name].shape)
    replaced(file, name, shape=shape, dtype=file[name].dtype, chunks=tuple(min(n, 64) for n in shape) or None)


def inflating(file, name, rng):
    """Zeros that take a thousandth of their size in the file."""
    shape = tuple(rng.choice([n, 4096]) for n in file[name].shape)
    if np.prod(shape, dtype=float) < 1 << 26:
        replaced(file, name, data=np.zeros(shape, file[name].dtype), compression="gzip", chunks=shape)


def unwritten(file, name, rng):
    options = dict(fillvalue=rng.choice([0, 1, 7])) if rng.random() < 0.5 else {}
    replaced(file, name, shape=file[name].shape, dtype=file[name].dtype, chunks=rng.choice([None, True]), **options)


def partly_written(file, name, rng):
    values = values_of(file[name])
    chunk = tuple(max(1, n // 2) for n in values.shape)
    replaced(file, name, shape=values.shape, dtype=values.dtype, chunks=chunk)[tuple(slice(0, n) for n in chunk)] = 1


def filtered(file, name, rng):
    filters = [dict(compression="lzf"), dict(fletcher32=True), dict(compression="gzip", shuffle=True), dict(scaleoffset=3)]
    replaced(file, name, data=values_of(file[name]), **rng.choice(filters))


def broken_chunk(file, name, rng):
    """A chunk whose compressed bytes are too few, too many, or no compressed bytes."""
    values = values_of(file[name])
    made = replaced(file, name, data=values, chunks=values.shape, compression="gzip", fletcher32=rng.random() < 0.3)
    raw = values.tobytes()
    packed = rng.choice(
        [zlib.compress(raw[: len(raw) // 2]), zlib.compress(raw + raw), zlib.compress(raw)[:-3], b"", rng.randbytes(9)]
    )
    made.id.write_direct_chunk((0,) * values.ndim, packed, rng.choice([0, 0, 0, 1, 0xFFFFFFFF]))


def compact(file, name, rng):
    """The values within the object's header."""
    values = values_of(file[name])
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_layout(h5py.h5d.COMPACT)
    del file[name]
    kind = h5py.h5t.py_create(values.dtype)
    made = h5py.h5d.create(file.id, name.encode(), kind, h5py.h5s.create_simple(values.shape), properties)
    made.write(h5py.h5s.ALL, h5py.h5s.ALL, np.ascontiguousarray(values))


def virtual(file, name, rng):
    """A view of another file, of this one, or of itself."""
    shape, kind = file[name].shape, file[name].dtype
    layout = h5py.VirtualLayout(shape, kind)
    layout[...] = h5py.VirtualSource(rng.choice(["gone.h5", "."]), rng.choice([name, "layers/0/v"]), shape=shape)
    del file[name]
    file.create_virtual_dataset(name, layout)


def external(file, name, rng):
    where = rng.choice(["gone.bin", "/dev/zero", "/dev/null"])
    replaced(file, name, shape=file[name].shape, dtype=file[name].dtype, external=[(where, 0, h5py.h5f.UNLIMITED)])


def resized(file, name, rng):
    """More rows than were written, in a dataset that may grow."""
    values = values_of(file[name])
    made = replaced(file, name, data=values, chunks=True, maxshape=(None,) * values.ndim)
    made.resize(values.shape[0] + rng.choice([-1, 1, 1000, 2**40]), axis=0)


CHANGES = (
    *(other_type, strange_type, strange_float, other_shape, odd_values, odd_values, shuffled_values, no_values, declared_huge),
    *(inflating, unwritten, partly_written, filtered, broken_chunk, compact, virtual, external, resized),
)
