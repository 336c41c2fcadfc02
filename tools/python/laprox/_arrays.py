"""Arrays of NumPy, PyTorch and whatever speaks DLPack, sharing their memory where the layout allows: as NumPy arrays on the host,
as _core.DeviceArray on a GPU."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from . import _core
from ._errors import ArrayError, BackendError, UsageError

ELEMENT_TYPES = ("float16", "bfloat16", "float32", "float64")
GPU_TYPES = ELEMENT_TYPES[:3]


class BFloat16(np.ndarray):
    """uint16 bit patterns that stand for bfloat16 numbers, which NumPy does not have."""


_DLPACK_HOST_DEVICES = (1, 3)  # plain memory, and memory that a CUDA driver pinned
_DLPACK_CUDA = 2
_DEFAULT_STREAM = 1  # DLPack's number of CUDA's legacy default stream


def as_array(value: Any, name: str, rank: int, meaning: str) -> tuple[np.ndarray | _core.DeviceArray, str]:
    """`value` as an array, and the name of its element type (bfloat16 is held on the host as its uint16 bit patterns).

    On the host it is C-contiguous, and copied only where it was not; a GPU's array is never copied here. Raises ArrayError,
    naming `name`, where the element type is none of ELEMENT_TYPES or the rank is not `rank`; `meaning` says what the dimensions
    are. Raises BackendError for a tensor on a GPU where this laprox was built without its CUDA backend.
    """
    on_gpu = is_on_gpu(value)
    array, element_type = _to_device_array(value, name) if on_gpu else _to_numpy(value, name)
    if len(array.shape) != rank:
        raise ArrayError(f"{name}: expected {rank} dimensions {meaning}, found {len(array.shape)}: shape {list(array.shape)}")
    if 0 in array.shape:
        raise ArrayError(f"{name}: expected sizes above 0 {meaning}, found shape {list(array.shape)}")
    return array if on_gpu else np.ascontiguousarray(array), element_type


def is_on_gpu(value: Any) -> bool:
    """Whether an array lies in a GPU's memory, as DLPack numbers it."""
    if isinstance(value, np.ndarray):
        return False
    if _is_torch(value):
        return value.device.type == "cuda"
    return hasattr(value, "__dlpack_device__") and int(value.__dlpack_device__()[0]) == _DLPACK_CUDA


def device_of(array: np.ndarray | _core.DeviceArray) -> int:
    """The number of the GPU that holds an array of as_array, -1 for the host."""
    return array.device if isinstance(array, _core.DeviceArray) else -1


def current_stream(device: int) -> int:
    """The CUDA stream that PyTorch works on now, where it is in use; else the default stream, 0."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return 0
    return torch.cuda.current_stream(device).cuda_stream


def stream_handle(stream: Any) -> int:
    """A stream as CUDA's handle: an int, or an object that has it as cuda_stream (PyTorch) or ptr (CuPy)."""
    handle = getattr(stream, "cuda_stream", getattr(stream, "ptr", stream))
    if not isinstance(handle, int) or handle < 0:
        raise UsageError(f"stream: expected a CUDA stream or its handle, found {type(stream).__name__}")
    return handle


def as_reals(value: Any, name: str, size: int | None, meaning: str) -> list[float]:
    """A short vector, such as one sink per query head, as finite Python numbers."""
    array = widened(*_to_numpy(value, name))
    if array.ndim != 1 or (size is not None and array.shape[0] != size):
        wanted = "" if size is None else f" = [{size}]"
        raise ArrayError(f"{name}: expected shape {meaning}{wanted}, found {list(array.shape)}")
    if not np.isfinite(array).all():
        raise ArrayError(f"{name}: expected finite values, found {array[~np.isfinite(array)][0]}")
    return array.tolist()


def widened(array: np.ndarray, element_type: str) -> np.ndarray:
    """An array of as_array on the host, as float64."""
    if element_type == "bfloat16":
        array = (array.astype(np.uint32) << 16).view(np.float32)
    return array.astype(np.float64)


