"""On a GPU: the same proof in every type, and a long prompt in bounded memory. Skipped without one."""

import numpy_replay
import pytest
import torch
import transformers
from conftest import DECODE, PROMPT
from tiny_models import FAMILIES, available, token_ids

from laprox_dump.export import Options, export_prompt
from laprox_dump.model import prepare
from laprox_dump.replay import TOLERANCE
from laprox_dump.tokens import Tokens

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt-oss", "mistral", "gpt2", "deepseek-v3"])
def test_every_type_proves_itself(name, dtype, tmp_path):
    if not available(FAMILIES[name]):
        pytest.skip(f"{name} needs transformers {FAMILIES[name].since}")
    ids = token_ids(PROMPT)
    model = prepare(FAMILIES[name].build().to("cuda", dtype))
    summary = export_prompt(model, Tokens(ids, ids[:0], None), str(tmp_path / "d.h5"), Options(decode=DECODE, stop_at_eos=False))
    assert max(summary.errors) <= TOLERANCE[dtype]
    assert max(numpy_replay.errors(tmp_path / "d.h5")) <= TOLERANCE[dtype]


LONG = dict(
    vocab_size=1000,
    hidden_size=1024,
    intermediate_size=2048,
    num_hidden_layers=4,
    num_attention_heads=16,
    num_key_value_heads=4,
    head_dim=64,
    max_position_embeddings=1 << 18,
    initializer_range=0.05,
)


@pytest.mark.parametrize(
    "classes, more, limit",
    [
        ("Llama", {}, 4),  # the fused kernel: tensors of the size of the hidden states only
        ("Gemma2", dict(sliding_window=4096, query_pre_attn_scalar=64), 12),  # blocks: 1 GiB of logits and copies of them
    ],
)
def test_long_prompts_in_bounded_memory(classes, more, limit, tmp_path):
    """64k tokens: one matrix of all logits of one layer would take 256 GiB in float32; `limit` is in GiB."""
    torch.manual_seed(1)
    config = getattr(transformers, classes + "Config")(**LONG, **more)
    model = prepare(getattr(transformers, classes + "ForCausalLM")(config).to("cuda", torch.bfloat16))
    ids = torch.randint(3, 1000, (65536,))
    torch.cuda.reset_peak_memory_stats()
    summary = export_prompt(
        model, Tokens(ids, ids[:0], None), str(tmp_path / "d.h5"), Options(decode=4, recent=64, stop_at_eos=False)
    )
    assert summary.layers == 4 and max(summary.errors) <= TOLERANCE[torch.bfloat16]
    assert torch.cuda.max_memory_allocated() < limit << 30
