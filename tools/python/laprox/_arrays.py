"""Arrays of NumPy, PyTorch and whatever speaks DLPack, as NumPy arrays that share their memory where the layout allows."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from . import _core
from ._errors import ArrayError, BackendError

ELEMENT_TYPES = ("float16", "bfloat16", "float32", "float64")


class BFloat16(np.ndarray):
    """uint16 bit patterns that stand for bfloat16 numbers, which NumPy does not have."""


_DLPACK_HOST_DEVICES = (1, 3)  # plain memory, and memory that a CUDA driver pinned


def as_array(value: Any, name: str, rank: int, meaning: str) -> tuple[np.ndarray, str]:
    """`value` as a C-contiguous array, and the name of its element type (bfloat16 is held as its uint16 bit patterns).

    Copies only what is not C-contiguous or lies on a GPU. Raises ArrayError, naming `name`, where the element type is none of
    ELEMENT_TYPES or the rank is not `rank`; `meaning` says what the dimensions are. Raises BackendError for a tensor on a GPU
    where this laprox was built without its CUDA backend.
    """
    array, element_type = _to_numpy(value, name)
    if array.ndim != rank:
        raise ArrayError(f"{name}: expected {rank} dimensions {meaning}, found {array.ndim}: shape {list(array.shape)}")
    if 0 in array.shape:
        raise ArrayError(f"{name}: expected sizes above 0 {meaning}, found shape {list(array.shape)}")
    return np.ascontiguousarray(array), element_type


def as_reals(value: Any, name: str, size: int | None, meaning: str) -> list[float]:
    """A short vector, such as one sink per query head, as finite Python numbers."""
    array, element_type = _to_numpy(value, name)
    if element_type == "bfloat16":
        array = (array.astype(np.uint32) << 16).view(np.float32)
    if array.ndim != 1 or (size is not None and array.shape[0] != size):
        wanted = "" if size is None else f" = [{size}]"
        raise ArrayError(f"{name}: expected shape {meaning}{wanted}, found {list(array.shape)}")
    if not np.isfinite(array).all():
        raise ArrayError(f"{name}: expected finite values, found {array[~np.isfinite(array)][0]}")
    return array.astype(np.float64).tolist()


def as_integers(value: Any, name: str) -> list[int]:
    """A vector of whole numbers, such as positions."""
    array = _plain(value, name)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise ArrayError(f"{name}: expected whole numbers of shape [N], found {array.dtype.name} of shape {list(array.shape)}")
    return array.tolist()


def _to_numpy(value: Any, name: str) -> tuple[np.ndarray, str]:
    if _is_torch(value) and str(value.dtype) == "torch.bfloat16":
        torch = sys.modules["torch"]
        return _torch_on_host(value, name).contiguous().view(torch.int16).numpy().view(np.uint16), "bfloat16"
    array = _plain(value, name)
    element_type = array.dtype.name
    if element_type == "bfloat16":  # of the package ml_dtypes
        return array.view(np.uint16), element_type
    if isinstance(array, BFloat16) and array.dtype == np.uint16:
        return array.view(np.ndarray), "bfloat16"
    if element_type not in ELEMENT_TYPES:
        raise ArrayError(f"{name}: expected elements of type {', '.join(ELEMENT_TYPES)}, found {element_type}; convert it first")
    return array.astype(array.dtype.newbyteorder("="), copy=False), element_type


def _plain(value: Any, name: str) -> np.ndarray:
    if isinstance(value, np.ndarray):
        return value
    if _is_torch(value):
        return _torch_on_host(value, name).numpy()
    if hasattr(value, "__dlpack_device__"):
        device = int(value.__dlpack_device__()[0])
        if device not in _DLPACK_HOST_DEVICES:
            raise BackendError(f"{name}: lies on a device that DLPack numbers {device}; copy it to the host first")
        try:
            return np.from_dlpack(value)
        except (BufferError, RuntimeError, TypeError, ValueError) as error:
            raise ArrayError(f"{name}: NumPy cannot share it through DLPack ({error}); convert it to float32 first") from error
    try:
        return np.asarray(value)
    except ValueError as error:
        raise ArrayError(f"{name}: expected an array, found {type(value).__name__} ({error})") from error


def _is_torch(value: Any) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def _torch_on_host(value: Any, name: str) -> Any:
    tensor = value.detach()
    if tensor.device.type == "cpu":
        return tensor
    if tensor.device.type == "cuda" and _core.has_cuda:
        return tensor.cpu()
    if tensor.device.type == "cuda":
        raise BackendError(
            f"{name}: is a CUDA tensor, and this laprox was built without its CUDA backend; pass {name}.cpu(), or "
            "install with 'pip install . -C cmake.define.LAPROX_CUDA=ON'"
        )
    raise BackendError(f"{name}: is a tensor on the device '{tensor.device}'; pass {name}.cpu()")
