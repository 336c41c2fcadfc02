"""The HTML pages in a real headless browser without a network: marks are drawn, and nothing fails or is asked for."""

import browser
import laprox
import numpy as np
import pytest
import xarray as xr
from laprox.plot import closed_loop

pytestmark = pytest.mark.skipif(browser.executable() is None, reason=f"no browser is installed ({', '.join(browser.NAMES)})")

#: Per figure of plotly: lines, cells of maps (each map is one picture) and texts that have a size on the screen.
DRAWN = """[...document.querySelectorAll('.js-plotly-plot')].map(plot => {
  const shown = name => [...plot.querySelectorAll(name)].filter(x => {
    const box = x.getBoundingClientRect(); return box.width > 2 && box.height + box.width > 8 });
  return {lines: shown('.scatterlayer path.js-line').length, maps: shown('.heatmaplayer image').length,
          texts: shown('text').map(x => x.textContent), height: plot.getBoundingClientRect().height};
})"""
#: Every text of every figure that is cut off by the figure's edge.
CUT = """[...document.querySelectorAll('.js-plotly-plot')].flatMap(plot => {
  const edge = plot.getBoundingClientRect();
  return [...plot.querySelectorAll('.xtick text, .ytick text, .annotation-text, .gtitle, .xtitle, .ytitle')].filter(x => {
    const box = x.getBoundingClientRect();
    return box.width && (box.left < edge.left - 1 || box.right > edge.right + 1 ||
      box.top < edge.top - 1 || box.bottom > edge.bottom + 1)
  }).map(x => x.textContent) })"""


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    opened = browser.Browser(tmp_path_factory.mktemp("profile"))
    yield opened
    opened.close()


def opened(page, text, path):
    path.write_text(text, encoding="utf-8")
    page.errors.clear()
    page.requests.clear()
    page.open(path)
    return page


def test_the_page_of_a_sweep_is_drawn(page, catalogue_report, tmp_path):
    opened(page, laprox.plot.html(catalogue_report, needle=(20, 30)), tmp_path / "report.html")
    assert page.errors == [] and page.requests == []
    lines, regret, layers, heads, along, overlap = page.evaluate(DRAWN)
    policies = catalogue_report.sizes["policy"]
    for figure in (lines, layers):
        assert figure["lines"] >= policies - 1  # all but full, which has no error, and bands
    assert regret["lines"] >= policies - 1
    assert heads["maps"] == 5 and along["maps"] == 1 and overlap["maps"] == 1
    for name in map(str, catalogue_report.policy.values):
        assert name in along["texts"] and overlap["texts"].count(name) == 2
    assert "needle" in along["texts"]
    assert page.evaluate(CUT) == []


def test_the_best_policies_are_named_in_their_lines_colour(page, catalogue_report, tmp_path):
    opened(page, laprox.plot.html(catalogue_report, highlight=3), tmp_path / "report.html")
    best = list(laprox.plot.style.colours(catalogue_report, 3))
    for figure in page.evaluate(DRAWN)[:3]:
        assert all(figure["texts"].count(name) >= 1 for name in best)


def test_the_page_of_an_evaluation_is_drawn(page, tmp_path):
    rng = np.random.default_rng(0)
    policies, budgets = [f"policy-{i}" for i in range(30)], ["5%", "10%", "20%"]
    size = (4, len(policies), len(budgets))
    cells = {name: (("prompt", "policy", "budget"), rng.random(size)) for name in ("kl", "score", "model_relative_error")}
    cells["model_relative_error"][1].sort(0)
    report = xr.Dataset(
        cells
        | {"full_score": ("prompt", np.ones(4)), "fact_depth": ("prompt", [0.2, 0.8] * 2), "fact_length": ("prompt", [8, 8, 9, 9])},
        {"policy": policies, "budget": budgets, "prompt": list("abcd")},
    )
    report.model_relative_error.attrs["long_name"] = "relative error"
    opened(page, closed_loop.page(report), tmp_path / "eval.html")
    assert page.errors == [] and page.requests == []
    drawn = page.evaluate(
        """[...document.querySelectorAll('svg')].map(svg => [...svg.querySelectorAll('path, image, use')].filter(x => {
             const box = x.getBoundingClientRect(); return box.width > 1 && box.height > 1 }).length)"""
    )
    assert len(drawn) == len(closed_loop.FIGURES) and min(drawn[:3]) > len(policies)
    assert page.evaluate("[...document.querySelectorAll('svg image')].length") >= 5


@pytest.mark.parametrize(
    "body, errors, requests",
    [
        ("<script>console.error('lost')</script>", 1, 0),
        ("<script>throw Error('lost')</script>", 1, 0),
        ("<script src='https://example.org/plotly.js'></script>", 1, 1),
        ("<img src='missing.png'>", 1, 1),
    ],
)
def test_pages_that_fail_or_load_are_noticed(page, tmp_path, body, errors, requests):
    opened(page, f"<!doctype html><title>bad</title>{body}", tmp_path / "bad.html")
    assert len(page.errors) == errors and len(page.requests) == requests
