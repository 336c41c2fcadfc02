"""Dumps from arrays: the same checks as for a model's, and the proof where outputs are given."""

import h5py
import numpy as np
import numpy_replay
import pytest
import torch
from safetensors.torch import save_file

from laprox_dump.arrays import convert
from laprox_dump.errors import InputError, ProofError


def arrays_of(path) -> dict:
    """The content of a dump in the layout of --from-npz."""
    with h5py.File(path) as f:
        found = {k: f[k][()] for k in ("query_positions", "output_positions", "token_ids")}
        found["context_length"] = np.int64(f.attrs["context_length"])
        for i, g in f["layers"].items():
            found.update({f"layers.{i}.{k}": v[()] for k, v in g.items()})
            found.update({f"layers.{i}.{k}": np.asarray(g.attrs[k]) for k in ("scale", "softcap", "sliding_window")})
            found.update({f"layers.{i}.kv_source": np.asarray(g.attrs["kv_source"])} if "kv_source" in g.attrs else {})
        return found


@pytest.fixture
def arrays(dumps):
    return arrays_of(dumps("gpt-oss"))  # bias, sinks and windows


def write(folder, arrays, kind="npz", texts=None):
    path = folder / f"in.{kind}"
    if kind == "npz":
        np.savez(path, **arrays, **{k: np.array(v) for k, v in (texts or {}).items()})
    else:
        save_file({k: torch.from_numpy(np.array(v, ndmin=0)).contiguous() for k, v in arrays.items()}, path, metadata=texts)
    return str(path)


@pytest.mark.parametrize("kind", ["npz", "safetensors"])
def test_the_same_dump_as_the_model_gave(arrays, kind, dumps, tmp_path):
    out = tmp_path / "out.h5"
    summary = convert(write(tmp_path, arrays, kind, {"model": "mine", "prompt": "ü"}), str(out))
    assert summary.layers == len(summary.errors) == 3 and max(summary.errors) < 1e-5
    assert max(numpy_replay.errors(out)) < 2e-6
    with h5py.File(out) as a, h5py.File(dumps("gpt-oss")) as b:
        assert a.attrs["model"] == "mine" and a.attrs["prompt"] == "ü"
        assert a.attrs["context_length"] == b.attrs["context_length"]
        names = []
        b.visititems(lambda name, x: names.append(name) if isinstance(x, h5py.Dataset) else None)
        for name in names:
            assert np.array_equal(a[name][()], b[name][()]), name
        for i in range(3):
            for key in ("scale", "softcap", "sliding_window"):
                assert a[f"layers/{i}"].attrs[key] == b[f"layers/{i}"].attrs[key]


def test_a_shared_cache_and_frequencies_pass_through(dumps, tmp_path):
    given = arrays_of(dumps("gemma4"))
    convert(write(tmp_path, given), str(tmp_path / "out.h5"))
    with h5py.File(tmp_path / "out.h5") as f:
        assert [f[f"layers/{i}"].attrs.get("kv_source") for i in range(3)] == [None, None, 1]
        for i in range(3):
            for name in ("residual_norms", "rope_inv_freq"):
                assert np.array_equal(f[f"layers/{i}/{name}"][()], given[f"layers.{i}.{name}"])


def test_bfloat16_both_ways(arrays, tmp_path):
    plain = {k: v for k, v in arrays.items() if not k.endswith("output") and k != "output_positions"}
    exact = ("residual_norms", "rope_inv_freq")
    halves = {
        k: torch.from_numpy(v).bfloat16() for k, v in plain.items() if v.ndim and k.startswith("lay") and not k.endswith(exact)
    }
    whole = {k: torch.from_numpy(np.array(v)) for k, v in plain.items() if k not in halves}
    save_file({**halves, **whole}, tmp_path / "in.safetensors")
    bits = {k: v.view(torch.int16).numpy().view(np.uint16) for k, v in halves.items()}
    convert(str(tmp_path / "in.safetensors"), str(tmp_path / "a.h5"))
    convert(write(tmp_path, {**plain, **bits}), str(tmp_path / "b.h5"))
    for name in ("a.h5", "b.h5"):
        with h5py.File(tmp_path / name) as f:
            k = f["layers/1/k"]
            assert k.attrs["dtype"] == "bfloat16" and np.array_equal(k[()], bits["layers.1.k"])


def test_only_the_necessary(tmp_path):
    """Without positions, numbers and outputs: every query, scale 1/sqrt(d), nothing proved."""
    shapes = {"q": (4, 9, 16), "k": (2, 9, 16), "v": (2, 9, 8), "w_o": (32, 5)}
    given = {f"layers.0.{k}": np.random.default_rng(1).normal(size=s) for k, s in shapes.items()}
    summary = convert(write(tmp_path, {**given, "context_length": np.int64(6)}), str(tmp_path / "o.h5"))
    assert summary.errors == []
    with h5py.File(tmp_path / "o.h5") as f:
        assert f["query_positions"][()].tolist() == list(range(9)) and "output_positions" not in f
        assert f["layers/0"].attrs["scale"] == 0.25 and f["layers/0/q"].dtype == "float64"


def change(key, value):
    return lambda a: a.update({key: value(a[key]) if callable(value) else value})


