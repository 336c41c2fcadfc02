"""Rotary frequencies: written where rotating by them reproduces the model's queries and keys, and nowhere else."""

import h5py
import numpy as np
import pytest
import torch
from conftest import PROMPT
from tiny_models import FAMILIES, Family, available, token_ids

from laprox_dump.export import Options, export_prompt
from laprox_dump.model import load, prepare
from laprox_dump.tokens import Tokens

THETA = 10000.0


def plain(channels: int, base: float = THETA) -> np.ndarray:
    return base ** (-np.arange(channels // 2) * 2 / channels)


# The rotated channels of each family's layers; None: no rotation that the format can express.
CHANNELS = {
    **dict.fromkeys(FAMILIES, 12),
    **dict.fromkeys(["qwen3", "qwen3-moe", "gemma", "gemma2", "gemma3", "gemma3n", "gemma4"], 16),
    **dict(phi=6, stablelm=4),  # partial
    **{"gpt-neox": 4},
    **dict.fromkeys(["gpt2", "opt"]),  # positions are learned
    **dict.fromkeys(["gpt-j", "cohere", "cohere2", "glm4"]),  # pairs are interleaved
    **{"gpt-oss": None},  # YaRN with another attention factor than 1
    **dict.fromkeys(["deepseek-v2", "deepseek-v3"]),  # the rotated channels are the last ones
}


@pytest.mark.parametrize("name", FAMILIES)
def test_which_families_have_frequencies(dumps, name):
    with h5py.File(dumps(name)) as f:
        for g in f["layers"].values():
            assert ("rope_inv_freq" in g) == (CHANNELS[name] is not None)
            if "rope_inv_freq" in g:
                assert g["rope_inv_freq"].dtype == np.float64 and g["rope_inv_freq"].shape == (CHANNELS[name] // 2,)


def export(family: Family, path, prompt: int = PROMPT):
    if not available(family):
        pytest.skip(f"needs transformers {family.since}")
    ids = token_ids(prompt)
    model = prepare(family.build())
    export_prompt(model, Tokens(ids, ids[:0], None), str(path), Options(decode=2, stop_at_eos=False))
    with h5py.File(path) as f:
        return f["token_ids"][()], [{k: v[()] for k, v in g.items()} for g in f["layers"].values()]


def rotated(x: np.ndarray, f: np.ndarray) -> np.ndarray:
    """[H, T, d] rotated by the format's definition, in float64."""
    angle, half = np.arange(x.shape[1])[:, None] * f, len(f)
    a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return np.concatenate([a * np.cos(angle) - b * np.sin(angle), b * np.cos(angle) + a * np.sin(angle), rest], -1)


def scaled(kind: str, **settings) -> Family:
    rope = {"rope_type": kind, "rope_theta": THETA, **settings}
    return Family("Llama", dict(rope_parameters=rope, rope_scaling={k: v for k, v in rope.items() if k != "rope_theta"}))


YARN = dict(factor=4.0, original_max_position_embeddings=128, beta_fast=32.0, beta_slow=1.0)
LLAMA3 = dict(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=64)
TRUE = {
    "plain": FAMILIES["llama"],
    "linear": scaled("linear", factor=4.0),
    "llama3": scaled("llama3", **LLAMA3),
    "yarn with unit factor": scaled("yarn", attention_factor=1.0, **YARN),
    "partial": FAMILIES["stablelm"],
}


@pytest.mark.parametrize("what", TRUE)
def test_they_rotate_what_the_projections_made_into_what_the_kernel_saw(what, tmp_path):
    """Queries and keys before rotation are the outputs of the unmodified model's own projections."""
    family = TRUE[what]
    ids, layers = export(family, tmp_path / "d.h5")
    model, before = family.build(), []
    model.config._attn_implementation = "eager"
    for layer in model.model.layers:
        for projection in (layer.self_attn.q_proj, layer.self_attn.k_proj):
            projection.register_forward_hook(lambda module, args, output: before.append(output[0].double().numpy()))
    with torch.inference_mode():
        model(torch.from_numpy(ids.astype(np.int64))[None], use_cache=False)
    for i, layer in enumerate(layers):
        for x, name in zip(before[2 * i :], ("q", "k")):
            heads = x.reshape(len(ids), layer[name].shape[0], -1).transpose(1, 0, 2)
            np.testing.assert_allclose(rotated(heads, layer["rope_inv_freq"]), layer[name], atol=1e-4 * np.abs(layer[name]).max())


def test_the_values_of_scaled_embeddings(tmp_path):
    _, layers = export(FAMILIES["llama"], tmp_path / "a.h5")
    np.testing.assert_allclose(layers[0]["rope_inv_freq"], plain(12), rtol=1e-6)
    _, layers = export(TRUE["linear"], tmp_path / "b.h5")
    np.testing.assert_allclose(layers[0]["rope_inv_freq"], plain(12) / 4, rtol=1e-6)
    _, layers = export(TRUE["llama3"], tmp_path / "c.h5")
    assert layers[0]["rope_inv_freq"][0] == 1.0 and np.isclose(layers[0]["rope_inv_freq"][-1], plain(12)[-1] / 8, rtol=1e-6)


def test_layers_with_other_bases_have_other_frequencies(dumps):
    """Gemma 3 turns its windowed layers by one base and the others by another."""
    with h5py.File(dumps("gemma3")) as f:
        local, full = (f[f"layers/{i}/rope_inv_freq"][()] for i in (0, 1))
    np.testing.assert_allclose(local, plain(16), rtol=1e-6)
    np.testing.assert_allclose(full, plain(16, 1e6), rtol=1e-6)


FALSE = {
    "dynamic": scaled("dynamic", factor=4.0),
    "dynamic beyond its original length": (scaled("dynamic", factor=4.0), 600),
    "yarn": scaled("yarn", **YARN),
    "longrope": scaled("longrope", short_factor=[1.0] * 6, long_factor=[4.0] * 6, factor=4.0, original_max_position_embeddings=128),
}


@pytest.mark.parametrize("what", FALSE)
def test_left_out_where_they_would_be_wrong(what, tmp_path):
    family = FALSE[what]
    _, layers = export(family, tmp_path / "d.h5") if isinstance(family, Family) else export_long(*family, tmp_path / "d.h5")
    assert layers and all("rope_inv_freq" not in layer for layer in layers)


def export_long(family: Family, tokens: int, path):
    family = Family(family.classes, dict(family.settings, max_position_embeddings=1024))
    return export(family, path, prompt=tokens)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_models_keep_the_exact_frequencies(dtype, tiny_checkpoint, tmp_path):
    ids = token_ids(PROMPT)
    model = load(str(tiny_checkpoint), dtype, torch.device("cpu"))
    export_prompt(model, Tokens(ids, ids[:0], None), str(tmp_path / "d.h5"), Options(decode=2, stop_at_eos=False))
    with h5py.File(tmp_path / "d.h5") as f:
        for g in f["layers"].values():
            np.testing.assert_allclose(g["rope_inv_freq"][()], plain(12), rtol=1e-6)


def test_a_frequency_that_lies_is_left_out(tmp_path):
    """The rotary module holds other numbers than it turns by: the comparison with its own cosines notices."""
    model = FAMILIES["llama"].build()
    rotary = model.model.rotary_emb
    honest = type(rotary).forward

    class Lying(type(rotary)):
        def forward(self, x, position_ids):
            return honest(self, x, position_ids * 2)

    rotary.__class__ = Lying
    ids = token_ids(PROMPT)
    export_prompt(prepare(model), Tokens(ids, ids[:0], None), str(tmp_path / "d.h5"), Options(decode=2, stop_at_eos=False))
    with h5py.File(tmp_path / "d.h5") as f:
        assert all("rope_inv_freq" not in g for g in f["layers"].values())
