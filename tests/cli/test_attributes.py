"""Attributes of a dump: numbers that do not fit, and names that nearly are, or stand for, known ones."""

import dumps
import h5py
import numpy as np
import pytest

POLICY = ("--policy", "recent", "--budget", "12")


@pytest.fixture()
def dump(tmp_path):
    return dumps.write_dump(tmp_path / "dump.h5", context=40, tokens=44, heads=[(4, 2), (4, 2)], seed=3)


def owner(file, place):
    return file if place == "/" else file[place]


def set_wide(file, place, name, value, size=16):
    """An integer of more than 64 bits."""
    kind = h5py.h5t.STD_U64LE.copy()
    kind.set_size(size)
    kind.set_precision(8 * size)
    object = owner(file, place)
    if name in object.attrs:
        del object.attrs[name]
    made = h5py.h5a.create(object.id, name.encode(), kind, h5py.h5s.create(h5py.h5s.SCALAR))
    made.write(np.frombuffer(value.to_bytes(size, "little"), f"V{size}").reshape(()), mtype=kind)


INTEGERS = [("/", "context_length"), ("/", "version"), ("layers/1", "sliding_window"), ("layers/1", "kv_source")]


@pytest.mark.parametrize("place, name", INTEGERS)
@pytest.mark.parametrize("value", [2**63, 2**64 - 1, 2**64 - 2**31])
def test_integers_beyond_64_bits_with_a_sign_are_refused_with_their_value(laprox, dump, place, name, value):
    with h5py.File(dump, "r+") as file:
        owner(file, place).attrs[name] = np.uint64(value)
    for command in (("sweep", dump, *POLICY), ("inspect", dump)):
        message = laprox(*command, expect=3).stderr
        assert f"attribute {name}: expected an integer of at most {2**63 - 1}, found {value}" in message, message


@pytest.mark.parametrize("place, name", INTEGERS)
def test_integers_of_more_than_64_bits_are_refused(laprox, dump, place, name):
    with h5py.File(dump, "r+") as file:
        set_wide(file, place, name, 2**64 + 1)
    message = laprox("inspect", dump, expect=3).stderr
    assert f"attribute {name}: expected an integer of at most 64 bits, found a 128-bit integer" in message, message


@pytest.mark.parametrize("window", [2**63 - 1, 2**62, 10**15])
def test_windows_longer_than_everything_are_none(laprox, dump, window):
    """Nothing is added to them that could leave the range."""
    expected = laprox("sweep", dump, "--policy", "recent,snapkv:window=4", "--budget", "12", "--format", "csv").stdout
    with h5py.File(dump, "r+") as file:
        for layer in file["layers"].values():
            layer.attrs["sliding_window"] = np.uint64(window)
    assert laprox("sweep", dump, "--policy", "recent,snapkv:window=4", "--budget", "12", "--format", "csv").stdout == expected


@pytest.mark.parametrize("kind", ["u1", "i2", ">u4", ">i8", "u8"])
def test_integers_of_every_type_that_fit_are_read(laprox, dump, kind):
    expected = laprox("inspect", dump, "--no-check", "--format", "json").stdout
    with h5py.File(dump, "r+") as file:
        for name in ("context_length", "version"):
            file.attrs[name] = np.array(file.attrs[name], kind)
    laprox("inspect", dump)
    assert laprox("inspect", dump, "--no-check", "--format", "json").stdout == expected


@pytest.mark.parametrize(
    "name, meant",
    [
        *[(name, "context_length") for name in ("context_len", "context_lengt", "ctx_len", "prompt_length", "num_decoded")],
        *[("num_decode", "context_length"), ("versions", "version"), ("modle", "model")],
        *[(f"{name}", "/layers/<i> attribute scale") for name in ("scale", "softmax_scale", "softmax_scales")],
        *[("softcap", "/layers/<i> attribute softcap"), ("logit_softcaping", "/layers/<i> attribute softcap")],
        *[(name, "/layers/<i> attribute sliding_window") for name in ("sliding_window", "sliding_windows", "window_size")],
    ],
)
def test_names_at_the_root_that_stand_for_known_ones_are_refused(laprox, dump, name, meant):
    with h5py.File(dump, "r+") as file:
        file.attrs[name] = 4
    message = laprox("sweep", dump, *POLICY, expect=3).stderr
    assert f"/ attribute {name}" in message and f"did you mean '{meant}'" in message, message


@pytest.mark.parametrize("name", ["softmax_scales", "attn_logit_softcaping", "window_sizes"])
def test_names_of_layers_that_nearly_stand_for_known_ones_are_refused(laprox, dump, name):
    with h5py.File(dump, "r+") as file:
        file["layers/0"].attrs[name] = 4
    assert "did you mean '" in laprox("inspect", dump, expect=3).stderr


@pytest.mark.parametrize(
    "name",
    ["note", "score", "date", "question", "tokens_before_cut", "answer", "generated", "torch_version", "proof_tolerance", "ä"],
)
def test_notes_at_the_root_are_allowed(laprox, dump, name):
    with h5py.File(dump, "r+") as file:
        file.attrs[name] = "mine"
    laprox("inspect", dump)
