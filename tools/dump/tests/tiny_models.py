"""Tiny randomly initialised models of every supported family, each with what makes its attention special.

Weights are drawn wide (standard deviation 0.3) so that logits spread over several units: with the usual 0.02 every attention is
nearly uniform, and a missing soft-cap or window would hide in the rounding.
"""

import copy
from dataclasses import dataclass, field

import torch
import transformers
from packaging.version import Version

VOCABULARY, WINDOW = 97, 16

BASE = dict(
    vocab_size=VOCABULARY,
    hidden_size=48,
    intermediate_size=64,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=512,
    initializer_range=0.3,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
)

NAMES = {  # where the classes are not just FooConfig and FooForCausalLM
    "GPT2": ("GPT2Config", "GPT2LMHeadModel"),
    "Gemma3": ("Gemma3TextConfig", "Gemma3ForCausalLM"),
    "Gemma3n": ("Gemma3nTextConfig", "Gemma3nForCausalLM"),
    "Gemma4": ("Gemma4TextConfig", "Gemma4ForCausalLM"),
    "Llama4": ("Llama4TextConfig", "Llama4ForCausalLM"),
}


@dataclass
class Family:
    """How to build one model, and what its dump must show. `windows`: sliding_window of each layer."""

    classes: str  # prefix of transformers' Config and ForCausalLM classes
    settings: dict = field(default_factory=dict)
    windows: tuple = (0, 0, 0)
    softcap: float = 0.0
    sinks: bool = False
    bias: bool = False
    sources: tuple = (None, None, None)  # kv_source of each layer
    kv_heads: int = 2
    d_v: int = 12
    since: str = "4.48"  # the first of the tested transformers releases (4.48, 4.57, 5.24) that can export it

    def build(self) -> transformers.PreTrainedModel:
        """The model in float32, seeded, in evaluation mode."""
        torch.manual_seed(7)
        settings = copy.deepcopy({**BASE, **self.settings})  # some configurations change the lists they are given
        config_class, model_class = NAMES.get(self.classes, (self.classes + "Config", self.classes + "ForCausalLM"))
        config = getattr(transformers, config_class)(**{k: v for k, v in settings.items() if v is not None})
        model = getattr(transformers, model_class)(config).eval()
        with torch.no_grad():
            for key, value in model.named_parameters():
                # biases, norms, sinks start as constants or zeros: give them values that matter
                if value.ndim == 1:
                    value.add_(torch.randn_like(value) * (1.0 if key.endswith("sinks") else 0.2))
        return model


MLA = dict(
    num_key_value_heads=4,
    kv_lora_rank=16,
    q_lora_rank=24,
    qk_nope_head_dim=8,
    qk_rope_head_dim=8,
    v_head_dim=12,
    head_dim=8,
    first_k_dense_replace=3,
    n_routed_experts=4,
    num_experts_per_tok=2,
    n_group=1,
    topk_group=1,
    moe_intermediate_size=16,
    n_shared_experts=1,
)
MOE = dict(num_local_experts=4, num_experts_per_tok=2)
HYBRID = dict(layer_types=["sliding_attention", "full_attention", "sliding_attention"], sliding_window=WINDOW)
SHARED = dict(  # the last layer reads the cache of the last one before it that sees as much
    head_dim=16,
    num_kv_shared_layers=1,
    hidden_size_per_layer_input=8,
    vocab_size_per_layer_input=VOCABULARY,
    **HYBRID,
)

