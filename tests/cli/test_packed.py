"""Compressed dumps: the report of the same values stored raw, whatever their chunks, masks and filters; damage is refused."""

import zlib

import dumps
import h5py
import numpy as np
import pytest
from refusals import refused

POLICY = ("--policy", "recent,h2o,snapkv:window=4,laprox:window=8", "--budget", "12,20")
TENSORS = ("q", "k", "v", "w_o")


def stored_anew(path, source, each):
    """A copy whose tensors each(group, name, values, dtype) stores."""
    with h5py.File(source) as old, h5py.File(path, "w") as new:
        new.attrs.update(old.attrs)
        for name in old:
            if name != "layers":
                old.copy(name, new)
        for layer in old["layers"]:
            group = new.create_group(f"layers/{layer}")
            group.attrs.update(old["layers"][layer].attrs)
            for name, dataset in old["layers"][layer].items():
                if name in TENSORS:
                    each(group, name, dataset[()], dataset.dtype).attrs.update(dataset.attrs)
                else:
                    old.copy(dataset, group)
    return path


def raw(group, name, values, dtype):
    return group.create_dataset(name, data=values)


def in_chunks(least, most, **options):
    """Chunks of random extents, which need not divide the shape."""
    rng = np.random.default_rng(most)

    def each(group, name, values, dtype):
        chunks = tuple(int(rng.integers(min(least, n), min(most, n), endpoint=True)) for n in values.shape)
        return group.create_dataset(name, data=values, chunks=chunks, **options)

    return each


def shuffled(values):
    return values.reshape(-1).view(np.uint8).reshape(-1, values.itemsize).T.tobytes()


def masked(group, name, values, dtype):
    """Chunks that were stored without the first filter, the second one, both or none, in turn; edges are filled up."""
    chunks = tuple(max(1, n // 2 + 1) for n in values.shape)
    dataset = group.create_dataset(
        name, shape=values.shape, dtype=dtype, chunks=chunks, compression="gzip", shuffle=True, fillvalue=0
    )
    for number, at in enumerate(np.ndindex(*(-(-n // c) for n, c in zip(values.shape, chunks, strict=True)))):
        origin = tuple(a * c for a, c in zip(at, chunks, strict=True))
        chunk = np.zeros(chunks, values.dtype)
        part = values[tuple(slice(o, o + c) for o, c in zip(origin, chunks, strict=True))]
        chunk[tuple(slice(n) for n in part.shape)] = part
        mask = number % 4
        data = chunk.tobytes() if mask & 1 else shuffled(chunk)
        dataset.id.write_direct_chunk(origin, data if mask & 2 else zlib.compress(data), mask)
    return dataset


LAYOUTS = {
    "gzip": in_chunks(1, 9, compression="gzip"),
    "gzip-1-shuffle": in_chunks(2, 40, compression="gzip", compression_opts=1, shuffle=True),
    "whole": in_chunks(10**6, 10**6, compression="gzip", shuffle=True),
    "masks": masked,
    "checksum": in_chunks(2, 17, compression="gzip", shuffle=True, fletcher32=True),
    "shuffle-only": in_chunks(2, 17, shuffle=True),
    "chunks-only": in_chunks(2, 17),
    "big-endian": lambda group, name, values, dtype: group.create_dataset(
        name, data=values, dtype=dtype.newbyteorder(">"), chunks=True, compression="gzip", shuffle=True
    ),
}


def rows(laprox, path, *options):
    """A report without the dump's name."""
    done = laprox("sweep", path, "--format", "csv", "--quiet", *options)
    return [row.split(",", 1)[1] for row in done.stdout.splitlines()]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_reports_of_compressed_dumps_are_those_of_raw_ones(laprox, tmp_path, dtype):
    source = dumps.write_dump(
        tmp_path / "dump.h5",
        context=61,
        tokens=67,
        heads=[(6, 3), (3, 1)],
        head_size=20,
        value_size=12,
        model_size=30,
        dtype=dtype,
        seed=8,
    )
    expected = rows(laprox, stored_anew(tmp_path / "raw.h5", source, raw), *POLICY)
    assert len(expected) > 20
    for name, layout in LAYOUTS.items():
        path = stored_anew(tmp_path / f"{name}.h5", source, layout)
        assert rows(laprox, path, *POLICY, "--threads", "3") == expected, name


def test_synthetic_dumps_are_compressed_without_loss(laprox, tmp_path):
    synth = ("synth", "--preset", "tiny", "--tokens", "5000", "--decode", "9", "--queries", "recent:40", "--quiet", "-o")
    plain, packed = tmp_path / "plain.h5", tmp_path / "packed.h5"
    laprox(*synth, plain)
    laprox(*synth, packed, "--gzip", "1")
    with h5py.File(plain) as a, h5py.File(packed) as b:
        for name in TENSORS:
            one, other = a[f"layers/1/{name}"], b[f"layers/1/{name}"]
            assert one.chunks is None and other.compression == "gzip" and np.array_equal(one[()], other[()])
    policy = ("--policy", "recent,snapkv", "--budget", "5%")
    assert rows(laprox, packed, *policy) == rows(laprox, plain, *policy)


def damaged(path, source, data, mask=0, where=(1, 0, 0), **options):
    """One chunk of v, of 1 x 44 x 16 float32, replaced."""
    options = {"compression": "gzip", "shuffle": True, **options}

    def each(group, name, values, dtype):
        chunks = (1, *values.shape[1:]) if values.ndim == 3 else None
        dataset = group.create_dataset(name, data=values, chunks=chunks, **(options if chunks else {}))
        if name == "v" and group.name.endswith("/0"):
            dataset.id.write_direct_chunk(where, data, mask)
        return dataset

    return stored_anew(path, source, each)


SIZE = 44 * 16 * 4
PACKED = zlib.compress(np.random.default_rng(0).bytes(SIZE))
DAMAGE = {
    "too short": (dict(data=zlib.compress(bytes(SIZE - 4))), [f"{SIZE}", f"inflates to {SIZE - 4}"]),
    "one byte too long": (dict(data=zlib.compress(bytes(SIZE + 1))), [f"inflates to {SIZE + 1}"]),
    "much too long": (dict(data=zlib.compress(bytes(9 * SIZE))), ["does not inflate to that"]),
    "truncated": (dict(data=PACKED[: SIZE // 2]), ["does not inflate to that"]),
    "a flipped byte": (dict(data=PACKED[:900] + bytes([PACKED[900] ^ 1]) + PACKED[901:]), ["does not inflate to that"]),
    "no stream": (dict(data=b"nothing of the kind" * 9), ["does not inflate to that"]),
    "raw and short": (dict(data=bytes(SIZE - 4), mask=3), [f"holds {SIZE - 4}"]),
    "raw and long": (dict(data=bytes(SIZE + 4), mask=2), [f"holds {SIZE + 4}"]),
    "checksum": (dict(data=PACKED + b"\1\2\3\4", fletcher32=True), ["damaged"]),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_chunks_are_refused_by_name(laprox, dump, tmp_path, kind):
    options, words = DAMAGE[kind]
    path = damaged(tmp_path / "damaged.h5", dump, **options)
    for command in (("sweep", path, "--policy", "recent", "--budget", "12", "--quiet"), ("inspect", path, "--quiet")):
        refused(laprox(*command, expect=3), str(path), "/layers/0/v", *words)
        refused(laprox("--trusted", *command, expect=3), str(path), "/layers/0/v", *words)
