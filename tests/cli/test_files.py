"""Files that are damaged, incomplete or not what they seem are refused in one line, and outputs never cost anyone a file."""

import os
import random
import resource
import shutil
import signal
import socket
import struct
import subprocess
import time
import zlib

import h5py
import numpy as np
import pytest
from refusals import refused

POLICY = ("--policy", "recent,snapkv:window=4", "--budget", "12")


def replace(path, name, **options):
    """The same array, stored another way; returns its values."""
    with h5py.File(path, "r+") as file:
        values = file[name][()]
        del file[name]
        file.create_dataset(name, **{"shape": values.shape, "dtype": values.dtype, **options})
    return values


def never_written(path):
    replace(path, "layers/0/v")


def chunk_never_written(path):
    values = replace(path, "layers/0/v", chunks=(1, 44, 16))
    with h5py.File(path, "r+") as file:
        file["layers/0/v"][0] = values[0]


def virtual(path):
    with h5py.File(path, "r+") as file:
        layout = h5py.VirtualLayout(shape=file["layers/0/v"].shape, dtype="f4")
        layout[...] = h5py.VirtualSource("nowhere.h5", "v", shape=file["layers/0/v"].shape)
        del file["layers/0/v"]
        file.create_virtual_dataset("layers/0/v", layout)


def external_link(path):
    shutil.copy(path, path.with_name("other.h5"))
    with h5py.File(path, "r+") as file:
        del file["layers/0/v"]
        file["layers/0/v"] = h5py.ExternalLink("other.h5", "layers/0/v")


def external_storage(path):
    size = replace(path, "layers/0/v").nbytes
    with h5py.File(path, "r+") as file:
        values = file["layers/0/k"][()]
        del file["layers/0/v"]
        file.create_dataset("layers/0/v", shape=values.shape, dtype="f4", external=[(str(path.with_name("v.bin")), 0, size)])
    path.with_name("v.bin").write_bytes(values.astype("f4").tobytes())


