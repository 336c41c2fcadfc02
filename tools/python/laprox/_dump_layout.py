"""What a dump says without its tensors, checked as src/io/dump_layout.cpp checks it: by the same rules, in the same order and with
the same words. tests/python/test_refused_dumps.py compares the two."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from . import _core, _shapes
from ._hdf5 import Reader, number, shape

_ROOT_OBJECTS = ["layers", "query_positions", "output_positions", "token_ids"]
_ROOT_ATTRIBUTES = ["format", "version", "context_length", "model", "source", "prompt"]
_LAYER_OBJECTS = ["q", "k", "v", "w_o", "b_o", "sinks", "rope_inv_freq", "output", "residual_norms"]
_LAYER_ATTRIBUTES = ["scale", "softcap", "sliding_window", "kv_source"]
_OBJECTS_MEANT = {"s_aux": "sinks", "bias": "b_o", "o_proj": "w_o", "inv_freq": "rope_inv_freq"}
_ATTRIBUTES_MEANT = {
    "softmax_scale": "scale",
    "scaling": "scale",
    "logit_softcapping": "softcap",
    "attn_logit_softcapping": "softcap",
    "window": "sliding_window",
    "window_size": "sliding_window",
}
_LENGTHS = "context_len ctx_len prompt_len prompt_length prompt_tokens num_prompt num_decoded decoded_tokens".split()
#: A layer's own at the root would be ignored for every layer.
_ROOT_MEANT = {
    **dict.fromkeys(_LENGTHS, "context_length"),
    **{name: f"/layers/<i> attribute {name}" for name in _LAYER_ATTRIBUTES},
    **{name: f"/layers/<i> attribute {meant}" for name, meant in _ATTRIBUTES_MEANT.items()},
}
_LONG_NAME = 10  # words nearer to a shorter one, such as "score" to "scale", may be notes
_ANY = -1


@dataclass
class Structure:
    """Everything in a dump but its tensors; layers as laprox._core.make_source takes them."""

    model: str = ""
    prompt: str = ""
    context_length: int = 0
    tokens: int = 0
    query_positions: list[int] = field(default_factory=list)
    output_positions: list[int] = field(default_factory=list)
    layers: list[dict[str, Any]] = field(default_factory=list)


def layer_object(layer: int, tensor: str = "") -> str:
    """Name of a layer's group, or of one of its tensors."""
    return f"/layers/{layer}" + (f"/{tensor}" if tensor else "")


def read_structure(reader: Reader) -> Structure:
    """Reads and checks the structure of a dump. Raises DumpError, which names the object and what was expected of it."""
    with reader.reading("file", "a readable structure"):
        return _StructureReader(reader).read()


