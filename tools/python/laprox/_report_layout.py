"""What a report's file holds, checked as src/io/report_reader.cpp checks it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from . import _core
from ._hdf5 import Reader, number, shape
from ._types import describe_type

FORMAT, VERSION = "laprox-report", 1
LABELS = ("dump", "policy", "budget")
NUMBERED = ("layer", "kv_head", "query_head")
#: Dimensions that only some reports have.
DECODING = ("segment", "position")
TEXTS = {"dump_sha256": "dump", "dump_model": "dump", "policy_spec": "policy"}
_DIMENSIONS = (*LABELS, *NUMBERED, *DECODING)
#: Attributes of an array that HDF5 and netCDF keep for themselves.
_OF_THE_FILE = ("DIMENSION_LIST", "REFERENCE_LIST", "CLASS", "NAME", "_Encoding", "_FillValue", "_Netcdf4Dimid")
_CELL = LABELS
_LAYER = (*_CELL, "layer")


@dataclass(frozen=True)
class _Known:
    dimensions: tuple[str, ...]
    needed: bool = False
    least: int | None = None  #: of counts, which are integers


@dataclass
class Array:
    """One of a report's arrays, as it is stored."""

    dimensions: tuple[str, ...]
    values: np.ndarray
    attributes: dict[str, Any]

    @property
    def counts(self) -> bool:
        """Whether it holds whole numbers."""
        return self.values.dtype.kind in "iu"


@dataclass
class Contents:
    """A whole report: attributes, labels and texts by their names, numbered dimensions' extents, arrays and kept tokens."""

    attributes: dict[str, Any]
    labels: dict[str, list[str]]
    extents: dict[str, int]
    arrays: dict[str, Array]
    kept_start: np.ndarray | None = None
    kept_tokens: np.ndarray | None = None


@cache
def known_arrays() -> dict[str, _Known]:
    """The arrays that programs ask a report for by name."""
    known = {
        "kept_pairs": _Known(_CELL, True, 0),
        "kept_count": _Known((*_LAYER, "kv_head"), True, -1),
        "budget_tokens": _Known(("dump", "budget"), True, 1),
        "context_length": _Known(("dump",), True, 1),
        "is_oracle": _Known(("policy",), False, -1),
        "on_budget": _Known(_CELL, False, 0),
        **{name: _Known(_CELL, False, -1) for name in ("identical_to", "tied_entries", "model_unseen_entries")},
        **{name: _Known(_CELL, False, -1) for name in ("cache_peak", "cuts", "evictions")},
        "unseen_entries": _Known(_LAYER, False, -1),
        "cache_mean": _Known(_CELL),
        "segment_start": _Known(("dump", "segment"), False, -1),
        "segment_error": _Known((*_LAYER, "segment")),
        "model_segment_error": _Known((*_CELL, "segment")),
        "evicted_at": _Known((*_LAYER, "kv_head", "position"), False, -1),
        "head_relative_error": _Known((*_LAYER, "query_head")),
    }
    for name, of_layer, of_model in _core.describe_figures():
        needed = name in ("relative_error", "retained_mass", "cosine_mean")  # what the first reports had already
        if of_layer:
            known[of_layer] = _Known(_LAYER, needed)
        if of_model:
            known[of_model] = _Known(_CELL, needed)
    return known


def read_contents(reader: Reader) -> Contents:
    """Reads a report and checks all of it. Raises DumpError."""
    with reader.reading("file", "a laprox report"):
        return _ReportReader(reader).read()


