"""How the values of a dataset lie in their file: whether all of them were written, and what chunks inflate to.

HDF5 takes a chunk that is too short for a whole one and fills it up with whatever is in memory. So chunks are inflated here, where
their sizes can be looked at; see src/io/soundness.h.
"""

from __future__ import annotations

import itertools
import zlib
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from ._hdf5 import Reader

Bytes = bytes | memoryview
_CHECKSUM = 4  # bytes that Fletcher's adds to a chunk
_NEVER_WRITTEN = (
    "data",
    "a dataset, or a part of it, that was never written",
    "the program that made the file ended early, or wrote only some of it",
)


def check_stored(reader: Reader, dataset: Any, name: str) -> None:
    """Refuses a dataset whose values are elsewhere, or of which some were never written."""
    import h5py

    properties = dataset.id.get_create_plist()
    layout = properties.get_layout()
    if layout == h5py.h5d.VIRTUAL:
        reader.refuse(name, "data in this file", "a virtual dataset", "copy what it shows into one file, for example with h5repack")
    if properties.get_external_count() > 0:
        reader.refuse(name, "data in this file", "external storage", "copy the data into the file with h5repack")
    if not dataset.size:
        return
    if layout == h5py.h5d.CHUNKED:
        _check_filters(reader, properties, name)
        _check_index(reader, dataset, name)
    if layout == h5py.h5d.CONTIGUOUS:
        _check_contiguous(reader, dataset, name)


def read(reader: Reader, dataset: Any, name: str, part: Any = ()) -> Any:
    """The values of a dataset; `part`: a slice for each of its first dimensions, without steps."""
    import h5py

    if not dataset.size or dataset.chunks is None:
        return dataset[part]
    bounds = [range(extent)[cut] for cut, extent in itertools.zip_longest(part, dataset.shape, fillvalue=slice(None))]
    filters = _filters(dataset.id.get_create_plist())
    # A checksum, text and numbers that NumPy has no type for are HDF5's to read, once no chunk is too short.
    is_plain = all(kind != "fletcher32" for kind, _ in filters) and not dataset.dtype.hasobject
    is_plain = is_plain and h5py.h5t.py_create(dataset.dtype).equal(dataset.id.get_type())
    values = np.empty([len(bound) for bound in bounds], dataset.dtype) if is_plain else None
    for origin in _origins(bounds, dataset.chunks):
        content = _unpacked(reader, dataset, name, filters, origin)
        if values is None:
            continue
        chunk = np.frombuffer(content, dataset.dtype).reshape(dataset.chunks)
        inside = [(max(o, b.start), min(o + c, b.stop)) for o, c, b in zip(origin, dataset.chunks, bounds, strict=True)]
        to = tuple(slice(first - b.start, last - b.start) for (first, last), b in zip(inside, bounds, strict=True))
        values[to] = chunk[tuple(slice(first - o, last - o) for (first, last), o in zip(inside, origin, strict=True))]
    return dataset[part] if values is None else values


