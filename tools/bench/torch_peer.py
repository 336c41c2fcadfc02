"""PyTorch on the CPU, float32, doing what laprox does, as eager code in the manner of the published policies' implementations.

Prints one JSON object of seconds per case. usage: torch_peer.py DUMP THREADS

Cases
- column_sums: H2O scores of one llama-3.1-8b layer at T = 8192: softmax(Q K^T) head by head, summed over the queries.
- sweep: five policies x eight budgets on DUMP: scores, kept sets, masked attention of the decoded queries per policy and budget,
  output projection and its relative error.
"""

import json
import sys
import time

import h5py
import numpy as np
import torch

WINDOW = 32


def timed(work, repeats=3):
    """Seconds of the fastest of some runs after one to warm up."""
    work()
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - start)
    return best


def column_sums(tokens=8192, query_heads=32, kv_heads=8, head_size=128):
    """sum over queries of eager causal attention; one head's T x T weights are in memory at a time."""
    q = torch.randn(query_heads, tokens, head_size)
    k = torch.randn(kv_heads, tokens, head_size)
    mask = torch.full((tokens, tokens), float("-inf")).triu(1)

    def work():
        for head in range(query_heads):
            logits = q[head] @ k[head // (query_heads // kv_heads)].T * head_size**-0.5 + mask
            torch.softmax(logits, -1).sum(0)

    return timed(work, repeats=1)


def read_layers(path):
    """Context length, and per layer q [H_q, N, d], k, v [H_kv, T, .], w_o [H_q * d_v, D] as float32."""
    with h5py.File(path) as file:
        layers = [
            {name: torch.from_numpy(file[f"layers/{i}/{name}"][()].astype(np.float32)) for name in ("q", "k", "v", "w_o")}
            for i in range(len(file["layers"]))
        ]
        return int(file.attrs["context_length"]), layers


def attention(q, k, first_position, hidden=None):
    """Eager causal attention [H_q, n, T] of queries that begin at first_position; `hidden` [H_q, T] masks evicted keys."""
    k = k.repeat_interleave(q.shape[0] // k.shape[0], 0)
    logits = q @ k.transpose(1, 2) * q.shape[-1] ** -0.5
    positions = first_position + torch.arange(q.shape[1])[:, None]
    logits = logits.masked_fill(torch.arange(k.shape[1])[None] > positions, float("-inf"))
    if hidden is not None:
        logits = logits.masked_fill(hidden[:, None], float("-inf"))
    return torch.softmax(logits, -1)


def group_mean(scores, kv_heads):
    return scores.view(kv_heads, -1, scores.shape[-1]).mean(1)


def layer_scores(layer, context):
    """Scores [H_kv, C] of h2o, snapkv and laprox."""
    q, k, v, w_o = layer["q"], layer["k"], layer["v"], layer["w_o"]
    kv_heads, group, value_size = k.shape[0], q.shape[0] // k.shape[0], v.shape[-1]
    h2o = group_mean(attention(q[:, :context], k[:, :context], 0).sum(1), kv_heads)
    window = attention(q[:, context - WINDOW : context], k[:, :context], context - WINDOW)
    snapkv = group_mean(window.mean(1), kv_heads)[:, : context - WINDOW]
    snapkv = torch.nn.functional.max_pool1d(snapkv, 7, 1, 3)
    projected = torch.einsum("hic,hcd->hid", v[:, :context].repeat_interleave(group, 0), w_o.view(-1, value_size, w_o.shape[1]))
    norms = window.norm(dim=1)[:, : context - WINDOW]
    norms = torch.nn.functional.avg_pool1d(norms, 7, 1, 3)
    laprox = group_mean(norms * projected.norm(dim=-1)[:, : context - WINDOW], kv_heads)
    return {"h2o": h2o, "snapkv": snapkv, "laprox": laprox}


def kept_masks(policy, scores, context, budget):
    """Kept tokens [layer][H_kv, C] of one policy at one budget."""
    masks = [torch.zeros(s["snapkv"].shape[0], context, dtype=torch.bool) for s in scores]
    if policy == "h2o":
        recent = budget - budget // 2
        for mask, s in zip(masks, scores):
            mask.scatter_(1, s["h2o"][:, : context - recent].topk(budget // 2).indices, True)
            mask[:, context - recent :] = True
        return masks
    for mask in masks:
        mask[:, context - WINDOW :] = True
    if policy in ("snapkv", "laprox+head"):
        for mask, s in zip(masks, scores):
            mask.scatter_(1, s[policy.split("+")[0]].topk(budget - WINDOW).indices, True)
    else:
        flat = [s["laprox"].flatten() for s in scores]
        if policy == "laprox+layer":
            chosen = [
                torch.zeros_like(f).scatter_(0, f.topk(mask.shape[0] * (budget - WINDOW)).indices, 1)
                for f, mask in zip(flat, masks)
            ]
        else:
            everything = torch.cat([f / f.sum() for f in flat])
            count = sum(mask.shape[0] for mask in masks) * (budget - WINDOW)
            chosen = torch.zeros_like(everything).scatter_(0, everything.topk(count).indices, 1).split([len(f) for f in flat])
        for mask, c in zip(masks, chosen):
            mask[:, : context - WINDOW] |= c.view(mask.shape[0], -1).bool()
    return masks


def output(layer, context, hidden=None):
    """Layer output [n, D] of the decoded queries."""
    group = layer["q"].shape[0] // layer["k"].shape[0]
    weights = attention(layer["q"][:, context:], layer["k"], context, hidden)
    heads = weights @ layer["v"].repeat_interleave(group, 0)
    return heads.transpose(0, 1).flatten(1) @ layer["w_o"]


def sweep(path):
    policies = ["h2o", "snapkv", "laprox+head", "laprox+layer", "laprox"]
    context, layers = read_layers(path)
    budgets = [context * (b + 1) // 16 for b in range(8)]
    errors = {}

    def work():
        scores = [layer_scores(layer, context) for layer in layers]
        exact = [output(layer, context) for layer in layers]
        norm = sum(float(o.square().sum()) for o in exact)
        for policy in policies:
            for budget in budgets:
                masks = kept_masks(policy, scores, context, budget)
                error = 0.0
                for layer, mask, o in zip(layers, masks, exact):
                    hidden = torch.zeros(mask.shape[0], layer["k"].shape[1], dtype=torch.bool)
                    hidden[:, :context] = ~mask
                    hidden = hidden.repeat_interleave(layer["q"].shape[0] // mask.shape[0], 0)
                    error += float((output(layer, context, hidden) - o).square().sum())
                errors[f"{policy}@{budget}"] = (error / norm) ** 0.5

    return timed(work, repeats=1), errors


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[2]))
    torch.set_grad_enabled(False)
    seconds, errors = sweep(sys.argv[1])
    print(json.dumps({"torch": torch.__version__, "sweep": seconds, "errors": errors, "column_sums": column_sums()}))
