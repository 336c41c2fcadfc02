"""What a refusal of a file looks like."""


def refused(done, *words):
    """Exit code 3 was checked by the caller: one short message that names what is wrong, and nothing of HDF5's own."""
    assert done.stdout == "" and "HDF5-DIAG" not in done.stderr and "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) <= 2, done.stderr
    for word in words:
        assert word in done.stderr, done.stderr
