"""Results of a backend, or of a kernel of your own, against the float64 reference."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from . import _core
from ._arguments import callback, text, whole
from ._arrays import ELEMENT_TYPES, as_array, is_on_gpu, plain, widened
from ._dump import Dump
from ._errors import BackendError, UsageError, refuse_array
from ._layer import Layer
from ._policies import PolicyLike, parse_budgets, parse_many
from ._replay import Progress, Prompt, device_of_prompt, source_of

#: What a candidate may hold, and the rows of each; its columns are tokens, the output's are channels.
_ROWS = {
    "scores": "kv_heads",
    "column_norms": "query_heads",
    "column_sums": "query_heads",
    "value_norms": "query_heads",
    "output": "queries",
}


def verify(
    layers: Prompt,
    *,
    backend: str | None = None,
    candidate: Mapping[str, Any] | None = None,
    precision: str | None = None,
    threads: int = 0,
    policies: PolicyLike | Iterable[PolicyLike] = (),
    budgets: str | int | Sequence[str | int] = "10%",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Checks a backend, or what a kernel of your own computed, against the float64 reference, as `laprox verify` does.

    A backend ("cpu" unless given): its primitives, scores and kept sets, of `policies` or of the whole catalogue.

    A candidate: any of these arrays, of NumPy, PyTorch (also on a GPU) or DLPack, in float16, bfloat16, float32 or float64. Each is
    one layer's, or a sequence with one for each layer (None: not this layer), or a dict from a layer's number to it.

    ==============  ==========================  =======================================================================
    scores          [kv_heads, C]               before the split of the budget
    column_norms    [query_heads, C]            ||A[:, i]|| over the queries of the policy's window
    column_sums     [query_heads, C]            sum of A[t, i] over the queries that the policy reads
    value_norms     [query_heads, C]            ||v_i W_O^h||
    output          [N, D]                      the layer's exact output at the stored queries
    kept            [kv_heads, C] of bool       kept tokens; with several `budgets` [budgets, kv_heads, C]
    ==============  ==========================  =======================================================================

    `policies` names the one policy whose scores, columns and kept sets these are. `precision` says in which arithmetic they are
    assessed: unless given, the array's own type.

    Returns a dict with passed (bool) and the lists values, kept and skipped. Each entry of values has its parts (what was measured,
    what is allowed, and where it is worst) and failing: how many elements are wrong, in which layers and rows, and the span of
    columns. The reference reads layers on the host alone.

    Raises UsageError, ArrayError where an array has the wrong shape or type, BackendError for layers on a GPU.
    """
    if backend is not None and candidate is not None:
        raise UsageError("verify: expected a backend or a candidate, found both")
    if device_of_prompt(layers) >= 0:
        raise BackendError(
            "the layers are on a GPU, and the float64 reference reads the host's memory; make them of tensors there (.cpu())"
        )
    parsed, asked = parse_many(policies), parse_budgets(budgets)
    threads, progress = whole(threads, "threads", 0, 2**20), callback(progress, "progress")
    if candidate is not None and not isinstance(candidate, Mapping):
        raise UsageError(f"candidate: expected a dict of arrays, found {type(candidate).__name__}")
    with ExitStack() as stack:
        if isinstance(layers, (str, Path)):
            layers = stack.enter_context(Dump(layers))
        source = source_of(layers, stack)
        if candidate is None:
            return _core.verify(
                source,
                _core.make_backend("cpu" if backend is None else text(backend, "backend", '"cpu"'), threads),
                parsed,
                asked,
                progress,
            )
        sizes = _Sizes(layers)
        arrays, kept = _arrays_of(candidate, sizes), _kept_of(candidate, sizes, len(asked))
        if not any(arrays.values()) and not kept:
            raise UsageError(f"candidate: expected at least one of {', '.join([*_ROWS, 'kept'])}, found none")
        of_policy = [name for name in ("scores", "column_norms", "column_sums") if arrays.get(name)] + ["kept"] * bool(kept)
        if of_policy and len(parsed) != 1:
            raise UsageError(f"policies: expected the one policy that {' and '.join(of_policy)} belong to, found {len(parsed)}")
        if precision is not None and precision not in ELEMENT_TYPES:
            raise UsageError(f"precision: expected one of {', '.join(ELEMENT_TYPES)}, found {precision!r}")
        return _core.verify_candidate(source, arrays, kept, sizes.positions, parsed, asked, precision or "", threads, progress)


