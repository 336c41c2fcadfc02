"""What laprox's policies keep beside what kvpress's own classes keep on a tiny model, token by token; skipped where kvpress is not
installed.

kvpress compresses a layer after its attention was computed, so one pass of the unchanged model holds all that a policy reads.
"""

import laprox
import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
kvpress = pytest.importorskip("kvpress")

from attention import arrays, recorded  # noqa: E402

TOKENS, LAYERS = 150, 3
BUDGETS = [11, 24, 61, 131]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(3)
    config = transformers.LlamaConfig(
        vocab_size=97, hidden_size=48, intermediate_size=64, num_hidden_layers=LAYERS, num_attention_heads=6, num_key_value_heads=3,
        head_dim=8, initializer_range=0.3, attn_implementation="sdpa", pad_token_id=0,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config).eval().double()


@pytest.fixture(scope="module")
def ids():
    return torch.randint(3, 97, (1, TOKENS), generator=torch.Generator().manual_seed(5))


@pytest.fixture(scope="module")
def layers(model, ids):
    """The model's layers as the attention kernel saw them."""

    def make(module, q, k, v):
        rope = model.model.rotary_emb.inv_freq.numpy().astype(float)
        return laprox.Layer(*arrays(module, q, k, v), scale=module.scaling, rope_inv_freq=rope), k[0].detach().clone()

    return recorded(model, ids, make)


def ratio_of(budget):
    """A compression ratio whose int(TOKENS * (1 - ratio)) is the budget whatever floating point does to it."""
    return 1 - (budget + 0.1) / TOKENS


def kept_by_press(press, model, ids, layers):
    """Masks [kv_heads, TOKENS] of each layer: the entries that are left in the cache, less those that kvpress masks."""
    cache, masks = transformers.DynamicCache(), []
    with torch.no_grad(), kvpress.BasePress.__call__(press, model):
        model(ids, past_key_values=cache)
    for i, (_, keys) in enumerate(layers):
        mask = np.zeros(keys.shape[:2], bool)
        for head, held in enumerate(cache.layers[i].keys[0]):
            mask[head, torch.cdist(held, keys[head]).argmin(1)] = True
        attention = model.model.layers[i].self_attn
        if (hidden := getattr(attention, "masked_key_indices", None)) is not None:
            mask[hidden[1], hidden[2]] = False
            attention.masked_key_indices = None
        masks.append(mask)
    return masks


def check(press, policy, budget, model, ids, layers):
    found = laprox.kept([layer for layer, _ in layers], policy, str(budget), backend="reference")
    for number, expected in enumerate(kept_by_press(press, model, ids, layers)):
        np.testing.assert_array_equal(found.masks[number], expected, err_msg=f"{policy} at {budget}, layer {number}")


def finch(ratio, **options):
    press = kvpress.FinchPress(ratio, rerotate_keys=False, **options)
    press.window_size = 8
    return press


def snapkv(ratio, press=kvpress.SnapKVPress):
    return press(ratio, window_size=8, kernel_size=5)


def guess(ratio):
    return kvpress.ExpectedAttentionPress(ratio, use_vnorm=False)


class SnapKVInChunks(kvpress.SnapKVPress):
    """Undoes a slip: ChunkPress's SnapKV rotates the queries of every chunk by the positions of the prompt's last ones."""

    def score(self, module, hidden_states, keys, values, attentions, kwargs):
        first = self.__dict__.setdefault("seen", {}).get(module.layer_idx, 0)
        self.seen[module.layer_idx] = last = first + keys.shape[2]
        own = tuple(turn[:, first:last] for turn in kwargs["position_embeddings"])
        return super().score(module, hidden_states, keys, values, attentions, kwargs | {"position_embeddings": own})


