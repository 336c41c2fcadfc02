"""Prints the table of measured ratios beside the figures to reach. usage: table.py RESULTS_FOLDER"""

import json
import os
import platform
import subprocess
import sys


def best_times(path):
    """Milliseconds of the fastest repetition of each benchmark, by name."""
    times = {}
    with open(path) as file:
        for run in json.load(file)["benchmarks"]:
            if run["run_type"] == "iteration":
                name = run["run_name"].removesuffix("/real_time")
                times[name] = min(times.get(name, float("inf")), run["real_time"])
    return times


def peak_bytes(path, benchmark):
    """The most memory that a benchmark took above its inputs."""
    with open(path) as file:
        return max(
            run["peak_bytes"]
            for run in json.load(file)["benchmarks"]
            if run["run_name"].startswith(benchmark) and "peak_bytes" in run
        )


def load(folder, name):
    path = os.path.join(folder, name)
    if not os.path.exists(path):
        return None
    with open(path) as file:
        return json.load(file)


def machine():
    with open("/proc/cpuinfo") as file:
        model = next((line.split(":")[1].strip() for line in file if line.startswith("model name")), platform.machine())
    compiler = subprocess.run(["c++", "--version"], capture_output=True, text=True).stdout.splitlines()[0]
    return f"{model}, {os.cpu_count()} cores; {compiler}; -O3 -march=native"


def rows(t, folder):
    """(case, measured, figure to reach, milliseconds)"""
    for name, size, figure in (
        ("column_sums", 8192, 1.5),
        ("laprox_scores", 32768, 1.5),
        ("laprox_r_scores", 32768, 2.0),
        ("laprox_far_scores", 8192, 2.5),
        ("exact_output_64", 32768, 1.4),
    ):
        ours = t[f"{name}/{size}/2"]
        bare = min(t[f"bare_eigen/{name}/{size}"], t[f"bare_openblas/{name}/{size}"])
        yield f"{name}, T = {size}, over the bare products", ours / bare, f"<= {figure}", ours
    ours = t["h2o_decoding/8192/2"]
    case = "h2o --schedule step, 8192 + 8192 tokens, 1024 entries, over the bare products"
    yield case, ours / t["bare_decoding_steps/8192/2"], "<= 3", ours
    peak = peak_bytes(os.path.join(folder, "kernels.json"), "column_sums/8192/2") / 2**20
    yield "column_sums, T = 8192, peak memory above the layer's tensors, MB", peak, "< 256", t["column_sums/8192/2"]
    both, far = t["h2o_and_laprox_far/8192/2"], t["laprox_far_scores/8192/2"]
    yield "h2o and laprox-far, T = 8192, over laprox-far alone", both / far, "<= 1.1", both
    for case in ("laprox_r_scores/32768/2", "laprox_far_scores/8192/2"):
        peak = peak_bytes(os.path.join(folder, "kernels.json"), case) / 2**20
        yield f"{case[:-2]}, peak memory above the layer's tensors, MB", peak, "", t[case]
    yield "sweep of 32 budgets over 1 budget", t["sweep/1/32/2"] / t["sweep/1/1/2"], "<= 3", t["sweep/1/32/2"]
    yield "sweep of 8 policies over 1, 8 budgets", t["sweep/8/8/2"] / t["sweep/1/8/2"], "<= 4", t["sweep/8/8/2"]
    for case in (
        "column_sums/8192",
        "laprox_scores/32768",
        "laprox_r_scores/32768",
        "laprox_far_scores/8192",
        "exact_output_64/32768",
        "h2o_decoding/8192",
        "sweep/1/32",
        "sweep/8/8",
    ):
        yield f"{case}: 1 thread over 2", t[f"{case}/1"] / t[f"{case}/2"], ">= 1.8", t[f"{case}/2"]
    growth = t["column_sums/16384/2"] / t["column_sums/4096/2"]
    yield "column_sums, T = 16384 over 4096, per quadratic growth", growth / 16, "0.85 .. 1.15", t["column_sums/16384/2"]
    for case in ("laprox_scores", "laprox_r_scores"):
        growth = t[f"{case}/65536/2"] / t[f"{case}/8192/2"]
        yield f"{case}, T = 65536 over 8192, per linear growth", growth / 8, "0.85 .. 1.15", t[f"{case}/65536/2"]
    torch, ours = load(folder, "torch.json"), load(folder, "sweep_4k.json")
    if torch:
        sums = t["column_sums/8192/2"]
        yield "PyTorch's column sums over ours, T = 8192", torch["column_sums"] * 1000 / sums, ">= 2", sums
        yield (
            "PyTorch's sweep over ours, 5 policies x 8 budgets, T = 4096",
            torch["sweep"] / ours["seconds"],
            ">= 10",
            ours["seconds"] * 1000,
        )
    whole = load(folder, "whole_tool.json")["seconds"]
    yield "whole tool, bundled dump, 5 policies x 4 budgets: seconds", whole, "< 1", whole * 1000


if __name__ == "__main__":
    folder = sys.argv[1]
    print(f"\n{machine()}\n")
    print("| case | measured | to reach | our time |\n|---|---|---|---|")
    for case, measured, figure, milliseconds in rows(best_times(os.path.join(folder, "kernels.json")), folder):
        print(f"| {case} | {measured:.2f} | {figure} | {milliseconds:.0f} ms |")