class _Sizes:
    """What the arrays of a candidate must agree with."""

    def __init__(self, prompt: Layer | Sequence[Layer] | Dump) -> None:
        if isinstance(prompt, Dump):
            self.context, self.positions, self.layers = prompt.context_length, prompt.query_positions, prompt._summaries
            return
        layers = [prompt] if isinstance(prompt, Layer) else prompt
        self.context, self.positions = layers[0].context_length, layers[0].positions
        self.layers = [layer._summary() for layer in layers]

    def of(self, layer: int, name: str) -> tuple[int, int]:
        sizes = self.layers[layer]
        if name == "output":
            return len(self.positions), sizes["model_size"]
        return sizes[_ROWS.get(name, "kv_heads")], self.context


def _by_layer(value: Any, name: str, sizes: _Sizes) -> dict[int, Any]:
    """One layer's array, a sequence or a dict, as a dict."""
    count = len(sizes.layers)
    if isinstance(value, Mapping):
        found = dict(value)
    elif isinstance(value, (list, tuple)):
        if len(value) != count:
            refuse_array(name, f"one array for each of the {count} layers (None: not this layer)", f"{len(value)}")
        found = dict(enumerate(value))
    elif count == 1:
        found = {0: value}
    else:
        refuse_array(name, f"a sequence of {count} arrays, or a dict from a layer's number to its array", type(value).__name__)
    for layer in found:
        if layer not in range(count):
            refuse_array(name, f"layers from 0 to {count - 1}", repr(layer))
    return {int(layer): array for layer, array in found.items() if array is not None}


def _arrays_of(candidate: Mapping[str, Any], sizes: _Sizes) -> dict[str, dict[int, tuple[np.ndarray, str]]]:
    unknown = [name for name in candidate if name not in _ROWS and name != "kept"]
    if unknown:
        raise UsageError(f"candidate: expected some of {', '.join([*_ROWS, 'kept'])}, found {unknown[0]!r}")
    arrays: dict[str, dict[int, tuple[np.ndarray, str]]] = {}
    for name in _ROWS:
        for layer, value in _by_layer(candidate.get(name, {}), name, sizes).items():
            where, expected = f"candidate, layer {layer}, {name}", sizes.of(layer, name)
            array, element_type = as_array(_on_host(value, where), where, 2, f"[{_ROWS[name]}, {'D' if name == 'output' else 'C'}]")
            if array.shape != expected:
                refuse_array(where, f"shape {list(expected)}", f"shape {list(array.shape)}")
            arrays.setdefault(name, {})[layer] = (widened(array, element_type), element_type)
    return arrays


def _kept_of(candidate: Mapping[str, Any], sizes: _Sizes, budgets: int) -> dict[int, np.ndarray]:
    kept = {}
    for layer, value in _by_layer(candidate.get("kept", {}), "kept", sizes).items():
        where, expected = f"candidate, layer {layer}, kept", (budgets, *sizes.of(layer, "kept"))
        masks = plain(_on_host(value, where), where)
        if masks.dtype != bool:
            refuse_array(where, "masks of bool, True where a token is kept", masks.dtype.name)
        if masks.ndim == 2 and budgets == 1:
            masks = masks[np.newaxis]
        if masks.shape != expected:
            refuse_array(where, f"shape [budgets, kv_heads, C] = {list(expected)}", f"shape {list(masks.shape)}")
        kept[layer] = np.ascontiguousarray(masks).view(np.uint8)
    return kept


def _on_host(value: Any, name: str) -> Any:
    """A kernel's results are small beside its layer: PyTorch's are fetched from the GPU."""
    if not is_on_gpu(value):
        return value.detach() if hasattr(value, "detach") else value
    if not hasattr(value, "cpu"):
        raise BackendError(f"{name}: lies on a GPU; copy it to the host first")
    return value.detach().cpu()
