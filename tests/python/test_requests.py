"""What laprox.sweep is asked for: files that are given twice or contradict themselves, and arguments that are none."""

import os
import shutil
import subprocess

import h5py
import laprox
import numpy as np
import pytest
from conftest import arrays, layer, write_dump


@pytest.fixture
def contradicting(needle_dump, tmp_path):
    """The bundled dump with the queries of one layer twice as long, so that it cannot reproduce the outputs that it stores."""
    path = tmp_path / "contradicting.h5"
    shutil.copy(needle_dump, path)
    with h5py.File(path, "r+") as file:
        file["layers/3/q"][...] = 2 * file["layers/3/q"][()]
    return path


def test_a_dump_that_does_not_reproduce_its_outputs_is_not_swept(contradicting, needle_dump):
    with pytest.raises(laprox.VerificationError, match="contradicting.h5: /layers/3: the self-check failed"):
        laprox.sweep(contradicting, "knorm", "5%")
    with laprox.open_dump(contradicting) as dump, pytest.raises(laprox.VerificationError):
        laprox.sweep([needle_dump, dump], "knorm", "5%")
    if binary := os.environ.get("LAPROX_BIN"):
        done = subprocess.run([binary, "sweep", contradicting, "--policy", "knorm", "--budget", "5%"], capture_output=True)
        assert done.returncode == 5
    unchecked = laprox.sweep(contradicting, "knorm", "5%", check=False)
    assert (unchecked.relative_error.isel(layer=3) != laprox.sweep(needle_dump, "knorm", "5%").relative_error.isel(layer=3)).all()


def test_progress_counts_the_check(needle_dump):
    steps = []
    laprox.sweep(needle_dump, "knorm", "5%", progress=lambda done, total, what: steps.append((done, total, what)))
    assert [step[:2] for step in steps] == [(i + 1, 24) for i in range(24)] and "check" in steps[0][2]


def test_a_dump_counts_once(dump, tmp_path):
    other, same, link = tmp_path / "other.h5", tmp_path / "same.h5", tmp_path / "link.h5"
    write_dump(other, [arrays(seed + 3) for seed in range(3)])
    shutil.copy(dump, same)
    link.symlink_to(dump)
    assert other.stat().st_size == dump.stat().st_size
    assert laprox.sweep([dump, other], "knorm", 20).sizes["dump"] == 2
    for twice in (dump, str(dump), same, link):
        with pytest.raises(laprox.UsageError, match="is the same dump as .*dump.h5 .*which would count as two samples"):
            laprox.sweep([dump, other, twice], "knorm", 20)
    with laprox.open_dump(dump) as opened, pytest.raises(laprox.UsageError, match="is the same dump as"):
        laprox.sweep([opened, opened], "knorm", 20)


def test_layers_in_memory_count_once(layers):
    assert laprox.sweep([layers, layers[:1]], "knorm", 20).sizes["dump"] == 2
    with pytest.raises(laprox.UsageError, match=r"prompts: \[2\] has the layers of \[0\], which would count as two samples"):
        laprox.sweep([layers, layers[:1], list(layers)], "knorm", 20)


@pytest.mark.parametrize(
    "prompts, message",
    [
        ([], "prompts: expected at least one, found none"),
        (iter([]), "prompts: expected at least one, found none"),
        ([[]], "found list"),
        (None, "prompts: expected a laprox.Layer, a dump, a path, or a list of these, found NoneType"),
        (3, "found int"),
        ([3], "found int"),
    ],
)
def test_what_is_no_prompt_is_refused(prompts, message):
    with pytest.raises(laprox.UsageError, match=message):
        laprox.sweep(prompts, "knorm", 20)


@pytest.mark.parametrize("budgets", [9.0, None, True, [9.0], [None], b"9", np.float64(9), object()])
def test_what_is_no_budget_is_refused(budgets):
    calls = [laprox.sweep, laprox.kept]
    if budgets is not None:  # scores are asked for without one
        calls.append(lambda prompt, policy, budget: laprox.scores(prompt, policy, budget=budget))
    for call in calls:
        with pytest.raises(laprox.UsageError, match=r'^budgets: expected "5%", 128 \(tokens per KV head\), "64MiB" or a list'):
            call(layer(), "knorm", budgets)


