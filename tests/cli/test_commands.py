"""What a user of the command line sees: help, formats, plans, reports."""

import csv
import hashlib
import io
import json

import dumps
import h5py
import numpy as np
import oracle
import pytest
import xarray

SUBCOMMANDS = ["inspect", "policies", "sweep", "score", "report", "verify", "synth"]


def test_help_lists_the_subcommands_and_shows_examples(laprox):
    text = laprox("--help").stdout
    for subcommand in SUBCOMMANDS:
        assert subcommand in text
    assert "Examples:" in text and "Exit codes" in text


@pytest.mark.parametrize("subcommand", SUBCOMMANDS)
def test_every_subcommand_has_help_with_an_example(laprox, subcommand):
    assert f"laprox {subcommand}" in laprox(subcommand, "--help").stdout


def test_without_a_subcommand_the_tool_says_so(laprox):
    assert "subcommand" in laprox(expect=2).stderr


def test_version(laprox):
    assert laprox("--version").stdout.startswith("laprox 0.")


def test_policies_are_listed_and_described(laprox):
    text = laprox("policies").stdout
    for name in ("full", "random", "recent", "streaming", "h2o", "snapkv", "laprox", "head", "layer", "ada", "global"):
        assert name in text
    assert "2605.07234" in laprox("policies", "laprox").stdout
    assert "did you mean 'laprox'" in laprox("policies", "laprx", expect=2).stderr


def test_inspect_proves_the_bundled_dump(laprox, bundled):
    layers = json.loads(laprox("inspect", bundled, "--format", "json").stdout)[0]["layers"]
    assert len(layers) == 8
    assert all(0 < layer["output_error"] < 2e-3 for layer in layers)
    text = laprox("inspect", bundled).stdout
    assert "1024 context + 24 decoded" in text and "self-check" in text and "FLOP" in text


@pytest.mark.parametrize(
    "words, said",
    [
        (["--format", "csv", "--compare", "snapkv,knorm"], "--compare shapes the table"),
        (["--format", "json", "--summary"], "--summary shapes the table"),
        (["--format", "csv", "--metric", "cosine-mean"], "--metric shapes the table"),
        (["--window", "5"], "--queries window"),
        (["--save-kept"], "without -o"),
    ],
)
def test_an_option_that_does_nothing_is_told(laprox, bundled, words, said):
    done = laprox("sweep", bundled, "--policy", "snapkv,knorm", "--budget", "40", *words)
    assert said in done.stderr and "does nothing" in done.stderr


def test_a_gpu_is_chosen_for_cuda_only(laprox, bundled):
    done = laprox("sweep", bundled, "--policy", "knorm", "--budget", "40", "--device", "0", expect=2)
    assert "--backend cuda" in done.stderr


@pytest.mark.parametrize("policy", ["knorm+global:normalize=true", "keydiff+lava", "rkv+global:normalize=true", "noncausal+lava"])
def test_shares_of_scores_below_zero_are_refused(laprox, bundled, policy):
    assert "may be below 0" in laprox("sweep", bundled, "--policy", policy, "--budget", "40", expect=2).stderr


def test_a_budget_in_two_spellings_is_given_twice(laprox, bundled):
    done = laprox("sweep", bundled, "--policy", "recent", "--budget", "5%,60,5.0%", expect=2)
    assert "budget '5.0%' is given twice (as '5%' too)" in done.stderr


def test_scores_below_zero_are_split_without_shares(laprox, bundled):
    both = "noncausal+global,noncausal+global:normalize=false"
    assert "is given twice" in laprox("sweep", bundled, "--policy", both, "--budget", "40", expect=2).stderr


def test_inspect_plans_the_sweep_that_is_asked_for(laprox, bundled):
    request = ("--policy", "snapkv,knorm", "--budget", "5%,40")
    plan = json.loads(laprox("inspect", bundled, *request, "--format", "json").stdout)[0]["plan"]
    assert plan["policies"] == ["snapkv", "knorm"] and plan["budgets"] == ["5%", "40"]
    assert plan["memory_bytes"] > 1e6 and plan["flops"] > 1e8 and plan["seconds"] > 0
    assert "a sweep of snapkv, knorm at 2 budgets" in laprox("inspect", bundled, *request).stdout
    unread = json.loads(laprox("inspect", bundled, *request, "--no-check", "--format", "json").stdout)[0]["plan"]
    assert unread == {**plan, "seconds": None}
    assert "40" in laprox("inspect", bundled, "--policy", "snapkv:window=64", "--budget", "40", expect=2).stderr


