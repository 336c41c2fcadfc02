"""Dumps on disk, read through h5py one array at a time."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from . import _core, _shapes
from ._arrays import BFloat16
from ._errors import DumpError, FileError
from ._layer import Layer

_TENSORS = ("q", "k", "v", "w_o")
_LARGEST = 2**63 - 1  # of an integer in the library


class Dump:
    """An open dump. Its structure is checked when it is opened; its tensors stay in the file until they are asked for.

    Use it as a context manager, or call close(). ``len(dump)`` is the number of layers and ``dump[i]`` reads one of them whole.

    Attributes
    ----------
    path : str
    model, prompt : str
        Provenance; empty where the dump has none.
    context_length : int
        C: tokens of the prompt.
    tokens : int
        T: tokens of the prompt and the decoded ones.
    query_positions : list of int
        [N] positions of the stored queries.
    attributes : dict
        All attributes of the file's root, such as a needle's place.
    """

    def __init__(self, path: str | Path) -> None:
        import h5py

        self.path = str(path)
        if not Path(path).exists():
            raise FileError(f"{self.path}: no such file")
        try:
            self._file = h5py.File(path, "r")
        except OSError as error:
            raise DumpError(f"{self.path}: expected an HDF5 file, found something else ({error})") from error
        try:
            self._read_structure()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def __enter__(self) -> Dump:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __len__(self) -> int:
        return len(self._summaries)

    def __repr__(self) -> str:
        return f"<laprox.Dump {self.path}: {len(self)} layers, {self.tokens} tokens ({self.context_length} of the prompt)>"

    def __getitem__(self, index: int) -> Layer:
        """Layer `index`, read from the file. Raises IndexError where there is none."""
        number = range(len(self))[index]
        group, summary = self._group(number), self._summaries[number]
        arrays = {name: _typed(group[name][...], summary[f"{name}_type"]) for name in _TENSORS}
        return Layer(
            **arrays,
            scale=summary["scale"],
            softcap=summary["softcap"],
            window=summary["sliding_window"],
            sinks=summary["sinks"] or None,
            positions=self.query_positions,
            context_length=self.context_length,
            residual_norms=group["residual_norms"][...] if "residual_norms" in group else None,
            bias=group["b_o"][...] if "b_o" in group else None,
            rope_inv_freq=summary["rope_inv_freq"] or None,
        )

    def _source(self) -> _core.Source:
        def fetch(layer: int, name: str, begin: int, end: int) -> tuple[np.ndarray, str]:
            stored = self._group(layer)[name]
            rows = {"q": (slice(None), slice(begin, end)), "residual_norms": slice(begin, end)}
            values = stored[rows.get(name, ...)]
            return np.ascontiguousarray(values.astype(values.dtype.newbyteorder("="), copy=False)), _element_type(stored)

        info = {
            "name": self.path,
            "model": self.model,
            "context_length": self.context_length,
            "tokens": self.tokens,
            "query_positions": self.query_positions,
            "output_positions": self._output_positions,
        }
        return _core.make_source(info, self._summaries, fetch, self._sha256)

    def _sha256(self) -> str:
        digest = hashlib.sha256()
        with open(self.path, "rb") as file:
            while block := file.read(1 << 22):
                digest.update(block)
        return digest.hexdigest()

    def _group(self, layer: int) -> Any:
        return self._file[f"layers/{layer}"]

    def _refuse(self, where: str, expected: str, found: str) -> NoReturn:
        raise DumpError(f"{self.path}: {where}: expected {expected}, found {found}")

    def _read_structure(self) -> None:
        self.attributes = dict(self._file.attrs)
        for name, expected in (("format", "laprox-dump"), ("version", 1)):
            found = _text(self.attributes.get(name))
            if found != expected:
                self._refuse(f"/ attribute {name}", repr(expected), "nothing" if found is None else repr(found))
        self.model, self.prompt = (str(_text(self.attributes.get(name, ""))) for name in ("model", "prompt"))
        self.query_positions = self._positions("query_positions")
        self._output_positions = self._positions("output_positions") if "output_positions" in self._file else []
        if not self.query_positions:
            self._refuse("/query_positions", "at least one position", "none")
        names = set(self._file["layers"]) if "layers" in self._file else set()
        if not names or names != {str(i) for i in range(len(names))}:
            self._refuse("/layers", "layers 0, 1, ... without gaps", ", ".join(sorted(names)) or "none")
        self._summaries: list[dict[str, Any]] = []
        self.tokens, self._model_size = 0, 0
        for layer in range(len(names)):
            self._summaries.append(self._read_layer(layer))
        for name, positions in (("query_positions", self.query_positions), ("output_positions", self._output_positions)):
            _shapes.check_positions(positions, self.tokens, f"/{name}", self._refuse)
        self.context_length = self._whole(self._file, "/", "context_length", 0)
        if not 1 <= self.context_length <= self.tokens:
            found = str(self.context_length) if "context_length" in self.attributes else "nothing"
            self._refuse("/ attribute context_length", f"1 to T = {self.tokens}", found)

    def _whole(self, owner: Any, where: str, name: str, default: int) -> int:
        """An attribute that is one integer of 64 bits with a sign."""
        value = np.asarray(owner.attrs.get(name, default))
        if value.dtype.kind not in "iu" or value.size != 1:
            self._refuse(f"{where} attribute {name}", "an integer", f"{value.dtype.name} of shape {list(value.shape)}")
        if int(value.item()) > _LARGEST:
            self._refuse(f"{where} attribute {name}", f"an integer of at most {_LARGEST}", str(value.item()))
        return int(value.item())

    def _positions(self, name: str) -> list[int]:
        if name not in self._file:
            self._refuse(f"/{name}", "a dataset", "nothing")
        values = self._file[name][...]
        if values.ndim != 1 or values.dtype.kind not in "iu":
            self._refuse(f"/{name}", "whole numbers of shape [N]", f"{values.dtype.name} of shape {list(values.shape)}")
        return [int(value) for value in values]

    def _read_layer(self, layer: int) -> dict[str, Any]:
        group, where = self._group(layer), f"/layers/{layer}"
        for name in _TENSORS:
            if name not in group:
                self._refuse(f"{where}/{name}", "a dataset", "nothing")
            if _element_type(group[name]) is None:
                self._refuse(f"{where}/{name}", "elements of type float16, bfloat16, float32 or float64", str(group[name].dtype))

        def refuse(name: str, expected: str, found: str) -> NoReturn:
            self._refuse(f"{where}/{name}", expected, found)

        sizes = _shapes.geometry(*(group[name].shape for name in _TENSORS), refuse)
        if layer == 0:
            self.tokens, self._model_size = sizes.tokens, sizes.model_size
        for name, what, found, expected in (
            ("q", "N", sizes.queries, len(self.query_positions)),
            ("k", "T", sizes.tokens, self.tokens),
            ("w_o", "D", sizes.model_size, self._model_size),
        ):
            if found != expected:
                refuse(name, f"{what} = {expected}", f"{what} = {found}")
        vectors = {"sinks": sizes.query_heads, "residual_norms": sizes.queries, "b_o": sizes.model_size, "rope_inv_freq": None}
        for name, size in vectors.items():
            if name in group and (group[name].ndim != 1 or (size and group[name].shape[0] != size)):
                refuse(name, f"shape [{size or 'r / 2'}]", f"shape {list(group[name].shape)}")
        return {
            "query_heads": sizes.query_heads,
            "kv_heads": sizes.kv_heads,
            "head_size": sizes.head_size,
            "value_size": sizes.value_size,
            "model_size": sizes.model_size,
            "scale": float(group.attrs.get("scale", sizes.head_size**-0.5)),
            "softcap": float(group.attrs.get("softcap", 0)),
            "sliding_window": self._whole(group, where, "sliding_window", 0),
            "has_bias": "b_o" in group,
            "has_output": "output" in group,
            "kv_source": self._whole(group, where, "kv_source", -1),
            "has_residual_norms": "residual_norms" in group,
            **{f"{name}_type": _element_type(group[name]) for name in _TENSORS},
            **{name: [float(x) for x in group[name][...]] if name in group else [] for name in ("sinks", "rope_inv_freq")},
        }


def open_dump(path: str | Path) -> Dump:
    """Opens a dump and checks its structure; no tensor is read. Raises DumpError or FileError."""
    return Dump(path)


def _typed(values: np.ndarray, element_type: str) -> np.ndarray:
    return values.view(BFloat16) if element_type == "bfloat16" else values


def _element_type(dataset: Any) -> str | None:
    if dataset.dtype == np.uint16 and _text(dataset.attrs.get("dtype")) == "bfloat16":
        return "bfloat16"
    name = dataset.dtype.newbyteorder("=").name
    return name if name in ("float16", "float32", "float64") else None


def _text(value: Any) -> Any:
    return value.decode() if isinstance(value, bytes) else value.item() if isinstance(value, np.generic) else value
