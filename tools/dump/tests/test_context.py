"""How long a prompt may be, and prompts whose keys would depend on what follows them."""

from types import SimpleNamespace

import h5py
import pytest
from tiny_models import BASE, Family, available, token_ids

from laprox_dump.context import context_limit
from laprox_dump.errors import InputError
from laprox_dump.export import Options, export_prompt
from laprox_dump.model import RELEASE, prepare
from laprox_dump.tokens import Tokens

TRAINED = 64
SCALING = {
    "yarn": dict(factor=4.0, original_max_position_embeddings=TRAINED),
    "dynamic": dict(factor=4.0),
    "linear": dict(factor=4.0),
    "longrope": dict(short_factor=[1.0] * 6, long_factor=[4.0] * 6, original_max_position_embeddings=TRAINED),
}


def stretched(kind: str):
    """A Llama trained on 64 tokens, and stretched; configurations with LongRoPE give the long length."""
    scaling = {"rope_type": kind, **SCALING[kind]}
    key = "rope_parameters" if RELEASE.major >= 5 else "rope_scaling"
    if RELEASE.major >= 5:
        scaling["rope_theta"] = 10000.0
    longest = 4 * TRAINED if kind == "longrope" else TRAINED
    settings = {**BASE, key: scaling, "max_position_embeddings": longest}
    if kind == "longrope":
        settings["original_max_position_embeddings"] = TRAINED  # where transformers 4 looks for it
    return prepare(Family("Llama", settings).build())


def export(model, path, context: int, decode: int):
    ids = token_ids(context)
    export_prompt(model, Tokens(ids, ids[:0], None), str(path), Options(decode=decode, stop_at_eos=False))
    with h5py.File(path) as f:
        return len(f["token_ids"])


@pytest.mark.parametrize("kind", SCALING)
def test_beyond_the_trained_length(kind, tmp_path):
    assert export(stretched(kind), tmp_path / "d.h5", 100, 4) == 104
    with pytest.raises(InputError, match="the model's context holds 256"):
        export(stretched(kind), tmp_path / "e.h5", 255, 2)


@pytest.mark.parametrize("kind", ["longrope", "dynamic"])
def test_keys_that_depend_on_what_follows(kind, tmp_path):
    model = stretched(kind)
    with pytest.raises(InputError, match=f"rotary embedding .{kind}. changes behind 64 tokens"):
        export(model, tmp_path / "d.h5", 60, 5)
    assert not (tmp_path / "d.h5").exists()
    assert export(model, tmp_path / "a.h5", 60, 4) == 64
    assert export(model, tmp_path / "b.h5", 65, 0) == 65


@pytest.mark.parametrize("value, expected", [(-1, None), (None, None), ("512", None), (True, None), (0, None), (512, 512)])
def test_limits_that_are_none(value, expected):
    """XLNet says -1 for "no limit"."""
    assert context_limit(SimpleNamespace(config=SimpleNamespace(max_position_embeddings=value))) == expected


@pytest.mark.skipif(not available(Family("MiniMax", since="4.57")), reason="needs transformers 4.57")
def test_layers_with_linear_attention_beside(tmp_path):
    """MiniMax's cache makes masks that do not fit its attention; a pass without a cache decodes what the model says."""
    import torch

    settings = dict(
        layer_types=["linear_attention", "full_attention", "linear_attention"], num_local_experts=4, num_experts_per_tok=2
    )
    model = prepare(Family("MiniMax", dict(head_dim=12, block_size=16, **settings)).build())
    assert export(model, tmp_path / "d.h5", 40, 5) == 45
    with h5py.File(tmp_path / "d.h5") as f:
        assert [g.attrs["model_layer"] for g in f["layers"].values()] == [1]
        ids = torch.from_numpy(f["token_ids"][()]).long()
    with torch.inference_mode():
        logits = model(ids[None], use_cache=False).logits[0]
    assert logits[39:-1].argmax(-1).tolist() == ids[40:].tolist()