def _origins(bounds: list[range], chunks: tuple[int, ...]) -> Any:
    """Offsets of the chunks that a part of a dataset touches."""
    return itertools.product(*(range(b.start // c * c, b.stop, c) for b, c in zip(bounds, chunks, strict=True)))


def _unpacked(reader: Reader, dataset: Any, name: str, filters: list[tuple[str, int]], origin: tuple[int, ...]) -> Bytes:
    """One chunk, whose size is what it should be."""
    size = _chunk_bytes(dataset)
    skipped, content = dataset.id.read_direct_chunk(origin)
    inflated = False
    for i, (kind, element) in reversed(list(enumerate(filters))):
        if skipped >> i & 1:
            continue
        inflated = inflated or kind == "deflate"
        content = _undone(kind, element, content, size + _CHECKSUM)
        if content is None:
            _refuse_chunk(reader, name, size, origin, "does not inflate to that")
    if len(content) != size:
        _refuse_chunk(reader, name, size, origin, f"{'inflates to' if inflated else 'holds'} {len(content)}")
    return content


def _chunk_bytes(dataset: Any) -> int:
    """Bytes of a whole chunk without its filters."""
    return dataset.id.get_type().get_size() * int(np.prod(dataset.chunks, dtype=object))


def _undone(kind: str, element: int, content: Bytes, most: int) -> Bytes | None:
    """What a filter made a chunk of; nothing where it cannot have made it."""
    if kind == "fletcher32":
        return content[:-_CHECKSUM] if len(content) >= _CHECKSUM else None
    if kind == "shuffle":
        return _unshuffled(content, element)
    stream = zlib.decompressobj()
    try:
        inflated = stream.decompress(content, most + 1)
    except zlib.error:
        return None
    return inflated if stream.eof and len(inflated) <= most else None


def _unshuffled(content: Bytes, element: int) -> Bytes:
    """Elements put together: first came the first bytes of them all, then the second ones; a rest stayed as it was."""
    count = len(content) // element
    if count == 0:
        return content
    whole = np.frombuffer(content, np.uint8, count * element).reshape(element, count)
    elements = np.empty((count, element), np.uint8)
    for byte in range(element):
        elements[:, byte] = whole[byte]
    rest = content[count * element :]
    return elements.tobytes() + rest if rest else elements.data.cast("B")


def _refuse_chunk(reader: Reader, name: str, size: int, origin: tuple[int, ...], found: str) -> None:
    place = [int(offset) for offset in origin]
    reader.refuse(name, f"chunks of {size} bytes", f"a chunk at {place} that {found}", "the file is damaged")


def _filters(properties: Any) -> list[tuple[str, int]]:
    """Names of a dataset's filters, and the first number of each (shuffle's bytes of an element)."""
    import h5py

    names = {h5py.h5z.FILTER_DEFLATE: "deflate", h5py.h5z.FILTER_SHUFFLE: "shuffle", h5py.h5z.FILTER_FLETCHER32: "fletcher32"}
    found = [properties.get_filter(i) for i in range(properties.get_nfilters())]
    return [(names.get(code, ""), max(1, values[0]) if values else 1) for code, _, values, _ in found]


def _check_filters(reader: Reader, properties: Any, name: str) -> None:
    import h5py

    reads_on = (h5py.h5z.FILTER_SCALEOFFSET, h5py.h5z.FILTER_NBIT, h5py.h5z.FILTER_SZIP)
    known = (h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_FLETCHER32)
    for i in range(properties.get_nfilters()):
        code, _, _, label = properties.get_filter(i)
        found = f"filter {code}" + (f" '{label.decode(errors='backslashreplace')}'" if label else "")
        advice = "store the data with gzip, as h5repack -f GZIP=4 does"
        if code in reads_on:
            reader.refuse(name, "a filter that sees where its data end", found, advice)
        if code not in known:  # h5py does not say how long the chunks are that other ones made
            reader.refuse(name, "no filter but gzip, shuffle and fletcher32", found, advice)


def _check_index(reader: Reader, dataset: Any, name: str) -> None:
    """Every chunk is there, once: as many as should be, and one for each place."""
    chunks, filters = dataset.chunks, dataset.id.get_create_plist().get_nfilters()
    whole = _chunk_bytes(dataset)
    needed = int(np.prod([-(-extent // chunk) for extent, chunk in zip(dataset.shape, chunks, strict=True)], dtype=object))
    stored = dataset.id.get_num_chunks()
    if stored < needed:
        reader.refuse(name, *_NEVER_WRITTEN)
    for i, origin in enumerate(_origins([range(extent) for extent in dataset.shape], chunks)):
        size = _chunk_size(dataset, origin) if stored == needed else 0
        if not size:
            reader.refuse(name, "a readable index of chunks", "a damaged one", "copy the file again")
        if size > reader.file_size:
            reader.refuse(name, "chunks within the file", f"chunk {i} of {size} bytes")
        if not filters and size != whole:
            reader.refuse(name, f"chunks of {whole} bytes", f"chunk {i} that holds {size}", "the file is damaged")


def _chunk_size(dataset: Any, origin: tuple[int, ...]) -> int:
    """Bytes of a chunk as it is stored; 0 where there is none."""
    try:
        return dataset.id.get_chunk_info_by_coord(origin).size or 0
    except (OSError, RuntimeError, ValueError):
        return 0


def _check_contiguous(reader: Reader, dataset: Any, name: str) -> None:
    """What lies in one piece was written, and is no longer than its file."""
    if dataset.id.get_storage_size() == 0:
        reader.refuse(name, *_NEVER_WRITTEN)
    size = dataset.size * dataset.id.get_type().get_size()
    if size > reader.file_size:
        advice = "the file is damaged or cut short; copy it again"
        reader.refuse(name, "data within the file", f"{size} bytes in a file of {reader.file_size}", advice)
