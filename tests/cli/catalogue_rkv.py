"""R-KV in float64 numpy, from the equations of its published code alone; conventions as in catalogue_oracle."""

import numpy as np
from catalogue_oracle import context_keys, pooled, reduce_group, window_size


def rkv(dump, layer, budget, window=8, pool="max", kernel=7, threshold=0.5, **options):
    attention, mix = attention_of_window(dump, layer, window), options.get("lambda", 0.07)
    likeness = np.stack([likeness_of(keys, threshold) for keys in context_keys(dump, layer)])[:, : attention.shape[1]]
    return mix * pooled(attention, pool, kernel) - (1 - mix) * likeness


def attention_of_window(dump, layer, window):
    """Softmax over the tokens before the window of the group's largest logits, mean over the window: [H_kv, P]."""
    prefix = dump.context - window_size(dump, window)
    positions = np.arange(prefix, dump.context)
    queries, keys = layer.q[:, dump.rows(positions)], np.repeat(layer.k[:, :prefix], layer.group, 0)
    logits = layer.scale * np.einsum("hnd,htd->hnt", queries, keys)
    if layer.softcap > 0:
        logits = layer.softcap * np.tanh(logits / layer.softcap)
    logits = reduce_group(logits, layer, "max")
    if layer.sliding_window > 0:
        logits = np.where(np.arange(prefix) > positions[:, None] - layer.sliding_window, logits, -np.inf)
    largest = logits.max(-1, keepdims=True, initial=-1e300)
    weights = np.exp(logits - largest)
    return (weights / np.maximum(weights.sum(-1, keepdims=True), 1e-300)).mean(1)


def likeness_of(keys, threshold):
    """Softmax over keys of the mean over the rows of their cosines, a row's last large one and the diagonal being 0: [C]."""
    directions = keys / (np.linalg.norm(keys, axis=-1, keepdims=True) + 1e-8)
    cosines = directions @ directions.T
    np.fill_diagonal(cosines, 0)
    for row in cosines:
        row[max(np.flatnonzero(row > threshold), default=0)] = 0
    weights = np.exp(cosines.mean(0))
    return weights / weights.sum()
