"""Eviction while decoding in float64 numpy: a plain loop over the decoded tokens, which shares nothing with the C++ code.

A cache is a list of token positions per KV head. gone[head, i] is the position of the first query that no longer finds token i;
T where it never leaves. With a sliding window, token i has left by age once the next query is at i + window.
"""

import copy
import functools

import catalogue_oracle
import numpy as np
import oracle
from catalogue_rkv import rkv


def share_of(percent, tokens):
    return max(1, int(np.floor(tokens * percent / 100 + 0.5)))


def worst(scores, candidates, count):
    """The `count` candidates that go: lowest score first; of equal ones the last."""
    return sorted(candidates, key=lambda i: (scores[i], -i))[:count]


def leaves_by_age(layer, token):
    """The position of the first query that no longer sees a token, or each of an array of tokens."""
    return token + (layer.sliding_window or np.inf)


def aged(gone, dump, layer):
    """`gone` of caches that are cut, with what left them by age: no query before the context's end asks."""
    ages = leaves_by_age(layer, np.arange(gone.shape[1]))
    return np.minimum(gone, np.maximum(ages, dump.context)).astype(int)


def h2o_evicted(sums, budget, recent):
    """sums [group, n]. The last budget - heavy entries stay, and the `heavy` others with most attention."""
    heavy = int(np.floor(budget * (1 - recent) + 1e-9)) if recent < 1 else budget - int(recent)
    n = sums.shape[1]
    return worst(sums.mean(0), range(n - (budget - heavy)), n - budget)


def simulate_h2o(dump, layer, budget_at, interval, recent=0.5):
    context, tokens, group = dump.context, layer.k.shape[1], layer.group
    prompt = oracle.attention(layer, dump.rows(np.arange(context)), dump.positions)[:, :, :context].sum(1)
    gone = np.full((len(layer.k), tokens), tokens)
    for head in range(len(layer.k)):
        sums = {i: prompt[head * group : (head + 1) * group, i].copy() for i in range(context)}

        def cut(seen):
            if seen > context:
                for i in [i for i in sums if leaves_by_age(layer, i) <= seen]:
                    del sums[i]
            budget, entries = budget_at(seen), sorted(sums)
            if len(entries) <= budget:
                return
            for n in h2o_evicted(np.stack([sums[i] for i in entries], 1), budget, recent):
                gone[head, entries[n]] = seen
                del sums[entries[n]]

        cut(context)
        for position in range(context, tokens):
            sums[position] = np.zeros(group)
            kept = np.zeros((len(layer.k), tokens), bool)
            kept[head, sorted(sums)] = True
            weights = oracle.attention(layer, dump.rows(np.array([position])), dump.positions, kept)[:, 0]
            for i in sums:
                sums[i] += weights[head * group : (head + 1) * group, i]
            if (position + 1 - context) % interval == 0 and position + 1 < tokens:
                cut(position + 1)
    return aged(gone, dump, layer)


def held_dump(dump, layer, held, position, window):
    """What the caches hold, as if it were a prompt, with the `window` queries up to `position`."""
    entries = len(held[0])
    rows = dump.rows(np.arange(position + 1 - window, position + 1))
    small = copy.copy(layer)
    small.k = np.stack([layer.k[head, tokens] for head, tokens in enumerate(held)])
    small.v = np.stack([layer.v[head, tokens] for head, tokens in enumerate(held)])
    small.q = layer.q[:, rows]
    small.residual_norms = None if layer.residual_norms is None else layer.residual_norms[rows]
    return oracle.Dump(entries, np.arange(entries - window, entries), [small]), small


def simulate_rescored(dump, layer, score, budget_at, interval, window, sinks=0):
    """`score` is a scorer of catalogue_oracle: the scores of the entries that compete, [H_kv, n]; those behind them stay."""
    context, tokens = dump.context, layer.k.shape[1]
    gone = np.full((len(layer.k), tokens), tokens)
    held = [list(range(context)) for _ in layer.k]

    def cut(part, heads, seen):
        budget, entries = budget_at(seen), len(held[heads[0]])
        if entries <= budget:
            return
        size = min(window, entries)
        table = score(*held_dump(dump, part, [held[head] for head in heads], seen - 1, size), budget)
        for head, scores in zip(heads, table, strict=True):
            for n in sorted(worst(scores, range(sinks, len(scores)), entries - budget), reverse=True):
                gone[head, held[head].pop(n)] = seen

    every = list(range(len(layer.k)))
    cut(layer, every, context)
    for position in range(context, tokens):
        for tokens_held in held:
            tokens_held.append(position)
        if (position + 1 - context) % interval == 0 and position + 1 < tokens:
            held = [[i for i in tokens_held if leaves_by_age(layer, i) > position + 1] for tokens_held in held]
            if len({len(tokens_held) for tokens_held in held}) == 1:
                cut(layer, every, position + 1)
            else:
                for head, part in enumerate(heads_of(layer)):
                    cut(part, [head], position + 1)
    return aged(gone, dump, layer)


def heads_of(layer):
    """Each KV head with its query heads as a layer of its own."""
    blocks = layer.w_o.reshape(len(layer.q), layer.v.shape[-1], -1)
    for head in range(len(layer.k)):
        group = slice(head * layer.group, (head + 1) * layer.group)
        part = copy.copy(layer)
        part.q, part.k, part.v = layer.q[group], layer.k[head : head + 1], layer.v[head : head + 1]
        part.w_o = blocks[group].reshape(-1, layer.w_o.shape[-1])
        part.sinks = None if layer.sinks is None else layer.sinks[group]
        yield part


def recency(dump, layer, budget):
    return np.broadcast_to(np.arange(dump.context, dtype=float), (len(layer.k), dump.context))


def catalogue(name, **options):
    return lambda dump, layer, budget: getattr(catalogue_oracle, name)(dump, layer, budget, **options)


#: policy as the command line has it -> (dump, layer, budget_at, interval) -> gone
SIMULATIONS = {
    "h2o": simulate_h2o,
    "h2o:recent=5": lambda *case: simulate_h2o(*case, recent=5),
    "snapkv+head:window=6": lambda *case: simulate_rescored(*case[:2], catalogue("snapkv", window=6), *case[2:], window=6),
    "tova": lambda *case: simulate_rescored(*case[:2], catalogue("tova"), *case[2:], window=1),
    "laprox+head:window=6": lambda *case: simulate_rescored(*case[:2], catalogue("laprox", window=6), *case[2:], window=6),
    "rkv:window=6": lambda *case: simulate_rescored(*case[:2], functools.partial(rkv, window=6), *case[2:], window=6),
    "knorm": lambda *case: simulate_rescored(*case[:2], catalogue("knorm"), *case[2:], window=0),
    "keydiff": lambda *case: simulate_rescored(*case[:2], catalogue("keydiff"), *case[2:], window=0),
    "streaming:sinks=4": lambda *case: simulate_rescored(*case[:2], recency, *case[2:], window=0, sinks=4),
}


def relative_errors(dump, lifetimes):
    """[decoded queries] of every layer: (squared error, squared norm) of each query's output."""
    squares = []
    for layer, gone in zip(dump.layers, lifetimes):
        for row in dump.decoded:
            exact = oracle.layer_output(layer, oracle.head_outputs(layer, oracle.attention(layer, [row], dump.positions)))
            weights = oracle.attention(layer, [row], dump.positions, gone > dump.positions[row])
            kept = oracle.layer_output(layer, oracle.head_outputs(layer, weights))
            squares.append([((kept - exact) ** 2).sum(), (exact**2).sum()])
    return np.array(squares).reshape(len(dump.layers), len(dump.decoded), 2)
