"""Candidate files that the verifier must refuse, and its command line."""

import h5py
import kernels
import numpy as np
import pytest


def replace(file, name, values):
    del file[name]
    file[name] = values


# What breaks the candidate, and the words that the message must hold.
BROKEN = {
    "no format": (lambda f: f.attrs.__delitem__("format"), ["attribute format", "laprox-scores", "nothing"]),
    "a dump": (lambda f: f.attrs.__setitem__("format", "laprox-dump"), ["attribute format", "laprox-dump"]),
    "version 2": (lambda f: f.attrs.__setitem__("version", 2), ["attribute version", "found 2"]),
    "no version": (lambda f: f.attrs.__delitem__("version"), ["attribute version", "nothing"]),
    "no layers": (lambda f: f.__delitem__("layers"), ["/layers", "nothing"]),
    "empty layers": (lambda f: [f.__delitem__(f"layers/{i}") for i in (0, 1)], ["/layers", "at least one", "no layer"]),
    "layers without datasets": (lambda f: [f["layers/0"].clear(), f["layers/1"].clear()], ["/layers", "none of them"]),
    "a layer that the dump lacks": (lambda f: f.move("layers/1", "layers/2"), ["/layers/2", "0 to 1"]),
    "a layer that is no number": (lambda f: f.move("layers/1", "layers/x"), ["/layers/x", "'x'"]),
    "a layer that is a dataset": (lambda f: replace(f, "layers/1", np.zeros(3)), ["/layers/1", "a group"]),
    "an unknown dataset": (lambda f: f.move("layers/1/scores", "layers/1/score"), ["/layers/1/score", "did you mean 'scores'"]),
    "a group for a dataset": (
        lambda f: [f.__delitem__("layers/1/scores"), f.create_group("layers/1/scores")],
        ["/layers/1/scores", "a group"],
    ),
    "scores per query head": (
        lambda f: replace(f, "layers/1/scores", np.zeros((4, 120))),
        ["[kv_heads, C] = [2, 120]", "[4, 120]"],
    ),
    "another context length": (
        lambda f: replace(f, "layers/1/column_norms", np.zeros((4, 130))),
        ["[query_heads, C] = [4, 120]", "[4, 130]"],
    ),
    "a wrong rank": (lambda f: replace(f, "layers/1/value_norms", np.zeros(120)), ["/layers/1/value_norms", "[120]"]),
    "a scalar": (lambda f: replace(f, "layers/1/value_norms", np.float32(1)), ["/layers/1/value_norms", "a scalar"]),
    "integers": (
        lambda f: replace(f, "layers/1/scores", np.zeros((2, 120), "i4")),
        ["/layers/1/scores", "float16", "32-bit integer"],
    ),
    "bits without the mark": (lambda f: replace(f, "layers/1/scores", np.zeros((2, 120), "u2")), ["/layers/1/scores", "bfloat16"]),
    "complex numbers": (lambda f: replace(f, "layers/1/scores", np.zeros((2, 120), "c8")), ["/layers/1/scores", "compound"]),
    "kept without budgets": (lambda f: f.attrs.__delitem__("budgets"), ["attribute budgets", "nothing"]),
    "budgets that are none": (lambda f: f.attrs.__setitem__("budgets", "many"), ["attribute budgets", "many"]),
    "fewer budgets than masks": (lambda f: f.attrs.__setitem__("budgets", "50,60"), ["/layers/0/kept", "[2, 2, 120]"]),
    "kept as numbers": (lambda f: replace(f, "layers/0/kept", np.zeros((1, 2, 120))), ["/layers/0/kept", "uint8"]),
    "a list beyond C": (
        lambda f: replace(f, "layers/0/kept", np.full((1, 2, 3), 120, "i4")),
        ["/layers/0/kept", "120 at KV head 0"],
    ),
    "a list with a token twice": (
        lambda f: replace(f, "layers/0/kept", np.array([[[4, 5, -1], [7, 7, -1]]], "i4")),
        ["/layers/0/kept", "token 7 twice at KV head 1"],
    ),
    "a list with a gap": (
        lambda f: replace(f, "layers/0/kept", np.array([[[4, -1, 5]] * 2], "i8")),
        ["/layers/0/kept", "5 at KV head 0"],
    ),
    "lists too long": (lambda f: replace(f, "layers/0/kept", np.zeros((1, 2, 121), "i4")), ["/layers/0/kept", "[1, 2, 121]"]),
    "kept beyond 1": (lambda f: f["layers/0/kept"].__setitem__((0, 1, 7), 3), ["/layers/0/kept", "3 at KV head 1, token 7"]),
    "output without positions": (lambda f: f.__delitem__("output_positions"), ["/output_positions", "nothing"]),
    "positions that are not stored": (lambda f: f["output_positions"].__setitem__(9, 500), ["/output_positions", "500"]),
    "positions out of order": (lambda f: f["output_positions"].__setitem__(0, 128), ["/output_positions", "ascending"]),
    "an output of too few rows": (
        lambda f: replace(f, "layers/0/output", np.zeros((9, 32))),
        ["/layers/0/output", "[M, D] = [10, 32]"],
    ),
    "another dump": (lambda f: f.attrs.__setitem__("dump_sha256", "00"), ["attribute dump_sha256", "another dump"]),
    "an unknown precision": (lambda f: f.attrs.__setitem__("precision", "fp8"), ["attribute precision", "fp8"]),
    "a policy that is none": (lambda f: f.attrs.__setitem__("policy", "laprx"), ["attribute policy", "did you mean 'laprox'"]),
    "a policy that is a number": (lambda f: f.attrs.__setitem__("policy", 3), ["attribute policy", "a string"]),
}