def as_integers(value: Any, name: str) -> list[int]:
    """A vector of whole numbers, such as positions."""
    array = plain(value, name)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise ArrayError(f"{name}: expected whole numbers of shape [N], found {array.dtype.name} of shape {list(array.shape)}")
    return array.tolist()


def _to_device_array(value: Any, name: str) -> tuple[_core.DeviceArray, str]:
    if not _core.has_cuda:
        raise BackendError(
            f"{name}: is a CUDA tensor, and this laprox was built without its CUDA backend; copy it to the host (in PyTorch: "
            f"{name}.cpu()), or install with 'pip install . --config-settings=cmake.define.LAPROX_CUDA=ON'"
        )
    stream = _DEFAULT_STREAM
    if _is_torch(value):
        value = _as_it_is(value, name)
        stream = current_stream(value.device.index) or _DEFAULT_STREAM
    try:
        array = _core.DeviceArray(value.__dlpack__(stream=stream))
    except (BufferError, RuntimeError, TypeError, ValueError) as error:
        raise ArrayError(f"{name}: cannot be shared through DLPack ({error}); make it a plain tensor first") from error
    if array.element_type not in GPU_TYPES:
        raise ArrayError(
            f"{name}: expected elements of type {', '.join(GPU_TYPES)} on a GPU, found {array.element_type}; convert it first, "
            "or copy it to the host"
        )
    return array, array.element_type


def _to_numpy(value: Any, name: str) -> tuple[np.ndarray, str]:
    if _is_torch(value) and str(value.dtype) == "torch.bfloat16":
        return _numpy_of(_torch_on_host(value, name).contiguous().view(sys.modules["torch"].int16), name).view(
            np.uint16
        ), "bfloat16"
    array = plain(value, name)
    element_type = array.dtype.name
    if element_type == "bfloat16":  # of the package ml_dtypes
        return array.view(np.uint16), element_type
    if isinstance(array, BFloat16) and array.dtype == np.uint16:
        return array.view(np.ndarray), "bfloat16"
    if element_type not in ELEMENT_TYPES:
        raise ArrayError(f"{name}: expected elements of type {', '.join(ELEMENT_TYPES)}, found {element_type}; convert it first")
    return array.astype(array.dtype.newbyteorder("="), copy=False), element_type


def plain(value: Any, name: str) -> np.ndarray:
    """An array on the host of whatever type NumPy has. Raises ArrayError where it has none, or where a part would be lost."""
    if isinstance(value, np.ma.MaskedArray):
        raise ArrayError(f"{name}: is a masked array, and its mask would be lost; pass its .data, or .filled(...)")
    if isinstance(value, np.ndarray):
        return value
    if _is_torch(value):
        return _numpy_of(_torch_on_host(value, name), name)
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


def _numpy_of(tensor: Any, name: str) -> np.ndarray:
    """A tensor on the host as NumPy sees it."""
    try:
        return tensor.numpy()
    except (RuntimeError, TypeError, ValueError) as error:
        found = str(tensor.dtype).removeprefix("torch.")
        raise ArrayError(
            f"{name}: expected elements of type {', '.join(ELEMENT_TYPES)}, found {found}, which NumPy cannot share ({error}); "
            "convert it first"
        ) from error


def _as_it_is(tensor: Any, name: str) -> Any:
    """A tensor whose memory holds its values: without a gradient, and not marked as negative."""
    if str(tensor.layout) != "torch.strided":
        raise ArrayError(f"{name}: expected a dense tensor, found the layout {tensor.layout}; pass {name}.to_dense()")
    return tensor.detach().resolve_neg()


def _torch_on_host(value: Any, name: str) -> Any:
    """Of short vectors, which are read on the host wherever they lie, and of arrays that lie there."""
    tensor = _as_it_is(value, name)
    if tensor.device.type == "cpu":
        return tensor
    if tensor.device.type == "cuda":
        return tensor.cpu()
    raise BackendError(f"{name}: is a tensor on the device '{tensor.device}'; pass {name}.cpu()")
