"""The scores of the published policies in float64 numpy, from their equations alone; nothing is shared with the C++ code.

A scorer takes (dump, layer, budget, **options), the options named as on the command line, and returns a table [H_kv, n]: the scores
of the first n context tokens, which compete. The other C - n tokens are kept whatever happens (the observation window, mostly).
"""

import h5py
import numpy as np
import oracle


def read_dump(path):
    """The dump, its layers with RoPE's frequencies and the residual stream's norms where the file has them."""
    dump = oracle.read_dump(path)
    with h5py.File(path) as file:
        for i, layer in enumerate(dump.layers):
            layer.rope = oracle.read_tensor(file[f"layers/{i}"], "rope_inv_freq")
            layer.residual_norms = oracle.read_tensor(file[f"layers/{i}"], "residual_norms")
    return dump


def window_size(dump, window):
    return min(window, dump.context)


def window_attention(dump, layer, window):
    """Weights of the last prompt queries over the tokens before the window: [H_q, w, P]."""
    size = window_size(dump, window)
    rows = dump.rows(np.arange(dump.context - size, dump.context))
    return oracle.attention(layer, rows, dump.positions)[:, :, : dump.context - size]


def pooled(scores, kind, kernel):
    """torch's pooling over the last axis: avg pads zeros and always divides by the kernel, max sees valid neighbours only."""
    if kind == "none" or scores.shape[-1] == 0:
        return scores
    half = kernel // 2
    padding = [(0, 0)] * (scores.ndim - 1) + [(half, half)]
    padded = np.pad(scores, padding, constant_values=0.0 if kind == "avg" else -np.inf)
    neighbours = np.lib.stride_tricks.sliding_window_view(padded, kernel, axis=-1)
    return neighbours.sum(-1) / kernel if kind == "avg" else neighbours.max(-1)


def reduce_group(values, layer, how):
    """Query heads that share a KV head become one: [H_q, ...] -> [H_kv, ...]."""
    grouped = values.reshape(len(layer.k), layer.group, *values.shape[1:])
    return dict(mean=grouped.mean, max=grouped.max, sum=grouped.sum)[how](1)


def reduce_and_pool(values, layer, how, order, kind, kernel):
    if order == "pool-first":
        return reduce_group(pooled(values, kind, kernel), layer, how)
    return pooled(reduce_group(values, layer, how), kind, kernel)


