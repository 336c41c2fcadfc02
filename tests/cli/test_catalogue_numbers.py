"""What every policy of the catalogue scores and keeps, against the independent float64 implementation, on awkward shapes."""

import catalogue_oracle
import catalogue_selection
import dumps
import h5py
import numpy as np
import pytest

SMALL = "window=8,kernel=5"
ANY_DUMP = [
    "tova",
    "tova:force-last=true",
    "knorm",
    "knorm:skip-layers=1",
    "keydiff",
    "keydiff:block=7",
    "keydiff-block128",
    f"snapkv:{SMALL}",
    f"snapkv:{SMALL},pool=avg",
    f"snapkv:{SMALL},gqa=max,order=pool-first",
    f"adakv:{SMALL}",
    f"adakv:{SMALL},rounding=official",
    f"adakv:{SMALL},variant=kvpress,floor=0.5",
    f"adakv:{SMALL},variant=fork",
    f"adakv:{SMALL},variant=kvpress-0.5.5,floor=0.5",
    "knorm+ada:variant=kvpress-0.5.5,floor=0.01",
    "finch:window=8",
    "finch:window=8,count=exact",
    "finch:window=8,count=none",
    "finch:window=8,chunk=25",
    "finch+global:window=8,normalize=false",
    "finch:window=3,chunk=7,quota=kvpress",
    "scissorhands:history=8,sinks=2,recent=5",
    "scissorhands:history=5,sinks=0,recent=3,gqa=max",
    f"adakv:{SMALL},normalize=true",
    f"criticalkv:{SMALL}",
    f"criticalkv:{SMALL},variant=kvpress",
    f"criticalkv:{SMALL},variant=kvpress-0.5.5,first-stage=0.01",
    f"criticaladakv:{SMALL}",
    f"criticaladakv:{SMALL},variant=kvpress-0.5.5,safeguard=0.01",
    f"criticaladakv:{SMALL},hard-window=true",
    f"criticaladakv:{SMALL},safeguard=0.6",
    f"defensivekv:{SMALL}",
    f"defensivekv:{SMALL},bias=window",
    f"layer-defensivekv:{SMALL}",
    f"layer-defensivekv:{SMALL},bias=window",
    "lagkv:lag=10,sinks=3",
    "lagkv:lag=7,cross-scoring=true",
    "lagkv",
    f"rkv:{SMALL}",
    f"rkv:{SMALL},lambda=0.5,threshold=0.1",
    f"rkv:{SMALL},lambda=0.9,threshold=0.9,pool=none",
    "cur",
    "cur:leverage=key,block=7",
    "cur:leverage=value,sinks=2",
    "cur:leverage=average",
    f"chunkkv:{SMALL},chunk=6",
    f"chunkkv:{SMALL},chunk=9,variant=kvpress",
    f"chunkkv:{SMALL}",
    f"entropy-chunkkv:{SMALL}",
    f"entropy-chunkkv:{SMALL},pool=avg,chunk=7,spiky=2",
    f"entropy-chunkkv:{SMALL},chunk=13,spiky=1,hard-window=true",
    "chunkpress:base=knorm,chunk=7",
    "chunkpress:base=knorm,chunk=10,quota=kvpress",
    "chunkpress:base=keydiff,chunk=17,quota=kvpress",
    "chunkpress:base=keydiff",
    f"obcache:{SMALL}",
    f"obcache:{SMALL},score=value",
    f"obcache:{SMALL},score=key,gqa=mean",
    f"dropkv:{SMALL}",
    f"dropkv:{SMALL},order=pool-first",
    f"laprox+layer:{SMALL}",
    "oracle",
    f"laprox:{SMALL},sinks=3",
    f"laprox:{SMALL},sinks=3,gqa=frobenius,pool-stage=final",
    f"laprox:{SMALL},normalize=residual",
    f"laprox-r:{SMALL}",
    f"laprox-r:{SMALL},normalize=false",
    f"laprox-r:{SMALL},far=3,far-queries=20",
    f"laprox-r:{SMALL},over=sum,pool=avg,sinks=2,pinned=5",
    f"laprox-r+layer:{SMALL},joint=false,pool=none",
    f"laprox-r:{SMALL},own=0.5",
    f"snapkv+global:{SMALL},normalize=residual",
    "knorm+global:normalize=residual",
] + [
    f"laprox:{SMALL},gqa={gqa},pool-stage={stage}"
    for gqa in ("mean-product", "mean-norms", "mean-attn", "frobenius")
    for stage in ("attn", "final", "none")
    if (gqa, stage) != ("frobenius", "attn")
]
ALL_QUERIES = [
    f"laprox-far:{SMALL}",
    f"laprox-mix:{SMALL}",
    f"laprox-mix:{SMALL},far=5,far-queries=30,own=2.5",
    f"laprox-r:{SMALL},far=3,far-weight=0.5",
    f"laprox-r:{SMALL},far=12,far-queries=45,pool=avg",
    "observed-attention",
    "scissorhands:recent=6",
    "noncausal:chunk=16",
    "noncausal:chunk=7",
    "noncausal",
    "expected-attention",
    "expected-attention:future=9,sinks=2,covariance=false,epsilon=0.01",
    "expected-attention:value-norm=false",
    "expected-attention+ada:variant=kvpress,epsilon=0.01",
    "critical-expected-attention",
    "critical-expected-attention:variant=kvpress-0.5.5,future=9",
    "critical-expected-attention:sinks=0,first-stage=0.2,value-norm=true",
    "criticalada-expected-attention",
    "criticalada-expected-attention:hard-sinks=true,safeguard=0.6,future=9",
    f"chunkpress:{SMALL},chunk=20",
    f"chunkpress:{SMALL},chunk=33,quota=kvpress,pool=avg,gqa=max",
    "capkv",
    "capkv:future=5,tau=2,sinks=1",
]
EQUAL_HEADS = [
    f"pyramidkv:{SMALL}",
    f"pyramidkv:{SMALL},beta=3",
    f"pyramidkv:{SMALL},variant=kvcf",
    f"pyramidkv:{SMALL},variant=adakv",
    f"pyramidkv:{SMALL},variant=kvpress",
    f"pyramidkv:{SMALL},variant=kvpress,beta=3",
    f"snapkv+per-layer:{SMALL}",
    f"cake:{SMALL}",
    f"cake:{SMALL},tau1=1.6,tau2=0.4",
    f"cake:{SMALL},variant=published",
    f"cake:{SMALL},variant=cascade",
    f"lava:{SMALL}",
    f"lava:{SMALL},variant=rounded",
    f"lava:{SMALL},variant=code",
]
# Their file holds an order in the place of scores: two scores make them, or the path of a cache.
NO_PLAIN_SCORE = (
    *("criticalkv", "criticaladakv", "critical-", "criticalada-", "chunkkv", "entropy-chunkkv", "chunkpress"),
    *("finch:window=8,chunk", "finch:window=3,chunk", "keydiff:block", "keydiff-block"),
)

