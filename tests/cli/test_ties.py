"""Equal scores stay equal wherever they stand in a matrix: the lower token wins."""

import dumps
import h5py
import pytest


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("context", range(9, 24, 2))
def test_a_plateau_of_pooled_energies_is_kept_from_its_beginning(laprox, tmp_path, backend, context):
    path = dumps.write_dump(
        tmp_path / "dump.h5", context=context, tokens=context + 1, heads=[(2, 2)] * 3, head_size=2, value_size=2, dtype="float64"
    )
    policy = "laprox-r:window=1,pinned=0,sinks=0,kernel=1025"
    laprox("sweep", path, "--policy", policy, "--budget", 4, "--backend", backend, "--save-kept", "-o", tmp_path / "r.h5")
    with h5py.File(tmp_path / "r.h5") as file:
        starts, counts, tokens = (file[name][()] for name in ("kept/start", "kept_count", "kept/tokens"))
    for start, count in zip(starts.ravel(), counts.ravel(), strict=True):
        assert tokens[start : start + count].tolist() == list(range(count))