def chunk_stored_short(path, **filters):
    """Half of a chunk that, as its mask says, no filter has changed."""
    values = replace(path, "layers/0/v", chunks=(2, 44, 16), **filters)
    with h5py.File(path, "r+") as file:
        file["layers/0/v"].id.write_direct_chunk((0, 0, 0), values.astype("f4").tobytes()[: values.nbytes // 2], 0xFFFFFFFF)


def short_plain_chunk(path):
    chunk_stored_short(path)


def short_unfiltered_chunk(path):
    chunk_stored_short(path, compression="gzip", fletcher32=True)


def one_chunk_twice(path):
    """The index says that it lies at two places, and another one nowhere."""
    values = replace(path, "layers/0/v", chunks=(1, 44, 16))
    with h5py.File(path, "r+") as file:
        file["layers/0/v"][...] = values
    content = path.read_bytes()
    key = struct.Struct("<II4Q")  # of KV head 1 in the index: bytes, filters that were skipped, offset
    assert content.count(key.pack(44 * 16 * 4, 0, 1, 0, 0, 0)) == 1
    path.write_bytes(content.replace(key.pack(44 * 16 * 4, 0, 1, 0, 0, 0), key.pack(44 * 16 * 4, 0, 0, 0, 0, 0)))


def lossy_filter(path):
    """Scale-offset makes a whole chunk of any few bytes."""
    values = replace(path, "layers/0/v", chunks=(2, 44, 16), scaleoffset=3)
    with h5py.File(path, "r+") as file:
        file["layers/0/v"][...] = values
        file["layers/0/v"].id.write_direct_chunk((0, 0, 0), b"\x05" * 7)


def deflate_and_then_shuffle(path):
    """In an order that only HDF5 can undo; the values are unchanged."""
    with h5py.File(path, "r+") as file:
        values = file["layers/0/v"][()].astype("f4")
        del file["layers/0/v"]
        properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        properties.set_chunk((1, 44, 16))
        properties.set_deflate(4)
        properties.set_shuffle()
        space = h5py.h5s.create_simple(values.shape)
        h5py.h5d.create(file.id, b"layers/0/v", h5py.h5t.IEEE_F32LE, space, properties).write(h5py.h5s.ALL, h5py.h5s.ALL, values)
    return values


def short_chunk_of_other_filters(path):
    values = deflate_and_then_shuffle(path)
    with h5py.File(path, "r+") as file:
        file["layers/0/v"].id.write_direct_chunk((1, 0, 0), zlib.compress(values[1].tobytes()[:-64]), 2)


def null_text(path):
    with h5py.File(path, "r+") as file:
        kind = h5py.h5t.C_S1.copy()
        kind.set_size(h5py.h5t.VARIABLE)
        if "model" in file.attrs:
            del file.attrs["model"]
        h5py.h5a.create(file.id, b"model", kind, h5py.h5s.create(h5py.h5s.SCALAR))


def many_positions(path):
    replace(path, "query_positions", shape=(1 << 28,), dtype="i8", chunks=(1 << 20,))


def huge_positions(path):
    replace(path, "query_positions", shape=(1 << 62,), dtype="i8", chunks=(1 << 10,))


def many_sinks(path):
    with h5py.File(path, "r+") as file:
        file.create_dataset("layers/0/sinks", shape=(1 << 28,), dtype="f4", chunks=(1 << 20,))


def swapped_axes(path):
    values = replace(path, "layers/0/q")
    with h5py.File(path, "r+") as file:
        del file["layers/0/q"]
        file["layers/0/q"] = np.ascontiguousarray(values.transpose(1, 0, 2))


DAMAGE = {
    never_written: ["/layers/0/v", "never written"],
    chunk_never_written: ["/layers/0/v", "never written"],
    virtual: ["/layers/0/v", "virtual"],
    external_link: ["/layers/0/v", "another file"],
    external_storage: ["/layers/0/v", "external"],
    short_plain_chunk: ["/layers/0/v", "holds"],
    short_unfiltered_chunk: ["/layers/0/v", "holds"],
    one_chunk_twice: ["/layers/0/v", "index of chunks"],
    lossy_filter: ["/layers/0/v", "scaleoffset", "h5repack"],
    short_chunk_of_other_filters: ["/layers/0/v", "chunk 1", "2752"],
    null_text: ["attribute model", "never written"],
    many_positions: ["/query_positions"],
    huge_positions: ["/query_positions"],
    many_sinks: ["/layers/0/sinks"],
    swapped_axes: ["/layers/0/q", "heads first"],
}


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda damage: damage.__name__)
def test_values_that_nobody_wrote_are_refused(laprox, dump, damage):
    damage(dump)
    started = time.monotonic()
    for command in (("sweep", dump, *POLICY, "--quiet"), ("inspect", dump, "--no-check")):
        refused(laprox(*command, expect=3), str(dump), *DAMAGE[damage])
    assert time.monotonic() - started < 10


def test_filters_of_any_order_are_undone(laprox, dump):
    before = laprox("sweep", dump, *POLICY, "--format", "csv").stdout
    deflate_and_then_shuffle(dump)
    assert laprox("sweep", dump, *POLICY, "--format", "csv").stdout == before


@pytest.mark.parametrize("name, meant", [("s_aux", "sinks"), ("bias", "b_o"), ("residual_norm", "residual_norms"), ("extra", "")])
def test_datasets_that_nobody_reads_are_refused(laprox, dump, name, meant):
    with h5py.File(dump, "r+") as file:
        file[f"layers/1/{name}"] = np.zeros(4, "f4")
    refused(laprox("inspect", dump, expect=3), f"/layers/1/{name}", f"did you mean '{meant}" if meant else "one of q, k, v")


@pytest.mark.parametrize(
    "name, meant",
    [("softmax_scale", "scale"), ("logit_softcapping", "softcap"), ("sliding_windows", "sliding_window"), ("scal", "scale")],
)
def test_attributes_that_are_nearly_known_are_refused(laprox, dump, name, meant):
    with h5py.File(dump, "r+") as file:
        file["layers/1"].attrs[name] = 4.0
    refused(laprox("inspect", dump, expect=3), f"attribute {name}", f"did you mean '{meant}'")


def test_attributes_of_ones_own_are_allowed(laprox, dump):
    with h5py.File(dump, "r+") as file:
        file["layers/1"].attrs["measured_on"] = "a Tuesday"
        file.attrs["note"] = "mine"
    laprox("inspect", dump)


def test_control_characters_of_a_file_do_not_reach_the_terminal(laprox, dump):
    with h5py.File(dump, "r+") as file:
        file.attrs["model"] = "evil \x1b[31m model\x07"
    done = laprox("inspect", dump)
    assert "\x1b" not in done.stdout and "\x07" not in done.stdout and "\\x1b[31m" in done.stdout


def test_what_is_no_regular_file_is_refused(laprox, tmp_path):
    fifo, sock = tmp_path / "fifo", tmp_path / "socket"
    os.mkfifo(fifo)
    socket.socket(socket.AF_UNIX).bind(str(sock))
    for path in (fifo, sock, "/dev/zero", tmp_path):
        for command in (("inspect", path), ("report", path), ("sweep", path, *POLICY)):
            refused(laprox(*command, expect=3, timeout=20), str(path))


def test_a_missing_filter_is_named(laprox, dump):
    values = replace(dump, "layers/0/v", chunks=(2, 44, 16), compression="lzf")
    with h5py.File(dump, "r+") as file:
        file["layers/0/v"][...] = values
    refused(laprox("inspect", dump, expect=3), "/layers/0/v", "lzf", "HDF5_PLUGIN_PATH")


def test_flipped_bytes_crash_nothing(laprox, dump, tmp_path):
    sound, rng = dump.read_bytes(), random.Random(5)
    for number in range(60):
        damaged = bytearray(sound)
        for _ in range(rng.choice((1, 1, 2, 8))):
            # The first kilobytes hold the structure, where a byte does most.
            damaged[rng.randrange(min(len(damaged), rng.choice((600, 4000, len(damaged)))))] = rng.randrange(256)
        path = tmp_path / "damaged.h5"
        path.write_bytes(damaged)
        done = subprocess.run([laprox.binary, "inspect", str(path)], capture_output=True, timeout=60)
        assert done.returncode in (0, 3, 5), (number, done.returncode, done.stderr[-500:])


def test_a_negative_mask_is_refused(laprox, small, tmp_path):
    path, results = tmp_path / "mine.h5", small[2]
    laprox("score", small[0], "--policy", "recent", "--budget", "12", "-o", path, "--quiet")
    with h5py.File(path, "r+") as file:
        kept = file["layers/0/kept"][()].astype("i1")
        del file["layers/0/kept"]
        file["layers/0/kept"] = -kept
    refused(laprox("verify", small[0], "--candidate", path, "--policy", "recent", expect=3), "/layers/0/kept", "-1")
    assert results


def test_an_output_never_replaces_an_input(laprox, dump, small, tmp_path):
    before = dump.read_bytes()
    soft, hard = tmp_path / "soft.h5", tmp_path / "hard.h5"
    soft.symlink_to(dump)
    os.link(dump, hard)
    for output in (dump, soft, hard):
        for command in (("sweep", dump, *POLICY), ("score", dump, "--policy", "recent")):
            done = laprox(*command, "-o", output, "--force", "--quiet", expect=2)
            assert "input" in done.stderr and dump.read_bytes() == before
    assert soft.is_symlink()


def test_only_regular_files_are_replaced(laprox, dump, tmp_path):
    fifo, link, kept = tmp_path / "fifo", tmp_path / "link.h5", tmp_path / "kept.txt"
    os.mkfifo(fifo)
    kept.write_text("mine")
    link.symlink_to(kept)
    for output in (fifo, link, "/dev/null", tmp_path):
        laprox("sweep", dump, *POLICY, "-o", output, "--force", "--quiet", expect=3, timeout=20)
    assert kept.read_text() == "mine" and link.is_symlink() and fifo.is_fifo()
    assert not [name for name in os.listdir(tmp_path) if name.endswith(".part")]


def test_a_missing_folder_says_so(laprox, dump, tmp_path):
    assert "folder" in laprox("sweep", dump, *POLICY, "-o", tmp_path / "none" / "r.h5", expect=3).stderr


@pytest.mark.parametrize("command", ["sweep", "score", "synth"])
def test_a_file_that_cannot_be_written_whole_leaves_nothing(laprox, bundled, tmp_path, command):
    """A limit on the size of files fails as a full disk does."""
    output = tmp_path / "out.h5"
    output.write_bytes(b"the old one")
    arguments = {
        "sweep": ["sweep", bundled, "--policy", "recent,snapkv", "--budget", "5%,10%,20%", "--save-kept"],
        "score": ["score", bundled, "--policy", "snapkv", "--budget", "5%"],
        "synth": ["synth", "--preset", "tiny", "--tokens", "300"],
    }[command]
    done = subprocess.run(
        [laprox.binary, *map(str, arguments), "-o", str(output), "--force", "--quiet"],
        capture_output=True,
        text=True,
        timeout=60,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)),
    )
    assert done.returncode == 3 and str(output) in done.stderr, (done.returncode, done.stderr)
    assert output.read_bytes() == b"the old one" and os.listdir(tmp_path) == ["out.h5"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_leaves_no_half_file(laprox, tmp_path, number):
    output = tmp_path / "out.h5"
    arguments = ["synth", "--preset", "llama-3.1-8b", "--tokens", "4000", "--layers", "20", "-o", str(output), "--quiet"]
    running = subprocess.Popen(
        [laprox.binary, *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),  # shells let background jobs ignore SIGINT
    )
    deadline = time.monotonic() + 20
    while not os.listdir(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.01)
    running.send_signal(number)
    assert running.wait(timeout=30) != 0 and os.listdir(tmp_path) == []


def test_trusted_files_are_opened_at_once(laprox, bundled):
    assert laprox("--trusted", "inspect", bundled, "--no-check").stdout == laprox("inspect", bundled, "--no-check").stdout