# Published rules for layers assume that all have as many heads; here the layers' attention is of unequal sharpness.
EQUAL = {
    "plain": [(4, 2)] * 5,
    "float16-sinks-bias-groups-of-3-and-8": [(6, 2)] * 4,
    "bfloat16-softcap-window-odd-sizes": [(10, 2)] * 3,
    "float64-everything": [(12, 4)] * 2,
}
SHARPNESS = [1.0, 0.3, 2.0, 0.1, 0.6]
SHAPES = dumps.FEATURES | {f"{name}, equal heads": dumps.FEATURES[name] | dict(heads=heads) for name, heads in EQUAL.items()}

# float64 against float64; float32 against float64, of the layer's largest score.
REFERENCE, CPU = 1e-8, 1e-5


def write_dump(path, name, seed):
    """A feature's dump that also says how RoPE rotated: all channels in even layers, half of them in odd ones."""
    dumps.write_dump(path, seed=seed, **SHAPES[name])
    with h5py.File(path, "r+") as file:
        for i in range(len(file["layers"])):
            layer = file[f"layers/{i}"]
            half = layer["q"].shape[-1] // (2 if i % 2 == 0 else 4)
            layer["rope_inv_freq"] = 10000.0 ** (-np.arange(half) / half)
            if name not in dumps.FEATURES and layer["q"].dtype != np.uint16:
                layer["q"][...] = layer["q"][()] * SHARPNESS[i]
    return path


