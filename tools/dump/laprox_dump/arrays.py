"""Dumps from arrays of somebody's own engine: a .npz or .safetensors file with named arrays in, a validated dump out.

The names are the dump format's, with dots: `context_length`, `query_positions` (default: every position), `output_positions`,
`token_ids`, and for each layer i `layers.i.q`, `.k`, `.v`, `.w_o`, optionally `.b_o`, `.sinks`, `.output`, `.residual_norms`,
`.rope_inv_freq`, and the numbers `.scale` (default 1/sqrt(d)), `.softcap`, `.sliding_window`, `.kv_source`. Texts (`model`,
`source`, `prompt`) are string arrays in .npz and metadata in .safetensors. bfloat16 is native in .safetensors, and uint16 bit
patterns in .npz.
"""

import re

import numpy as np
import torch

from .errors import InputError
from .export import Summary
from .layer import FACTS, TENSORS, Layer, Positions, check_layer, check_positions
from .replay import TOLERANCE, prove
from .writer import DumpWriter

TEXTS = ("model", "source", "prompt")
LAYER_KEY = re.compile(
    r"layers\.(0|[1-9]\d*)\.(q|k|v|w_o|b_o|sinks|output|residual_norms|rope_inv_freq|scale|softcap|sliding_window|model_layer|kv_source)"
)
ROOT_KEYS = ("context_length", "query_positions", "output_positions", "token_ids")


class Arrays:
    """Named arrays of a file, read one at a time: `names`, `texts` and `get(name)`, which is None for a missing one."""

    def __init__(self, path: str):
        self.path = path
        try:
            self._open(path)
        except Exception as e:  # zipfile, numpy and safetensors each throw their own kinds
            raise InputError(f"{path}: cannot be read as arrays: {str(e).splitlines()[0] if str(e) else type(e).__name__}") from e

    def _open(self, path: str) -> None:
        if path.endswith(".safetensors"):
            from safetensors import safe_open

            file = safe_open(path, framework="pt")
            self.names, self.read = set(file.keys()), file.get_tensor
            self.texts = {k: v for k, v in (file.metadata() or {}).items() if k in TEXTS}
        else:
            file = np.load(path, allow_pickle=False)
            self.names = set(file.files) - set(TEXTS)
            self.read = lambda name: _from_numpy(file[name])
            self.texts = {k: str(file[k]) for k in TEXTS if k in file.files}

    def get(self, name: str) -> torch.Tensor | None:
        """The array as a tensor. Throws InputError for a damaged one or one of an unknown type."""
        if name not in self.names:
            return None
        try:
            return self.read(name)
        except Exception as e:
            raise InputError(f"{self.path}: {name}: cannot be read: {str(e).splitlines()[0]}") from e

    def number(self, name: str, default):
        """An array of one element as a Python number, `default` if it is missing. Throws InputError."""
        found = self.get(name)
        if found is None:
            return default
        if found.numel() != 1:
            raise InputError(f"{self.path}: {name}: expected one number, found shape {list(found.shape)}")
        return found.item()

    def positions(self, name: str) -> torch.Tensor | None:
        """An array of whole numbers as int64. Throws InputError."""
        found = self.get(name)
        if found is not None and (found.is_floating_point() or found.dtype == torch.bool):
            raise InputError(f"{self.path}: {name}: expected whole numbers, found {str(found.dtype)[6:]}")
        return None if found is None else found.long()


def _from_numpy(array: np.ndarray) -> torch.Tensor:
    if array.dtype == np.uint16:
        return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)
    return torch.from_numpy(np.ascontiguousarray(array))


def convert(source: str, path: str, force: bool = False, gzip: int = 0) -> Summary:
    """Write the dump `path` from the arrays in `source`, checked as a reader checks it, and proved where outputs are given.

    Throws InputError or ProofError; then nothing is left under `path`. Memory: one layer.
    """
    arrays = Arrays(source)
    count = _layer_count(arrays)
    positions = _positions(arrays)
    token_ids = arrays.positions("token_ids")
    if token_ids is not None and list(token_ids.shape) != [positions.tokens]:
        raise InputError(f"{source}: token_ids: expected shape [{positions.tokens}], found {list(token_ids.shape)}")
    errors, hidden, tolerance = [], None, 0.0
    with DumpWriter(path, positions, arrays.texts, force, gzip) as writer:
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
    keys = arrays.get("layers.0.k")
    if keys.ndim != 3:
        raise InputError(f"{arrays.path}: layers.0.k: expected 3 dimensions [H_kv, T, d], found shape {list(keys.shape)}")
    tokens, context = keys.shape[1], arrays.number("context_length", None)
    if context is None:
        raise InputError(f"{arrays.path}: context_length: missing; it is the number of tokens in the cache when eviction happens")
    queries, outputs = arrays.positions("query_positions"), arrays.positions("output_positions")
    found = Positions(
        tokens,
        int(context),
        torch.arange(tokens) if queries is None else queries,
        torch.empty(0, dtype=torch.int64) if outputs is None else outputs,
    )
    check_positions(arrays.path, found)
    return found


def _layer(arrays: Arrays, i: int) -> Layer:
    tensors = {}
    for name in (*TENSORS, *FACTS):
        t = tensors[name] = arrays.get(f"layers.{i}.{name}")
        if t is not None and t.dtype not in (*TOLERANCE, torch.float64):
            raise InputError(
                f"{arrays.path}: layers.{i}.{name}: expected float16, bfloat16, float32 or float64, found {str(t.dtype)[6:]}"
            )
    if tensors["output"] is not None and "output_positions" not in arrays.names:
        raise InputError(f"{arrays.path}: layers.{i}.output: output_positions is missing; it says which positions these rows are")
    q = tensors["q"]
    return Layer(
        **tensors,
        scale=float(arrays.number(f"layers.{i}.scale", max(1, q.shape[-1] if q.ndim else 1) ** -0.5)),
        softcap=float(arrays.number(f"layers.{i}.softcap", 0.0)),
        sliding_window=int(arrays.number(f"layers.{i}.sliding_window", 0)),
        model_layer=int(arrays.number(f"layers.{i}.model_layer", i)),
        kv_source=_kv_source(arrays, i, tensors),
    )


def _kv_source(arrays: Arrays, i: int, tensors: dict) -> int | None:
    """The layer whose cache layer i reads, None if it has its own. Throws InputError where keys and values are not that layer's."""
    name = f"layers.{i}.kv_source"
    found = arrays.number(name, None)
    if found is None:
        return None
    if found not in range(i) or f"layers.{int(found)}.kv_source" in arrays.names:
        raise InputError(f"{arrays.path}: {name}: expected a layer before {i} that has a cache of its own, found {found}")
    for key in ("k", "v"):
        other = arrays.get(f"layers.{int(found)}.{key}")
        if other.dtype != tensors[key].dtype or not torch.equal(other, tensors[key]):
            raise InputError(
                f"{arrays.path}: layers.{i}.{key}: expected the {key} of layer {int(found)}, its kv_source; it differs"
            )
    return int(found)
