"""What the command line refuses of a report, Python refuses too, in the same words; and what cannot be read again is not saved."""

import os
import random
import subprocess
import sys
import warnings

import h5py
import laprox
import numpy as np
import pytest
import xarray as xr
from conftest import arrays, layer, write_dump
from test_refused_dumps import table_of

OF_THE_COMMAND_LINE = table_of("test_report_files")


@pytest.fixture(scope="module")
def schedule_report():
    """15 judging queries in 20 segments, so that some have none; two dumps of different numbers of layers."""
    prompts = [[layer(seed, 81) for seed in range(2)], [layer(3, 81)]]
    return laprox.sweep(prompts, ["h2o", "recent"], [20, 30], schedule="every:4", segments=20, save_kept=True)


@pytest.fixture(scope="module")
def report():
    return laprox.sweep([[layer(seed) for seed in range(2)], [layer(3)]], ["h2o", "recent"], [20, 30], save_kept=True)


def attribute(name, value):
    return lambda file: file.attrs.__setitem__(name, value)


def without(name):
    return lambda file: file.__delitem__(name)


def put(name, value, at=...):
    return lambda file: file[name].__setitem__(at, value)


def instead(name, value):
    def change(file):
        del file[name]
        file[name] = value

    return change


def no_list(file):
    del file["relative_error"].attrs["DIMENSION_LIST"]
    file["relative_error"].attrs["DIMENSION_LIST"] = 7


def without_scales(file):
    values = file["cosine_mean"][()]
    del file["cosine_mean"]
    file["cosine_mean"] = values


DAMAGE = {
    "no format": lambda file: file.attrs.__delitem__("format"),
    "another format": attribute("format", "laprox-dump"),
    "a format that is a number": attribute("format", 3),
    "version 2": attribute("version", 2),
    "no version": lambda file: file.attrs.__delitem__("version"),
    "a version that is a text": attribute("version", "1"),
    "two texts in an attribute": attribute("backend", ["cpu", "cuda"]),
    **{
        f"{name} missing": without(name)
        for name in ("model_relative_error", "relative_error", "kept_count", "budget_tokens", "policy", "dump_sha256", "layer")
    },
    **{f"{name} that is one number": instead(name, 1.0) for name in ("model_relative_error", "kept_count", "policy", "layer")},
    **{f"{name} that is a text": instead(name, "text") for name in ("model_relative_error", "kept_count", "policy", "layer")},
    "NaN everywhere": put("model_relative_error", np.nan),
    "NaN in a layer that is there": put("retained_mass", np.nan, (0, 1, 0, 1)),
    "NaN of one policy": put("query_error_p99", np.nan, (0, 1, 0, 1)),
    "infinity": put("model_relative_error", np.inf, (0, 1, 0)),
    "counts that are floats": OF_THE_COMMAND_LINE.counts_as_floats,
    "a negative budget": put("budget_tokens", -7),
    "a count below -1": put("kept_count", -2, (0, 0, 0, 0, 0)),
    "a policy that is none": put("identical_to", 2**60),
    "heads without an error": put("head_relative_error", np.nan, (0, slice(None), 0, 0, 1)),
    "a schedule without its figures": attribute("schedule", "step"),
    "a list of dimensions that is none": no_list,
    "an array without dimensions": without_scales,
    "an array of another shape": lambda file: [without("policy_spec")(file), file.__setitem__("policy_spec", ["a", "b", "c"])],
    "a group among the arrays": lambda file: file.create_group("more"),
    "kept tokens out of range": put("kept/tokens", 10**6, 3),
    "kept tokens twice": put("kept/tokens", 0),
    "places beyond the kept tokens": put("kept/start", 10**6, (0, 0, 0, 0, 0)),
    "no kept tokens": without("kept/tokens"),
}
#: The other side is told of another element, or has other words for what its HDF5 says.
OWN_WORDS = {"a list of dimensions that is none", "an array without dimensions"}


@pytest.mark.parametrize("how", DAMAGE)
def test_a_damaged_report_is_refused_in_the_same_words(report, tmp_path, how):
    path = tmp_path / "report.h5"
    laprox.save_report(report, path)
    with h5py.File(path, "r+") as file:
        DAMAGE[how](file)
    with warnings.catch_warnings(), pytest.raises(laprox.DumpError) as refusal:
        warnings.simplefilter("error")
        laprox.open_report(path)
    assert str(refusal.value).startswith(f"{path}: ")
    if binary := os.environ.get("LAPROX_BIN"):
        done = subprocess.run([binary, "report", path], capture_output=True, text=True)
        assert done.returncode == 3 and (how in OWN_WORDS or str(refusal.value) in done.stderr), (str(refusal.value), done.stderr)


