"""Which tokens the published policies keep, given their scores: the budget splits and the policies that pick in their own way.

Everywhere the better score goes first, then the lower layer, head and token. Tables are those of catalogue_oracle: [H_kv, n] for
the first n tokens; `share` is what a head may keep of them on average.
"""

import catalogue_oracle as scorers
import numpy as np
import oracle

SCORERS = {
    "snapkv": scorers.snapkv,
    "finch": scorers.finch,
    "scissorhands": scorers.scissorhands,
    "noncausal": scorers.noncausal,
    "observed-attention": scorers.observed_attention,
    "tova": scorers.tova,
    "knorm": scorers.knorm,
    "keydiff": scorers.keydiff,
    "criticalkv": scorers.snapkv,
    "criticaladakv": scorers.snapkv,
    "defensivekv": scorers.defensivekv,
    "cake": scorers.cake,
    "lava": scorers.lava,
    "lagkv": scorers.lagkv,
    "cur": scorers.cur,
    "chunkkv": scorers.snapkv,
    "obcache": scorers.obcache,
    "dropkv": scorers.dropkv,
    "laprox": scorers.laprox,
    "laprox-r": scorers.laprox_r,
    "oracle": scorers.judging_oracle,
    "expected-attention": scorers.expected_attention,
    "capkv": scorers.capkv,
}
ALIASES = {
    "adakv": "snapkv+ada",
    "pyramidkv": "snapkv+pyramid",
    "layer-defensivekv": "defensivekv+global:normalize=false,hard-window=false",
    "keydiff-block128": "keydiff:block=128",
    "laprox-far": "laprox-r:far=64,far-weight=8",
}
OWN_SPLIT = {"defensivekv": "layer", "cake": "cake", "lava": "lava", "laprox": "global", "laprox-r": "global", "oracle": "global"}
OF_ALLOCATOR = {
    "ada": ["floor", "variant", "normalize", "rounding"],
    "pyramid": ["beta", "variant"],
    "cake": ["variant"],
    "lava": ["floor", "variant"],
    "global": ["normalize"],
    "head": [],
    "layer": [],
}


def parse(policy):
    """scorer, allocator and options of `scorer[+allocator][:option=value,...]`."""
    name, _, options = policy.partition(":")
    if name in ALIASES:
        name, _, own = ALIASES[name].partition(":")
        options = ",".join(filter(None, [own, options]))
    scorer, _, allocator = name.partition("+")
    pairs = (option.split("=") for option in filter(None, options.split(",")))
    values = {key.replace("-", "_"): value_of(text) for key, text in pairs}
    allocator = allocator or OWN_SPLIT.get(scorer, "head")
    if allocator == "global" and scorer in ("oracle", "laprox-r"):
        values.setdefault("normalize", "residual" if scorer == "laprox-r" else False)
    return scorer, allocator, values


def value_of(text):
    if text in ("true", "false"):
        return text == "true"
    try:
        return float(text) if "." in text or "e-" in text else int(text)
    except ValueError:
        return text


def score_tables(dump, policy, budget):
    scorer, allocator, options = parse(policy)
    own = {key: value for key, value in options.items() if key not in OF_ALLOCATOR[allocator]}
    return [SCORERS[scorer](dump, layer, budget, **own) for layer in dump.layers]


def kept_masks(dump, policy, budget, tables=None):
    """Kept context tokens [layer][H_kv, C] at `budget` tokens per KV head; `tables` replaces the exact scores."""
    scorer, allocator, options = parse(policy)
    tables = score_tables(dump, policy, budget) if tables is None else tables
    special = {"criticalkv": criticalkv, "criticaladakv": criticaladakv, "chunkkv": chunkkv}
    if scorer in special:
        masks = [special[scorer](dump, layer, table, budget, **options) for layer, table in zip(dump.layers, tables)]
    elif options.get("block") and scorer == "keydiff":
        masks = [keydiff_blocks(dump, layer, budget, options["block"]) for layer in dump.layers]
    elif options.get("hard_window") is False:
        masks = global_padded(dump, tables, budget)
    else:
        share = budget - (dump.context - tables[0].shape[1])
        split = {key: value for key, value in options.items() if key in OF_ALLOCATOR[allocator]}
        if allocator == "cake":
            split["preferences"] = [scorers.cake_preference(dump, layer, **options) for layer in dump.layers]
        if split.get("normalize") == "residual":
            split["divisors"] = [scorers.residual_scale(dump, layer, options.get("window", 32)) for layer in dump.layers]
        counts = ALLOCATORS[allocator](tables, share, budget, **split)
        masks = [best(table, count) for table, count in zip(tables, counts)]
    for i in range(options.get("skip_layers", 0)):
        masks[i] = np.ones_like(masks[i])
    return [keep_the_rest(mask, dump) for mask in masks]


