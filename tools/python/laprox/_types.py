"""Element types of HDF5 files: the four that dumps may hold, and words for the others."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ._hdf5 import Reader

#: "float16", "bfloat16", "float32" or "float64"
ElementType = str
#: bytes, mantissa's bits and exponent's bias of the IEEE layouts that have a name here
_IEEE = {(2, 10, 15): "float16", (4, 23, 127): "float32", (8, 52, 1023): "float64"}


def element_type(reader: Reader, dataset: Any, name: str) -> ElementType:
    """The type of a dataset of real numbers; bfloat16 is uint16 with the attribute dtype. Raises DumpError for any other type."""
    import h5py

    kind = dataset.id.get_type()
    if kind.get_class() == h5py.h5t.FLOAT:
        known = _ieee_type(kind)
        said = reader.text(dataset, name, "dtype") if known else None
        if said is not None and said != known:
            reader.refuse(f"{name} attribute dtype", f'"{known}", as the data is stored, or nothing', f'"{said}"')
        if known:
            return known
    unsigned = kind.get_class() == h5py.h5t.INTEGER and kind.get_size() == 2 and kind.get_sign() == h5py.h5t.SGN_NONE
    if unsigned and reader.text(dataset, name, "dtype") == "bfloat16":
        return "bfloat16"
    found = describe_type(kind) + (" that is not IEEE" if kind.get_class() == h5py.h5t.FLOAT else "")
    reader.refuse(name, 'float16, float32, float64, or uint16 with the attribute dtype = "bfloat16"', found)


def describe_type(kind: Any) -> str:
    """A type of HDF5 in words."""
    import h5py

    bits = 8 * kind.get_size()
    words = {
        h5py.h5t.INTEGER: f"a {bits}-bit integer",
        h5py.h5t.FLOAT: f"a {bits}-bit float",
        h5py.h5t.STRING: "a string",
        h5py.h5t.COMPOUND: "a compound type",
        h5py.h5t.ENUM: "an enumeration",
    }
    return words.get(kind.get_class(), "another type")


def _ieee_type(kind: Any) -> ElementType | None:
    sign, exponent, _, mantissa, mantissa_bits = kind.get_fields()
    if mantissa != 0 or exponent != mantissa_bits or sign + 1 != 8 * kind.get_size():
        return None
    return _IEEE.get((kind.get_size(), mantissa_bits, kind.get_ebias()))
