"""Dumps on disk, read through h5py one array at a time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import overload

import numpy as np

from . import _core
from ._arguments import file_name
from ._arrays import BFloat16
from ._dump_layout import layer_object, read_structure
from ._errors import UsageError
from ._hdf5 import Reader
from ._hdf5 import number as shown_number
from ._layer import Layer
from ._rehearsal import rehearse

_KIND = "a laprox dump"
_TENSORS = ("q", "k", "v", "w_o")


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
        All attributes of the file's root that h5py can read, such as a needle's place.
    """

    def __init__(self, path: str | Path) -> None:
        path = file_name(path, "path")
        rehearse(path, _KIND, lambda: read_structure(Reader(path, _KIND)))
        self._reader = Reader(path, _KIND)
        self.path = self._reader.path
        self._digest = ""
        try:
            found = read_structure(self._reader)
            self.attributes = self._reader.readable_attributes()
        except BaseException:
            self.close()
            raise
        self.model, self.prompt, self.context_length, self.tokens = found.model, found.prompt, found.context_length, found.tokens
        self.query_positions, self._output_positions = found.query_positions, found.output_positions
        self._summaries = found.layers

    def close(self) -> None:
        """Closes the file."""
        self._reader.close()

    def __enter__(self) -> Dump:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __len__(self) -> int:
        return len(self._summaries)

    def __repr__(self) -> str:
        return f"<laprox.Dump {self.path}: {len(self)} layers, {self.tokens} tokens ({self.context_length} of the prompt)>"

    @overload
    def __getitem__(self, index: int) -> Layer: ...
    @overload
    def __getitem__(self, index: slice) -> list[Layer]: ...
    def __getitem__(self, index: int | slice) -> Layer | list[Layer]:
        """Layer `index`, read from the file, or a list of several. Raises IndexError where there is none."""
        if isinstance(index, slice):
            return [self[number] for number in range(len(self))[index]]
        number = range(len(self))[index]
        summary = self._summaries[number]
        self._reader.check_unchanged()
        arrays = {name: _typed(self._read(number, name), summary[f"{name}_type"]) for name in _TENSORS}
        return Layer(
            **arrays,
            scale=summary["scale"],
            softcap=summary["softcap"],
            window=summary["sliding_window"],
            sinks=summary["sinks"] or None,
            positions=self.query_positions,
            context_length=self.context_length,
            residual_norms=self._residual_norms(number) if summary["has_residual_norms"] else None,
            bias=self._reader.reals(layer_object(number, "b_o")) if summary["has_bias"] else None,
            rope_inv_freq=summary["rope_inv_freq"] or None,
        )

    def _read(self, layer: int, name: str, part: tuple[slice, ...] = ()) -> np.ndarray:
        return self._reader.read(layer_object(layer, name), part)

    def _residual_norms(self, layer: int) -> np.ndarray:
        name = layer_object(layer, "residual_norms")
        norms = self._reader.reals(name)
        for i in np.flatnonzero(norms <= 0)[:1]:
            self._reader.refuse(name, "norms above 0", f"{shown_number(norms[i])} at [{i}]")
        return norms

    def _source(self) -> _core.Source:
        def fetch(layer: int, name: str, begin: int, end: int) -> tuple[np.ndarray, str]:
            self._reader.check_unchanged()
            if name == "residual_norms":
                return self._residual_norms(layer)[begin:end], "float64"
            rows = (slice(None), slice(begin, end)) if name == "q" else ()
            return self._read(layer, name, rows), self._reader.array(layer_object(layer, name))[1]

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
        """Of the file's contents, in hexadecimal."""
        if not self._digest:
            self._digest = self._reader.sha256()
        return self._digest


def open_dump(path: str | Path) -> Dump:
    """Opens a dump and checks its structure; no tensor is read. Raises DumpError or FileError."""
    return Dump(path)


def check_distinct(dumps: Sequence[Dump]) -> None:
    """Raises UsageError where two dumps are the same file, or files of equal contents: one prompt would count as two samples."""
    sizes = [dump._reader.file_size for dump in dumps]
    path_of: dict[str, str] = {}
    for dump, size in zip(dumps, sizes, strict=True):
        if sizes.count(size) == 1:
            continue  # and needs no hash
        digest = dump._sha256()
        if digest in path_of:
            raise UsageError(
                f"{dump.path}: is the same dump as {path_of[digest]} (SHA-256 {digest}), which would count as two samples; give it "
                "once"
            )
        path_of[digest] = dump.path


def _typed(values: np.ndarray, element_type: str) -> np.ndarray:
    return values.view(BFloat16) if element_type == "bfloat16" else values