class _StructureReader:
    def __init__(self, reader: Reader) -> None:
        self._reader, self._root, self._found = reader, reader.group("/"), Structure()
        self._queries = self._outputs = self._model_size = 0

    def read(self) -> Structure:
        reader, found = self._reader, self._found
        self._check_format()
        found.model, _, found.prompt = (reader.text(self._root, "/", name) or "" for name in ("model", "source", "prompt"))
        self._check_names("/", self._root, _ROOT_OBJECTS, {}, _ROOT_ATTRIBUTES, _ROOT_MEANT)
        # Sizes first: what a file declares must fit together before anything that large is read.
        self._queries = reader.extent("/query_positions")
        if self._queries == 0:
            reader.refuse("/query_positions", "at least one position", "none")
        if reader.has("/output_positions"):
            self._outputs = reader.extent("/output_positions")
        for layer in range(self._count_layers()):
            found.layers.append(self._read_layer(layer))
        self._check_extent("/query_positions", self._queries, found.tokens, "T")
        self._check_extent("/output_positions", self._outputs, self._queries, "N")
        found.query_positions = reader.integers("/query_positions")
        found.output_positions = reader.integers("/output_positions") if self._outputs else []
        found.context_length = self._read_context_length()
        for name in ("query_positions", "output_positions"):
            _shapes.check_positions(getattr(found, name), found.tokens, f"/{name}", reader.refuse)
        self._check_outputs()
        self._check_token_ids()
        return found

    def _check_extent(self, name: str, found: int, most: int, symbol: str) -> None:
        if found > most:
            self._reader.refuse(name, f"at most {symbol} = {most} positions", str(found))

    def _check_format(self) -> None:
        kind = self._reader.text(self._root, "/", "format")
        if kind != "laprox-dump":
            found = "nothing" if kind is None else f'"{kind}"'
            self._reader.refuse("/ attribute format", '"laprox-dump"', found, "is this a laprox dump?")
        version = self._reader.integer(self._root, "/", "version")
        if version != 1:
            found = "nothing" if version is None else str(version)
            self._reader.refuse("/ attribute version", "1", found, "this laprox reads version 1 only")

    def _check_names(
        self,
        owner_name: str,
        owner: Any,
        objects: Sequence[str],
        objects_meant: Mapping[str, str],
        attributes: Sequence[str],
        attributes_meant: Mapping[str, str],
    ) -> None:
        """A name that nobody reads is a mistake that would otherwise change every result without a word."""
        for name in self._reader.members(owner_name):
            if name not in objects:
                meant = objects_meant.get(name) or _core.nearest(_plain(name), objects)
                self._refuse_name(f"{owner_name.rstrip('/')}/{name}", name, objects, meant)
        for name in owner.attrs:
            meant = _meant_attribute(_plain(name), attributes, attributes_meant)
            if meant:
                self._refuse_name(f"{owner_name} attribute {name}", name, attributes, meant)

    def _refuse_name(self, where: str, name: str, known: Iterable[str], meant: str) -> None:
        self._reader.refuse(where, f"one of {', '.join(known)}", f"'{_plain(name)}'", f"did you mean '{meant}'?")

    def _read_context_length(self) -> int:
        where, expected = "/ attribute context_length", f"1 to T = {self._found.tokens}"
        length = self._reader.integer(self._root, "/", "context_length")
        if length is None:
            self._reader.refuse(where, expected, "nothing")
        if not 1 <= length <= self._found.tokens:
            self._reader.refuse(where, expected, str(length))
        return length

    def _count_layers(self) -> int:
        names = self._reader.members("/layers")
        if not names:
            self._reader.refuse("/layers", "at least one layer", "none")
        for layer in range(len(names)):
            if str(layer) not in names:
                stray = next((name for name in names if name not in map(str, range(len(names)))), names[0])
                expected = f"layers 0 to {len(names) - 1} without gaps"
                self._reader.refuse("/layers", expected, f"no layer {layer}, but '{_plain(stray)}'")
        return len(names)

    def _tensor(self, layer: int, name: str, expected: Sequence[int], meaning: str) -> tuple[tuple[int, ...], str]:
        """Shape and element type of a tensor; its shape must equal `expected`, where -1 stands for any size above 0."""
        where = layer_object(layer, name)
        found, kind = self._reader.array(where)
        fits = len(found) == len(expected) and all(f > 0 and e in (_ANY, f) for f, e in zip(found, expected, strict=True))
        if not fits:
            sizes = str(list(expected)).replace("-1", "any")
            said = f"shape {list(found)}" if found else "a scalar"
            self._reader.refuse(where, f"shape {meaning} = {sizes}", said, self._transposed(found))
        return found, kind

    def _transposed(self, found: tuple[int, ...]) -> str:
        """Frameworks also lay heads behind tokens, and that shape is answered with what to do."""
        heads_last = len(found) == 3 and found[0] in (self._queries, self._found.tokens) and found[0] != found[1]
        return "this looks like [tokens, heads, d]; store heads first, as transpose(0, 1) makes them" if heads_last else ""

    def _read_layer(self, layer: int) -> dict[str, Any]:
        where = layer_object(layer)
        group = self._reader.group(where)
        self._check_names(where, group, _LAYER_OBJECTS, _OBJECTS_MEANT, _LAYER_ATTRIBUTES, _ATTRIBUTES_MEANT)
        first = layer == 0
        (query_heads, _, head_size), q = self._tensor(layer, "q", (_ANY, self._queries, _ANY), "[H_q, N, d]")
        expected = (_ANY, _ANY if first else self._found.tokens, head_size)
        (kv_heads, self._found.tokens, _), k = self._tensor(layer, "k", expected, "[H_kv, T, d]")
        if query_heads % kv_heads != 0:
            self._reader.refuse(where, "H_q to be a multiple of H_kv", f"H_q = {query_heads}, H_kv = {kv_heads}")
        (_, _, value_size), v = self._tensor(layer, "v", (kv_heads, self._found.tokens, _ANY), "[H_kv, T, d_v]")
        expected = (query_heads * value_size, _ANY if first else self._model_size)
        (_, self._model_size), w_o = self._tensor(layer, "w_o", expected, "[H_q * d_v, D]")
        summary = {
            "query_heads": query_heads,
            "kv_heads": kv_heads,
            "head_size": head_size,
            "value_size": value_size,
            "model_size": self._model_size,
            **{"q_type": q, "k_type": k, "v_type": v, "w_o_type": w_o},
        }
        self._read_optional(layer, summary)
        self._read_attention(layer, group, summary)
        return summary

    def _read_optional(self, layer: int, summary: dict[str, Any]) -> None:
        reader = self._reader

        def has(name: str) -> bool:
            return reader.has(layer_object(layer, name))

        def reals(name: str, size: int, meaning: str) -> list[float]:
            self._tensor(layer, name, (size,), meaning)
            return reader.reals(layer_object(layer, name)).tolist()

        summary["has_bias"] = has("b_o")
        if summary["has_bias"]:
            self._tensor(layer, "b_o", (summary["model_size"],), "[D]")
        summary["sinks"] = reals("sinks", summary["query_heads"], "[H_q]") if has("sinks") else []
        summary["rope_inv_freq"] = []
        if has("rope_inv_freq"):
            (pairs,), _ = self._tensor(layer, "rope_inv_freq", (_ANY,), "[r / 2]")
            if 2 * pairs > summary["head_size"]:
                most = f"at most d / 2 = {summary['head_size'] // 2} elements"
                reader.refuse(layer_object(layer, "rope_inv_freq"), most, str(pairs))
            summary["rope_inv_freq"] = reals("rope_inv_freq", _ANY, "[r / 2]")
        summary["has_residual_norms"] = has("residual_norms")
        if summary["has_residual_norms"]:
            self._tensor(layer, "residual_norms", (self._queries,), "[N]")
        summary["has_output"] = has("output")
        if summary["has_output"]:
            if self._outputs == 0:
                reader.refuse("/output_positions", f"the positions of {layer_object(layer, 'output')}", "nothing")
            self._tensor(layer, "output", (self._outputs, summary["model_size"]), "[M, D]")

    def _read_attention(self, layer: int, group: Any, summary: dict[str, Any]) -> None:
        reader, where = self._reader, layer_object(layer)
        scale = reader.real(group, where, "scale")
        scale = summary["head_size"] ** -0.5 if scale is None else scale
        if not math.isfinite(scale) or scale <= 0:
            reader.refuse(f"{where} attribute scale", "a finite number above 0", number(scale))
        softcap = reader.real(group, where, "softcap") or 0.0
        if not math.isfinite(softcap) or softcap < 0:
            reader.refuse(f"{where} attribute softcap", "0 (none) or a finite number above 0", number(softcap))
        window = reader.integer(group, where, "sliding_window") or 0
        summary["kv_source"] = self._read_source(layer, group, summary)
        if window < 0:
            reader.refuse(f"{where} attribute sliding_window", "0 (none) or more", str(window))
        summary |= {"scale": scale, "softcap": softcap, "sliding_window": window}

    def _read_source(self, layer: int, group: Any, summary: dict[str, Any]) -> int:
        """The layer whose KV cache this one reads; -1: its own."""
        where = layer_object(layer)
        source = self._reader.integer(group, where, "kv_source")
        if source is None:
            return -1
        where += " attribute kv_source"
        if not 0 <= source < layer:
            self._reader.refuse(where, "a layer before this one", str(source))
        there = self._found.layers[source]
        if there["kv_source"] >= 0:
            self._reader.refuse(where, "a layer that has a cache of its own", str(source))
        if any(summary[size] != there[size] for size in ("kv_heads", "head_size", "value_size")):
            self._reader.refuse(where, "a layer whose k and v have the shapes of these", str(source))
        return source

    def _check_outputs(self) -> None:
        stored = self._found.query_positions
        for position in self._found.output_positions:
            at = bisect_left(stored, position)
            if at == len(stored) or stored[at] != position:
                found = f"{position}, which is not among them"
                self._reader.refuse("/output_positions", "a subset of /query_positions", found)

    def _check_token_ids(self) -> None:
        if not self._reader.has("/token_ids"):
            return
        found = shape(self._reader.dataset("/token_ids"))
        if found != (self._found.tokens,):
            self._reader.refuse("/token_ids", f"shape [T] = [{self._found.tokens}]", f"shape {list(found)}")


def _meant_attribute(name: str, known: Sequence[str], meant: Mapping[str, str]) -> str | None:
    """The known name, or the place, that a name stands for or nearly has; nothing where it is a note of the writer's."""
    if name in known:
        return None
    if name in meant:
        return meant[name]
    near = _core.near_miss(name, list(known))
    if near:
        return near
    alias = _core.near_miss(name, [alias for alias in sorted(meant) if len(alias) >= _LONG_NAME])
    return meant[alias] if alias else None


def _plain(name: str) -> str:
    """A name of a file as text that can be passed on and printed."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
