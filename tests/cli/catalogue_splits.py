"""How the published allocators split a budget: how many candidates each layer and head keeps, given the scores.

Everywhere the better score goes first, then the lower layer, head and token. Tables are [H_kv, n]; `share` is what a head may keep
of the n on average.
"""

import numpy as np
import oracle


def best(table, counts):
    """The counts[g] best tokens of every head."""
    mask = np.zeros(table.shape, bool)
    for head, count in enumerate(counts):
        mask[head, oracle.best_first(table[head])[:count]] = True
    return mask


def per_head(tables, share, budget):
    return [np.full(len(table), share) for table in tables]


def over_the_layer(tables, share, budget):
    return [won(table, share * len(table)) for table in tables]


def won(table, total):
    """How many of the `total` best of a layer each head holds."""
    chosen = oracle.best_first(table.ravel())[:total]
    return np.bincount(chosen // table.shape[1], minlength=len(table))


def over_the_model(tables, share, budget, normalize=True, divisors=None):
    """An infinite score is a pinned token's: it wins, and counts in no sum."""
    if normalize is True:
        divisors = [table[np.isfinite(table)].sum() or 1 for table in tables]
    if normalize:
        tables = [table / divisor for table, divisor in zip(tables, divisors)]
    heads = np.concatenate([np.full(table.size, i) for i, table in enumerate(row[None] for table in tables for row in table)])
    chosen = heads[oracle.best_first(np.concatenate([table.ravel() for table in tables]))[: share * sum(map(len, tables))]]
    counts = np.bincount(chosen, minlength=sum(map(len, tables)))
    return np.split(counts, np.cumsum([len(table) for table in tables])[:-1])


def largest_remainders(quotas, total, cap):
    """Whole numbers near the quotas that sum to `total`: cut, then +1 by remainder, largest first (ties: lower index)."""
    counts = np.minimum(np.floor(quotas + 1e-9).astype(int), cap)
    order = np.lexsort((np.arange(len(quotas)), -np.round(quotas - np.floor(quotas + 1e-9), 9)))
    while counts.sum() < total:
        for i in order:
            if counts.sum() < total and counts[i] < cap:
                counts[i] += 1
    return counts


def ada(tables, share, budget, floor=0.2, variant="official", normalize=False, rounding="exact"):
    return [ada_layer(table, share, budget, floor, variant, normalize, rounding) for table in tables]


def ada_layer(table, share, budget, floor, variant, normalize, rounding):
    candidates = table.shape[1]
    if variant != "official":
        pinned = budget - share
        safe = int(budget * floor)
        if variant == "kvpress-0.5.5" and floor > 0:
            safe = max(1, safe)
        safe = min(candidates, safe if variant == "fork" else max(0, safe - pinned))
        return counts_with_safeguard(table, safe, share * len(table))
    if normalize:
        table = np.stack([row * np.sort(row)[::-1][:share].sum() / row.sum() for row in table])
    quotas = won(table, share * len(table)) * (1 - floor) + int(share * floor)
    if rounding == "official":
        return np.minimum(np.round(quotas).astype(int), candidates)
    return largest_remainders(quotas, share * len(table), candidates)


def counts_with_safeguard(table, safe, total):
    """Every head's `safe` best tokens, then the layer's best others up to `total`: how many each head holds."""
    raised = np.where(best(table, [safe] * len(table)), np.inf, table)
    return won(raised, total)


def pyramid(tables, share, budget, beta=20, variant="exact"):
    layers, candidates, window = len(tables), tables[0].shape[1], round(budget - share)
    if layers == 1 and variant != "kvpress":
        return [np.full(len(tables[0]), share)]
    layer_counts = dict(exact=pyramid_exact, kvcf=pyramid_kvcf, adakv=pyramid_adakv, kvpress=pyramid_kvpress)[variant]
    return [np.full(len(table), count) for table, count in zip(tables, layer_counts(layers, share, candidates, window, beta))]


def pyramid_line(middle, smallest, candidates):
    largest = 2 * middle - smallest
    return (candidates, 2 * middle - candidates) if largest >= candidates else (largest, smallest)


def pyramid_exact(layers, share, candidates, window, beta):
    """Rounded half up in the first half; mirrored layers add up to twice the share."""
    largest, smallest = pyramid_line(share, share / beta, candidates)
    counts = [share] * layers
    for layer in range(layers // 2):
        counts[layer] = int(np.floor(largest - layer * (largest - smallest) / (layers - 1) + 0.5 + 1e-9))
        counts[layers - 1 - layer] = 2 * share - counts[layer]
    return counts


def pyramid_adakv(layers, share, candidates, window, beta):
    largest, smallest = pyramid_line(share, share // beta, candidates)
    step = (largest - smallest) // (layers - 1)
    return [largest - layer * step for layer in range(layers)]


def pyramid_kvcf(layers, share, candidates, window, beta):
    uniform = candidates + window < 2 * share
    return [share] * layers if uniform else pyramid_adakv(layers, share, candidates, window, beta)


def pyramid_kvpress(layers, share, candidates, window, beta):
    context, budget = candidates + window, share + window
    largest, smallest = pyramid_line(budget, budget / beta, candidates)
    if not context >= largest >= smallest >= window:
        return [round(budget) - window] * layers
    step = (largest - smallest) / (layers - 1) if layers > 1 else 0
    return [round(largest - layer * step) - window for layer in range(layers)]


def per_layer(tables, share, budget, shares=(1,), variant="exact"):
    """In proportion to the shares; a layer at a limit stays there, and the others have what remains."""
    shares, candidates, pinned = np.broadcast_to(shares, len(tables)).astype(float), tables[0].shape[1], budget - share
    quotas = shares / shares.mean() * budget
    if variant == "kvpress":
        return [
            np.full(len(t), int(np.clip(quota + 1e-9, max(1, pinned), candidates + pinned)) - pinned)
            for t, quota in zip(tables, quotas)
        ]
    low, high = 0.0, 1e12
    for _ in range(300):
        middle = (low + high) / 2
        low, high = (middle, high) if np.clip(middle * shares, pinned, candidates + pinned).mean() < budget else (low, middle)
    counts = largest_remainders(np.clip(low * shares, pinned, candidates + pinned) - pinned, share * len(tables), candidates)
    return [np.full(len(table), count) for table, count in zip(tables, counts)]


def cake(tables, share, budget, preferences, variant="exact"):
    """variant=cascade: the whole budget is shared anew after every layer, by the layers met so far; a share only shrinks."""
    candidates, layers = tables[0].shape[1], len(tables)
    if variant == "cascade":
        seen = [cake_layers(preferences[: m + 1], share * layers, candidates) for m in range(layers)]
        counts = [min(seen[m][layer] for m in range(layer, layers)) for layer in range(layers)]
    else:
        counts = cake_layers(preferences, share * layers, candidates)
    counts = np.minimum(counts, candidates)
    if variant == "exact":
        while counts.sum() < share * layers:
            counts = np.minimum(spread(counts, share * layers - counts.sum(), counts < candidates, 1), candidates)
    return [np.full(len(table), count) for table, count in zip(tables, counts)]


def cake_layers(preferences, total, candidates):
    """The published steps: shares cut to whole tokens, the excess moved, the difference spread."""
    preferences = np.array(preferences)
    counts = (preferences / preferences.sum() * total).astype(int)
    excess = np.maximum(counts - candidates, 0).sum()
    counts = np.minimum(counts, candidates)
    counts = spread(counts, excess, counts < candidates, 1)
    difference = total - counts.sum()
    if difference < 0:
        return spread(counts, -difference, counts > 1, -1)
    return spread(counts, difference, counts < candidates, 1)


def spread(counts, amount, where, sign):
    """`amount` evenly over the marked layers, one more for the first ones."""
    marked = np.flatnonzero(where)
    if len(marked) == 0 or amount == 0:
        return counts
    counts = counts.copy()
    counts[marked] += sign * (amount // len(marked))
    counts[marked[: amount % len(marked)]] += sign
    return counts


def lava(tables, share, budget, floor=0.2, variant="exact"):
    shares = [table / (table.sum() + 1e-16) for table in tables]
    entropies = np.array([-(p * np.log(p + 1e-16)).sum() / np.log(p.size) for p in shares])
    quotas, candidates = entropies / entropies.sum() * share * len(tables), tables[0].shape[1]
    counts = largest_remainders(quotas, share * len(tables), candidates) if variant == "exact" else quotas.astype(int)
    return [lava_heads(table, count, budget, floor, variant) for table, count in zip(tables, counts)]


def lava_heads(table, count, budget, floor, variant):
    if count > table.shape[1]:
        return np.full(len(table), table.shape[1])
    even = int((budget if variant == "code" else count) * floor)
    quotas = won(table, count * len(table)) * (1 - floor) + even
    if variant == "exact":
        return largest_remainders(quotas, count * len(table), table.shape[1])
    return np.minimum(np.round(quotas).astype(int), table.shape[1])


ALLOCATORS = dict(head=per_head, layer=over_the_layer, ada=ada, pyramid=pyramid, cake=cake, lava=lava)
ALLOCATORS |= {"global": over_the_model, "per-layer": per_layer}
