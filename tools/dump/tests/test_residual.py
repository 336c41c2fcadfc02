"""The residual norms of every family, against the unmodified model: hooks of the test's own on modules named here."""

import h5py
import numpy as np
import pytest
import torch
from conftest import PROMPT
from packaging.version import Version
from tiny_models import FAMILIES, release, token_ids
from transformers.models.llama import modeling_llama as llama

from laprox_dump.export import Options, export_prompt
from laprox_dump.model import prepare
from laprox_dump.tokens import Tokens

# Where the unmodified model holds the stream after attention. In a sequential block it is what the named module of the layer is
# given. None: a parallel block, where the stream is the layer's input plus what its attention module returned.
AFTER_ATTENTION = {
    "phi": None,
    "gpt-neox": None,
    "gpt-j": None,
    "cohere": None,
    "cohere2": None,
    "stablelm": "post_attention_layernorm",
    "gemma2": "pre_feedforward_layernorm",
    "gemma3": "pre_feedforward_layernorm",
    "gemma3n": None,  # see below
    "gemma4": "pre_feedforward_layernorm",
    "gpt2": "ln_2",
    "opt": "final_layer_norm",
    "olmo2": "mlp",
    "olmo3": "mlp",
}
ATTENTION = ("self_attn", "attn", "attention")


def layers_of(model: torch.nn.Module) -> list[torch.nn.Module]:
    """The model's three blocks, wherever it keeps them."""
    return next(m for m in model.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == 3 and hasattr(m[0], "forward"))


def first(value):
    return value[0] if isinstance(value, (tuple, list)) else value


def streams(model: torch.nn.Module, name: str, ids: torch.Tensor) -> list[torch.Tensor]:
    """The stream after attention in each layer of an unmodified model, [T, D] in float64."""
    found, given = [], {}

    def keep(tensor):
        found.append(tensor.detach().double().reshape(len(ids), -1))

    def of_input(module, args, kwargs):
        keep(args[0] if args else kwargs["hidden_states"])

    def sum_of(layer):
        def of_block(module, args, kwargs):
            given["x"] = args[0] if args else kwargs["hidden_states"]

        layer.register_forward_pre_hook(of_block, with_kwargs=True)
        attention = next(getattr(layer, n) for n in ATTENTION if hasattr(layer, n))
        attention.register_forward_hook(lambda module, args, output: keep(given["x"].double() + first(output).double()))

    for layer in layers_of(model):
        named = AFTER_ATTENTION.get(name, "post_attention_layernorm")
        if named is None:
            sum_of(layer)
        else:
            getattr(layer, named).register_forward_pre_hook(of_input, with_kwargs=True)
    with torch.inference_mode():
        model(ids[None], use_cache=False)
    return found


def stored(path) -> tuple[torch.Tensor, np.ndarray, list[np.ndarray]]:
    """Token ids, query positions and each layer's residual norms."""
    with h5py.File(path) as f:
        norms = [f[f"layers/{i}/residual_norms"] for i in range(3)]
        assert all(n.dtype == np.float64 for n in norms)
        return torch.from_numpy(f["token_ids"][()].astype(np.int64)), f["query_positions"][()], [n[()] for n in norms]


@pytest.mark.parametrize("name", [n for n in FAMILIES if n != "gemma3n"])
def test_norms_are_those_of_the_unmodified_model(dumps, name):
    ids, at, found = stored(dumps(name))
    model = FAMILIES[name].build()
    model.config._attn_implementation = "eager"
    expected = streams(model, name, ids)
    assert len(expected) == 3
    for norms, stream in zip(found, expected):
        np.testing.assert_allclose(norms, stream.norm(dim=-1).numpy()[at], rtol=1e-4)


