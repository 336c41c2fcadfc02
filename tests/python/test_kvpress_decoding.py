"""laprox's schedules beside kvpress's DecodingPress on a tiny model, token by token; skipped where kvpress is not installed.

kvpress 0.5.5 differs from its own rule for prompts in two places, which are undone here: `topk` leaves the cache in the order of
the scores, so that later cuts no longer see tokens in the order of their positions, and SnapKV rotates all queries of its window by
the position of the last one.
"""

import laprox
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
kvpress = pytest.importorskip("kvpress")

from attention import arrays, recorded  # noqa: E402

CONTEXT, TOKENS, INTERVAL, BUDGET = 50, 110, 12, 50
PRESSES = {
    "knorm": kvpress.KnormPress,
    "keydiff": kvpress.KeyDiffPress,
    "streaming:sinks=4": lambda: kvpress.StreamingLLMPress(n_sink=4),
    "tova:force-last=true": kvpress.TOVAPress,
    "snapkv+head:window=8,pool=avg,kernel=5": lambda: kvpress.SnapKVPress(window_size=8, kernel_size=5),
}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(3)
    config = transformers.LlamaConfig(
        vocab_size=97, hidden_size=48, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2,
        head_dim=12, initializer_range=0.3, attn_implementation="sdpa", pad_token_id=0,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config).eval().double()


@pytest.fixture(scope="module")
def ids():
    return torch.randint(3, 97, (1, TOKENS), generator=torch.Generator().manual_seed(5))


def only_layer(model, ids):
    """The layer and its keys, as the attention kernel saw them: in deeper ones queries would feel the evictions below."""

    def make(module, q, k, v):
        layer = laprox.Layer(*arrays(module, q, k, v), scale=module.scaling, context_length=CONTEXT)
        return layer, k[0].detach().clone()

    return recorded(model, ids, make)[0]


def undo_differences(model, monkeypatch):
    real_topk, real_attention = torch.Tensor.topk, kvpress.SnapKVPress.compute_window_attention

    def topk(self, *arguments, **options):
        found = real_topk(self, *arguments, **options)
        return type(found)((found.values, found.indices.sort(-1).values))

    def attention(module, hidden_states, keys, window, position_embeddings):
        positions = torch.arange(model.now - window + 1, model.now + 1)[None]
        return real_attention(module, hidden_states, keys, window, model.model.rotary_emb(hidden_states, positions))

    monkeypatch.setattr(torch.Tensor, "topk", topk)
    monkeypatch.setattr(kvpress.SnapKVPress, "compute_window_attention", staticmethod(attention))


@pytest.mark.parametrize("policy", PRESSES)
def test_caches_hold_what_decoding_press_leaves_in_them(model, ids, policy, monkeypatch):
    layer, keys = only_layer(model, ids)
    undo_differences(model, monkeypatch)
    report = laprox.sweep(layer, policy, BUDGET, schedule=f"every:{INTERVAL}", save_kept=True, backend="reference")
    gone = report.evicted_at.values[0, 0, 0, 0]
    assert report.cuts.item() == (TOKENS - CONTEXT - 1) // INTERVAL
    press = kvpress.DecodingPress(PRESSES[policy](), INTERVAL, BUDGET, hidden_states_buffer_size=INTERVAL)
    cache = transformers.DynamicCache()
    with torch.no_grad():
        model(ids[:, :CONTEXT], past_key_values=cache)
        with press(model):
            for model.now in range(CONTEXT, TOKENS - 1):
                position = torch.tensor([model.now])
                model(ids[:, position], past_key_values=cache, cache_position=position, position_ids=position[None])
                for head, held in enumerate(cache.layers[0].keys[0]):
                    tokens = torch.cdist(held, keys[head]).argmin(1).tolist()
                    assert tokens == [i for i in range(model.now + 1) if gone[head, i] > model.now + 1], (policy, model.now)
