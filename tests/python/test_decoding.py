"""Sweeps with a schedule, and the plots of them."""

import laprox
import laprox.plot
import numpy as np
import pytest
from conftest import ROOT

SWEEP = dict(policies=["h2o", "streaming", "tova"], budgets=["5%", 128], save_kept=True)


@pytest.fixture(scope="module")
def bundled():
    return ROOT / "data" / "niah-1k.h5"


@pytest.fixture(scope="module")
def report(bundled):
    return laprox.sweep(bundled, **SWEEP, schedule="every:3", segments=4)


def test_a_schedule_is_swept_and_its_report_survives_a_file(report, tmp_path):
    assert report.attrs["schedule"] == "every:3" and report.sizes["segment"] == 4
    assert (report.evictions > 0).all()
    full = report.budget_tokens + 3  # when the next cut is due
    np.testing.assert_array_equal(report.cache_peak, full.broadcast_like(report.cache_peak).transpose(*report.cache_peak.dims))
    assert (report.cache_mean < full).all() and (report.cache_mean > report.budget_tokens).all()
    laprox.save_report(report, tmp_path / "report.h5")
    again = laprox.open_report(tmp_path / "report.h5")
    for name in ("model_segment_error", "evicted_at", "cache_mean"):
        np.testing.assert_array_equal(again[name].values, report[name].values)


def test_the_first_cut_is_the_one_after_the_prompt(report, bundled):
    once = laprox.sweep(bundled, **SWEEP)
    assert "schedule" not in once.attrs and "segment" not in once.dims
    context = int(report.context_length[0])
    gone = report.evicted_at.sel(policy="h2o", budget="5%").isel(dump=0, layer=0, kv_head=0).values
    kept = laprox.kept_tokens(once, policy="h2o", budget="5%", layer=0, kv_head=0)
    for wrong in (dict(layer=-1), dict(layer=8), dict(kv_head=2), dict(dump=1), dict(budget=7), dict(layer=0.0)):
        with pytest.raises(laprox.UsageError):
            laprox.kept_tokens(once, **{**dict(policy="h2o", budget="5%", layer=0, kv_head=0), **wrong})
    np.testing.assert_array_equal(np.flatnonzero(gone[:context] > context), kept)


def test_what_is_wrong_is_said(bundled):
    with pytest.raises(laprox.UsageError, match="expected once"):
        laprox.sweep(bundled, "h2o", "5%", schedule="often")

    @laprox.policy("mine")
    def mine(layer):
        return np.linalg.norm(layer.k, axis=-1)

    with pytest.raises(laprox.UsageError, match="after a prompt only"):
        laprox.sweep(bundled, mine, "5%", schedule="step")


def test_what_is_held_is_drawn(report, tmp_path):
    from laprox.plot.decoding import held_shares

    gone = np.array([[4, 6, 5, 6, 6, 6], [3, 6, 6, 6, 5, 6]])
    shares, tokens, queries = held_shares(gone, context=3)
    assert list(tokens) == list(range(7)) and list(queries) == [3, 4, 5, 6]
    np.testing.assert_array_equal(shares[:, 0], [0.5, 1, 1, 1, 0, 0])
    np.testing.assert_array_equal(shares[:, 1], [0, 1, 1, 1, 1, 0])
    np.testing.assert_array_equal(shares[:, 2], [0, 1, 0.5, 1, 0.5, 1])
    for figure in (laprox.plot.error_while_decoding(report), laprox.plot.lifetimes(report, policy="h2o", budget="128", layer=1)):
        figure.savefig(tmp_path / "figure.png")
        assert (tmp_path / "figure.png").stat().st_size > 10_000
    with pytest.raises(laprox.UsageError, match="no lifetimes"):
        laprox.plot.lifetimes(report.drop_vars("evicted_at"))
