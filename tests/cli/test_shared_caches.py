"""Layers that share a cache have one kept set, which all its readers score."""

import shutil

import dumps
import h5py
import numpy as np
import pytest
from refusals import refused


def shares_a_cache(path, sources):
    """Makes layers read others' caches; returns a copy in which each has a cache of its own, with the same contents."""
    own = path.with_name("own.h5")
    with h5py.File(path, "r+") as file:
        for layer, source in sources.items():
            for name in ("k", "v"):
                del file[f"layers/{layer}/{name}"]
                file[f"layers/{layer}/{name}"] = file[f"layers/{source}/{name}"][()]
    shutil.copyfile(path, own)
    with h5py.File(path, "r+") as file:
        for layer, source in sources.items():
            file[f"layers/{layer}"].attrs["kv_source"] = source
    return own


PINS = {
    "snapkv:window=8": (0, 8),
    "laprox+layer:window=8": (0, 8),
    "laprox-r+global:window=8,normalize=false": (4, 8),
    "knorm+global": (0, 0),
}


@pytest.mark.parametrize("policy", PINS)
def test_layers_that_share_a_cache_keep_one_set(laprox, tmp_path, policy):
    """Its readers score an entry by the mean; budgets and pairs count the cache once."""
    path = dumps.write_dump(tmp_path / "shared.h5", context=60, tokens=66, heads=[(4, 2), (6, 2), (4, 2), (2, 2)], seed=5)
    own = shares_a_cache(path, {2: 0, 3: 1})
    assert "cache of layer 1" in laprox("inspect", path).stdout
    laprox("sweep", path, "--policy", policy, "--budget", "20", "--save-kept", "-o", tmp_path / "report.h5")
    laprox("score", own, "--policy", policy, "--backend", "cpu", "-o", tmp_path / "scores.h5")
    with h5py.File(tmp_path / "report.h5") as file:
        counts, starts, tokens = file["kept_count"][0, 0, 0], file["kept/start"][0, 0, 0], file["kept/tokens"][()]
        assert file["kept_pairs"][0, 0, 0] == 2 * 2 * 20 == counts[:2].sum()
        kept = [[tokens[s : s + n] for s, n in zip(*heads)] for heads in zip(starts, counts)]
        assert file["model_relative_error"][0, 0, 0] > 0
    with h5py.File(tmp_path / "scores.h5") as file:
        scores = [file[f"layers/{i}/scores"][()] for i in range(4)]
    first, last = PINS[policy]
    for layer, cache in enumerate((0, 1, 0, 1)):
        for head in range(2):
            np.testing.assert_array_equal(kept[layer][head], kept[cache][head])
            joint = (scores[cache][head] + scores[cache + 2][head]) / 2
            joint[:first] = joint[60 - last :] = np.inf
            best = np.argsort(-joint, kind="stable")[: len(kept[cache][head])]
            np.testing.assert_array_equal(np.sort(best), kept[cache][head])


def test_policies_compete_where_caches_are_shared(laprox, tmp_path):
    path = dumps.write_dump(tmp_path / "shared.h5", context=60, tokens=66, heads=[(4, 2), (6, 2), (4, 2), (2, 2)], seed=5)
    shares_a_cache(path, {2: 0, 3: 1})
    table = laprox("sweep", path, "--policy", "recent,knorm,full", "--budget", "20", "-o", tmp_path / "report.h5").stdout
    assert "does not compete: full\n" in table and "*" in table
    with h5py.File(tmp_path / "report.h5") as file:
        assert file["on_budget"][0, :, 0].tolist() == [1, 1, 0]


def test_what_a_shared_cache_cannot_have_is_refused(laprox, tmp_path):
    path = dumps.write_dump(tmp_path / "shared.h5", context=60, tokens=66, heads=[(4, 2), (4, 2)], seed=5)
    shares_a_cache(path, {1: 0})
    sweep = ("sweep", path, "--budget", "40", "--policy")
    assert "places in an order" in laprox(*sweep, "criticalkv:window=8", expect=2).stderr
    assert "have one each" in laprox("verify", path, "--backend", "cpu", "--policy", "knorm", expect=2).stderr
    with h5py.File(path, "r+") as file:
        file["layers/1"].attrs["kv_source"] = 1
    refused(laprox("inspect", path, expect=3), "attribute kv_source", "a layer before this one")


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("name", ["k", "v"])
def test_a_cache_that_is_not_its_sources_is_refused(laprox, tmp_path, dtype, name):
    path = dumps.write_dump(tmp_path / "shared.h5", context=60, tokens=66, heads=[(4, 2)] * 3, dtype=dtype, seed=5)
    shares_a_cache(path, {2: 0})
    sweep = ("sweep", path, "--budget", "40", "--policy", "knorm")
    laprox(*sweep)
    laprox("inspect", path)
    with h5py.File(path, "r+") as file:
        values = file[f"layers/2/{name}"]
        values[0, 0, 0] = values[0, 0, 1]
    for command in (sweep, ("inspect", path), ("score", path, "--policy", "knorm", "-o", tmp_path / "scores.h5")):
        said = laprox(*command, expect=3).stderr
        assert f"{path}: /layers/2/{name}: expected the {name} of layer 0" in said and "kv_source" in said
