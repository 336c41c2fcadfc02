"""Texts of variable length lie in a file's global heap, which HDF5 1.10 takes on trust: a damaged one overwrites memory."""

import re
import shutil
import struct

import dumps
import h5py
import numpy as np
import pytest
import xarray

BACKEND = "cpu, at a length that no other text of the file has"
OBJECT = struct.Struct("<HHIQ")  # number, references, reserved, size
LIST = struct.Struct("<IQI")  # length, address of the collection, number of the object


@pytest.fixture(scope="module")
def report(laprox, tmp_path_factory):
    folder = tmp_path_factory.mktemp("heap")
    dump = dumps.write_dump(folder / "dump.h5", context=40, tokens=44, heads=[(4, 2), (2, 2)], seed=3)
    laprox("sweep", dump, "--policy", "recent,knorm,snapkv:window=4", "--budget", "12,20", "--quiet", "-o", folder / "report.h5")
    return folder / "report.h5"


def with_texts(source, path):
    """The report with texts of variable length, as netCDF4 and h5py write them."""
    shutil.copy(source, path)
    with h5py.File(path, "r+") as file:
        for name in ("policy_spec", "dump_model"):
            values = file[name].asstr()[()]
            del file[name]
            file[name] = np.array(values, object)
        file.attrs["backend"] = BACKEND
    return path


def lists_of(path, name):
    """Where the stored lists of a dataset begin in the file."""
    with h5py.File(path) as file:
        return [file[name].id.get_offset() + i * LIST.size for i in range(len(file[name]))]


def attribute_list(path, text):
    """Where a file's only list of that many characters begins, which is an attribute's."""
    content = path.read_bytes()
    at = [i for i in range(len(content) - LIST.size) if content[i : i + 4] == struct.pack("<I", len(text))]
    return next(i for i in at if content[(heap := LIST.unpack_from(content, i)[1]) : heap + 4] == b"GCOL")


def object_of(content, place):
    """(where its header begins, its list) of the heap object that the list at `place` names."""
    length, heap, index = LIST.unpack_from(content, place)
    at = heap + 16
    while (found := OBJECT.unpack_from(content, at))[0] != index:
        at += OBJECT.size + (found[3] + 7) // 8 * 8
    return at, (length, heap, index)


def shorter_list(content, place):
    length, heap, index = LIST.unpack_from(content, place)
    LIST.pack_into(content, place, length - 3, heap, index)


def no_such_object(content, place):
    length, heap, _ = LIST.unpack_from(content, place)
    LIST.pack_into(content, place, length, heap, 60000)


def no_heap(content, place):
    length, heap, index = LIST.unpack_from(content, place)
    LIST.pack_into(content, place, length, heap - 8, index)


def heap_beyond_the_end(content, place):
    length, _, index = LIST.unpack_from(content, place)
    LIST.pack_into(content, place, length, len(content) - 8, index)


def longer_object(content, place):
    at, _ = object_of(content, place)
    struct.pack_into("<Q", content, at + 8, struct.unpack_from("<Q", content, at + 8)[0] + 1)


def endless_object(content, place):
    at, _ = object_of(content, place)
    struct.pack_into("<Q", content, at + 8, 2**64 - 16)


def renumbered_object(content, place):
    at, (_, _, index) = object_of(content, place)
    struct.pack_into("<H", content, at, index + 1)


def free_space_too_long(content, place):
    _, heap, _ = LIST.unpack_from(content, place)
    at = heap + 16
    while (found := OBJECT.unpack_from(content, at))[0] != 0:
        at += OBJECT.size + (found[3] + 7) // 8 * 8
    struct.pack_into("<Q", content, at + 8, found[3] + 8)


OF_LISTS = (shorter_list, no_such_object, no_heap, heap_beyond_the_end, longer_object)
OF_HEAPS = (endless_object, renumbered_object, free_space_too_long)  # and so of every text in them


def check_refused(laprox, path, name=""):
    # Without the rehearsal, in which some of them crash: what is checked is what the process itself does.
    done = laprox("--trusted", "report", path, expect=3)
    assert f"{name}: expected text or lists of variable length in a sound heap" in done.stderr, done.stderr
    assert str(path) in done.stderr and done.stdout == ""
    laprox("report", path, expect=3)


@pytest.mark.parametrize("damage", [*OF_LISTS, *OF_HEAPS])
def test_a_text_in_a_damaged_heap_is_refused(laprox, report, tmp_path, damage):
    path = with_texts(report, tmp_path / "report.h5")
    content, place = bytearray(path.read_bytes()), lists_of(path, "policy_spec")[0]
    damage(content, place)
    path.write_bytes(content)
    check_refused(laprox, path, "/policy_spec" if damage in OF_LISTS else "")


