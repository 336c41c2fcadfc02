"""Files whose structure asks for more memory than there is are damaged, and said to be: the process itself never runs out."""

import re
import struct
import subprocess

import pytest

GIBIBYTE = 1 << 30


def endless_free_list(path):
    """The free space of every group's heap of names: each piece says that itself is the next one."""
    content = bytearray(path.read_bytes())
    for found in re.finditer(b"HEAP\0{4}", content):
        _, free, data = struct.unpack_from("<QQQ", content, found.start() + 8)
        struct.pack_into("<Q", content, data + free, free)
    path.write_bytes(content)


@pytest.mark.parametrize("command", [("sweep", "--policy", "recent", "--budget", "12"), ("inspect",)])
def test_a_list_that_takes_all_memory_is_damage(laprox, dump, command):
    endless_free_list(dump)
    limited = [*laprox.within(GIBIBYTE), command[0], str(dump), *command[1:]]
    done = subprocess.run(limited, capture_output=True, text=True, timeout=60)
    assert done.returncode == 3 and done.stdout == "", done.stderr
    assert f"{dump}: file: " in done.stderr and "wants more memory for it than a file of its size can need" in done.stderr
