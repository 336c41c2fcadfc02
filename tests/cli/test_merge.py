"""Reports of several runs: merged, resumed, compared, and of dumps that a list or a pattern names."""

import dumps
import h5py
import numpy as np
import pytest

SWEEP = ("--policy", "recent,snapkv:window=8,knorm,oracle,random", "--budget", "40%,60%", "--save-kept", "--quiet")


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    """Dumps of other lengths, layers and heads."""
    folder = tmp_path_factory.mktemp("three")
    shapes = ([(4, 2)], [(4, 2), (6, 3)], [(2, 1), (2, 2), (4, 4)])
    return [
        dumps.write_dump(folder / f"d{n}.h5", context=60 + 10 * n, tokens=66 + 10 * n, heads=heads, seed=n)
        for n, heads in enumerate(shapes)
    ]


def test_merged_reports_are_what_one_sweep_writes(laprox, three, tmp_path):
    whole, first, rest, merged = (tmp_path / f"{name}.h5" for name in ("whole", "first", "rest", "merged"))
    table = laprox("sweep", *three, *SWEEP, "-o", whole).stdout
    laprox("sweep", three[0], *SWEEP, "-o", first)
    laprox("sweep", three[1], three[2], *SWEEP, "-o", rest)
    laprox("merge", first, rest, "-o", merged)
    assert merged.read_bytes() == whole.read_bytes()
    assert laprox("report", merged).stdout == table


def test_a_resumed_sweep_equals_one_that_was_not_interrupted(laprox, three, tmp_path):
    whole, part = tmp_path / "whole.h5", tmp_path / "part.h5"
    table = laprox("sweep", *three, *SWEEP, "-o", whole).stdout
    laprox("sweep", three[2], three[0], *SWEEP, "-o", part)
    done = laprox("sweep", *three, *SWEEP, "-o", part, "--resume")
    assert done.stdout == table and done.stderr.count("already") == 2
    assert part.read_bytes() == whole.read_bytes()
    again = laprox("sweep", *three, *SWEEP, "-o", part, "--resume")
    assert again.stdout == table and part.read_bytes() == whole.read_bytes()
    fresh = tmp_path / "fresh.h5"
    laprox("sweep", *three, *SWEEP, "-o", fresh, "--resume")
    assert fresh.read_bytes() == whole.read_bytes()


def test_a_resumed_sweep_refuses_a_dump_that_changed_and_names_what_was_not_asked_for(laprox, three, tmp_path):
    report, changed = tmp_path / "report.h5", tmp_path / "changed.h5"
    changed.write_bytes(three[0].read_bytes())
    laprox("sweep", changed, three[1], *SWEEP, "-o", report)
    said = laprox("sweep", three[1], three[2], *SWEEP, "-o", report, "--resume").stderr
    assert f"holds {changed} too, which was not asked for" in said and said.count("too, which") == 1
    with h5py.File(report) as file:
        assert len(file["dump"]) == 3
    before = report.read_bytes()
    with h5py.File(changed, "r+") as file:
        file["layers/0/k"][0, 0, 0] += 1
    said = laprox("sweep", changed, *SWEEP, "-o", report, "--resume", expect=2).stderr
    assert f"{changed}: has changed since" in said and report.read_bytes() == before


def test_a_report_says_where_the_check_was_left_out(laprox, bundled, three, tmp_path):
    checked, unchecked, merged = (tmp_path / f"{name}.h5" for name in ("checked", "unchecked", "merged"))
    arguments = ("--policy", "recent,knorm", "--budget", "40%", "--quiet")
    assert "check of" not in laprox("sweep", bundled, *arguments, "-o", checked).stdout
    assert "check of stored outputs: left out" in laprox("sweep", three[0], *arguments, "--no-check", "-o", unchecked).stdout
    said = laprox("sweep", bundled, *arguments, "-o", unchecked, "--resume", expect=2).stderr
    assert "other checks of stored outputs (--no-check)" in said
    assert "differ in check: done | left out" in laprox("merge", checked, unchecked, "-o", merged).stderr
    assert "check of stored outputs: done | left out" in laprox("report", merged).stdout


