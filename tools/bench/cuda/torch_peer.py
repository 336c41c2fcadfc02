"""PyTorch on the same GPU, bfloat16, one layer of llama-3.1-8b. Prints one line of JSON per case: name, milliseconds (median).

Cases
- spelled out: LaProx scores with V W_O formed, as the published policies' code forms it.
- gram eager, gram compiled: LaProx scores with value norms through the Gram matrix W W^T.
- sdpa: the layer's causal prefill attention (scaled_dot_product_attention), what the scores' cost is a share of.
- h2o: column sums of causal attention, one query head's T x T weights at a time, eager and compiled.
- removal eager, removal compiled: LaProx-R's joint energies through Gram matrices, products in bfloat16.
- far compiled: LaProx-far's energies, 256 queries of one KV head's group at a time, products in bfloat16.
"""

import json
import sys

import torch
import torch.nn.functional as F

QUERY_HEADS, KV_HEADS, SIZE, MODEL, WINDOW, KERNEL = 32, 8, 128, 4096, 32, 7
GROUP = QUERY_HEADS // KV_HEADS


def median_ms(work, runs):
    for _ in range(3):
        work()
    times = []
    for _ in range(runs):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        work()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end))
    return sorted(times)[runs // 2]


def report(name, ms):
    print(json.dumps({"case": name, "ms": round(ms, 4)}), flush=True)


def normal(*shape, deviation=1.0):
    return (torch.randn(*shape, device="cuda") * deviation).bfloat16()


def attention_norms(q, k):
    """||A_h[:, i]|| of the window's causal attention, pooled before the window: [H_q, T]."""
    tokens = k.shape[1]
    logits = (q.view(KV_HEADS, GROUP * WINDOW, SIZE) @ k.transpose(1, 2)).float() * SIZE**-0.5
    logits = logits.view(QUERY_HEADS, WINDOW, tokens)
    hidden = torch.ones(WINDOW, WINDOW, dtype=torch.bool, device=q.device).triu(1)
    logits[..., -WINDOW:] = logits[..., -WINDOW:].masked_fill(hidden, float("-inf"))
    norms = torch.softmax(logits, -1).square().sum(1).sqrt()
    pooled = F.avg_pool1d(norms[:, :-WINDOW][None], KERNEL, 1, KERNEL // 2)[0]
    return torch.cat([pooled, norms[:, -WINDOW:]], -1)


def scores(norms, value_norms):
    return (norms * value_norms).view(KV_HEADS, GROUP, -1).mean(1)


def spelled_out(q, k, v, w):
    blocks = w.view(QUERY_HEADS, SIZE, MODEL)
    norms = [torch.linalg.vector_norm((v[h // GROUP] @ blocks[h]).float(), dim=-1) for h in range(QUERY_HEADS)]
    return scores(attention_norms(q, k), torch.stack(norms))


def through_gram(q, k, v, w):
    blocks = w.view(QUERY_HEADS, SIZE, MODEL)
    gram = (blocks @ blocks.transpose(1, 2)).view(KV_HEADS, GROUP, SIZE, SIZE)
    forms = ((v[:, None] @ gram).float() * v[:, None].float()).sum(-1)
    return scores(attention_norms(q, k), forms.view(QUERY_HEADS, -1).clamp_min(0).sqrt())


def column_sums(q, k, hidden):
    return torch.stack(
        [torch.softmax((q[h] @ k[h // GROUP].T).float() * SIZE**-0.5 + hidden, -1).sum(0) for h in range(QUERY_HEADS)]
    )


def odds(weights):
    weights = weights.clamp_max(1 - 1e-6)
    return weights / (1 - weights)


def window_weights(q, k):
    """Weights of the window's causal attention: [H_kv, G, W, T]."""
    tokens = k.shape[1]
    logits = (q.view(KV_HEADS, GROUP * WINDOW, SIZE) @ k.transpose(1, 2)).float() * SIZE**-0.5
    logits = logits.view(KV_HEADS, GROUP, WINDOW, tokens)
    hidden = torch.ones(WINDOW, WINDOW, dtype=torch.bool, device=q.device).triu(1)
    logits[..., -WINDOW:] = logits[..., -WINDOW:].masked_fill(hidden, float("-inf"))
    return torch.softmax(logits, -1)


def removal(q, k, v, w):
    """max_t ||sum_h a / (1 - a) (o_h - v) W^h||^2, pairs of heads a <= b: [H_kv, T]."""
    blocks = w.view(KV_HEADS, GROUP, SIZE, MODEL)
    weights = window_weights(q, k)
    outputs = (weights.to(v.dtype).flatten(1, 2) @ v).view(KV_HEADS, GROUP, WINDOW, SIZE)
    c = odds(weights)
    energy = 0
    for a in range(GROUP):
        for b in range(a, GROUP):
            gram = blocks[:, a] @ blocks[:, b].transpose(1, 2)
            form = ((v @ gram).float() * v.float()).sum(-1)[:, None]
            moment_b, moment_a = outputs[:, b] @ gram.transpose(1, 2), outputs[:, a] @ gram
            square = (outputs[:, a].float() * moment_b.float()).sum(-1)[..., None]
            linear = (moment_b @ v.transpose(1, 2)).float() + (moment_a @ v.transpose(1, 2)).float()
            energy = energy + (1 if a == b else 2) * c[:, a] * c[:, b] * (form - linear + square)
    return energy.amax(1)


def far_block(q, k, v, gram, form, first, distance):
    """What 256 queries from `first` on add to the energies of one KV head's tokens [T]."""
    at = first + torch.arange(q.shape[1], device=q.device)[:, None]
    keys = torch.arange(k.shape[0], device=q.device)
    logits = (q @ k.T).float() * SIZE**-0.5
    weights = torch.softmax(logits.masked_fill(keys > at, float("-inf")), -1)
    outputs = weights.to(v.dtype) @ v
    moments = outputs @ gram.transpose(1, 2)
    square = (outputs.float() * moments.float()).sum(-1)[..., None]
    energy = odds(weights).square() * (form[:, None] - 2 * (moments @ v.T).float() + square)
    return energy.masked_fill(keys + distance > at, 0).sum((0, 1))


def far(q, k, v, w, block, distance=128, queries=256):
    blocks = w.view(QUERY_HEADS, SIZE, MODEL)
    gram = (blocks @ blocks.transpose(1, 2)).view(KV_HEADS, GROUP, SIZE, SIZE)
    energies = torch.zeros(KV_HEADS, k.shape[1], device=q.device)
    for head in range(KV_HEADS):
        form = ((v[head] @ gram[head]).float() * v[head].float()).sum(-1)
        of_group = q[head * GROUP : (head + 1) * GROUP]
        for first in range(0, k.shape[1], queries):
            energies[head] += block(of_group[:, first : first + queries], k[head], v[head], gram[head], form, first, distance)
    return energies


def bench_removal(tokens):
    q, k, v = normal(QUERY_HEADS, WINDOW, SIZE, deviation=2.0), normal(KV_HEADS, tokens, SIZE), normal(KV_HEADS, tokens, SIZE)
    w = normal(QUERY_HEADS * SIZE, MODEL, deviation=0.02)
    report(f"removal eager {tokens}", median_ms(lambda: removal(q, k, v, w), 10))
    compiled = torch.compile(removal, dynamic=False)
    report(f"removal compiled {tokens}", median_ms(lambda: compiled(q, k, v, w), 10))


def bench_far(tokens):
    q, k, v = normal(QUERY_HEADS, tokens, SIZE, deviation=2.0), normal(KV_HEADS, tokens, SIZE), normal(KV_HEADS, tokens, SIZE)
    w = normal(QUERY_HEADS * SIZE, MODEL, deviation=0.02)
    block = torch.compile(far_block, dynamic=True)
    report(f"far compiled {tokens}", median_ms(lambda: far(q, k, v, w, block), 3))


def bench_laprox(tokens):
    q, k, v = normal(QUERY_HEADS, WINDOW, SIZE, deviation=2.0), normal(KV_HEADS, tokens, SIZE), normal(KV_HEADS, tokens, SIZE)
    w = normal(QUERY_HEADS * SIZE, MODEL, deviation=0.02)
    report(f"spelled out {tokens}", median_ms(lambda: spelled_out(q, k, v, w), 10))
    report(f"gram eager {tokens}", median_ms(lambda: through_gram(q, k, v, w), 30))
    compiled = torch.compile(through_gram, dynamic=False)
    report(f"gram compiled {tokens}", median_ms(lambda: compiled(q, k, v, w), 30))
    queries = normal(1, QUERY_HEADS, tokens, SIZE)

    def work():
        return F.scaled_dot_product_attention(queries, k[None], v[None], is_causal=True, enable_gqa=True)

    report(f"sdpa {tokens}", median_ms(work, 5))


def bench_h2o(tokens):
    q, k = normal(QUERY_HEADS, tokens, SIZE, deviation=2.0), normal(KV_HEADS, tokens, SIZE)
    hidden = torch.full((tokens, tokens), float("-inf"), device="cuda").triu(1)
    report(f"h2o eager {tokens}", median_ms(lambda: column_sums(q, k, hidden), 10))
    compiled = torch.compile(column_sums, dynamic=False)
    report(f"h2o compiled {tokens}", median_ms(lambda: compiled(q, k, hidden), 10))


def main():
    with torch.no_grad():
        print(json.dumps({"torch": torch.__version__}), flush=True)
        bench_laprox(32768)
        bench_laprox(131072)
        bench_h2o(8192)
        for bench, tokens in ((bench_removal, 32768), (bench_removal, 131072), (bench_far, 8192)):
            try:
                bench(tokens)
            except Exception as error:  # a compiler that fails must not cost the other cases
                print(f"{bench.__name__} {tokens}: {error}", file=sys.stderr)


if __name__ == "__main__":
    main()