@pytest.mark.parametrize("name", ["model_segment_error", "segment_error"])
def test_a_segment_without_queries_has_no_error_and_any_other_has_one(schedule_report, tmp_path, name):
    path = tmp_path / "report.h5"
    empty = schedule_report.segment_start < 0
    assert empty.any() and not empty.all()
    without = schedule_report.assign({name: schedule_report[name].where(~empty)})
    laprox.save_report(without, path)
    xr.testing.assert_identical(laprox.open_report(path)[name].drop_attrs(), without[name].drop_attrs())
    with pytest.raises(laprox.UsageError, match=f"/{name}: expected a number for every segment that has queries, found nan"):
        laprox.save_report(without.assign({name: without[name].where(without.segment != 0)}), tmp_path / "other.h5")
    assert os.listdir(tmp_path) == ["report.h5"]


def test_what_is_no_report_is_refused(tmp_path):
    dump = write_dump(tmp_path / "dump.h5", [arrays()])
    (tmp_path / "junk.h5").write_bytes(b"no report")
    (tmp_path / "folder.h5").mkdir()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(laprox.DumpError, match='format: expected "laprox-report", found "laprox-dump"; is this a report'):
            laprox.open_report(dump)
        for name in ("junk", "folder"):
            with pytest.raises(laprox.DumpError, match=f"{name}.h5: file: expected a laprox report"):
                laprox.open_report(tmp_path / f"{name}.h5")
        with pytest.raises(laprox.FileError, match="no such file"):
            laprox.open_report(tmp_path / "none.h5")


def test_flipped_bytes_are_refused_or_read(report, tmp_path):
    path, rng = tmp_path / "report.h5", random.Random(3)
    laprox.save_report(report, path)
    sound = path.read_bytes()
    for _ in range(40):
        damaged = bytearray(sound)
        for _ in range(rng.choice((1, 1, 2, 8))):
            damaged[rng.randrange(min(len(damaged), rng.choice((600, 4000, len(damaged)))))] = rng.randrange(256)
        path.write_bytes(damaged)
        try:
            laprox.open_report(path)
        except laprox.FileError:
            continue


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda report: 5, "expected an xarray Dataset that laprox.sweep made, found int"),
        (lambda report: report.relative_error, "found DataArray"),
        (lambda report: xr.Dataset(), "found a Dataset that cannot be written"),
        (lambda report: report.assign(note=("policy", [object(), object()])), "cannot be written"),
        (lambda report: report.assign_attrs(mine={"a": 1}), "cannot be written"),
        (lambda report: report.drop_vars("model_relative_error"), "/model_relative_error: expected numbers over"),
        (lambda report: report.assign(retained_mass=report.retained_mass * np.nan), "/retained_mass: expected a number in every"),
        (lambda report: report.assign_attrs(version=2), "/ attribute version: expected 1, found 2"),
    ],
)
def test_what_cannot_be_read_again_is_not_saved_and_costs_nobody_a_report(report, tmp_path, change, message):
    old = tmp_path / "old.h5"
    laprox.save_report(report, old)
    before = old.read_bytes()
    for path in (old, tmp_path / "new.h5"):
        with pytest.raises(laprox.UsageError, match=message):
            laprox.save_report(change(report), path, replace=True)
    assert old.read_bytes() == before and os.listdir(tmp_path) == ["old.h5"]


def test_where_nothing_can_be_written_is_said(report, tmp_path):
    with pytest.raises(laprox.FileError, match="folder"):
        laprox.save_report(report, tmp_path / "none" / "report.h5")
    with pytest.raises(laprox.FileError, match="folder"):
        laprox.save_report(report, tmp_path, replace=True)
    link = tmp_path / "link.h5"
    link.symlink_to(tmp_path / "nowhere.h5")
    with pytest.raises(laprox.UsageError, match="exists"):
        laprox.save_report(report, link)
    assert os.listdir(tmp_path) == ["link.h5"]


