"""One attention layer in memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from . import _core, _shapes
from ._arguments import LARGEST, as_index, brief, real, whole
from ._arrays import as_array, as_integers, as_reals, current_stream, device_of
from ._errors import ArrayError, UsageError, refuse_array

_MEANINGS = {"q": (3, "[H_q, N, d]"), "k": (3, "[H_kv, T, d]"), "v": (3, "[H_kv, T, d_v]"), "w_o": (2, "[H_q * d_v, D]")}


class Layer:
    """The attention tensors of one layer for one prompt, as the attention kernel saw them.

    Arrays may be NumPy's, PyTorch's or anything that speaks DLPack, of type float16, bfloat16, float32 or float64. They are used
    where they lie if they are C-contiguous, and converted one layer at a time where the backend computes in another type. Do not
    change them while laprox works on them.

    q, k, v and w_o may lie on a GPU, all four on the same one and of one type, float16, bfloat16 or float32: then backend="cuda"
    reads them there. Those whose rows its kernels cannot read in place (gaps, head sizes other than 64, 128 and 256) are packed by
    one copy on the GPU; nothing goes through the host. The short vectors are read on the host.

    Parameters
    ----------
    q : [H_q, N, d]
        Queries, after RoPE and any norm.
    k : [H_kv, T, d]
        Keys, after RoPE and any norm. H_q is a multiple of H_kv; query head h reads KV head h // (H_q // H_kv).
    v : [H_kv, T, d_v]
        Values.
    w_o : [H_q * d_v, D]
        Output projection, the transpose of a torch ``o_proj.weight``.
    scale : float, optional
        Logits are scale * <q, k>. Default: 1 / sqrt(d).
    softcap : float
        Above 0: logits become softcap * tanh(logit / softcap).
    window : int
        Above 0: sliding-window attention, a query at p sees the keys p - window + 1 .. p.
    sinks : [H_q], optional
        Learned sink logits that join the softmax denominator only.
    positions : [N] whole numbers, optional
        Positions of the queries, ascending. Default: the last N of the T tokens.
    residual_norms : [N], optional
        At each query, the L2 norm of the residual stream right after the layer's attention output was added to it; above 0. For
        policies that weigh layers by it, and for errors relative to the stream.
    context_length : int, optional
        C: tokens of the prompt; the others were decoded, and their queries judge policies. Default: T.
    bias : [D], optional
        Bias of the output projection.
    rope_inv_freq : [r / 2], optional
        RoPE's frequencies, for policies that undo the rotation.

    Raises
    ------
    ArrayError
        An array of the wrong rank, shape or element type.
    UsageError
        A number out of its range.
    BackendError
        A tensor on a GPU where laprox was built without its CUDA backend.
    """

    def __init__(
        self,
        q: Any,
        k: Any,
        v: Any,
        w_o: Any,
        *,
        scale: float | None = None,
        softcap: float = 0.0,
        window: int = 0,
        sinks: Any = None,
        positions: Any = None,
        residual_norms: Any = None,
        context_length: int | None = None,
        bias: Any = None,
        rope_inv_freq: Any = None,
    ) -> None:
        self._arrays: dict[str, tuple[np.ndarray | _core.DeviceArray, str]] = {}
        for name, value in {"q": q, "k": k, "v": v, "w_o": w_o}.items():
            self._arrays[name] = as_array(value, name, *_MEANINGS[name])
        self._device = self._common_device()
        sizes = self._sizes = _shapes.geometry(*(self._arrays[name][0].shape for name in _MEANINGS), refuse_array)
        if bias is not None:
            self._arrays["b_o"] = (np.array(as_reals(bias, "bias", sizes.model_size, "[D]")), "float64")
        self.sinks = [] if sinks is None else as_reals(sinks, "sinks", sizes.query_heads, "[H_q]")
        self.rope_inv_freq = [] if rope_inv_freq is None else as_reals(rope_inv_freq, "rope_inv_freq", None, "[r / 2]")
        if 2 * len(self.rope_inv_freq) > sizes.head_size:
            refuse_array("rope_inv_freq", f"at most d / 2 = {sizes.head_size // 2} elements", str(len(self.rope_inv_freq)))
        if residual_norms is not None:
            norms = np.array(as_reals(residual_norms, "residual_norms", sizes.queries, "[N]"))
            if not (norms > 0).all():
                refuse_array("residual_norms", "norms above 0", str(norms.min()))
            self._arrays["residual_norms"] = (norms, "float64")
        self.scale = sizes.head_size**-0.5 if scale is None else real(scale, "scale", above=True)
        self.softcap = real(softcap, "softcap")
        self.window = whole(window, "window", 0, LARGEST)
        self.context_length = sizes.tokens if context_length is None else _context_length(context_length, sizes.tokens)
        self.positions = self._positions(positions)

    def _common_device(self) -> int:
        """The number of the GPU that holds the tensors, -1 for the host."""
        places = {name: device_of(self._arrays[name][0]) for name in _MEANINGS}
        for name, place in places.items():
            if place != places["q"]:
                refuse_array(name, f"it on {_place(places['q'])}, where q is", _place(place))
            if place >= 0 and self._arrays[name][1] != self._arrays["q"][1]:
                refuse_array(
                    name, f"the element type of q, {self._arrays['q'][1]}, as tensors on a GPU share one", self._arrays[name][1]
                )
        return places["q"]

    @property
    def device(self) -> str:
        """Where q, k, v and w_o are: "cpu", or the GPU as "cuda:0"."""
        return _place(self._device)

    def _positions(self, given: Any) -> list[int]:
        sizes = self._sizes
        if given is None:
            if sizes.queries > sizes.tokens:
                refuse_array("q", f"at most T = {sizes.tokens} queries, as k has tokens", f"{sizes.queries}")
            return list(range(sizes.tokens - sizes.queries, sizes.tokens))
        positions = as_integers(given, "positions")
        if len(positions) != sizes.queries:
            refuse_array("positions", f"one for each of the {sizes.queries} queries", f"{len(positions)}")
        _shapes.check_positions(positions, sizes.tokens, "positions", refuse_array)
        return positions

    @property
    def shape(self) -> _shapes.Geometry:
        """The layer's sizes: query_heads, kv_heads, head_size, value_size, model_size, tokens and queries."""
        return self._sizes

    def __repr__(self) -> str:
        s = self._sizes
        return (
            f"<laprox.Layer: {s.query_heads} query heads over {s.kv_heads} KV heads, head size {s.head_size}, "
            f"{s.tokens} tokens ({self.context_length} of the prompt), {s.queries} queries, {self._arrays['k'][1]}>"
        )

    def _summary(self) -> dict[str, Any]:
        s = self._sizes
        types = {f"{name}_type": self._arrays[name][1] for name in _MEANINGS}
        return {
            "query_heads": s.query_heads,
            "kv_heads": s.kv_heads,
            "head_size": s.head_size,
            "value_size": s.value_size,
            "model_size": s.model_size,
            "scale": self.scale,
            "softcap": self.softcap,
            "sliding_window": self.window,
            "sinks": self.sinks,
            "rope_inv_freq": self.rope_inv_freq,
            "has_residual_norms": "residual_norms" in self._arrays,
            "has_bias": "b_o" in self._arrays,
            "has_output": False,
            "kv_source": -1,
            **types,
        }


