"""Small dumps written by h5py, never by the code under test: every feature of the format, seeded."""

import io

import h5py
import numpy as np


def bfloat16_bits(values):
    """Rounded to nearest, ties to even, as uint16."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def put(group, name, values, dtype):
    if dtype == "bfloat16":
        group.create_dataset(name, data=bfloat16_bits(values)).attrs["dtype"] = "bfloat16"
    else:
        group.create_dataset(name, data=values.astype(dtype))


def nothing_but(kind):
    """The bytes of a file that says of which format it is, and no more: --force replaces it by a file of that format."""
    content = io.BytesIO()
    with h5py.File(content, "w") as file:
        file.attrs["format"] = np.bytes_(kind)
    return content.getvalue()


def write_dump(
    path,
    context,
    tokens,
    heads,
    head_size=16,
    value_size=16,
    model_size=32,
    dtype="float32",
    softcap=0.0,
    sliding_window=0,
    sinks=False,
    bias=False,
    recent_queries=None,
    scale=None,
    spread=1.0,
    seed=0,
):
    """heads: (query heads, KV heads) of each layer. A sliding window holds in every other layer, as hybrid models have it."""
    rng = np.random.default_rng(seed)
    first = 0 if recent_queries is None else max(0, context - recent_queries)
    with h5py.File(path, "w") as file:
        file.attrs.update(format="laprox-dump", version=1, context_length=context, model=f"random, seed {seed}")
        file["query_positions"] = np.arange(first, tokens)
        for i, (query_heads, kv_heads) in enumerate(heads):
            group = file.create_group(f"layers/{i}")
            if scale:
                group.attrs["scale"] = scale
            group.attrs.update(softcap=softcap, sliding_window=sliding_window if i % 2 == 0 else 0)
            put(group, "q", 1.5 * spread * rng.standard_normal((query_heads, tokens - first, head_size)), dtype)
            put(group, "k", 1.5 * rng.standard_normal((kv_heads, tokens, head_size)), dtype)
            uneven = np.exp(rng.standard_normal((kv_heads, tokens, 1)))
            put(group, "v", uneven * rng.standard_normal((kv_heads, tokens, value_size)), dtype)
            mixing = rng.standard_normal((query_heads * value_size, model_size)) / np.sqrt(query_heads * value_size)
            put(group, "w_o", mixing, dtype)
            if sinks:
                group["sinks"] = (3 * rng.standard_normal(query_heads)).astype("f4")
            group["residual_norms"] = np.exp(rng.standard_normal(tokens - first)) * (i + 1)
            if bias:
                group["b_o"] = rng.standard_normal(model_size).astype("f4")
    return path


FEATURES = {
    "plain": dict(context=100, tokens=110, heads=[(4, 4), (4, 2)]),
    "float16-sinks-bias-groups-of-3-and-8": dict(
        context=77,
        tokens=90,
        heads=[(6, 2), (3, 1), (8, 1)],
        head_size=24,
        value_size=10,
        model_size=36,
        dtype="float16",
        sinks=True,
        bias=True,
    ),
    "bfloat16-softcap-window-odd-sizes": dict(
        context=200,
        tokens=231,
        heads=[(10, 2), (6, 6)],
        head_size=7,
        value_size=9,
        model_size=20,
        dtype="bfloat16",
        softcap=5.0,
        sliding_window=40,
    ),
    "float64-everything": dict(
        context=190,
        tokens=195,
        heads=[(5, 5), (12, 4)],
        head_size=33,
        value_size=65,
        model_size=50,
        dtype="float64",
        sliding_window=90,
        sinks=True,
        softcap=20.0,
        spread=3.0,
    ),
    "few-queries-wide-values": dict(
        context=64, tokens=110, heads=[(4, 4)], head_size=128, value_size=144, model_size=150, recent_queries=48
    ),
    "short-context": dict(context=20, tokens=25, heads=[(2, 1)]),
    "own-scale": dict(context=50, tokens=60, heads=[(2, 2)], scale=0.03),
}
