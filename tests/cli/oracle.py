"""An independent float64 implementation in numpy: exact outputs, scores, kept sets and errors, from the equations alone.

It shares nothing with the C++ code. Shapes: q [H_q, N, d], k [H_kv, T, d], v [H_kv, T, d_v], attention [H_q, n, T],
scores and kept masks [H_kv, C]. Query head h reads KV head h // (H_q / H_kv).
"""

from dataclasses import dataclass

import h5py
import numpy as np

WINDOW, KERNEL = 32, 7


@dataclass
class Layer:
    q: np.ndarray
    k: np.ndarray
    v: np.ndarray
    w_o: np.ndarray
    bias: np.ndarray | None
    sinks: np.ndarray | None
    scale: float
    softcap: float
    sliding_window: int

    @property
    def group(self):
        return self.q.shape[0] // self.k.shape[0]


@dataclass
class Dump:
    context: int
    positions: np.ndarray
    layers: list

    def rows(self, positions):
        return np.searchsorted(self.positions, positions)

    @property
    def window(self):
        """Rows of the observation window's queries."""
        return self.rows(np.arange(max(0, self.context - WINDOW), self.context))

    @property
    def decoded(self):
        return np.flatnonzero(self.positions >= self.context)


def text(value):
    """An attribute's string, which h5py gives as bytes where its length is fixed."""
    return value.decode() if isinstance(value, bytes) else value


def read_tensor(group, name):
    if name not in group:
        return None
    values = group[name][()]
    if text(group[name].attrs.get("dtype", "")) == "bfloat16":
        values = (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float64)


def read_dump(path):
    with h5py.File(path) as file:
        layers = []
        for i in range(len(file["layers"])):
            group = file[f"layers/{i}"]
            tensors = {
                name: read_tensor(group, key)
                for name, key in dict(q="q", k="k", v="v", w_o="w_o", bias="b_o", sinks="sinks").items()
            }
            scale = float(group.attrs.get("scale", tensors["q"].shape[-1] ** -0.5))
            layers.append(
                Layer(
                    **tensors,
                    scale=scale,
                    softcap=float(group.attrs.get("softcap", 0)),
                    sliding_window=int(group.attrs.get("sliding_window", 0)),
                )
            )
        return Dump(int(file.attrs["context_length"]), file["query_positions"][()], layers)


def attention(layer, rows, positions, kept=None):
    """Causal softmax weights of some stored queries over all keys, or over the `kept` ones [H_kv, T]."""
    q, k = layer.q[:, rows], np.repeat(layer.k, layer.group, 0)
    logits = layer.scale * np.einsum("hnd,htd->hnt", q, k)
    if layer.softcap > 0:
        logits = layer.softcap * np.tanh(logits / layer.softcap)
    token, position = np.arange(k.shape[1])[None], positions[rows][:, None]
    visible = token <= position
    if layer.sliding_window > 0:
        visible &= token > position - layer.sliding_window
    visible = np.broadcast_to(visible[None], logits.shape)
    if kept is not None:
        visible = visible & np.repeat(kept, layer.group, 0)[:, None]
    logits = np.where(visible, logits, -np.inf)
    largest = logits.max(-1, keepdims=True)
    if layer.sinks is not None:
        largest = np.maximum(largest, layer.sinks[:, None, None])
    largest = np.where(np.isfinite(largest), largest, 0)
    weights = np.exp(logits - largest)
    total = weights.sum(-1, keepdims=True)
    if layer.sinks is not None:
        total = total + np.exp(layer.sinks[:, None, None] - largest)
    return np.divide(weights, total, out=np.zeros_like(weights), where=total > 0)


def head_outputs(layer, weights):
    return np.einsum("hnt,htc->hnc", weights, np.repeat(layer.v, layer.group, 0))


def layer_output(layer, heads):
    flat = heads.transpose(1, 0, 2).reshape(heads.shape[1], -1)
    return flat @ layer.w_o + (0 if layer.bias is None else layer.bias)


