"""Greedy decoding: without a cache it finds what it finds with one, and the checkpoint's own settings take no part."""

import pytest
import torch
from tiny_models import FAMILIES, token_ids

from laprox_dump import decode
from laprox_dump.errors import UnsupportedModel
from laprox_dump.model import prepare


@pytest.fixture
def model():
    return prepare(FAMILIES["llama"].build())


def fail(error):
    def raising(*_):
        raise error

    return raising


@pytest.mark.parametrize("name", ["llama", "mistral"])
def test_the_tokens_of_the_largest_logits(name):
    model, prompt = prepare(FAMILIES[name].build()), token_ids(40)
    found = decode.greedy(model, prompt, 12, stop_at_eos=False)
    with torch.inference_mode():
        logits = model(torch.cat([prompt, found])[None], use_cache=False).logits[0]
    assert found.tolist() == logits[39:-1].argmax(-1).tolist() and len(found) == 12


def test_without_a_cache_where_one_fails(model, monkeypatch, caplog):
    prompt = token_ids(40)
    expected = decode.greedy(model, prompt, 12, stop_at_eos=False)
    assert caplog.text == ""
    monkeypatch.setattr(decode, "_with_cache", fail(RuntimeError("shapes differ\nand more")))
    assert decode.greedy(model, prompt, 12, stop_at_eos=False).tolist() == expected.tolist()
    assert "decoding with a cache fails" in caplog.text and "(shapes differ)" in caplog.text
    model.generation_config.eos_token_id = [int(expected[3]), 1]
    first = expected.tolist().index(expected[3])
    assert decode.greedy(model, prompt, 12, stop_at_eos=True).tolist() == expected[: first + 1].tolist()


def test_failures(model, monkeypatch):
    """No memory is not a reason to try again; a model that cannot decode at all is refused."""
    monkeypatch.setattr(decode, "_without_cache", fail(KeyError("no such thing")))
    monkeypatch.setattr(decode, "_with_cache", fail(RuntimeError("CUDA out of memory")))
    with pytest.raises(RuntimeError, match="CUDA out of memory"):
        decode.greedy(model, token_ids(8), 2, stop_at_eos=False)
    monkeypatch.setattr(decode, "_with_cache", fail(ValueError("odd")))
    with pytest.raises(UnsupportedModel, match="decoding failed inside transformers .* force a text with --continuation"):
        decode.greedy(model, token_ids(8), 2, stop_at_eos=False)


def test_the_checkpoints_settings_take_no_part(model):
    prompt = token_ids(40)
    expected = decode.greedy(model, prompt, 12, stop_at_eos=False)
    model.generation_config.repetition_penalty = 50.0
    model.generation_config.do_sample = True
    assert decode.greedy(model, prompt, 12, stop_at_eos=False).tolist() == expected.tolist()
    assert model.generation_config.repetition_penalty == 50.0
