"""Layers that read another layer's cache say so, in the dump's own numbering."""

import h5py
import numpy as np
import pytest
import torch
from conftest import PROMPT
from tiny_models import FAMILIES, available, token_ids

from laprox_dump.export import Options, export_prompt
from laprox_dump.model import prepare
from laprox_dump.tokens import Tokens


def export(name, path, layers=None, **settings):
    family = FAMILIES[name]
    if not available(family):
        pytest.skip(f"{name} needs transformers {family.since}")
    ids = token_ids(PROMPT)
    model = prepare(type(family)(family.classes, {**family.settings, **settings}).build())
    export_prompt(model, Tokens(ids, ids[:0], None), str(path), Options(decode=4, stop_at_eos=False, layers=layers))


SIX = dict(num_hidden_layers=6, num_kv_shared_layers=3, layer_types=["sliding_attention", "full_attention"] * 3)


def sources(path):
    with h5py.File(path) as f:
        groups = [f[f"layers/{i}"] for i in range(len(f["layers"]))]
        for g in groups:
            source = g.attrs.get("kv_source")
            if source is not None:
                assert np.array_equal(g["k"][()], groups[source]["k"][()]) and np.array_equal(g["v"][()], groups[source]["v"][()])
        return [g.attrs.get("kv_source") for g in groups]


@pytest.mark.parametrize("name", ["gemma3n", "gemma4"])
def test_a_reader_names_its_source(name, tmp_path):
    more = dict(intermediate_size=[64] * 6, activation_sparsity_pattern=[0.0] * 6) if name == "gemma3n" else {}
    export(name, tmp_path / "d.h5", **SIX, **more)
    assert sources(tmp_path / "d.h5") == [None, None, None, 1, 2, 1]


def test_numbers_are_the_dumps_own(tmp_path):
    export("gemma4", tmp_path / "d.h5", layers={2, 3, 4, 5}, **SIX)  # of 1, which 3 and 5 read, the dump has no layer
    assert sources(tmp_path / "d.h5") == [None, None, 0, 1]


def test_no_sharing_no_attribute(dumps):
    assert sources(dumps("llama")) == [None] * 3


def test_equal_keys_alone_are_no_shared_cache(tmp_path):
    """Two layers of equal weights have keys of their own as soon as their inputs differ."""
    model = FAMILIES["llama"].build()
    a, b = model.model.layers[0].self_attn, model.model.layers[1].self_attn
    with torch.no_grad():
        b.k_proj.weight.copy_(a.k_proj.weight)
        b.v_proj.weight.copy_(a.v_proj.weight)
    ids = token_ids(PROMPT)
    export_prompt(prepare(model), Tokens(ids, ids[:0], None), str(tmp_path / "d.h5"), Options(decode=2, stop_at_eos=False))
    assert sources(tmp_path / "d.h5") == [None] * 3