@pytest.mark.parametrize("feature", ["softcap", "sliding_window", "sinks", "scale", "w_o"])
def test_the_self_check_notices_a_dump_that_is_not_what_the_model_computed(laprox, tmp_path, feature):
    """The exact output of a dump with a feature, stored as `output`, no longer fits once the feature is changed in the file."""
    path = dumps.write_dump(
        tmp_path / "dump.h5", context=60, tokens=64, heads=[(4, 2)], softcap=2.0, sliding_window=20, sinks=True, bias=True
    )
    dump = oracle.read_dump(path)
    layer, rows = dump.layers[0], dump.decoded
    output = oracle.layer_output(layer, oracle.head_outputs(layer, oracle.attention(layer, rows, dump.positions)))
    with h5py.File(path, "r+") as file:
        file["output_positions"], file["layers/0/output"] = dump.positions[rows], output

    def error(expect):
        return json.loads(laprox("inspect", path, "--format", "json", expect=expect).stdout)[0]["layers"][0]["output_error"]

    assert error(0) < 1e-6
    with h5py.File(path, "r+") as file:
        group = file["layers/0"]
        if feature == "sinks":
            del group["sinks"]
        elif feature == "w_o":
            group["w_o"][...] = group["w_o"][()][::-1]
        else:
            group.attrs[feature] = dict(softcap=0.0, sliding_window=0, scale=0.3)[feature]
    assert error(5) > 0.01
    assert "/layers/0: the self-check failed" in laprox("inspect", path, expect=5).stderr
    sweep = ("sweep", path, "--policy", "recent", "--budget", "50%")
    assert "/layers/0: the self-check failed" in laprox(*sweep, expect=5).stderr
    assert "recent" in laprox(*sweep, "--no-check").stdout


def test_the_table_marks_the_best_policy_of_each_budget(laprox, bundled):
    lines = laprox("sweep", bundled, "--policy", "full,recent,laprox+layer", "--budget", "51,410").stdout.splitlines()

    def row(name):
        return next(line for line in lines if line.startswith(name))

    assert "0.493314*" in row("recent") and "0.280425*" not in row("recent")
    assert "0.084610*" in row("laprox+layer") and "*" not in row("full")


def test_a_report_prints_what_the_sweep_printed(laprox, bundled, tmp_path):
    report = tmp_path / "report.h5"
    for output in ("csv", "table", "json"):
        swept = laprox(
            "sweep",
            bundled,
            "--policy",
            "snapkv,laprox:gqa=frobenius,pool=max",
            "--budget",
            "5%,128",
            "-o",
            report,
            "--force",
            "--format",
            output,
        )
        assert laprox("report", report, "--format", output).stdout == swept.stdout
    rows = json.loads(laprox("report", report, "--format", "json").stdout)["rows"]
    assert len(rows) == 2 * 2 * 9 and rows[-1]["layer"] == "model"
    header = laprox("report", report, "--format", "csv").stdout.splitlines()[0]
    assert header.startswith("dump,policy,budget_tokens,layer,relative_error,retained_mass,cosine_mean,kept_pairs")