@pytest.mark.parametrize("damage", [shorter_list, no_such_object, longer_object])
def test_an_attribute_in_a_damaged_heap_is_refused(laprox, report, tmp_path, damage):
    path = with_texts(report, tmp_path / "report.h5")
    content, place = bytearray(path.read_bytes()), attribute_list(path, BACKEND)
    damage(content, place)
    path.write_bytes(content)
    check_refused(laprox, path, "/ attribute backend")


@pytest.mark.parametrize("damage", [no_such_object, longer_object, no_heap])
def test_dimension_scales_in_a_damaged_heap_are_refused(laprox, report, tmp_path, damage):
    """They are lists of references in every report."""
    path = tmp_path / "report.h5"
    shutil.copy(report, path)
    content = bytearray(path.read_bytes())
    heaps = [found.start() for found in re.finditer(b"GCOL", content)]
    places = [i for heap in heaps for i in range(len(content) - LIST.size) if content[i : i + 12] == struct.pack("<IQ", 1, heap)]
    for place in places[:1] if damage is longer_object else places:  # lists of headers that were moved are there as well
        damage(content, place)
    path.write_bytes(content)
    done = laprox("--trusted", "report", path, expect=3)
    assert "attribute DIMENSION_LIST: expected text or lists of variable length in a sound heap" in done.stderr, done.stderr


def test_sound_heaps_are_read(laprox, report, tmp_path):
    expected = laprox("report", report, "--format", "csv").stdout
    assert laprox("report", with_texts(report, tmp_path / "texts.h5"), "--format", "csv").stdout == expected


def test_a_heap_of_many_collections_is_read(laprox, report, tmp_path):
    """Collections that are full to the last byte, larger ones for longer texts, and objects that were freed."""
    path = with_texts(report, tmp_path / "texts.h5")
    expected = laprox("report", path, "--format", "csv").stdout
    with h5py.File(path, "r+") as file:
        for length in (1, 7, 8, 9, 15, 16, 4050, 4063, 4064, 4065, 5000, 30000):
            file.attrs[f"note {length}"] = "x" * length
        for i in range(300):
            file.attrs["again"] = "y" * (i * 7 % 60 + 1)
            file.attrs[f"kept {i % 50}"] = "z" * (i * 11 % 90 + 1)
    assert laprox("report", path, "--format", "csv").stdout == expected


def test_a_report_that_xarray_wrote_again_is_read(laprox, report, tmp_path):
    path = tmp_path / "again.h5"
    with xarray.open_dataset(report, engine="h5netcdf") as opened:
        opened.load()
    for variable in opened.variables.values():
        variable.encoding = {}  # else it makes arrays of single characters of texts of one length
    opened.to_netcdf(path, engine="h5netcdf")
    expected = laprox("report", report, "--format", "csv").stdout
    assert laprox("report", path, "--format", "csv").stdout == expected


@pytest.mark.parametrize("sizes", [(4, 4), (4, 8), (8, 4), (8, 8), (2, 2)])
def test_addresses_and_sizes_of_other_widths_are_read(laprox, tmp_path, sizes):
    source = dumps.write_dump(tmp_path / "dump.h5", context=40, tokens=44, heads=[(4, 2)], seed=3)
    properties = h5py.h5p.create(h5py.h5p.FILE_CREATE)
    properties.set_sizes(*sizes)
    narrow = h5py.h5f.create(str(tmp_path / "narrow.h5").encode(), h5py.h5f.ACC_TRUNC, properties)
    with h5py.File(source) as whole, h5py.File(narrow) as file:
        for name in whole:
            whole.copy(name, file)
        file.attrs.update(whole.attrs)
        file.attrs["prompt"] = "x" * 5000
    done = laprox("inspect", tmp_path / "narrow.h5", "--format", "json").stdout
    assert done.replace("narrow.h5", "dump.h5") == laprox("inspect", source, "--format", "json").stdout


def test_behind_a_user_block_the_heap_is_found(laprox, report, tmp_path):
    """Addresses count from the end of the user block."""
    path = tmp_path / "block.h5"
    with h5py.File(with_texts(report, tmp_path / "texts.h5")) as source, h5py.File(path, "w", userblock_size=1024) as file:
        for name in source:
            source.copy(name, file, name, expand_refs=True)
        file.attrs.update(source.attrs)
        for name, dataset in source.items():
            if isinstance(dataset, h5py.Dataset) and "DIMENSION_LIST" in dataset.attrs:
                del file[name].attrs["DIMENSION_LIST"]
                for i, dimension in enumerate(dataset.dims):
                    file[name].dims[i].attach_scale(file[dimension[0].name])
    expected = laprox("report", report, "--format", "csv").stdout
    assert laprox("report", path, "--format", "csv").stdout == expected
