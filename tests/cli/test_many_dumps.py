"""Sweeps of more dumps than a process may have files open, with some among them that are no dumps."""

import os
import subprocess

import pytest
from test_rehearsal import endless_free_list

WHAT = ("--policy", "recent,laprox:window=4", "--budget", "8", "--format", "csv", "--quiet")


@pytest.fixture(scope="module")
def many(laprox, tmp_path_factory):
    folder = tmp_path_factory.mktemp("many")
    paths = [folder / f"{i:02}.h5" for i in range(40)]
    for i, path in enumerate(paths):
        laprox("synth", "--preset", "tiny", "--layers", 1, "--tokens", 24, "--decode", 2, "--seed", i, "-o", path, "--quiet")
    return paths


@pytest.mark.parametrize("trusted", [[], ["--trusted"]])
def test_dumps_are_not_all_open_at_a_time(laprox, many, trusted):
    free = laprox("sweep", *many, *WHAT).stdout
    few = ["prlimit", "--nofile=20:20", laprox.binary, *trusted, "sweep", *map(str, many), *WHAT]
    done = subprocess.run(few, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout == free


def test_the_damaged_one_among_many_is_named(laprox, many, tmp_path):
    damaged = tmp_path / "damaged.h5"
    damaged.write_bytes(many[0].read_bytes())
    endless_free_list(damaged)
    limited = [*laprox.within(1 << 30), "sweep", *map(str, [*many[1:20], damaged, *many[20:]]), *WHAT]
    done = subprocess.run(limited, capture_output=True, text=True, timeout=60)
    assert done.returncode == 3 and done.stdout == ""
    assert done.stderr.startswith(f"laprox: {damaged}: file: ") and "wants more memory" in done.stderr


@pytest.mark.parametrize("kind, said", [("pipe", "a pipe or a device"), ("folder", "a directory"), ("gone", "no such file")])
def test_what_is_no_file_among_many_is_named(laprox, many, tmp_path, kind, said):
    other = tmp_path / "other.h5"
    if kind == "pipe":
        os.mkfifo(other)
    elif kind == "folder":
        other.mkdir()
    done = laprox("sweep", *many[:3], other, *many[3:], *WHAT, expect=3, timeout=20)
    assert str(other) in done.stderr and said in done.stderr