@pytest.fixture
def candidate(small, tmp_path):
    path, dump, results = small
    kept = kernels.laprox_kept(dump, results, "layer", [50])
    return kernels.write(tmp_path / "candidate.h5", dump, results, "float32", kept, budgets="50", policy="laprox+layer")


@pytest.mark.parametrize("fault", BROKEN)
def test_a_candidate_that_breaks_the_layout_is_refused(laprox, small, candidate, fault):
    breaks, words = BROKEN[fault]
    with h5py.File(candidate, "r+") as file:
        breaks(file)
    message = laprox("verify", small[0], "--candidate", candidate, expect=3).stderr
    for word in ["candidate.h5", *words]:
        assert word in message


def test_files_that_are_no_candidates_are_refused(laprox, small, tmp_path):
    assert "no such file" in laprox("verify", small[0], "--candidate", tmp_path / "none.h5", expect=3).stderr
    (tmp_path / "text.h5").write_text("scores")
    assert "cannot open" in laprox("verify", small[0], "--candidate", tmp_path / "text.h5", expect=3).stderr
    assert "a directory" in laprox("verify", small[0], "--candidate", tmp_path, expect=3).stderr
    assert "laprox-scores" in laprox("verify", small[0], "--candidate", small[0], expect=3).stderr


def test_a_truncated_candidate_is_refused(laprox, small, candidate):
    data = candidate.read_bytes()
    for share in (0.3, 0.6, 0.95):
        candidate.write_bytes(data[: int(share * len(data))])
        laprox("verify", small[0], "--candidate", candidate, expect=3)


def test_statistics_that_a_policy_does_not_have_are_refused(laprox, small, tmp_path):
    path, dump, results = small

    def only(name):
        return kernels.write(tmp_path / "c.h5", dump, {0: {name: results[0][name]}}, "float32")

    assert "reads no queries" in laprox("verify", path, "--candidate", only("column_sums"), "--policy", "knorm", expect=3).stderr
    assert (
        "no observation window" in laprox("verify", path, "--candidate", only("column_norms"), "--policy", "h2o", expect=3).stderr
    )
    laprox("verify", path, "--candidate", only("value_norms"))  # belongs to no policy


def test_usage(laprox, small, candidate, tmp_path, feature_dumps):
    path, dump, results = small
    anonymous = kernels.write(tmp_path / "a.h5", dump, {0: {"scores": results[0]["scores"]}}, "float16")
    assert "of which policy" in laprox("verify", path, "--candidate", anonymous, expect=2).stderr
    assert (
        "coarser"
        in laprox("verify", path, "--candidate", anonymous, "--policy", "laprox", "--precision", "float32", expect=3).stderr
    )
    assert "snapkv" in laprox("verify", path, "--candidate", candidate, "--policy", "snapkv", expect=2).stderr
    assert "one policy" in laprox("verify", path, "--candidate", candidate, "--policy", "snapkv,h2o", expect=2).stderr
    laprox("verify", path, "--candidate", candidate, "--backend", "cpu", expect=2)
    laprox("verify", path, "--candidate", candidate, "--budget", "5%", expect=2)
    laprox("verify", path, "--precision", "fp8", expect=2)
    laprox("verify", path, "--backend", "tpu", expect=2)
    laprox("verify", path, "--policy", "laprx", expect=2)
    laprox("verify", path, "--budget", "many", expect=2)
    laprox("verify", expect=2)
    assert "no such file" in laprox("verify", tmp_path / "none.h5", expect=3).stderr


def test_the_table_says_what_was_checked_and_what_failed(laprox, small, candidate):
    text = laprox("verify", small[0], "--candidate", candidate).stdout
    assert "policy laprox+layer:window=32" in text and text.splitlines()[-1] == "6 checks, 0 skipped: verified"
    with h5py.File(candidate, "r+") as file:
        file["layers/1/scores"][1, 7] = 9.0
    failed = laprox("verify", small[0], "--candidate", candidate, expect=5)
    assert "scores laprox+layer: element: layer 1, KV head 1, token 7: found 9, expected" in failed.stdout
    assert failed.stdout.splitlines()[-1].endswith("FAILED") and "layer 1, KV head 1, token 7" in failed.stderr


def test_synth_lists_and_refuses_adversarial_kinds(laprox, tmp_path):
    text = laprox("synth", "--help").stdout
    assert all(kind in text for kind in kernels.ADVERSARIAL)
    arguments = ["synth", "-o", tmp_path / "x.h5", "--preset", "tiny", "--tokens", 50, "--adversarial"]
    assert "did you mean 'huge-logits'" in laprox(*arguments, "huge", expect=2).stderr
    laprox(*arguments, "giant-key", "--seed", 5)
    first = (tmp_path / "x.h5").read_bytes()
    laprox(*arguments, "giant-key", "--seed", 5, "--force")
    assert (tmp_path / "x.h5").read_bytes() == first
    assert "adversarial giant-key" in laprox("inspect", tmp_path / "x.h5").stdout
