"""Objects of an HDF5 file, read through h5py by the rules of src/io/hdf5.cpp: any surprise in it is a DumpError."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from . import _chunks, _core
from ._errors import DumpError, Error, FileError, UsageError
from ._types import ElementType, describe_type, element_type

_MOST_ELEMENTS = 2**48  # beyond which a declared shape is a fault of the file
_LARGEST = 2**63 - 1


class Reader:
    """Reads the objects of one file. Every refusal names file, object, expectation and find; only what lies in the file itself
    and was written is read.

    `kind` says what the file should be, for messages: "a laprox dump". Raises FileError where it cannot be opened.
    """

    def __init__(self, path: str | Path, kind: str) -> None:
        self.path, self._path = shown(os.fspath(path)), Path(path)
        self._state = _regular_file(self._path, self.path, kind)
        self._handle = self._open(kind)
        with self.reading("file", f"{kind} (HDF5)"):
            self._number = _file_number(self._file)
        self._sound: set[str] = set()

    def close(self) -> None:
        """Closes the file."""
        self._handle.close()

    @property
    def _file(self) -> Any:
        self._require_open()
        return self._handle

    def _require_open(self) -> None:
        if not self._handle:
            raise UsageError(f"{self.path}: is closed; open it again")

    def refuse(self, name: str, expected: str, found: str, advice: str = "") -> NoReturn:
        """Raises DumpError for the object `name`."""
        raise DumpError(f"{self.path}: {shown(name)}: expected {expected}, found {found}{advice and '; ' + advice}")

    @contextmanager
    def reading(self, name: str, expected: str = "readable data") -> Iterator[None]:
        """What h5py raises inside, which may be anything where a file is damaged, becomes a DumpError."""
        try:
            yield
        except Error:
            raise
        except Exception as error:
            raise DumpError(f"{self.path}: {shown(name)}: expected {expected}, found a damaged file ({error})") from error

    def check_unchanged(self) -> None:
        """Refuses a file that is no longer the one that was opened."""
        self._require_open()
        try:
            now = _state(os.stat(self._path))
        except OSError:
            now = None
        if now != self._state:
            found = "nothing" if now is None else "one that has changed since"
            advice = "something writes to it while it is read; nothing was computed from it"
            self.refuse("file", "the file as it was opened", found, advice)

    @property
    def file_size(self) -> int:
        """Bytes of the file."""
        return self._state[2]

    def sha256(self) -> str:
        """Of the file's contents, in hexadecimal."""
        digest = hashlib.sha256()
        try:
            with open(self._path, "rb") as file:
                while block := file.read(1 << 22):
                    digest.update(block)
        except OSError as error:
            raise FileError(f"{self.path}: cannot be read ({error.strerror})") from error
        self.check_unchanged()
        return digest.hexdigest()

    # Objects.

    def has(self, name: str) -> bool:
        """Whether there is such an object; a link that leads nowhere is none."""
        file = self._file
        try:
            return file[name] is not None
        except Exception:  # of a damaged file
            return False

    def group(self, name: str) -> Any:
        """A group of this file."""
        return self._object(name, "a group")

    def members(self, name: str) -> list[str]:
        """Names of what a group holds."""
        return list(self.group(name))

    def dataset(self, name: str) -> Any:
        """A dataset of this file whose values were all written."""
        found = self._object(name, "a dataset")
        extents = shape(found)
        if np.prod(extents, dtype=float) > _MOST_ELEMENTS:
            self.refuse(name, "an array that memory can hold", f"shape {list(extents)}")
        if name not in self._sound:
            _chunks.check_stored(self, found, name)
            self._sound.add(name)
        return found

    def _object(self, name: str, kind: str) -> Any:
        import h5py

        if not self.has(name):
            self.refuse(name, kind, "nothing")
        found = self._file[name]
        if isinstance(found, h5py.Dataset) != (kind == "a dataset"):
            self.refuse(name, kind, "a group" if kind == "a dataset" else "a dataset")
        if _file_number(found) != self._number:  # then nothing that is known of this file holds for what is read
            advice = "copy the data into the file, for example with h5repack"
            self.refuse(name, "an object in this file", "a link to another file", advice)
        return found

    # Values.

    def extent(self, name: str) -> int:
        """How many elements a dataset of rank 1 has."""
        extents = shape(self.dataset(name))
        if len(extents) != 1:
            self.refuse(name, "an array of rank 1", f"rank {len(extents)}")
        return extents[0]

    def array(self, name: str) -> tuple[tuple[int, ...], ElementType]:
        """Shape and element type of a dataset of real numbers."""
        found = self.dataset(name)
        return shape(found), element_type(self, found, name)

    def read(self, name: str, part: Any = ()) -> np.ndarray:
        """A dataset's values as they are stored, in this machine's byte order and contiguous; `part`: slices of dimensions."""
        found = self.dataset(name)
        with self.reading(name):
            values = np.asarray(_chunks.read(self, found, name, part))
        return np.ascontiguousarray(values.astype(values.dtype.newbyteorder("="), copy=False))

    def reals(self, name: str) -> np.ndarray:
        """A dataset of real numbers as float64, all of them finite."""
        kind = self.array(name)[1]
        values = self.read(name)
        if kind == "bfloat16":
            values = (values.astype(np.uint32) << 16).view(np.float32)
        values = values.astype(np.float64)
        for i in np.flatnonzero(~np.isfinite(values))[:1]:
            self.refuse(name, "finite values", f"{number(values.flat[i])} at element {i}")
        return values

    def integers(self, name: str) -> list[int]:
        """A dataset of whole numbers of rank 1."""
        import h5py

        found = self.dataset(name)
        if found.id.get_type().get_class() != h5py.h5t.INTEGER:
            self.refuse(name, "int64", describe_type(found.id.get_type()))
        self.extent(name)
        return [int(value) for value in self.read(name)]

    def strings(self, name: str) -> list[str]:
        """A dataset of texts of rank 1, with control characters escaped."""
        import h5py

        found = self.dataset(name)
        kind, rank = found.id.get_type(), len(shape(found))
        if kind.get_class() != h5py.h5t.STRING or rank != 1:
            self.refuse(name, "a list of strings", f"{describe_type(kind)} of rank {rank}")
        return [_decoded(value) for value in self.read(name).tolist()]

    # Attributes.

    def readable_attributes(self) -> dict[str, Any]:
        """All attributes of the file's root that h5py has a type for."""
        found = {}
        for name in self._file.attrs:
            with suppress(Exception):
                found[name] = self._file.attrs[name]
        return found

    def text(self, owner: Any, where: str, name: str) -> str | None:
        """A text attribute, with control characters escaped; None where there is none."""
        import h5py

        value = self._attribute(owner, where, name, (h5py.h5t.STRING,), "a string")
        return None if value is None else _decoded(value)

    def integer(self, owner: Any, where: str, name: str) -> int | None:
        """An attribute that is one whole number of 64 bits with a sign; None where there is none."""
        import h5py

        value = self._attribute(owner, where, name, (h5py.h5t.INTEGER,), "an integer")
        if value is not None and int(value) > _LARGEST:
            self.refuse(f"{where} attribute {name}", f"an integer of at most {_LARGEST}", str(int(value)))
        return None if value is None else int(value)

    def real(self, owner: Any, where: str, name: str) -> float | None:
        """An attribute that is one number; None where there is none."""
        import h5py

        value = self._attribute(owner, where, name, (h5py.h5t.FLOAT, h5py.h5t.INTEGER), "a number")
        return None if value is None else float(value)

    def _attribute(self, owner: Any, where: str, name: str, kinds: tuple[int, ...], expected: str) -> Any:
        import h5py

        if not h5py.h5a.exists(owner.id, name.encode()):
            return None
        attribute, where = h5py.h5a.open(owner.id, name.encode()), f"{where} attribute {name}"
        kind, count = attribute.get_type(), attribute.get_space().get_simple_extent_npoints()
        if kind.get_class() not in kinds:
            self.refuse(where, expected, describe_type(kind))
        if count != 1:
            self.refuse(where, "one value", str(count))
        if kind.get_class() == h5py.h5t.INTEGER and kind.get_size() > 8:
            self.refuse(where, "an integer of at most 64 bits", describe_type(kind))
        with self.reading(where, expected):
            return np.asarray(owner.attrs[name], dtype=object).reshape(-1)[0]

    def _open(self, kind: str) -> Any:
        import h5py

        try:
            return h5py.File(self._path, "r")
        except Exception as error:
            if "lock file" in str(error):
                raise FileError(
                    f"{self.path}: cannot be locked for reading: it is open for writing elsewhere, or its file system has no locks "
                    "(NFS, Lustre); then set HDF5_USE_FILE_LOCKING=FALSE"
                ) from error
            if isinstance(error, PermissionError):
                raise FileError(f"{self.path}: cannot be read: permission denied") from error
            if isinstance(error, OSError) and "Too many open files" in str(error):
                raise FileError(f"{self.path}: cannot be opened: too many open files; raise the limit (ulimit -n)") from error
            raise DumpError(
                f"{self.path}: file: expected {kind} (HDF5), found a file that HDF5 cannot open; it may be of another kind, or cut "
                "short"
            ) from error