def test_common_parts_are_merged_and_the_rest_is_named(laprox, three, tmp_path):
    a, b, merged = (tmp_path / f"{name}.h5" for name in "abm")
    laprox("sweep", three[0], "--policy", "recent,knorm", "--budget", "40%,60%", "-o", a)
    laprox("sweep", three[1], "--policy", "knorm,snapkv:window=8", "--budget", "60%", "--save-kept", "-o", b)
    said = laprox("merge", a, b, "-o", merged).stderr
    assert "recent" in said and "snapkv:window=8" in said and "40%" in said and "kept tokens are left out" in said
    with h5py.File(a) as first, h5py.File(b) as second, h5py.File(merged) as found:
        assert [name.decode() for name in found["policy"]] == ["knorm"] and len(found["dump"]) == 2
        np.testing.assert_array_equal(found["model_relative_error"][0, 0, 0], first["model_relative_error"][0, 1, 1])
        np.testing.assert_array_equal(found["relative_error"][1, 0, 0], second["relative_error"][0, 0, 0])


@pytest.mark.parametrize("token, index", [(2**40, -1), (80, -1), (60, 0), (-1, 0), (0, 1), (2**31, 3)])
def test_kept_tokens_that_no_prompt_has_are_refused(laprox, three, tmp_path, token, index):
    """They were cut to 32 bits and handed on; a prompt's tokens end with its own context, not with the longest one's."""
    a, b, merged = (tmp_path / f"{name}.h5" for name in "abm")
    laprox("sweep", three[0], three[2], *SWEEP, "-o", a)
    laprox("sweep", three[1], *SWEEP, "-o", b)
    with h5py.File(a, "r+") as file:
        tokens = file["kept/tokens"][()].astype("i8")
        tokens[index] = token
        del file["kept/tokens"]
        file["kept/tokens"] = tokens
    message = laprox("merge", a, b, "-o", merged, expect=3).stderr
    assert "/kept/tokens: expected ascending tokens of each cell, from 0 to " in message and f"found {token} after" in message
    assert not merged.exists()


def test_what_does_not_belong_together_is_refused(laprox, three, tmp_path):
    a, b, c = (tmp_path / f"{name}.h5" for name in "abc")
    laprox("sweep", three[0], "--policy", "recent", "--budget", "40%", "-o", a)
    laprox("sweep", three[0], three[1], "--policy", "recent", "--budget", "40%", "-o", b)
    laprox("sweep", three[1], "--policy", "recent", "--budget", "40%", "--softmax", "truncated", "-o", c)
    assert "would count twice" in laprox("merge", a, b, "-o", tmp_path / "m.h5", expect=2).stderr
    assert "softmax" in laprox("merge", a, c, "-o", tmp_path / "m.h5", expect=2).stderr
    laprox("sweep", three[1], "--policy", "recent", "--budget", "40%", "--schedule", "step", "-o", c, "--force")
    assert "its schedule is step" in laprox("merge", a, c, "-o", tmp_path / "m.h5", expect=2).stderr
    assert "exists" in laprox("merge", a, "-o", b, expect=2).stderr
    before = a.read_bytes()
    same = laprox("merge", a, "-o", a, "--force", expect=2)
    assert "a.h5" in same.stderr and a.read_bytes() == before
    assert not (tmp_path / "m.h5").exists()
    other = laprox("sweep", three[1], "--policy", "knorm", "--budget", "40%", "-o", a, "--resume", expect=2)
    assert "made with other policies" in other.stderr and a.read_bytes() == before
    assert "name it with -o" in laprox("sweep", three[1], *SWEEP, "--resume", expect=2).stderr


def test_lists_and_patterns_name_dumps(laprox, three, tmp_path):
    (tmp_path / "list.txt").write_text(f"# mine\n{three[0]}\n\n  {three[1]}   # the second\n{three[2]}\n")
    table = laprox("sweep", *three, *SWEEP).stdout
    assert laprox("sweep", f"@{tmp_path / 'list.txt'}", *SWEEP).stdout == table
    assert laprox("sweep", three[0].parent / "d*.h5", *SWEEP).stdout == table
    assert "no file matches" in laprox("sweep", tmp_path / "*.h5", *SWEEP, expect=3).stderr
    (tmp_path / "empty.txt").write_text("# nothing\n")
    assert "a path on each line" in laprox("sweep", f"@{tmp_path / 'empty.txt'}", *SWEEP, expect=2).stderr
    assert "a path on each line" in laprox("sweep", f"@{tmp_path / 'none.txt'}", *SWEEP, expect=3).stderr