def test_a_report_has_named_dimensions_and_provenance(laprox, bundled, tmp_path):
    path = tmp_path / "report.h5"
    laprox(
        "sweep", bundled, "--policy", "snapkv,laprox", "--budget", "5%,128", "-o", path, "--softmax", "truncated", "--threads", 1
    )
    with xarray.open_dataset(path, engine="h5netcdf") as report:
        assert report.relative_error.dims == ("dump", "policy", "budget", "layer")
        assert report.kept_count.dims == ("dump", "policy", "budget", "layer", "kv_head")
        assert report.head_relative_error.dims == ("dump", "policy", "budget", "layer", "query_head")
        assert list(report.policy.values) == ["snapkv", "laprox"] and list(report.budget.values) == ["5%", "128"]
        assert report.budget_tokens.values.tolist() == [[51, 128]]
        assert (report.bound >= report.relative_error).all()
        assert report.policy_spec.values[1].startswith(
            "laprox+global:window=32,gqa=mean-product,pool=avg,kernel=7,sinks=0,pool-stage=attn,normalize=true"
        )
        assert report.attrs["softmax"] == "truncated" and report.attrs["threads"] == "1" and report.attrs["backend"] == "cpu"
        assert {"tool_version", "git_commit", "device", "queries"} <= set(report.attrs)
        assert report.dump_sha256.values[0] == hashlib.sha256(bundled.read_bytes()).hexdigest()
        pooled = float(report.model_relative_error.sel(policy="laprox", budget="5%")[0])
        kept = int(report.kept_count.sel(policy="laprox", budget="5%").sum())
    rows = laprox.sweep(bundled, ["laprox"], ["5%"], "--softmax", "truncated")
    assert float(rows["laprox", 51, "model"]["relative_error"]) == pytest.approx(pooled, rel=1e-6) and kept == 51 * 16


def test_several_dumps_are_several_samples(laprox, feature_dumps, tmp_path):
    first, second = feature_dumps["plain"], feature_dumps["float64-everything"]
    text = laprox("sweep", first, second, "--policy", "recent,snapkv", "--budget", "50%").stdout
    assert "+-" in text and "2 dumps" in text
    table = laprox("sweep", first, second, "--policy", "recent", "--budget", "50%", "--format", "csv").stdout
    errors = [float(row["relative_error"]) for row in csv.DictReader(io.StringIO(table)) if row["layer"] == "model"]
    assert len(errors) == 2
    recent = next(line for line in text.splitlines() if line.startswith("recent"))
    assert f"{np.mean(errors):.6f}" in recent and f"{np.std(errors, ddof=1):.6f}" in recent


def test_the_plan_is_printed_before_the_work(laprox, bundled):
    text = laprox("sweep", bundled, "--policy", "laprox+layer", "--budget", "64", "--show-plan").stderr
    lines = [line.split()[2:] for line in text.splitlines() if line.strip().startswith("layer")]
    assert len(lines) == 8 and all(sum(map(int, counts)) == 128 for counts in lines)


def test_a_configuration_file_gives_the_options(laprox, bundled, tmp_path):
    config = tmp_path / "sweep.toml"
    config.write_text(
        f'[sweep]\ndumps = ["{bundled}"]\npolicy = ["recent", "laprox:gqa=frobenius,pool=max"]\n'
        'budget = ["64", "5%"]\nformat = "csv"\n'
    )
    with_config = laprox("sweep", "--config", config).stdout
    assert (
        with_config
        == laprox(
            "sweep", bundled, "--policy", "recent,laprox:gqa=frobenius,pool=max", "--budget", "64,5%", "--format", "csv"
        ).stdout
    )


def test_a_configuration_file_is_no_output(laprox, bundled, tmp_path):
    config = tmp_path / "sweep.toml"
    config.write_text('[sweep]\npolicy = ["recent"]\nbudget = ["64"]\n')
    before = config.read_text()
    done = laprox("sweep", bundled, "--config", config, "-o", config, "--force", expect=2)
    assert "sweep.toml" in done.stderr and config.read_text() == before


@pytest.mark.parametrize("seed", ["-1", "18446744073709551616"])
def test_a_seed_is_not_wrapped(laprox, tmp_path, seed):
    said = laprox("synth", "--preset", "tiny", "--seed", seed, "-o", tmp_path / "dump.h5", expect=2).stderr
    assert "--seed" in said and "2^64 - 1" in said and seed in said and not (tmp_path / "dump.h5").exists()


def test_names_of_policies_and_options_are_forgiving(laprox, bundled):
    spelled = "laprox:gqa=mean_product,pool_stage=attn"
    rows = laprox.sweep(bundled, ["recent", spelled], [64])
    assert (
        rows[spelled, 64, "model"]["relative_error"]
        == laprox.sweep(bundled, ["laprox"], [64])["laprox", 64, "model"]["relative_error"]
    )


def test_a_budget_in_bytes(laprox, bundled):
    # 8 layers x 2 KV heads x (64 + 64) float16 values: 4096 bytes per token of all heads.
    rows = laprox.sweep(bundled, ["recent"], ["0.25MiB"])
    assert ("recent", 64, "model") in rows


