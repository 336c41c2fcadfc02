"""Which tokens a policy keeps, from its string: its scores, and the budget split or own way of picking.

Tables are those of catalogue_oracle: [H_kv, n] for the first n tokens.
"""

import catalogue_future as future
import catalogue_oracle as scorers
import numpy as np
from catalogue_picks import PICKS, global_padded, keydiff_blocks
from catalogue_rkv import rkv
from catalogue_splits import ALLOCATORS, best

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
    "rkv": rkv,
    "cur": scorers.cur,
    "chunkkv": scorers.snapkv,
    "entropy-chunkkv": scorers.snapkv,
    "chunkpress": scorers.chunkpress,
    "obcache": scorers.obcache,
    "dropkv": scorers.dropkv,
    "laprox": scorers.laprox,
    "laprox-r": scorers.laprox_r,
    "oracle": scorers.judging_oracle,
    "expected-attention": future.expected_attention,
    "critical-expected-attention": future.plain_expected_attention,
    "criticalada-expected-attention": future.plain_expected_attention,
    "capkv": future.capkv,
}
ALIASES = {
    "adakv": "snapkv+ada",
    "pyramidkv": "snapkv+pyramid",
    "layer-defensivekv": "defensivekv+global:normalize=false,hard-window=false",
    "keydiff-block128": "keydiff:block=128",
    "laprox-far": "laprox-r:far=64,far-weight=8",
    "laprox-mix": "laprox-r:far=64,far-queries=1024,pool=avg,kernel=81,own=4",
}
OWN_SPLIT = {"defensivekv": "layer", "cake": "cake", "lava": "lava", "laprox": "global", "laprox-r": "global", "oracle": "global"}
OF_ALLOCATOR = {
    "ada": ["floor", "variant", "normalize", "rounding"],
    "pyramid": ["beta", "variant"],
    "per-layer": ["shares", "variant"],
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
    if "/" in text:
        return [float(number) for number in text.split("/")]
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
    if scorer in PICKS and not (scorer == "finch" and not options.get("chunk")):
        masks = [PICKS[scorer](dump, layer, table, budget, **options) for layer, table in zip(dump.layers, tables)]
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
