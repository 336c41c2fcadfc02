"""Every supported family: exported, replayed independently, and compared with the model as transformers runs it unmodified."""

import h5py
import numpy as np
import numpy_replay
import pytest
import torch
from conftest import DECODE, PROMPT
from tiny_models import FAMILIES

PROJECTIONS = ("o_proj", "dense", "out_proj", "c_proj")


@pytest.mark.parametrize("name", FAMILIES)
def test_replay_from_the_file_agrees(dumps, name):
    path = dumps(name)
    found = numpy_replay.errors(path)
    assert len(found) == 3
    assert max(found) < 2e-6, found  # float32 sums of a few hundred terms


@pytest.mark.parametrize("name", FAMILIES)
def test_the_file_says_what_the_family_is(dumps, name):
    family, tokens = FAMILIES[name], PROMPT + DECODE
    with h5py.File(dumps(name)) as f:
        assert f.attrs["format"] == "laprox-dump" and f.attrs["version"] == 1
        assert f.attrs["context_length"] == PROMPT
        assert f["query_positions"][()].tolist() == list(range(tokens))
        assert set(range(PROMPT - 32, tokens)) <= set(f["output_positions"][()].tolist())
        assert sorted(f["layers"]) == ["0", "1", "2"]
        for g, window, source in zip(f["layers"].values(), family.windows, family.sources):
            assert g.attrs.get("kv_source") == source
            assert g["k"].shape[:2] == (family.kv_heads, tokens)
            assert g["v"].shape == (family.kv_heads, tokens, family.d_v)
            assert g["q"].shape == (4, tokens, g["k"].shape[2])
            assert g["w_o"].shape[0] == 4 * family.d_v
            assert g.attrs["sliding_window"] == window
            assert g.attrs["softcap"] == family.softcap
            assert ("sinks" in g, "b_o" in g) == (family.sinks, family.bias)


@pytest.mark.parametrize("name", FAMILIES)
def test_recording_changes_nothing(dumps, name):
    """The stored outputs and tokens are those of a second copy of the model that knows nothing of this package."""
    with h5py.File(dumps(name)) as f:
        ids = torch.from_numpy(f["token_ids"][()].astype(np.int64))
        at = f["output_positions"][()]
        stored = [f[f"layers/{i}/output"][()] for i in range(3)]
    model = FAMILIES[name].build()
    model.config._attn_implementation = "eager"
    outputs = []
    for key, module in model.named_modules():
        if key.split(".")[-1] in PROJECTIONS and "mlp" not in key:
            module.register_forward_hook(lambda module, inputs, output: outputs.append(output[0].detach().numpy()))
    with torch.inference_mode():
        logits = model(ids[None], use_cache=False).logits[0]
    assert len(outputs) == 3
    for found, expected in zip(stored, outputs):
        np.testing.assert_allclose(found, expected[at], rtol=0, atol=1e-4 * np.abs(expected).max())
    assert logits[PROMPT - 1 : -1].argmax(-1).tolist() == ids[PROMPT:].tolist()


@pytest.mark.parametrize("name", FAMILIES)
def test_laprox_inspect_repeats_the_proof(dumps, laprox, name):
    result = laprox("inspect", dumps(name))
    assert result.returncode == 0, result.stdout + result.stderr
