"""The exporter's own proof: it passes for honest captures in every type, and refuses captures that are wrong."""

import h5py
import numpy_replay
import pytest
import torch
from conftest import DECODE, PROMPT
from tiny_models import FAMILIES, REFUSED, available, token_ids
from transformers.models.llama import modeling_llama as llama

from laprox_dump import attention, masks
from laprox_dump.errors import ProofError, UnsupportedModel
from laprox_dump.export import Options, export_prompt
from laprox_dump.model import prepare
from laprox_dump.replay import TOLERANCE, output_error
from laprox_dump.tokens import Tokens

IDS = token_ids(PROMPT)


def export(model, path, **options):
    return export_prompt(
        prepare(model), Tokens(IDS, IDS[:0], None), str(path), Options(decode=DECODE, stop_at_eos=False, **options)
    )


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt-oss", "mistral", "gpt2"])
def test_every_type_proves_itself(name, dtype, tmp_path):
    if not available(FAMILIES[name]):
        pytest.skip(f"{name} needs transformers {FAMILIES[name].since}")
    path = tmp_path / "d.h5"
    summary = export(FAMILIES[name].build().to(dtype), path)
    assert max(summary.errors) <= TOLERANCE[dtype]
    assert max(numpy_replay.errors(path)) <= TOLERANCE[dtype]  # the file holds what was proved
    with h5py.File(path) as f:
        q = f["layers/0/q"]
        assert (q.dtype, q.attrs.get("dtype")) == {
            torch.float32: ("float32", None),
            torch.float16: ("float16", None),
            torch.bfloat16: ("uint16", "bfloat16"),
        }[dtype]
        assert list(f["layers"][str(i)].attrs["proof_error"] for i in range(3)) == summary.errors


WRONG = {
    "scale": dict(scale=0.5),
    "soft-cap": dict(softcap=1.0),
    "sinks": dict(sinks=torch.zeros(4)),
    "window": dict(declared_window=7),
    "values": dict(value=None),
    "keys": dict(key=None),
}


@pytest.mark.parametrize("what", WRONG)
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_a_wrong_capture_is_refused(what, dtype, tmp_path, monkeypatch):
    """The capture is made to report something else than what the kernel used: nothing may be written."""
    honest = attention.Call

    def lying(*args):
        call = honest(*args)
        for key, value in WRONG[what].items():
            setattr(call, key, getattr(call, key).roll(1, dims=2) if value is None else value)
        if what == "window":
            monkeypatch.setattr(call, "sliding_window", lambda: 7, raising=False)
        return call

    monkeypatch.setattr(attention, "Call", lying)
    with pytest.raises(ProofError, match=r"layer 0: .* differs .* above the tolerance"):
        export(FAMILIES["llama"].build().to(dtype), tmp_path / "d.h5")
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_keeps_something_from_its_kernel_is_refused(tmp_path, monkeypatch):
    """Its own code adds to the logits what no argument tells: the fused kernel would run another model, and prove that one."""
    own = llama.eager_attention_forward

    def biased(module, query, *args, **kwargs):
        return own(module, query * 1.5, *args, **kwargs)

    monkeypatch.setattr(llama, "eager_attention_forward", biased)
    with pytest.raises(UnsupportedModel, match="LlamaAttention: its own attention code differs from plain causal attention"):
        export(FAMILIES["llama"].build(), tmp_path / "d.h5")
    assert list(tmp_path.iterdir()) == []


def test_one_wrong_row_is_enough():
    """A mean over rows would hide one bad position; the error is the worst row's."""
    good = torch.randn(100, 8)
    bad = good.clone()
    bad[41] *= 1.2
    error, row = output_error(bad, good)
    assert row == 41 and error > 0.1


def test_a_nan_is_never_accepted(tmp_path):
    model = FAMILIES["llama"].build()
    model.model.layers[1].self_attn.v_proj.weight.data[0] = float("nan")
    with pytest.raises(Exception, match="layer 1: v: .* not finite"):
        export(model, tmp_path / "d.h5")
    assert list(tmp_path.iterdir()) == []


def test_values_beyond_the_file_type_are_refused(tmp_path):
    model = FAMILIES["llama"].build()
    model.model.layers[2].self_attn.v_proj.weight.data *= 1e6
    with pytest.raises(Exception, match="layer 2: v: .* not finite in float16; .*bfloat16"):
        export(model, tmp_path / "d.h5", dtype=torch.float16)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_expressed_is_refused(name, tmp_path):
    family, reason = REFUSED[name]
    if not available(family):
        pytest.skip(f"{name} needs transformers {family.since}")
    with pytest.raises(UnsupportedModel, match=reason):
        export(family.build(), tmp_path / "d.h5")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["gemma2", "gpt-oss", "deepseek-v3", "gpt2"])
def test_blocks_change_nothing(name, dumps, tmp_path, monkeypatch):
    """The blocked attention and the blocked masks give the tensors of the unblocked ones, whatever the block."""
    whole = dumps(name)
    monkeypatch.setitem(attention.BLOCK, "cpu", 4 * 78 * 3)  # three queries at a time
    monkeypatch.setattr(masks, "BLOCK", 100)
    export(FAMILIES[name].build(), tmp_path / "d.h5")
    with h5py.File(whole) as a, h5py.File(tmp_path / "d.h5") as b:
        assert a["token_ids"][()].tolist() == b["token_ids"][()].tolist()
        for i in range(3):
            for key in a[f"layers/{i}"]:
                x, y = a[f"layers/{i}/{key}"][()], b[f"layers/{i}/{key}"][()]
                assert abs(x - y).max() <= 1e-4 * abs(x).max(), (i, key)  # wide random layers amplify the rounding of those before


def test_quantised_tensors_that_look_like_floats_are_refused(tmp_path):
    """torchao's weights are a subclass of tensors that gives the type of what it was made from."""

    class Packed(torch.Tensor):
        @classmethod
        def __torch_function__(cls, function, types, args=(), kwargs=None):
            if function is torch.Tensor.float:
                raise NotImplementedError("no such kernel")
            return super().__torch_function__(function, types, args, kwargs)

    model = FAMILIES["llama"].build()
    projection = model.model.layers[0].self_attn.o_proj
    projection.weight = torch.nn.Parameter(projection.weight.data.as_subclass(Packed), requires_grad=False)
    assert type(projection.weight) is Packed
    with pytest.raises(UnsupportedModel, match="holds Packed weights; load the model unquantised"):
        export(model, tmp_path / "d.h5")
    assert list(tmp_path.iterdir()) == []
