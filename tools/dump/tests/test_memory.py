"""What a run takes does not grow with the number of layers: no earlier tensor lives, and freed ones leave the process."""

import os
import sys
import weakref

import pytest
import torch
from tiny_models import Family, token_ids

from laprox_dump import capture
from laprox_dump.export import Options, export_prompt
from laprox_dump.model import prepare
from laprox_dump.tokens import Tokens

LAYERS, LENGTH = 8, 8192


def export(path, progress):
    family = Family("Llama", dict(num_hidden_layers=LAYERS, head_dim=64, max_position_embeddings=16384))
    ids = token_ids(LENGTH)
    return export_prompt(prepare(family.build()), Tokens(ids, ids[:0], ids[:2]), str(path), Options(), progress)


def test_no_tensor_of_an_earlier_layer_lives(tmp_path, monkeypatch):
    seen, alive = [], []
    run = capture.Recorder._on_attention

    def watch(self, call):
        alive.append(sum(r() is not None for r in seen))
        seen.append(weakref.ref(call.key))
        run(self, call)

    monkeypatch.setattr(capture.Recorder, "_on_attention", watch)
    export(tmp_path / "d.h5", lambda stage, layers: None)
    assert len(seen) == 2 * LAYERS and alive == [0] * len(seen), alive  # the layers of the probe, and of the recording


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/self/statm, and only glibc's heap is set up")
def test_the_process_does_not_grow(tmp_path):
    """From the third layer to the last one, by less than half of what one layer's q, k and v take."""
    resident = {}

    def measure(stage, layers):
        with open("/proc/self/statm") as f:
            resident[stage, layers] = int(f.read().split()[1]) * os.sysconf("SC_PAGESIZE")

    assert export(tmp_path / "d.h5", measure).layers == LAYERS
    one_layer = LENGTH * 64 * (4 + 2 + 2) * torch.float32.itemsize
    assert resident["recording", LAYERS] - resident["recording", 3] < one_layer / 2, resident
