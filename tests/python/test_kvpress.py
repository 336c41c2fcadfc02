"""The press: what it keeps is what the command line keeps on a dump of the same prompt, and the model sees just that."""

import laprox
import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("kvpress")

from attention import recorded  # noqa: E402
from laprox.kvpress import LaproxPress  # noqa: E402

TOKENS, BATCH = 96, 2


@pytest.fixture(scope="module", params=["Llama", "Qwen3"])
def model(request):
    torch.manual_seed(3)
    config = getattr(transformers, request.param + "Config")(
        vocab_size=97, hidden_size=48, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
        head_dim=12, initializer_range=0.3, attn_implementation="sdpa", pad_token_id=0,
    )  # fmt: skip
    return getattr(transformers, request.param + "ForCausalLM")(config).eval()


@pytest.fixture(scope="module")
def prompt():
    return torch.randint(3, 97, (BATCH, TOKENS), generator=torch.Generator().manual_seed(5))


def layers_of(model, prompt):
    """The layers of every sequence of the batch, as the attention kernel saw them."""

    def make(module, q, k, v):
        return [laprox.Layer(q[i], k[i], v[i], module.o_proj.weight.T.contiguous(), scale=module.scaling) for i in range(BATCH)]

    return [list(layers) for layers in zip(*recorded(model, prompt, make))]


@pytest.mark.parametrize("policy", ["snapkv:window=8", "snapkv+ada:window=8", "knorm+global", "h2o", "laprox:window=8"])
def test_the_press_keeps_what_the_policy_keeps(model, prompt, monkeypatch, policy):
    press = LaproxPress(policy, budget="25%")
    cache = transformers.DynamicCache()
    with press(model), torch.no_grad():
        model(prompt, past_key_values=cache)
    hidden = [block.self_attn.masked_key_indices for block in model.model.layers]
    for i, layers in enumerate(layers_of(model, prompt)):
        expected = laprox.kept(layers, policy, "25%")
        for number, (batch, head, token) in enumerate(hidden):
            np.testing.assert_array_equal(press.kept[i].masks[number], expected.masks[number])
            mask = np.ones((2, TOKENS), bool)
            mask[head[batch == i], token[batch == i]] = False
            np.testing.assert_array_equal(mask, expected.masks[number])


def test_decoding_sees_the_kept_tokens_only(model, prompt):
    """The next token's logits are those of a cache whose evicted entries an attention mask hides."""
    press = LaproxPress("recent", budget=40)
    cache, full = transformers.DynamicCache(), transformers.DynamicCache()
    token = torch.full((BATCH, 1), 7)
    with torch.no_grad():
        with press(model):
            model(prompt, past_key_values=cache)
        pressed = model(token, past_key_values=cache, cache_position=torch.tensor([TOKENS])).logits
        for block in model.model.layers:
            block.self_attn.masked_key_indices = None
        model(prompt, past_key_values=full)
        visible = torch.zeros(BATCH, TOKENS + 1, dtype=torch.long)
        visible[:, TOKENS - 40 :] = 1
        position = torch.full((BATCH, 1), TOKENS)
        expected = model(token, past_key_values=full, attention_mask=visible, position_ids=position).logits
    torch.testing.assert_close(pressed, expected, rtol=1e-3, atol=1e-3)


def test_the_compression_ratio_is_a_budget(model, prompt):
    press = LaproxPress("knorm", budget="50%")
    press.compression_ratio = 0.75
    assert press.budget == "25%" and press.compression_ratio == 0.75
    with press(model), torch.no_grad():
        model(prompt, past_key_values=transformers.DynamicCache())
    assert press.kept[0].counts == [[24, 24]] * 3
    with pytest.raises(laprox.UsageError, match="compression_ratio"):
        press.compression_ratio = 1.5


def test_policies_that_no_cache_can_have_are_refused(model, prompt):
    with pytest.raises(laprox.UsageError, match="did you mean"):
        LaproxPress("snapvk")
    with LaproxPress("oracle")(model), pytest.raises(laprox.UsageError, match="no cache can"):
        model(prompt, past_key_values=transformers.DynamicCache())


def test_the_pipeline_of_kvpress_takes_it(model):
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {f"w{i}": i for i in range(97)}
    raw = Tokenizer(models.WordLevel(words, unk_token="w0"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=raw, unk_token="w0", pad_token="w0", bos_token="w1", eos_token="w2"
    )
    from kvpress.pipeline import KVPressTextGenerationPipeline

    pipe = KVPressTextGenerationPipeline(model=model, tokenizer=tokenizer)
    context = " ".join(f"w{3 + i % 90}" for i in range(80))
    answer = pipe(context, question="w5 w6", press=LaproxPress("snapkv+ada:window=8", budget="25%"), max_new_tokens=4)
    assert isinstance(answer["answer"], str)


def test_policies_read_the_residual_stream_behind_each_layer(model, prompt, monkeypatch):
    """Input of a block plus what its attention returns, at the queries of the policy."""
    entered, returned, given = {}, {}, []
    hooks = []
    for number, block in enumerate(model.model.layers):
        hooks.append(block.register_forward_pre_hook(lambda _, inputs, i=number: entered.update({i: inputs[0]})))
        hooks.append(block.self_attn.register_forward_hook(lambda _, __, output, i=number: returned.update({i: output[0]})))
    real = laprox.kvpress.kept
    monkeypatch.setattr(
        "laprox.kvpress.kept", lambda layers, *more, **options: given.append(layers) or real(layers, *more, **options)
    )
    with LaproxPress("laprox-r:window=8", budget="25%")(model), torch.no_grad():
        model(prompt, past_key_values=transformers.DynamicCache())
    for hook in hooks:
        hook.remove()
    assert len(given) == BATCH
    for i, layers in enumerate(given):
        for number, layer in enumerate(layers):
            norms = (entered[number] + returned[number])[i, -8:].double().norm(dim=-1)
            np.testing.assert_allclose(layer._arrays["residual_norms"][0], norms.numpy(), rtol=1e-6)