def projected_values(layer):
    """v_i W_O^h of every query head: [H_q, T, D]."""
    blocks = layer.w_o.reshape(layer.q.shape[0], layer.v.shape[-1], -1)
    return np.stack([layer.v[h // layer.group] @ block for h, block in enumerate(blocks)])


def value_norms_l1(dump, layer):
    """N_g[i] = mean over the group of ||v_i W_O^h||_1: [H_kv, C]."""
    return reduce_group(np.abs(projected_values(layer)).sum(-1), layer, "mean")[:, : dump.context]


def context_keys(dump, layer):
    return layer.k[:, : dump.context]


def context_values(dump, layer):
    return layer.v[:, : dump.context]


# Attention policies -------------------------------------------------------------------------------------------------------------


def snapkv(dump, layer, budget, window=32, pool="max", kernel=7, gqa="mean", order="reduce-first", **_):
    return reduce_and_pool(window_attention(dump, layer, window).mean(1), layer, gqa, order, pool, kernel)


def finch(dump, layer, budget, window=32, count="kvpress", chunk=0, **_):
    """Row t of the window times the tokens that it sees; kvpress counts one too few."""
    weights = window_attention(dump, layer, window)
    seen = np.arange(dump.context - weights.shape[1], dump.context) + dict(kvpress=0, exact=1, none=0)[count]
    rows = weights if count == "none" else weights * seen[:, None]
    scores = reduce_group(rows.mean(1), layer, "mean")
    return window_first(scores, dump.context) if chunk else scores


def behind_the_sinks(scores, sinks):
    """Sinks beat everything."""
    return np.pad(scores, [(0, 0), (sinks, 0)], constant_values=np.inf)


def window_first(scores, context):
    """The window's tokens beat everything."""
    return np.pad(scores, [(0, 0), (0, context - scores.shape[1])], constant_values=np.inf)


def scissorhands(dump, layer, budget, history=0, sinks=4, recent=32, gqa="mean"):
    first = max(0, dump.context - history) if history else 0
    weights = oracle.attention(layer, dump.rows(np.arange(first, dump.context)), dump.positions)
    end = max(sinks, dump.context - recent)
    return behind_the_sinks(reduce_group(weights.sum(1), layer, gqa)[:, sinks:end], sinks)


def noncausal(dump, layer, budget, chunk=256):
    """Every chunk is a square of logits, padded to full size: padded queries are 0, padded keys get the logit -1e-9."""
    queries, keys = layer.q[:, dump.rows(np.arange(dump.context))], np.repeat(context_keys(dump, layer), layer.group, 0)
    received = np.zeros(queries.shape[:2])
    for start in range(0, dump.context, chunk):
        size = min(chunk, dump.context - start)
        square = np.zeros((len(queries), chunk, chunk))
        square[:, :size, :size] = np.einsum("hnd,htd->hnt", queries[:, start : start + size], keys[:, start : start + size])
        square[:, :, size:] = -1e-9
        weights = np.exp(square - square.max(-1, keepdims=True))
        received[:, start : start + size] = (weights / weights.sum(-1, keepdims=True)).sum(1)[:, :size]
    scores = reduce_group(received, layer, "mean") * np.linalg.norm(context_values(dump, layer), axis=-1)
    scores = pooled(scores, "avg", 3)
    return (scores - scores.mean()) / max(scores.std(ddof=1), 1e-6)


def observed_attention(dump, layer, budget):
    weights = oracle.attention(layer, dump.rows(np.arange(dump.context)), dump.positions)[:, :, : dump.context]
    return reduce_group(weights.sum(1) / (dump.context - np.arange(dump.context)), layer, "mean")


def tova(dump, layer, budget, force_last=False):
    last = oracle.attention(layer, dump.rows([dump.context - 1]), dump.positions)[:, 0, : dump.context].mean(0)
    return np.repeat(last[None, : dump.context - force_last], len(layer.k), 0)


def chunkpress(dump, layer, budget, base="snapkv", chunk=1024, **options):
    """Each chunk scored as a context of its own, window and all."""
    parts = []
    for start in range(0, dump.context, chunk):
        part = np.arange(start, min(start + chunk, dump.context))
        if base == "snapkv":
            parts.append(chunk_snapkv(dump, layer, part, **options))
        else:
            keys = layer.k[:, part]
            parts.append(-np.linalg.norm(keys, axis=-1) if base == "knorm" else np.stack([keydiff_scores(k) for k in keys]))
    return np.concatenate(parts, -1)


def chunk_snapkv(dump, layer, part, window=32, pool="max", kernel=7, gqa="mean", **_):
    """The attention of the chunk's last queries over the chunk's keys."""
    queries = part[-min(window, len(part)) :]
    chunk = np.zeros(layer.k.shape[:2], bool)
    chunk[:, part] = True
    weights = oracle.attention(layer, dump.rows(queries), dump.positions, kept=chunk)
    before = weights[:, :, part[: len(part) - len(queries)]].mean(1)
    return window_first(pooled(reduce_group(before, layer, gqa), pool, kernel), len(part))


def defensivekv(dump, layer, budget, window=32, pool="avg", kernel=5, mass=0.9, bias="code", **_):
    """Worst case over queries and group, floored at its mean, times the value factor; stage 1 scores the layer's maximum."""
    size = window_size(dump, window)
    weights, prefix = window_attention(dump, layer, window), dump.context - size
    smooth = pooled(weights, pool, kernel)
    old, new = weights.sum(-1, keepdims=True), smooth.sum(-1, keepdims=True)
    rescaled = smooth * np.divide(old, new, out=np.zeros_like(old), where=new > 0)
    worst = reduce_group(rescaled, layer, "max").max(1)
    worst = np.maximum(worst, worst.mean(-1, keepdims=True))
    norms = value_norms_l1(dump, layer)[:, :prefix]
    scores = worst * (norms / norms.sum(0))
    if bias == "code":
        measured = weights[:, :, max(0, prefix - size) :].sum(-1).mean()
    else:
        rows = dump.rows(np.arange(prefix, dump.context))
        measured = oracle.attention(layer, rows, dump.positions)[:, :, prefix : dump.context].sum(-1).mean()
    cap = max(0, prefix * budget // dump.context - size)
    mean = reduce_group(weights, layer, "mean").mean(1)
    largest = scores.max()
    for head, row in enumerate(mean):
        order = oracle.best_first(row)
        cumulative = np.cumsum(row[order]) / row.sum()
        count = int(np.argmax(cumulative >= mass - measured))
        scores[head, order[: min(count, cap)]] = largest
    return scores


def cake(dump, layer, budget, window=32, pool="avg", kernel=5, gamma=200, **_):
    weights = window_attention(dump, layer, window)
    scores = weights.mean(1) + gamma * weights.var(1, ddof=1)
    return reduce_group(pooled(scores, pool, kernel), layer, "mean")


def cake_preference(dump, layer, window=32, tau1=1.0, tau2=1.0, **_):
    weights = window_attention(dump, layer, window)
    entropy = -(weights * np.log(weights + 1e-10)).sum()
    return entropy ** (1 / tau1) * weights.var(1, ddof=1).sum() ** (1 / tau2)


def lava(dump, layer, budget, window=32, pool="max", kernel=7, **_):
    weights = pooled(window_attention(dump, layer, window).mean(1), pool, kernel)
    norms = np.abs(layer.v[:, : weights.shape[-1]]).sum(-1).max(-1)
    return reduce_group(weights * np.repeat(norms, layer.group)[:, None], layer, "max")


def obcache(dump, layer, budget, window=16, pool="max", kernel=7, score="joint", gqa="sum"):
    """z is the logit that enters the softmax (capped where the layer caps), o_t the head's full output."""
    size = window_size(dump, window)
    prefix = dump.context - size
    rows = dump.rows(np.arange(prefix, dump.context))
    weights = oracle.attention(layer, rows, dump.positions)
    outputs = oracle.head_outputs(layer, weights)
    values = np.repeat(layer.v, layer.group, 0)[:, :prefix]
    weights, z = weights[:, :, :prefix], logits(layer, rows)[:, :, :prefix]
    if score == "value":
        terms = weights**2 * (values**2).sum(-1)[:, None]
    elif score == "key":
        terms = (weights * z) ** 2 * ((values[:, None] - outputs[:, :, None]) ** 2).sum(-1)
    else:
        moved = (1 + z)[..., None] * values[:, None] - z[..., None] * outputs[:, :, None]
        terms = weights**2 * (moved**2).sum(-1)
    return reduce_and_pool(terms.sum(1), layer, gqa, "reduce-first", pool, kernel)


def logits(layer, rows):
    z = layer.scale * np.einsum("hnd,htd->hnt", layer.q[:, rows], np.repeat(layer.k, layer.group, 0))
    return layer.softcap * np.tanh(z / layer.softcap) if layer.softcap > 0 else z


def dropkv(dump, layer, budget, window=8, pool="max", kernel=11, epsilon=1e-6, order="reduce-first"):
    size = window_size(dump, window)
    prefix = dump.context - size
    weights = oracle.attention(layer, dump.rows(np.arange(prefix, dump.context)), dump.positions)
    outputs = oracle.head_outputs(layer, weights)
    values, p = np.repeat(layer.v, layer.group, 0)[:, :prefix], weights[:, :, :prefix]
    moved = ((outputs[:, :, None] - values[:, None]) ** 2).sum(-1)
    return reduce_and_pool(((p / (1 - p + epsilon)) ** 2 * moved).sum(1), layer, "mean", order, pool, kernel)


def laprox(dump, layer, budget, window=32, gqa="mean-product", pool="avg", kernel=7, pool_stage="attn", sinks=0):
    """Of a whole prefix whose first tokens are pinned, only the others are pooled."""
    return behind_the_sinks(laprox_of(dump, layer, window, gqa, pool, kernel, pool_stage, sinks), sinks)


def laprox_of(dump, layer, window, gqa, pool, kernel, pool_stage, sinks):
    weights = window_attention(dump, layer, window)
    prefix = weights.shape[-1]
    weights = weights[:, :, sinks:]
    norms = oracle.value_norms(layer)[:, sinks:prefix]

    def smooth(x, stage):
        return pooled(x, pool, kernel) if stage == pool_stage else x

    if gqa == "frobenius":
        return smooth(joint_norm(layer, weights, sinks), "final")
    if gqa == "mean-product":
        product = reduce_group(smooth(np.linalg.norm(weights, axis=1), "attn") * norms, layer, "mean")
    elif gqa == "mean-norms":
        product = reduce_group(smooth(np.linalg.norm(weights, axis=1), "attn"), layer, "mean") * reduce_group(norms, layer, "mean")
    else:
        attention = np.linalg.norm(reduce_group(weights, layer, "mean"), axis=1)
        product = smooth(attention, "attn") * reduce_group(norms, layer, "mean")
    return smooth(product, "final")


def joint_norm(layer, weights, first=0):
    """||sum over the group of A_h[:, i] (x) v_i W_O^h||_F: [H_kv, n] of the tokens from `first` on, all products multiplied out."""
    n = weights.shape[-1]
    grouped = weights.reshape(len(layer.k), layer.group, -1, n)
    projected = projected_values(layer)[:, first : first + n].reshape(len(layer.k), layer.group, n, -1)
    attention, output = np.einsum("khti,kgti->khgi", grouped, grouped), np.einsum("khid,kgid->khgi", projected, projected)
    return np.sqrt(np.maximum((attention * output).sum((1, 2)), 0))


def removals(dump, layer, rows):
    """What the layer's output moves by at some queries when one entry alone is removed, per query head: [H_q, n, C, D]."""
    weights = oracle.attention(layer, rows, dump.positions)
    values = projected_values(layer)
    outputs = np.einsum("hnt,htd->hnd", weights, values)
    a = np.minimum(weights[:, :, : dump.context], 1 - 1e-6)
    return (a / (1 - a))[..., None] * (outputs[:, :, None] - values[:, None, : dump.context])


def removal_energy(dump, layer, window, over="max", joint=True):
    """E_g[i] over the last prompt queries: [H_kv, C]."""
    moved = removals(dump, layer, dump.rows(np.arange(dump.context - window_size(dump, window), dump.context)))
    moved = moved.reshape(len(layer.k), layer.group, *moved.shape[1:])
    energy = (moved.sum(1) ** 2).sum(-1) if joint else (moved**2).sum(-1).sum(1)
    return energy.max(1) if over == "max" else energy.sum(1)


def far_energy(dump, layer, far, queries=0):
    """F_g[i] over the last `queries` prompt queries (0: all) that are `far` or more behind the entry: [H_kv, C]."""
    token, energy = np.arange(dump.context), np.zeros((len(layer.q), dump.context))
    queries = min(queries or dump.context, dump.context)
    for t in range(dump.context - queries, dump.context):
        reached = token <= t - far
        energy[:, reached] += (removals(dump, layer, dump.rows([t]))[:, 0] ** 2).sum(-1)[:, reached]
    return reduce_group(energy, layer, "sum") / np.maximum(np.minimum(dump.context - far - token, queries), 16)


def laprox_r(
    dump,
    layer,
    budget,
    window=32,
    sinks=4,
    pinned=None,
    over="max",
    joint=True,
    pool="max",
    kernel=21,
    far=0,
    far_queries=0,
    far_weight=8.0,
    own=0.0,
):
    energy = removal_energy(dump, layer, window, over, joint)
    if far:
        energy = energy + far_weight * far_energy(dump, layer, far, far_queries)
    end = dump.context - min(window if pinned is None else pinned, dump.context)
    competing = energy[:, min(sinks, end) : end]
    return behind_the_sinks(np.sqrt(pooled(competing, pool, kernel) + own * competing), min(sinks, end))


def residual_scale(dump, layer, window):
    """x_l: the root mean square of the residual stream's norm over the last stored prompt queries."""
    stored = np.flatnonzero(dump.positions < dump.context)[-window:]
    return np.sqrt((layer.residual_norms[stored] ** 2).mean())


def judging_oracle(dump, layer, budget):
    return joint_norm(layer, oracle.attention(layer, dump.decoded, dump.positions)[:, :, : dump.context])


# Policies that read no query ----------------------------------------------------------------------------------------------------


def knorm(dump, layer, budget, **_):
    return -np.linalg.norm(context_keys(dump, layer), axis=-1)


def keydiff(dump, layer, budget, **_):
    return np.stack([keydiff_scores(keys) for keys in context_keys(dump, layer)])


def keydiff_scores(keys):
    """-cos of every key with the mean of the normalised keys."""
    norms = np.linalg.norm(keys, axis=-1)
    anchor = (keys / np.maximum(norms, 1e-12)[:, None]).mean(0)
    return -(keys @ anchor) / np.maximum(norms * np.linalg.norm(anchor), 1e-8)


def lagkv(dump, layer, budget, lag=128, sinks=4, cross_scoring=False):
    context = dump.context
    scores = np.ones((len(layer.k), context))
    if context < sinks + 2 * lag:
        scores[:, sinks:] = (np.arange(sinks, context) - sinks) / (context - sinks)
        return scores
    partitions = (context - sinks) // lag
    for head in range(len(layer.k)):
        for p in range(partitions - 1):
            own, following = slice(sinks + p * lag, sinks + (p + 1) * lag), slice(sinks + (p + 1) * lag, sinks + (p + 2) * lag)
            figure = sum(lag_figure(states[head, own], states[head, following]) for states in (layer.k, layer.v)) / 2
            rank = np.argsort(np.argsort(figure, kind="stable"), kind="stable")
            scores[head, own] = figure if cross_scoring else rank / lag
    return scores


def lag_figure(states, reference):
    low, high = reference.min(0), reference.max(0)
    spread = ((states - low) / (high - low)).std(-1, ddof=1)
    weights = np.exp(spread - spread.max())
    return weights / weights.sum()


def cur(dump, layer, budget, leverage="product", block=16, sinks=4):
    k, v = (block_shares((states**2).sum(-1), block) for states in (context_keys(dump, layer), context_values(dump, layer)))
    scores = dict(product=k * v, key=k, value=v, average=(k + v) / 2)[leverage]
    scores = scores / scores.sum(-1, keepdims=True)
    scores[:, :sinks] = np.inf
    return scores


def block_shares(values, block):
    starts = np.arange(0, values.shape[-1], block)
    sums = np.add.reduceat(values, starts, axis=-1)
    return values / np.repeat(sums, block, axis=-1)[:, : values.shape[-1]]
