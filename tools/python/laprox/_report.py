"""Reports as xarray Datasets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from ._errors import DumpError, FileError, UsageError

#: Dimensions that only reports of schedules have.
_DECODING = ("segment", "position")


def to_dataset(report: dict[str, Any]) -> xr.Dataset:
    """What the C++ library reports of a sweep, with the names and attributes of a report's file."""
    coordinates = {name: np.array(report[name], dtype=object) for name in ("dump", "policy", "budget")}
    coordinates |= {name: np.arange(report[name]) for name in ("layer", "kv_head", "query_head")}
    coordinates |= {name: np.arange(report[name]) for name in _DECODING if report[name] > 0}
    variables: dict[str, Any] = {}
    for name, (dimensions, counts, meaning, values) in report["arrays"].items():
        variables[name] = (dimensions, values.astype(np.int64) if counts else values, {"long_name": meaning})
    for name, dimension in (("dump_sha256", "dump"), ("dump_model", "dump"), ("policy_spec", "policy")):
        variables[name] = (dimension, np.array(report[name], dtype=object))
    if "kept_tokens" in report:
        variables["kept_start"] = (report["arrays"]["kept_count"][0], report["kept_start"])
        variables["kept_tokens"] = ("entry", report["kept_tokens"])
    return xr.Dataset(variables, coordinates, {"format": "laprox-report", "version": 1, **report["provenance"]})


def open_report(path: str | Path) -> xr.Dataset:
    """Reads a report that `laprox sweep -o` or laprox.save_report wrote. Raises FileError or DumpError."""
    import h5py

    if not Path(path).exists():
        raise FileError(f"{path}: no such file")
    try:
        with xr.open_dataset(path, engine="h5netcdf") as file:
            report = file.load()
        if report.attrs.get("format") != "laprox-report":
            raise DumpError(f"{path}: / attribute format: expected 'laprox-report', found {report.attrs.get('format')!r}")
        with h5py.File(path) as file:
            if "kept" in file:
                report["kept_start"] = (report.kept_count.dims, file["kept/start"][...])
                report["kept_tokens"] = ("entry", file["kept/tokens"][...])
    except OSError as error:
        raise DumpError(f"{path}: expected a laprox report, found something else ({error})") from error
    return report


def save_report(report: xr.Dataset, path: str | Path, *, replace: bool = False) -> None:
    """Writes a report in the layout of `laprox sweep -o`, which `laprox report` and laprox.open_report read.

    Raises UsageError where the file exists and not `replace`.
    """
    import h5py

    if Path(path).exists() and not replace:
        raise UsageError(f"{path}: exists; pass replace=True to replace it")
    text = h5py.string_dtype()
    with h5py.File(path, "w") as file:
        file.attrs.update(report.attrs)
        for name in ("dump", "policy", "budget", "layer", "kv_head", "query_head", *(name for name in _DECODING if name in report)):
            values = report[name].values
            file.create_dataset(name, data=values, dtype=text if values.dtype == object else np.int64).make_scale(name)
        for name, variable in report.data_vars.items():
            if name in ("kept_start", "kept_tokens"):
                continue
            dataset = file.create_dataset(name, data=variable.values, dtype=text if variable.dtype == object else variable.dtype)
            dataset.attrs.update(variable.attrs)
            _attach(file, dataset, variable.dims)
        if "kept_tokens" in report:
            start = file.create_dataset("kept/start", data=report.kept_start.values)
            _attach(file, start, report.kept_start.dims)
            file.create_dataset("kept/tokens", data=report.kept_tokens.values.astype(np.int32), compression="gzip", shuffle=True)


def kept_tokens(report: xr.Dataset, *, policy: str, budget: str, layer: int, kv_head: int, dump: int = 0) -> np.ndarray:
    """Ascending positions of the context tokens that one KV head keeps; the report must have been made with save_kept."""
    if "kept_tokens" not in report:
        raise UsageError("this report has no kept tokens; make it with save_kept=True (--save-kept on the command line)")
    for name, value in (("policy", policy), ("budget", budget)):
        if value not in report[name].values:
            raise UsageError(f"the report has no {name} '{value}'; it has {', '.join(map(str, report[name].values))}")
    cell = {
        "dump": dump,
        "policy": list(report.policy.values).index(policy),
        "budget": list(report.budget.values).index(budget),
        "layer": layer,
        "kv_head": kv_head,
    }
    start, count = int(report.kept_start.isel(cell)), int(report.kept_count.isel(cell))
    return report.kept_tokens.values[start : start + count] if start >= 0 else np.empty(0, np.int32)


def _attach(file: Any, dataset: Any, dimensions: Any) -> None:
    for axis, dimension in enumerate(dimensions):
        dataset.dims[axis].attach_scale(file[dimension])
