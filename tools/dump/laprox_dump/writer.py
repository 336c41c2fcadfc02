"""Write one dump file, a layer at a time; it appears under its name only when it is complete."""

import io
import os
from collections.abc import Sequence
from contextlib import suppress

import h5py
import numpy as np
import torch

from .errors import InputError
from .interrupts import deferred
from .layer import FACTS, TENSORS, Layer, Positions
from .output import check_output, move_into_place, temporary_beside

FORMAT, VERSION = "laprox-dump", 1
CHUNK_BYTES = 1 << 18  # of a compressed tensor: several threads have work on one head, and a range of tokens little to spare


class _Sink(io.RawIOBase):
    """The file that HDF5 writes to.

    A failed write is remembered in `error` and hidden from HDF5, which would crash on closing.
    """

    def __init__(self, handle: int):
        self.raw, self.error = open(handle, "w+b", buffering=0), None
        super().__init__()

    def write(self, data) -> int:
        """Write all of `data`, or remember why not."""
        left = memoryview(data).cast("B")
        try:
            while self.error is None and len(left):
                left = left[self.raw.write(left) :]
        except OSError as e:
            self.error = e
        return len(data)

    def readinto(self, buffer) -> int:
        """Fill `buffer`; what a failed write left out reads as zeros."""
        view = memoryview(buffer).cast("B")
        done = self.raw.readinto(view) or 0
        view[done:] = bytes(len(view) - done)
        return len(view)

    def truncate(self, size: int) -> int:
        """Set the file's length, or remember why not."""
        try:
            return self.raw.truncate(size)
        except OSError as e:
            self.error = self.error or e
            return size

    def sync(self) -> None:
        """Wait for the disk, or remember why it failed: some file systems report a full disk only now."""
        try:
            os.fsync(self.raw.fileno())
        except OSError as e:
            self.error = self.error or e

    def seek(self, *where) -> int:
        """As for any file."""
        return self.raw.seek(*where)

    def tell(self) -> int:
        """As for any file."""
        return self.raw.tell()

    def close(self) -> None:
        """Close the file below too."""
        self.raw.close()
        super().close()


def chunk_shape(data: np.ndarray) -> tuple[int, ...]:
    """Return the chunks of a compressed tensor: some tokens of one head, whole rows.

    laprox reads ranges of tokens of all heads, and inflates each chunk that a range touches once.
    """
    rows = max(1, CHUNK_BYTES // (data.shape[-1] * data.itemsize))
    return (*(1 for _ in data.shape[:-2]), min(rows, data.shape[-2]), data.shape[-1])


class DumpWriter:
    """`with DumpWriter(path, positions, attributes) as w: w.add(layer) ...` leaves `path` complete, or not at all.

    The data goes to a hidden temporary file beside `path`, which is renamed at the end of the block and removed if it fails or
    is interrupted. `force` replaces a regular file that is none of `inputs`, the files that the dump is made from.
    Throws InputError for any other thing that stands under that name, a folder that cannot be written and a full disk.
    """

    def __init__(
        self,
        path: str,
        positions: Positions,
        attributes: dict,
        force: bool = False,
        gzip: int = 0,
        inputs: Sequence[str] = (),
    ):
        self.path, self.positions, self.attributes, self.inputs = path, positions, attributes, inputs
        self.gzip, self.force, self.layers = gzip, force, 0
        self.temporary = self.sink = self.file = None

    def __enter__(self) -> "DumpWriter":
        check_output(self.path, self.force, self.inputs)
        try:
            with deferred():
                handle, self.temporary = temporary_beside(self.path)
                self.sink = _Sink(handle)
                self.file = h5py.File(self.sink, "w")
                self._root()
        except BaseException:
            self._discard()
            raise
        return self

    def __exit__(self, kind, error, trace) -> None:
        if kind is not None:
            self._discard()
            return
        try:
            with deferred():
                self.file.close()
                self.sink.sync()
                self.sink.close()
                self._check()
                move_into_place(self.temporary, self.path, self.force, self.inputs)
        except OSError as e:
            self.sink.error = e
            self._check()
        finally:
            self._discard()

    def _check(self) -> None:
        """Throw InputError if a write failed."""
        if self.sink.error is not None:
            raise InputError(
                f"{self.path}: writing failed after {self.layers} layers: {self.sink.error.strerror}; "
                "nothing was left under that name"
            )

    def _discard(self) -> None:
        with deferred():
            if self.file is not None:
                self.file.close()
            if self.sink is not None:
                self.sink.close()
            if self.temporary is not None:
                with suppress(FileNotFoundError):
                    os.unlink(self.temporary)

    def _root(self) -> None:
        f, p = self.file, self.positions
        f.attrs["format"], f.attrs["version"] = FORMAT, VERSION
        f.attrs["context_length"] = p.context_length
        for name, value in self.attributes.items():
            # HDF5 strings end at a NUL, and cannot hold the half characters of undecodable bytes
            f.attrs[name] = value.replace("\0", "\u2400").encode("utf-8", "replace").decode() if isinstance(value, str) else value
        f["query_positions"] = p.queries.numpy().astype(np.int64)
        if p.outputs.numel():
            f["output_positions"] = p.outputs.numpy().astype(np.int64)

    def token_ids(self, ids: torch.Tensor) -> None:
        """Store the whole sequence, [T]."""
        with deferred():
            self.file["token_ids"] = ids.numpy().astype(np.int32)

    def add(self, layer: Layer, **attributes) -> None:
        """Append `layer` as the next `/layers/<i>`; further `attributes` go to its group."""
        with deferred():
            group = self.file.create_group(f"layers/{self.layers}")
            group.attrs.update(
                scale=layer.scale,
                softcap=layer.softcap,
                sliding_window=layer.sliding_window,
                model_layer=layer.model_layer,
                **attributes,
            )
            if layer.kv_source is not None:
                group.attrs["kv_source"] = layer.kv_source
            for name in (*TENSORS, *FACTS):
                tensor = getattr(layer, name)
                if tensor is not None:
                    self._put(group, name, tensor)
            self.file.flush()
        self._check()
        self.layers += 1

    def _put(self, group: h5py.Group, name: str, tensor: torch.Tensor) -> None:
        tensor, bits = tensor.detach().cpu().contiguous(), tensor.dtype == torch.bfloat16
        # HDF5 has no bfloat16: the format stores its bits, and says so
        data = tensor.view(torch.int16).numpy().view(np.uint16) if bits else tensor.numpy()
        packed = self.gzip > 0 and data.ndim > 1 and data.size > 0
        options = dict(compression="gzip", compression_opts=self.gzip, shuffle=True, chunks=chunk_shape(data)) if packed else {}
        dataset = group.create_dataset(name, data=data, **options)
        if bits:
            dataset.attrs["dtype"] = "bfloat16"
