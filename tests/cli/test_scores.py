"""`sweep --scores`: policies whose scores or kept tokens somebody else computed."""

import dumps
import h5py
import numpy as np
import pytest

HEADER = dict(format="laprox-scores", version=1)


@pytest.fixture
def scores(small, tmp_path):
    """A file of random scores of the small dump, and the scores."""
    rng = np.random.default_rng(2)
    values = rng.random((2, 2, 120))
    with h5py.File(tmp_path / "mine.h5", "w") as file:
        file.attrs.update(HEADER)
        for layer in range(2):
            file[f"layers/{layer}/scores"] = values[layer]
    return tmp_path / "mine.h5", values


def report(laprox, dump, output, *options):
    laprox("sweep", dump, "--quiet", "--force", "--save-kept", "-o", output, *options)
    with h5py.File(output) as file:
        return {
            name: file[name][()] for name in ("kept_count", "identical_to", "model_relative_error", "kept/start", "kept/tokens")
        }, [label.decode() for label in file["policy"][()]]


@pytest.mark.parametrize("policy", ["snapkv", "h2o", "laprox", "snapkv+ada:floor=0.3", "streaming"])
def test_the_scores_of_a_policy_give_that_policy(laprox, bundled, tmp_path, policy):
    laprox("score", bundled, "--policy", policy, "-o", tmp_path / "theirs.h5", "--quiet")
    found, labels = report(
        laprox, bundled, tmp_path / "report.h5", "--policy", policy, "--scores", tmp_path / "theirs.h5", "--budget", "5%,20%"
    )
    assert labels == [policy, "theirs"]
    assert (found["identical_to"][0, 1] == 0).all()


def test_own_scores_keep_the_highest(laprox, small, scores, tmp_path):
    path, values = scores
    mine = [path, f"{path}+global", f"{path}+per-layer:shares=2/1"]
    found, labels = report(laprox, small[0], tmp_path / "report.h5", "--policy", "recent", "--scores", *mine, "--budget", "12")
    assert labels == ["recent", "mine", "mine+global", "mine+per-layer:shares=2/1"]
    assert (found["kept_count"][0, 1] == 12).all()
    for layer in range(2):
        for head in range(2):
            start = found["kept/start"][0, 1, 0, layer, head]
            np.testing.assert_array_equal(found["kept/tokens"][start : start + 12], np.sort(np.argsort(-values[layer, head])[:12]))
    assert found["kept_count"][0, 3, 0].tolist() == [[16, 16], [8, 8]]
    assert found["kept_count"][0, 2].sum() == 4 * 12 and len(np.unique(found["kept_count"][0, 2])) > 1


def test_own_masks_are_kept_as_they_are(laprox, small, tmp_path):
    rng = np.random.default_rng(3)
    chosen = rng.permutation(4 * 120)[: 4 * 12]
    masks = np.zeros(4 * 120, np.uint8)
    masks[chosen] = 1
    masks = masks.reshape(2, 1, 2, 120)
    with h5py.File(tmp_path / "masks.h5", "w") as file:
        file.attrs.update(HEADER, budgets="10%")
        for layer in range(2):
            file[f"layers/{layer}/kept"] = masks[layer]
    found, _ = report(laprox, small[0], tmp_path / "report.h5", "--scores", tmp_path / "masks.h5", "--budget", "12")
    np.testing.assert_array_equal(found["kept_count"][0, 0, 0], masks[:, 0].sum(-1))
    for layer in range(2):
        for head in range(2):
            start, count = found["kept/start"][0, 0, 0, layer, head], found["kept_count"][0, 0, 0, layer, head]
            np.testing.assert_array_equal(found["kept/tokens"][start : start + count], np.flatnonzero(masks[layer, 0, head]))
    done = laprox("sweep", small[0], "--scores", tmp_path / "masks.h5", "--budget", "20", expect=2)
    assert "kept tokens at the budgets 10%, but no scores" in done.stderr
    done = laprox("sweep", small[0], "--scores", f"{tmp_path / 'masks.h5'}+ada", "--budget", "12", expect=2)
    assert "kept tokens say themselves how the budget is split" in done.stderr
    with h5py.File(tmp_path / "masks.h5", "a") as file:
        file["layers/0/kept"][0, 0] = 0
    done = laprox("sweep", small[0], "--scores", tmp_path / "masks.h5", "--budget", "12", expect=3)
    assert "expected 48 kept entries in all layers at the budget 10%" in done.stderr


def test_what_cannot_be_swept_is_refused(laprox, small, scores, tmp_path):
    path, _ = scores
    other = dumps.write_dump(tmp_path / "other.h5", context=60, tokens=64, heads=[(2, 1)])
    done = laprox("sweep", small[0], other, "--scores", path, "--budget", "12", expect=2)
    assert "a file of scores belongs to one dump, found 2" in done.stderr
    done = laprox("sweep", small[0], "--scores", path, path, "--budget", "12", expect=2)
    assert "the policy 'mine' is given twice" in done.stderr
    done = laprox("sweep", small[0], "--scores", f"{path}+heads", "--budget", "12", expect=2)
    assert "did you mean 'head'" in done.stderr
    done = laprox("sweep", small[0], "--budget", "12", expect=2)
    assert "no policy given" in done.stderr
    with h5py.File(path, "a") as file:
        number, file["layers/1/scores"][1, 3] = file["layers/1/scores"][1, 3], np.nan
    said = laprox("sweep", small[0], "--scores", path, "--budget", "12", expect=3).stderr
    assert f"{path}: /layers/1/scores: expected finite numbers, found nan of KV head 1, token 3" in said
    with h5py.File(path, "a") as file:
        file["layers/1/scores"][1, 3] = number
        file.attrs["dump_sha256"] = "0" * 64
    assert "results on another dump" in laprox("sweep", small[0], "--scores", path, "--budget", "12", expect=3).stderr
    with h5py.File(path, "a") as file:
        del file.attrs["dump_sha256"], file["layers/1"]
    assert (
        "expected scores of every layer of the dump, found none of layer 1"
        in laprox("sweep", small[0], "--scores", path, "--budget", "12", expect=3).stderr
    )
    assert "no such file" in laprox("sweep", small[0], "--scores", tmp_path / "none.h5", "--budget", "12", expect=3).stderr


def test_primitives_that_are_not_finite_are_no_results(laprox, tmp_path):
    """The scores of h2o do not read the values; their norms were written as NaN with exit code 0."""
    path = dumps.write_dump(tmp_path / "dump.h5", context=60, tokens=66, heads=[(4, 2)], seed=5)
    with h5py.File(path, "r+") as file:
        values = file["layers/0/v"][()]
        values[0, 7, 3] = 3e30
        file["layers/0/v"][...] = values
    refused = laprox("score", path, "--policy", "h2o", "-o", tmp_path / "scores.h5", expect=4)
    assert "layers/0/value_norms" in refused.stderr and not (tmp_path / "scores.h5").exists()
    laprox("score", path, "--policy", "h2o", "--backend", "reference", "-o", tmp_path / "scores.h5")
    with h5py.File(tmp_path / "scores.h5") as file:
        assert np.isfinite(file["layers/0/value_norms"][()]).all()