class _ReportReader:
    def __init__(self, reader: Reader) -> None:
        self._reader, self._root = reader, reader.group("/")

    def read(self) -> Contents:
        self._check_format()
        labels = {name: self._reader.strings(f"/{name}") for name in LABELS}
        extents = {name: self._reader.extent(f"/{name}") for name in NUMBERED}
        extents |= {name: self._reader.extent(f"/{name}") for name in DECODING if self._reader.has(f"/{name}")}
        labels |= {name: self._reader.strings(f"/{name}") for name in TEXTS}
        self._sizes = {name: len(labels[name]) for name in LABELS} | dict.fromkeys(DECODING, 0) | extents
        self._check_labels(labels)
        self._arrays = dict(self._read_arrays())
        self._check_presence()
        self._check_numbers()
        self._check_alike()
        self._check_twins()
        self._check_schedule()
        self._check_segments()
        self._check_heads()
        found = Contents(self._attributes(self._root, "/"), labels, extents, self._arrays)
        if self._reader.has("/kept"):
            found.kept_start, found.kept_tokens = self._read_kept()
        return found

    def _check_format(self) -> None:
        kind = self._reader.text(self._root, "/", "format")
        if kind != FORMAT:
            found = "nothing" if kind is None else f'"{kind}"'
            self._reader.refuse("/ attribute format", f'"{FORMAT}"', found, "is this a report of laprox sweep?")
        version = self._reader.integer(self._root, "/", "version")
        if version != VERSION:
            self._reader.refuse("/ attribute version", str(VERSION), "nothing" if version is None else str(version))

    def _attributes(self, owner: Any, where: str) -> dict[str, Any]:
        """Texts without control characters, and what else attributes are."""
        import h5py

        found = {}
        for name in owner.attrs:
            kind = h5py.h5a.open(owner.id, name.encode()).get_type().get_class()
            if name not in _OF_THE_FILE:
                found[name] = self._reader.text(owner, where, name) if kind == h5py.h5t.STRING else owner.attrs[name]
        return found

    def _check_labels(self, labels: dict[str, list[str]]) -> None:
        for name, of in {**{name: name for name in LABELS}, **TEXTS}.items():
            found, expected = len(labels[name]), len(labels[of])
            if expected == 0 or found != expected:
                self._reader.refuse(f"/{name}", f"{max(1, expected)} entries", str(found))

    def _read_arrays(self) -> Iterator[tuple[str, Array]]:
        """The datasets whose dimensions are those of a report; others are left alone."""
        import h5py

        for name in self._reader.members("/"):
            if name == "kept" or name in _DIMENSIONS or name in TEXTS:
                continue
            dataset = self._reader.dataset(f"/{name}")
            if dataset.id.get_type().get_class() not in (h5py.h5t.FLOAT, h5py.h5t.INTEGER) or not shape(dataset):
                continue
            dimensions = self._dimensions_of(dataset, f"/{name}")
            expected = [self._sizes[dimension] for dimension in dimensions]
            if list(shape(dataset)) != expected:
                self._reader.refuse(f"/{name}", f"shape {expected}", f"shape {list(shape(dataset))}")
            yield name, Array(dimensions, self._reader.read(f"/{name}"), self._attributes(dataset, f"/{name}"))

    def _dimensions_of(self, dataset: Any, where: str) -> tuple[str, ...]:
        """Names of the dimension scales attached to a dataset."""
        import h5py

        if h5py.h5a.exists(dataset.id, b"DIMENSION_LIST"):
            kind = h5py.h5a.open(dataset.id, b"DIMENSION_LIST").get_type()
            is_list = kind.get_class() == h5py.h5t.VLEN
            if not is_list or kind.get_super().get_class() != h5py.h5t.REFERENCE:
                self._reader.refuse(where, "a DIMENSION_LIST of references", "one of another type")
        names = []
        for axis in range(len(shape(dataset))):
            scale = dataset.dims[axis][0] if len(dataset.dims[axis]) else None
            name = self._reader.text(scale, scale.name or "", "NAME") or "" if scale is not None else ""
            if name not in _DIMENSIONS:
                self._reader.refuse(where, "dimension scales of a report", f"'{name}'")
            names.append(name)
        return tuple(names)

    def _check_presence(self) -> None:
        for name, known in known_arrays().items():
            array = self._arrays.get(name)
            if array.dimensions == known.dimensions if array else not known.needed:
                continue
            found = f"numbers over {', '.join(array.dimensions)}" if array else "nothing, or something else"
            self._reader.refuse(f"/{name}", f"numbers over {', '.join(known.dimensions)}", found)

    def _known(self, *names: str) -> Iterator[tuple[str, _Known, Array]]:
        """The known arrays that are there, of these names or of all."""
        for name, known in known_arrays().items():
            if name in self._arrays and (not names or name in names):
                yield name, known, self._arrays[name]

    def _absent(self) -> np.ndarray:
        """[dump, policy, budget, layer]: a dump with fewer layers than another one has neither figures nor counts of the others."""
        return self._arrays["kept_count"].values[..., 0] < 0

    def _refuse_where(self, bad: np.ndarray, name: str, expected: str, values: np.ndarray, place: bool = True) -> None:
        """Refuses the first element that is `bad`, if any is."""
        for i in np.flatnonzero(bad)[:1]:
            found = number(values.flat[i])
            self._reader.refuse(f"/{name}", expected, f"{found} at element {i}" if place else found)

    def _check_numbers(self) -> None:
        """Counts are whole numbers, figures are finite, and no cell lacks the figures that every one has."""
        for name, known, array in self._known():
            values = array.values
            if known.least is not None:
                if not array.counts:
                    self._reader.refuse(f"/{name}", "integers", "floats")
                self._refuse_where(values < known.least, name, f"counts of {known.least} or more", values, place=False)
            self._refuse_where(np.isinf(values), name, "finite numbers", values)
            if known.needed:
                missing = np.isnan(values) & (~self._absent() if known.dimensions == _LAYER else True)
                self._refuse_where(missing, name, "a number in every cell", values)

    def _check_alike(self) -> None:
        """A figure may be missing in a dump, in a layer or at a budget, but there for all policies alike."""
        for name, known, array in self._known():
            if known.dimensions[:2] != ("dump", "policy"):
                continue
            missing = np.isnan(array.values)
            for i in np.flatnonzero(missing != missing[:, :1])[:1]:
                at = list(np.unravel_index(i, missing.shape))
                at[1] = 0
                first = int(np.ravel_multi_index(at, missing.shape))
                found = [f"{number(array.values.flat[j])} at element {j}" for j in (first, i)]
                self._reader.refuse(f"/{name}", "a number for every policy or for none", ", ".join(found))

    def _check_twins(self) -> None:
        """Indices of policies, by which tables look labels up."""
        most = self._sizes["policy"] - 1
        for name, _, array in self._known("identical_to"):
            self._refuse_where((array.values < -1) | (array.values > most), name, f"-1 to {most}", array.values, place=False)

    def _check_schedule(self) -> None:
        """Figures under a schedule must not pass for those of one cut."""
        named, held = "schedule" in self._root.attrs, "cache_peak" in self._arrays
        if named and not held:
            because = "because attribute schedule says that caches were cut again"
            self._reader.refuse("/cache_peak", f"numbers, {because}", "nothing")
        if held and not named:
            self._reader.refuse("/ attribute schedule", "a text, because /cache_peak is there", "nothing")

    def _check_segments(self) -> None:
        """A stretch without queries, which begins nowhere, has no error; any other one has."""
        starts = self._arrays.get("segment_start")
        if starts is None:
            return
        for name, known, array in self._known("segment_error", "model_segment_error"):
            empty = np.expand_dims(starts.values < 0, tuple(range(1, len(known.dimensions) - 1)))
            absent = self._absent()[..., np.newaxis] if "layer" in known.dimensions else False
            missing = np.isnan(array.values) & ~(empty | absent)
            self._refuse_where(missing, name, "a number for every segment that has queries", array.values)

    def _check_heads(self) -> None:
        """Rows of heads that not every layer has end in missing entries; none lies between numbers, and a layer's heads are so
        many for each KV head."""
        for name, _, array in self._known("head_relative_error"):
            missing, caches = np.isnan(array.values), (self._arrays["kept_count"].values >= 0).sum(-1)
            stored = np.where(missing.any(-1), missing.argmax(-1), missing.shape[-1])
            whole = missing.sum(-1) == missing.shape[-1] - stored
            fits = np.where(caches == 0, stored == 0, (stored > 0) & (stored % np.maximum(caches, 1) == 0))
            for i in np.flatnonzero(~(whole & fits))[:1]:
                found = f"{stored.flat[i]} numbers before a missing one, for {caches.flat[i]} KV heads"
                self._reader.refuse(f"/{name}", "a number for every query head", found)

    def _read_kept(self) -> tuple[np.ndarray, np.ndarray]:
        counts = self._arrays["kept_count"].values
        starts, tokens = (self._integers(name) for name in ("/kept/start", "/kept/tokens"))
        if starts.shape != counts.shape:
            self._reader.refuse("/kept/start", f"integers of shape {list(counts.shape)}", f"shape {list(starts.shape)}")
        if tokens.ndim != 1:
            self._reader.refuse("/kept/tokens", "integers of rank 1", f"shape {list(tokens.shape)}")
        bad = (starts >= 0) & ((counts < 0) | (starts > len(tokens) - counts))
        self._refuse_where(bad, "kept/start", f"places within the {len(tokens)} tokens", starts, place=False)
        contexts = self._arrays["context_length"].values
        for at in zip(*np.nonzero(starts >= 0), strict=True):
            self._check_kept(tokens[starts[at] : starts[at] + counts[at]].astype(np.int64), int(contexts[at[0]]))
        return starts, tokens

    def _check_kept(self, tokens: np.ndarray, context: int) -> None:
        before = np.r_[-1, tokens[:-1]]
        for i in np.flatnonzero((tokens <= before) | (tokens >= context))[:1]:
            expected = f"ascending tokens of each cell, from 0 to {context - 1}"
            self._reader.refuse("/kept/tokens", expected, f"{tokens[i]} after {before[i]}")

    def _integers(self, name: str) -> np.ndarray:
        import h5py

        kind = self._reader.dataset(name).id.get_type()
        if kind.get_class() != h5py.h5t.INTEGER:
            self._reader.refuse(name, "integers", describe_type(kind))
        return self._reader.read(name)
