"""The scores of the policies that guess coming queries from the prompt's, as they were before RoPE; see catalogue_oracle."""

import numpy as np
from catalogue_oracle import behind_the_sinks, context_keys, context_values, reduce_group


def rotations(positions, frequencies, size):
    """RoPE's matrices for column vectors: channels j and j + r/2 turn by position * frequency j, the others stay."""
    half = len(frequencies)
    angles = np.asarray(positions)[:, None] * frequencies
    matrices = np.repeat(np.eye(size)[None], len(angles), 0)
    low, high = np.arange(half), np.arange(half) + half
    matrices[:, low, low] = matrices[:, high, high] = np.cos(angles)
    matrices[:, high, low], matrices[:, low, high] = np.sin(angles), -np.sin(angles)
    return matrices


def queries_before_rope(dump, layer, frequencies, sinks):
    """[H_q, n, d] of the prompt's queries behind the sinks."""
    positions = np.arange(sinks, dump.context)
    back = rotations(-positions, frequencies, layer.q.shape[-1])
    return np.einsum("ncd,hnd->hnc", back, layer.q[:, dump.rows(positions)])


def mean_rotation(dump, layer, frequencies, future):
    return rotations(np.arange(dump.context, dump.context + future), frequencies, layer.q.shape[-1]).mean(0)


def expected_attention(dump, layer, budget, future=512, sinks=4, covariance=True, value_norm=True, epsilon=0.0):
    queries, keys = queries_before_rope(dump, layer, layer.rope, sinks), context_keys(dump, layer)[:, sinks:]
    turn, attention = mean_rotation(dump, layer, layer.rope, future), []
    for h, q in enumerate(queries):
        k, mean = keys[h // layer.group], q.mean(0)
        spread = turn @ ((q - mean).T @ (q - mean) / len(q)) @ turn.T
        x = layer.scale * k @ (turn @ mean)
        if covariance:
            x = x + layer.scale**2 / 2 * np.einsum("ic,cd,id->i", k, spread, k)
        attention.append(np.exp(x - x.max()) / np.exp(x - x.max()).sum())
    scores = reduce_group(np.stack(attention), layer, "mean")
    if value_norm:
        scores = (scores + epsilon) * np.linalg.norm(context_values(dump, layer)[:, sinks:], axis=-1)
    return behind_the_sinks(scores, sinks)


def plain_expected_attention(dump, layer, budget, future=512, sinks=4, covariance=True, value_norm=False, **_):
    return expected_attention(dump, layer, budget, future, sinks, covariance, value_norm)


def capkv(dump, layer, budget, future=512, sinks=4, tau=5.0):
    queries, turn, scores = queries_before_rope(dump, layer, layer.rope, sinks), mean_rotation(dump, layer, layer.rope, future), []
    for h, q in enumerate(queries):
        k, v = context_keys(dump, layer)[h // layer.group, sinks:], context_values(dump, layer)[h // layer.group, sinks:]
        query = turn @ q.mean(0)
        cosine = np.clip(k @ query / np.linalg.norm(k, axis=-1) / np.linalg.norm(query), -1, 1)
        weights = np.exp(tau * cosine - (tau * cosine).max())
        moment = np.eye(v.shape[-1]) + np.einsum("i,ic,id->cd", weights + 1e-6, v, v)
        scores.append(weights * np.einsum("ic,ci->i", v, np.linalg.solve(moment, v.T)))
    return behind_the_sinks(reduce_group(np.stack(scores), layer, "mean"), sinks)
