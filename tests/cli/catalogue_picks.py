"""The policies that pick tokens in their own way, rather than by one score: kept masks [H_kv, C or the candidates]."""

import fractions

import catalogue_oracle as scorers
import numpy as np
import oracle
from catalogue_splits import best, counts_with_safeguard, over_the_model


def padded(table, dump, plus):
    """The window joins the competition at the largest score of the layer, `plus` something."""
    return np.pad(table, [(0, 0), (0, dump.context - table.shape[1])], constant_values=table.max() + plus)


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


def criticalkv(dump, layer, table, budget, variant="hard-window", **options):
    if variant.startswith("kvpress"):
        return critical(dump, layer, padded(table, dump, 1), budget, at_least=variant == "kvpress-0.5.5", **options)
    return critical(dump, layer, table, budget - (dump.context - table.shape[1]), **options)


def critical_expected_attention(dump, layer, table, budget, sinks=4, variant="hard-sinks", **options):
    if variant == "kvpress-0.5.5":
        return critical(dump, layer, sinks_ahead(table), budget, at_least=True, **options)
    return behind(sinks, critical(dump, layer, table[:, sinks:], budget - sinks, first=sinks, **options))


def critical(dump, layer, table, count, first=0, first_stage=0.5, epsilon=1e-4, at_least=False, **_):
    """CriticalKV among the tokens from `first` on that the table has."""
    picked = max(int(count * first_stage), at_least and first_stage > 0)
    return np.stack([two_stages(a, b, count, picked) for a, b in zip(table, second_stage(dump, layer, table, first, epsilon))])


def second_stage(dump, layer, table, first, epsilon):
    return (table + epsilon) * scorers.value_norms_l1(dump, layer)[:, first : first + table.shape[1]]


def sinks_ahead(table):
    """Sinks, whose score is infinite, at the largest other score plus one."""
    return np.where(np.isfinite(table), table, table[np.isfinite(table)].max() + 1)


def behind(sinks, mask):
    return np.pad(mask, [(0, 0), (sinks, 0)], constant_values=True)


def criticaladakv(dump, layer, table, budget, hard_window=False, variant="kvpress", **options):
    at_least = variant == "kvpress-0.5.5"
    if hard_window:
        return critical_ada(dump, layer, table, budget - (dump.context - table.shape[1]), at_least=at_least, **options)
    return critical_ada(dump, layer, padded(table, dump, 1), budget, at_least=at_least, **options)


def criticalada_expected_attention(dump, layer, table, budget, sinks=4, hard_sinks=False, **options):
    if hard_sinks:
        return behind(sinks, critical_ada(dump, layer, table[:, sinks:], budget - sinks, first=sinks, at_least=True, **options))
    return critical_ada(dump, layer, sinks_ahead(table), budget, at_least=True, **options)


def critical_ada(dump, layer, table, share, first=0, safeguard=0.2, first_stage=0.5, epsilon=1e-4, at_least=False, **_):
    safe = max(int(share * safeguard), at_least and safeguard > 0)
    counts = counts_with_safeguard(table, safe, share * len(table))
    second = second_stage(dump, layer, table, first, epsilon)
    return np.stack([two_stages(a, b, count, max(safe, int(count * first_stage))) for a, b, count in zip(table, second, counts)])


def chunk_shares(dump, layer, table, budget, chunk=1024, quota="exact", **_):
    """Each chunk's own best, as many as its share of the budget holds; the rest goes where the share is next to hold one more."""
    mask = np.zeros(table.shape, bool)
    for head, row in enumerate(table):
        chunks = [start + oracle.best_first(row[start : start + chunk]) for start in range(0, dump.context, chunk)]
        counts = [max(1, len(tokens) * budget // dump.context) for tokens in chunks]
        if quota == "exact":
            if len(chunks) > budget:
                counts = [int(i in np.argsort([tokens[0] for tokens in chunks])[:budget]) for i in range(len(chunks))]
            while sum(counts) > budget:
                last = max(
                    range(len(chunks)), key=lambda i: (fractions.Fraction(counts[i], len(chunks[i])), chunks[i][counts[i] - 1])
                )
                counts[last] -= 1
            while sum(counts) < budget:
                open_chunks = [i for i in range(len(chunks)) if counts[i] < len(chunks[i])]
                following = min(
                    open_chunks, key=lambda i: (fractions.Fraction(counts[i] + 1, len(chunks[i])), chunks[i][counts[i]])
                )
                counts[following] += 1
        for tokens, count in zip(chunks, counts):
            mask[head, tokens[:count]] = True
    return mask


def entropy_chunkkv(dump, layer, table, budget, chunk=10, spiky=4, hard_window=False, **_):
    """Whole chunks in the order of their means, but few tokens of important ones that are spiky; then what is best of the rest."""
    scores, kept = padded(table, dump, 1).sum(0), np.zeros(dump.context, bool)
    kept[table.shape[1] :] = hard_window
    chunks = [np.arange(start, min(start + chunk, dump.context)) for start in range(0, dump.context, chunk)]
    means, entropies = (
        np.array([scores[tokens].mean() for tokens in chunks]),
        np.array([entropy(scores[tokens]) for tokens in chunks]),
    )
    few = (means >= np.quantile(means, 0.5, method="lower")) & (entropies < np.quantile(entropies, 0.5, method="lower"))
    for i in oracle.best_first(means):
        tokens = chunks[i][oracle.best_first(scores[chunks[i]])]
        take(kept, tokens[:spiky] if few[i] else tokens, budget)
    take(kept, oracle.best_first(scores), budget)
    return np.repeat(kept[None], len(table), 0)


def entropy(scores):
    """Of what the scores are of their sum, between 0 and 1."""
    p = scores / (scores.sum() + 1e-8)
    return np.clip(-(p * np.log(p + 1e-8)).sum() / np.log(len(p)), 0, 1) if len(p) > 1 else 0.0


def take(kept, tokens, budget):
    for token in tokens:
        kept[token] |= kept.sum() < budget


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


PICKS = {
    "criticalkv": criticalkv,
    "criticaladakv": criticaladakv,
    "critical-expected-attention": critical_expected_attention,
    "criticalada-expected-attention": criticalada_expected_attention,
    "chunkkv": chunkkv,
    "entropy-chunkkv": entropy_chunkkv,
    "chunkpress": chunk_shares,
    "finch": chunk_shares,
}
