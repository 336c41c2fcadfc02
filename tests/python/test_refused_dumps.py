"""What the command line refuses of a dump, Python refuses too, in the same words: every damage is shown to both.

The tables of tests/cli are among the damages, so that a refusal that is new there is asked of Python here.
"""

import importlib.util
import os
import random
import subprocess
import sys

import h5py
import laprox
import numpy as np
import pytest
from conftest import ROOT

sys.path.append(str(ROOT / "tests" / "cli"))  # the modules that these tables import
import dumps  # noqa: E402


def table_of(name):
    """A module of tests/cli under a name that no test here has."""
    spec = importlib.util.spec_from_file_location(f"cli_{name}", ROOT / "tests" / "cli" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


BROKEN, DAMAGE = table_of("test_refusals").BROKEN, table_of("test_files").DAMAGE
PACKED = table_of("test_packed")


def attribute(place, name, value):
    return lambda file: file[place].attrs.__setitem__(name, value)


def dataset(name, values):
    def store(file):
        if name in file:
            del file[name]
        file[name] = values

    return store


def marked(name, values, dtype):
    def store(file):
        dataset(name, values)(file)
        file[name].attrs["dtype"] = dtype

    return store


def shared_twice(file):
    for layer, source in ((1, 0), (2, 1)):
        for name in "kv":
            dataset(f"layers/{layer}/{name}", file[f"layers/{source}/{name}"][()])(file)
        file[f"layers/{layer}"].attrs["kv_source"] = source


def chunked(name, **options):
    def store(file):
        values = file[name][()]
        del file[name]
        file.create_dataset(name, data=values, chunks=values.shape, **options)

    return store


MORE = {
    "an infinite scale": attribute("layers/1", "scale", np.inf),
    "a negative scale": attribute("layers/1", "scale", -1.0),
    "two scales": attribute("layers/1", "scale", [1.0, 2.0]),
    "a soft-cap that is a text": attribute("layers/0", "softcap", "x"),
    "a soft-cap of NaN": attribute("layers/0", "softcap", np.nan),
    "a sliding window that is no integer": attribute("layers/0", "sliding_window", 2.0),
    "a sliding window beyond 64 bits": attribute("layers/0", "sliding_window", np.uint64(2**63)),
    "a version that is true": attribute("/", "version", True),
    "a model that is a number": attribute("/", "model", 3),
    "a source that is a number": attribute("/", "source", 3),
    "a cache of its own": attribute("layers/1", "kv_source", 1),
    "a cache of a later layer": attribute("layers/0", "kv_source", 1),
    "a cache of no layer": attribute("layers/1", "kv_source", -1),
    "a cache of other shapes": attribute("layers/2", "kv_source", 0),
    "a cache of a reader": shared_twice,
    **{
        f"{name} among a layer's attributes": attribute("layers/1", name, 1.0)
        for name in ("softmax_scale", "scaling", "scal", "logit_softcapping", "window", "window_sizes", "kv_sources")
    },
    **{f"{name} among a layer's arrays": dataset(f"layers/1/{name}", np.ones(4)) for name in ("sink", "s_aux", "bias", "extra")},
    **{
        f"{name} at the root": attribute("/", name, 4)
        for name in ("context_len", "prompt_length", "modle", "scale", "softmax_scales", "window_size")
    },
    "an unknown object at the root": dataset("positions", np.arange(48)),
    "sinks of integers": dataset("layers/1/sinks", np.arange(4)),
    "sinks of uint16 without the mark": dataset("layers/1/sinks", np.arange(4, dtype="u2")),
    "sinks that say another type": marked("layers/1/sinks", np.ones(4, "f4"), "float16"),
    "a bias of integers": dataset("layers/1/b_o", np.arange(16)),
    "frequencies of integers": dataset("layers/1/rope_inv_freq", np.arange(4)),
    "an infinite sink in bfloat16": marked("layers/1/sinks", np.full(4, 0x7F80, "u2"), "bfloat16"),
    "keys that say another type": marked("layers/1/k", np.ones((2, 48, 8), "f4"), "bfloat16"),
    "residual norms of integers": dataset("layers/1/residual_norms", np.ones(48, int)),
    "too few residual norms": dataset("layers/1/residual_norms", np.ones(47)),
    "a residual norm of 0": dataset("layers/1/residual_norms", np.r_[1.0, 0.0, np.ones(46)]),
    "a residual norm below 0": dataset("layers/1/residual_norms", np.r_[np.ones(47), -1.5]),
    "a residual norm of NaN": dataset("layers/1/residual_norms", np.r_[np.ones(47), np.nan]),
    "positions of two dimensions": dataset("query_positions", np.arange(48).reshape(2, 24)),
    "no positions": dataset("query_positions", np.arange(0)),
    "more positions than tokens": dataset("query_positions", np.arange(49)),
    "output positions without ends": dataset("output_positions", np.arange(99)),
    "output positions twice": dataset("output_positions", np.array([3, 3])),
    "a link out of the file for positions": dataset("query_positions", h5py.ExternalLink("nowhere.h5", "x")),
    "layers that are a dataset": lambda file: [file.__delitem__("layers"), file.__setitem__("layers", 1)],
    "N-bit keys": chunked("layers/1/k", scaleoffset=3),
    "keys in lzf": chunked("layers/1/k", compression="lzf"),
}
#: Where the arrays of a layer are spoken of otherwise, or each side knows what the other cannot: the words are not compared.
OWN_WORDS = {
    *("NaN in q", "infinity in k", "NaN in v", "infinity in w_o", "NaN in a bias", "keys in lzf"),
    *("checksum", "short_unfiltered_chunk", "short_chunk_of_other_filters"),
}
#: h5py reads a text that was never written as an empty one.
UNSEEN = {"null_text"}


def small_dump(path, heads=((4, 2), (4, 2), (4, 4))):
    return dumps.write_dump(path, context=40, tokens=48, heads=heads, head_size=8, value_size=8, model_size=16)


@pytest.fixture
def refused(monkeypatch, tmp_path):
    """Asks both about a dump and compares what they say."""
    binary = os.environ.get("LAPROX_BIN")
    monkeypatch.chdir(tmp_path)

    def ask(path, how, words=()):
        with pytest.raises(laprox.DumpError) as refusal:
            laprox.sweep(path, "recent", 12)
        said = str(refusal.value)
        assert said.startswith(f"{path}: ") and "\n" not in said
        for word in words if how not in OWN_WORDS else ():
            assert word in said
        if not binary:
            return
        done = subprocess.run([binary, "sweep", path, "--policy", "recent", "--budget", "12"], capture_output=True, text=True)
        assert done.returncode == 3, done.stderr
        assert how in OWN_WORDS or said in done.stderr, f"Python: {said}\ncommand line: {done.stderr}"

    return ask


@pytest.mark.parametrize("how", [*BROKEN, *MORE])
def test_a_broken_dump_is_refused_in_the_same_words(refused, tmp_path, how):
    path = small_dump(tmp_path / "broken.h5")
    change, words = BROKEN[how] if how in BROKEN else (MORE[how], ())
    if how in BROKEN and "layers" in how:
        path = small_dump(path, ((4, 2), (4, 2)))
    with h5py.File(path, "r+") as file:
        change(file)
    refused(path, how, words)


@pytest.mark.parametrize("damage", [d for d in DAMAGE if d.__name__ not in UNSEEN], ids=lambda damage: damage.__name__)
def test_values_that_nobody_wrote_are_refused(refused, tmp_path, damage):
    path = dumps.write_dump(tmp_path / "damaged.h5", context=40, tokens=44, heads=[(4, 2), (2, 2)], seed=3)
    damage(path)
    refused(path, damage.__name__, DAMAGE[damage])


@pytest.mark.parametrize("kind", PACKED.DAMAGE)
def test_chunks_that_do_not_inflate_are_refused(refused, tmp_path, kind):
    sound = dumps.write_dump(tmp_path / "sound.h5", context=40, tokens=44, heads=[(4, 2), (2, 2)], seed=3)
    options, words = PACKED.DAMAGE[kind]
    path = PACKED.damaged(tmp_path / "damaged.h5", sound, **options)
    refused(path, kind, words)


@pytest.mark.parametrize("layout", PACKED.LAYOUTS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_chunks_of_every_layout_are_read(tmp_path, layout, dtype):
    plain = dumps.write_dump(tmp_path / "plain.h5", context=40, tokens=44, heads=[(4, 2), (2, 2)], seed=3, dtype=dtype)
    path = PACKED.stored_anew(tmp_path / "packed.h5", plain, PACKED.LAYOUTS[layout])
    reports = [laprox.sweep(each, ["h2o", "snapkv:window=4"], [12, 20]).relative_error for each in (plain, path)]
    np.testing.assert_array_equal(*reports)
    with laprox.open_dump(path) as opened, laprox.open_dump(plain) as other:
        for name in "qkv":
            np.testing.assert_array_equal(opened[1]._arrays[name][0], other[1]._arrays[name][0])


@pytest.mark.parametrize("kind", ["f2", "f4", "f8", "bfloat16"])
def test_short_vectors_are_read_in_every_type(tmp_path, kind):
    """bfloat16 is stored as bit patterns, which are no numbers."""
    path, exact = small_dump(tmp_path / "dump.h5"), small_dump(tmp_path / "exact.h5")
    vectors = {
        "sinks": [1, 2, -3, 4],
        "rope_inv_freq": [1, 0.5, 0.25, 2],
        "b_o": np.arange(16),
        "residual_norms": 1 + np.arange(48),
    }
    for file, stored in ((path, kind), (exact, "f8")):
        with h5py.File(file, "r+") as opened:
            for name, values in vectors.items():
                bits = dumps.bfloat16_bits(np.array(values, "f4")) if stored == "bfloat16" else np.array(values, stored)
                (marked(f"layers/1/{name}", bits, "bfloat16") if stored == "bfloat16" else dataset(f"layers/1/{name}", bits))(
                    opened
                )
    with laprox.open_dump(path) as opened:
        assert opened[1].sinks == vectors["sinks"] and opened[1].rope_inv_freq == vectors["rope_inv_freq"]
        for name in ("b_o", "residual_norms"):
            np.testing.assert_array_equal(opened[1]._arrays[name][0], vectors[name])
    found, expected = (laprox.sweep(each, "recent", 12, backend="reference") for each in (path, exact))
    for name in ("relative_error", "residual_error"):
        np.testing.assert_array_equal(found[name], expected[name])


def test_attributes_of_one_element_are_numbers(command_line, tmp_path):
    path, plain = small_dump(tmp_path / "dump.h5"), small_dump(tmp_path / "plain.h5")
    for file, wrapped in ((path, lambda value: [value]), (plain, lambda value: value)):
        with h5py.File(file, "r+") as opened:
            opened["layers/1"].attrs.update(scale=wrapped(0.3), sliding_window=wrapped(20), softcap=wrapped(4))
            opened.attrs.update(context_length=wrapped(40), version=wrapped(1), format=wrapped("laprox-dump"))
    command_line("inspect", path)
    found, expected = (laprox.sweep(each, "recent", 12).relative_error for each in (path, plain))
    np.testing.assert_array_equal(found, expected)


def test_notes_of_the_writer_are_allowed(tmp_path):
    path = small_dump(tmp_path / "dump.h5")
    with h5py.File(path, "r+") as file:
        file.attrs.update(note="mine", torch_version="2.9", score=3, model="evil \x1b[31m model")
        file["layers/1"].attrs["measured_on"] = "a Tuesday"
    with laprox.open_dump(path) as dump:
        assert dump.attributes["note"] == "mine" and dump.model == r"evil \x1b[31m model"


@pytest.mark.parametrize("content", ["", "hello", "half", "cut", "directory", "fifo"])
def test_what_is_no_dump_at_all_is_refused(refused, tmp_path, content):
    path = tmp_path / "broken.h5"
    if content == "directory":
        path.mkdir()
    elif content == "fifo":
        os.mkfifo(path)
    elif content in ("half", "cut"):
        whole = small_dump(path).read_bytes()
        path.write_bytes(whole[: len(whole) // 2 if content == "half" else -100])
    else:
        path.write_text(content)
    refused(path, content)


def test_a_file_that_changes_or_was_closed_is_refused(tmp_path):
    path = small_dump(tmp_path / "dump.h5")
    with laprox.open_dump(path) as dump:
        path.write_bytes(path.read_bytes() + b"more")
        with pytest.raises(laprox.DumpError, match="one that has changed since"):
            laprox.sweep(dump, "recent", 12)
    with pytest.raises(laprox.UsageError, match="is closed"):
        laprox.sweep(dump, "recent", 12)
    with pytest.raises(laprox.FileError, match="no such file"):
        laprox.open_dump(tmp_path / "none.h5")


def test_flipped_bytes_are_refused_or_read(tmp_path):
    sound, rng = small_dump(tmp_path / "sound.h5").read_bytes(), random.Random(5)
    path = tmp_path / "damaged.h5"
    for _ in range(40):
        damaged = bytearray(sound)
        for _ in range(rng.choice((1, 1, 2, 8))):  # the first kilobytes hold the structure, where a byte does most
            damaged[rng.randrange(min(len(damaged), rng.choice((600, 4000, len(damaged)))))] = rng.randrange(256)
        path.write_bytes(damaged)
        try:
            laprox.sweep(path, "recent", 12)
        except (laprox.FileError, laprox.BackendError):
            continue
