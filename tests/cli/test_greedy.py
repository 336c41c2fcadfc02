"""Backward elimination, where attention is sharp: against one that forms every candidate's output anew."""

import dumps
import h5py
import numpy as np
import oracle
import pytest

BUDGET = 5


def kept(laprox, path, folder, backend, *options):
    """What greedy keeps of layer 0, by KV head, and its error."""
    report = folder / f"{backend}.h5"
    laprox(
        "sweep", path, "--policy", "greedy:step=0", "--budget", BUDGET, "--backend", backend, *options, "--save-kept", "-o", report
    )
    with h5py.File(report) as file:
        counts, starts, tokens = file["kept_count"][0, 0, 0, 0], file["kept/start"][0, 0, 0, 0], file["kept/tokens"][()]
        return [tokens[s : s + n].tolist() for s, n in zip(starts, counts, strict=True)], file["relative_error"][0, 0, 0, 0]


def eliminated(path, judges):
    """The same by definition: `judges` are rows of the stored queries."""
    dump = oracle.read_dump(path)
    layer, context = dump.layers[0], dump.context
    heads, group = len(layer.k), len(layer.q) // len(layer.k)

    def output(left):
        weights = oracle.attention(layer, judges, dump.positions, left)
        return np.concatenate([weights[h] @ layer.v[h // group] for h in range(len(layer.q))], -1) @ layer.w_o

    left = np.ones(layer.k.shape[:2], bool)
    exact = output(left)
    while left[:, :context].sum() > BUDGET * heads:
        costs = []
        for head, token in np.argwhere(left[:, :context]):
            left[head, token] = False
            costs.append((((output(left) - exact) ** 2).sum(), -head, -token))
            left[head, token] = True
        _, head, token = min(costs)
        left[-head, -token] = False
    return [np.flatnonzero(row[:context]).tolist() for row in left], np.linalg.norm(output(left) - exact) / np.linalg.norm(exact)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("window", [0, 16])
@pytest.mark.parametrize("spread", [1.0, 12.0])
@pytest.mark.parametrize("sinks", [False, True])
def test_elimination_is_that_by_definition(laprox, tmp_path, backend, window, spread, sinks):
    tokens = 16 if window else 20
    path = dumps.write_dump(tmp_path / "dump.h5", context=16, tokens=tokens, heads=[(4, 2)], spread=spread, sinks=sinks, seed=3)
    options = ("--queries", "window", "--window", window) if window else ()
    found, error = kept(laprox, path, tmp_path, backend, *options)
    expected, least = eliminated(path, np.arange(0, 16) if window else np.arange(16, 20))
    assert error == pytest.approx(least, rel=1e-4, abs=1e-9)
    assert found == expected


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_an_entry_with_nearly_all_weight_stays(laprox, tmp_path, backend):
    path = tmp_path / "dump.h5"
    laprox(
        "synth", "-o", path, "--preset", "tiny", "--tokens", 64, "--decode", 8, "--dtype", "float32", "--adversarial", "giant-key"
    )
    rows = laprox.sweep(path, ["greedy", "h2o"], [40, 60], "--backend", backend)
    for budget in (40, 60):
        assert float(rows["greedy", budget, "model"]["relative_error"]) < 1e-6