def source_of_layers(layers: Sequence[Layer], name: str = "layers in memory", stream: int | None = None) -> _core.Source:
    """The layers of one prompt, first to last, for the C++ library. Raises ArrayError where they do not belong together.

    Layers on a GPU are read behind what `stream` was given so far; without one, PyTorch's current stream.
    """
    if not layers:
        raise UsageError("expected at least one layer, found none")
    first = layers[0]
    for i, layer in enumerate(layers):
        for what, found, expected in (
            ("T, the tokens", layer.shape.tokens, first.shape.tokens),
            ("D, the output's size", layer.shape.model_size, first.shape.model_size),
            ("context_length", layer.context_length, first.context_length),
            ("positions", layer.positions, first.positions),
            ("device", layer.device, first.device),
        ):
            if found != expected:
                shown = "others" if what == "positions" else f"{found}"
                raise ArrayError(
                    f"layer {i}: expected {what} to be that of layer 0"
                    f"{'' if what == 'positions' else f', {expected}'}, found {shown}"
                )

    def fetch(layer: int, array: str, begin: int, end: int) -> tuple[np.ndarray, str]:
        values, element_type = layers[layer]._arrays[array]
        if array == "q" and layers[layer]._device < 0:
            values = np.ascontiguousarray(values[:, begin:end])
        elif array == "residual_norms":
            values = values[begin:end]
        return values, element_type

    info = {
        "name": name,
        "model": "",
        "context_length": first.context_length,
        "tokens": first.shape.tokens,
        "query_positions": first.positions,
        "output_positions": [],
    }
    device = first._device
    if device >= 0 and stream is None:
        stream = current_stream(device)
    return _core.make_source(info, [layer._summary() for layer in layers], fetch, lambda: "", device, stream or 0)


def _place(device: int) -> str:
    return "cpu" if device < 0 else f"cuda:{device}"


def _context_length(value: Any, tokens: int) -> int:
    length = as_index(value)
    if length is None or not 1 <= length <= tokens:
        raise UsageError(f"context_length: expected a whole number, 1 to T = {tokens}, found {brief(value)}")
    return length
