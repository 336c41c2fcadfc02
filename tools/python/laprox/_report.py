"""Reports as xarray Datasets."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from ._arguments import file_name, whole
from ._errors import DumpError, Error, FileError, UsageError
from ._files import check_kind, replacing
from ._hdf5 import Reader
from ._rehearsal import rehearse
from ._report_layout import DECODING, FORMAT, LABELS, NUMBERED, TEXTS, VERSION, Contents, read_contents

_KIND = "a laprox report"
_MEANT = "policies"  #: attribute of identical_to in memory


def to_dataset(report: dict[str, Any]) -> xr.Dataset:
    """What the C++ library reports of a sweep, with the names and attributes of a report's file."""
    coordinates = {name: np.array(report[name], dtype=object) for name in LABELS}
    coordinates |= {name: np.arange(report[name]) for name in NUMBERED}
    coordinates |= {name: np.arange(report[name]) for name in DECODING if report[name] > 0}
    variables: dict[str, Any] = {}
    for name, (dimensions, counts, meaning, values) in report["arrays"].items():
        variables[name] = (dimensions, values.astype(np.int64) if counts else values, {"long_name": meaning})
    for name, dimension in TEXTS.items():
        variables[name] = (dimension, np.array(report[name], dtype=object))
    if "kept_tokens" in report:
        variables["kept_start"] = (report["arrays"]["kept_count"][0], report["kept_start"])
        variables["kept_tokens"] = ("entry", report["kept_tokens"])
    _remember_policies(variables, coordinates)
    return xr.Dataset(variables, coordinates, {"format": FORMAT, "version": VERSION, **report["provenance"]})


def open_report(path: str | Path) -> xr.Dataset:
    """Reads a report that `laprox sweep -o` or laprox.save_report wrote, and checks it as `laprox report` does.

    Raises FileError where there is none, and DumpError where it breaks the format.
    """
    path = file_name(path, "path")
    rehearse(path, _KIND, lambda: _read(path))
    found = _read(path)
    coordinates = {name: np.array(found.labels[name], dtype=object) for name in LABELS}
    coordinates |= {name: np.arange(extent) for name, extent in found.extents.items()}
    variables: dict[str, Any] = {name: (array.dimensions, array.values, array.attributes) for name, array in found.arrays.items()}
    variables |= {name: (dimension, np.array(found.labels[name], dtype=object)) for name, dimension in TEXTS.items()}
    if found.kept_start is not None:
        variables["kept_start"] = (found.arrays["kept_count"].dimensions, found.kept_start)
        variables["kept_tokens"] = ("entry", found.kept_tokens)
    _remember_policies(variables, coordinates)
    return xr.Dataset(variables, coordinates, found.attributes)


def _remember_policies(variables: dict[str, Any], coordinates: dict[str, Any]) -> None:
    """identical_to counts policies: of what is later selected from a Dataset, this says which ones it meant."""
    if "identical_to" in variables:
        variables["identical_to"][2][_MEANT] = [str(policy) for policy in coordinates["policy"]]


def save_report(report: xr.Dataset, path: str | Path, *, replace: bool = False) -> None:
    """Writes a report in the layout of `laprox sweep -o`, which `laprox report` and laprox.open_report read.

    The file appears when it is whole; what is there stays as it is where that fails. Raises UsageError where the file exists and
    not `replace`, or where `report` is no report that could be read again; FileError where the file cannot be written.
    """
    if not isinstance(report, xr.Dataset):
        raise UsageError(f"report: expected an xarray Dataset that laprox.sweep made, found {type(report).__name__}")
    path = file_name(path, "path")
    if os.path.lexists(path) and not replace:
        raise UsageError(f"{path}: exists; pass replace=True to replace it")
    if os.path.islink(path):
        raise FileError(f"{path}: is a link; name the file that it leads to, or choose another name")
    if path.endswith(os.sep):
        raise UsageError(f"{path}: expected a file's name, found that of a folder")
    _check_whole(report)
    dumps = [str(dump) for dump in report["dump"].values] if "dump" in report else []
    with replacing(path, dumps) as temporary:
        if os.path.isfile(path):
            check_kind(path, FORMAT)
        try:
            _write(report, temporary)
            _read(temporary)
        except DumpError as error:
            raise UsageError(f"report: cannot be saved, because it could not be read again: {_without_path(error)}") from error
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            if isinstance(error, Error):
                raise
            raise UsageError(
                f"report: expected what laprox.sweep made, found a Dataset that cannot be written ({error})"
            ) from error


