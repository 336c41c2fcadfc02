"""Reports that are damaged, incomplete or not what they seem are refused in one line."""

import h5py
import numpy as np
import pytest
from refusals import refused


@pytest.fixture()
def report(laprox, dump, tmp_path):
    path = tmp_path / "report.h5"
    laprox.sweep(dump, ["recent", "snapkv:window=4"], [12], "-o", path)
    return path


@pytest.mark.parametrize(
    "name", ["model_relative_error", "relative_error", "kept_count", "budget_tokens", "policy", "dump_sha256", "layer"]
)
@pytest.mark.parametrize("fault", ["missing", "scalar", "text"])
def test_reports_with_parts_missing_or_of_another_kind_are_refused(laprox, report, name, fault):
    with h5py.File(report, "r+") as file:
        del file[name]
        if fault == "scalar":
            file[name] = 1.0
        if fault == "text":
            file[name] = "text"
    for form in ("table", "csv", "json"):
        refused(laprox("report", report, "--format", form, expect=3), str(report))


@pytest.mark.parametrize("trusted", [(), ("--trusted",)], ids=["rehearsed", "trusted"])
def test_a_report_whose_dimension_list_is_no_list_is_refused(laprox, report, trusted):
    """HDF5 reads this attribute without a look at its type."""
    with h5py.File(report, "r+") as file:
        del file["relative_error"].attrs["DIMENSION_LIST"]
        file["relative_error"].attrs["DIMENSION_LIST"] = 7
    refused(laprox(*trusted, "report", report, expect=3), str(report))


def test_indices_of_a_report_point_at_its_policies(laprox, report):
    with h5py.File(report, "r+") as file:
        file["identical_to"][...] = 2**60
    assert "/identical_to: expected -1 to" in laprox("report", report, expect=3).stderr


def test_a_damaged_class_of_a_scale_is_freed_once(laprox, report):
    """HDF5 1.10 frees it twice where it is asked for the scale's name."""
    table = laprox("report", report).stdout
    with h5py.File(report, "r+") as file:
        file["layer"].attrs.create("CLASS", np.bytes_("DIMENRION_SCALE"), dtype="S16")
    assert laprox("report", report).stdout == table


def counts_as_floats(file):
    counts = file["kept_count"]
    dimensions, values = [scale[0].name for scale in counts.dims], counts[()]
    del file["kept_count"]
    file["kept_count"] = values * 1e300
    for dimension, name in zip(file["kept_count"].dims, dimensions):
        dimension.attach_scale(file[name])


def negative_budget(file):
    file["budget_tokens"][...] = -7


def cell_without_a_number(file):
    file["model_relative_error"][0, 0, 0] = np.nan


def layer_without_a_number(file):
    file["retained_mass"][0, 1, 0, 1] = np.nan


def later_figure_without_a_number(file):
    file["query_error_p99"][0, 1, 0, 1] = np.nan


def infinite_error(file):
    file["model_relative_error"][0, 1, 0] = np.inf


@pytest.mark.parametrize(
    "change, word",
    [
        (infinite_error, "finite numbers"),
        (counts_as_floats, "integers"),
        (negative_budget, "-7"),
        (cell_without_a_number, "nan"),
        (layer_without_a_number, "nan"),
        (later_figure_without_a_number, "a number for every policy or for none"),
    ],
)
def test_numbers_of_a_report_are_checked(laprox, report, change, word):
    with h5py.File(report, "r+") as file:
        change(file)
    refused(laprox("report", report, expect=3), str(report), word)
