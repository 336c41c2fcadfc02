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
    print("\n| case | laprox | error | PyTorch, eager |\n|---|---|---|---|")
    print(
        f"| H2O column sums, T = 8192 | **{ms(ours, 'h2o 8192')}** | {ours['h2o 8192']['error']:.1e} | "
        f"{ms(torch, 'h2o eager 8192')} |"
    )
    print("\n| part | T = 32768 | T = 131072 |\n|---|---|---|")
    for part, meaning in (
        ("row softmax", "window: row maxima and sums"),
        ("window columns", "window: column norms"),
        ("gram", "Gram matrices"),
        ("value norms", "value norms"),
    ):
        print(f"| {meaning} | {ms(ours, f'{part} 32768')} | {ms(ours, f'{part} 131072')} |")
    print(f"\nH2O: row maxima and sums {ms(ours, 'h2o rows 8192')}, column sums {ms(ours, 'h2o columns 8192')}.")
    print("Error: largest difference from the float64 reference on the same bfloat16 numbers, relative to the largest score.")


if __name__ == "__main__":
    main()