def value_norms(layer):
    """||v_i W_O^h||_2: [H_q, T], with v W_O multiplied out."""
    blocks = layer.w_o.reshape(layer.q.shape[0], layer.v.shape[-1], -1)
    return np.stack([np.linalg.norm(layer.v[h // layer.group] @ block, axis=-1) for h, block in enumerate(blocks)])


def pool(scores, kind):
    """torch's max_pool1d / avg_pool1d (zeros padded, divisor always the kernel), kernel 7, stride 1."""
    half, length = KERNEL // 2, scores.shape[-1]
    windows = [scores[..., max(0, i - half) : i + half + 1] for i in range(length)]
    if not windows:
        return scores
    return np.stack([w.max(-1) if kind == "max" else w.sum(-1) / KERNEL for w in windows], -1)


def group_mean(values, layer):
    return values.reshape(layer.k.shape[0], layer.group, -1).mean(1)


def best_first(scores):
    """Score descending, then index ascending."""
    return np.lexsort((np.arange(len(scores)), -scores))


def h2o_kept(dump, budget):
    recent, kept = budget - budget // 2, []
    for layer in dump.layers:
        weights = attention(layer, dump.rows(np.arange(dump.context)), dump.positions)
        scores = group_mean(weights.sum(1), layer)[:, : dump.context]
        mask = np.zeros(scores.shape, bool)
        mask[:, dump.context - recent :] = True
        for head, row in enumerate(scores):
            mask[head, best_first(row[: dump.context - recent])[: budget // 2]] = True
        kept.append(mask)
    return kept


def window_scores(dump, scorer):
    """Scores [H_kv, P] of the tokens before the window, per layer: snapkv (section 4) or laprox (Algorithm 1)."""
    prefix, scores = dump.context - min(WINDOW, dump.context), []
    for layer in dump.layers:
        weights = attention(layer, dump.window, dump.positions)[:, :, :prefix]
        if scorer == "snapkv":
            scores.append(pool(group_mean(weights.mean(1), layer), "max"))
        else:
            norms = pool(np.linalg.norm(weights, axis=1), "avg")
            scores.append(group_mean(norms * value_norms(layer)[:, :prefix], layer))
    return scores


def top_counts(scores, count):
    """How many of the `count` best of several flattened score tables [heads, P] each head holds."""
    labels = (
        np.concatenate([np.full(s.size, 0) for s in scores])
        if not scores
        else np.concatenate(
            [np.repeat(np.arange(len(s)) + sum(len(x) for x in scores[:i]), s.shape[1]) for i, s in enumerate(scores)]
        )
    )
    chosen = labels[best_first(np.concatenate([s.ravel() for s in scores]))[:count]]
    heads = np.bincount(chosen, minlength=sum(len(s) for s in scores))
    return np.split(heads, np.cumsum([len(s) for s in scores])[:-1])


def ada_counts(scores, share, floor=0.2):
    """AdaKV, official form, with the largest remainders to the exact total; ties: lower head."""
    quotas = top_counts([scores], share * len(scores))[0] * (1 - floor) + np.floor(share * floor + 1e-9)
    counts = np.floor(quotas + 1e-9).astype(int)
    order = np.lexsort((np.arange(len(counts)), -np.round((quotas - counts) * 1e9)))
    while counts.sum() < share * len(counts):
        for head in order:
            if counts.sum() < share * len(counts) and counts[head] < scores.shape[1]:
                counts[head] += 1
    return counts


def split(scores, share, allocator):
    """Kept tokens before the window per layer and head."""
    if allocator == "head":
        return [np.full(len(s), share) for s in scores]
    if allocator == "layer":
        return [top_counts([s], share * len(s))[0] for s in scores]
    if allocator == "ada":
        return [ada_counts(s, share) for s in scores]
    if allocator == "global":
        scores = [s / s.sum() if s.sum() > 0 else s for s in scores]
    return top_counts(scores, share * sum(len(s) for s in scores))


def kept_masks(dump, policy, budget):
    """Kept context tokens [layer][H_kv, C] of a policy at `budget` tokens per KV head."""
    scorer, _, allocator = policy.partition("+")
    allocator = allocator or ("global" if scorer == "laprox" else "head")
    token = np.arange(dump.context)
    positional = {
        "full": token >= 0,
        "recent": token >= dump.context - budget,
        "streaming": (token < 4) | (token >= dump.context - (budget - 4)),
    }
    if scorer in positional:
        return [np.repeat(positional[scorer][None], len(layer.k), 0) for layer in dump.layers]
    if scorer == "h2o":
        return h2o_kept(dump, budget)
    window = min(WINDOW, dump.context)
    kept = []
    scores = window_scores(dump, scorer)
    for table, counts in zip(scores, split(scores, budget - window, allocator)):
        mask = np.zeros((len(table), dump.context), bool)
        mask[:, dump.context - window :] = True
        for head, count in enumerate(counts):
            mask[head, best_first(table[head])[:count]] = True
        kept.append(mask)
    return kept


def errors(dump, kept, softmax="renormalized", queries="decoded"):
    """Metrics of one kept set: a dictionary per layer, and the model's pooled relative error."""
    rows, layers, error, norm = dump.decoded if queries == "decoded" else dump.window, [], 0.0, 0.0
    for layer, mask in zip(dump.layers, kept):
        cached = np.concatenate([mask, np.ones((len(mask), layer.k.shape[1] - dump.context), bool)], 1)
        exact, wide = attention(layer, rows, dump.positions), np.repeat(cached, layer.group, 0)[:, None]
        weights = attention(layer, rows, dump.positions, cached) if softmax == "renormalized" else exact * wide
        exact_heads, heads = head_outputs(layer, exact), head_outputs(layer, weights)
        output, moved = layer_output(layer, exact_heads), layer_output(layer, heads)
        delta, per_query = moved - output, np.linalg.norm(moved - output, axis=1) / np.linalg.norm(output, axis=1)
        cosine = (moved * output).sum(1) / np.linalg.norm(moved, axis=1) / np.linalg.norm(output, axis=1)
        evicted = exact * ~wide
        bound = (np.linalg.norm(evicted, axis=1) * value_norms(layer)).sum()
        layers.append(
            dict(
                relative_error=np.linalg.norm(delta) / np.linalg.norm(output),
                query_error_mean=per_query.mean(),
                query_error_p95=np.percentile(per_query, 95),
                query_error_p99=np.percentile(per_query, 99),
                query_error_max=per_query.max(),
                cosine_mean=cosine.mean(),
                cosine_min=cosine.min(),
                retained_mass=1 - evicted.sum(-1).mean(),
                bound=bound / np.linalg.norm(output),
                head_relative_error=np.linalg.norm(heads - exact_heads, axis=(1, 2)) / np.linalg.norm(exact_heads, axis=(1, 2)),
            )
        )
        error, norm = error + (delta**2).sum(), norm + (output**2).sum()
    return layers, np.sqrt(error / norm)
