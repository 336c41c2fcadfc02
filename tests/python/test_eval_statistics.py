"""Paired comparisons: what scipy says, and what `laprox report --compare` says of the same numbers."""

import laprox
import numpy as np
import pytest
from conftest import layer
from laprox.eval.statistics import compare_pairs, signed_rank_p


@pytest.mark.parametrize("count, rounded", [(6, False), (25, False), (26, False), (60, False), (12, True), (40, True)])
def test_the_signed_rank_test_is_scipys(count, rounded):
    stats = pytest.importorskip("scipy.stats")
    differences = np.random.default_rng(count).standard_normal(count) + 0.4
    if rounded:  # ties, and zeros, which are left out
        differences = np.round(3 * differences) / 3
    exact = count <= 25 and not rounded
    expected = stats.wilcoxon(differences[differences != 0], correction=False, method="exact" if exact else "approx").pvalue
    assert signed_rank_p(differences) == pytest.approx(expected, rel=1e-9)
    assert signed_rank_p(-differences) == pytest.approx(expected, rel=1e-9)


def test_equal_pairs_and_few_pairs_say_nothing():
    assert signed_rank_p(np.zeros(9)) == 1 and compare_pairs([], []).pairs == 0
    few = compare_pairs([1, 2, 3, 4, 5], [2, 3, 4, 5, 7])
    assert not few.enough and np.isinf([few.low, few.high]).all() and (few.lower, few.mean, few.estimate) == (5, -1.2, -1)


def test_the_interval_holds_the_median_as_often_as_it_says():
    draw = np.random.default_rng(1)
    for count in (6, 20, 40):
        found = [compare_pairs(draw.standard_normal(count), np.full(count, 0.0)) for _ in range(400)]
        assert 0.93 < np.mean([one.low <= 0 <= one.high for one in found])


@pytest.mark.parametrize("dumps", [5, 7, 27])
def test_they_are_the_command_lines(command_line, tmp_path, dumps):
    prompts = [[layer(seed)] for seed in range(dumps)]
    report = laprox.sweep(prompts, ["knorm", "h2o"], [30])
    laprox.save_report(report, tmp_path / "r.h5")
    said = command_line("report", tmp_path / "r.h5", "--compare", "knorm,h2o").stdout.splitlines()
    [row] = [line.split() for line in said if line.strip().startswith("30 ") and " of " in line]
    a, b = (report.model_relative_error.sel(policy=name).values[:, 0] for name in ("knorm", "h2o"))
    found = compare_pairs(a, b)
    sizes = [float(row[1]), float(row[2])]
    assert sizes == pytest.approx([found.mean, found.estimate], abs=6e-7)
    if dumps < 6:
        assert row[3] == row[-1] == "-" and not found.enough
        return
    assert [float(row[3]), float(row[5])] == pytest.approx([found.low, found.high], abs=6e-7)
    assert int(row[-4]) == found.lower and float(row[-1]) == pytest.approx(found.p, rel=6e-3)
