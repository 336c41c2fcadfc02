"""Damage to attributes: their values, types, number and names. A change is change(file, name, rng)."""

import h5py
import numpy as np

KNOWN = (
    *("context_length", "version", "format", "model", "prompt", "source", "scale", "softcap", "sliding_window", "kv_source"),
    *("dtype", "budgets", "policy", "precision", "dump_sha256", "softmax", "queries", "DIMENSION_LIST", "CLASS", "NAME"),
    *("softmax_scale", "scal", "sliding_windows", "mine", "ä", ""),
)
INTEGERS = (0, 1, 2, -1, 7, 2**31, 2**40, 2**62, -(2**63), 2**63 - 1)
REALS = (np.nan, np.inf, -np.inf, 0.5, 1.5, 1e300, 1e-300, -0.0)
TEXTS = ("", "x", "laprox-dump", "50%", "snapkv", "bfloat16", "float32", "\x1b[31m", "a\nb", "ä" * 40, "y" * 70000)


def target(file, name, rng):
    """The root or the object itself."""
    return rng.choice([file, file[name]])


def some_name(owner, rng):
    return rng.choice([*sorted(owner.attrs), *KNOWN]) if rng.random() < 0.4 else rng.choice(sorted(owner.attrs) or KNOWN)


def other_value(file, name, rng):
    owner = target(file, name, rng)
    value = rng.choice(rng.choice([INTEGERS, REALS, TEXTS]))
    owner.attrs[some_name(owner, rng)] = value


def strange_value(file, name, rng):
    """No scalar, or no number and no text."""
    owner, values = target(file, name, rng), [np.arange(3), np.zeros(0), h5py.Empty("f4"), h5py.Empty("S8"), True, 2j]
    values += [np.array(["a", "b"], object), np.zeros(2, [("a", "i4")]), np.void(b"opaque"), owner.ref, np.uint64(2**64 - 1)]
    values += [np.float16(1), np.array(1, ">i2"), np.array(7, "u1"), np.bytes_(b"\xff\xfe"), np.zeros((2, 2, 2))]
    owner.attrs[some_name(owner, rng)] = rng.choice(values)


def null_text(file, name, rng):
    """A text of variable length that was made and never written: a NULL pointer."""
    owner = target(file, name, rng)
    key = some_name(owner, rng)
    if key in owner.attrs:
        del owner.attrs[key]
    kind = h5py.h5t.C_S1.copy()
    kind.set_size(h5py.h5t.VARIABLE)
    space = h5py.h5s.create(h5py.h5s.SCALAR) if rng.random() < 0.7 else h5py.h5s.create_simple((3,))
    h5py.h5a.create(owner.id, key.encode(), kind, space)


def lists(file, name, rng):
    owner = target(file, name, rng)
    key = some_name(owner, rng)
    if key in owner.attrs:
        del owner.attrs[key]
    owner.attrs.create(key, np.array([np.arange(2), np.arange(3)], object), dtype=h5py.vlen_dtype("i4"))


def removed_attribute(file, name, rng):
    owner = target(file, name, rng)
    if len(owner.attrs):
        del owner.attrs[rng.choice(sorted(owner.attrs))]


def renamed_attribute(file, name, rng):
    owner = target(file, name, rng)
    if len(owner.attrs):
        owner.attrs.rename(rng.choice(sorted(owner.attrs)), rng.choice(KNOWN))


def many_attributes(file, name, rng):
    """More than fit into an object's header: they move into an index of their own."""
    owner = target(file, name, rng)
    for number in range(rng.choice([10, 200])):
        owner.attrs[f"mine {number}"] = number


CHANGES = (
    *(other_value, other_value, other_value, strange_value, strange_value, null_text, lists),
    *(removed_attribute, renamed_attribute, many_attributes),
)
