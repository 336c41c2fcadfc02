"""The catalogue of policies as a user meets it: its table, its oracles, its twins, and the whole of it in one sweep."""

import json
import pathlib
import re

import dumps
import h5py
import numpy as np
import pytest

DOCUMENT = pathlib.Path(__file__).parents[2] / "docs" / "policies.md"
BUDGETS = "5%,10%,20%,40%"


def names(laprox):
    """Every policy of the catalogue, as `laprox policies` lists them."""
    table = laprox("policies", "--format", "markdown").stdout.split("\n\n")[0]
    return [re.match(r"\| `([^`]+)`", line).group(1) for line in table.splitlines()[2:]]


def model_rows(text):
    return {(row["policy"], row["budget"]): row for row in json.loads(text)["rows"] if row["layer"] == "model"}


def test_the_document_has_the_catalogue_as_it_is(laprox):
    shown = re.search(r"<!-- policies:begin -->\n(.*)\n<!-- policies:end -->", DOCUMENT.read_text(), re.DOTALL).group(1)
    assert shown.strip() == laprox("policies", "--format", "markdown").stdout.strip()


def test_every_policy_is_described_in_full(laprox):
    for name in names(laprox) + ["head", "layer", "ada", "pyramid", "cake", "lava", "global"]:
        assert name in laprox("policies", name).stdout
    both = laprox("policies", "cake").stdout
    assert "cake (scorer)" in both and "cake (allocator)" in both
    assert "snapkv+pyramid" in laprox("policies", "pyramidkv").stdout


def test_the_whole_catalogue_sweeps_the_bundled_dump(laprox, bundled):
    everything = names(laprox)
    rows = model_rows(laprox("sweep", bundled, "--policy", "all", "--budget", BUDGETS, "--format", "json", "--quiet").stdout)
    assert len(rows) == 4 * len(everything)
    for (policy, budget), row in rows.items():
        assert policy == "full" or row["kept_pairs"] == 16 * row["budget_tokens"], policy

    def error(policy):
        return [rows[policy, budget]["relative_error"] for budget in BUDGETS.split(",")]

    deployable = [policy for policy in everything if policy not in ("full", "oracle", "greedy")]
    for best in ("oracle", "greedy"):
        assert all(all(mine < other for mine, other in zip(error(best), error(policy))) for policy in deployable)
    for budget in BUDGETS.split(","):
        assert rows["random", budget]["regret"] == 1 and rows["oracle", budget]["regret"] == 0
        oracle, random, mine = (rows[policy, budget]["relative_error"] for policy in ("oracle", "random", "snapkv"))
        assert rows["snapkv", budget]["regret"] == pytest.approx((mine - oracle) / (random - oracle))


def test_regret_is_undefined_where_oracle_and_random_keep_the_same_entries(laprox, tmp_path):
    """Their errors in layers 7 and 10 differ by the rounding of two walks."""
    path = dumps.write_dump(tmp_path / "close.h5", context=9, tokens=29, heads=[(1, 1)] * 12, seed=8)
    report = tmp_path / "report.h5"
    laprox("sweep", path, "--policy", "random,oracle,h2o", "--budget", "2,5,8", "-o", report, "--save-kept")
    with h5py.File(report) as file:
        starts, tokens, regret = file["kept/start"][0, :2, :, :, 0], file["kept/tokens"][()], file["regret"][0]
    same = [layer for layer in range(12) if np.array_equal(*[tokens[start : start + 8] for start in starts[:, 2, layer]])]
    assert same == [3, 7, 10] and np.isnan(regret[:, 2, same]).all()
    assert np.nanmax(np.abs(regret)) < 1e3


def test_the_description_of_a_policy_and_its_row_agree_on_nesting(laprox):
    rows = [line.split(" | ") for line in laprox("policies", "--format", "markdown").stdout.split("\n\n")[0].splitlines()]
    nested = {row[0].strip("| `"): row[rows[0].index("nested")] for row in rows[2:]}
    for name, told in nested.items():
        said = next(line for line in laprox("policies", name).stdout.splitlines() if "Nested" in line)
        assert said.split(": ")[1].startswith(told), (name, said)
    assert "no with the split cake, yes with a nested one" in laprox("policies", "cake").stdout


def test_policies_that_keep_the_same_entries_are_said_to(laprox, bundled, tmp_path):
    report = tmp_path / "report.h5"
    command = ["sweep", bundled, "--policy", "snapkv,snapkv+ada:floor=1,recent", "--budget", "64", "-o", report]
    table = laprox(*command, "--show-plan")
    assert "snapkv+ada:floor=1 at 64 is snapkv" in table.stdout
    assert "(exactly what snapkv keeps)" in table.stderr
    rows = model_rows(laprox("report", report, "--format", "json").stdout)
    assert rows["snapkv+ada:floor=1", "64"]["identical_to"] == "snapkv" and rows["recent", "64"]["identical_to"] == ""


def test_an_oracle_takes_part_in_no_comparison(laprox, bundled):
    text = laprox("sweep", bundled, "--policy", "recent,snapkv,oracle", "--budget", "205").stdout

    def row(name):
        return next(line for line in text.splitlines() if line.startswith(name))

    assert "0.288516*" in row("snapkv") and "*" not in row("oracle") and "does not compete: oracle" in text


def test_published_code_that_overspends_is_marked(laprox, bundled):
    text = laprox("sweep", bundled, "--policy", "snapkv,knorm:skip-layers=2", "--budget", "64").stdout
    assert "does not keep the budget, and does not compete: knorm:skip-layers=2" in text


def test_a_table_can_show_another_figure(laprox, bundled, tmp_path):
    report = tmp_path / "report.h5"
    laprox("sweep", bundled, "--policy", "recent,snapkv", "--budget", "205", "-o", report)
    assert "Attention mass" in laprox("report", report, "--metric", "retained_mass").stdout
    assert "random and oracle" in laprox("report", report, "--metric", "regret", expect=2).stderr


def test_greedy_elimination_refuses_long_contexts_before_any_work(laprox, tmp_path):
    path = tmp_path / "long.h5"
    laprox("synth", "-o", path, "--preset", "tiny", "--tokens", 4200, "--layers", 1, "--queries", "recent:32", "--quiet")
    message = laprox("sweep", path, "--policy", "greedy", "--budget", "5%", expect=2).stderr
    assert "4200" in message and "4096" in message