@pytest.mark.parametrize("size", [20_000, 60_000])
def test_a_full_disk_costs_a_message_alone(report, tmp_path, size):
    laprox.save_report(report, tmp_path / "r.h5")
    before = (tmp_path / "r.h5").read_bytes()
    program = (
        "import resource, signal, sys, laprox\n"
        "report = laprox.open_report(sys.argv[1])\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2)\n"
        "try:\n"
        "    laprox.save_report(report, sys.argv[1], replace=True)\n"
        "except laprox.FileError as error:\n"
        "    print(error)\n"
    )
    limit = min(size, len(before) - 1)
    done = subprocess.run([sys.executable, "-c", program, tmp_path / "r.h5", str(limit)], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.endswith("cannot be written: File too large\n") and not done.stderr
    assert (tmp_path / "r.h5").read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_selected_layers_are_found_by_their_numbers_and_not_saved_under_others(report, tmp_path):
    some = report.isel(layer=[1], kv_head=[1, 0], policy=[1])
    for head in (0, 1):
        asked = {"policy": "recent", "budget": 20, "layer": 1, "kv_head": head}
        np.testing.assert_array_equal(laprox.kept_tokens(some, **asked), laprox.kept_tokens(report, **asked))
    with pytest.raises(laprox.UsageError, match="no layer '0'; it has 1"):
        laprox.kept_tokens(some, policy="recent", budget=20, layer=0, kv_head=0)
    for selected, words in ((some, "layer: a report's file numbers them from 0"), (report.isel(dump=0), r"isel\(dump=\[0\]\)")):
        with pytest.raises(laprox.UsageError, match=words):
            laprox.save_report(selected, tmp_path / "some.h5")
    laprox.save_report(report, tmp_path / "ours.h5")
    for found in (np.bytes_(b"laprox-report"), "laprox-report"):  # as the command line writes it, and as Python does
        with h5py.File(tmp_path / "ours.h5", "a") as file:
            file.attrs["format"] = found
        laprox.save_report(report, tmp_path / "ours.h5", replace=True)
    with h5py.File(tmp_path / "ours.h5", "a") as file:
        file.attrs["format"] = ["laprox-report", "x"]
    with pytest.raises(laprox.FileError, match="found another kind of file"):
        laprox.save_report(report, tmp_path / "ours.h5", replace=True)
    with pytest.raises(laprox.FileError, match="only a file of the format 'laprox-report' is replaced"):
        laprox.save_report(report, write_dump(tmp_path / "dump.h5", [arrays()]), replace=True)


def test_neither_a_link_nor_a_dump_of_its_own_is_replaced(tmp_path):
    dump, link = tmp_path / "dump.h5", tmp_path / "link.h5"
    write_dump(dump, [arrays(0)])
    before = dump.read_bytes()
    found = laprox.sweep(dump, "recent", 20)
    link.symlink_to(dump)
    with pytest.raises(laprox.UsageError, match="is read"):
        laprox.save_report(found, dump, replace=True)
    with pytest.raises(laprox.FileError, match="is a link"):
        laprox.save_report(found, link, replace=True)
    with pytest.raises(laprox.UsageError, match="folder"):
        laprox.save_report(found, f"{tmp_path}/new/")
    assert dump.read_bytes() == before and sorted(os.listdir(tmp_path)) == ["dump.h5", "link.h5"]


@pytest.mark.parametrize("places", [[3, 2, 1], [0, 2, 3], [1, 3], [3, 0, 2, 1]])
def test_selected_policies_are_the_same_as_those_that_keep_the_same(tmp_path, places):
    policies = ["knorm", "snapkv:window=4", "h2o", "snapkv+ada:window=4,floor=1"]  # the second and the last keep the same
    laprox.save_report(laprox.sweep(layer(0), policies, 20).isel(policy=places), tmp_path / "report.h5")
    found = laprox.open_report(tmp_path / "report.h5")
    names, twins = [str(policy) for policy in found.policy.values], found.identical_to.values.ravel()
    twin_of = {name: names[twin] for name, twin in zip(names, twins, strict=True) if twin >= 0}
    same = [name for name in names if name.startswith("snapkv")]
    assert twin_of == ({same[1]: same[0]} if len(same) == 2 else {})


def test_labels_of_numpy_s_own_text_type_are_saved(report, tmp_path):
    labels = [f"{policy} mine" for policy in report.policy.values]
    laprox.save_report(report.assign_coords(policy=labels), tmp_path / "report.h5")
    assert laprox.open_report(tmp_path / "report.h5").policy.values.tolist() == labels


def test_notes_in_a_report_survive_the_disk(report, tmp_path):
    noted = report.assign_attrs(mine="a note", number=3)
    noted.relative_error.attrs["units"] = "1"
    laprox.save_report(noted, tmp_path / "report.h5")
    again = laprox.open_report(tmp_path / "report.h5")
    assert again.attrs["mine"] == "a note" and again.attrs["number"] == 3
    assert again.relative_error.attrs == noted.relative_error.attrs
    laprox.save_report(again, tmp_path / "report.h5", replace=True)
    xr.testing.assert_identical(laprox.open_report(tmp_path / "report.h5"), again)
