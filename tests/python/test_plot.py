"""Plots: what they compute, that every figure and page is written, and that bad requests are refused."""

import resource
import subprocess
import sys

import laprox
import numpy as np
import pytest
from conftest import layer
from laprox.plot import cli, data, style

FIGURES = ["error-over-budget", "regret", "error-per-layer", "kept-per-head", "kept-along-prompt", "overlap"]


@pytest.fixture(scope="module")
def report_file(catalogue_report, tmp_path_factory):
    path = tmp_path_factory.mktemp("plots") / "report.h5"
    laprox.save_report(catalogue_report, path)
    return path


def test_the_catalogue_is_large_enough_to_be_a_test(catalogue_report):
    assert catalogue_report.sizes["policy"] >= 15


def test_overlap_is_the_jaccard_index_of_the_kept_sets(catalogue_report):
    shares = data.overlap(catalogue_report, "50", dump=1)
    prompt = [layer(seed + 10) for seed in range(2)]
    names = list(catalogue_report.policy.values)
    a, b = names.index("knorm"), names.index("h2o")
    masks = [np.array(laprox.kept(prompt, name, 50).masks) for name in ("knorm", "h2o")]
    assert shares[a, b] == pytest.approx((masks[0] & masks[1]).sum() / (masks[0] | masks[1]).sum())
    np.testing.assert_array_equal(shares, shares.T)
    np.testing.assert_array_equal(np.diag(shares), 1)


def test_kept_along_the_prompt_counts_heads(catalogue_report):
    shares, edges = data.kept_along_prompt(catalogue_report, "40", bins=80)
    recent = shares[list(catalogue_report.policy.values).index("recent")]
    np.testing.assert_array_equal(recent, np.arange(80) >= 40)
    coarse, edges = data.kept_along_prompt(catalogue_report, "40", bins=7)
    np.testing.assert_allclose((coarse * np.diff(edges)).sum(1), shares.sum(1))


def test_bands_reach_from_the_least_to_the_largest_prompt(catalogue_report):
    values = catalogue_report.model_relative_error.sel(policy="h2o").values
    [curve] = [curve for curve in data.curves(catalogue_report, "model_relative_error") if curve.policy == "h2o"]
    np.testing.assert_array_equal(curve.low, values.min(0))
    np.testing.assert_array_equal(curve.high, values.max(0))
    np.testing.assert_allclose(curve.mean, values.mean(0))


def test_the_best_policies_get_the_colours(catalogue_report):
    chosen = style.colours(catalogue_report, 4)
    rivals = [name for name in catalogue_report.policy.values if name not in style.references(catalogue_report)]
    errors = np.log(catalogue_report.model_relative_error.sel(policy=rivals)).mean(("dump", "budget"))
    best = sorted(rivals, key=lambda name: float(errors.sel(policy=name)))[:4]
    assert list(chosen) == best and len(set(chosen.values())) == 4
    assert {"random", "oracle", "full"} <= set(style.references(catalogue_report))


def test_labels_at_line_ends_stay_apart_and_inside():
    rng = np.random.default_rng(0)
    for count in (1, 2, 5, 20, 40):
        places = rng.random(count) ** 3
        heights = np.array(style.spread(list(places), 0.045))
        assert heights.min() >= -1e-9 and heights.max() <= 1 + 1e-9
        assert (np.diff(np.sort(heights)) >= min(0.045, 1 / max(1, count - 1)) - 1e-9).all()
        assert (np.argsort(heights) == np.argsort(places)).all()
    assert style.spread([0.2, 0.8], 0.05) == [0.2, 0.8]
    assert style.spread([0.5, 0.5], 0.1) == pytest.approx([0.45, 0.55])


@pytest.mark.parametrize("figure", FIGURES)
@pytest.mark.parametrize("suffix, magic", [("svg", b"<?xml"), ("png", b"\x89PNG")])
def test_every_figure_is_written(report_file, tmp_path, figure, suffix, magic):
    output = tmp_path / f"out.{suffix}"
    assert cli.main([str(report_file), "-o", str(output), "--figure", figure]) == 0
    assert output.read_bytes().startswith(magic)


def test_a_figure_names_the_best_policies(catalogue_report, tmp_path):
    import matplotlib

    with matplotlib.rc_context({"svg.fonttype": "none"}):
        laprox.plot.error_over_budget(catalogue_report, highlight=3).savefig(tmp_path / "out.svg")
    text = (tmp_path / "out.svg").read_text()
    for name in [*style.colours(catalogue_report, 3), "random", "oracle"]:
        assert f">{name}</text>" in text
    assert "other policies" in text


def test_the_page_holds_everything_and_loads_nothing(report_file, catalogue_report, tmp_path):
    output = tmp_path / "out.html"
    assert cli.main([str(report_file), "-o", str(output), "--needle", "20:30"]) == 0
    text = output.read_text(encoding="utf-8")
    for heading in ("Error over budget", "Regret", "Error per layer", "Kept per layer", "Kept along the prompt", "Overlap"):
        assert f"<h2>{heading}" in text
    for name in catalogue_report.policy.values:
        assert f'"name":"{name}"' in text or name == "full"
    outside = text[text.index("</script>") :]
    for loader in ("<script src", "<link", "<img", "@import", "url("):
        assert loader not in outside


