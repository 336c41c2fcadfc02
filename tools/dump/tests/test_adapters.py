"""Adapters beside the weights: folded and named, or refused; never a dump of the model below them."""

import h5py
import numpy as np
import numpy_replay
import pytest
import torch
from conftest import PROMPT
from tiny_models import FAMILIES, token_ids

from laprox_dump.adapters import fold
from laprox_dump.errors import UnsupportedModel
from laprox_dump.export import Options, export_prompt
from laprox_dump.model import load, prepare
from laprox_dump.tokens import Tokens

peft = pytest.importorskip("peft")
IDS = token_ids(PROMPT)


def adapted(targets=("o_proj",), **settings):
    """A tiny Llama below LoRA adapters whose B is not zero."""
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=list(targets), task_type="CAUSAL_LM", **settings)
    model = peft.get_peft_model(FAMILIES["llama"].build(), config).eval()
    torch.manual_seed(3)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.3)
    return model


def export(model, path, **options):
    export_prompt(model, Tokens(IDS, IDS[:0], None), str(path), Options(decode=4, stop_at_eos=False, **options))


def returned(model, ids) -> list[np.ndarray]:
    """What each attention module of an untouched model returns, [T, D]."""
    found = []
    for name, module in model.named_modules():
        if name.endswith("self_attn"):
            module.register_forward_hook(lambda m, args, output: found.append(output[0][0].numpy()))
    with torch.inference_mode():
        model(ids[None], use_cache=False)
    return found


@pytest.mark.parametrize("targets", [("o_proj",), ("q_proj", "v_proj", "o_proj"), ("q_proj", "up_proj")])
def test_the_dump_is_of_the_adapted_model(targets, tmp_path):
    base = FAMILIES["llama"].build()
    plain = [layer.self_attn.o_proj.weight.detach().T.numpy() for layer in base.model.layers]
    export(prepare(adapted(targets)), tmp_path / "d.h5")
    assert max(numpy_replay.errors(tmp_path / "d.h5")) < 2e-6
    with h5py.File(tmp_path / "d.h5") as f:
        assert f.attrs["adapters"] == f"LORA 'default' on {', '.join(sorted(targets))}, folded into the weights"
        expected = returned(adapted(targets), torch.from_numpy(f["token_ids"][()].astype(np.int64)))
        at = f["output_positions"][()]
        for i in range(3):
            np.testing.assert_allclose(f[f"layers/{i}/output"][()], expected[i][at], atol=1e-4 * np.abs(expected[i]).max())
            assert np.array_equal(f[f"layers/{i}/w_o"][()], plain[i]) == ("o_proj" not in targets)


def test_a_folder_with_an_adapter(tmp_path):
    """As transformers loads it: the adapter's folder names the model below."""
    FAMILIES["llama"].build().save_pretrained(tmp_path / "base")
    model = adapted()
    model.peft_config["default"].base_model_name_or_path = str(tmp_path / "base")
    model.save_pretrained(tmp_path / "lora")
    export(load(str(tmp_path / "lora"), None, torch.device("cpu")), tmp_path / "d.h5")
    assert max(numpy_replay.errors(tmp_path / "d.h5")) < 2e-6
    with h5py.File(tmp_path / "d.h5") as f:
        assert f.attrs["adapters"].startswith(f"{tmp_path / 'lora'}: LORA 'default' on o_proj")
        expected = returned(adapted(), torch.from_numpy(f["token_ids"][()].astype(np.int64)))
        np.testing.assert_allclose(f["layers/1/output"][()], expected[1][f["output_positions"][()]], atol=1e-3)


def test_an_adapter_that_is_not_folded_is_refused(tmp_path, monkeypatch):
    """The comparison with what the attention module returned finds it without knowing what an adapter is."""
    monkeypatch.setattr("laprox_dump.model.fold", lambda model: (model.get_base_model(), ""))
    with pytest.raises(UnsupportedModel, match="what it returns is not what its output projection made of the heads .*adapter"):
        export(prepare(adapted()), tmp_path / "d.h5")
    assert list(tmp_path.iterdir()) == []


def test_adapters_that_are_switched_off_are_not_folded(tmp_path):
    model = adapted()
    model.base_model.disable_adapter_layers()
    model, named = fold(model)
    assert named == ""
    plain = FAMILIES["llama"].build()
    assert torch.equal(model.model.layers[0].self_attn.o_proj.weight, plain.model.layers[0].self_attn.o_proj.weight)


def test_learned_prompts_are_refused():
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    with pytest.raises(UnsupportedModel, match="a learned prompt"):
        prepare(peft.get_peft_model(FAMILIES["llama"].build(), config))
