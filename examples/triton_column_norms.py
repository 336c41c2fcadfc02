"""A Triton kernel on the bench of `laprox verify`: the norms of the attention columns of the last 32 prompt queries.

    python3 examples/triton_column_norms.py data/niah-1k.h5 norms.h5
    laprox verify data/niah-1k.h5 --candidate norms.h5 --policy laprox

Needs torch, triton, h5py and a GPU; where one of them is missing it says so and ends with exit code 77. It knows layers
without soft-cap, sliding window and learned sinks.
"""

import sys

try:
    import h5py
    import torch
    import triton
    import triton.language as tl
except ModuleNotFoundError as missing:
    print(f"{missing}: this example needs h5py, torch and triton")
    sys.exit(77)

WINDOW, KEYS = 32, 64


@triton.jit
def logits_of(q, k, key, tokens, first, scale, SIZE: tl.constexpr, DEPTH: tl.constexpr, QUERIES: tl.constexpr):
    """The logits of all queries with the keys `key`, -infinity where a query does not see one: [QUERIES, keys]."""
    row, c = tl.arange(0, QUERIES), tl.arange(0, DEPTH)
    left = tl.load(q + row[:, None] * SIZE + c[None, :], mask=c[None, :] < SIZE, other=0.0)
    right = tl.load(k + key[None, :] * SIZE + c[:, None], mask=(key[None, :] < tokens) & (c[:, None] < SIZE), other=0.0)
    return tl.where(key[None, :] <= first + row[:, None], tl.dot(left, right) * scale, float("-inf"))


@triton.jit
def column_norms(
    q, k, norms, tokens, scale, GROUP, SIZE: tl.constexpr, DEPTH: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr
):
    """One program per query head: the softmax of its rows over all keys, then the norms of its columns."""
    head, first = tl.program_id(0), tokens - QUERIES
    q += head * QUERIES * SIZE
    k += (head // GROUP) * tokens * SIZE
    largest = tl.full([QUERIES], -1e30, tl.float32)
    total = tl.zeros([QUERIES], tl.float32)
    for start in range(0, tokens, KEYS):
        logits = logits_of(q, k, start + tl.arange(0, KEYS), tokens, first, scale, SIZE, DEPTH, QUERIES)
        larger = tl.maximum(largest, tl.max(logits, 1))
        total = total * tl.exp(largest - larger) + tl.sum(tl.exp(logits - larger[:, None]), 1)
        largest = larger
    for start in range(0, tokens, KEYS):
        key = start + tl.arange(0, KEYS)
        logits = logits_of(q, k, key, tokens, first, scale, SIZE, DEPTH, QUERIES)
        weights = tl.exp(logits - largest[:, None]) / total[:, None]
        tl.store(norms + head * tokens + key, tl.sqrt(tl.sum(weights * weights, 0)), mask=key < tokens)


def main():
    if not torch.cuda.is_available():
        print("skipped: there is no GPU")
        return 77
    with h5py.File(sys.argv[1]) as dump, h5py.File(sys.argv[2], "w") as mine:
        mine.attrs.update(format="laprox-scores", version=1, precision="float16")
        tokens = int(dump.attrs["context_length"])
        for name, layer in dump["layers"].items():
            q, k = (torch.from_numpy(layer[x][()]).half().cuda() for x in ("q", "k"))
            q, k = q[:, tokens - WINDOW : tokens].contiguous(), k[:, :tokens].contiguous()
            norms = torch.empty(len(q), tokens, device="cuda")
            size = q.shape[-1]
            depth = max(16, triton.next_power_of_2(size))
            column_norms[(len(q),)](q, k, norms, tokens, float(layer.attrs["scale"]), len(q) // len(k), size, depth, WINDOW, KEYS)
            mine[f"layers/{name}/column_norms"] = norms.cpu().numpy()
    return 0


if __name__ == "__main__":
    sys.exit(main())