def keep_the_rest(mask, dump):
    return np.pad(mask, [(0, 0), (0, dump.context - mask.shape[1])], constant_values=True)


def best(table, counts):
    """The counts[g] best tokens of every head."""
    mask = np.zeros(table.shape, bool)
    for head, count in enumerate(counts):
        mask[head, oracle.best_first(table[head])[:count]] = True
    return mask


def padded(table, dump, plus):
    """The window joins the competition at the largest score of the layer, `plus` something."""
    return np.pad(table, [(0, 0), (0, dump.context - table.shape[1])], constant_values=table.max() + plus)


# Budget splits: kept candidates per layer and head ------------------------------------------------------------------------------


def per_head(tables, share, budget):
    return [np.full(len(table), share) for table in tables]


def per_layer(tables, share, budget):
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
    layers, candidates, window = len(tables), tables[0].shape[1], budget - share
    if layers == 1:
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
        return [share] * layers
    return [round(largest - layer * (largest - smallest) / (layers - 1)) - window for layer in range(layers)]


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


ALLOCATORS = dict(head=per_head, layer=per_layer, ada=ada, pyramid=pyramid, cake=cake, lava=lava)
ALLOCATORS["global"] = over_the_model


# Policies that pick in their own way --------------------------------------------------------------------------------------------


def keydiff_blocks(dump, layer, budget, block):
    """The cache holds `budget` tokens; every further block joins, all are scored anew, and the best stay."""
    mask = np.zeros((len(layer.k), dump.context), bool)
    for head, keys in enumerate(layer.k):
        held = np.arange(min(budget, dump.context))
        for start in range(budget, dump.context, block):
            held = np.concatenate([held, np.arange(start, min(start + block, dump.context))])
            held = np.sort(held[oracle.best_first(scorers.keydiff_scores(keys[held]))[:budget]])
        mask[head, held] = True
    return mask


def two_stages(first, second, count, first_count):
    """The first_count best by one score, then the best others by the other."""
    mask = np.zeros(len(first), bool)
    mask[oracle.best_first(first)[:first_count]] = True
    mask[oracle.best_first(np.where(mask, -np.inf, second))[: count - first_count]] = True
    return mask


def criticalkv(dump, layer, table, budget, first_stage=0.5, epsilon=1e-4, variant="hard-window", **_):
    count = budget
    if variant == "kvpress":
        table = padded(table, dump, 1)
    else:
        count = budget - (dump.context - table.shape[1])
    second = (table + epsilon) * scorers.value_norms_l1(dump, layer)[:, : table.shape[1]]
    return np.stack([two_stages(a, b, count, int(count * first_stage)) for a, b in zip(table, second)])


def criticaladakv(dump, layer, table, budget, safeguard=0.2, first_stage=0.5, epsilon=1e-4, hard_window=False, **_):
    share = budget
    if hard_window:
        share = budget - (dump.context - table.shape[1])
    else:
        table = padded(table, dump, 1)
    safe = int(share * safeguard)
    counts = counts_with_safeguard(table, safe, share * len(table))
    second = (table + epsilon) * scorers.value_norms_l1(dump, layer)[:, : table.shape[1]]
    return np.stack([two_stages(a, b, count, max(safe, int(count * first_stage))) for a, b, count in zip(table, second, counts)])


def chunkkv(dump, layer, table, budget, chunk=20, variant="exact", **_):
    """One set of chunks for all heads; the exact variant keeps the window first and cuts the last chunk.

    A context shorter than a chunk is SnapKV's.
    """
    summed, window = padded(table, dump, 1).sum(0), dump.context - table.shape[1]
    starts = np.arange(0, dump.context, chunk)
    order = oracle.best_first(np.array([summed[start : start + chunk].mean() for start in starts]))
    kept = np.zeros(dump.context, bool)
    if dump.context < chunk:
        return best(table, [budget - window] * len(table))
    if variant == "kvpress":
        for i in order[: max(1, len(starts) * budget // dump.context)]:
            kept[starts[i] : starts[i] + chunk] = True
    else:
        kept[dump.context - window :] = True
        for i in order:
            for token in range(starts[i], min(starts[i] + chunk, dump.context)):
                kept[token] |= kept.sum() < budget
    return np.repeat(kept[None], len(table), 0)


def global_padded(dump, tables, budget):
    """Raw scores over the model, each layer's window at that layer's maximum (layer-defensivekv)."""
    tables = [padded(table, dump, 0) for table in tables]
    counts = over_the_model(tables, budget, budget, normalize=False)
    return [best(table, count) for table, count in zip(tables, counts)]
