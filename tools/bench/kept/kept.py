"""What laprox.kept costs beside the same call in C++: seconds, measured alternately, and memory above the tensors.

usage: kept.py laprox_kept_bench [--layers 32] [--tokens 8192] [--policy laprox-r] [--budget 5%] [--threads N] [--rounds 3]

Layers have the shape of llama-3.1-8b's, bfloat16 PyTorch tensors of random numbers, each layer with its own copy.
"""

import argparse
import math
import os
import subprocess
import sys
import tempfile
import time

import laprox
import torch


def memory(name):
    """A figure of this process's status in bytes."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(name + ":"))


def random_layer(tokens):
    """q, k, v and w_o of one layer."""
    generator = torch.Generator().manual_seed(1)
    shapes = ((32, 32, 128), (8, tokens, 128), (8, tokens, 128), (4096, 4096))
    return [(torch.randn(s, generator=generator) * (0.02 if i == 3 else 1)).to(torch.bfloat16) for i, s in enumerate(shapes)]


def one(options):
    """In a process of its own: one line as the C++ program's."""
    with open(options.one, "rb") as file:
        shapes = [(32, 32, 128), (8, options.tokens, 128), (8, options.tokens, 128), (4096, 4096)]
        layers, norms = [], torch.full((32,), 50.0)  # laprox-r divides by them
        for _ in range(options.layers):
            file.seek(0)
            arrays = [
                torch.frombuffer(bytearray(file.read(2 * math.prod(shape))), dtype=torch.bfloat16).view(shape) for shape in shapes
            ]
            layers.append(laprox.Layer(*arrays, residual_norms=norms))
    before, line = memory("VmRSS"), []
    for _ in range(options.rounds):
        start = time.perf_counter()
        found = laprox.kept(layers, options.policy, options.budget, threads=options.threads)
        line.append(f"{time.perf_counter() - start:.4f}")
    print(*line, "kept", sum(map(sum, found.counts)), "above", memory("VmHWM") - before)


def main():
    """Three alternations of both, each in a process of its own, and the ratio of the fastest calls."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("program", nargs="?")
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--policy", default="laprox-r")
    parser.add_argument("--budget", default="5%")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        return one(options)
    seconds, above, counts = {"C++": [], "Python": []}, {}, set()
    with tempfile.NamedTemporaryFile(suffix=".bin") as file:
        for array in random_layer(options.tokens):
            file.write(array.view(torch.int16).numpy().tobytes())
        file.flush()
        sizes = [str(x) for x in (options.layers, options.tokens, options.policy, options.budget, options.threads)]
        python = [sys.executable, __file__, "--one", file.name, "--rounds", "1"]
        for name, value in zip(("layers", "tokens", "policy", "budget", "threads"), sizes):
            python += [f"--{name}", value]
        for _ in range(options.rounds):
            for name, command in (("C++", [options.program, file.name, *sizes, "1"]), ("Python", python)):
                words = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
                seconds[name].append(float(words[0]))
                counts.add(words[-3])
                above[name] = int(words[-1])
    assert len(counts) == 1, counts
    for name, found in seconds.items():
        print(f"{name:7} {' '.join(f'{x:.3f}' for x in found)} s, {above[name] / 2**20:.1f} MiB above the tensors")
    print(f"Python / C++, fastest of each: {min(seconds['Python']) / min(seconds['C++']):.3f}")


if __name__ == "__main__":
    main()