class Expected:
    """A dump, and what the independent implementation says about it, computed once."""

    def __init__(self, path, shape):
        self.path, self.dump, self.tables, self.masks = path, catalogue_oracle.read_dump(path), {}, {}
        context = self.dump.context
        self.budgets = sorted({max(12, context // 5), context // 2 + 3, context - 3})
        whole = "recent_queries" not in shape
        equal = len({len(layer.k) for layer in self.dump.layers}) == 1
        self.policies = ANY_DUMP + (ALL_QUERIES if whole else []) + (EQUAL_HEADS if equal else [])

    def scores(self, policy, budget):
        key = policy, budget if "defensivekv" in policy else None
        if key not in self.tables:
            self.tables[key] = catalogue_selection.score_tables(self.dump, policy, budget)
        return self.tables[key]

    def kept(self, policy, budget):
        if (policy, budget) not in self.masks:
            self.masks[policy, budget] = catalogue_selection.kept_masks(self.dump, policy, budget, self.scores(policy, budget))
        return self.masks[policy, budget]


@pytest.fixture(scope="session")
def catalogue_dumps(tmp_path_factory):
    folder = tmp_path_factory.mktemp("catalogue")
    return {name: Expected(write_dump(folder / f"{i}.h5", name, i), shape) for i, (name, shape) in enumerate(SHAPES.items())}


def written(laprox, expected, policy, budgets, backend, folder):
    """Scores per layer, and kept masks [budget][layer], as `laprox score` writes them."""
    path = folder / "scores.h5"
    laprox(
        "score",
        expected.path,
        "--policy",
        policy,
        "--budget",
        ",".join(map(str, budgets)),
        "--backend",
        backend,
        "-o",
        path,
        "--force",
        "--quiet",
    )
    with h5py.File(path) as file:
        layers = [file[f"layers/{i}"] for i in range(len(expected.dump.layers))]
        return [layer["scores"][()] for layer in layers], [
            [layer["kept"][b].astype(bool) for layer in layers] for b in range(len(budgets))
        ]


def competing(found, tables):
    """The written scores and the expected ones, of those tokens that compete; an infinite score is a sink's."""
    return [
        (mine[:, : table.shape[1]][:, np.isfinite(table[0])], table[:, np.isfinite(table[0])]) for mine, table in zip(found, tables)
    ]


#: Kept sets are compared on all shapes; scores, which take a run of their own for each policy, on those with most features.
SCORED = ["float64-everything", "bfloat16-softcap-window-odd-sizes", "float16-sinks-bias-groups-of-3-and-8"]


@pytest.mark.parametrize("name", SCORED)
def test_scores_equal_the_independent_implementation(laprox, catalogue_dumps, tmp_path, name):
    expected = catalogue_dumps[name]
    for policy in expected.policies:
        if policy.startswith(NO_PLAIN_SCORE + ("adakv", "pyramidkv")) or "+ada" in policy:
            continue
        budgets = expected.budgets[1:2] if "defensivekv" in policy else expected.budgets
        scores, kept = written(laprox, expected, policy, budgets, "reference", tmp_path)
        for i, (mine, table) in enumerate(competing(scores, expected.scores(policy, budgets[0]))):
            np.testing.assert_allclose(
                mine, table, rtol=REFERENCE, atol=1e-12 * np.abs(table).max(), err_msg=f"{policy}, layer {i}"
            )
        for budget, masks in zip(budgets, kept):
            for i, mask in enumerate(expected.kept(policy, budget)):
                np.testing.assert_array_equal(masks[i], mask, err_msg=f"{policy} at {budget}, layer {i}")


def sweep_kept(laprox, expected, backend, report):
    """Kept masks by policy and budget, per layer, from one sweep of everything."""
    laprox.sweep(expected.path, expected.policies, expected.budgets, "--backend", backend, "-o", report, "--save-kept")
    found = {}
    with h5py.File(report) as file:
        tokens, starts, counts = file["kept/tokens"][()], file["kept/start"][0], file["kept_count"][0]
        for p, policy in enumerate(expected.policies):
            for b, budget in enumerate(expected.budgets):
                masks = [np.zeros((len(layer.k), expected.dump.context), bool) for layer in expected.dump.layers]
                for i, mask in enumerate(masks):
                    for head, row in enumerate(mask):
                        row[tokens[starts[p, b, i, head] :][: counts[p, b, i, head]]] = True
                found[policy, budget] = masks
    return found


def is_a_near_tie(laprox, expected, policy, budget, found, folder):
    """float32 scores may order near ties otherwise: they are within 1e-5 of the largest, and what is kept follows from them."""
    if policy.startswith(NO_PLAIN_SCORE):
        return False
    tables = expected.scores(policy, budget)
    scores, _ = written(laprox, expected, policy, [budget], "cpu", folder)
    if any(np.abs(mine - table).max() > CPU * np.abs(table).max() for mine, table in competing(scores, tables)):
        return False
    rounded = [np.where(np.isfinite(table), mine[:, : table.shape[1]], table) for mine, table in zip(scores, tables)]
    return same(catalogue_selection.kept_masks(expected.dump, policy, budget, rounded), found)


def same(masks, others):
    return all((mask == other).all() for mask, other in zip(masks, others))


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_kept_tokens_equal_the_independent_implementation(laprox, catalogue_dumps, tmp_path, name, backend):
    expected, different = catalogue_dumps[name], []
    for (policy, budget), found in sweep_kept(laprox, expected, backend, tmp_path / "report.h5").items():
        if not same(found, expected.kept(policy, budget)):
            if backend == "reference" or not is_a_near_tie(laprox, expected, policy, budget, found, tmp_path):
                different.append(f"{policy} at {budget}")
    assert not different


def test_a_near_tie_is_told_from_a_mistake(laprox, catalogue_dumps, tmp_path):
    expected, policy, budget = catalogue_dumps["plain"], f"snapkv:{SMALL}", 53
    _, (found,) = written(laprox, expected, policy, [budget], "cpu", tmp_path)
    assert is_a_near_tie(laprox, expected, policy, budget, found, tmp_path)
    found[0][0] = np.roll(found[0][0], 1)
    assert not is_a_near_tie(laprox, expected, policy, budget, found, tmp_path)


def test_kvpress_computes_pyramids_with_percentages_as_they_are(laprox, catalogue_dumps, tmp_path):
    """Half a token more in every layer moves the rounding of some."""
    expected, policy, moved = catalogue_dumps["plain, equal heads"], f"pyramidkv:{SMALL},variant=kvpress,beta=3", 0
    percentages = [37.3, 44.6, 52.9, 61.2]
    _, found = written(laprox, expected, policy, [f"{p}%" for p in percentages], "reference", tmp_path)
    for percent, masks in zip(percentages, found):
        asked = expected.dump.context * percent / 100
        assert same(masks, catalogue_selection.kept_masks(expected.dump, policy, asked)), percent
        moved += not same(masks, expected.kept(policy, round(asked)))
    assert moved


@pytest.mark.parametrize("policy", ["snapkv", "knorm", "finch"])
@pytest.mark.parametrize("variant", ["exact", "kvpress"])
def test_layers_keep_their_shares(laprox, catalogue_dumps, tmp_path, policy, variant):
    """Of a dump with five layers; the third one's share is more than its context at the largest budget."""
    expected = catalogue_dumps["plain, equal heads"]
    text = f"{policy}+per-layer:shares=1/0.5/3/0/0.25,variant={variant}" + (",window=8" if policy != "knorm" else "")
    budgets = [17, 40, 60]
    _, found = written(laprox, expected, text, budgets, "reference", tmp_path)
    for budget, masks in zip(budgets, found):
        assert same(masks, expected.kept(text, budget)), budget


def test_shares_for_other_layers_than_the_dump_has_are_refused(laprox, catalogue_dumps):
    def refusal(shares):
        command = (
            "sweep",
            catalogue_dumps["plain, equal heads"].path,
            "--policy",
            f"knorm+per-layer:shares={shares}",
            "--budget",
            20,
        )
        return laprox(*command, expect=2).stderr

    assert "shares for 2 layers" in refusal("1/2") and "5 layers" in refusal("1/2")
    assert "above 0" in refusal("0/0")
    assert "separated by /" in refusal("1/two")


@pytest.mark.parametrize("variant", ["exact", "code", "rounded"])
def test_lava_keeps_all_of_a_layer_that_gets_more_than_there_is(laprox, tmp_path, variant):
    """The sliding window leaves the first layer little entropy, so that the second gets more than all its tokens."""
    shape = dict(context=37, tokens=40, heads=[(6, 3), (6, 3)], sliding_window=12)
    expected = Expected(dumps.write_dump(tmp_path / "dump.h5", seed=1, **shape), shape)
    _, (found,) = written(laprox, expected, f"lava:{SMALL},variant={variant}", [36], "reference", tmp_path)
    assert expected.kept(f"lava:{SMALL},variant={variant}", 36)[1].all()
    assert same(found, expected.kept(f"lava:{SMALL},variant={variant}", 36))