@pytest.mark.parametrize(
    "arguments, code, message",
    [
        (["-o", "out.bmp"], 2, "expected a name that ends with"),
        (["-o", "out.svg", "--figure", "pie"], 2, "--figure: expected one of"),
        (["-o", "out.svg", "--figure", "overlap", "--budget", "7%"], 2, "the report has no budget '7%'; it has 40, 50, 60"),
        (["-o", "out.svg", "--figure", "regret", "--budget", "40"], 2, "--budget: regret shows all budgets"),
        (["-o", "out.svg", "--highlight", "none-such"], 2, "the report has no policy 'none-such'"),
        (["-o", "out.html", "--needle", "9"], 2, "--needle: expected FIRST:LAST"),
        (["-o", "out.html", "--figure", "overlap"], 2, "an .html file holds all figures"),
        (["-o", "no/such/out.svg"], 3, "make it first"),
    ],
)
def test_bad_requests_are_refused(report_file, tmp_path, monkeypatch, capsys, arguments, code, message):
    monkeypatch.chdir(tmp_path)
    assert cli.main([str(report_file), *arguments]) == code
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_existing_files_are_kept_and_missing_reports_named(report_file, tmp_path, capsys):
    output = tmp_path / "out.svg"
    output.write_text("mine")
    assert cli.main([str(report_file), "-o", str(output)]) == 2
    assert output.read_text() == "mine"
    assert cli.main([str(report_file), "-o", str(output), "--force"]) == 0
    assert cli.main([str(tmp_path / "none.h5"), "-o", str(tmp_path / "b.svg")]) == 3
    assert "none.h5: no such file" in capsys.readouterr().err


@pytest.mark.parametrize("suffix", ["html", "svg", "png"])
def test_a_full_disk_leaves_the_old_file(report_file, tmp_path, suffix):
    """As a limit on the size of files, in a process of its own."""
    output = tmp_path / f"out.{suffix}"
    for old in (None, "mine"):
        if old:
            output.write_text(old)
        words = [sys.executable, "-m", "laprox.plot.cli", str(report_file), "-o", str(output), "--force"]
        limit = {"preexec_fn": lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))}
        done = subprocess.run(words, capture_output=True, text=True, **limit)
        assert done.returncode == 3 and "File too large" in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr
        assert [path.read_text() for path in tmp_path.iterdir()] == ([old] if old else [])


def test_what_is_no_report_is_told_in_one_line(report_file, needle_dump, tmp_path, capsys, recwarn):
    damaged = bytearray(report_file.read_bytes())
    damaged[200:2000] = bytes(1800)
    (tmp_path / "damaged.h5").write_bytes(damaged)
    (tmp_path / "text.h5").write_text("no report")
    for path in (tmp_path, needle_dump, tmp_path / "damaged.h5", tmp_path / "text.h5"):
        assert cli.main([str(path), "-o", str(tmp_path / "out.svg")]) == 3
        said = capsys.readouterr().err
        assert said.startswith(f"laprox-plot: {path}: ") and len(said.splitlines()) == 1
    assert [str(warning.message) for warning in recwarn] == []


def test_a_schedule_has_figures_and_a_page(needle_dump, tmp_path):
    report = laprox.sweep(needle_dump, ["h2o", "tova"], ["5%", "10%"], schedule="every:8", segments=4, save_kept=True)
    laprox.save_report(report, tmp_path / "report.h5")
    for name in ("error-while-decoding", "lifetimes"):
        output = tmp_path / f"{name}.svg"
        assert cli.main([str(tmp_path / "report.h5"), "-o", str(output), "--figure", name]) == 0
        assert "every:8" in output.read_text() or name == "error-while-decoding"
    text = laprox.plot.html(report)
    for words in ("<h2>Error while decoding", "<h2>What caches held", "caches cut every:8"):
        assert words in text
    assert "<h2>What caches held" not in laprox.plot.html(report.drop_vars("evicted_at"))


def test_plots_say_what_the_report_lacks(layers):
    report = laprox.sweep(layers, ["h2o", "knorm"], [10, 20])
    with pytest.raises(laprox.UsageError, match="save_kept"):
        laprox.plot.overlap(report)
    with pytest.raises(laprox.UsageError, match="both an oracle and random"):
        laprox.plot.regret(report)
    assert "<h2>Overlap" not in laprox.plot.html(report)


def test_plots_want_a_report_and_no_name_of_one():
    for draw in (laprox.plot.regret, laprox.plot.overlap, laprox.plot.error_over_budget):
        with pytest.raises(laprox.UsageError, match="expected what laprox.open_report gives, found str"):
            draw("report.h5")


def test_regret_that_ends_before_the_last_budget_is_drawn(layers, tmp_path):
    report = laprox.sweep(layers, ["h2o", "random", "oracle"], [40, "100%"])
    assert np.isnan(report.model_regret.values[..., -1]).all()
    laprox.plot.regret(report).savefig(tmp_path / "regret.svg")


def test_kept_tokens_are_drawn_where_only_yardsticks_took_part(layers):
    report = laprox.sweep(layers, ["random", "oracle"], 20, save_kept=True)
    assert len(laprox.plot.kept_per_head(report).axes) == 3  # and the colours' scale


def test_the_page_of_one_budget_and_of_no_errors_is_written(layers):
    for policies in (["knorm", "full"], ["full"]):
        assert "<h2>Error over budget" in laprox.plot.html(laprox.sweep(layers[:1], policies, 40))
