"""Bad input: the right exit code, a message that names file, object, expectation and find, and no file destroyed."""

import json

import dumps
import h5py
import numpy as np
import pytest


def replace(file, name, values):
    del file[name]
    file[name] = values


def poke(file, name, index, value):
    values = file[name][()]
    values[index] = value
    file[name][...] = values


def shorten(file, name):
    replace(file, name, file[name][()][..., :-1])


def move_query(file, index, position):
    positions = file["query_positions"][()]
    positions[index] = position
    file["query_positions"][...] = positions


# What breaks the dump, and the words that the message must hold.
BROKEN = {
    "no format": (lambda f: f.attrs.__delitem__("format"), ["attribute format", "laprox-dump", "nothing"]),
    "another format": (lambda f: f.attrs.__setitem__("format", "other"), ["attribute format", '"other"']),
    "format that is a number": (lambda f: f.attrs.__setitem__("format", 3), ["attribute format", "string"]),
    "version 2": (lambda f: f.attrs.__setitem__("version", 2), ["attribute version", "found 2"]),
    "version that is a text": (lambda f: f.attrs.__setitem__("version", "1"), ["attribute version", "integer"]),
    "no context length": (lambda f: f.attrs.__delitem__("context_length"), ["context_length", "nothing"]),
    "context length 0": (lambda f: f.attrs.__setitem__("context_length", 0), ["context_length", "1 to T = 48", "found 0"]),
    "context length beyond the tokens": (lambda f: f.attrs.__setitem__("context_length", 49), ["context_length", "found 49"]),
    "context length that is no integer": (lambda f: f.attrs.__setitem__("context_length", 4.5), ["context_length", "integer"]),
    "an empty attribute": (lambda f: f.attrs.__setitem__("context_length", h5py.Empty("i8")), ["context_length", "one value"]),
    "no layers": (lambda f: f.__delitem__("layers"), ["/layers", "nothing"]),
    "an empty layers group": (lambda f: [f.__delitem__(f"layers/{i}") for i in (0, 1)], ["/layers", "at least one layer"]),
    "a gap in the layers": (lambda f: f.move("layers/1", "layers/2"), ["/layers", "without gaps", "no layer 1"]),
    "a layer that is no number": (lambda f: f.move("layers/1", "layers/x"), ["/layers", "'x'"]),
    "a layer that is a dataset": (lambda f: replace(f, "layers/1", np.zeros(3)), ["/layers/1", "a group"]),
    "no keys": (lambda f: f.__delitem__("layers/1/k"), ["/layers/1/k", "nothing"]),
    "keys that are a group": (
        lambda f: [f.__delitem__("layers/1/k"), f.create_group("layers/1/k")],
        ["/layers/1/k", "a dataset", "a group"],
    ),
    "a link to nowhere": (lambda f: replace(f, "layers/1/v", h5py.SoftLink("/nowhere")), ["/layers/1/v", "nothing"]),
    "integers": (lambda f: replace(f, "layers/1/q", np.zeros((4, 48, 8), "i4")), ["/layers/1/q", "float16", "32-bit integer"]),
    "bfloat16 bits without the mark": (lambda f: replace(f, "layers/1/q", np.zeros((4, 48, 8), "u2")), ["/layers/1/q", "bfloat16"]),
    "complex numbers": (lambda f: replace(f, "layers/1/q", np.zeros((4, 48, 8), "c8")), ["/layers/1/q", "compound"]),
    "strings": (lambda f: replace(f, "layers/1/q", np.array([b"a"])), ["/layers/1/q", "string"]),
    "a scalar": (lambda f: replace(f, "layers/1/q", np.float32(1)), ["/layers/1/q", "scalar"]),
    "nothing in a dataset": (lambda f: replace(f, "layers/1/q", h5py.Empty("f4")), ["/layers/1/q"]),
    "a wrong rank": (lambda f: replace(f, "layers/1/q", np.zeros((4, 48), "f4")), ["/layers/1/q", "[4, 48]"]),
    "queries that are too few": (lambda f: replace(f, "layers/1/q", np.zeros((4, 47, 8), "f4")), ["/layers/1/q", "[4, 47, 8]"]),
    "keys of another size": (lambda f: shorten(f, "layers/1/k"), ["/layers/1/k", "[2, 48, 7]"]),
    "keys of another length": (lambda f: replace(f, "layers/1/k", np.zeros((2, 40, 8), "f4")), ["/layers/1/k", "[2, 40, 8]"]),
    "values of no size": (lambda f: replace(f, "layers/1/v", np.zeros((2, 48, 0), "f4")), ["/layers/1/v", "[2, 48, 0]"]),
    "heads that do not divide": (
        lambda f: [replace(f, f"layers/1/{n}", np.zeros((3, 48, 8), "f4")) for n in "kv"],
        ["/layers/1", "multiple", "H_kv = 3"],
    ),
    "a transposed projection": (lambda f: replace(f, "layers/1/w_o", np.zeros((16, 32), "f4")), ["/layers/1/w_o", "[16, 32]"]),
    "a projection that is too wide": (
        lambda f: replace(f, "layers/1/w_o", np.zeros((32, 17), "f4")),
        ["/layers/1/w_o", "[32, 17]"],
    ),
    "a bias of another size": (lambda f: f.__setitem__("layers/1/b_o", np.zeros(15)), ["/layers/1/b_o", "[15]"]),
    "too few sinks": (lambda f: f.__setitem__("layers/1/sinks", np.zeros(3)), ["/layers/1/sinks", "[3]"]),
    "an infinite sink": (lambda f: f.__setitem__("layers/1/sinks", np.full(4, np.inf)), ["/layers/1/sinks", "finite", "inf"]),
    "NaN in a bias": (lambda f: f.__setitem__("layers/1/b_o", np.full(16, np.nan)), ["/layers/1/b_o", "finite", "nan"]),
    "NaN in q": (lambda f: poke(f, "layers/1/q", (0, 0, 0), np.nan), ["/layers/1/q", "finite", "nan", "[0, 0, 0]"]),
    "infinity in k": (lambda f: poke(f, "layers/1/k", (1, 47, 7), np.inf), ["/layers/1/k", "finite", "inf", "[1, 47, 7]"]),
    "NaN in v": (lambda f: poke(f, "layers/0/v", (0, 3, 0), np.nan), ["/layers/0/v", "finite", "nan"]),
    "infinity in w_o": (lambda f: poke(f, "layers/0/w_o", (3, 3), -np.inf), ["/layers/0/w_o", "finite", "-inf"]),
    "no query positions": (lambda f: f.__delitem__("query_positions"), ["/query_positions", "nothing"]),
    "a negative position": (lambda f: move_query(f, 0, -1), ["/query_positions", "-1"]),
    "a position twice": (lambda f: move_query(f, 1, 0), ["/query_positions", "ascending"]),
    "a position beyond the tokens": (lambda f: move_query(f, 47, 99), ["/query_positions", "99"]),
    "positions that are no integers": (lambda f: replace(f, "query_positions", np.arange(48.0)), ["/query_positions", "int64"]),
    "an output without positions": (
        lambda f: f.__setitem__("layers/0/output", np.zeros((2, 16))),
        ["/output_positions", "nothing"],
    ),
    "output positions that are no queries": (lambda f: f.__setitem__("output_positions", np.array([3, 48])), ["/output_positions"]),
    "an output of another size": (
        lambda f: [f.__setitem__("output_positions", np.array([3])), f.__setitem__("layers/0/output", np.zeros((1, 9)))],
        ["/layers/0/output", "[1, 9]"],
    ),
    "more RoPE frequencies than pairs of channels": (
        lambda f: f.__setitem__("layers/1/rope_inv_freq", np.ones(5)),
        ["/layers/1/rope_inv_freq", "d / 2 = 4", "found 5"],
    ),
    "NaN among RoPE frequencies": (
        lambda f: f.__setitem__("layers/1/rope_inv_freq", np.full(4, np.nan)),
        ["/layers/1/rope_inv_freq", "finite", "nan"],
    ),
    "scale 0": (lambda f: f["layers/1"].attrs.__setitem__("scale", 0.0), ["/layers/1", "scale", "found 0"]),
    "scale NaN": (lambda f: f["layers/1"].attrs.__setitem__("scale", np.nan), ["/layers/1", "scale", "nan"]),
    "scale that is a text": (lambda f: f["layers/1"].attrs.__setitem__("scale", "x"), ["/layers/1", "scale", "string"]),
    "a negative soft-cap": (lambda f: f["layers/1"].attrs.__setitem__("softcap", -1.0), ["/layers/1", "softcap", "-1"]),
    "a negative sliding window": (
        lambda f: f["layers/1"].attrs.__setitem__("sliding_window", -3),
        ["/layers/1", "sliding_window", "-3"],
    ),
    "token ids that are too few": (lambda f: f.__setitem__("token_ids", np.zeros(3, "i4")), ["/token_ids", "[3]"]),
}


