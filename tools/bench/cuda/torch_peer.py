"""PyTorch on the same GPU, bfloat16, one layer of llama-3.1-8b. Prints one line of JSON per case: name, milliseconds (median).

Cases
- spelled out: LaProx scores with V W_O formed, as the published policies' code forms it.
- gram eager, gram compiled: LaProx scores with value norms through the Gram matrix W W^T.
- sdpa: the layer's causal prefill attention (scaled_dot_product_attention), what the scores' cost is a share of.
- h2o: column sums of eager causal attention, one query head's T x T weights at a time.
"""

import json

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


def main():
    with torch.no_grad():
        print(json.dumps({"torch": torch.__version__}), flush=True)
        bench_laprox(32768)
        bench_laprox(131072)
        bench_h2o(8192)


if __name__ == "__main__":
    main()
