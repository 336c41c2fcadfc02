"""Files that HDF5 crashes on, or never ends with, are found out in a child process; nothing else is refused by it."""

import os
import signal
import time

import h5py
import laprox
import pytest
from conftest import arrays, write_dump
from laprox import _rehearsal
from test_refused_dumps import table_of


def ask(path, read):
    _rehearsal.rehearse(path, "a laprox dump", read)


def test_a_crash_is_damage_and_costs_only_the_child(dump):
    with pytest.raises(laprox.DumpError, match=r"dump.h5: file: expected a laprox dump .* crashes on it \(signal 11\)"):
        ask(dump, lambda: os.kill(os.getpid(), signal.SIGSEGV))
    laprox.open_dump(dump).close()


def test_a_reading_without_end_is_damage(dump, monkeypatch):
    monkeypatch.setattr(_rehearsal, "_CPU_SECONDS", 0)

    def endless():
        while True:
            pass

    with pytest.raises(laprox.DumpError, match="does not come to an end"):
        ask(dump, endless)


def test_what_stands_still_or_raises_is_left_to_the_reader(dump, monkeypatch):
    monkeypatch.setattr(_rehearsal, "_SECONDS", 1)
    ask(dump, lambda: time.sleep(60))
    ask(dump, lambda: os._exit(7))
    ask(dump, lambda: {}["nothing"])


def test_a_sound_file_is_rehearsed_once(tmp_path, monkeypatch):
    path, forks = write_dump(tmp_path / "dump.h5", [arrays()]), []
    fork = os.fork
    monkeypatch.setattr(os, "fork", lambda: forks.append(1) or fork())
    for _ in range(2):
        laprox.open_dump(path).close()
    assert len(forks) == 1
    with h5py.File(path, "r+") as file:
        file.attrs["note"] = "changed"
    laprox.open_dump(path).close()
    assert len(forks) == 2


def test_a_list_that_takes_all_memory_is_damage(dump):
    table_of("test_rehearsal").endless_free_list(dump)
    with pytest.raises(laprox.DumpError, match="dump.h5: file: .*(wants more memory|cannot open|a damaged file)"):
        laprox.sweep(dump, "recent", 12)
