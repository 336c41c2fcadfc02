"""Dumps from arrays of somebody's own engine: a .npz or .safetensors file with named arrays in, a validated dump out.

The names are the dump format's, with dots: `context_length`, `query_positions` (default: every position), `output_positions`,
`token_ids`, and for each layer i `layers.i.q`, `.k`, `.v`, `.w_o`, optionally `.b_o`, `.sinks`, `.output`, `.residual_norms`,
`.rope_inv_freq`, and the numbers `.scale` (default 1/sqrt(d)), `.softcap`, `.sliding_window`, `.kv_source`. Texts (`model`,
`source`, `prompt`) are string arrays in .npz and metadata in .safetensors. bfloat16 is native in .safetensors, and uint16 bit
patterns in .npz.
"""

import re

import torch

from .arrays_file import Arrays
from .errors import InputError
from .export import Summary
from .layer import FACTS, TENSORS, Layer, Positions, check_layer, check_positions
from .output import check_output
from .replay import TOLERANCE, prove
from .writer import DumpWriter

LAYER_FIELDS = (*TENSORS, *FACTS, "scale", "softcap", "sliding_window", "model_layer", "kv_source")
LAYER_KEY = re.compile(rf"layers\.(0|[1-9][0-9]{{0,5}})\.({'|'.join(LAYER_FIELDS)})")
ROOT_KEYS = ("context_length", "query_positions", "output_positions", "token_ids")
MAX_TOKEN_ID = 2**31 - 1  # a dump stores them as int32


def convert(source: str, path: str, force: bool = False, gzip: int = 0) -> Summary:
    """Write the dump `path` from the arrays in `source`, checked as a reader checks it, and proved where outputs are given.

    Throws InputError or ProofError; then nothing is left under `path`. Memory: one layer.
    """
    check_output(path, force, [source])
    arrays = Arrays(source)
    count = _layer_count(arrays)
    positions = _positions(arrays)
    token_ids = arrays.positions("token_ids")
    if token_ids is not None and list(token_ids.shape) != [positions.tokens]:
        raise InputError(f"{source}: token_ids: expected shape [{positions.tokens}], found {list(token_ids.shape)}")
    if token_ids is not None and (token_ids.min() < 0 or token_ids.max() > MAX_TOKEN_ID):
        raise InputError(f"{source}: token_ids: expected 0..{MAX_TOKEN_ID}, found {int(token_ids.min())}..{int(token_ids.max())}")
    errors, hidden, tolerance = [], None, 0.0
    with DumpWriter(path, positions, arrays.texts, force, gzip, [source]) as writer:
        if token_ids is not None:
            writer.token_ids(token_ids)
        for i in range(count):
            where = f"{source}: layers.{i}"
            layer = _layer(arrays, i)
            check_layer(where, layer, positions, hidden)
            hidden = layer.w_o.shape[1]
            if layer.output is not None:
                limit = max(TOLERANCE.get(getattr(layer, n).dtype, 0.0) for n in ("q", "k", "v", "w_o")) or TOLERANCE[torch.float32]
                tolerance = max(tolerance, limit)
                errors.append(prove(where, layer, positions, limit))
            writer.add(layer, **({"proof_error": errors[-1]} if layer.output is not None else {}))
    return Summary(path, count, positions.context_length, positions.tokens, errors, tolerance)


def _layer_count(arrays: Arrays) -> int:
    """How many layers there are. Throws InputError for unknown names, gaps and missing arrays."""
    numbers = set()
    for name in sorted(arrays.names):
        m = LAYER_KEY.fullmatch(name)
        if not m and name not in ROOT_KEYS:
            raise InputError(f"{arrays.path}: {name}: unknown name; expected {', '.join(ROOT_KEYS)} or layers.<i>.<tensor>")
        if m:
            numbers.add(int(m[1]))
    if not numbers:
        raise InputError(f"{arrays.path}: expected arrays layers.0.q, layers.0.k, layers.0.v and layers.0.w_o, found no layer")
    for i in range(len(numbers)):
        for name in ("q", "k", "v", "w_o"):
            if f"layers.{i}.{name}" not in arrays.names:
                raise InputError(
                    f"{arrays.path}: layers.{i}.{name}: missing; layers are numbered 0..{len(numbers) - 1} without gaps"
                )
    return len(numbers)


def _positions(arrays: Arrays) -> Positions:
    keys = arrays.tensor("layers.0.k")
    if keys.ndim != 3:
        raise InputError(f"{arrays.path}: layers.0.k: expected 3 dimensions [H_kv, T, d], found shape {list(keys.shape)}")
    tokens, context = keys.shape[1], arrays.whole("context_length", None)
    if context is None:
        raise InputError(f"{arrays.path}: context_length: missing; it is the number of tokens in the cache when eviction happens")
    queries, outputs = arrays.positions("query_positions"), arrays.positions("output_positions")
    found = Positions(
        tokens,
        context,
        torch.arange(tokens) if queries is None else queries,
        torch.empty(0, dtype=torch.int64) if outputs is None else outputs,
    )
    check_positions(arrays.path, found)
    return found


def _layer(arrays: Arrays, i: int) -> Layer:
    tensors = {}
    for name in (*TENSORS, *FACTS):
        t = tensors[name] = arrays.tensor(f"layers.{i}.{name}")
        if t is None:
            continue
        if t.dtype not in (*TOLERANCE, torch.float64):
            raise InputError(
                f"{arrays.path}: layers.{i}.{name}: expected float16, bfloat16, float32 or float64, found {str(t.dtype)[6:]}"
            )
        if t.numel() == 0:
            raise InputError(f"{arrays.path}: layers.{i}.{name}: expected at least one element, found shape {list(t.shape)}")
    if tensors["output"] is not None and "output_positions" not in arrays.names:
        raise InputError(f"{arrays.path}: layers.{i}.output: output_positions is missing; it says which positions these rows are")
    q = tensors["q"]
    return Layer(
        **tensors,
        scale=arrays.number(f"layers.{i}.scale", (q.shape[-1] if q.ndim else 1) ** -0.5),
        softcap=arrays.number(f"layers.{i}.softcap", 0.0),
        sliding_window=arrays.whole(f"layers.{i}.sliding_window", 0),
        model_layer=arrays.whole(f"layers.{i}.model_layer", i),
        kv_source=_kv_source(arrays, i, tensors),
    )


def _kv_source(arrays: Arrays, i: int, tensors: dict) -> int | None:
    """The layer whose cache layer i reads, None if it has its own. Throws InputError where keys and values are not that layer's."""
    name = f"layers.{i}.kv_source"
    found = arrays.whole(name, None)
    if found is None:
        return None
    if found not in range(i) or f"layers.{found}.kv_source" in arrays.names:
        raise InputError(f"{arrays.path}: {name}: expected a layer before {i} that has a cache of its own, found {found}")
    for key in ("k", "v"):
        other = arrays.tensor(f"layers.{found}.{key}")
        if other.dtype != tensors[key].dtype or not torch.equal(other, tensors[key]):
            raise InputError(f"{arrays.path}: layers.{i}.{key}: expected the {key} of layer {found}, its kv_source; it differs")
    return found
