"""Prints the GPU benchmark's results as a markdown table. usage: table.py OURS.jsonl [TORCH.jsonl]"""

import json
import sys


def read(path):
    cases, about = {}, {}
    with open(path) as file:
        for line in file:
            record = json.loads(line)
            if "case" in record:
                cases[record.pop("case")] = record
            else:
                about.update(record)
    return cases, about


def ms(cases, name):
    return f"{cases[name]['ms']:.3f}" if name in cases else "-"


def main():
    ours, about = read(sys.argv[1])
    torch, torch_about = read(sys.argv[2]) if len(sys.argv) > 2 else ({}, {})
    print(f"{about['device']}; bfloat16, 32 query heads, 8 KV heads, d 128, D 4096; milliseconds, median of warm runs", end="")
    print(f"; PyTorch {torch_about['torch']}" if torch_about else "")
    print("\n| case | laprox | error | PyTorch, V W_O spelled out | Gram, eager | Gram, compiled | share of prefill (SDPA) |")
    print("|---|---|---|---|---|---|---|")
    for tokens in (32768, 131072):
        name = f"laprox {tokens}"
        share = "-"
        if f"sdpa {tokens}" in torch:
            prefill = torch[f"sdpa {tokens}"]["ms"]
            share = f"{100 * ours[name]['ms'] / prefill:.2f} % of {prefill:.1f} ms"
        row = [f"LaProx scores, T = {tokens}", f"**{ms(ours, name)}**", f"{ours[name]['error']:.1e}"]
        row += [ms(torch, f"{peer} {tokens}") for peer in ("spelled out", "gram eager", "gram compiled")] + [share]
        print("| " + " | ".join(row) + " |")
    print("\n| case | laprox | kernels for any device | error | PyTorch, eager | compiled | share of prefill (SDPA) |")
    print("|---|---|---|---|---|---|---|")
    for name, meaning, peer in (
        ("laprox 32768", "LaProx scores, T = 32768", "gram"),
        ("laprox 131072", "LaProx scores, T = 131072", "gram"),
        ("h2o 8192", "H2O column sums, T = 8192", "h2o"),
        ("h2o 131072", "H2O column sums, T = 131072", "h2o"),
        ("laprox-r 32768", "LaProx-R energies, T = 32768", "removal"),
        ("laprox-r 131072", "LaProx-R energies, T = 131072", "removal"),
        ("laprox-far 8192", "LaProx-far energies, T = 8192", "far"),
        ("laprox-far 32768", "LaProx-far energies, T = 32768", "far"),
        ("laprox-far 131072", "LaProx-far energies, T = 131072", "far"),
        ("laprox-far-1024 8192", "the same of the last 1,024 queries, T = 8192", "far-1024"),
        ("laprox-far-1024 32768", "the same of the last 1,024 queries, T = 32768", "far-1024"),
        ("laprox-far-1024 131072", "the same of the last 1,024 queries, T = 131072", "far-1024"),
    ):
        if name not in ours:
            continue
        kind, tokens = name.split()
        error = f"{ours[name]['error']:.1e}" if ours[name]["error"] >= 0 else "-"
        prefill = f"{ours[name]['ms'] / torch[f'sdpa {tokens}']['ms']:.4f}" if f"sdpa {tokens}" in torch else "-"
        row = [meaning, f"**{ms(ours, name)}**", ms(ours, f"{kind} any {tokens}"), error]
        row += [ms(torch, f"{peer} eager {tokens}"), ms(torch, f"{peer} compiled {tokens}"), prefill]
        print("| " + " | ".join(row) + " |")
    if "sweep 131072" in ours:
        print(
            f"\nOne layer of 131072 tokens in host memory, 8 policies x 4 budgets: {ms(ours, 'sweep 131072')}; its tensors "
            f"from pinned memory to the device: {ms(ours, 'transfer 131072')}; from pageable memory, allocation included: "
            f"{ms(ours, 'layer to device 131072')}."
        )
    print("\n| part | T = 32768 | T = 131072 |\n|---|---|---|")
    for part, meaning in (
        ("row softmax", "window: row maxima and sums"),
        ("window columns", "window: column norms"),
        ("gram", "Gram matrices"),
        ("value norms", "value norms"),
    ):
        print(f"| {meaning} | {ms(ours, f'{part} 32768')} | {ms(ours, f'{part} 131072')} |")
    for tokens in (8192, 131072):
        rows, columns = ms(ours, f"h2o rows {tokens}"), ms(ours, f"h2o columns {tokens}")
        print(f"\nH2O, T = {tokens}: row maxima and sums {rows}, column sums {columns}.")
    print("Error: largest difference from the float64 reference on the same bfloat16 numbers, relative to the largest score.")


if __name__ == "__main__":
    main()
