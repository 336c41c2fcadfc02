"""Sliding windows: entries that no later query sees are counted, by an oracle that asks every query of every layer."""

import dumps
import h5py
import numpy as np
import pytest

WINDOW, CONTEXT, TOKENS = 24, 100, 110


def seen_by_none(window, first, sources, layer, token):
    """Whether no query from `first` on sees the token in any layer that reads the same cache."""
    cache = sources.get(layer, layer)
    readers = [n for n in range(4) if sources.get(n, n) == cache]
    return all(not (window[n] == 0 or query - window[n] < token) for n in readers for query in range(first, TOKENS))


@pytest.mark.parametrize("sources", [{}, {2: 0}, {3: 0}], ids=["own", "both-slide", "one-sees-all"])
@pytest.mark.parametrize("options, first", [((), CONTEXT), (("--queries", "window", "--window", "10"), CONTEXT - 10)])
def test_entries_that_no_later_query_sees(laprox, tmp_path, sources, options, first):
    path = dumps.write_dump(tmp_path / "dump.h5", context=CONTEXT, tokens=TOKENS, heads=[(4, 2)] * 4, sliding_window=WINDOW, seed=8)
    with h5py.File(path, "r+") as file:
        window = [file[f"layers/{n}"].attrs["sliding_window"] for n in range(4)]
        for layer, source in sources.items():
            for name in ("k", "v"):
                del file[f"layers/{layer}/{name}"]
                file[f"layers/{layer}/{name}"] = file[f"layers/{source}/{name}"][()]
            file[f"layers/{layer}"].attrs["kv_source"] = source
    sweep = ("sweep", path, "--policy", "recent,streaming,knorm,full", "--budget", "20,60", "--save-kept", *options)
    table = laprox(*sweep, "-o", tmp_path / "report.h5", "--quiet").stdout
    with h5py.File(tmp_path / "report.h5") as file:
        counts, starts, tokens = file["kept_count"][0], file["kept/start"][0], file["kept/tokens"][()]
        found, model, pairs = file["unseen_entries"][0], file["model_unseen_entries"][0], file["kept_pairs"][0]
    expected = np.zeros(found.shape, int)
    for p, b, layer, head in np.ndindex(*counts.shape):
        kept = tokens[starts[p, b, layer, head] :][: counts[p, b, layer, head]]
        expected[p, b, layer] += sum(seen_by_none(window, first, sources, layer, token) for token in kept)
    np.testing.assert_array_equal(found, expected)
    own = [n for n in range(4) if n not in sources]
    np.testing.assert_array_equal(model, expected[..., own].sum(-1))
    assert model[0, 0] == 0 and model[0, 1] > 0 or first < CONTEXT, "recent keeps the window at 20, and more at 60"
    for p, policy in enumerate(("recent", "streaming", "knorm", "full")):
        share = (model[p] / pairs[p]).max()
        assert (f"{policy} {100 * share:.3g} % at" in table) == (share > 0)


def test_without_a_window_nothing_is_said(laprox, small):
    assert "sliding windows" not in laprox("sweep", small[0], "--policy", "recent", "--budget", "40").stdout