SNAPKV = "window=8,pool=avg,kernel=5"
PRESSES = {
    f"snapkv:{SNAPKV}": snapkv,
    "streaming": kvpress.StreamingLLMPress,
    "tova:force-last=true": kvpress.TOVAPress,
    "knorm": kvpress.KnormPress,
    "keydiff": kvpress.KeyDiffPress,
    "keydiff:block=16": lambda ratio: kvpress.BlockPress(kvpress.KeyDiffPress(ratio), 16),
    "cur": kvpress.CURPress,
    "capkv": kvpress.CapPress,
    f"chunkkv:{SNAPKV},variant=kvpress": lambda ratio: kvpress.ChunkKVPress(snapkv(ratio)),
    "finch:window=8": finch,
    "finch:window=8,count=none": lambda ratio: finch(ratio, normalize_scores=False),
    "noncausal:chunk=50": lambda ratio: kvpress.NonCausalAttnPress(ratio, chunk_size=50),
    "noncausal:chunk=64": lambda ratio: kvpress.NonCausalAttnPress(ratio, chunk_size=64),
    "noncausal": kvpress.NonCausalAttnPress,
    f"snapkv+ada:{SNAPKV},variant=kvpress-0.5.5": lambda ratio: kvpress.AdaKVPress(snapkv(ratio)),
    "knorm+ada:variant=kvpress-0.5.5,floor=0.01": lambda ratio: kvpress.AdaKVPress(kvpress.KnormPress(ratio), 0.01),
    "knorm+ada:variant=kvpress-0.5.5,floor=0": lambda ratio: kvpress.AdaKVPress(kvpress.KnormPress(ratio), 0),
    f"criticalkv:{SNAPKV},variant=kvpress-0.5.5": lambda ratio: kvpress.CriticalKVPress(snapkv(ratio)),
    f"criticaladakv:{SNAPKV},variant=kvpress-0.5.5": lambda ratio: kvpress.CriticalAdaKVPress(snapkv(ratio)),
    "expected-attention": kvpress.ExpectedAttentionPress,
    "critical-expected-attention:variant=kvpress-0.5.5": lambda ratio: kvpress.CriticalKVPress(guess(ratio)),
    "critical-expected-attention:variant=kvpress-0.5.5,first-stage=0.05": lambda ratio: kvpress.CriticalKVPress(
        guess(ratio), first_stage_ratio=0.05
    ),
    "criticalada-expected-attention": lambda ratio: kvpress.CriticalAdaKVPress(guess(ratio)),
    "criticalada-expected-attention:safeguard=0.7": lambda ratio: kvpress.CriticalAdaKVPress(guess(ratio), 0.7),
    "chunkpress:base=knorm,chunk=40,quota=kvpress": lambda ratio: kvpress.ChunkPress(kvpress.KnormPress(ratio), 40),
    "chunkpress:base=keydiff,chunk=50,quota=kvpress": lambda ratio: kvpress.ChunkPress(kvpress.KeyDiffPress(ratio), 50),
}
ENTROPY = {
    f"entropy-chunkkv:{SNAPKV}": lambda ratio: kvpress.EntropyGatedChunkKVPress(snapkv(ratio)),
    f"entropy-chunkkv:{SNAPKV},chunk=7,spiky=1": lambda ratio: kvpress.EntropyGatedChunkKVPress(snapkv(ratio), 7, 1),
    f"entropy-chunkkv:{SNAPKV},chunk=23,spiky=9": lambda ratio: kvpress.EntropyGatedChunkKVPress(snapkv(ratio), 23, 9),
}
# At budgets that hold all tokens of the largest score: a window in its chunk's share, LagKV's sinks and last tokens.
LARGE = [61, 131]
WITHOUT_TIES = {
    "lagkv:lag=20,cross-scoring=true": lambda ratio: kvpress.LagKVPress(ratio, lag_size=20, cross_scoring=True),
    f"chunkpress:{SNAPKV},chunk=40,quota=kvpress": lambda ratio: kvpress.ChunkPress(snapkv(ratio, SnapKVInChunks), 40),
    f"chunkpress:{SNAPKV},chunk=50,quota=kvpress": lambda ratio: kvpress.ChunkPress(snapkv(ratio, SnapKVInChunks), 50),
    "finch:window=8,chunk=40,quota=kvpress": lambda ratio: finch(ratio, chunk_length=40),
    "finch:window=8,chunk=64,quota=kvpress": lambda ratio: finch(ratio, chunk_length=64),
}


@pytest.mark.parametrize("policy", PRESSES)
def test_kept_tokens_are_those_of_kvpress(model, ids, layers, policy):
    for budget in BUDGETS:
        check(PRESSES[policy](ratio_of(budget)), policy, budget, model, ids, layers)


@pytest.mark.parametrize("policy", ENTROPY)
def test_entropy_gates_chunks_as_in_kvpress(model, ids, layers, policy, monkeypatch):
    """The window's tokens score alike, and torch leaves the order of equal scores open: here the lower token is first."""
    monkeypatch.setattr(
        torch, "topk", lambda scores, k: torch.return_types.topk(x[:k] for x in scores.sort(descending=True, stable=True))
    )
    monkeypatch.setattr(torch, "argsort", lambda scores, descending: scores.sort(descending=descending, stable=True).indices)
    for budget in BUDGETS:
        check(ENTROPY[policy](ratio_of(budget)), policy, budget, model, ids, layers)


@pytest.mark.parametrize("policy", WITHOUT_TIES)
def test_kept_tokens_are_those_of_kvpress_without_ties(model, ids, layers, policy):
    for budget in LARGE:
        check(WITHOUT_TIES[policy](ratio_of(budget)), policy, budget, model, ids, layers)


@pytest.mark.parametrize("percent", ["14.7", "37.3", "52.9", "80"])
@pytest.mark.parametrize("beta", [2, 3, 20])
def test_pyramids_compute_with_the_budget_that_was_asked_for(model, ids, layers, percent, beta):
    press = kvpress.PyramidKVPress(1 - float(percent) / 100, window_size=8, kernel_size=5, beta=beta)
    check(press, f"pyramidkv:{SNAPKV},variant=kvpress,beta={beta}", f"{percent}%", model, ids, layers)


def test_layers_have_their_own_ratios(model, ids, layers):
    kept = [0.75, 0.39, 0.105]
    press = kvpress.PerLayerCompressionPress(kvpress.KnormPress(), [1 - share for share in kept])
    check(press, "knorm+per-layer:shares=0.75/0.39/0.105,variant=kvpress", "41.5%", model, ids, layers)