BAD = {
    "gap": (lambda a: [a.pop(k) for k in list(a) if k.startswith("layers.1.")], "layers.1.q: missing"),
    "no w_o": (lambda a: a.pop("layers.2.w_o"), "layers.2.w_o: missing"),
    "no layer": (lambda a: [a.pop(k) for k in list(a) if k.startswith("layers")], "found no layer"),
    "no context": (lambda a: a.pop("context_length"), "context_length: missing"),
    "context 0": (change("context_length", np.int64(0)), r"context_length: expected 1..78 .*, found 0"),
    "context too long": (change("context_length", np.int64(79)), r"expected 1..78 .*, found 79"),
    "unknown name": (change("layers.0.bias", np.zeros(3)), "layers.0.bias: unknown name"),
    "descending": (change("query_positions", lambda x: x[::-1].copy()), "query_positions: expected strictly ascending"),
    "position beyond": (change("query_positions", lambda x: x + 1), r"query_positions: expected 0..77, found 1..78"),
    "fractions": (change("query_positions", lambda x: x + 0.5), "query_positions: expected whole numbers"),
    "outputs of no query": (
        lambda a: (
            a.update(query_positions=np.arange(70, 78)),
            [a.update({f"layers.{i}.q": a[f"layers.{i}.q"][:, 70:]}) for i in range(3)],
        ),
        "expected a subset of query_positions",
    ),
    "rank": (change("layers.1.k", lambda x: x[0]), r"layers.1: k: expected 3 dimensions, found shape \[78, 16\]"),
    "heads": (change("layers.0.q", lambda x: x[:3]), "expected a multiple of the 2 KV heads of k, found 3 query heads"),
    "q and k": (change("layers.0.q", lambda x: x[..., :8]), r"layers.0: k: expected shape \[2, 78, 8\], found \[2, 78, 16\]"),
    "w_o transposed": (change("layers.1.w_o", lambda x: x.T.copy()), r"layers.1: w_o: expected shape \[64, 48\], found \[48, 64\]"),
    "another D": (change("layers.1.w_o", lambda x: x[:, :40]), r"layers.1: w_o: expected shape \[64, 48\], found \[64, 40\]"),
    "sinks": (change("layers.1.sinks", lambda x: x[:2]), r"layers.1: sinks: expected shape \[4\], found \[2\]"),
    "output rows": (change("layers.1.output", lambda x: x[1:]), r"layers.1: output: expected shape \[57, 48\], found \[56, 48\]"),
    "infinite": (change("layers.1.v", lambda x: np.where(x == x.max(), np.inf, x)), "layers.1: v: 1 of 2496 values are not finite"),
    "integers": (
        change("layers.1.v", lambda x: x.astype(np.int32)),
        "layers.1.v: expected float16, bfloat16, float32 or float64, found int32",
    ),
    "norm of nothing": (change("layers.1.residual_norms", lambda x: x * (x != x[3])), "residual_norms: expected numbers above 0"),
    "norms of too few": (
        change("layers.1.residual_norms", lambda x: x[1:]),
        r"residual_norms: expected shape \[78\], found \[77\]",
    ),
    "norms in half precision": (
        change("layers.1.residual_norms", lambda x: x.astype(np.float16)),
        "residual_norms: expected float32 or float64, found float16",
    ),
    "infinite norm": (
        change("layers.1.residual_norms", lambda x: np.where(x == x[3], np.inf, x)),
        "residual_norms: 1 of 78 values are not finite",
    ),
    "too many frequencies": (change("layers.1.rope_inv_freq", np.ones(9)), "rope_inv_freq: expected 1..8 elements"),
    "own source": (change("layers.1.kv_source", np.int64(1)), "kv_source: expected a layer before 1 .* found 1"),
    "other keys than the source": (change("layers.1.kv_source", np.int64(0)), "layers.1.k: expected the k of layer 0"),
    "token ids": (change("token_ids", lambda x: x[1:]), r"token_ids: expected shape \[78\], found \[77\]"),
    "scale": (change("layers.1.scale", np.float64(-1)), "scale: expected a positive number"),
    "two scales": (change("layers.1.scale", np.ones(2)), r"layers.1.scale: expected one number, found shape \[2\]"),
    "outputs without positions": (lambda a: a.pop("output_positions"), "output_positions is missing"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_arrays_are_refused(arrays, what, tmp_path):
    spoil, message = BAD[what]
    spoil(arrays)
    source = write(tmp_path, arrays)
    with pytest.raises(InputError, match=message):
        convert(source, str(tmp_path / "out.h5"))
    assert [p.name for p in tmp_path.iterdir()] == ["in.npz"]


def test_outputs_that_do_not_follow_are_refused(arrays, tmp_path):
    arrays["layers.2.sinks"] = arrays["layers.2.sinks"] + 1
    with pytest.raises(ProofError, match="layers.2: the output recomputed"):
        convert(write(tmp_path, arrays), str(tmp_path / "out.h5"))
    assert not (tmp_path / "out.h5").exists()


@pytest.mark.parametrize("kind", ["npz", "safetensors"])
def test_damaged_files_are_refused(arrays, kind, tmp_path):
    path = write(tmp_path, arrays, kind)
    with open(path, "r+b") as f:
        f.truncate(f.seek(0, 2) // 2)
    with pytest.raises(InputError, match="cannot be read"):
        convert(path, str(tmp_path / "out.h5"))
    with pytest.raises(InputError, match="cannot be read"):
        convert(str(tmp_path / f"none.{kind}"), str(tmp_path / "out.h5"))