def test_gemma3n_adds_to_its_active_prediction(dumps):
    """Its block adds a low-rank branch besides: the stream after attention is the active prediction plus the normed attention."""
    ids, at, found = stored(dumps("gemma3n"))
    model, expected, given = FAMILIES["gemma3n"].build(), [], {}
    model.config._attn_implementation = "eager"
    for layer in layers_of(model):
        layer.input_layernorm.register_forward_pre_hook(lambda module, args: given.update(x=args[0]))
        layer.post_attention_layernorm.register_forward_hook(lambda module, args, output: expected.append(given["x"] + output))
    with torch.inference_mode():
        model(ids[None], use_cache=False)
    for norms, stream in zip(found, expected):
        np.testing.assert_allclose(norms, stream[0].double().norm(dim=-1).numpy()[at], rtol=1e-4)


@pytest.mark.parametrize("name", ["granite", "gemma2", "olmo2"])
def test_what_stands_between_attention_and_addition_counts(dumps, name):
    """Norms of the stream plus the bare output of the projection would be others: multipliers and norms are in."""
    family = FAMILIES[name]
    model = family.build()
    ids, at, found = stored(dumps(name))
    bare, given = [], {}
    model.config._attn_implementation = "eager"
    for layer in layers_of(model):
        layer.register_forward_pre_hook(lambda m, a, k: given.update(x=a[0] if a else k["hidden_states"]), with_kwargs=True)
        layer.self_attn.register_forward_hook(lambda m, a, output: bare.append((given["x"] + output[0])[0].norm(dim=-1).numpy()))
    with torch.inference_mode():
        model(ids[None], use_cache=False)
    assert all(np.abs(norms / other[at] - 1).max() > 0.05 for norms, other in zip(found, bare))


def export(model, path, **options):
    ids = token_ids(PROMPT)
    export_prompt(prepare(model), Tokens(ids, ids[:0], None), str(path), Options(decode=2, stop_at_eos=False, **options))


def test_stored_queries_and_layers_only(dumps, tmp_path):
    """A tail of the queries and one layer: the same norms, for these positions."""
    export(FAMILIES["gemma2"].build(), tmp_path / "d.h5", recent=9, layers={1})
    with h5py.File(tmp_path / "d.h5") as part, h5py.File(dumps("gemma2")) as whole:
        at = part["query_positions"][()]
        assert at.tolist() == list(range(PROMPT - 9, PROMPT + 2))
        expected = whole["layers/1/residual_norms"][()][at]
        np.testing.assert_allclose(part["layers/0/residual_norms"][()], expected, rtol=1e-5)


def test_bfloat16_norms_are_of_the_stream_that_the_model_held(tmp_path):
    model = FAMILIES["llama"].build().bfloat16()
    export(model, tmp_path / "d.h5")
    ids, at, found = stored(tmp_path / "d.h5")
    again = FAMILIES["llama"].build().bfloat16()
    again.config._attn_implementation = "sdpa"
    for norms, stream in zip(found, streams(again, "llama", ids)):
        np.testing.assert_allclose(norms, stream.norm(dim=-1).numpy()[at], rtol=3e-2)


def test_no_plain_addition_no_norms(tmp_path, monkeypatch):
    """A block that scales the stream while it adds has no stream after attention: the dataset is left out, not guessed."""

    def forward(self, hidden_states, attention_mask=None, position_embeddings=None, **kwargs):
        out, _ = self.self_attn(
            hidden_states=self.input_layernorm(hidden_states),
            attention_mask=attention_mask,
            position_embeddings=position_embeddings,
        )
        hidden_states = 0.5 * hidden_states + out
        hidden_states = hidden_states + self.mlp(self.post_attention_layernorm(hidden_states))
        return hidden_states if release() >= Version("4.57") else (hidden_states,)

    monkeypatch.setattr(llama.LlamaDecoderLayer, "forward", forward)
    export(FAMILIES["llama"].build(), tmp_path / "d.h5")
    with h5py.File(tmp_path / "d.h5") as f:
        assert all("residual_norms" not in g and "output" in g for g in f["layers"].values())
