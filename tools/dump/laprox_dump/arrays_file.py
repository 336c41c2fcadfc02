"""The named arrays of a .npz or .safetensors file, each checked for what it is asked for: a tensor, positions, one number."""

import math
import zipfile

import numpy as np
import torch

from .errors import InputError, first_line
from .files import require_regular

TEXTS = ("model", "source", "prompt")
LARGEST = 2**53  # beyond it a float64 cannot hold every whole number


class Arrays:
    """Named arrays of a file, read one at a time: `names`, `texts` and `tensor(name)`, which is None for a missing one."""

    def __init__(self, path: str):
        self.path = path
        require_regular(path)
        try:
            self._open(path)
        except InputError:
            raise
        except Exception as e:  # zipfile, numpy and safetensors each throw their own kinds
            raise InputError(f"{path}: cannot be read as arrays: {first_line(e)}") from e

    def _open(self, path: str) -> None:
        if path.endswith(".safetensors"):
            from safetensors import safe_open

            file = safe_open(path, framework="pt")
            self.names, self._read = set(file.keys()), file.get_tensor
            self.texts = {k: v for k, v in (file.metadata() or {}).items() if k in TEXTS}
            return
        file = np.load(path, allow_pickle=False)
        if not isinstance(file, np.lib.npyio.NpzFile):
            raise InputError(f"{path}: expected a .npz archive of named arrays (numpy.savez), found one array without a name")
        twice = [name for name in set(file.files) if file.files.count(name) > 1]
        if twice:
            raise InputError(f"{path}: {min(twice)}: occurs {file.files.count(min(twice))} times in the archive")
        self.names = set(file.files) - set(TEXTS)
        self._read = lambda name: file[name]
        self.texts = {k: self._text(k, file[k]) for k in TEXTS if k in file.files}

    def _text(self, name: str, found: np.ndarray | bytes) -> str:
        if isinstance(found, bytes):
            raise InputError(f"{self.path}: {name}: expected one text, found {len(found)} bytes that are no array")
        if found.dtype.kind != "U" or found.size != 1:
            raise InputError(f"{self.path}: {name}: expected one text, found shape {list(found.shape)} of {found.dtype}")
        return str(found.reshape(-1)[0])

    def _raw(self, name: str) -> np.ndarray | torch.Tensor | None:
        if name not in self.names:
            return None
        try:
            found = self._read(name)
        except (Exception, zipfile.BadZipFile) as e:
            raise InputError(f"{self.path}: {name}: cannot be read: {first_line(e)}") from e
        if isinstance(found, bytes):  # numpy's answer for an entry of an archive that does not begin as an array does
            raise InputError(f"{self.path}: {name}: expected an array, found {len(found)} bytes that are none")
        return found

    def tensor(self, name: str) -> torch.Tensor | None:
        """The array as a tensor; uint16 of numpy is bfloat16. Throws InputError for a damaged one or one of an unknown type."""
        found = self._raw(name)
        if found is None or isinstance(found, torch.Tensor):
            return found
        try:
            if found.dtype == np.uint16:
                return torch.from_numpy(found.view(np.int16).copy()).view(torch.bfloat16)
            return torch.from_numpy(np.ascontiguousarray(found, dtype=found.dtype.newbyteorder("=")).reshape(found.shape))
        except (TypeError, ValueError) as e:
            raise InputError(f"{self.path}: {name}: holds {found.dtype}, which is no type of tensors") from e

    def _plain(self, name: str) -> np.ndarray | None:
        """The array in numpy, whole and floating-point numbers only: uint16 stays a number here."""
        found = self._raw(name)
        if isinstance(found, torch.Tensor):
            found = (found.float() if found.is_floating_point() else found).numpy()
        if found is not None and found.dtype.kind not in "iuf":
            raise InputError(f"{self.path}: {name}: expected real numbers, found {found.dtype}")
        return found

    def number(self, name: str, default: float) -> float:
        """An array of one finite element, `default` if it is missing. Throws InputError."""
        found = self._plain(name)
        if found is None:
            return default
        if found.size != 1:
            raise InputError(f"{self.path}: {name}: expected one number, found shape {list(found.shape)}")
        value = float(found.reshape(-1)[0])
        if not math.isfinite(value):
            raise InputError(f"{self.path}: {name}: expected a finite number, found {value}")
        return value

    def whole(self, name: str, default: int | None) -> int | None:
        """An array of one whole number >= 0, which may be stored as a float; nothing is cut off. Throws InputError."""
        found = self.number(name, math.nan)
        if math.isnan(found):
            return default
        if not found.is_integer() or not 0 <= found < LARGEST:
            raise InputError(f"{self.path}: {name}: expected a whole number >= 0, found {found:.17g}")
        return int(found)

    def positions(self, name: str) -> torch.Tensor | None:
        """An array of whole numbers as int64. Throws InputError."""
        found = self._plain(name)
        if found is None:
            return None
        if found.dtype.kind == "f":
            raise InputError(f"{self.path}: {name}: expected whole numbers, found {found.dtype}")
        if found.size and int(found.max()) > LARGEST:
            raise InputError(f"{self.path}: {name}: expected numbers below 2^53, found {int(found.max())}")
        return torch.from_numpy(found.astype(np.int64))