FAMILIES = {
    "llama": Family("Llama"),
    "llama-bias": Family("Llama", dict(attention_bias=True), bias=True),
    "mistral": Family("Mistral", dict(sliding_window=WINDOW), windows=(WINDOW,) * 3),
    "mixtral": Family("Mixtral", dict(sliding_window=None, **MOE)),
    "qwen2": Family("Qwen2"),
    "qwen3": Family("Qwen3", dict(head_dim=16), d_v=16, since="4.57"),
    "qwen3-moe": Family(
        "Qwen3Moe", dict(head_dim=16, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16), d_v=16, since="4.57"
    ),
    "phi": Family("Phi", dict(num_key_value_heads=4), bias=True, kv_heads=4),
    "phi3": Family("Phi3", dict(sliding_window=WINDOW), windows=(WINDOW,) * 3),
    "gemma": Family("Gemma", dict(head_dim=16), d_v=16),
    "gemma2": Family(
        "Gemma2",
        dict(head_dim=16, query_pre_attn_scalar=16, attn_logit_softcapping=2.0, sliding_window=WINDOW),
        windows=(WINDOW, 0, WINDOW),
        softcap=2.0,
        d_v=16,
    ),
    "gemma3": Family(
        "Gemma3", dict(head_dim=16, query_pre_attn_scalar=16, **HYBRID), windows=(WINDOW, 0, WINDOW), d_v=16, since="4.57"
    ),
    "gemma3n": Family(
        "Gemma3n",
        dict(SHARED, laurel_rank=8, altup_num_inputs=2, intermediate_size=[64] * 3, activation_sparsity_pattern=[0.0] * 3),
        windows=(WINDOW, 0, WINDOW),
        sources=(None, None, 0),
        d_v=16,
        since="5.24",
    ),
    "gemma4": Family(  # its last layer always sees everything
        "Gemma4", dict(SHARED, global_head_dim=16), windows=(WINDOW, 0, 0), sources=(None, None, 1), d_v=16, since="5.24"
    ),
    "gpt-oss": Family(
        "GptOss", dict(head_dim=16, **HYBRID, **MOE), windows=(WINDOW, 0, WINDOW), sinks=True, bias=True, d_v=16, since="4.57"
    ),
    "gpt-neox": Family("GPTNeoX", dict(hidden_size=64, num_key_value_heads=None), bias=True, kv_heads=4, d_v=16, since="4.57"),
    "gpt2": Family("GPT2", dict(num_key_value_heads=None, intermediate_size=None), bias=True, kv_heads=4),
    "gpt-j": Family("GPTJ", dict(num_key_value_heads=None, intermediate_size=None, rotary_dim=8), kv_heads=4, since="5.24"),
    "opt": Family(
        "OPT", dict(num_key_value_heads=None, ffn_dim=64, word_embed_proj_dim=48, init_std=0.3), bias=True, kv_heads=4, since="4.57"
    ),
    "olmo2": Family("Olmo2"),
    "olmo3": Family("Olmo3", HYBRID, windows=(WINDOW, 0, WINDOW), since="4.57"),
    "cohere": Family("Cohere"),
    "cohere2": Family("Cohere2", dict(sliding_window_pattern=2, **HYBRID), windows=(WINDOW, 0, WINDOW)),
    "granite": Family("Granite", dict(attention_multiplier=0.2, residual_multiplier=0.5)),
    "glm4": Family("Glm4", dict(head_dim=16), d_v=16, since="4.57"),
    "smollm3": Family("SmolLM3", since="4.57"),
    "starcoder2": Family("Starcoder2", dict(sliding_window=WINDOW, use_bias=True), windows=(WINDOW,) * 3, bias=True),
    "stablelm": Family("StableLm", dict(hidden_size=64), d_v=16, since="5.24"),
    "deepseek-v2": Family("DeepseekV2", dict(MLA), kv_heads=4, since="4.57"),
    "deepseek-v3": Family("DeepseekV3", dict(MLA), kv_heads=4, since="4.57"),
}

# Families that a dump cannot express, and the words of the refusal that say why.
REFUSED = {
    "falcon": (
        Family("Falcon", dict(num_kv_heads=2, num_key_value_heads=None)),
        "does not go through transformers' attention-function registry",
    ),
    "bloom": (Family("Bloom", dict(num_key_value_heads=None)), "does not go through transformers' attention-function registry"),
    "mpt": (
        Family(
            "Mpt",
            dict(
                d_model=48,
                n_heads=4,
                n_layers=3,
                hidden_size=None,
                num_attention_heads=None,
                num_hidden_layers=None,
                num_key_value_heads=None,
            ),
        ),
        "does not go through transformers' attention-function registry",
    ),
    "mamba": (
        Family("Mamba", dict(num_attention_heads=None, num_key_value_heads=None)),
        "does not go through transformers' attention-function registry",
    ),
    "bitnet": (Family("BitNet", since="4.57"), "the heads are changed"),
    "llama4": (
        Family(
            "Llama4", dict(head_dim=12, attention_chunk_size=WINDOW, intermediate_size_mlp=64, num_local_experts=2), since="4.57"
        ),
        "neither causal nor a sliding window",
    ),
    "qwen3-next": (
        Family(
            "Qwen3Next",
            dict(
                head_dim=16,
                layer_types=["full_attention"] * 3,
                num_experts=4,
                num_experts_per_tok=2,
                moe_intermediate_size=16,
                shared_expert_intermediate_size=16,
            ),
            since="4.57",
        ),
        "the heads are changed",
    ),
}


def release() -> Version:
    """The installed transformers release."""
    return Version(transformers.__version__)


def available(family: Family) -> bool:
    """Whether the installed transformers can export the family."""
    return release() >= Version(family.since)


def token_ids(count: int, seed: int = 1) -> torch.Tensor:
    """Random tokens of the tiny vocabulary, int64 [count], none of them special."""
    return torch.randint(3, VOCABULARY, (count,), generator=torch.Generator().manual_seed(seed))