def test_budgets_of_numpy_and_pytorch_are_whole_numbers(layers):
    expected = laprox.sweep(layers, "knorm", [9, 20])
    given = [[np.int64(9), np.uint8(20)], np.array([9, 20]), (9, "20")]
    try:
        import torch

        given += [torch.tensor([9, 20]), [torch.tensor(9), 20]]
    except ModuleNotFoundError:
        pass
    for budgets in given:
        found = laprox.sweep(layers, "knorm", budgets)
        assert list(found.budget.values) == ["9", "20"]
        np.testing.assert_array_equal(found.relative_error, expected.relative_error)
    assert laprox.kept(layers, "knorm", np.int64(9)).counts == laprox.kept(layers, "knorm", 9).counts


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(schedule=8), 'schedule: expected a string such as "once", "step" or "every:64", found 8'),
        (dict(schedule=None), "schedule: expected a string"),
        (dict(segments=1.5), "segments: expected a whole number from 0 to 1048576, found 1.5"),
        (dict(segments=10**7), "segments: expected a whole number from 0 to 1048576, found 10000000"),
        (dict(window=20.7), "window: expected a whole number from 1 to 1048576, found 20.7"),
        (dict(window=True), "window: expected a whole number"),
        (dict(softmax=None), "softmax: expected one of renormalized, truncated, found None"),
        (dict(queries=3), "queries: expected one of decoded, window, found 3"),
        (dict(threads=1.5), "threads: expected a whole number"),
        (dict(threads=1025), "threads: expected a whole number from 0 to 1024, found 1025"),
        (dict(backend=None), 'backend: expected a string such as "cpu", found None'),
        (dict(progress=3), "progress: expected a callable, found 3"),
    ],
)
def test_arguments_of_another_kind_are_refused(options, message):
    with pytest.raises(laprox.UsageError, match=f"^{message}"):
        laprox.sweep(layer(), "knorm", 20, **options)


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(schedule="step", queries="window", window=8), 'schedule step: decoded queries judge; leave queries="window" out'),
        (dict(schedule="step", softmax="truncated"), 'leave softmax="truncated" out'),
        (dict(schedule="every:0"), "schedule 'every:0': expected once"),
        (dict(budgets=[]), r'no budget given, for example budgets=\["5%", "10%", 128\]'),
        (dict(policies=[]), r"no policy given; laprox.policies\(\) lists all"),
        (dict(policies=None), "policies: expected a policy or a list of policies, found None"),
    ],
)
def test_the_library_speaks_of_python_s_arguments(options, message):
    with pytest.raises(laprox.UsageError, match=message) as refusal:
        laprox.sweep(**{"prompts": layer(), "policies": "knorm", "budgets": 20, **options})
    assert "--" not in str(refusal.value)


def test_options_of_the_exporter_stay_what_they_are():
    from laprox._errors import reworded

    assert reworded("more decoded tokens (laprox-dump --decode N)") == "more decoded tokens (laprox-dump --decode N)"
    assert reworded("use --backend cpu; try --save-kept") == 'use backend="cpu"; try save_kept'


@pytest.mark.parametrize(
    "options",
    [
        dict(pins=1.5),
        dict(pins=(1, 2, 3)),
        dict(pins=None),
        dict(pins=2**70),
        dict(queries=2.5),
        dict(queries=-1),
        dict(queries=2**70),
        dict(allocator=3),
    ],
)
def test_what_makes_no_policy_is_refused(options):
    with pytest.raises(laprox.UsageError):
        laprox.policy("never-made", **options)(lambda layer: None)


@pytest.mark.parametrize("name", ["", "A", "a b", "\ud800", "\xfc", "..", "a/b", "a\0b", "0" * 101, "all", "snapkv"])
def test_names_that_are_none_are_refused(name):
    with pytest.raises(laprox.UsageError, match="^policy "):
        laprox.policy(name)(lambda layer: None)


@pytest.mark.parametrize("budgets", ["5%,5.0%", "60,60", [60, "60.0"], "1MiB,1024KiB"])
def test_a_budget_in_two_spellings_is_given_twice(budgets):
    with pytest.raises(laprox.UsageError, match="given twice"):
        laprox.sweep(layer(), "knorm", budgets)


@pytest.mark.parametrize("path", [None, 3, b"dump.h5", ["dump.h5"]])
def test_what_is_no_files_name_is_refused(path):
    with pytest.raises(laprox.UsageError, match="path: expected a file's name"):
        laprox.open_dump(path)
    with pytest.raises(laprox.UsageError, match="path: expected a file's name"):
        laprox.open_report(path)
    with pytest.raises(laprox.UsageError, match="path: expected a file's name"):
        laprox.save_report(laprox.sweep(layer(), "knorm", 20), path)