def test_two_reports_are_compared_in_what_both_have(laprox, three, tmp_path):
    a, b = tmp_path / "a.h5", tmp_path / "b.h5"
    laprox("sweep", three[0], three[1], "--policy", "recent,snapkv:window=8,knorm", "--budget", "40%,60%", "-o", a)
    laprox(
        "sweep", three[1], three[2], "--policy", "snapkv:window=8,knorm,h2o", "--budget", "40%", "--backend", "reference", "-o", b
    )
    done = laprox("compare", a, b)
    rows = {line.split()[0]: line.split() for line in done.stdout.splitlines() if line.startswith(("snapkv", "knorm"))}
    with h5py.File(a) as first, h5py.File(b) as second:
        for policy, (p, q) in {"snapkv:window=8": (1, 0), "knorm": (2, 1)}.items():
            found = first["model_relative_error"][1, p, 0], second["model_relative_error"][0, q, 0]
            assert rows[policy][1:4] == ["40%", f"{found[0]:.6f}", f"{found[1]:.6f}"] and rows[policy][-1] == "1"
    for words in ("only in the first report, policies: recent", "only in the second report, policies: h2o", "60%", "backend: cpu"):
        assert words in done.stderr
    assert "0 of 6 cells differ" in laprox("compare", a, a).stdout
    c = tmp_path / "c.h5"
    laprox("sweep", three[0], "--policy", "recent", "--budget", "40%", "-o", c)
    assert "no dumps in common" in laprox("compare", b, c, expect=2).stderr


def test_arrays_that_not_every_report_has_are_named(laprox, three, tmp_path):
    a, b, merged = (tmp_path / f"{name}.h5" for name in "abm")
    laprox("sweep", three[0], "--policy", "recent", "--budget", "40%", "-o", a)
    laprox("sweep", three[1], "--policy", "recent", "--budget", "40%", "-o", b)
    with h5py.File(a, "r+") as file:
        del file["query_error_max"]
    said = laprox("merge", a, b, "-o", merged).stderr
    assert "not every report has it: query_error_max" in said
    refused = laprox("sweep", three[1], "--policy", "recent", "--budget", "40%", "-o", a, "--resume", expect=2)
    assert "made with other figures" in refused.stderr
    for path, scale in ((a, "dump"), (b, "policy")):  # an array of one's own, over other dimensions
        with h5py.File(path, "r+") as file:
            file["mine"] = [0.5]
            file["mine"].dims[0].attach_scale(file[scale])
    assert "its mine is over" in laprox("merge", a, b, "-o", merged, "--force", expect=2).stderr


def damaged(laprox, tmp_path, three, change):
    """The paths of a changed report and of a sound one of another dump."""
    reports = [tmp_path / "changed.h5", tmp_path / "sound.h5"]
    for dump, report in zip(three, reports):
        laprox("sweep", dump, *SWEEP, "-o", report)
    with h5py.File(reports[0], "r+") as file:
        change(file)
    return reports


def test_a_scalar_beside_the_figures_is_left_alone(laprox, three, tmp_path):
    """Merging wrote it as an array over no dimension, and crashed."""
    reports = damaged(laprox, tmp_path, three, lambda file: file.create_dataset("x", data=1.5))
    laprox("merge", *reports, "-o", tmp_path / "whole.h5")
    with h5py.File(tmp_path / "whole.h5") as file:
        assert "x" not in file and file["model_relative_error"].shape[0] == 2


def test_a_missing_number_between_heads_is_refused(laprox, three, tmp_path):
    """Merging copied it with exit code 0."""

    def change(file):
        file["head_relative_error"][0, 0, 0, 0, 1] = np.nan

    reports = damaged(laprox, tmp_path, three, change)
    assert "head_relative_error" in laprox("merge", *reports, "-o", tmp_path / "whole.h5", expect=3).stderr
    assert not (tmp_path / "whole.h5").exists()


def test_a_schedule_without_its_figures_is_refused(laprox, three, tmp_path):
    """The table asked for them: exit code 70."""

    def change(file):
        file.attrs["schedule"] = "every 8"

    changed = damaged(laprox, tmp_path, three, change)[0]
    assert "cache_peak" in laprox("report", changed, expect=3).stderr