def shape(dataset: Any) -> tuple[int, ...]:
    """Sizes of a dataset; none of a scalar, and none of one that is declared empty."""
    return tuple(dataset.shape or ())


def shown(name: str) -> str:
    """A name or text of a file as messages may show it."""
    return _core.printable(name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace"))


def _decoded(value: str | bytes) -> str:
    """A text of a file up to its end, with control characters escaped and bytes that are no UTF-8 spelled out."""
    content = value.encode("utf-8", "surrogateescape") if isinstance(value, str) else bytes(value)
    return _core.printable(content.split(b"\0")[0].decode("utf-8", "backslashreplace"))


def number(value: float) -> str:
    """As the C++ library prints it: 0.5, and 3 for 3.0."""
    return repr(float(value)).removesuffix(".0")


def _file_number(found: Any) -> int:
    import h5py

    return h5py.h5o.get_info(found.id).fileno


def _state(status: os.stat_result) -> tuple[int, ...]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _regular_file(path: Path, name: str, kind: str) -> tuple[int, ...]:
    """What tells this file from another one, and from itself after a change."""
    try:
        status = os.stat(path)
    except FileNotFoundError as error:
        raise FileError(f"{name}: no such file") from error
    except (OSError, ValueError) as error:
        raise FileError(f"{name}: {getattr(error, 'strerror', None) or error}") from error
    if not stat.S_ISREG(status.st_mode):
        found = "a directory" if stat.S_ISDIR(status.st_mode) else "something that is no regular file (a pipe or a device)"
        raise DumpError(f"{name}: file: expected {kind} (HDF5), found {found}")
    return _state(status)