def small_dump(path):
    return dumps.write_dump(path, context=40, tokens=48, heads=[(4, 2), (4, 2)], head_size=8, value_size=8, model_size=16)


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_dump_is_refused_and_nothing_is_overwritten(laprox, tmp_path, how):
    path, output = small_dump(tmp_path / "broken.h5"), tmp_path / "report.h5"
    change, words = BROKEN[how]
    with h5py.File(path, "r+") as file:
        change(file)
    for kind, command in (
        ("report", ["inspect", path]),
        ("report", ["sweep", path, "--policy", "snapkv", "--budget", "36", "-o", output, "--force"]),
        ("scores", ["score", path, "--policy", "laprox", "-o", output, "--force"]),
    ):
        output.write_bytes(dumps.nothing_but(f"laprox-{kind}"))
        before = output.read_bytes()
        done = laprox(*command, expect=3)
        assert str(path) in done.stderr
        for word in words:
            assert word in done.stderr, f"{word} is not in: {done.stderr}"
        assert done.stdout == ""
        assert output.read_bytes() == before
        assert [p.name for p in tmp_path.iterdir() if p.suffix == ".part"] == []


@pytest.mark.parametrize("content", ["", "hello", "half", "cut", "directory", "missing"])
def test_what_is_no_dump_at_all_is_refused(laprox, tmp_path, content):
    path = tmp_path / "broken.h5"
    if content == "directory":
        path.mkdir()
    elif content in ("half", "cut"):
        whole = small_dump(path).read_bytes()
        path.write_bytes(whole[: len(whole) // 2 if content == "half" else -100])
    elif content != "missing":
        path.write_text(content)
    assert str(path) in laprox("inspect", path, expect=3).stderr


def test_a_value_beyond_float32_is_refused_by_cpu_and_taken_by_reference(laprox, tmp_path):
    path = dumps.write_dump(tmp_path / "large.h5", context=40, tokens=48, heads=[(2, 1)], dtype="float64")
    with h5py.File(path, "r+") as file:
        poke(file, "layers/0/v", (0, 0, 0), 1e100)
    ask = ["sweep", path, "--policy", "recent", "--budget", "20"]
    assert "--backend reference" in laprox(*ask, expect=3).stderr
    assert "recent  1.0" in laprox(*ask, "--backend", "reference").stdout
    with h5py.File(path, "r+") as file:
        poke(file, "layers/0/v", (0, 0, 0), 1e300)  # whose square is beyond float64
    done = laprox(*ask, "--backend", "reference", expect=4)
    assert "not finite" in done.stderr and "scale the dump's tensors" in done.stderr and "--backend" not in done.stderr


def test_a_score_beyond_float64_is_refused_without_advice_to_take_the_backend_that_refuses(laprox, tmp_path):
    path = dumps.write_dump(tmp_path / "large.h5", context=40, tokens=48, heads=[(2, 1)], dtype="float64")
    with h5py.File(path, "r+") as file:
        for name in ("q", "k"):
            file[f"layers/0/{name}"][...] *= 1e160
    done = laprox("sweep", path, "--policy", "snapkv", "--budget", "36", "--backend", "reference", expect=4)
    assert "the score is" in done.stderr and "scale the dump's tensors" in done.stderr and "--backend" not in done.stderr


@pytest.mark.parametrize(("name", "factor"), [("v", 1e-162), ("v", 1e-200), ("w_o", 1e-170)])
def test_values_whose_squares_float64_cannot_hold_are_refused_by_the_reference_too(laprox, tmp_path, name, factor):
    path = dumps.write_dump(tmp_path / "small.h5", context=40, tokens=48, heads=[(2, 1), (2, 1)], dtype="float64")
    with h5py.File(path, "r+") as file:
        file[f"layers/1/{name}"][...] *= factor
    for policy in ("recent", "h2o"):
        done = laprox("sweep", path, "--policy", policy, "--budget", "20", "--backend", "reference", expect=4)
        assert "layer 1" in done.stderr and "below what float64 can tell from 0" in done.stderr
        assert "scale the dump's tensors" in done.stderr and "--backend" not in done.stderr


def beside_sinks(path, logit):
    dumps.write_dump(path, context=40, tokens=48, heads=[(4, 2)], sinks=True, spread=0.3)
    with h5py.File(path, "r+") as file:
        file["layers/0/sinks"][2:] = logit
    return path


def test_weights_whose_squares_float32_cannot_hold_beside_a_sink_are_refused_and_not_counted_as_0(laprox, tmp_path):
    path = beside_sinks(tmp_path / "sinks.h5", 60)
    policies = ["--policy", "oracle,snapkv:window=4", "--budget", "20"]
    for command in (
        ["sweep", path, "--policy", "recent", "--budget", "20"],
        ["score", path, "--policy", "snapkv:window=4", "-o", tmp_path / "scores.h5"],
        ["verify", path, *policies, "--backend", "cpu"],
    ):
        done = laprox(*command, expect=4)
        assert "beside the sinks of KV head 1" in done.stderr and "--backend reference" in done.stderr
    laprox("sweep", path, *policies, "--backend", "reference")
    beside_sinks(path, 400)
    done = laprox("sweep", path, *policies, "--backend", "reference", expect=4)
    assert "beside the sinks of KV head 1" in done.stderr and "--backend" not in done.stderr


@pytest.mark.parametrize("logit", [25, 2000])
def test_ordinary_sinks_and_those_that_leave_nothing_are_never_refused(laprox, tmp_path, logit):
    """Beside a sink of 2000 weights are 0 in float64 too: what the head adds to the output is 0 in any framework."""
    path = beside_sinks(tmp_path / "sinks.h5", logit)
    rows = {b: laprox.sweep(path, ["oracle", "h2o"], [20], "--backend", b) for b in ("cpu", "reference")}
    for key, row in rows["reference"].items():
        assert float(rows["cpu"][key]["relative_error"]) == pytest.approx(float(row["relative_error"]), rel=1e-4)


@pytest.mark.parametrize("cap", [1e-40, 1e-300, 1e300])
def test_a_softcap_beyond_float32_makes_no_difference(laprox, tmp_path, cap):
    path = dumps.write_dump(tmp_path / "capped.h5", context=40, tokens=48, heads=[(2, 1)], softcap=cap)
    rows = {b: laprox.sweep(path, ["snapkv:window=4", "h2o"], [20], "--backend", b) for b in ("cpu", "reference")}
    for key, row in rows["reference"].items():
        assert float(rows["cpu"][key]["relative_error"]) == pytest.approx(float(row["relative_error"]), rel=1e-4)


def test_a_bound_beyond_float32_is_refused_and_not_left_out(laprox, tmp_path):
    """The output is in range, and so is every tensor; the values' norms over the whole context are not."""
    path = dumps.write_dump(tmp_path / "large.h5", context=40, tokens=48, heads=[(2, 1)])
    with h5py.File(path, "r+") as file:
        file["layers/0/v"][...] = 1e25 * file["layers/0/v"][()]
    ask = ["sweep", path, "--policy", "recent", "--budget", "20", "--softmax", "truncated", "--format", "json"]
    assert "--backend reference" in laprox(*ask, expect=4).stderr
    layer = json.loads(laprox(*ask, "--backend", "reference").stdout)["rows"][0]
    assert layer["bound"] >= layer["relative_error"] > 0


@pytest.mark.parametrize(
    ("name", "dtype", "factor"), [("v", "float32", 1e-25), ("w_o", "float32", 1e-30), ("v", "float64", 1e-140)]
)
def test_values_whose_squares_float32_cannot_hold_are_refused_and_not_counted_as_0(laprox, tmp_path, name, dtype, factor):
    path = dumps.write_dump(tmp_path / "small.h5", context=40, tokens=48, heads=[(2, 1)], dtype=dtype)
    ask = ["sweep", path, "--policy", "laprox-r:window=8,pinned=8,joint=false", "--budget", "20", "--format", "json"]
    before = json.loads(laprox(*ask, "--backend", "reference").stdout)["rows"][0]["relative_error"]
    with h5py.File(path, "r+") as file:
        file[f"layers/0/{name}"][...] = factor * file[f"layers/0/{name}"][()]
    assert "--backend reference" in laprox(*ask, expect=4).stderr
    after = json.loads(laprox(*ask, "--backend", "reference").stdout)["rows"][0]["relative_error"]
    assert after == pytest.approx(before, rel=1e-5)


def test_a_residual_stream_too_small_to_divide_by_is_refused(laprox, tmp_path):
    path = dumps.write_dump(tmp_path / "small.h5", context=40, tokens=48, heads=[(2, 1)])
    with h5py.File(path, "r+") as file:
        file["layers/0/residual_norms"][...] = 1e-200
    assert "residual_norms" in laprox("sweep", path, "--policy", "recent", "--budget", "20", expect=4).stderr


def test_logits_beyond_float32_are_refused_and_not_computed_wrong(laprox, tmp_path):
    path = dumps.write_dump(tmp_path / "large.h5", context=40, tokens=48, heads=[(2, 1)])
    with h5py.File(path, "r+") as file:
        for name in ("q", "k"):
            file[f"layers/0/{name}"][...] = 1e25 * file[f"layers/0/{name}"][()]
    done = laprox("sweep", path, "--policy", "snapkv", "--budget", "36", expect=4)
    assert "--backend reference" in done.stderr


USAGE = {
    "a composition with an allocator": (
        ["--policy", "laprox-far+layer", "--budget", "36"],
        ["stands for laprox-r:far=64,far-weight=8", "write laprox-r+layer:far=64"],
    ),
    "unknown policy": (["--policy", "snapvk", "--budget", "36"], ["snapvk", "did you mean 'snapkv'"]),
    "unknown allocator": (["--policy", "snapkv+globl", "--budget", "36"], ["did you mean 'global'"]),
    "unknown option": (["--policy", "snapkv:windw=3", "--budget", "36"], ["windw", "window"]),
    "option out of range": (["--policy", "snapkv:window=0", "--budget", "36"], ["window", "integer from 1"]),
    "option that is no number": (["--policy", "snapkv:window=x", "--budget", "36"], ["window", "'x'"]),
    "option twice": (["--policy", "snapkv:window=3,window=4", "--budget", "36"], ["window", "twice"]),
    "even kernel": (["--policy", "snapkv:kernel=4", "--budget", "36"], ["kernel", "odd"]),
    "options that contradict": (["--policy", "laprox:gqa=frobenius,pool-stage=attn", "--budget", "36"], ["frobenius", "final"]),
    "a combination without sense": (["--policy", "h2o+layer", "--budget", "36"], ["h2o", "layer"]),
    "a score that one split alone can use": (["--policy", "criticalkv+global", "--budget", "36"], ["criticalkv", "head"]),
    "a split that asks what the scorer does not say": (["--policy", "snapkv+cake", "--budget", "36"], ["cake", "each layer"]),
    "queries before RoPE that cannot be had": (
        ["--policy", "expected-attention", "--budget", "36"],
        ["rope_inv_freq", "expected-attention"],
    ),
    "policy twice": (["--policy", "snapkv,snapkv", "--budget", "36"], ["snapkv", "twice"]),
    "budget below the window": (["--policy", "snapkv", "--budget", "31"], ["31", "snapkv", "32"]),
    "budget below the sinks": (["--policy", "streaming", "--budget", "3"], ["streaming", "4"]),
    "budget above the context": (["--policy", "recent", "--budget", "41"], ["41", "40"]),
    "budget of nothing": (["--policy", "recent", "--budget", "1%"], ["1%", "less than one token"]),
    "negative budget": (["--policy", "recent", "--budget=-5"], ["-5"]),
    "budget that is no number": (["--policy", "recent", "--budget", "many"], ["many", "5%"]),
    "budget above 100 percent": (["--policy", "recent", "--budget", "101%"], ["101%"]),
    "budget of half a token": (["--policy", "recent", "--budget", "2.5"], ["2.5"]),
    "no policy": (["--budget", "36"], ["--policy"]),
    "no budget": (["--policy", "recent"], ["--budget"]),
    "unknown backend": (["--policy", "recent", "--budget", "36", "--backend", "tpu"], ["tpu", "cpu"]),
    "unknown softmax": (["--policy", "recent", "--budget", "36", "--softmax", "hard"], ["hard", "truncated"]),
    "negative threads": (["--policy", "recent", "--budget", "36", "--threads=-1"], ["threads"]),
    "unknown flag": (["--policy", "recent", "--budget", "36", "--fast"], ["--fast"]),
}


@pytest.mark.parametrize("how", USAGE)
def test_a_request_that_cannot_be_met_is_a_usage_error(laprox, tmp_path, how):
    path, output = small_dump(tmp_path / "dump.h5"), tmp_path / "report.h5"
    arguments, words = USAGE[how]
    done = laprox("sweep", path, *arguments, "-o", output, expect=2)
    for word in words:
        assert word in done.stderr + done.stdout, f"{word} is not in: {done.stderr}"
    assert not output.exists()


def test_queries_that_the_dump_lacks_are_named(laprox, tmp_path):
    few = dumps.write_dump(tmp_path / "few.h5", context=60, tokens=64, heads=[(2, 1)], recent_queries=40)
    message = laprox("sweep", few, "--policy", "h2o", "--budget", "20", expect=2).stderr
    assert "h2o" in message and "positions 0 to 59" in message and "40 of these 60" in message
    fewer = dumps.write_dump(tmp_path / "fewer.h5", context=60, tokens=64, heads=[(2, 1)], recent_queries=8)
    assert "snapkv" in laprox("sweep", fewer, "--policy", "snapkv", "--budget", "40", expect=2).stderr


def test_without_decoded_queries_the_window_is_offered(laprox, tmp_path):
    path = dumps.write_dump(tmp_path / "prompt.h5", context=50, tokens=50, heads=[(2, 1)])
    assert "--queries window" in laprox("sweep", path, "--policy", "recent", "--budget", "20", expect=2).stderr
    laprox("sweep", path, "--policy", "recent", "--budget", "20", "--queries", "window")


@pytest.mark.parametrize("window, options", [(32, ()), (32, ("--window", 32)), (31, ("--window", 31))])
def test_a_window_longer_than_the_prompt_is_refused(laprox, tmp_path, window, options):
    """The report would say that so many queries judged."""
    path, output = dumps.write_dump(tmp_path / "dump.h5", context=30, tokens=34, heads=[(2, 1)]), tmp_path / "report.h5"
    command = ("sweep", path, "--policy", "recent", "--budget", "20", "-o", output, "--queries", "window")
    message = laprox(*command, *options, expect=2).stderr
    for words in (str(path), f"the last {window} prompt queries", "the prompt has 30 tokens", "--window of at most 30"):
        assert words in message, message
    assert not output.exists()
    laprox(*command, "--window", 30)
    assert "not more than the prompt has" in " ".join(laprox("sweep", "--help").stdout.split())


def test_an_existing_report_needs_force(laprox, bundled, tmp_path):
    output = tmp_path / "report.h5"
    command = ["sweep", bundled, "--policy", "recent", "--budget", "64", "-o", output]
    laprox(*command)
    before = output.read_bytes()
    command[3] = "random"
    assert "--force" in laprox(*command, expect=2).stderr
    assert output.read_bytes() == before
    laprox(*command, "--force")
    assert "random" in laprox("report", output).stdout


def test_force_replaces_only_what_the_command_writes(laprox, dump, tmp_path):
    sweep = ["sweep", dump, "--policy", "recent", "--budget", "20", "--quiet"]
    report, scores, other, text, empty = (tmp_path / f"{name}.h5" for name in ("report", "scores", "other", "text", "empty"))
    laprox(*sweep, "-o", report)
    laprox("score", dump, "--policy", "recent", "-o", scores)
    laprox("synth", "--preset", "tiny", "-o", other)
    text.write_text("precious")
    commands = {
        "a laprox report": [sweep, ["merge", report, "--quiet"]],
        "a file of laprox scores": [["score", dump, "--policy", "recent"]],
        "a laprox dump": [["synth", "--preset", "tiny"]],
    }
    there = {"a laprox report": report, "a file of laprox scores": scores, "a laprox dump": other, "no sound HDF5 file": text}
    for written, ways in commands.items():
        for command in ways:
            for found, path in there.items():
                if found == written:
                    continue
                before = path.read_bytes()
                done = laprox(*command, "-o", path, "--force", expect=2 if path in command else 3)
                assert str(path) in done.stderr and path.read_bytes() == before
                if path not in command:
                    assert f"is {found}" in done.stderr and f"only {written}" in done.stderr
            empty.write_bytes(b"")
            laprox(*command, "-o", empty, "--force")
        laprox(*ways[0], "-o", there[written], "--force")


def test_a_folder_that_cannot_be_written_is_named_before_the_work(laprox, bundled, tmp_path):
    output = tmp_path / "nowhere" / "report.h5"
    assert str(output) in laprox("sweep", bundled, "--policy", "recent", "--budget", "64", "-o", output, expect=3).stderr


@pytest.mark.parametrize("content", ["dump", "text", "missing"])
def test_what_is_no_report_is_refused(laprox, bundled, tmp_path, content):
    path = tmp_path / "report.h5"
    if content == "dump":
        path = bundled
    elif content == "text":
        path.write_text("hello")
    assert str(path) in laprox("report", path, expect=3).stderr