def test_scores_for_kernel_authors(laprox, feature_dumps, tmp_path):
    path, output = feature_dumps["plain"], tmp_path / "scores.h5"
    laprox("score", path, "--policy", "laprox+layer", "--budget", "40,50", "-o", output, "--backend", "reference")
    dump = oracle.read_dump(path)
    expected = oracle.window_scores(dump, "laprox")
    with h5py.File(output) as file:
        assert oracle.text(file.attrs["format"]) == "laprox-scores" and oracle.text(file.attrs["budgets"]) == "40,50"
        for i, scores in enumerate(expected):
            layer = file[f"layers/{i}"]
            np.testing.assert_allclose(layer["scores"][:, : dump.context - 32], scores, rtol=1e-9)
            np.testing.assert_allclose(layer["value_norms"][()], oracle.value_norms(dump.layers[i])[:, : dump.context], rtol=1e-9)
            weights = oracle.attention(dump.layers[i], dump.window, dump.positions)[:, :, : dump.context]
            np.testing.assert_allclose(layer["column_norms"][()], np.linalg.norm(weights, axis=1), rtol=1e-9, atol=1e-300)
            for b, budget in enumerate((40, 50)):
                assert (layer["kept"][b].astype(bool) == oracle.kept_masks(dump, "laprox+layer", budget)[i]).all()
            assert (np.sort(layer["ranking"][()], axis=1) == np.arange(dump.context)).all()


def test_progress_goes_to_stderr_only(laprox, bundled):
    done = laprox("sweep", bundled, "--policy", "recent", "--budget", "64", "--format", "csv")
    assert done.stdout.startswith("dump,policy")


def test_synthetic_dumps_are_the_same_bytes_again(laprox, tmp_path):
    """Of the tensors: their hash stands here so that another machine or compiler shows. The norms have their own."""
    digests, norms = [], []
    for name in ("a", "b"):
        path = tmp_path / f"{name}.h5"
        laprox("synth", "-o", path, "--preset", "tiny", "--tokens", "100", "--seed", "3", "--sinks", "--bias", "--dtype", "float32")
        digest, of_norms = hashlib.sha256(), hashlib.sha256()

        def add(name, item):
            if isinstance(item, h5py.Dataset):
                (of_norms if name.endswith("residual_norms") else digest).update(name.encode() + item[()].tobytes())

        with h5py.File(path) as file:
            file.visititems(add)
        digests.append(digest.hexdigest())
        norms.append(of_norms.hexdigest())
    assert digests == ["e86d14c0fd98a8dbc0934eb006bae714d8b397daa3b83b63d6b673de71790f93"] * 2
    assert norms == ["24a8a4bbde7f01e6ff3a93aa90c9241aff5a50cf7019a1a590605f953b4e196e"] * 2


@pytest.mark.parametrize(
    "preset", ["llama-3.1-8b", "qwen3-8b", "mistral-7b", "gpt-oss-20b", "gemma-2-9b", "deepseek-v2-lite", "tiny"]
)
def test_presets_give_dumps_that_can_be_swept(laprox, tmp_path, preset):
    path = tmp_path / "dump.h5"
    laprox("synth", "-o", path, "--preset", preset, "--tokens", 150, "--decode", 4, "--layers", 2, "--model-size", 64, "--quiet")
    rows = laprox.sweep(path, ["full", "random", "snapkv", "laprox"], [60])
    assert float(rows["full", 60, "model"]["relative_error"]) == 0
    assert 0 < float(rows["laprox", 60, "model"]["relative_error"]) < float(rows["random", 60, "model"]["relative_error"])


def test_synth_refuses_what_it_cannot_make(laprox, tmp_path):
    path = tmp_path / "dump.h5"
    assert "did you mean 'llama-3.1-8b'" in laprox("synth", "-o", path, "--preset", "llama", expect=2).stderr
    assert "multiple" in laprox("synth", "-o", path, "--preset", "tiny", "--query-heads", 3, expect=2).stderr
    assert "recent" in laprox("synth", "-o", path, "--preset", "tiny", "--queries", "some", expect=2).stderr
    path.write_text("precious")
    assert "--force" in laprox("synth", "-o", path, "--preset", "tiny", expect=2).stderr
    assert path.read_text() == "precious"