def _check_whole(report: xr.Dataset) -> None:
    """Raises UsageError where a report's file could not say what was selected: it numbers layers and heads from 0."""
    for name in (*LABELS, *NUMBERED, *DECODING):
        if name not in report.coords:
            continue
        if report[name].dims != (name,):
            raise UsageError(
                f"report: expected the dimension {name}, found one selected {name}; select with a list, isel({name}=[0])"
            )
        values = report[name].values
        if name not in LABELS and list(values) != list(range(len(values))):
            raise UsageError(
                f"report: {name}: a report's file numbers them from 0 on, found {', '.join(map(str, values[:8]))}; save the whole "
                "report, and select from what open_report gives"
            )


def _read(path: str | Path) -> Contents:
    reader = Reader(path, _KIND)
    try:
        return read_contents(reader)
    finally:
        reader.close()


def _without_path(error: DumpError) -> str:
    """The message without the temporary's name, which says nothing to anybody."""
    return str(error).partition(": ")[2]


def _twins(report: xr.Dataset) -> np.ndarray:
    """identical_to, counted in the policies that are there: some may have gone since, or stand in another order."""
    variable = report["identical_to"]
    there = [str(policy) for policy in report["policy"].values]
    meant = [str(policy) for policy in variable.attrs.get(_MEANT, there)]
    if meant == there or "policy" not in variable.dims:
        return variable.values
    found = variable.values.copy()
    by_policy = np.moveaxis(found, variable.dims.index("policy"), 0)
    for cell in np.ndindex(by_policy.shape[1:]):
        first: dict[str, int] = {}
        for place, name in enumerate(there):
            twin = int(by_policy[(place, *cell)])
            root = first.setdefault(meant[twin] if 0 <= twin < len(meant) else name, place)
            by_policy[(place, *cell)] = -1 if root == place else root
    return found


def _write(report: xr.Dataset, path: Path) -> None:
    import h5py

    text = h5py.string_dtype()
    # In memory first: where a disk is full, HDF5's own writing ends the process.
    with h5py.File(path, "w", driver="core", backing_store=False) as file:
        file.attrs.update(report.attrs)
        for name in (*LABELS, *NUMBERED, *(name for name in DECODING if name in report)):
            values = report[name].values.astype(object if name in LABELS else np.int64)
            file.create_dataset(name, data=values, dtype=text if name in LABELS else np.int64).make_scale(name)
        for name, variable in report.data_vars.items():
            if name in ("kept_start", "kept_tokens"):
                continue
            dtype = text if variable.dtype.kind in "OU" else variable.dtype
            values = _twins(report) if name == "identical_to" else variable.values
            dataset = file.create_dataset(name, data=values.astype(object) if dtype is text else values, dtype=dtype)
            dataset.attrs.update({key: value for key, value in variable.attrs.items() if key != _MEANT})
            _attach(file, dataset, variable.dims)
        if "kept_tokens" in report:
            start = file.create_dataset("kept/start", data=report.kept_start.values)
            _attach(file, start, report.kept_start.dims)
            file.create_dataset("kept/tokens", data=report.kept_tokens.values.astype(np.int32), compression="gzip", shuffle=True)
        file.flush()
        path.write_bytes(file.id.get_file_image())


def kept_tokens(report: xr.Dataset, *, policy: str, budget: str | int, layer: int, kv_head: int, dump: int = 0) -> np.ndarray:
    """Ascending positions of the context tokens that one KV head keeps; the report must have been made with save_kept.

    Layer and KV head are those of the report's coordinates, also of a report from which some were selected.

    Raises UsageError where the report has no such policy, budget, layer, KV head or dump.
    """
    if "kept_tokens" not in report:
        raise UsageError("this report has no kept tokens; make it with save_kept=True (--save-kept on the command line)")
    whole(dump, "dump", 0, np.atleast_1d(report["dump"].values).size - 1)
    cell = {"dump": dump}
    for name, value in (("policy", policy), ("budget", str(budget)), ("layer", whole(layer, "layer", 0)), ("kv_head", kv_head)):
        known = list(np.atleast_1d(report[name].values))
        if value not in known:
            raise UsageError(f"the report has no {name} '{value}'; it has {', '.join(map(str, known))}")
        cell[name] = known.index(value)
    cell = {name: number for name, number in cell.items() if name in report.kept_start.dims}  # others are selected already
    start, count = int(report.kept_start.isel(cell)), int(report.kept_count.isel(cell))
    return report.kept_tokens.values[start : start + count].copy() if start >= 0 else np.empty(0, np.int32)


def _attach(file: Any, dataset: Any, dimensions: Any) -> None:
    for axis, dimension in enumerate(dimensions):
        dataset.dims[axis].attach_scale(file[dimension])
